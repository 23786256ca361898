r"""The model of bounded divergence between the arms, in the door: studies with covariates, and fitted programs.

For a study the law of the outcome given covariates is taken as that of zeros and ones with the learned mean, or else as
the learned mean plus a residual whose law is the same for all units of the arm. With the score :math:`\psi` of augmented
inverse probability weighting, the bounds are averages of :math:`\psi_i + (1 - A_i) \delta_i`, where :math:`\delta_i` is
the distance of the extreme mean from the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jax import Array

from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.analysis import Analysis
from probgen.causal.bound_analysis import BoundModel, Bounds, analysis_of_bounds
from probgen.causal.bound_scores import marginal_scores
from probgen.causal.divergence import KL, Divergence
from probgen.causal.divergence_bounds import check_rho, divergence_bounds, extreme_means
from probgen.causal.estimate import standard_error
from probgen.causal.fitted_program import FittedProgram
from probgen.causal.manski import imbens_manski
from probgen.causal.outcome_law import Law
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.strengths import posterior_bounds, usable

__all__ = ["FSensitivity"]


@dataclass(frozen=True)
class FSensitivity(SensitivityModel):
    """Bounds where the law of a potential outcome differs between the arms by a divergence of at most rho (Jin, Ren and
    Zhou, 2022). See ``pg.causal.divergence_bounds`` for the model.

    Attributes:
        divergence: ``KL()``, ``TotalVariation()``, ``ChiSquare()`` or ``Hellinger()``.
        rhos: Divergences for which the table has a row, each at least 0.
        support: Smallest and largest possible outcome; None takes those of the data or of the law.
    """

    divergence: Divergence = field(default_factory=KL)
    rhos: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1)
    support: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for rho in self.rhos:
            check_rho(rho)

    def refuses(self, subject: Any) -> str:
        return usable(subject)

    def analyse(self, subject: AdjustedStudy | FittedProgram, question: Question) -> Analysis:
        name = type(self.divergence).__name__
        notes = ()
        if isinstance(subject, AdjustedStudy):
            notes = ("Intervals take the law of the residuals and of the outcome given covariates as known.",)
            if not subject.binary_outcome:
                notes += ("Residuals are taken to have the same law for all units of an arm.",)
            if self.support is None and self.divergence.needs_support:
                notes += ("The largest and smallest residuals of the data are taken as the possible ones.",)
        words = BoundModel(
            title=f"f-sensitivity ({name})",
            assumption=(
                f"Given the covariates, the law of each potential outcome in the arm where it is not seen differs from "
                f"that in the other by a divergence ({name}) of at most rho (Jin, Ren and Zhou, 2022)."
            ),
            strength="rho",
            weakest=0.0,
            meaning="the divergence that a hidden confounder would have to cause between the arms",
            effect=f"the average effect of {subject.treatment} on {subject.outcome}",
            notes=notes,
        )
        if isinstance(subject, FittedProgram):
            return analysis_of_bounds(words, self.rhos, posterior_bounds(subject, self.arm, question), question)
        return analysis_of_bounds(words, self.rhos, self._from_data(subject, question), question)

    def arm(self, law: Law, propensity: Array, rho: Array) -> tuple[Array, Array]:
        """Bounds of the mean under one arm; see ``pg.causal.divergence_bounds``."""
        return divergence_bounds(law, propensity, self.divergence, rho, support=self.support)  # pyright: ignore[reportArgumentType]

    def _from_data(self, study: AdjustedStudy, question: Question) -> Callable[[float], Bounds]:
        plain = [marginal_scores(study, arm, 1.0, 1) for arm in (0, 1)]

        def evaluate(rho: float) -> Bounds:
            ends = []
            for arm in (0, 1):
                down, up = self._distances(study, arm, rho)
                outside = study.t != arm
                ends.append((plain[arm] + outside * down, plain[arm] + outside * up))
            scores = np.stack([ends[1][0] - ends[0][1], ends[1][1] - ends[0][0]])
            low, high = scores.mean(axis=1).tolist()
            ses = (standard_error(scores[0] - low, study.clusters), standard_error(scores[1] - high, study.clusters))
            return Bounds(low, high, imbens_manski((low, high), ses, question.level))

        return evaluate

    def _distances(self, study: AdjustedStudy, arm: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
        """How far below and above the mean the extreme means lie, by unit or for all."""
        if study.binary_outcome:
            p = np.clip(study.means[arm], 1e-6, 1 - 1e-6)
            low, high = extreme_means(dist.BernoulliProbs(p), self.divergence, rho)
            return np.asarray(low, float) - p, np.asarray(high, float) - p
        residuals = (study.y - study.means[arm])[study.t == arm]
        centre = residuals.mean()
        low, high = extreme_means(residuals - centre, self.divergence, rho)
        if self.support is None:
            return np.asarray(low, float), np.asarray(high, float)
        mean = study.means[arm]
        room = self.support[0] - mean, self.support[1] - mean
        return np.maximum(np.asarray(low, float), room[0]), np.minimum(np.asarray(high, float), room[1])
