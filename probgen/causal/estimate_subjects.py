"""An estimate as sensitivity models may look at it: with its Riesz representer, and as bare data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.effect_measure import MeanDifference
from probgen.causal.estimate import Estimate
from probgen.causal.omitted_variable import RieszEstimate
from probgen.causal.problem import Problem
from probgen.causal.study import Study

__all__ = ["subjects_of"]


def subjects_of(estimate: Estimate) -> list[Any]:
    """The views of an estimate, the most informed first; empty where there is none."""
    problem, views = estimate.problem, []
    if problem is None:
        return views
    residuals = estimate.effect == "coefficient" and estimate.residuals is not None
    scores = estimate.effect == "ATE" and estimate.propensity is not None and estimate.predictions is not None
    if residuals or scores:
        names = tuple(problem.places)
        refit = _refit(estimate, problem) if names else None
        views.append(dataclasses.replace(estimate.riesz(), refit=refit, covariates=names))
    if scores and problem.is_binary:
        views.append(AdjustedStudy.from_estimate(estimate))
    if problem.is_binary:
        instruments = problem.question.instruments
        z = problem.z[:, 0] if len(instruments) == 1 else None
        name = instruments[0] if len(instruments) == 1 else ""
        views.append(Study(problem.y, problem.t, z, estimate.outcome, estimate.treatment, name))
    sd = float(problem.y.std(ddof=1))
    if problem.is_binary and math.isfinite(estimate.se) and estimate.se > 0:
        views.append(MeanDifference(estimate.value / sd, estimate.se / sd))
    return views


def _refit(estimate: Estimate, problem: Problem) -> Any:
    def refit(names: tuple[str, ...]) -> RieszEstimate:
        left = {name: places for name, places in problem.places.items() if name not in names}
        if not left:
            raise MethodError(f"{', '.join(names)} are all covariates there are: nothing would be left. Name fewer.")
        kept = [place for places in left.values() for place in places]
        new = {old: i for i, old in enumerate(kept)}
        reduced = dataclasses.replace(
            problem,
            question=dataclasses.replace(problem.question, covariates=tuple(left)),
            x=problem.x[:, kept],
            columns=tuple(problem.columns[place] for place in kept),
            places={name: [new[place] for place in places] for name, places in left.items()},
        )
        # The same folds with and without: what differs is the covariates.
        return estimate.estimator.fit(np.random.default_rng(0), reduced).riesz()

    return refit
