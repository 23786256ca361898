r"""Bounds on an average effect without assumptions about who is treated (Manski, 1990, 1997; Manski and Pepper, 2000).

For a binary treatment and an outcome that lies in :math:`[a, b]`, let :math:`p = P(T = 1)` and
:math:`m_t = E[Y | T = t]`. The data say nothing of :math:`E[Y(1) | T = 0]` and :math:`E[Y(0) | T = 1]` but that they lie
in :math:`[a, b]`, so that

.. math::
   p \, m_1 + (1 - p) \, a - (1 - p) \, m_0 - p \, b \;\le\; E[Y(1) - Y(0)] \;\le\;
   p \, m_1 + (1 - p) \, b - (1 - p) \, m_0 - p \, a ,

an interval of width :math:`b - a`, which always holds zero. *Monotone response*, :math:`Y(1) \ge Y(0)` for everybody,
makes the lower bound zero. *Monotone selection*, :math:`E[Y(t) | T = 1] \ge E[Y(t) | T = 0]`, makes
:math:`m_1 - m_0` the upper bound. All are averages over the data, so they have standard errors; the confidence interval
covers the effect, not the bounds (Imbens and Manski, 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.analysis import Analysis, Measure, Scenario
from probgen.causal.regression import Regression
from probgen.causal.root import root
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.study import Study
from probgen.causal.wording import figures, interval

__all__ = ["Manski", "imbens_manski"]


def imbens_manski(bounds: tuple[float, float], ses: tuple[float, float], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval for an effect that lies between two estimated bounds (Imbens and Manski, 2004).

    Args:
        bounds: Estimates of the lower and of the upper bound.
        ses: Their standard errors.
        level: Level.
    """
    from scipy.stats import norm

    largest, width = max(ses), bounds[1] - bounds[0]
    if largest == 0:
        return bounds
    gap = width / largest

    def excess(c: float) -> float:
        return float(norm.cdf(c + gap) - norm.cdf(-c)) - level

    c = root(excess, 0.0, 40.0) if excess(0.0) < 0 else 0.0
    return bounds[0] - c * ses[0], bounds[1] + c * ses[1]


@dataclass(frozen=True)
class Manski(SensitivityModel):
    """No-assumption bounds of an average effect, and what monotonicity adds.

    Attributes:
        support: Smallest and largest possible outcome; None takes (0, 1) for a binary outcome and refuses others.
        monotone_response: Whether treatment never lowers the outcome of anybody (never raises it, if ``decreasing``).
        monotone_selection: Whether those who are treated would have larger outcomes on average under either treatment
            (smaller ones, if ``decreasing``).
        decreasing: Whether both kinds of monotonicity point downwards.
    """

    support: tuple[float, float] | None = None
    monotone_response: bool = False
    monotone_selection: bool = False
    decreasing: bool = False

    def __post_init__(self) -> None:
        if self.support is not None and not (len(self.support) == 2 and self.support[0] < self.support[1]):
            raise MethodError(
                f"support must be (smallest, largest), got {self.support}. Give the range of the outcome."
            )

    def refuses(self, subject: Any) -> str:
        study = _study(subject)
        if study is None:
            return f"it needs data on a binary treatment (pg.causal.Study), got {type(subject).__name__}"
        if self.support is None and not np.isin(study.y, (0, 1)).all():
            return f"the outcome {study.outcome} is not binary: give its range, Manski(support=(smallest, largest))"
        return ""

    def bounds(self, study: Study, *, assume: bool = True) -> tuple[tuple[float, float], tuple[float, float]]:
        """Bounds of the average effect, and their standard errors.

        Args:
            study: The data.
            assume: Whether to use what monotonicity is assumed; without, the bounds of no assumption.

        Raises:
            DataError: If an outcome lies outside the support, or the data contradict monotonicity.
        """
        low, high = self.support or (0.0, 1.0)
        y, t = study.y, study.t
        if y.min() < low or y.max() > high:
            raise DataError(
                f"the outcome {study.outcome} runs from {y.min():g} to {y.max():g}, outside the support ({low:g}, "
                f"{high:g}). Give a support that holds it."
            )
        if self.decreasing:
            y, low, high = -y, -high, -low
        observed = y * t - y * (1 - t)
        lower, upper = (observed + end * (1 - t) - other * t for end, other in ((low, high), (high, low)))
        if assume and self.monotone_response:
            lower = np.zeros_like(lower)
        if assume and self.monotone_selection:
            p, treated, control = t.mean(), y[t == 1].mean(), y[t == 0].mean()
            upper = treated - control + t * (y - treated) / p - (1 - t) * (y - control) / (1 - p)
        ends, n = (float(lower.mean()), float(upper.mean())), len(y)
        if ends[1] < ends[0]:
            raise DataError(
                f"the data contradict the two kinds of monotonicity: the bounds would be {ends[0]:.4g} and {ends[1]:.4g}. "
                f"Drop one of them{'' if self.decreasing else ', or use decreasing=True'}."
            )
        ses = float(lower.std(ddof=1)) / math.sqrt(n), float(upper.std(ddof=1)) / math.sqrt(n)
        return ((-ends[1], -ends[0]), (ses[1], ses[0])) if self.decreasing else (ends, ses)

    def analyse(self, subject: Study | Regression, question: Question) -> Analysis:
        study = _study(subject)
        if study is None:
            raise MethodError(self.refuses(subject))
        scenarios = [self._scenario(study, question, "no assumption", False)]
        assumed = [
            name
            for name, used in (
                ("monotone response", self.monotone_response),
                ("monotone selection", self.monotone_selection),
            )
            if used
        ]
        if assumed:
            scenarios.append(self._scenario(study, question, " and ".join(assumed), True))
        naive = float(study.y[study.t == 1].mean() - study.y[study.t == 0].mean())
        sentences = [f"The difference of means is {figures(naive)}."]
        for one in scenarios:
            inside = (one.interval or (0, 0))[0] <= question.null <= (one.interval or (0, 0))[1]
            limits = one.interval or (math.nan, math.nan)
            sentences.append(
                f"With {one.label}{'' if one is not scenarios[0] else ' about who is treated'}, the average effect of "
                f"{study.treatment} on {study.outcome} lies within {interval((one.lower, one.upper))} "
                f"({100 * question.level:.3g} % interval {interval(limits)}), which "
                f"{'includes' if inside else 'excludes'} {figures(question.null)}."
            )
        last = scenarios[-1]
        return Analysis(
            title="Manski bounds",
            assumption="Nothing is assumed about hidden confounders but the range of the outcome, and what is named.",
            measures=(Measure("width of the bounds", last.upper - last.lower, "of what the assumptions leave open"),),
            scenarios=tuple(scenarios),
            sentences=tuple(sentences),
            notes=("Observed covariates are not used.", "Intervals cover the effect (Imbens and Manski, 2004)."),
        )

    def _scenario(self, study: Study, question: Question, label: str, assume: bool) -> Scenario:
        ends, ses = self.bounds(study, assume=assume)
        return Scenario(label, {}, *ends, imbens_manski(ends, ses, question.level))


def _study(subject: Any) -> Study | None:
    """The data of the subject, if the treatment is binary."""
    if isinstance(subject, Study):
        return subject
    if isinstance(subject, Regression) and subject.fitted is not None:
        y, t = subject.fitted.y, subject.fitted.d
        if np.isin(t, (0, 1)).all():
            return Study(y, t, None, subject.outcome, subject.treatment)
    return None
