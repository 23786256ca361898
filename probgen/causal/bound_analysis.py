"""From bounds of an effect at any strength of confounding to tables, tipping points, sentences and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probgen.causal.analysis import Analysis, Band, Mark, Measure, Scenario
from probgen.causal.sensitivity_model import Question
from probgen.causal.wording import figures, interval, joined, percent

__all__ = ["Benchmark", "BoundModel", "Bounds", "analysis_of_bounds"]

_LARGEST, _DIGITS, _POINTS = 1e4, 1e-4, 13


@dataclass(frozen=True)
class Bounds:
    """Bounds of an effect at one strength.

    Attributes:
        lower: Lower bound.
        upper: Upper bound.
        interval: Confidence or credible limits of the effect; None where there are none.
        excludes: Probability that the bounds exclude the null, over posterior draws; None where there are none.
    """

    lower: float
    upper: float
    interval: tuple[float, float] | None = None
    excludes: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """What leaving out observed covariates amounts to, as a strength; further numbers go to the table."""

    name: str
    strength: float
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundModel:
    """Words for a sensitivity model with one strength.

    Attributes:
        title: Name of the model.
        assumption: What it lets a confounder do.
        strength: Name of the strength, ``"gamma"``.
        weakest: The strength without confounding.
        meaning: What the strength at which the conclusion changes means.
        effect: What is bounded.
        notes: What is approximate.
    """

    title: str
    assumption: str
    strength: str
    weakest: float
    meaning: str
    effect: str
    notes: tuple[str, ...] = ()


def analysis_of_bounds(
    words: BoundModel,
    strengths: Sequence[float],
    evaluate: Callable[[float], Bounds],
    question: Question,
    benchmarks: Sequence[Benchmark] = (),
) -> Analysis:
    """Ask for bounds at the strengths of the table, search for those that tip the conclusion, and say so.

    Args:
        words: Words for the model.
        strengths: Strengths of the table.
        evaluate: Bounds at a strength.
        question: The null and the level.
        benchmarks: Strengths of observed covariates.
    """
    null, known = question.null, {}

    def at(strength: float) -> Bounds:
        if strength not in known:
            known[strength] = evaluate(strength)
        return known[strength]

    plain = at(words.weakest)
    above = (plain.lower + plain.upper) / 2 >= null

    def near(one: Bounds, limit: bool) -> float:
        low, high = (one.interval or (one.lower, one.upper)) if limit else (one.lower, one.upper)
        return low - null if above else null - high

    tips = _tipping(words.weakest, lambda strength: near(at(strength), False))
    measures = [Measure(f"tipping {words.strength}", tips, words.meaning)]
    tips_limit = None
    if plain.interval is not None:
        tips_limit = _tipping(words.weakest, lambda strength: near(at(strength), True))
        what = "credible" if plain.excludes is not None else "confidence"
        meaning = f"the same for the {100 * question.level:.3g} % {what} interval"
        measures.append(Measure(f"tipping {words.strength} of the interval", tips_limit, meaning))
    scenarios = [_scenario(words, f"{words.strength} = {s:g}", s, at(s), {}) for s in strengths]
    scenarios += [_scenario(words, f"omitting {b.name}", b.strength, at(b.strength), b.statistics) for b in benchmarks]
    sentences = _sentences(words, strengths, at, tips, tips_limit, null, question.level, benchmarks)
    return Analysis(
        title=words.title,
        assumption=words.assumption,
        measures=tuple(measures),
        scenarios=tuple(scenarios),
        sentences=tuple(sentences),
        notes=words.notes,
        bounds=_band(words, strengths, at, tips, null, benchmarks),
    )


def _scenario(words: BoundModel, label: str, strength: float, one: Bounds, statistics: Mapping[str, float]) -> Scenario:
    more = dict(statistics) if one.excludes is None else {**statistics, "probability": one.excludes}
    return Scenario(label, {words.strength: strength}, one.lower, one.upper, one.interval, more)


def _tipping(weakest: float, distance: Callable[[float], float]) -> float:
    """The smallest strength at which the distance to the null is gone; infinite if there is none within reason."""
    if distance(weakest) <= 0:
        return weakest
    low, step = weakest, 0.5 if weakest else 0.05
    while distance(weakest + step) > 0:
        low, step = weakest + step, 2 * step
        if step > _LARGEST:
            return np.inf
    high = weakest + step
    from scipy.optimize import brentq

    found: float = brentq(distance, low, high, xtol=_DIGITS)  # pyright: ignore[reportAssignmentType]
    return found


def _sentences(
    words: BoundModel,
    strengths: Sequence[float],
    at: Callable[[float], Bounds],
    tips: float,
    tips_limit: float | None,
    null: float,
    level: float,
    benchmarks: Sequence[Benchmark],
) -> list[str]:
    plain, shown = at(words.weakest), f"{100 * level:.3g} %"
    limits = "" if plain.interval is None else f" ({shown} interval {interval(plain.interval)})"
    sentences = [f"Without hidden confounding {words.effect} is {figures(plain.lower)}{limits}."]
    listed = [s for s in strengths if s > words.weakest][:2]
    said = []
    for s in listed:
        one = at(s)
        limits = "" if one.interval is None else f" ({shown} interval {interval(one.interval)})"
        said.append(f"{interval((one.lower, one.upper))} at {words.strength} = {s:g}{limits}")
    if said:
        sentences.append(f"It lies within {joined(said)}.")
    name = words.strength
    if not np.isfinite(tips):
        sentences.append(f"No {name} up to {_LARGEST:g} brings {figures(null)} within the bounds.")
    else:
        sentences.append(f"The bounds reach {figures(null)} at {name} = {figures(tips)}, {words.meaning}.")
    if tips_limit is not None and np.isfinite(tips_limit):
        sentences.append(
            f"The {shown} interval reaches it at {name} = {figures(tips_limit)}."
            if tips_limit > words.weakest
            else f"The {shown} interval includes it without any hidden confounding."
        )
    if plain.excludes is not None and listed:
        said = [f"{percent(at(s).excludes or 0.0)} at {name} = {s:g}" for s in listed]
        sentences.append(f"The posterior probability that the bounds exclude {figures(null)} is {joined(said)}.")
    if benchmarks:
        strongest = max(benchmarks, key=lambda one: one.strength)
        relation = "less than" if strongest.strength < tips else "at least"
        sentences.append(
            f"Of the observed covariates compared, {strongest.name} is the strongest: leaving it out amounts to {name} = "
            f"{figures(strongest.strength)}, {relation} what it takes."
        )
    return sentences


def _band(
    words: BoundModel,
    strengths: Sequence[float],
    at: Callable[[float], Bounds],
    tips: float,
    null: float,
    benchmarks: Sequence[Benchmark],
) -> Band:
    top = max([*strengths, words.weakest + 1.25 * (tips - words.weakest) if np.isfinite(tips) else 0.0])
    grid = np.linspace(words.weakest, top if top > words.weakest else words.weakest + 1, _POINTS)
    found = [at(float(strength)) for strength in grid]
    limits = None
    if found[0].interval is not None:
        ends = [one.interval or (np.nan, np.nan) for one in found]
        limits = np.array([low for low, _ in ends]), np.array([high for _, high in ends])
    marks = tuple(Mark(b.name, b.strength) for b in benchmarks if b.strength <= grid[-1])
    low, high = np.array([one.lower for one in found]), np.array([one.upper for one in found])
    return Band(words.strength, words.effect, grid, low, high, null, limits, marks)
