r"""Augmented inverse-propensity weighting: doubly robust, double machine learning of the interactive model.

.. math::
   \psi = g_1(X) - g_0(X) + \frac{T (Y - g_1(X))}{e(X)} - \frac{(1 - T)(Y - g_0(X))}{1 - e(X)},

whose mean is the ATE if outcome regressions or propensities are right (Robins, Rotnitzky and Zhao, 1994), with the
standard deviation of :math:`\psi` as its standard error where both are estimated well enough (Chernozhukov et al.,
2018). For the ATT, with :math:`p = P(T = 1)`,
:math:`\psi = [T - (1 - T) e / (1 - e)] (Y - g_0(X)) / p`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.cross_fit import CrossFit
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, folds_of
from probgen.causal.ipw import propensities, trimmed
from probgen.causal.learners import Linear, Logistic
from probgen.causal.outcome_model import outcome_model
from probgen.causal.overlap import Trim, check_overlap
from probgen.causal.problem import Problem
from probgen.causal.target import ATE, ATO, ATT, Target

__all__ = ["AIPW"]


@dataclass(frozen=True)
class AIPW(Estimator):
    """The doubly robust estimator, cross-fitted.

    Attributes:
        outcome: Learner of the outcome, or an outcome model (``ByArm``, ``Joint``).
        propensity: Learner of the probability of treatment.
        target: Whose effect: ``ATE()`` or ``ATT()``.
        trim: Limits of the propensity beyond which units are left out; None keeps all.
        crossfit: Cross-fitting; None fits all units at once, which only suits learners that do not overfit.
    """

    outcome: Any = Linear()  # noqa: RUF009
    propensity: Any = Logistic()  # noqa: RUF009
    target: Target = ATE()  # noqa: RUF009
    trim: Trim | None = None
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        if isinstance(self.target, ATO):
            raise MethodError("AIPW estimates the ATE or the ATT. Use IPW(target=ATO()).")
        problem, notes = trimmed(rng, problem, self.propensity, self.trim)
        folds = folds_of(rng, self.crossfit, problem)
        e = propensities(rng, self.propensity, problem, folds)
        check_overlap(problem, e, self.target)
        surfaces = outcome_model(self.outcome).surfaces(rng, problem, folds)
        t, y = problem.t, problem.y
        if isinstance(self.target, ATT):
            share = t.mean()
            psi = (t - (1 - t) * e / (1 - e)) * (y - surfaces[0]) / share
            value = float(psi.mean())
            influence = psi - value * t / share
        else:
            psi = doubly_robust(y, t, e, surfaces)
            value = float(psi.mean())
            influence = psi - value
        parts = {"target": self.target, "propensity": e, "predictions": surfaces, "notes": notes}
        return self.result(problem, value, influence, self.target.name, **parts)


def doubly_robust(y: np.ndarray, t: np.ndarray, e: np.ndarray, surfaces: np.ndarray) -> np.ndarray:
    """Scores whose mean is the average effect of t on y, shape (n,)."""
    g0, g1 = surfaces
    return g1 - g0 + t * (y - g1) / e - (1 - t) * (y - g0) / (1 - e)
