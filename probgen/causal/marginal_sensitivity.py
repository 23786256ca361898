"""Tan's marginal sensitivity model in the door: studies with covariates, and fitted programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax import Array

from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.analysis import Analysis
from probgen.causal.bound_analysis import BoundModel, analysis_of_bounds
from probgen.causal.bound_scores import marginal_scores
from probgen.causal.fitted_program import FittedProgram
from probgen.causal.marginal_bounds import check_gamma, marginal_bounds
from probgen.causal.outcome_law import Law
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.strengths import benchmarks_by_odds, posterior_bounds, score_bounds, usable

__all__ = ["MarginalSensitivity"]


@dataclass(frozen=True)
class MarginalSensitivity(SensitivityModel):
    """Sharp bounds where a hidden confounder changes the odds of treatment by a factor of at most gamma.

    For an ``AdjustedStudy``, scores with cross-fitted quantiles and means; for a ``FittedProgram``, exact bounds for
    every posterior draw. See ``pg.causal.marginal_bounds`` for the model.

    Attributes:
        gammas: Bounds of the odds ratio for which the table has a row, each at least 1.
    """

    gammas: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)

    def __post_init__(self) -> None:
        for gamma in self.gammas:
            check_gamma(gamma)

    def refuses(self, subject: Any) -> str:
        return usable(subject)

    def analyse(self, subject: AdjustedStudy | FittedProgram, question: Question) -> Analysis:
        words = BoundModel(
            title="Marginal sensitivity model",
            assumption=(
                "Given the covariates, a hidden confounder changes the odds of treatment of any unit by a factor of at "
                "most gamma, either way (Tan, 2006). Bounds are sharp."
            ),
            strength="gamma",
            weakest=1.0,
            meaning="the factor by which a hidden confounder would have to change the odds of treatment",
            effect=f"the average effect of {subject.treatment} on {subject.outcome}",
            notes=_NOTES_OF_SCORES if isinstance(subject, AdjustedStudy) else (),
        )
        if isinstance(subject, FittedProgram):
            return analysis_of_bounds(words, self.gammas, posterior_bounds(subject, self.arm, question), question)
        evaluate = score_bounds(subject, marginal_scores, question)
        return analysis_of_bounds(words, self.gammas, evaluate, question, benchmarks_by_odds(subject, question))

    @staticmethod
    def arm(law: Law, propensity: Array, gamma: Array) -> tuple[Array, Array]:
        """Bounds of the mean under one arm; see ``pg.causal.marginal_bounds``."""
        return marginal_bounds(law, propensity, gamma)  # pyright: ignore[reportArgumentType]


_NOTES_OF_SCORES = (
    "Intervals cover the effect and take sampling into account (Dorn, Guo and Kallus, 2021; Imbens and Manski, 2004).",
    "The strength of omitting a covariate is the largest change of the odds of treatment of any unit; gamma_95 is "
    "the change that 95 % of the units do not exceed.",
)
