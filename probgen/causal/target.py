r"""Whose average effect: everybody's, that of the treated, or that of those who could have been either.

With the propensity :math:`e(x) = P(T = 1 \mid x)` and a tilt :math:`h(x)`, the effect is
:math:`E[h (Y(1) - Y(0))] / E[h]`, and weights :math:`h / e` of the treated and :math:`h / (1 - e)` of the controls give
it (Li, Morgan and Zaslavsky, 2018): :math:`h = 1` for the ATE, :math:`e` for the ATT, :math:`e (1 - e)` for the overlap.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np

__all__ = ["ATE", "ATO", "ATT", "Target"]


@dataclass(frozen=True)
class Target(abc.ABC):
    """Whose effect is asked for."""

    @property
    def name(self) -> str:
        """The field's abbreviation."""
        return type(self).__name__

    @abc.abstractmethod
    def weights(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of treated and of control units with these propensities."""

    @abc.abstractmethod
    def slopes(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the weights by the propensity."""


@dataclass(frozen=True)
class ATE(Target):
    """The average effect on all units."""

    def weights(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 1 / e, 1 / (1 - e)

    def slopes(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -1 / e**2, 1 / (1 - e) ** 2


@dataclass(frozen=True)
class ATT(Target):
    """The average effect on the treated."""

    def weights(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones_like(e), e / (1 - e)

    def slopes(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(e), 1 / (1 - e) ** 2


@dataclass(frozen=True)
class ATO(Target):
    """The average effect with weights ``e (1 - e)``: on units that could well have been treated or not."""

    def weights(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 1 - e, e

    def slopes(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -np.ones_like(e), np.ones_like(e)
