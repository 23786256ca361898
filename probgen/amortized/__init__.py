"""Amortized inference: posteriors learned from simulations of a program."""

from probgen.amortized.binary_regression import BinaryRegression
from probgen.amortized.composed import AnnealedLangevin, Gauss, Jacobian, Particles
from probgen.amortized.gnpe import Group
from probgen.amortized.loading import load
from probgen.amortized.pfn import Predictor, predictor
from probgen.amortized.simulate import simulate
from probgen.amortized.simulations import Simulations
from probgen.amortized.token_attention import FromGraph, Full
from probgen.amortized.truncated import Truncated

__all__ = [
    "AnnealedLangevin",
    "BinaryRegression",
    "FromGraph",
    "Full",
    "Gauss",
    "Group",
    "Jacobian",
    "Particles",
    "Predictor",
    "Simulations",
    "Truncated",
    "load",
    "predictor",
    "simulate",
]
