"""The marginal sensitivity model of a dose, in the door: fitted programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax import Array

from probgen.causal.analysis import Analysis
from probgen.causal.bound_analysis import BoundModel, analysis_of_bounds
from probgen.causal.fitted_program import FittedProgram
from probgen.causal.marginal_bounds import check_gamma, continuous_marginal_bounds
from probgen.causal.outcome_law import Law
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.strengths import posterior_bounds

__all__ = ["ContinuousMarginalSensitivity"]


@dataclass(frozen=True)
class ContinuousMarginalSensitivity(SensitivityModel):
    """Sharp bounds of the effect of one dose against another, where a hidden confounder changes the density of the dose
    by a factor of at most gamma (Jesson et al., 2022; Frauen et al., 2023).

    The doses are the ``values`` of the ``FittedProgram``. See ``pg.causal.continuous_marginal_bounds``.

    Attributes:
        gammas: Bounds of the ratio of densities for which the table has a row, each at least 1.
    """

    gammas: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)

    def __post_init__(self) -> None:
        for gamma in self.gammas:
            check_gamma(gamma)

    def refuses(self, subject: Any) -> str:
        if not isinstance(subject, FittedProgram):
            return f"it needs a fitted program (pg.causal.FittedProgram), got {type(subject).__name__}"
        return f"the treatment {subject.treatment} is binary: use MarginalSensitivity" if subject.binary else ""

    def analyse(self, subject: FittedProgram, question: Question) -> Analysis:
        words = BoundModel(
            title="Continuous marginal sensitivity model",
            assumption=(
                "Given the covariates, a hidden confounder changes the density of the dose of any unit by a factor of at "
                "most gamma, either way. Bounds are sharp."
            ),
            strength="gamma",
            weakest=1.0,
            meaning="the factor by which a hidden confounder would have to change the density of the dose",
            effect=(
                f"the average effect on {subject.outcome} of {subject.treatment} = {subject.values[0]:g} against "
                f"{subject.values[1]:g}"
            ),
        )
        return analysis_of_bounds(words, self.gammas, posterior_bounds(subject, self.arm, question), question)

    @staticmethod
    def arm(law: Law, propensity: Array, gamma: Array) -> tuple[Array, Array]:
        """Bounds of the mean at one dose; see ``pg.causal.continuous_marginal_bounds``."""
        return continuous_marginal_bounds(law, gamma)  # pyright: ignore[reportArgumentType]
