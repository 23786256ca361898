"""Learners of quantiles and expectiles, by losses that weigh both signs of a residual differently."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.learners import LinearIndex, predict
from probgen.causal.quantile_regression import quantile_coefficients

__all__ = ["Expectile", "LinearQuantile"]

_REWEIGHTINGS = 100


@dataclass(frozen=True)
class LinearQuantile:
    """A quantile that is linear in the covariates.

    Attributes:
        level: Level of the quantile, in (0, 1).
    """

    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise MethodError(f"the level of a quantile must lie between 0 and 1, got {self.level}. Use 0.5, say.")

    def fit(self, x: np.ndarray, y: np.ndarray) -> LinearIndex:
        """Fit outcomes of shape (n,) to covariates of shape (n, p)."""
        centre, scale, rows = _standardised(x)
        return _linear(quantile_coefficients(rows, y, self.level), centre, scale)


@dataclass(frozen=True)
class Expectile:
    """The number whose squared residuals above it count once, those below it ``gamma`` times.

    Least squares, with weights by the signs of the residuals until these no longer change (Newey and Powell, 1987).

    Attributes:
        gamma: Weight of residuals below, at least 1.
        mean: Learner whose ``fit`` takes ``sample_weight``; None for a linear function of the covariates.
    """

    gamma: float
    mean: Any = field(default=None)

    def __post_init__(self) -> None:
        if self.mean is not None and "sample_weight" not in inspect.signature(self.mean.fit).parameters:
            raise MethodError(
                f"{type(self.mean).__name__}.fit takes no sample_weight, which expectiles need. Leave it out for a linear "
                f"function, or use another learner."
            )

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """Fit outcomes of shape (n,) to covariates of shape (n, p)."""
        centre, scale, rows = _standardised(x)
        weight, fitted = np.ones(len(y)), None
        for _ in range(_REWEIGHTINGS):
            if self.mean is None:
                root = np.sqrt(weight)
                fitted = _linear(np.linalg.lstsq(rows * root[:, None], y * root, rcond=1e-11)[0], centre, scale)
            else:
                fitted = self.mean.fit(x, y, sample_weight=weight)
            new = np.where(y > predict(fitted, x), 1.0, self.gamma)
            if np.array_equal(new, weight):
                break
            weight = new
        return fitted


def _standardised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return centre, scale, np.column_stack([np.ones(len(x)), (x - centre) / scale])


def _linear(coefficients: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> LinearIndex:
    return LinearIndex(coefficients, centre, scale, False, np.zeros((0, len(coefficients))))
