r"""Sensitivity of matched pairs to hidden bias (Rosenbaum, 1987, 2002).

Two units with the same observed covariates may differ in their odds of treatment by at most a factor
:math:`\Gamma \ge 1`. Within a pair of one treated and one control, the probability that it is this one that was treated
then lies between :math:`1 / (1 + \Gamma)` and :math:`\Gamma / (1 + \Gamma)`, and the p-value of a test of no effect
between those that the two ends give. The largest :math:`\Gamma` at which the upper p-value is still below :math:`\alpha`
measures how much hidden bias the conclusion can bear.

Point estimates: for an additive effect :math:`\tau`, the Hodges-Lehmann estimate solves
:math:`T(d - \tau) = E[T]`; the expectation lies between :math:`\sum q / (1 + \Gamma)` and
:math:`\Gamma \sum q / (1 + \Gamma)`, and so the estimate lies between the corresponding quantiles of the averages of
pairs of differences (of the differences, for the sign test). Intervals collect the effects that no bias of this size
allows to be rejected.

*Amplification* (Rosenbaum and Silber, 2009): a bias :math:`\Gamma` is what a confounder does that multiplies the odds of
treatment by :math:`\Lambda` and the odds of a positive difference by :math:`\Delta`, for every pair with
:math:`\Gamma = (\Lambda \Delta + 1) / (\Lambda + \Delta)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.analysis import Analysis, Band, Curves, Line, Measure, Scenario
from probgen.causal.matched_pairs import MatchedPairs
from probgen.causal.pair_statistic import PairStatistic, SignedRank, SignTest
from probgen.causal.root import root
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.wording import figures, interval, p_value

__all__ = ["RosenbaumBounds", "amplification", "gamma_of_amplification"]

_LARGEST, _CURVE, _GAMMAS, _AVERAGES = 1e6, 120, 25, 4000


def gamma_of_amplification(with_treatment: float, with_outcome: float) -> float:
    """The bias of a confounder by its two strengths, as odds ratios of at least 1."""
    if not (with_treatment >= 1 and with_outcome >= 1):
        raise MethodError(
            f"odds ratios must be at least 1, got {with_treatment} and {with_outcome}. Invert those below."
        )
    return (with_treatment * with_outcome + 1) / (with_treatment + with_outcome)


def amplification(gamma: float, with_treatment: float) -> float:
    """Odds ratio with the outcome that a confounder needs to do the harm of ``gamma``, by that with the treatment.

    Args:
        gamma: The bias, at least 1.
        with_treatment: Odds ratio with the treatment, greater than ``gamma``.
    """
    _check_gamma(gamma)
    if not with_treatment > gamma:
        raise MethodError(
            f"the odds ratio with the treatment must be greater than gamma = {gamma:g}, got {with_treatment:g}: a weaker "
            f"one cannot do this harm, however strong it is with the outcome. Give a larger one."
        )
    return (gamma * with_treatment - 1) / (with_treatment - gamma)


def _check_gamma(gamma: float) -> None:
    if not (gamma >= 1 and math.isfinite(gamma)):
        raise MethodError(f"gamma must be at least 1 (no hidden bias) and finite, got {gamma}. Use 1 / gamma if below.")


@dataclass(frozen=True)
class RosenbaumBounds(SensitivityModel):
    """Bounds on p-values and effects of matched pairs under hidden bias.

    Attributes:
        gammas: Odds ratios of treatment within pairs that hidden bias may reach, each at least 1.
        statistic: The test; None for the sign test (McNemar's) of a binary outcome, Wilcoxon's signed rank otherwise.
        harmful: Whether the treatment is thought to lower the outcome; tests are one-sided in that direction.
        two_sided: Whether to test both directions: twice the smaller of the two one-sided p-values (at most 1).
    """

    gammas: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    statistic: PairStatistic | None = field(default=None)
    harmful: bool = False
    two_sided: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.gammas, int | float):
            raise MethodError(f"gammas must be several numbers, got {self.gammas}. Use (1.0, 1.5, 2.0), for example.")
        if not self.gammas:
            raise MethodError("gammas is empty. Use (1.0, 1.5, 2.0), for example.")
        for gamma in self.gammas:
            _check_gamma(gamma)

    def refuses(self, subject: Any) -> str:
        if isinstance(subject, MatchedPairs):
            return ""
        return f"it needs pg.causal.MatchedPairs, got {type(subject).__name__}"

    def test_of(self, pairs: MatchedPairs) -> PairStatistic:
        """The test that is used for these pairs."""
        if self.statistic is not None:
            return self.statistic
        return SignTest() if pairs.is_binary else SignedRank()

    # -- closed forms ----------------------------------------------------------------------------------------------

    def p_values(self, pairs: MatchedPairs, gamma: float) -> tuple[float, float]:
        """Smallest and largest p-value of no effect that hidden bias of at most ``gamma`` allows."""
        _check_gamma(gamma)
        test, d = self.test_of(pairs), self._differences(pairs)
        scores, exact = test.scores(d), test.exact(d)
        values = (test.value(d), test.value(-d)) if self.two_sided else (test.value(d),)
        lower, upper = (
            min(len(values) * min(map(test.tail(scores, p, exact), values)), 1.0)
            for p in (1 / (1 + gamma), gamma / (1 + gamma))
        )
        return lower, upper

    def largest_gamma(self, pairs: MatchedPairs, alpha: float = 0.05) -> float:
        """Bias at which the upper p-value reaches ``alpha``: the sensitivity value; 1 if it is above without bias."""

        def excess(log_gamma: float) -> float:
            return self.p_values(pairs, math.exp(log_gamma))[1] - alpha

        if not 0 < alpha < 1:
            raise MethodError(f"alpha must lie between 0 and 1, got {alpha}. Use 0.05, for example.")
        if excess(0.0) >= 0:
            return 1.0
        if excess(math.log(_LARGEST)) <= 0:
            return math.inf
        return math.exp(root(excess, 0.0, math.log(_LARGEST)))

    def effects(self, pairs: MatchedPairs, gamma: float) -> tuple[float, float]:
        """Smallest and largest Hodges-Lehmann estimate of an additive effect."""
        _check_gamma(gamma)
        return _effects(self._crossings(pairs), gamma)

    def interval(self, pairs: MatchedPairs, gamma: float, level: float = 0.95) -> tuple[float, float]:
        """Additive effects that a two-sided test does not reject at some bias of at most ``gamma``."""
        _check_gamma(gamma)
        return _interval(self.test_of(pairs), self._crossings(pairs), len(pairs.treated), gamma, level)

    def _crossings(self, pairs: MatchedPairs) -> np.ndarray:
        test = self.test_of(pairs)
        if isinstance(test, SignedRank) and len(pairs.treated) > _AVERAGES:
            raise MethodError(
                f"Hodges-Lehmann bounds of {len(pairs.treated):,} pairs would need {len(pairs.treated) ** 2 // 2:,} "
                f"averages of pairs. Use statistic=pg.causal.SignTest(), or p_values alone."
            )
        return test.crossings(pairs.treated - pairs.control)

    def _differences(self, pairs: MatchedPairs) -> np.ndarray:
        return -pairs.differences if self.harmful else pairs.differences

    # -- the analysis ----------------------------------------------------------------------------------------------

    def analyse(self, subject: MatchedPairs, question: Question) -> Analysis:
        if question.null:
            raise MethodError(
                f"null is {question.null}, but tests of pairs are of no effect. Subtract it from treated."
            )
        alpha = 1 - question.level
        test = self.test_of(subject)
        additive = not subject.is_binary and not (isinstance(test, SignedRank) and len(subject.treated) > _AVERAGES)
        largest = self.largest_gamma(subject, alpha)
        crossings = self._crossings(subject) if additive else None
        scenarios = tuple(self._scenario(subject, gamma, question.level, crossings) for gamma in self.gammas)
        p_none, count = self.p_values(subject, 1.0)[1], len(subject.differences)
        pairs = "1 pair that differs" if count == 1 else f"{count:,} pairs that differ"
        downwards = self.harmful
        if self.two_sided:
            d = subject.differences
            downwards = test.value(-d) > test.value(d)
        size = "smaller" if downwards else "larger"
        sides = "two-sided " if self.two_sided else f"one-sided (towards {size} outcomes of the treated) "
        where = f"{sides}{test.name} of {pairs}"
        sentences = [f"Without hidden bias, the {where} gives {p_value(p_none)}."]
        if largest > 1:
            two = 2 * largest
            sentences.append(
                f"The result stays significant at the level of {100 * alpha:.3g} % unless hidden bias makes one unit of "
                f"a pair more than {figures(largest)} times as likely (in odds) to be treated as the other."
                if math.isfinite(largest)
                else "No hidden bias, however large, makes the result insignificant."
            )
            if math.isfinite(largest):
                sentences.append(
                    f"Such a bias (gamma = {figures(largest)}) is that of a confounder which multiplies the odds of "
                    f"treatment by {figures(two)} and those of a {size} outcome by "
                    f"{figures(amplification(largest, two))}."
                )
        else:
            other = "" if self.two_sided else f", in the direction of {size} outcomes"
            sentences.append(
                f"This is not significant at the level of {100 * alpha:.3g} % even without hidden bias{other}."
            )
        if additive:
            shown = [one for one in scenarios if one.strengths["gamma"] > 1][:2]
            sentences += [
                f"With gamma = {one.strengths['gamma']:g}, the additive effect of {subject.treatment} on "
                f"{subject.outcome} may be estimated anywhere from {interval((one.lower, one.upper))} ({100 * question.level:.3g} "
                f"% interval {interval(one.interval or (math.nan, math.nan))})."
                for one in shown
            ]
        notes = []
        if not test.exact(subject.differences):
            notes.append(f"p-values use the normal limit of the statistic ({count:,} pairs).")
        if not additive and not subject.is_binary:
            notes.append(f"Bounds of the additive effect are left out for more than {_AVERAGES:,} pairs.")
        ties = len(subject.treated) - count
        if ties:
            notes.append(f"{ties:,} pairs without a difference do not enter the tests.")
        return Analysis(
            title="Rosenbaum bounds",
            assumption=(
                "Two units that were matched may differ in their odds of treatment by at most a factor gamma, by "
                "something that may predict the outcome perfectly."
            ),
            measures=(
                Measure("largest gamma", largest, f"odds ratio within pairs at which p reaches {alpha:.3g}"),
                Measure("p-value without bias", p_none, "of no effect, if the matching left no bias"),
            ),
            scenarios=scenarios,
            sentences=tuple(sentences),
            notes=tuple(notes),
            tipping=self._tipping(largest),
            bounds=None if crossings is None else self._band(subject, question.level, largest, crossings),
        )

    def _scenario(self, pairs: MatchedPairs, gamma: float, level: float, crossings: np.ndarray | None) -> Scenario:
        lower_p, upper_p = self.p_values(pairs, gamma)
        effects, limits = (math.nan, math.nan), None
        if crossings is not None:
            effects = _effects(crossings, gamma)
            limits = _interval(self.test_of(pairs), crossings, len(pairs.treated), gamma, level)
        return Scenario(
            f"gamma = {gamma:g}", {"gamma": gamma}, *effects, limits, {"p_lower": lower_p, "p_upper": upper_p}
        )

    def _tipping(self, largest: float) -> Curves | None:
        if not 1 < largest < math.inf:
            return None
        x = largest + (largest + 6) * np.linspace(0, 1, _CURVE)[1:] ** 2
        y = np.array([amplification(largest, float(value)) for value in x])
        line = Line(f"gamma = {figures(largest)}", x, np.where(y <= 3 * x[-1], y, np.nan))
        return Curves("odds ratio with the treatment", "odds ratio with a larger outcome", (line,), None, (), True)

    def _band(self, pairs: MatchedPairs, level: float, largest: float, crossings: np.ndarray) -> Band:
        x = np.linspace(1, max(1.3 * min(largest, 10.0), *self.gammas, 2.0), _GAMMAS)
        test, count = self.test_of(pairs), len(pairs.treated)
        effects = np.array([_effects(crossings, float(gamma)) for gamma in x]).T
        limits = np.array([_interval(test, crossings, count, float(gamma), level) for gamma in x]).T
        limits[~np.isfinite(limits)] = np.nan
        return Band("gamma", f"effect of {pairs.treatment}", x, effects[0], effects[1], 0.0, (limits[0], limits[1]))


def _effects(crossings: np.ndarray, gamma: float) -> tuple[float, float]:
    """Estimates at the two ends: where the number of crossings above the effect equals its expectation."""
    count = len(crossings)
    lower, upper = (_quantile(crossings, count * (1 - p)) for p in (gamma / (1 + gamma), 1 / (1 + gamma)))
    return lower, upper


def _interval(
    test: PairStatistic, crossings: np.ndarray, pairs: int, gamma: float, level: float
) -> tuple[float, float]:
    """Effects that are not rejected; without ties, as of a continuous outcome."""
    scores = np.arange(1.0, pairs + 1) if isinstance(test, SignedRank) else np.ones(pairs)
    tail, count = test.tail(scores, gamma / (1 + gamma), test.exact(scores)), len(crossings)
    # Smallest value that is rejected, by bisection on the integers.
    low, high = 0, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tail(middle) <= (1 - level) / 2 else (middle, high)
    if high > count:
        return -math.inf, math.inf
    return float(crossings[count - high]), float(crossings[high - 1])


def _quantile(ordered: np.ndarray, place: float) -> float:
    """Where the number of entries at or below falls on ``place``: halfway between two entries if it does exactly."""
    nearest = round(place)
    if abs(place - nearest) < 1e-9 * max(place, 1):
        if not 0 < nearest < len(ordered):
            return float(ordered[0] if nearest <= 0 else ordered[-1])
        return float((ordered[nearest - 1] + ordered[nearest]) / 2)
    return float(ordered[min(math.ceil(place), len(ordered)) - 1])
