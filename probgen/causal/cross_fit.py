"""Cross-fitting: every unit's nuisances come from a fit that has not seen it (Chernozhukov et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal import learners

__all__ = ["CrossFit", "cross_predict"]


@dataclass(frozen=True)
class CrossFit:
    """How units are divided.

    Folds have the same shares of treated units; clusters stay together.

    Attributes:
        folds: Number of parts, at least 2.
        repeats: Number of divisions; predictions are averaged over them.
    """

    folds: int = 5
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.folds < 2 or self.repeats < 1:
            raise MethodError(
                f"folds must be at least 2 and repeats at least 1, got {self.folds} and {self.repeats}. Give CrossFit(5), "
                f"or crossfit=None for nuisances fitted to all units."
            )

    def split(self, rng: np.random.Generator, strata: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
        """Labels of folds, shape (repeats, n).

        Args:
            rng: Random numbers.
            strata: Whole numbers, shape (n,): each fold gets its share of each value.
            clusters: Cluster of each unit, shape (n,), or None.

        Raises:
            DataError: If there are fewer clusters, or units of a stratum, than folds.
        """
        return np.stack([self._once(rng, strata, clusters) for _ in range(self.repeats)])

    def _once(self, rng: np.random.Generator, strata: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
        if clusters is not None:
            names, which, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
            self._enough(len(names), "clusters")
            of_cluster, filled = np.empty(len(names), int), np.zeros(self.folds)
            for cluster in rng.permutation(len(names)):
                fold = int(filled.argmin())
                of_cluster[cluster], filled[fold] = fold, filled[fold] + sizes[cluster]
            return of_cluster[which]
        labels, start = np.empty(len(strata), int), 0
        for value in np.unique(strata):
            rows = rng.permutation(np.flatnonzero(strata == value))
            self._enough(len(rows), "units of one arm")
            labels[rows] = (start + np.arange(len(rows))) % self.folds
            start += len(rows)
        return labels

    def _enough(self, count: int, what: str) -> None:
        if count < self.folds:
            raise DataError(f"there are {count} {what}, fewer than {self.folds} folds. Use fewer folds.")


def cross_predict(
    rng: np.random.Generator,
    learner: Any,
    x: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray | None,
    among: np.ndarray | None = None,
    at: tuple[np.ndarray, ...] = (),
) -> np.ndarray:
    """Predictions for all units, each from a fit to the other folds.

    Args:
        rng: Random numbers, for learners that need them.
        learner: The learner.
        x: Covariates, shape (n, p).
        y: What is predicted, shape (n,).
        folds: Labels of folds, shape (repeats, n); None fits all units at once.
        among: Which units are fitted, shape (n,), booleans; None for all.
        at: Covariates to predict at instead, each of shape (n, p).

    Returns:
        Predictions, shape (n,); or (len(at), n).
    """
    places = at or (x,)
    among = np.ones(len(y), bool) if among is None else among
    if folds is None:
        fitted = learners.fit(rng, learner, x[among], y[among])
        result = np.stack([learners.predict(fitted, place) for place in places])
    else:
        result = np.zeros((len(places), len(y)))
        for labels in folds:
            for fold in np.unique(labels):
                here = labels == fold
                if not (among & ~here).any():
                    raise DataError("a fold has all units of an arm. Use fewer folds, or larger ones.")
                fitted = learners.fit(rng, learner, x[among & ~here], y[among & ~here])
                for k, place in enumerate(places):
                    result[k, here] += learners.predict(fitted, place[here]) / len(folds)
    return result if at else result[0]
