"""Amortized inference: posteriors learned from simulations of a program."""

from probgen.amortized.loading import load
from probgen.amortized.simulations import Simulations

__all__ = ["Simulations", "load"]
