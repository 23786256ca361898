r"""Weighting by the inverse propensity (Horvitz and Thompson, 1952; Hajek, 1971).

.. math::
   \hat\mu_1 = \frac{\sum_i T_i w_1(e_i) Y_i}{\sum_i T_i w_1(e_i)}, \qquad
   \hat\mu_0 = \frac{\sum_i (1 - T_i) w_0(e_i) Y_i}{\sum_i (1 - T_i) w_0(e_i)},

with the weights of a ``Target``. The standard error of propensities by ``Logistic`` is that of the stacked estimating
equations: it knows that they were estimated, which makes it smaller (Lunceford and Davidian, 2004). With other learners
the propensities count as known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal import learners
from probgen.causal.cross_fit import CrossFit, cross_predict
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, folds_of
from probgen.causal.learners import LinearIndex, Logistic
from probgen.causal.overlap import Trim, check_overlap
from probgen.causal.problem import Problem
from probgen.causal.target import ATE, Target

__all__ = ["IPW", "propensities"]


@dataclass(frozen=True)
class IPW(Estimator):
    """Weighting by the inverse propensity.

    Attributes:
        propensity: Learner of the probability of treatment.
        target: Whose effect.
        normalised: Whether weights are divided by their sum (Hajek); without, the ATE alone (Horvitz and Thompson).
        trim: Limits of the propensity beyond which units are left out; None keeps all.
        crossfit: Cross-fitting of the propensity; None fits all units at once.
    """

    propensity: Any = Logistic()  # noqa: RUF009
    target: Target = ATE()  # noqa: RUF009
    normalised: bool = True
    trim: Trim | None = None
    crossfit: CrossFit | None = None

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        if not self.normalised and not isinstance(self.target, ATE):
            raise MethodError(f"weights for the {self.target.name} must be normalised. Leave normalised=True.")
        problem, notes = trimmed(rng, problem, self.propensity, self.trim)
        treated, y = problem.treated, problem.y
        fitted = None
        if self.crossfit is None:
            fitted = learners.fit(rng, self.propensity, problem.x, problem.t)
            e = learners.predict(fitted, problem.x)
        else:
            e = propensities(rng, self.propensity, problem, folds_of(rng, self.crossfit, problem))
        check_overlap(problem, e, self.target)
        w1, w0 = (np.where(arm, w, 0.0) for arm, w in zip((treated, ~treated), self.target.weights(e), strict=True))
        s1, s0 = (np.where(arm, s, 0.0) for arm, s in zip((treated, ~treated), self.target.slopes(e), strict=True))
        if self.normalised:
            a, b = w1.mean(), w0.mean()
            mean_1, mean_0 = w1 @ y / w1.sum(), w0 @ y / w0.sum()
            value, r1, r0 = mean_1 - mean_0, (y - mean_1) / a, (y - mean_0) / b
            influence = w1 * r1 - w0 * r0
        else:
            r1 = r0 = y
            value = float(np.mean(w1 * y - w0 * y))
            influence = w1 * y - w0 * y - value
        if isinstance(fitted, LinearIndex):
            gradient = (s1 * r1 - s0 * r0) @ fitted.gradient(problem.x) / len(problem)
            influence = influence + fitted.scores @ gradient
        else:
            notes = (*notes, "The standard error takes propensities as known.")
        effect = self.target.name
        return self.result(problem, float(value), influence, effect, target=self.target, propensity=e, notes=notes)


def propensities(rng: np.random.Generator, learner: Any, problem: Problem, folds: np.ndarray | None) -> np.ndarray:
    """Probabilities of treatment by unit, shape (n,)."""
    treated = problem.treated
    return cross_predict(rng, learner, problem.x, treated.astype(float), folds)


def trimmed(
    rng: np.random.Generator, problem: Problem, learner: Any, trim: Trim | None
) -> tuple[Problem, tuple[str, ...]]:
    """The units within limits of the propensity, and what to note about the others."""
    if trim is None:
        return problem, ()
    e = propensities(rng, learner, problem, None)
    kept = (e >= trim.low) & (e <= trim.high)
    if not 0 < problem.t[kept].sum() < kept.sum():
        raise MethodError(
            f"no unit of an arm has a propensity from {trim.low:g} to {trim.high:g}: there is no overlap. Widen the limits."
        )
    note = f"{int((~kept).sum())} units with propensities outside {trim.low:g} to {trim.high:g} are left out."
    return problem.take(kept), (note,)
