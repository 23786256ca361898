r"""A weighted mean, and its weights refitted without each covariate: what weights-based sensitivity analysis needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.columns import binary, coded, names_of, numbers

if TYPE_CHECKING:
    from probgen.causal.columns import Data

__all__ = ["Weighting"]

_NEWTON, _HALVINGS, _TOLERANCE, _RIDGE, _ROUNDING = 100, 40, 1e-10, 1e-13, 1e-14


@dataclass(frozen=True, eq=False)
class Weighting:
    """A weighted mean of an outcome, or a mean less it.

    The weights stand for a ratio of densities, of those about whom one wants to know to those who were observed: of a
    population to a sample, or of the treated to the controls (the effect on the treated is then the mean of the treated
    less the weighted mean of the controls).

    Attributes:
        outcome: Outcomes of the units that are weighted, shape (n,).
        weights: Their weights, not negative, shape (n,); only ratios matter.
        contrast: The mean from which the weighted mean is subtracted; None takes the weighted mean itself.
        contrast_se: Standard error of the contrast.
        without: By covariate, the weights that leaving it out would give, shape (n,).
        name: What is estimated.
    """

    outcome: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    contrast: float | None = None
    contrast_se: float = 0.0
    without: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    name: str = "weighted mean"

    def __post_init__(self) -> None:
        outcome = np.asarray(self.outcome, float)
        object.__setattr__(self, "outcome", outcome)
        object.__setattr__(self, "weights", _normalised("weights", self.weights, len(outcome)))
        without = {
            name: _normalised(f"the weights without {name}", w, len(outcome)) for name, w in self.without.items()
        }
        object.__setattr__(self, "without", without)
        if not np.isfinite(outcome).all() or np.ptp(outcome) == 0:
            raise DataError("the outcome must be finite and not constant. Drop missing rows.")
        if np.ptp(self.weights) == 0:
            raise DataError("all weights are equal, so that their sensitivity cannot be measured by their variance.")

    @classmethod
    def att(cls, data: Data, outcome: str, treatment: str, covariates: str | Sequence[str]) -> Weighting:
        """The effect on the treated, by weights of the controls that give their covariates the means of the treated.

        The weights are the most even ones that do so exactly (entropy balancing, Hainmueller, 2012): odds of treatment
        by a logistic law.

        Args:
            data: A DataFrame, or a mapping of arrays of one length.
            outcome: Name of the outcome.
            treatment: Name of the treatment, zeros and ones.
            covariates: Names; the weights are refitted without each of them.

        Raises:
            DataError: If a column is not usable.
            MethodError: If no weights balance the covariates: there is no overlap.
        """
        covariates = names_of(covariates)
        if not covariates:
            raise DataError("covariates is empty, so there are no weights. Name the covariates to balance.")
        named = [str(outcome), str(treatment), *covariates]
        if len(set(named)) < len(named):
            twice = next(name for name in named if named.count(name) > 1)
            raise DataError(f"{twice!r} is named more than once. Name each column once.")
        y, t = numbers(data, outcome), binary(data, treatment)
        x, places, _ = coded(data, covariates)
        if not len(y) == len(t) == len(x):
            raise DataError(f"the columns have different lengths {sorted({len(y), len(t), len(x)})}. Give equal ones.")

        def weights(columns: list[int], left_out: str) -> np.ndarray:
            return _balancing(x[t == 0][:, columns], x[t == 1][:, columns].mean(axis=0), left_out)

        everything = list(range(x.shape[1]))
        without = {}
        for name, own in places.items():
            if len(places) > 1:
                without[name] = weights([i for i in everything if i not in own], f" without {name}")
        treated = y[t == 1]
        return cls(
            y[t == 0],
            weights(everything, ""),
            float(treated.mean()),
            float(treated.std(ddof=1)) / math.sqrt(len(treated)) if len(treated) > 1 else 0.0,
            without,
            f"effect of {treatment} on {outcome} among the treated",
        )

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return float(np.mean(self.weights * self.outcome))

    @property
    def estimate(self) -> float:
        """The contrast less the weighted mean, or the weighted mean."""
        return self.mean if self.contrast is None else self.contrast - self.mean

    @property
    def se(self) -> float:
        """Its standard error, with the weights taken as given."""
        n = len(self.outcome)
        spread = float(np.sum((self.weights * (self.outcome - self.mean)) ** 2)) / n**2
        return math.sqrt(spread + self.contrast_se**2)


def _normalised(what: str, weights: np.ndarray, count: int) -> np.ndarray:
    weights = np.asarray(weights, float)
    if weights.shape != (count,):
        raise DataError(f"{what} have the shape {weights.shape}, expected {(count,)}. Give one per outcome.")
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise DataError(f"{what} must be finite, not negative, and not all zero. Check them.")
    return weights / weights.mean()


def _balancing(x: np.ndarray, target: np.ndarray, left_out: str) -> np.ndarray:
    """Weights ``exp(x b)`` under which the columns of x have the means ``target`` (entropy balancing).

    They minimise the convex ``log mean exp((x - target) b)``; Newton's method with halved steps.
    """
    centred = x - target
    scale = np.sqrt(np.mean(centred**2, axis=0))
    centred = centred / np.where(scale > 0, scale, 1.0)
    b, value, p = np.zeros(x.shape[1]), 0.0, np.full(len(x), 1 / len(x))
    for _ in range(_NEWTON):
        gradient = p @ centred
        if np.abs(gradient).max(initial=0.0) < _TOLERANCE:
            return p
        spread = centred - gradient
        curvature = (spread * p[:, None]).T @ spread + _RIDGE * np.eye(len(b))
        step = np.linalg.solve(curvature, gradient)
        for halving in range(_HALVINGS):
            new = b - step * 0.5**halving
            index = centred @ new
            top = index.max()
            weights = np.exp(index - top)
            found = float(top + np.log(weights.mean()))
            # Near the optimum the decrease is smaller than the rounding of the value: leave room for that.
            target_value = value - 1e-4 * 0.5**halving * float(step @ gradient) + _ROUNDING * max(1.0, abs(value))
            if found <= target_value or halving == _HALVINGS - 1:
                b, value, p = new, found, weights / weights.sum()
                break
    raise MethodError(
        f"no weights of the controls have the means of the treated in the covariates{left_out}: there is no overlap (the "
        f"{int((p > 1e-3).sum())} controls that come nearest have almost all of the weight). Leave out covariates that "
        f"decide on treatment, or trim treated units that have no counterpart."
    )
