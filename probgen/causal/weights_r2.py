r"""Sensitivity of weighted means to a covariate that the weights leave out (Huang, 2024; Hartman and Huang, 2024).

Let :math:`w` be the weights (with mean one), :math:`w^*` those that would also balance the omitted covariate, and
:math:`\varepsilon = w - w^*`. A weight is a ratio of densities, and :math:`w` is the mean of :math:`w^*` given what was
balanced, so that :math:`\varepsilon` is uncorrelated with :math:`w` and
:math:`\mathrm{var}(w^*) = \mathrm{var}(w) + \mathrm{var}(\varepsilon)`. With
:math:`R^2 = \mathrm{var}(\varepsilon) / \mathrm{var}(w^*)` and the correlation :math:`\rho` of :math:`\varepsilon` with
the outcome, the weighted mean is off by

.. math::
   E[w Y] - E[w^* Y] = \mathrm{cov}(\varepsilon, Y)
   = \rho \sqrt{\mathrm{var}(Y) \, \mathrm{var}(w) \, \frac{R^2}{1 - R^2}}, \qquad
   |\rho| \le \sqrt{1 - \mathrm{cor}(w, Y)^2} .

The *robustness value* is the :math:`R^2 = \rho^2` at which the bias is the whole estimate: :math:`r^2 / (1 - r) = f^2`
with :math:`f` the estimate over :math:`\sqrt{\mathrm{var}(Y) \mathrm{var}(w)}`. A benchmark leaves out an observed
covariate :math:`j`: with the weights :math:`w_{-j}` and :math:`\varepsilon_j = w_{-j} - w`, an omitted covariate that is
:math:`k` times as strong has :math:`R^2 = k R_j^2 / (1 + k R_j^2)` with
:math:`R_j^2 = \mathrm{var}(\varepsilon_j) / \mathrm{var}(w)`, and :math:`\rho = \mathrm{cor}(\varepsilon_j, Y)` times the
multiple for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.causal.analysis import Analysis, Contour, Curves, Line, Mark, Measure, Scenario
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.weighting import Weighting
from probgen.causal.wording import figures, interval, percent

__all__ = ["WeightsR2"]

_GRID, _CURVE, _SHOWN = 61, 200, 3
_R2, _RHO2 = "R²: share of the variation of the true weights", "ρ²: squared correlation with the outcome"


@dataclass(frozen=True)
class WeightsR2(SensitivityModel):
    """Bias of a weighted mean by an omitted covariate, by R2 of the weights and a correlation.

    Attributes:
        multiples: Strengths of hypothetical omitted covariates, in multiples of a benchmark.
    """

    multiples: tuple[float, ...] = (1.0, 2.0, 3.0)

    def __post_init__(self) -> None:
        if isinstance(self.multiples, int | float):
            raise MethodError(f"multiples must be several numbers, got {self.multiples}. Use (1.0, 2.0), for example.")
        if not self.multiples or min(self.multiples) <= 0:
            raise MethodError(f"multiples must be positive, got {self.multiples}. Use (1.0, 2.0, 3.0), for example.")

    def refuses(self, subject: Any) -> str:
        return "" if isinstance(subject, Weighting) else f"it needs a pg.causal.Weighting, got {type(subject).__name__}"

    def bias(self, subject: Weighting, r2: float, rho: float) -> float:
        """Weighted mean less the truth.

        Args:
            subject: The weighted mean.
            r2: Share of the variance of the true weights that the omitted covariate makes, in [0, 1).
            rho: Correlation of the error of the weights with the outcome, in [-1, 1].

        Raises:
            MethodError: If these are impossible.
        """
        if not 0 <= r2 < 1:
            raise MethodError(f"r2 must lie in [0, 1), got {r2}. It is a share of variance.")
        if not abs(rho) <= 1:
            raise MethodError(f"rho must lie in [-1, 1], got {rho}. It is a correlation.")
        return rho * _scale(subject) * math.sqrt(r2 / (1 - r2))

    def largest_rho(self, subject: Weighting) -> float:
        """The correlation beyond which nothing that is uncorrelated with the weights can correlate with the outcome."""
        correlation = float(np.corrcoef(subject.weights, subject.outcome)[0, 1])
        return math.sqrt(max(1 - correlation**2, 0.0))

    def robustness_value(self, subject: Weighting, null: float = 0.0) -> float:
        """The value of ``r2 = rho ** 2`` that brings the estimate to the null."""
        f = abs(subject.estimate - null) / _scale(subject)
        return 2 * f / (f + math.sqrt(f**2 + 4)) if f else 0.0

    def benchmark(self, subject: Weighting, covariate: str, multiple: float = 1.0) -> tuple[float, float]:
        """``r2`` and ``rho`` of an omitted covariate so many times as strong as an observed one.

        The correlation is multiplied by the square root of the multiple, so that its square, a share of variance, is
        multiplied like ``r2``.

        Raises:
            DataError: If the weights without the covariate are not known.
            MethodError: If the correlation would be larger than 1.
        """
        if covariate not in subject.without:
            raise DataError(
                f"the weights without {covariate!r} are not known. {suggestion(covariate, subject.without)} Give them "
                f"in Weighting(without=...)."
            )
        error = subject.without[covariate] - subject.weights
        r2 = multiple * float(error.var() / subject.weights.var())
        rho = float(np.corrcoef(error, subject.outcome)[0, 1]) if error.var() else 0.0
        rho *= math.sqrt(multiple)
        if abs(rho) > 1:
            raise MethodError(
                f"a covariate {multiple:g} times as strong as {covariate} would have the correlation {rho:.3g} with the "
                f"outcome, which cannot be. Use a smaller multiple."
            )
        return r2 / (1 + r2), rho

    def _strongest(self, subject: Weighting) -> list[tuple[str, ...]]:
        """The covariates whose omission would change the estimate the most."""
        shift = {
            name: abs(float(np.mean((w - subject.weights) * subject.outcome))) for name, w in subject.without.items()
        }
        return [(name,) for name in sorted(shift, key=lambda name: -shift[name])[:_SHOWN]]

    def analyse(self, subject: Weighting, question: Question) -> Analysis:
        from scipy.stats import norm

        null = question.null
        rv = self.robustness_value(subject, null)
        reach = float(norm.ppf((1 + question.level) / 2)) * subject.se
        limits = (subject.estimate - reach, subject.estimate + reach)
        names = question.benchmarks if question.benchmarks is not None else self._strongest(subject)
        scenarios, marks, notes = [], [], []
        for group in names:
            covariate = group[0] if group else ""
            if len(group) > 1:
                raise MethodError(f"the benchmark {group} is a group, but weights are refitted without one at a time.")
            for multiple in self.multiples:
                label = f"{multiple:g} x {covariate}"
                try:
                    r2, rho = self.benchmark(subject, covariate, multiple)
                except MethodError as error:
                    if question.benchmarks is not None:
                        raise
                    notes.append(f"{label}: {error}")
                    continue
                bias = self.bias(subject, r2, rho)
                # The estimate subtracts the weighted mean where there is a contrast.
                left = subject.estimate - bias if subject.contrast is None else subject.estimate + bias
                strengths = {"r2": r2, "rho": rho}
                scenarios.append(Scenario(label, strengths, left, left, (left - reach, left + reach)))
                marks.append(Mark(label, r2, rho**2))
        sentences = [
            f"The {subject.name} is {figures(subject.estimate)} (standard error {figures(subject.se)}, "
            f"{100 * question.level:.3g} % interval {interval(limits)}).",
        ]
        cap = self.largest_rho(subject) ** 2
        if rv == 0:
            sentences.append(f"It is {figures(null)} already, so there is nothing for an omitted covariate to explain.")
        elif rv <= cap:
            sentences.append(
                f"An omitted covariate would bring it to {figures(null)} if it made {percent(rv)} of the variation of the "
                f"true weights and its imbalance explained {percent(rv)} of the variance of the outcome; one that reaches "
                f"less of both would not."
            )
        else:
            f2 = ((subject.estimate - null) / _scale(subject)) ** 2
            sentences.append(
                f"No omitted covariate that makes less than {percent(f2 / (f2 + cap) if cap else 1.0)} of the variation of "
                f"the true weights would bring it to {figures(null)}, since its imbalance can explain at most "
                f"{percent(cap)} of the variance of the outcome."
            )
        for one in [one for one in scenarios if one.label.startswith("1 x ")]:
            sentences.append(
                f"One like {one.label[4:]} would leave {figures(one.lower)} ({interval(one.interval or limits)})."
            )
        notes += [
            "Standard errors take the weights as given, and are not changed by the omitted covariate.",
            f"The squared correlation cannot be larger than {figures(cap)}, by that of the weights with the outcome.",
        ]
        axis = np.linspace(0, min(max([0.05, 1.6 * rv, *(1.3 * mark.x for mark in marks)]), 0.98), _GRID)
        high = np.linspace(0, min(max([0.05, 1.6 * rv, *(1.3 * (mark.y or 0) for mark in marks)]), 1.0), _GRID)
        sign = math.copysign(1, subject.estimate - null)
        share = np.sqrt(high[:, None] * axis / (1 - axis))
        surface = Contour(
            "adjusted estimate",
            _R2,
            _RHO2,
            axis,
            high,
            subject.estimate - sign * _scale(subject) * share,
            null,
            tuple(marks),
        )
        x = np.linspace(axis[-1] / _CURVE, axis[-1], _CURVE)
        y = ((subject.estimate - null) / _scale(subject)) ** 2 * (1 - x) / x
        line = Line("estimate at the null", x, np.where(y <= cap, y, np.nan))
        return Analysis(
            title="Weights-based R2",
            assumption=(
                "The weights leave out a covariate; its strength is the share of the variation of the true weights that "
                "it makes, and the correlation of its imbalance with the outcome."
            ),
            measures=(
                Measure("robustness value", rv, f"of weights and outcome to bring the estimate to {null:g}", True),
            ),
            scenarios=tuple(scenarios),
            sentences=tuple(sentences),
            notes=tuple(notes),
            contours=(surface,),
            tipping=Curves(_R2, _RHO2, (line,), None, tuple(marks)),
        )


def _scale(subject: Weighting) -> float:
    return float(np.sqrt(subject.outcome.var() * subject.weights.var()))
