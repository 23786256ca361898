"""How outcomes are regressed on treatment and covariates."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal import learners
from probgen.causal.cross_fit import cross_predict
from probgen.causal.learners import Linear, LinearIndex

if TYPE_CHECKING:
    from probgen.causal.problem import Problem

__all__ = ["ByArm", "Joint", "OutcomeModel", "outcome_model"]


@dataclass(frozen=True)
class OutcomeModel(abc.ABC):
    """Outcomes predicted without and with treatment."""

    @abc.abstractmethod
    def surfaces(self, rng: np.random.Generator, problem: Problem, folds: np.ndarray | None) -> np.ndarray:
        """Predicted outcomes of all units without and with treatment, shape (2, n).

        Args:
            rng: Random numbers, for learners that need them.
            problem: The data.
            folds: Labels of folds, shape (repeats, n); None fits all units at once.
        """

    @abc.abstractmethod
    def standardized(
        self, rng: np.random.Generator, problem: Problem, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Surfaces without folds, and what their estimation adds to the influence values of the mean difference.

        Args:
            rng: Random numbers.
            problem: The data.
            weights: Weights with which differences are averaged, shape (n,), with the mean one.

        Returns:
            Predicted outcomes, shape (2, n); and influence values, shape (n,), or None if the learner has none.
        """


@dataclass(frozen=True)
class ByArm(OutcomeModel):
    """One regression on the covariates per arm.

    Attributes:
        learner: The learner.
    """

    learner: Any = Linear()  # noqa: RUF009

    def surfaces(self, rng: np.random.Generator, problem: Problem, folds: np.ndarray | None) -> np.ndarray:
        arms = (~problem.treated, problem.treated)
        return np.stack([cross_predict(rng, self.learner, problem.x, problem.y, folds, arm) for arm in arms])

    def standardized(
        self, rng: np.random.Generator, problem: Problem, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        surfaces, influence = [], np.zeros(len(problem))
        known = True
        for sign, arm in ((-1.0, ~problem.treated), (1.0, problem.treated)):
            fitted = learners.fit(rng, self.learner, problem.x[arm], problem.y[arm])
            surfaces.append(learners.predict(fitted, problem.x))
            if isinstance(fitted, LinearIndex):
                gradient = weights @ fitted.gradient(problem.x) / len(problem)
                influence[arm] += sign * (fitted.scores @ gradient) * len(problem) / arm.sum()
            else:
                known = False
        return np.stack(surfaces), influence if known else None


@dataclass(frozen=True)
class Joint(OutcomeModel):
    """One regression on the treatment and the covariates.

    Attributes:
        learner: The learner; its first column is the treatment, then come the covariates and the interactions.
        interactions: Names of covariates whose products with the treatment are columns too.
    """

    learner: Any = Linear()  # noqa: RUF009
    interactions: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (self.interactions,) if isinstance(self.interactions, str) else tuple(self.interactions)
        object.__setattr__(self, "interactions", names)

    def design(self, problem: Problem, t: np.ndarray) -> np.ndarray:
        """Treatment, covariates, and their products, for treatments of shape (n,)."""
        products = problem.x[:, problem.columns_of(tuple(self.interactions))] * t[:, None]
        return np.column_stack([t, problem.x, products])

    def _designs(self, problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = len(problem)
        return tuple(self.design(problem, t) for t in (problem.t, np.zeros(n), np.ones(n)))  # pyright: ignore[reportReturnType]

    def surfaces(self, rng: np.random.Generator, problem: Problem, folds: np.ndarray | None) -> np.ndarray:
        rows, none, all_ = self._designs(problem)
        return cross_predict(rng, self.learner, rows, problem.y, folds, at=(none, all_))

    def standardized(
        self, rng: np.random.Generator, problem: Problem, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        rows, none, all_ = self._designs(problem)
        fitted = learners.fit(rng, self.learner, rows, problem.y)
        surfaces = np.stack([learners.predict(fitted, none), learners.predict(fitted, all_)])
        if not isinstance(fitted, LinearIndex):
            return surfaces, None
        _check_apart(problem)
        gradient = weights @ (fitted.gradient(all_) - fitted.gradient(none)) / len(problem)
        return surfaces, fitted.scores @ gradient


def outcome_model(given: Any) -> OutcomeModel:
    """An outcome model; a bare learner means one regression per arm."""
    if isinstance(given, OutcomeModel):
        return given
    if callable(getattr(given, "fit", None)):
        return ByArm(given)
    raise MethodError(f"outcome must be a learner or an outcome model, got {given!r}. Use pg.causal.ByArm(Linear()).")


def _check_apart(problem: Problem) -> None:
    residual = problem.t - Linear().fit(problem.x, problem.t).predict(problem.x)
    if residual @ residual <= 1e-10 * float(np.sum((problem.t - problem.t.mean()) ** 2)):
        raise DataError(
            f"the treatment {problem.question.treatment!r} is a linear function of the covariates. Leave out those that "
            f"repeat it."
        )
