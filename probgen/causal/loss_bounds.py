"""The model of bounded odds between units, in the door: studies with covariates, and fitted programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax import Array

from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.analysis import Analysis
from probgen.causal.bound_analysis import BoundModel, analysis_of_bounds
from probgen.causal.bound_scores import expectile_scores
from probgen.causal.expectile_bounds import expectile_bounds
from probgen.causal.fitted_program import FittedProgram
from probgen.causal.marginal_bounds import check_gamma
from probgen.causal.outcome_law import Law
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.strengths import benchmarks_by_odds, posterior_bounds, score_bounds, usable

__all__ = ["LossBounds"]


@dataclass(frozen=True)
class LossBounds(SensitivityModel):
    """Bounds by asymmetric least squares, where the odds of treatment of two units with equal covariates differ by at
    most gamma (Yadlowsky et al., 2022).

    For an ``AdjustedStudy``, their orthogonal score, cross-fitted; for a ``FittedProgram``, exact bounds for every
    posterior draw. See ``pg.causal.expectile_bounds`` for the model.

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
        notes = (
            "Intervals cover the effect and take sampling into account (Yadlowsky et al., 2022; Imbens and Manski, 2004).",
            "The strength of omitting a covariate is the largest change of the odds of treatment of any unit upwards "
            "times the largest downwards.",
        )
        words = BoundModel(
            title="Bounded odds between units",
            assumption=(
                "Given the covariates, a hidden confounder lets the odds of treatment of two units differ by a factor of "
                "at most gamma (Rosenbaum, 2002; Yadlowsky et al., 2022)."
            ),
            strength="gamma",
            weakest=1.0,
            meaning="the factor by which a hidden confounder would have to separate the odds of two like units",
            effect=f"the average effect of {subject.treatment} on {subject.outcome}",
            notes=notes if isinstance(subject, AdjustedStudy) else (),
        )
        if isinstance(subject, FittedProgram):
            return analysis_of_bounds(words, self.gammas, posterior_bounds(subject, self.arm, question), question)
        evaluate = score_bounds(subject, expectile_scores, question)
        benchmarks = benchmarks_by_odds(subject, question, between_units=True)
        return analysis_of_bounds(words, self.gammas, evaluate, question, benchmarks)

    @staticmethod
    def arm(law: Law, propensity: Array, gamma: Array) -> tuple[Array, Array]:
        """Bounds of the mean under one arm; see ``pg.causal.expectile_bounds``."""
        return expectile_bounds(law, propensity, gamma)  # pyright: ignore[reportArgumentType]
