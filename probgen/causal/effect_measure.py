r"""Effects on the scales of published results, and the risk ratios that they amount to.

E-values speak of risk ratios. Other measures are brought to that scale (VanderWeele and Ding, 2017): an odds ratio of a
rare outcome is one, of a common outcome (prevalence above about 15 %) its square root is near one; a hazard ratio of a
common outcome is near :math:`(1 - 0.5^{\sqrt{h}}) / (1 - 0.5^{\sqrt{1/h}})`; a standardised mean difference :math:`d`
near :math:`e^{0.91 d}`, with limits :math:`e^{0.91 d \pm 1.78 \, \mathrm{se}_d}` (Chinn, 2000). These are approximations.
A risk difference is treated by itself (Ding and VanderWeele, 2016).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

from probgen.base.errors import MethodError
from probgen.causal.root import root

__all__ = ["EffectMeasure", "HazardRatio", "MeanDifference", "OddsRatio", "RiskDifference", "RiskRatio"]

_CHINN, _CHINN_SE = 0.91, 1.78
LARGEST_DIFFERENCE = 100.0
"""In standard deviations: beyond, a difference of means has no risk ratio that a float can hold, nor a meaning."""


class EffectMeasure(abc.ABC):
    """An estimated effect, with confidence limits where they are known."""

    @property
    @abc.abstractmethod
    def described(self) -> str:
        """The measure in words, with its numbers: ``risk ratio 3.9 (1.8 to 8.7)``."""

    @abc.abstractmethod
    def to_risk_ratio(self, value: float) -> float:
        """The risk ratio that a value of this measure amounts to."""

    @property
    @abc.abstractmethod
    def risk_ratios(self) -> tuple[float, float | None, float | None]:
        """Estimate and confidence limits as risk ratios."""

    @property
    @abc.abstractmethod
    def no_effect(self) -> float:
        """The value that stands for no effect: 1 for ratios, 0 for differences."""

    @property
    def approximate(self) -> str:
        """What is approximate about the risk ratio, in a sentence; empty for exact."""
        return ""


def _check_ratio(name: str, value: float, lower: float | None, upper: float | None) -> None:
    for part in (value, lower, upper):
        if part is not None and not (math.isfinite(part) and part > 0):
            raise MethodError(f"{name} must be positive, got {part}. Give the ratio itself, not its logarithm.")
    if (lower is not None and lower > value) or (upper is not None and upper < value):
        raise MethodError(
            f"the limits ({lower}, {upper}) do not hold the {name} {value}. Give lower <= value <= upper."
        )


def _shown(name: str, value: float, lower: float | None, upper: float | None) -> str:
    ends = [f"{end:.4g}" for end in (lower, upper) if end is not None]
    limits = f" ({' to '.join(ends)})" if len(ends) == 2 else f" (limit {ends[0]})" if ends else ""
    return f"{name} {value:.4g}{limits}"


class _Ratio(EffectMeasure):
    """What the three ratios share."""

    value: float
    lower: float | None
    upper: float | None
    _name: str

    @property
    def described(self) -> str:
        return _shown(self._name, self.value, self.lower, self.upper)

    @property
    def risk_ratios(self) -> tuple[float, float | None, float | None]:
        lower, upper = (None if end is None else self.to_risk_ratio(end) for end in (self.lower, self.upper))
        return self.to_risk_ratio(self.value), lower, upper

    @property
    def no_effect(self) -> float:
        return 1.0


@dataclass(frozen=True)
class RiskRatio(_Ratio):
    """A ratio of risks (or of rates, or of means of an outcome that is not negative).

    Attributes:
        value: The ratio.
        lower: Lower confidence limit.
        upper: Upper confidence limit.
    """

    value: float
    lower: float | None = None
    upper: float | None = None
    _name = "risk ratio"

    def __post_init__(self) -> None:
        _check_ratio(self._name, self.value, self.lower, self.upper)

    def to_risk_ratio(self, value: float) -> float:
        return value


@dataclass(frozen=True)
class OddsRatio(_Ratio):
    """A ratio of odds.

    Attributes:
        value: The ratio.
        lower: Lower confidence limit.
        upper: Upper confidence limit.
        rare: Whether the outcome is rare (below about 15 %) in all groups at the end of follow-up.
    """

    value: float
    lower: float | None = None
    upper: float | None = None
    rare: bool = False
    _name = "odds ratio"

    def __post_init__(self) -> None:
        _check_ratio(self._name, self.value, self.lower, self.upper)

    def to_risk_ratio(self, value: float) -> float:
        _check_ratio(self._name, value, None, None)
        return value if self.rare else math.sqrt(value)

    @property
    def approximate(self) -> str:
        return f"The risk ratio is taken as {'the' if self.rare else 'the square root of the'} odds ratio."


@dataclass(frozen=True)
class HazardRatio(_Ratio):
    """A ratio of hazards.

    Attributes:
        value: The ratio.
        lower: Lower confidence limit.
        upper: Upper confidence limit.
        rare: Whether the outcome is rare (below about 15 %) at the end of follow-up.
    """

    value: float
    lower: float | None = None
    upper: float | None = None
    rare: bool = False
    _name = "hazard ratio"

    def __post_init__(self) -> None:
        _check_ratio(self._name, self.value, self.lower, self.upper)

    def to_risk_ratio(self, value: float) -> float:
        _check_ratio(self._name, value, None, None)
        return value if self.rare else (1 - 0.5 ** math.sqrt(value)) / (1 - 0.5 ** math.sqrt(1 / value))

    @property
    def approximate(self) -> str:
        how = "as the hazard ratio" if self.rare else "from the hazard ratio by the formula for common outcomes"
        return f"The risk ratio is taken {how}."


@dataclass(frozen=True)
class MeanDifference(EffectMeasure):
    """A difference of means in standard deviations of the outcome.

    Attributes:
        value: The standardised difference.
        se: Its standard error; None if unknown.
    """

    value: float
    se: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or (self.se is not None and not self.se > 0):
            raise MethodError(f"value must be finite and se positive, got {self.value} and {self.se}. Check both.")
        if max(abs(self.value), self.se or 0.0) > LARGEST_DIFFERENCE:
            raise MethodError(
                f"value and se are in standard deviations of the outcome, got {self.value:g} and {self.se}. Divide by "
                f"its standard deviation, or measure the treatment in smaller units."
            )

    @property
    def described(self) -> str:
        se = "" if self.se is None else f" (standard error {self.se:.4g})"
        return f"standardised mean difference {self.value:.4g}{se}"

    def to_risk_ratio(self, value: float) -> float:
        if not abs(value) <= 4 * LARGEST_DIFFERENCE:
            raise MethodError(f"a difference of {value:g} standard deviations has no risk ratio. Check its units.")
        return math.exp(_CHINN * value)

    @property
    def risk_ratios(self) -> tuple[float, float | None, float | None]:
        center = _CHINN * self.value
        if self.se is None:
            return math.exp(center), None, None
        return math.exp(center), math.exp(center - _CHINN_SE * self.se), math.exp(center + _CHINN_SE * self.se)

    @property
    def no_effect(self) -> float:
        return 0.0

    @property
    def approximate(self) -> str:
        return "The risk ratio is taken as exp(0.91 d) with the standardised mean difference d (limits at 95 %)."


@dataclass(frozen=True)
class RiskDifference(EffectMeasure):
    """A difference of risks, by the four counts of a table.

    Attributes:
        exposed_cases: Exposed units with the outcome.
        exposed_others: Exposed units without it.
        unexposed_cases: Unexposed units with the outcome.
        unexposed_others: Unexposed units without it.
        level: Level of the confidence interval.
    """

    exposed_cases: float
    exposed_others: float
    unexposed_cases: float
    unexposed_others: float
    level: float = 0.95

    def __post_init__(self) -> None:
        counts = (self.exposed_cases, self.exposed_others, self.unexposed_cases, self.unexposed_others)
        if min(counts) < 0 or self.exposed_cases + self.exposed_others <= 0 or sum(counts[2:]) <= 0:
            raise MethodError(f"counts must not be negative, nor a group empty, got {counts}. Give the four counts.")
        if self.exposed_cases == 0 or self.unexposed_cases == 0:
            raise MethodError(
                f"a risk is zero, with the counts {counts}, so that the risk ratio is zero or infinite. Give a measure "
                f"that exists, such as an odds ratio with a correction for empty cells."
            )

    @property
    def risks(self) -> tuple[float, float]:
        """Risk of the exposed and of the unexposed."""
        exposed, unexposed = self.exposed_cases + self.exposed_others, self.unexposed_cases + self.unexposed_others
        return self.exposed_cases / exposed, self.unexposed_cases / unexposed

    @property
    def value(self) -> float:
        """The difference of the risks."""
        exposed, unexposed = self.risks
        return exposed - unexposed

    def adjusted(self, bias_factor: float) -> tuple[float, float]:
        """The difference that is left by confounding with a bounding factor, and its standard error.

        With the share f of exposed units and risks p, q of exposed and unexposed, the first of them the larger, a
        confounder with the bounding factor B leaves at least ``(p - q B)(f + (1 - f) / B)``.
        """
        exposed, unexposed = self.exposed_cases + self.exposed_others, self.unexposed_cases + self.unexposed_others
        p, q = self.risks
        if p < q:  # the other way round, the group without exposure has the larger risk
            p, q, exposed, unexposed = q, p, unexposed, exposed
        f = exposed / (exposed + unexposed)
        gap, weight = p - q * bias_factor, f + (1 - f) / bias_factor
        variance = (p * (1 - p) / exposed + bias_factor**2 * q * (1 - q) / unexposed) * weight**2
        variance += (gap * (1 - 1 / bias_factor)) ** 2 * f * (1 - f) / (exposed + unexposed)
        return gap * weight, math.sqrt(variance)

    @property
    def described(self) -> str:
        p, q = self.risks
        return f"risk difference {self.value:.4g} (risks {p:.4g} and {q:.4g})"

    def to_risk_ratio(self, value: float) -> float:
        q = self.risks[1]
        if q + value <= 0:
            raise MethodError(f"a risk difference of {value} is more than the risk {q:.4g} of the unexposed. Check it.")
        return (q + value) / q

    @property
    def risk_ratios(self) -> tuple[float, float | None, float | None]:
        """Estimate; and the limit nearest to no effect as the bounding factor that brings it to zero."""
        from scipy.stats import norm

        p, q = self.risks
        reach = float(norm.ppf((1 + self.level) / 2))

        def limit(factor: float) -> float:
            value, se = self.adjusted(factor)
            return value - reach * se

        ratio = p / q
        strength = max(ratio, 1 / ratio)
        factor = 1.0 if limit(1.0) <= 0 else root(limit, 1.0, strength)
        return (ratio, factor, None) if ratio >= 1 else (ratio, None, 1 / factor)

    @property
    def no_effect(self) -> float:
        return 0.0
