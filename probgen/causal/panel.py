r"""Double machine learning of panels with correlated random effects (Mundlak, 1978; Clarke and Polselli, 2025).

Unit :math:`i` is seen at times :math:`t`; what is hidden about it goes with the covariates through their means,

.. math::
   Y_{it} = \theta D_{it} + l(X_{it}, \bar X_i, \alpha_i) + U_{it}, \qquad
   D_{it} = m(X_{it}, \bar X_i) + c_i + V_{it},

where :math:`c_i` and what is additive in :math:`\alpha_i` may depend on one another in any way. Learners predict outcome
and treatment from :math:`(X_{it}, \bar X_i)`, fitted to other units; then the mean over time of each unit's treatment
residual is subtracted, which removes :math:`c_i`, and with it everything additive that stays constant:
:math:`\hat\theta = \sum V_{it} (Y_{it} - \hat l_{it}) / \sum V_{it}^2`. Learners may bend with :math:`\bar X_i`, so that
heterogeneity need not be additive, as it must be for differences or deviations from means. With ``Linear`` fitted to
all units this is the fixed-effects estimator.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.cross_fit import CrossFit, cross_predict
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, folds_of
from probgen.causal.learners import Linear
from probgen.causal.problem import Problem

__all__ = ["PanelPartiallyLinear"]


@dataclass(frozen=True)
class PanelPartiallyLinear(Estimator):
    """The coefficient of a treatment in a panel; the clusters of ``pg.causal.estimate`` are its units.

    Attributes:
        outcome: Learner of the outcome from the covariates and their means over time.
        treatment: Learner of the treatment from the same.
        crossfit: Cross-fitting with whole units; None fits all units at once.
    """

    outcome: Any = Linear()  # noqa: RUF009
    treatment: Any = Linear()  # noqa: RUF009
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        if problem.clusters is None:
            raise MethodError("PanelPartiallyLinear needs units seen several times. Name their column in clusters=.")
        units = np.unique(problem.clusters, return_inverse=True)[1]
        if len(units) == units.max() + 1:
            raise DataError("each unit is seen once, so that this is no panel. Use PartiallyLinear.")
        means = np.column_stack([np.zeros((len(units), 0)), *(_mean(column, units) for column in problem.x.T)])
        x = np.column_stack([problem.x, means])
        folds = folds_of(rng, self.crossfit, dataclasses.replace(problem, clusters=units))
        y = problem.y - cross_predict(rng, self.outcome, x, problem.y, folds)
        t = problem.t - cross_predict(rng, self.treatment, x, problem.t, folds)
        t = t - _mean(t, units)
        if t @ t <= 1e-10 * float(np.sum((problem.t - problem.t.mean()) ** 2)):
            raise DataError(
                f"the treatment {problem.question.treatment!r} does not vary within units beyond the covariates. Compare "
                f"units instead (PartiallyLinear)."
            )
        value = float(t @ y / (t @ t))
        influence = t * (y - value * t) / np.mean(t**2)
        return self.result(problem, value, influence, "coefficient", residuals=np.stack([y, t]))


def _mean(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Each row's mean over its unit."""
    return (np.bincount(units, weights=values) / np.bincount(units))[units]
