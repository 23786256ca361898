r"""How strong a confounder of a linear regression would have to be (Cinelli and Hazlett, 2020).

Leaving out a variable :math:`Z` changes the coefficient of the treatment :math:`D` by an amount that depends on two
numbers alone: the part :math:`R_D = R^2_{D \sim Z | X}` of the residual variance of the treatment that :math:`Z`
explains, and the part :math:`R_Y = R^2_{Y \sim Z | D, X}` of that of the outcome. With the standard error se and
:math:`\nu` degrees of freedom of the regression without :math:`Z`,

.. math::
   |\hat\tau_{\text{short}} - \hat\tau_{\text{long}}| = \mathrm{se} \sqrt{\nu \, \frac{R_Y R_D}{1 - R_D}},
   \qquad
   \mathrm{se}_{\text{long}} = \mathrm{se} \sqrt{\frac{1 - R_Y}{1 - R_D} \, \frac{\nu}{\nu - 1}} .

Both are identities for one variable :math:`Z`, and the first is the largest change for several. For the t-value
:math:`t` of the estimate (counted from the null), let :math:`f = |t| / \sqrt\nu` and
:math:`c = t^*_{\nu - 1} / \sqrt{\nu - 1}` with the critical value :math:`t^*`. The *robustness value* is the smallest
:math:`r` such that some confounder with :math:`R_D, R_Y \le r` moves the estimate to the null,
:math:`r^2 / (1 - r) = f^2`, or moves the interval there: the same with :math:`f - c` in the place of :math:`f`, unless
:math:`f^2 (1 - r) > 1`, where the worst :math:`R_Y` lies inside the box and :math:`r = (f^2 - c^2) / (1 + f^2)`. The
*extreme* robustness value leaves :math:`R_Y` free, which gives that last formula always.

A confounder that is :math:`k_D` times as strong as the observed covariates :math:`j` in explaining the treatment, and
:math:`k_Y` times in explaining the outcome, and unrelated to the covariates otherwise, has

.. math::
   R_D = k_D \frac{R_{D j}}{1 - R_{D j}}, \qquad
   R_Y \le \left(\frac{\sqrt{k_Y} + \sqrt{\eta}}{\sqrt{1 - \eta}}\right)^2 \frac{R_{Y j}}{1 - R_{Y j}}, \qquad
   \eta = \frac{k_D R_{D j}^2}{(1 - k_D R_{D j})(1 - R_{D j})} .
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.analysis import Analysis, Contour, Curves, Line, Mark, Measure, Scenario
from probgen.causal.regression import Regression
from probgen.causal.robustness import Strength, benchmark_bound, critical_f, extreme_robustness_value, robustness_value
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.wording import figures, interval, percent

__all__ = ["CinelliHazlett"]

_GRID, _SHOWN, _CURVE = 61, 3, 200
_MULTIPLES = (1.0, 2.0, 3.0)
_TREATMENT_AXIS = "partial R² of the confounder with the treatment"
_OUTCOME_AXIS = "partial R² of the confounder with the outcome"


@dataclass(frozen=True)
class Adjusted:
    """What a regression would say had it included the confounder.

    Attributes:
        estimate: Coefficient of the treatment.
        se: Its standard error.
        t: Distance of the estimate from the null in standard errors.
        interval: Confidence limits.
    """

    estimate: float
    se: float
    t: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class CinelliHazlett(SensitivityModel):
    """Omitted-variable bias of a linear regression by two partial R2 (Cinelli and Hazlett, 2020).

    Attributes:
        kd: Strengths of hypothetical confounders, in multiples of the benchmark with the treatment, each of which must
            be possible; None takes those of 1, 2 and 3 that are.
        ky: The same with the outcome, one for each of ``kd``; None for the same multiples.
        increases: Whether the confounder makes the effect larger in truth than estimated (it hid a part), and not
            smaller.
        outcome_shares: Shares of the residual variance of the outcome in the extreme scenarios.
    """

    kd: tuple[float, ...] | None = None
    ky: tuple[float, ...] | None = None
    increases: bool = False
    outcome_shares: tuple[float, ...] = (1.0, 0.75, 0.5)

    def __post_init__(self) -> None:
        for name in ("kd", "ky", "outcome_shares"):
            if isinstance(getattr(self, name), int | float):
                raise MethodError(f"{name} must be several numbers, got {getattr(self, name)}. Use ({name}=(1.0,)).")
        if self.ky is not None and len(self.ky) != len(self.kd or ()):
            raise MethodError(f"ky has {len(self.ky)} values, kd is {self.kd}. Give one ky for each kd, or None.")
        if self.kd is not None and (not self.kd or min(self.kd) <= 0):
            raise MethodError(f"kd must be positive numbers, got {self.kd}. Use (1.0, 2.0, 3.0), for example.")
        for share in self.outcome_shares:
            if not 0 < share <= 1:
                raise MethodError(f"outcome_shares must lie in (0, 1], got {share}. Use (1.0, 0.75, 0.5), for example.")

    def refuses(self, subject: Any) -> str:
        if isinstance(subject, Regression):
            return ""
        return f"it needs a pg.causal.Regression, got {type(subject).__name__}"

    # -- closed forms ----------------------------------------------------------------------------------------------

    def bias(self, regression: Regression, treatment: float, outcome: float) -> float:
        """Size of the change of the coefficient by a confounder with these partial R2 with treatment and outcome."""
        strength = Strength(treatment, outcome)
        share = strength.outcome * strength.treatment / (1 - strength.treatment)
        return regression.se * math.sqrt(regression.dof * share)

    def adjusted(
        self, regression: Regression, treatment: float, outcome: float, *, null: float = 0.0, level: float = 0.95
    ) -> Adjusted:
        """The regression with a confounder of given strength included, in the direction that harms the conclusion.

        Args:
            regression: The regression without it.
            treatment: Its partial R2 with the treatment, given the covariates; in [0, 1).
            outcome: Its partial R2 with the outcome, given treatment and covariates; in [0, 1].
            null: The effect towards which the estimate moves (or from which, with ``increases``).
            level: Level of the interval.
        """
        Strength(treatment, outcome)
        estimate, se = (float(value) for value in self._moved(regression, treatment, outcome, null))
        reach = _critical_t(regression, level) * se
        distance = estimate - null
        t = distance / se if se else math.copysign(math.inf, distance)
        return Adjusted(estimate, se, t, (estimate - reach, estimate + reach))

    def _moved(self, regression: Regression, treatment: Any, outcome: Any, null: float) -> tuple[Any, Any]:
        """Estimate and standard error, for numbers or arrays of strengths."""
        dof = regression.dof
        bias = regression.se * np.sqrt(dof * outcome * treatment / (1 - treatment))
        sign = math.copysign(1, regression.estimate - null) * (1 if self.increases else -1)
        se = regression.reported_se * np.sqrt((1 - outcome) / (1 - treatment) * dof / (dof - 1))
        return regression.estimate + sign * bias, se

    # -- the analysis ----------------------------------------------------------------------------------------------

    def analyse(self, subject: Regression, question: Question) -> Analysis:
        null, alpha = question.null, 1 - question.level
        t = (subject.estimate - null) / subject.se
        inflation = _inflation(subject, question.level)
        rv = robustness_value(t, subject.dof)
        rv_alpha = robustness_value(t, subject.dof, alpha=alpha, inflation=inflation)
        extreme = extreme_robustness_value(t, subject.dof)
        percent_level = f"{100 * alpha:.3g} %"
        measures = (
            Measure("robustness value", rv, f"of both residual variances to bring the estimate to {null:g}", True),
            Measure(
                "robustness value of the interval",
                rv_alpha,
                f"of both residual variances to bring the {100 * question.level:.3g} % interval to {null:g}",
                True,
            ),
            Measure(
                "extreme robustness value",
                extreme,
                "of the residual variance of the treatment, when all of the outcome is explained",
                True,
            ),
        )
        groups, notes = self._benchmarks(subject, question)
        scenarios, marks = [], []
        for group in groups:
            for scenario in self._scenarios(subject, group, question):
                if isinstance(scenario, str):
                    notes.append(scenario)
                    continue
                scenarios.append(scenario)
                x, y = scenario.strengths["r2_treatment"], scenario.strengths["r2_outcome"]
                marks.append(Mark(scenario.label, x, y))
        if subject.robust_se is not None:
            notes.append(
                "The estimate has a robust standard error; under a confounder it is scaled as the classical one would "
                "be, which is an approximation. Robustness values of the estimate do not depend on it."
            )
        sentences = self._sentences(subject, question, rv, rv_alpha, extreme, percent_level, scenarios)
        contours, extremes, tipping = self._curves(subject, question, rv, tuple(marks))
        return Analysis(
            title="Cinelli-Hazlett",
            assumption=(
                "A hidden confounder enters the regression linearly; its strength is the share of the residual "
                "variance of treatment and of outcome that it explains beyond the covariates."
            ),
            measures=measures,
            scenarios=tuple(scenarios),
            sentences=tuple(sentences),
            notes=tuple(notes),
            contours=contours,
            extreme=extremes,
            tipping=tipping,
        )

    def _benchmarks(self, subject: Regression, question: Question) -> tuple[list[tuple[str, ...]], list[str]]:
        """The groups that were asked for, or the covariates that would change the estimate the most."""
        if question.benchmarks is not None:
            return list(question.benchmarks), []
        pushes = {}
        for name in subject.covariates:
            observed = subject.benchmark(name)
            share = observed.treatment * observed.outcome / (1 - observed.treatment) / (1 - observed.outcome)
            pushes[name] = share
        chosen = sorted(pushes, key=lambda name: -pushes[name])[:_SHOWN]
        left = len(pushes) - len(chosen)
        notes = []
        if left > 0:
            notes.append(
                f"Benchmarks are the {_SHOWN} of {len(pushes)} covariates that would change the estimate the most; name "
                f"others with benchmarks=."
            )
        return [(name,) for name in chosen], notes

    def _scenarios(self, subject: Regression, group: tuple[str, ...], question: Question) -> list[Scenario | str]:
        found: list[Scenario | str] = []
        observed = subject.benchmark(*group)
        for i, kd in enumerate(self.kd or _MULTIPLES):
            ky = kd if self.ky is None else self.ky[i]
            times = f"{kd:g}" if ky == kd else f"{kd:g}/{ky:g}"
            label = f"{times} x {' + '.join(group)}"
            try:
                bound = benchmark_bound(observed, kd, ky)
            except MethodError as error:
                # What was asked for must not be left out in silence.
                if self.kd is not None or (question.benchmarks is not None and not i):
                    raise MethodError(f"benchmark {' + '.join(group)!r}: {error}") from error
                found.append(f"{label}: {error}")
                continue
            adjusted = self.adjusted(subject, bound.treatment, bound.outcome, null=question.null, level=question.level)
            strengths = {"r2_treatment": bound.treatment, "r2_outcome": bound.outcome}
            if bound.outcome == 1:
                # Nothing would be left of the outcome: a worst case, of which a standard error of zero says nothing.
                found.append(Scenario(label, strengths, adjusted.estimate, adjusted.estimate))
                found.append(f"{label}: all of the outcome may be explained, so that there is no standard error.")
                continue
            statistics = {"se": adjusted.se, "t": adjusted.t}
            found.append(
                Scenario(label, strengths, adjusted.estimate, adjusted.estimate, adjusted.interval, statistics)
            )
        return found

    def _sentences(
        self,
        subject: Regression,
        question: Question,
        rv: float,
        rv_alpha: float,
        extreme: float,
        alpha: str,
        scenarios: list[Scenario],
    ) -> list[str]:
        null, level = figures(question.null), f"{100 * question.level:.3g} %"
        limits = subject.interval(question.level)
        kind = "" if subject.robust_se is None else "robust "
        sentences = [
            f"The regression coefficient of {subject.treatment} on {subject.outcome} is {figures(subject.estimate)} "
            f"({kind}standard error {figures(subject.reported_se)}, {level} interval {interval(limits)})."
        ]
        excluded = not limits[0] <= question.null <= limits[1]
        if rv > 0:
            sentences.append(
                f"An unobserved confounder that explains {percent(rv)} of the residual variance of both treatment and "
                f"outcome would be strong enough to account for the whole difference of the estimate from {null}; "
                f"confounders that explain less of both would not."
            )
        else:
            sentences.append(f"The estimate is {null} already, so there is no difference for a confounder to explain.")
        if rv_alpha > 0:
            sentences.append(
                f"One that explains {percent(rv_alpha)} of both would be strong enough to make the estimate no longer "
                f"differ from {null} at the level of {alpha}."
            )
        elif excluded:
            # The values count one degree of freedom less than the interval: with few rows this decides.
            sentences.append(
                f"The {level} interval excludes {null}, but with so few degrees of freedom any covariate more, even one "
                f"that explains nothing, could make it include {null}."
            )
        else:
            sentences.append(f"The {level} interval includes {null} without any confounding.")
        if rv > 0:
            sentences.append(
                f"Even one that explains all that is left of the outcome would have to explain {percent(extreme)} of the "
                f"residual variance of the treatment to bring the estimate to {null}."
            )
        for scenario in scenarios if len(scenarios) <= 2 else _told(scenarios):
            before, after = subject.estimate - question.null, scenario.lower - question.null
            told = f" ({interval(scenario.interval)})" if scenario.interval else ""
            verdict = (
                f"it would move the estimate away from {null}"
                if before == 0
                else f"it would bring the estimate to {null} or beyond"
                if before * after <= 0 and not self.increases
                else f"it would not bring the estimate to {null}"
                if scenario.interval is None
                else f"the interval would {'still ' if excluded else ''}exclude {null}"
                if min(scenario.interval) > question.null or max(scenario.interval) < question.null
                else f"the interval would {'' if excluded else 'still '}include {null}"
            )
            rd, ry = scenario.strengths["r2_treatment"], scenario.strengths["r2_outcome"]
            times, _, name = scenario.label.partition(" x ")
            strength = f"as strong as {name}" if times == "1" else f"{times} times as strong as {name}"
            sentences.append(
                f"A confounder {strength} (at most {percent(rd)} of the treatment and {percent(ry)} of the outcome) "
                f"would leave {figures(scenario.lower)}{told}: {verdict}."
            )
        return sentences

    def _curves(
        self, subject: Regression, question: Question, rv: float, marks: tuple[Mark, ...]
    ) -> tuple[tuple[Contour, ...], Curves, Curves]:
        null, level = question.null, question.level
        far = max([0.05, 1.6 * rv, *(1.25 * mark.x for mark in marks)])
        high = max([0.05, 1.6 * rv, *(1.25 * mark.y for mark in marks if mark.y is not None)])
        x, y = np.linspace(0, min(far, 0.98), _GRID), np.linspace(0, min(high, 1.0), _GRID)
        estimates, ses = self._moved(subject, x, y[:, None], null)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.clip((estimates - null) / ses, -1e6, 1e6)
        critical = _critical_t(subject, level)
        sign = 1.0 if subject.estimate >= null else -1.0
        places = {"xlabel": _TREATMENT_AXIS, "ylabel": _OUTCOME_AXIS, "x": x, "y": y, "marks": marks}
        contours = (
            Contour(
                title="adjusted estimate",
                values=estimates,
                threshold=null,
                **places,
            ),
            Contour(
                title="adjusted t-value",
                values=t,
                threshold=sign * critical,
                **places,
            ),
        )
        along = np.linspace(0, min(far, 0.98), _CURVE)
        lines = tuple(
            Line(
                f"{100 * share:g} % of the outcome",
                along,
                self._moved(subject, along, share, null)[0],
            )
            for share in self.outcome_shares
        )
        extremes = Curves(
            _TREATMENT_AXIS, f"effect of {subject.treatment}", lines, null, tuple(Mark(m.label, m.x) for m in marks)
        )
        return contours, extremes, self._tipping(subject, question, min(far, 0.98), marks)

    def _tipping(self, subject: Regression, question: Question, far: float, marks: tuple[Mark, ...]) -> Curves:
        """Pairs of strengths that bring the estimate, or the interval, to the null."""
        f2 = ((subject.estimate - question.null) / subject.se) ** 2 / subject.dof
        x = np.linspace(far / _CURVE, far, _CURVE)
        estimate = f2 * (1 - x) / x
        lines = [Line("estimate at the null", x, np.where(estimate <= 1, estimate, np.nan))]
        f, critical = math.sqrt(f2), critical_f(subject.dof, 1 - question.level) * _inflation(subject, question.level)
        if f > critical:
            # With s^2 = R_Y and a^2 = R_D / (1 - R_D): (f - a s) / sqrt(1 - s^2) sqrt(1 - R_D) = c, smallest root.
            a, b = np.sqrt(x / (1 - x)), critical / np.sqrt(1 - x)
            inside = a**2 + b**2 - f2
            root = np.sqrt(np.maximum(inside, 0))
            s = (a * f - b * root) / (a**2 + b**2)
            reached = (inside >= 0) & (s >= 0) & (s <= 1)
            # Where the significance is lost already without the outcome (R_D alone widens the interval) s is negative.
            lost = (inside >= 0) & (s < 0)
            lines.append(Line("interval at the null", x, np.where(lost, 0.0, np.where(reached, s**2, np.nan))))
        return Curves(_TREATMENT_AXIS, _OUTCOME_AXIS, tuple(lines), None, marks)


def _told(scenarios: list[Scenario]) -> list[Scenario]:
    """Of each benchmark the strongest scenario, and the first of all."""
    last = {scenario.label.partition(" x ")[2]: scenario for scenario in scenarios}
    chosen = [scenarios[0], *last.values()]
    return [scenario for i, scenario in enumerate(chosen) if scenario not in chosen[:i]]


def _critical_t(subject: Regression, level: float) -> float:
    from scipy.stats import t as student

    dof = subject.dof - 1 if subject.clusters is None else subject.reference_dof
    return float(student.ppf((1 + level) / 2, dof))


def _inflation(subject: Regression, level: float) -> float:
    """How much wider the interval is than the classical one: robust standard errors, fewer degrees of freedom."""
    from scipy.stats import t as student

    wider = subject.reported_se / subject.se
    return wider * _critical_t(subject, level) / float(student.ppf((1 + level) / 2, subject.dof - 1))
