r"""Standardisation of outcome regressions: the g-formula (Robins, 1986).

.. math:: \hat\tau = \frac1n \sum_i \hat g_1(X_i) - \hat g_0(X_i), \qquad g_t(x) = E[Y \mid T = t, X = x].

``Standardization`` fits a regression; ``GFormula`` asks a fitted program, which has one already, for each posterior draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator
from probgen.causal.outcome_model import ByArm, outcome_model
from probgen.causal.target import ATE, ATO, ATT, Target
from probgen.causal.worlds import worlds
from probgen.program.interventions import do

if TYPE_CHECKING:
    import jax
    import xarray

    from probgen.causal.adjustment_question import Adjustment
    from probgen.causal.problem import Problem
    from probgen.program.model import Model

__all__ = ["GFormula", "Standardization"]


@dataclass(frozen=True)
class Standardization(Estimator):
    """Means of predicted outcomes with and without treatment (parametric g-formula).

    With ``Linear`` or ``Logistic`` the standard error is that of the stacked estimating equations, robust to
    heteroscedasticity; other learners have none.

    Attributes:
        outcome: An outcome model: ``Joint(Linear(), interactions=("age",))``, ``ByArm(Linear())``; a bare learner means
            one regression per arm.
        target: Whose effect: ``ATE()`` or ``ATT()``.
    """

    outcome: Any = ByArm()  # noqa: RUF009
    target: Target = ATE()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        if isinstance(self.target, ATO):
            raise MethodError("Standardization has no propensities for the ATO. Use IPW(target=ATO()).")
        treated = problem.treated
        weights = treated / treated.mean() if isinstance(self.target, ATT) else np.ones(len(problem))
        surfaces, known = outcome_model(self.outcome).standardized(rng, problem, weights)
        difference = surfaces[1] - surfaces[0]
        value = float(np.mean(weights * difference))
        effect = self.target.name
        if known is None:
            parts = {"target": self.target, "predictions": surfaces}
            return Estimate(value, float("nan"), effect, problem.question, self, problem, **parts)
        influence = weights * (difference - value) + known
        return self.result(problem, value, influence, effect, target=self.target, predictions=surfaces)


@dataclass(frozen=True, eq=False)
class GFormula(Estimator):
    """The effect in a fitted program, for each posterior draw (Bayesian g-formula).

    The program is intervened on (``pg.causal.worlds``); there are no data but those it was fitted to.

    Attributes:
        model: The model that was fitted.
        tree: What ``pg.infer`` returned.
        mode: ``"interventional"``: new units of the same population (covariates that are arguments of the program stay
            as they are); ``"counterfactual"``: the units that were observed.
    """

    model: Model
    tree: xarray.DataTree
    mode: str = "interventional"

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        del rng
        raise DataError(
            f"GFormula answers for the data that the program was fitted to, and {len(problem)} further rows were given. "
            f"Pass data=None; for other units, fit or use model.with_data."
        )

    def answer(self, seed: int | jax.Array, question: Adjustment) -> Estimate:
        """The estimate.

        Args:
            seed: Seed of the worlds.
            question: Treatment and outcome are sites of the program; active and reference are numbers.
        """
        done = {
            "active": do({question.treatment: question.active}),
            "reference": do({question.treatment: question.reference}),
        }
        asked = worlds(self.model, self.tree, done, mode=self.mode, seed=seed, progress=False)
        draws = asked.ate(question.outcome, "active", "reference").draws
        values = draws.values
        return Estimate(float(values.mean()), float(values.std(ddof=1)), "ATE", question, self, draws=draws)
