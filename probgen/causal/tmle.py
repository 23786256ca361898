r"""Targeted maximum likelihood of the average effect (van der Laan and Rubin, 2006; Gruber and van der Laan, 2010).

Outcomes are scaled to :math:`[0, 1]`, and the logit of each predicted outcome is moved along one over the propensity,

.. math::
   \operatorname{logit} g_1^* = \operatorname{logit} g_1 + \epsilon_1 / e, \qquad
   \operatorname{logit} g_0^* = \operatorname{logit} g_0 + \epsilon_0 / (1 - e),

with :math:`\epsilon` by maximum likelihood. Then the doubly robust score is solved by plain predictions: the effect
:math:`\frac1n \sum g_1^* - g_0^*` stays within the range of the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.causal.aipw import doubly_robust
from probgen.causal.cross_fit import CrossFit
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, folds_of
from probgen.causal.ipw import propensities, trimmed
from probgen.causal.learners import Linear, Logistic, expit
from probgen.causal.outcome_model import outcome_model
from probgen.causal.overlap import Trim, check_overlap
from probgen.causal.problem import Problem
from probgen.causal.root import root

__all__ = ["TMLE"]

_EDGE = 5e-4
_FAR = 60


@dataclass(frozen=True)
class TMLE(Estimator):
    """Targeted maximum likelihood of the ATE.

    Attributes:
        outcome: Learner of the outcome, or an outcome model (``ByArm``, ``Joint``).
        propensity: Learner of the probability of treatment.
        trim: Limits of the propensity beyond which units are left out; None keeps all.
        crossfit: Cross-fitting; None fits all units at once, which only suits learners that do not overfit.
    """

    outcome: Any = Linear()  # noqa: RUF009
    propensity: Any = Logistic()  # noqa: RUF009
    trim: Trim | None = None
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        problem, notes = trimmed(rng, problem, self.propensity, self.trim)
        folds = folds_of(rng, self.crossfit, problem)
        e = propensities(rng, self.propensity, problem, folds)
        check_overlap(problem, e)
        surfaces = outcome_model(self.outcome).surfaces(rng, problem, folds)
        low, size = problem.y.min(), np.ptp(problem.y)
        scaled = np.clip((surfaces - low) / size, _EDGE, 1 - _EDGE)
        y, treated = (problem.y - low) / size, problem.treated
        moved = np.stack([_moved(y, scaled[0], 1 / (1 - e), ~treated), _moved(y, scaled[1], 1 / e, treated)])
        targeted = low + size * moved
        value = float(np.mean(targeted[1] - targeted[0]))
        influence = doubly_robust(problem.y, problem.t, e, targeted) - value
        return self.result(problem, value, influence, "ATE", propensity=e, predictions=targeted, notes=notes)


def _moved(y: np.ndarray, g: np.ndarray, covariate: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """Predictions in (0, 1) after the fluctuation that solves the score of an arm."""
    index = np.log(g / (1 - g))

    def score(epsilon: float) -> float:
        return float(covariate[arm] @ (y[arm] - expit(index[arm] + epsilon * covariate[arm])))

    # The score falls from the sum over y = 1 to minus that over y = 0; double until it changes sign.
    reach = 1.0 / float(covariate.max())
    for _ in range(_FAR):
        if score(-reach) > 0 > score(reach):
            return expit(index + root(score, -reach, reach) * covariate)
        reach *= 2
    return expit(index + (reach if score(reach) >= 0 else -reach) * covariate)  # all outcomes at one end
