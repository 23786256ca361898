r"""Double machine learning of partially linear and instrumental models (Chernozhukov et al., 2018).

With :math:`\tilde Y = Y - E[Y \mid X]` and likewise :math:`\tilde T`, :math:`\tilde Z`, cross-fitted:

- partially linear, :math:`Y = \theta T + g(X) + U`:
  :math:`\hat\theta = \sum \tilde T \tilde Y / \sum \tilde T^2` (Robinson, 1988);
- partially linear with instruments: with the projection :math:`\hat T = \tilde Z' \hat\pi` of :math:`\tilde T`,
  :math:`\hat\theta = \sum \hat T \tilde Y / \sum \hat T \tilde T`. With ``Linear`` learners fitted to all units this is
  two-stage least squares, and without instruments least squares (Frisch, Waugh and Lovell);
- interactive with a binary instrument: the effect of :math:`Z` on :math:`Y` over that on :math:`T`, both doubly robust:
  the local effect on compliers (Imbens and Angrist, 1994).

Standard errors are robust to heteroscedasticity and, with clusters, to dependence within them. ``AIPW`` is the double
machine learning of the interactive model without instruments.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError, ProbgenWarning
from probgen.causal.aipw import doubly_robust
from probgen.causal.cross_fit import CrossFit, cross_predict
from probgen.causal.estimate import Estimate, standard_error
from probgen.causal.estimator import Estimator, folds_of, needs_instruments
from probgen.causal.learners import Linear, Logistic
from probgen.causal.overlap import check_overlap
from probgen.causal.problem import Problem

__all__ = ["InteractiveIV", "PartiallyLinear", "PartiallyLinearIV"]

_WEAK = 10.0


@dataclass(frozen=True)
class PartiallyLinear(Estimator):
    """The coefficient of a treatment, which may take any number, in a partially linear model.

    Attributes:
        outcome: Learner of the outcome from the covariates.
        treatment: Learner of the treatment from the covariates.
        crossfit: Cross-fitting; None fits all units at once (with ``Linear``: ordinary least squares).
    """

    outcome: Any = Linear()  # noqa: RUF009
    treatment: Any = Linear()  # noqa: RUF009
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        folds = folds_of(rng, self.crossfit, problem)
        y = problem.y - cross_predict(rng, self.outcome, problem.x, problem.y, folds)
        t = problem.t - cross_predict(rng, self.treatment, problem.x, problem.t, folds)
        _check_varies(problem, t)
        value = float(t @ y / (t @ t))
        influence = t * (y - value * t) / np.mean(t**2)
        return self.result(problem, value, influence, "coefficient", residuals=np.stack([y, t]))


@dataclass(frozen=True)
class PartiallyLinearIV(Estimator):
    """The coefficient of a treatment in a partially linear model with instruments (two-stage least squares).

    Attributes:
        outcome: Learner of the outcome from the covariates.
        treatment: Learner of the treatment from the covariates.
        instrument: Learner of each instrument from the covariates.
        crossfit: Cross-fitting; None fits all units at once (with ``Linear``: two-stage least squares).
    """

    outcome: Any = Linear()  # noqa: RUF009
    treatment: Any = Linear()  # noqa: RUF009
    instrument: Any = Linear()  # noqa: RUF009
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        needs_instruments(problem, "PartiallyLinearIV")
        folds = folds_of(rng, self.crossfit, problem)
        y = problem.y - cross_predict(rng, self.outcome, problem.x, problem.y, folds)
        t = problem.t - cross_predict(rng, self.treatment, problem.x, problem.t, folds)
        z = np.column_stack([v - cross_predict(rng, self.instrument, problem.x, v, folds) for v in problem.z.T])
        _check_varies(problem, t)
        first = np.linalg.lstsq(z, t, rcond=1e-11)[0]
        hat = z @ first
        if hat @ hat <= 1e-20 * (t @ t):
            raise DataError("the instruments are linear functions of the covariates. Use others.")
        f = _first_stage(problem, z, t, first)
        value = float(hat @ y / (hat @ t))
        influence = hat * (y - value * t) / np.mean(hat * t)
        residuals = np.stack([y, t])
        note = f"The robust first-stage F is {f:.1f}."
        return self.result(problem, value, influence, "coefficient by instruments", residuals=residuals, notes=(note,))


@dataclass(frozen=True)
class InteractiveIV(Estimator):
    """The local average effect on compliers, with a binary instrument and a binary treatment.

    Attributes:
        outcome: Learner of the outcome from the covariates, by value of the instrument.
        treatment: Learner of the treatment from the covariates, by value of the instrument.
        instrument: Learner of the probability of the instrument.
        crossfit: Cross-fitting; None fits all units at once.
    """

    outcome: Any = Linear()  # noqa: RUF009
    treatment: Any = Linear()  # noqa: RUF009
    instrument: Any = Logistic()  # noqa: RUF009
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        needs_instruments(problem, "InteractiveIV")
        z = problem.z[:, 0]
        if problem.z.shape[1] > 1 or not np.isin(z, (0.0, 1.0)).all():
            raise MethodError("InteractiveIV needs one instrument of zeros and ones. Use PartiallyLinearIV for others.")
        treated = problem.treated.astype(float)
        folds = folds_of(rng, self.crossfit, problem)
        e = cross_predict(rng, self.instrument, problem.x, z, folds)
        check_overlap(problem, e, event="have the instrument")

        def effect(values: np.ndarray, learner: Any) -> np.ndarray:
            arms = (z == 0, z == 1)
            surfaces = [cross_predict(rng, learner, problem.x, values, folds, arm) for arm in arms]
            return doubly_robust(values, z, e, np.stack(surfaces))

        on_y, on_t = effect(problem.y, self.outcome), effect(treated, self.treatment)
        share = float(on_t.mean())
        if abs(share) <= 1e-10:
            raise DataError("the instrument does not move the treatment. Use another.")
        f = (share / standard_error(on_t - share, problem.clusters)) ** 2
        _warn_weak(f)
        value = float(on_y.mean()) / share
        influence = (on_y - value * on_t) / share
        note = f"The instrument moves {100 * share:.3g} % of the units (F {f:.1f})."
        return self.result(problem, value, influence, "LATE", notes=(note,))


def _check_varies(problem: Problem, t: np.ndarray) -> None:
    if t @ t <= 1e-10 * float(np.sum((problem.t - problem.t.mean()) ** 2)):
        raise DataError(
            f"the treatment {problem.question.treatment!r} is a function of the covariates: nothing of it is left to "
            f"compare. Leave out those that decide it."
        )


def _first_stage(problem: Problem, z: np.ndarray, t: np.ndarray, first: np.ndarray) -> float:
    """Robust F of the instruments in the regression of the treatment, with a warning if it is small."""
    scores = z * (t - z @ first)[:, None]
    if problem.clusters is not None:
        scores = np.stack([np.bincount(problem.clusters, weights=column) for column in scores.T], axis=1)
    moved = z.T @ t
    f = float(moved @ np.linalg.pinv(scores.T @ scores, hermitian=True) @ moved) / z.shape[1]
    _warn_weak(f)
    return f


def _warn_weak(f: float) -> None:
    if f < _WEAK:
        warnings.warn(
            f"the instruments are weak (first-stage F {f:.1f}, below {_WEAK:g}): the estimate is biased towards that "
            f"without instruments, and its interval is too short. Use stronger instruments, or test the effect itself.",
            ProbgenWarning,
            stacklevel=5,
        )
