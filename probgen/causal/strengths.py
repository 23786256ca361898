"""What the sensitivity models with one strength have in common: subjects, benchmarks, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.bound_analysis import Benchmark, Bounds
from probgen.causal.bound_scores import Score, scored_bounds
from probgen.causal.fitted_program import ArmBounds, FittedProgram
from probgen.causal.manski import imbens_manski
from probgen.causal.sensitivity_model import Question

__all__ = ["benchmarks_by_odds", "posterior_bounds", "score_bounds", "usable"]

_COMPARED = 12
"""So many covariates are compared where nobody chose."""


def usable(subject: Any) -> str:
    """Why a subject has no binary treatment with covariates to adjust for; empty if it has."""
    if isinstance(subject, AdjustedStudy):
        return ""
    if isinstance(subject, FittedProgram):
        needs = f"the treatment {subject.treatment} is no Bernoulli site: use ContinuousMarginalSensitivity"
        return "" if subject.binary else needs
    return (
        f"it needs a binary treatment with covariates (pg.causal.AdjustedStudy) or a fitted program "
        f"(pg.causal.FittedProgram), got {type(subject).__name__}"
    )


def score_bounds(study: AdjustedStudy, score: Score, question: Question) -> Callable[[float], Bounds]:
    """Bounds by scores, with the interval of the effect."""

    def evaluate(gamma: float) -> Bounds:
        found = scored_bounds(study, gamma, score)
        return Bounds(*found.bounds, imbens_manski(found.bounds, found.ses, question.level))

    return evaluate


def posterior_bounds(program: FittedProgram, arm: ArmBounds, question: Question) -> Callable[[float], Bounds]:
    """Posterior means of bounds, outer credible limits, and how many draws exclude the null."""
    tail = (1 - question.level) / 2

    def evaluate(strength: float) -> Bounds:
        low, high = program.bounds(arm, strength)[:, 0].astype(float).T
        excludes = float(np.mean((low > question.null) | (high < question.null)))
        limits = float(np.quantile(low, tail)), float(np.quantile(high, 1 - tail))
        return Bounds(float(low.mean()), float(high.mean()), limits, excludes)

    return evaluate


def benchmarks_by_odds(study: AdjustedStudy, question: Question, *, between_units: bool = False) -> list[Benchmark]:
    """What leaving out covariates does to the odds of treatment.

    Args:
        study: The data.
        question: Names the covariates; None compares each of the first twelve, and none where probabilities were given.
        between_units: Whether the strength compares two units of equal covariates, instead of a unit with their average.
    """
    groups = question.benchmarks
    if groups is None:
        groups = () if study.known_propensity is not None else tuple((name,) for name in list(study.places)[:_COMPARED])
    found = []
    for group in groups:
        ratios = study.odds_ratios(group)
        change = np.maximum(ratios, 1 / ratios)
        strength = max(ratios.max(), 1.0) / min(ratios.min(), 1.0) if between_units else change.max()
        extra = {} if between_units else {"gamma_95": float(np.quantile(change, 0.95))}
        found.append(Benchmark(" and ".join(group), float(strength), extra))
    return found
