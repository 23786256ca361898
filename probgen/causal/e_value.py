r"""E-values: the risk ratios by which a hidden confounder would have to act (VanderWeele and Ding, 2017).

A confounder whose risk ratio is at most :math:`R_{EU}` between the exposures, and at most :math:`R_{UD}` for the
outcome, changes a risk ratio by at most the bounding factor

.. math:: B = \frac{R_{EU} \, R_{UD}}{R_{EU} + R_{UD} - 1},

whatever its distribution (Ding and VanderWeele, 2016). The E-value of a risk ratio :math:`r \ge 1` is the strength
:math:`R_{EU} = R_{UD} = E` at which :math:`B = r`, that is :math:`E = r + \sqrt{r (r - 1)}`; a ratio below one is
inverted first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.analysis import Analysis, Band, Curves, Line, Mark, Measure, Scenario
from probgen.causal.effect_measure import LARGEST_DIFFERENCE, EffectMeasure, MeanDifference, RiskDifference
from probgen.causal.regression import Regression
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.wording import figures

__all__ = ["EValue", "bounding_factor", "e_value"]

_POINTS = 200


def e_value(risk_ratio: float, *, true: float = 1.0) -> float:
    """Strength on the scale of risk ratios that a confounder needs with exposure and outcome, both.

    Args:
        risk_ratio: What was observed, positive.
        true: The risk ratio that the confounder is to leave.

    Returns:
        The E-value, at least 1.
    """
    if not (risk_ratio > 0 and true > 0 and math.isfinite(risk_ratio) and math.isfinite(true)):
        raise MethodError(f"risk ratios must be positive, got {risk_ratio} and {true}. Not their logarithms.")
    ratio = max(risk_ratio / true, true / risk_ratio)
    return ratio + math.sqrt(ratio * (ratio - 1))


def bounding_factor(with_exposure: float, with_outcome: float) -> float:
    """Largest factor by which a confounder of given strength changes a risk ratio.

    Args:
        with_exposure: Largest ratio of its probabilities between the exposures, at least 1.
        with_outcome: Largest ratio of risks of the outcome between its values, at least 1.
    """
    if not (with_exposure >= 1 and with_outcome >= 1):
        raise MethodError(
            f"strengths must be at least 1, got {with_exposure} and {with_outcome}. Invert ratios below 1."
        )
    return with_exposure * with_outcome / (with_exposure + with_outcome - 1)


@dataclass(frozen=True)
class EValue(SensitivityModel):
    """E-values of an effect and of its confidence limit.

    Attributes:
        strengths: Strengths of confounders (with exposure, with outcome), as risk ratios, whose worst case is listed.
        benchmarks: The same for observed covariates, by name, to be marked in pictures.
    """

    strengths: tuple[tuple[float, float], ...] = ((1.5, 1.5), (2.0, 2.0), (3.0, 3.0))
    benchmarks: tuple[tuple[str, float, float], ...] = ()

    def __post_init__(self) -> None:
        for pair in (*self.strengths, *(benchmark[1:] for benchmark in self.benchmarks)):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise MethodError(
                    f"strengths must be pairs of risk ratios, got {pair!r}. Use ((2.0, 2.0),), for example."
                )
            bounding_factor(*pair)

    def refuses(self, subject: Any) -> str:
        if isinstance(subject, EffectMeasure):
            return ""
        if isinstance(subject, Regression):
            needs = "it needs outcome_sd, the standard deviation of the outcome, to bring the effect to a scale"
            if subject.outcome_sd is None:
                return needs
            size = max(abs(subject.estimate), subject.reported_se) / subject.outcome_sd
            if size > LARGEST_DIFFERENCE:
                return (
                    f"one unit of {subject.treatment} goes with {figures(size)} standard deviations of the outcome, for "
                    f"which there is no risk ratio: measure the treatment in smaller units"
                )
            return ""
        return f"it needs a risk ratio or another pg.causal effect measure, got {type(subject).__name__}"

    def analyse(self, subject: EffectMeasure | Regression, question: Question) -> Analysis:
        notes = []
        if isinstance(subject, Regression):
            sd = subject.outcome_sd or math.nan
            null = question.null / sd
            measure: EffectMeasure = MeanDifference(subject.estimate / sd, subject.reported_se / sd)
            notes.append(
                f"The effect of one unit of {subject.treatment} is divided by the standard deviation {figures(sd)} of "
                f"{subject.outcome}, not by the smaller residual one, which is cautious."
            )
        else:
            measure = subject
            if isinstance(subject, RiskDifference) and question.null:
                raise MethodError(f"risk differences are analysed against 0, got null = {question.null}. Leave it out.")
            # Zero is no value of a ratio; the door's default means no effect on any scale.
            null = subject.no_effect if question.null == 0 else question.null
        if isinstance(subject, Regression):
            notes.append("Risk ratios are taken as exp(0.91 d) with the standardised effect d and its limits.")
        elif measure.approximate:
            notes.append(measure.approximate)
        true = measure.to_risk_ratio(null)
        ratio, lower, upper = measure.risk_ratios
        if isinstance(subject, Regression):
            # The limits of the regression itself, so that both say the same of significance.
            ends = subject.interval(question.level)
            lower, upper = (measure.to_risk_ratio(end / (subject.outcome_sd or math.nan)) for end in ends)
        near = lower if ratio >= true else upper
        value = e_value(ratio, true=true)
        known = near is not None
        crossed = known and (near <= true if ratio >= true else near >= true)
        value_limit = None if near is None else 1.0 if crossed else e_value(near, true=true)
        measures = [
            Measure("E-value", value, "the risk ratio with exposure and with outcome that explains the effect away")
        ]
        if value_limit is not None:
            meaning = "the risk ratio with both that moves the confidence limit to the null"
            measures.append(Measure("E-value of the limit", value_limit, meaning))
        scenarios = tuple(self._scenario(pair, ratio, lower, upper, true) for pair in self.strengths)
        sentences = [
            f"The observed {measure.described} is the null already, so there is nothing for a confounder to explain away."
            if value == 1
            else f"The observed {measure.described} could be explained away by an unmeasured confounder that is associated "
            f"with both exposure and outcome by a risk ratio of {figures(value)} each, beyond the measured covariates; "
            f"weaker confounding could not."
        ]
        if value_limit is not None:
            sentences.append(
                f"The confidence limit could be moved to the null by risk ratios of {figures(value_limit)} each."
                if value_limit > 1
                else "The confidence interval includes the null without any confounding (E-value of the limit: 1)."
            )
        bounds = [
            f"{figures(one.lower)} to {figures(one.upper)} for risk ratios of {figures(pair[0])} and {figures(pair[1])}"
            for one, pair in zip(scenarios[:2], self.strengths, strict=False)
        ]
        if bounds:
            sentences.append(f"Bounds of the true risk ratio are {'; '.join(bounds)}.")
        return Analysis(
            title="E-value",
            assumption=(
                "A hidden confounder of any distribution, described by its largest risk ratios with exposure and with "
                "outcome, given the covariates."
            ),
            measures=tuple(measures),
            scenarios=scenarios,
            sentences=tuple(sentences),
            notes=tuple(notes),
            tipping=self._tipping(ratio, near if not crossed else None, true),
            bounds=self._band(ratio, lower, upper, true, value),
        )

    def _scenario(
        self, pair: tuple[float, float], ratio: float, lower: float | None, upper: float | None, true: float
    ) -> Scenario:
        factor = bounding_factor(*pair)
        limits = None if lower is None or upper is None else (lower / factor, upper * factor)
        return Scenario(
            f"risk ratios {pair[0]:g}, {pair[1]:g}",
            {"rr_exposure": pair[0], "rr_outcome": pair[1], "bounding_factor": factor},
            ratio / factor,
            ratio * factor,
            limits,
        )

    def _tipping(self, ratio: float, near: float | None, true: float) -> Curves | None:
        lines = []
        for label, value in (("estimate at the null", ratio), ("limit at the null", near)):
            if value is None:
                continue
            factor = max(value / true, true / value)
            if factor <= 1:
                continue
            # B = x y / (x + y - 1) = factor, solved for y; x runs evenly in the logarithm beyond the asymptote.
            top = max(4 * e_value(factor), 4.0)
            x = factor + (top - factor) * np.linspace(0, 1, _POINTS)[1:] ** 2
            y = factor * (x - 1) / (x - factor)
            lines.append(Line(label, x, np.where(y <= top, y, np.nan)))
        marks = tuple(Mark(*benchmark) for benchmark in self.benchmarks)
        if not lines and not marks:
            return None
        return Curves("risk ratio with the exposure", "risk ratio with the outcome", tuple(lines), None, marks, True)

    def _band(self, ratio: float, lower: float | None, upper: float | None, true: float, value: float) -> Band:
        x = np.linspace(1, max(1.5 * value, 2.0), _POINTS)
        factor = x * x / (2 * x - 1)
        limits = None if lower is None or upper is None else (lower / factor, upper * factor)
        return Band(
            "risk ratio with exposure and outcome", "risk ratio", x, ratio / factor, ratio * factor, true, limits
        )
