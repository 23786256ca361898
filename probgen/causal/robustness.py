"""Closed forms of sensitivity to an omitted variable; the mathematics stands in ``cinelli_hazlett``."""

from __future__ import annotations

import math

from probgen.base.errors import MethodError
from probgen.causal.regression import PartialR2
from probgen.causal.wording import percent

__all__ = ["Strength", "benchmark_bound", "critical_f", "extreme_robustness_value", "robustness_value"]


def robustness_value(
    t: float, dof: float, *, q: float = 1.0, alpha: float | None = None, inflation: float = 1.0
) -> float:
    """Share of the residual variance of treatment and of outcome that a confounder has to explain, both alike.

    Args:
        t: The estimate in (classical) standard errors, counted from the null.
        dof: Residual degrees of freedom.
        q: Share of the estimate that the confounder is to explain away; 1 is all.
        alpha: Level at which the effect is to lose significance; None asks for the estimate itself to move.
        inflation: Ratio of the standard error that decides on significance to the classical one.

    Returns:
        A share in [0, 1); 0 where the effect is not significant to begin with.
    """
    f, critical = _cohens(t, dof, q), critical_f(dof, alpha) * inflation
    shifted = f - critical
    if shifted <= 0:
        return 0.0
    if critical > 0 and f > 1 / critical:
        return (f**2 - critical**2) / (1 + f**2)
    # 2 / (1 + sqrt(1 + 4 / f^2)), the root of r^2 = f^2 (1 - r), without loss of digits for small f.
    return 2 * shifted / (shifted + math.sqrt(shifted**2 + 4))


def extreme_robustness_value(
    t: float, dof: float, *, q: float = 1.0, alpha: float | None = None, inflation: float = 1.0
) -> float:
    """Share of the residual variance of the treatment that even a confounder has to explain that may explain all of the
    outcome.

    Arguments and result are those of ``robustness_value``; with ``q=1`` and no ``alpha`` it is the partial R2 of the
    treatment with the outcome.
    """
    f, critical = _cohens(t, dof, q), critical_f(dof, alpha) * inflation
    return max((f**2 - critical**2) / (1 + f**2), 0.0)


def benchmark_bound(observed: PartialR2, kd: float = 1.0, ky: float | None = None) -> PartialR2:
    """Strength of a confounder ``kd`` and ``ky`` times as strong as observed covariates.

    Args:
        observed: Partial R2 of the covariates with treatment and outcome.
        kd: How many times as much of the residual variance of the treatment it explains.
        ky: The same for the outcome; None for ``kd``.

    Returns:
        Its partial R2 with the treatment, and the largest that it can have with the outcome (at most 1).

    Raises:
        MethodError: If no confounder can be that strong: it would explain all of the treatment, or more.
    """
    ky = kd if ky is None else ky
    if not (kd > 0 and ky >= 0 and math.isfinite(kd) and math.isfinite(ky)):
        raise MethodError(f"kd must be positive and ky at least 0, got {kd} and {ky}. Use 1 for as strong as observed.")
    rd, ry = observed.treatment, observed.outcome
    of_treatment = kd * rd / (1 - rd)
    if of_treatment >= 1:
        raise MethodError(
            f"a confounder {kd:g} times as strong as a covariate that explains {percent(rd)} of the treatment would "
            f"explain {percent(of_treatment)} of its residual variance, which cannot be. Use kd below "
            f"{math.floor(100 * (1 - rd) / rd) / 100:g} for this benchmark."
        )
    eta = kd * rd**2 / ((1 - kd * rd) * (1 - rd))  # below 1 whenever of_treatment is
    of_outcome = (math.sqrt(ky) + math.sqrt(eta)) ** 2 / (1 - eta) * ry / (1 - ry)
    return Strength(of_treatment, min(of_outcome, 1.0))


class Strength(PartialR2):
    """Of a confounder that may explain all of the outcome."""

    def __post_init__(self) -> None:
        if not (0 <= self.treatment < 1 and 0 <= self.outcome <= 1):
            raise MethodError(
                f"the partial R2 of a confounder must lie in [0, 1) with the treatment and in [0, 1] with the outcome, "
                f"got {self.treatment} and {self.outcome}. Give shares, not per cent."
            )


def _cohens(t: float, dof: float, q: float) -> float:
    if not dof > 1:
        raise MethodError(f"dof must be greater than 1, got {dof}. Give the residual degrees of freedom.")
    if not (math.isfinite(t) and q >= 0):
        raise MethodError(f"t must be finite and q at least 0, got {t} and {q}. Take t from the regression.")
    return q * abs(t) / math.sqrt(dof)


def critical_f(dof: float, alpha: float | None) -> float:
    """The critical value of t over the root of the degrees of freedom; 0 without a level."""
    from scipy.stats import t as student

    if alpha is None:
        return 0.0
    if not 0 < alpha < 1:
        raise MethodError(f"alpha must lie between 0 and 1, got {alpha}. Use 0.05, for example.")
    return float(student.isf(alpha / 2, dof - 1)) / math.sqrt(dof - 1)
