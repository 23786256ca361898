r"""Nearest-neighbour matching with replacement (Abadie and Imbens, 2006), corrected for bias (Abadie and Imbens, 2011).

Each unit's missing outcome is the mean of its :math:`M` nearest neighbours :math:`J(i)` in the other arm, moved by a
regression for the distance that remains: :math:`\hat Y_i(1 - t) = \frac1M \sum_{j \in J(i)} Y_j + \hat\mu(X_i) -
\hat\mu(X_j)`. With :math:`K_i` the number of times that unit :math:`i` is a match,

.. math::
   \mathrm{se}^2 = \frac1{n^2} \sum_i (\hat Y_i(1) - \hat Y_i(0) - \hat\tau)^2
   + \Big[\Big(\frac{K_i}{M}\Big)^2 + \frac{2M - 1}{M} \frac{K_i}{M}\Big] \hat\sigma^2(X_i)

for the ATE; :math:`\hat\sigma^2` comes from the nearest neighbours in the own arm. The bootstrap is not valid here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal import learners
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, has_columns
from probgen.causal.learners import Linear
from probgen.causal.problem import Problem
from probgen.causal.target import ATE, ATO, ATT, Target

__all__ = ["Matching"]


@dataclass(frozen=True)
class Matching(Estimator):
    """Nearest neighbours in the Mahalanobis distance, with replacement.

    Attributes:
        neighbours: Number of matches of a unit, :math:`M`.
        bias_adjustment: Learner of the outcome by arm, fitted to the units that are matches; None for no correction.
        target: Whose effect: ``ATE()`` or ``ATT()``.
        variance_neighbours: Number of neighbours in the own arm for the variance of the outcome.
    """

    neighbours: int = 1
    bias_adjustment: Any = Linear()  # noqa: RUF009
    target: Target = ATE()  # noqa: RUF009
    variance_neighbours: int = 1

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.variance_neighbours < 1:
            raise MethodError(
                f"numbers of neighbours must be at least 1, got {self.neighbours} and {self.variance_neighbours}. Use 1."
            )

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        if isinstance(self.target, ATO):
            raise MethodError("Matching estimates the ATE or the ATT. Use IPW(target=ATO()).")
        if problem.clusters is not None:
            raise MethodError("Matching has no standard error for clusters. Use AIPW.")
        has_columns(problem, "Matching")
        treated, y, n = problem.treated, problem.y, len(problem)
        for what, arm in (("treated", treated), ("control", ~treated)):
            if arm.sum() < max(self.neighbours, self.variance_neighbours + 1):
                raise DataError(
                    f"there are {int(arm.sum())} {what} units, too few for so many neighbours. Ask for fewer."
                )
        scaled = _whitened(problem.x)
        wanted = treated if isinstance(self.target, ATT) else np.ones(n, bool)
        count, other = np.zeros(n), np.zeros(n)
        matches: dict[bool, np.ndarray] = {}
        for arm in (False, True):
            here, there = wanted & (treated == arm), np.flatnonzero(treated != arm)
            if not here.any():
                continue
            places = there[_nearest(scaled[there], scaled[here], self.neighbours)]
            matches[arm] = places
            other[here] = y[places].mean(axis=1)
            np.add.at(count, places.ravel(), 1)
        if self.bias_adjustment is not None:
            for arm, places in matches.items():
                here = wanted & (treated == arm)
                rows = np.flatnonzero((treated != arm) & (count > 0))
                fitted = learners.fit(rng, self.bias_adjustment, problem.x[rows], y[rows])
                near = learners.predict(fitted, problem.x)
                other[here] += near[here] - near[places].mean(axis=1)
        difference = np.where(treated, y - other, other - y)[wanted]
        value = float(difference.mean())
        m, share = self.neighbours, count / self.neighbours
        if isinstance(self.target, ATT):
            factor = np.where(treated, 0.0, share * (share - 1 / m))
        else:
            factor = share**2 + (2 * m - 1) / m * share
        spread = np.sum((difference - value) ** 2) + np.sum(factor * self._variance(scaled, treated, y))
        se = math.sqrt(max(float(spread), 0.0)) / int(wanted.sum())
        note = f"{int((count > 0).sum())} units serve as matches, one of them {int(count.max())} times."
        return Estimate(value, se, self.target.name, problem.question, self, problem, self.target, notes=(note,))

    def _variance(self, scaled: np.ndarray, treated: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Variance of each unit's outcome given its covariates and arm."""
        result, j = np.empty(len(y)), self.variance_neighbours
        for arm in (False, True):
            rows = np.flatnonzero(treated == arm)
            near = _nearest(scaled[rows], scaled[rows], j + 1)
            # The unit itself is among its neighbours, though not always first where others are at the same place.
            own = near == np.arange(len(rows))[:, None]
            own[~own.any(axis=1), -1] = True
            means = np.where(own, 0.0, y[rows][near]).sum(axis=1) / j
            result[rows] = j / (j + 1) * (y[rows] - means) ** 2
        return result


def _whitened(x: np.ndarray) -> np.ndarray:
    """Covariates whose Euclidean distance is that of Mahalanobis; directions without variance are dropped."""
    centred = x - x.mean(axis=0)
    scale = centred.std(axis=0)
    centred = centred[:, scale > 0] / scale[scale > 0]
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    kept = values > 1e-10 * values.max(initial=0.0)
    if not kept.any():
        raise DataError("all covariates are constant, so that there are no neighbours. Name others.")
    return centred @ vectors[:, kept] / np.sqrt(values[kept])


def _nearest(pool: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    """Places in the pool of the nearest points, shape (len(at), count)."""
    from scipy.spatial import KDTree

    return np.asarray(KDTree(pool).query(at, k=count)[1]).reshape(len(at), count)
