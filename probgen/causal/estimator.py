"""The contract of estimators of causal effects.

To add one, write a frozen configuration that derives from ``Estimator`` and make an ``Estimate`` in ``fit``; with
influence values, ``Estimator.result`` does the rest, and ``pg.causal.refute`` works too.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.estimate import Estimate, standard_error

if TYPE_CHECKING:
    from probgen.causal.cross_fit import CrossFit
    from probgen.causal.problem import Problem

__all__ = ["Estimator"]


class Estimator(abc.ABC):
    """A way to estimate an effect. Subclasses are frozen configurations."""

    @abc.abstractmethod
    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        """The estimate.

        Args:
            rng: Random numbers, for folds and learners that need them.
            problem: Question and data.

        Raises:
            DataError: If the data do not suit, as a treatment that is not binary where it must be.
            MethodError: If the settings do not suit, or there is no overlap.
        """

    def result(
        self,
        problem: Problem,
        value: float,
        influence: np.ndarray,
        effect: str,
        **parts: Any,
    ) -> Estimate:
        """An estimate whose standard error comes from its influence values.

        Args:
            problem: What was fitted.
            value: The effect.
            influence: Influence values with the mean zero, shape (n,).
            effect: Name of the effect.
            parts: Further fields of the ``Estimate``.
        """
        se = standard_error(influence, problem.clusters)
        return Estimate(value, se, effect, problem.question, self, problem, influence=influence, **parts)


def folds_of(rng: np.random.Generator, crossfit: CrossFit | None, problem: Problem) -> np.ndarray | None:
    """Labels of folds, shape (repeats, n); None without cross-fitting."""
    return None if crossfit is None else crossfit.split(rng, problem.strata, problem.clusters)


def has_columns(problem: Problem, what: str) -> None:
    """Raise where there are no covariates to weight by."""
    if problem.x.shape[1] == 0:
        raise MethodError(f"{what} needs covariates, and the question has none. Use pg.causal.Standardization() then.")


def needs_instruments(problem: Problem, what: str) -> None:
    """Raise where there are no instruments."""
    if problem.z.shape[1] == 0:
        raise MethodError(f"{what} needs instruments, and the question has none. Name them in pg.causal.Adjustment.")
