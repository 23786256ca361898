r"""What a hidden confounder would leave of a fitted effect, without fitting anew.

For posterior draws of the effect :math:`\tau_s` and of the ratio :math:`q_s` of the residual standard deviations of
outcome and treatment, a confounder with shares :math:`R_T, R_Y` and alignment :math:`\rho` leaves

.. math:: \tau_s - \rho \sqrt{\frac{R_Y R_T}{1 - R_T}}\; q_s

(the formula of Cinelli and Hazlett, 2020, draw by draw; ``probgen.program.confounded`` says what the three numbers
mean). In a linear Gaussian program with flat priors of the coefficients these are draws of the posterior of the program
with the confounder in it, and priors of the strengths stay what they are. Other priors that are weak beside the data make
little difference; where they are strong, fit ``pg.causal.confound`` instead.

Each draw has its own *tipping point*, :math:`f_s = |\tau_s - \tau_0| / q_s` against the null :math:`\tau_0`: the sign
survives as long as :math:`\rho \sqrt{R_Y R_T / (1 - R_T)} < f_s`. As one share for both, it is the root of
:math:`r^2 / (1 - r) = f_s^2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro.distributions import Distribution

from probgen.base.errors import MethodError
from probgen.base.keys import as_key
from probgen.causal.analysis import Analysis, Band, Contour, Curves, Line, Mark, Measure, Scenario
from probgen.causal.cinelli_hazlett import benchmark_bound
from probgen.causal.confound import strengths_of
from probgen.causal.linear_effect import LinearEffect
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.wording import figures, interval, joined, percent
from probgen.program.confounded import bias_factor

__all__ = ["PosteriorBias", "equal_strength"]

_GRID, _CURVE, _SHOWN = 41, 120, 3
_MULTIPLES = (1.0, 2.0, 3.0)
_TREATMENT_AXIS = "partial R² of the confounder with the treatment"
_OUTCOME_AXIS = "partial R² of the confounder with the outcome"


def equal_strength(factor: Any) -> np.ndarray:
    """The share ``r`` of both residual variances with ``r^2 / (1 - r) = factor^2``; 0 where the factor is negative."""
    f = np.maximum(np.asarray(factor, float), 0.0)
    return 2 * f / (f + np.sqrt(f**2 + 4))


@dataclass(frozen=True, eq=False)
class PosteriorBias(SensitivityModel):
    """Omitted-variable bias of a fitted linear program, for every posterior draw.

    Attributes:
        r2_T: Share of the residual variance of the treatment that the confounder explains: a number or a prior, as in
            ``pg.causal.confound``.
        r2_Y: Share of that of the outcome.
        alignment: Which way the confounder works.
        multiples: Strengths of hypothetical confounders in multiples of each benchmark; ``None`` takes those of 1, 2 and
            3 that are possible.
        seed: An int or a typed JAX key, for draws from the priors.
    """

    r2_T: float | Distribution | None = None
    r2_Y: float | Distribution | None = None
    alignment: float | Distribution | None = None
    multiples: tuple[float, ...] | None = None
    seed: int | jax.Array = 0

    def __post_init__(self) -> None:
        if self.multiples is not None and (not self.multiples or min(self.multiples) <= 0):
            raise MethodError(f"multiples must be positive numbers, got {self.multiples}. Use (1.0, 2.0), for example.")

    def refuses(self, subject: Any) -> str:
        if isinstance(subject, LinearEffect):
            return ""
        return f"it needs a pg.causal.LinearEffect, got {type(subject).__name__}"

    # -- closed forms ----------------------------------------------------------------------------------------------

    def adjusted(self, effect: LinearEffect) -> Any:
        """Draws of the effect with the confounder, its strengths drawn from their priors; dims ``(chain, draw)``."""
        shape = effect.draws.shape
        given = strengths_of(self.r2_T, self.r2_Y, self.alignment)
        keys = jax.random.split(as_key(self.seed), len(given))
        drawn = {
            name: np.asarray(value.sample(key, shape), float) if isinstance(value, Distribution) else value
            for key, (name, value) in zip(keys, given.items(), strict=True)
        }
        return effect.draws - bias_factor(drawn["r2_T"], drawn["r2_Y"], drawn["alignment"]) * effect.ratio

    def tipping_factors(self, effect: LinearEffect, null: float = 0.0) -> np.ndarray:
        """By draw, how large the bias factor must be to bring the effect to the null; negative where the draw lies on the
        other side of the null than their mean. Shape ``(draws,)``."""
        distance = effect.draws.values - null
        return (np.sign(distance.mean()) * distance / effect.ratio.values).reshape(-1)

    # -- the analysis ----------------------------------------------------------------------------------------------

    def analyse(self, subject: LinearEffect, question: Question) -> Analysis:
        null, level = question.null, question.level
        draws, ratio = subject.draws.values.reshape(-1), subject.ratio.values.reshape(-1)
        sign = 1.0 if draws.mean() >= null else -1.0
        factors = self.tipping_factors(subject, null)
        adjusted = self.adjusted(subject).values.reshape(-1)
        survives = float(np.mean(sign * (adjusted - null) > 0))
        central = float(equal_strength(abs(draws.mean() - null) / ratio.mean()))
        edge = float(equal_strength(np.quantile(factors, (1 - level) / 2)))
        spread = tuple(float(r) for r in equal_strength(np.quantile(factors, [(1 - level) / 2, (1 + level) / 2])))
        side = "above" if sign > 0 else "below"
        measures = (
            Measure("probability of the sign", survives, f"that the effect is {side} {null:g}, given the priors", True),
            Measure("without a confounder", float(np.mean(factors > 0)), "the same probability", True),
            Measure("tipping strength", central, f"of both residual variances to bring the mean to {null:g}", True),
            Measure(
                "tipping strength of the interval",
                edge,
                f"of both to bring the {100 * level:.3g} % interval to {null:g}",
                True,
            ),
        )
        scenarios = [self._scenario("priors", adjusted, null, sign, level, {})]
        marks, notes = [], []
        for group in self._benchmarks(subject, question):
            observed, name = subject.benchmark(*group), "+".join(group)
            for k in self.multiples or _MULTIPLES:
                try:
                    bound = benchmark_bound(observed, k)
                except MethodError as error:
                    notes.append(f"{k:g} x {name}: {error}")
                    continue
                moved = draws - sign * bias_factor(bound.treatment, bound.outcome, 1.0) * ratio
                strengths = {"r2_treatment": bound.treatment, "r2_outcome": bound.outcome}
                scenarios.append(self._scenario(f"{k:g} x {name}", moved, null, sign, level, strengths))
                marks.append(Mark(f"{k:g} x {name}", bound.treatment, bound.outcome))
        if subject.regression is not None:
            notes.append("Benchmarks are partial R2 of least squares, not of the posterior.")
        sentences = self._sentences(subject, question, adjusted, survives, central, spread, scenarios)
        far = min(max(0.05, 1.6 * central, *(1.25 * mark.x for mark in marks), 0.05), 0.98)
        high = min(max([0.05, 1.6 * central, *(1.25 * mark.y for mark in marks if mark.y is not None)]), 1.0)
        return Analysis(
            title="confounder in the posterior",
            assumption=(
                "A hidden confounder explains a share of the residual variance of the treatment and a share of that of the "
                "outcome; the effect is linear and the noise normal."
            ),
            measures=measures,
            scenarios=tuple(scenarios),
            sentences=tuple(sentences),
            notes=tuple(notes),
            contours=_contours(draws, ratio, factors, question, sign, (far, high), tuple(marks)),
            tipping=_tipping(subject, factors, question, far, tuple(marks)),
            bounds=_band(subject, draws, ratio, question, max(0.05, min(1.6 * central, 0.98))),
        )

    def _benchmarks(self, subject: LinearEffect, question: Question) -> tuple[tuple[str, ...], ...]:
        if question.benchmarks is not None:
            return question.benchmarks
        strongest = sorted(
            subject.covariates,
            key=lambda name: -bias_factor(subject.benchmark(name).treatment, subject.benchmark(name).outcome, 1.0),
        )
        return tuple((name,) for name in strongest[:_SHOWN])

    def _scenario(
        self, label: str, moved: np.ndarray, null: float, sign: float, level: float, strengths: dict[str, float]
    ) -> Scenario:
        low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
        mean, probability = float(moved.mean()), float(np.mean(sign * (moved - null) > 0))
        known = strengths or {"r2_treatment": np.nan, "r2_outcome": np.nan}
        return Scenario(label, known, mean, mean, (float(low), float(high)), {"probability": probability})

    def _sentences(
        self,
        subject: LinearEffect,
        question: Question,
        adjusted: np.ndarray,
        survives: float,
        central: float,
        spread: tuple[float, ...],
        scenarios: list[Scenario],
    ) -> list[str]:
        null, level = figures(question.null), question.level
        edges = [(1 - level) / 2, (1 + level) / 2]
        before, after = (np.quantile(values, edges) for values in (subject.draws.values, adjusted))
        given = strengths_of(self.r2_T, self.r2_Y, self.alignment)
        told = joined([f"{name} {_told(value)}" for name, value in given.items()])
        sentences = [
            f"Without a hidden confounder the effect of {subject.treatment} on {subject.outcome} is "
            f"{figures(float(subject.draws.mean()))} ({100 * level:.3g} % credible interval "
            f"{interval((float(before[0]), float(before[1])))}).",
            f"With one whose strength is {told}, it is {figures(float(adjusted.mean()))} "
            f"({interval((float(after[0]), float(after[1])))}), and keeps its sign with probability {figures(survives)}.",
            f"A confounder that works against the effect would have to explain {percent(central)} of the residual variance "
            f"of both treatment and outcome to bring the posterior mean to {null}; this tipping strength lies between "
            f"{percent(spread[0])} and {percent(spread[1])} with probability {100 * level:.3g} %.",
        ]
        for scenario in scenarios[1:]:
            times, _, name = scenario.label.partition(" x ")
            strength = f"as strong as {name}" if times == "1" else f"{times} times as strong as {name}"
            sentences.append(
                f"One {strength} would leave {figures(scenario.lower)}"
                f"{f' ({interval(scenario.interval)})' if scenario.interval else ''}; the sign would survive with "
                f"probability {figures(scenario.statistics['probability'])}."
            )
        return sentences


def _told(value: float | Distribution) -> str:
    if not isinstance(value, Distribution):
        return f"= {value:g}"
    parts = [getattr(value, name, None) for name in value.arg_constraints]
    numbers = [float(part) for part in parts if part is not None and np.ndim(part) == 0]
    return f"~ {type(value).__name__}({', '.join(f'{number:g}' for number in numbers)})"


def _contours(
    draws: np.ndarray,
    ratio: np.ndarray,
    factors: np.ndarray,
    question: Question,
    sign: float,
    ends: tuple[float, float],
    marks: tuple[Mark, ...],
) -> tuple[Contour, ...]:
    x, y = np.linspace(0, ends[0], _GRID), np.linspace(0, ends[1], _GRID)
    factor = bias_factor(x, y[:, None], 1.0)
    places: dict[str, Any] = {"xlabel": _TREATMENT_AXIS, "ylabel": _OUTCOME_AXIS, "x": x, "y": y, "marks": marks}
    mean = draws.mean() - sign * factor * ratio.mean()
    ordered = np.sort(factors)
    surviving = 1 - np.searchsorted(ordered, factor, side="right") / len(ordered)
    return (
        Contour(title="posterior mean of the effect", values=mean, threshold=question.null, **places),
        Contour(
            title="probability that the sign survives",
            values=surviving,
            threshold=(1 + question.level) / 2,
            **places,
        ),
    )


def _tipping(
    subject: LinearEffect, factors: np.ndarray, question: Question, far: float, marks: tuple[Mark, ...]
) -> Curves:
    """Pairs of strengths that bring the mean, or the interval, to the null."""
    x = np.linspace(far / _CURVE, far, _CURVE)
    central = abs(float(subject.draws.mean()) - question.null) / float(subject.ratio.mean())
    lines = []
    for label, f in (
        ("posterior mean at the null", central),
        ("interval at the null", float(np.quantile(factors, (1 - question.level) / 2))),
    ):
        if f > 0:
            y = f**2 * (1 - x) / x
            lines.append(Line(label, x, np.where(y <= 1, y, np.nan)))
    return Curves(_TREATMENT_AXIS, _OUTCOME_AXIS, tuple(lines), None, marks)


def _band(subject: LinearEffect, draws: np.ndarray, ratio: np.ndarray, question: Question, far: float) -> Band:
    """Effect against one strength for both, whichever way the confounder works."""
    x = np.linspace(0, far, _CURVE)
    reach = bias_factor(x, x, 1.0)
    low = np.quantile(draws - reach[:, None] * ratio, (1 - question.level) / 2, axis=1)
    high = np.quantile(draws + reach[:, None] * ratio, (1 + question.level) / 2, axis=1)
    return Band(
        xlabel="partial R² of the confounder with treatment and outcome",
        ylabel=f"effect of {subject.treatment}",
        x=x,
        lower=draws.mean() - reach * ratio.mean(),
        upper=draws.mean() + reach * ratio.mean(),
        threshold=question.null,
        interval=(low, high),
    )
