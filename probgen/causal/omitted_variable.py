r"""Omitted-variable bias of causal machine learning (Chernozhukov, Cinelli, Newey, Sharma and Syrgkanis, 2022).

An effect that is a linear functional of the regression function, :math:`\theta = E[m(W, g)] = E[Y \alpha(W)]` with the
Riesz representer :math:`\alpha`, changes by leaving out a variable :math:`A` by at most

.. math::
   |\theta_{\text{short}} - \theta| \le |\rho| \, S \, \sqrt{\frac{C_Y^2 \, C_D^2}{1 - C_D^2}}, \qquad
   S^2 = \sigma^2 \nu^2 = E[(Y - g)^2] \, E[\alpha^2],

where :math:`C_Y^2` is the share of the residual variance of the outcome that :math:`A` explains
(its nonparametric partial R2), :math:`1 - C_D^2` the share of the variance of the long representer that the short one
has (in a partially linear model: :math:`C_D^2` is the partial R2 of :math:`A` with the treatment), and :math:`\rho` the
correlation of the two changes. Both expectations are averages over the data, so the bounds
:math:`\theta_\pm = \hat\theta \pm |\rho| S \sqrt{\cdot}` have influence functions
:math:`\psi_\theta \pm |\rho| \sqrt{\cdot} \, (\sigma^2 \psi_{\nu^2} + \nu^2 \psi_{\sigma^2}) / (2 S)`, and confidence
limits of the usual kind: one-sided for each bound.

A benchmark leaves out observed covariates and estimates anew. With :math:`\sigma_s^2, \nu_s^2, \theta_s` without them,
they have the strengths

.. math::
   C_Y^2 = \frac{\sigma_s^2 - \sigma^2}{\sigma^2}, \qquad C_D^2 = \frac{\nu^2 - \nu_s^2}{\nu_s^2}, \qquad
   \rho = \frac{\theta_s - \theta}{\sqrt{(\sigma_s^2 - \sigma^2)(\nu^2 - \nu_s^2)}}

(negative differences, which are noise, count as zero; the correlation is cut at one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.causal.analysis import Analysis, Band, Contour, Curves, Line, Mark, Measure, Scenario
from probgen.causal.root import root
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.wording import figures, interval, percent

__all__ = ["OmittedVariableBias", "RieszEstimate"]

_GRID = 61


@dataclass(frozen=True, eq=False)
class RieszEstimate:
    """An effect with what its omitted-variable bias needs.

    Attributes:
        estimate: The effect.
        residual: Outcome less its prediction, :math:`Y - g(W)`, shape (n,).
        representer: The Riesz representer :math:`\\alpha(W)`, shape (n,).
        moment: :math:`m(W, \\alpha)`, whose mean is that of :math:`\\alpha^2`, shape (n,).
        influence: Influence values of the estimate, with the mean zero, shape (n,); the standard error is their
            standard deviation over :math:`\\sqrt n`.
        treatment: Name of the treatment.
        outcome: Name of the outcome.
        clusters: Cluster of each row, shape (n,); None for independent rows.
        refit: Gives the same estimate without some covariates, by their names, for benchmarks; None if there is no way.
        covariates: Names of the covariates that can be left out.
    """

    estimate: float
    residual: np.ndarray = field(repr=False)
    representer: np.ndarray = field(repr=False)
    moment: np.ndarray = field(repr=False)
    influence: np.ndarray = field(repr=False)
    treatment: str = "treatment"
    outcome: str = "outcome"
    clusters: np.ndarray | None = field(default=None, repr=False)
    refit: Callable[[tuple[str, ...]], RieszEstimate] | None = field(default=None, repr=False)
    covariates: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        lengths = {}
        for name in ("residual", "representer", "moment", "influence"):
            values = np.asarray(getattr(self, name), float)
            if values.ndim != 1 or not np.isfinite(values).all():
                raise DataError(f"{name} must hold one finite number per row, got the shape {values.shape}. Check it.")
            lengths[name] = len(values)
            object.__setattr__(self, name, values)
        if self.clusters is not None:
            lengths["clusters"] = len(self.clusters)
        if len(set(lengths.values())) > 1:
            raise DataError(f"arrays have different lengths, {lengths}. Give one number per row of each.")
        if lengths["residual"] < 2 or self.nu2 <= 0 or self.sigma2 <= 0:
            raise DataError("residuals and representers must vary. Check the predictions and the propensities.")

    @classmethod
    def partially_linear(
        cls,
        estimate: float,
        outcome_residual: Any,
        treatment_residual: Any,
        *,
        treatment: str = "treatment",
        outcome: str = "outcome",
        clusters: np.ndarray | None = None,
    ) -> RieszEstimate:
        """Of a partially linear regression.

        Args:
            estimate: Coefficient of the treatment.
            outcome_residual: :math:`Y - E[Y \\mid X]`, cross-fitted, shape (n,).
            treatment_residual: :math:`D - E[D \\mid X]`, cross-fitted, shape (n,).
            treatment: Name of the treatment.
            outcome: Name of the outcome.
            clusters: Cluster of each row, shape (n,); None for independent rows.
        """
        v = np.asarray(treatment_residual, float)
        u = np.asarray(outcome_residual, float) - estimate * v
        variance = float(np.mean(v**2))
        alpha = v / variance
        moment = np.full_like(alpha, 1 / variance)  # alpha(1, X) - alpha(0, X)
        return cls(estimate, u, alpha, moment, u * alpha, treatment, outcome, clusters)

    @classmethod
    def interactive(
        cls,
        estimate: float,
        y: Any,
        treated: Any,
        prediction_0: Any,
        prediction_1: Any,
        propensity: Any,
        *,
        treatment: str = "treatment",
        outcome: str = "outcome",
        clusters: np.ndarray | None = None,
    ) -> RieszEstimate:
        """Of the average effect of a binary treatment by the doubly robust score.

        Args:
            estimate: The effect.
            y: Outcome, shape (n,).
            treated: 0 or 1, shape (n,).
            prediction_0: Outcome predicted without treatment, shape (n,).
            prediction_1: Outcome predicted with it, shape (n,).
            propensity: Probability of treatment, in (0, 1), shape (n,).
            treatment: Name of the treatment.
            outcome: Name of the outcome.
            clusters: Cluster of each row, shape (n,); None for independent rows.
        """
        y, d, e = (np.asarray(values, float) for values in (y, treated, propensity))
        g0, g1 = np.asarray(prediction_0, float), np.asarray(prediction_1, float)
        if not ((e > 0) & (e < 1)).all():
            raise DataError("propensities must lie between 0 and 1. Trim the units that have no counterpart.")
        alpha = d / e - (1 - d) / (1 - e)
        residual = y - np.where(d == 1, g1, g0)
        influence = g1 - g0 + alpha * residual - estimate
        return cls(estimate, residual, alpha, 1 / e + 1 / (1 - e), influence, treatment, outcome, clusters)

    @property
    def sigma2(self) -> float:
        """Residual variance of the outcome."""
        return float(np.mean(self.residual**2))

    @property
    def nu2(self) -> float:
        """Second moment of the representer, without the bias of squaring: the mean of ``2 moment - representer^2``."""
        return float(np.mean(2 * self.moment - self.representer**2))

    @property
    def scale(self) -> float:
        """The bias of a confounder with :math:`C_Y^2 C_D^2 / (1 - C_D^2) = 1`."""
        return math.sqrt(self.sigma2 * self.nu2)

    def se_of(self, share: float) -> tuple[float, float]:
        """Standard errors of the two bounds for ``share`` times ``scale`` of bias (0: that of the estimate)."""
        psi_sigma2 = self.residual**2 - self.sigma2
        psi_nu2 = 2 * self.moment - self.representer**2 - self.nu2
        psi = (self.sigma2 * psi_nu2 + self.nu2 * psi_sigma2) / (2 * self.scale)
        return self._se(self.influence - share * psi), self._se(self.influence + share * psi)

    def _se(self, influence: np.ndarray) -> float:
        n = len(influence)
        if self.clusters is None:
            return math.sqrt(float(np.mean(influence**2)) / n)
        sums = np.bincount(np.unique(self.clusters, return_inverse=True)[1], weights=influence)
        return math.sqrt(float(sums @ sums)) / n


@dataclass(frozen=True)
class OmittedVariableBias(SensitivityModel):
    """Bounds on an effect from causal machine learning by two nonparametric partial R2.

    Attributes:
        cf_y: Share of the residual variance of the outcome that the confounder explains, in [0, 1].
        cf_d: Share of the variation of the treatment (in general: of the long representer), in [0, 1).
        rho: Largest correlation of its effects on both, in [0, 1]; 1 is the worst case.
    """

    cf_y: float = 0.03
    cf_d: float = 0.03
    rho: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.cf_y <= 1 and 0 <= self.cf_d < 1 and 0 < abs(self.rho) <= 1):
            raise MethodError(
                f"cf_y must lie in [0, 1], cf_d in [0, 1) and rho in (0, 1], got {self.cf_y}, {self.cf_d} and "
                f"{self.rho}. Give shares of variance, not per cent."
            )

    @property
    def share(self) -> float:
        """Bias in units of the scale of the estimate, :math:`|\\rho| \\sqrt{C_Y^2 C_D^2 / (1 - C_D^2)}`."""
        return abs(self.rho) * math.sqrt(self.cf_y * self.cf_d / (1 - self.cf_d))

    def refuses(self, subject: Any) -> str:
        if isinstance(subject, RieszEstimate):
            return ""
        return f"it needs an estimate with residuals and Riesz representer, got {type(subject).__name__}"

    def bounds(self, subject: RieszEstimate) -> tuple[float, float]:
        """Smallest and largest effect that such a confounder allows."""
        return subject.estimate - subject.scale * self.share, subject.estimate + subject.scale * self.share

    def interval(self, subject: RieszEstimate, level: float = 0.95) -> tuple[float, float]:
        """One-sided confidence limits of the two bounds, each of the given level."""
        from scipy.stats import norm

        reach = float(norm.ppf(level))
        (lower, upper), (se_lower, se_upper) = self.bounds(subject), subject.se_of(self.share)
        return lower - reach * se_lower, upper + reach * se_upper

    def benchmark(self, subject: RieszEstimate, *names: str) -> tuple[float, float, float]:
        """``cf_y``, ``cf_d`` and the correlation of observed covariates, as a group, by an estimate without them.

        Raises:
            MethodError: If the estimate cannot be made anew, or the covariates are so strong that none like them can be
                hidden as well (a share of one or more).
            DataError: If a name is not among the covariates.
        """
        if subject.refit is None:
            raise MethodError(
                "benchmarks need the estimate without the covariates. Give refit= to RieszEstimate, or leave them out."
            )
        for name in names:
            if name not in subject.covariates:
                raise DataError(f"there is no covariate {name!r}. {suggestion(name, subject.covariates)}")
        short = subject.refit(names)
        gain_y, gain_d = max(short.sigma2 - subject.sigma2, 0.0), max(subject.nu2 - short.nu2, 0.0)
        cf_y, cf_d = gain_y / subject.sigma2, gain_d / short.nu2
        if cf_y > 1 or cf_d >= 1:
            raise MethodError(
                f"a confounder as strong as {' + '.join(names)} would explain {percent(cf_y)} of the residual variance of "
                f"the outcome and {percent(cf_d)} of the variation of the treatment, which cannot be. Use another."
            )
        change = short.estimate - subject.estimate
        rho = change / math.sqrt(gain_y * gain_d) if gain_y * gain_d > 0 else 0.0
        return cf_y, cf_d, max(-1.0, min(1.0, rho))

    def robustness_value(self, subject: RieszEstimate, null: float = 0.0) -> float:
        """Value of ``cf_y = cf_d`` that is needed to bring the estimate to the null."""
        f = abs(subject.estimate - null) / subject.scale / abs(self.rho)
        return 2 * f / (f + math.sqrt(f**2 + 4)) if f else 0.0

    def robustness_value_of_interval(self, subject: RieszEstimate, null: float = 0.0, level: float = 0.95) -> float:
        """Value of ``cf_y = cf_d`` that is needed to bring the confidence limit to the null; 0 if it is there already."""
        from scipy.stats import norm

        reach = float(norm.ppf(level))
        sign = 1 if subject.estimate >= null else -1

        def margin(r: float) -> float:
            share = abs(self.rho) * r / math.sqrt(1 - r)
            se = subject.se_of(share)[0 if sign > 0 else 1]
            return sign * (subject.estimate - null) - subject.scale * share - reach * se

        if margin(0.0) <= 0:
            return 0.0
        return root(margin, 0.0, self.robustness_value(subject, null))

    def analyse(self, subject: RieszEstimate, question: Question) -> Analysis:
        null, level = question.null, question.level
        rv = self.robustness_value(subject, null)
        rv_interval = self.robustness_value_of_interval(subject, null, level)
        lower, upper = self.bounds(subject)
        limits = self.interval(subject, level)
        excluded = not limits[0] <= null <= limits[1]
        scenarios, marks = [self._scenario(f"cf_y = {self.cf_y:g}, cf_d = {self.cf_d:g}", subject, level)], []
        for group in question.benchmarks or ():
            name = f"1 x {' + '.join(group)}"
            cf_y, cf_d, rho = self.benchmark(subject, *group)
            scenarios.append(OmittedVariableBias(cf_y, cf_d, self.rho)._scenario(name, subject, level, rho))
            marks.append(Mark(name, cf_d, cf_y))
        sentences = (
            f"The estimated effect of {subject.treatment} on {subject.outcome} is {figures(subject.estimate)} (standard "
            f"error {figures(subject.se_of(0.0)[0])}).",
            f"A confounder that explains {100 * self.cf_y:g} % of the residual variance of the outcome and "
            f"{100 * self.cf_d:g} % of that of the treatment would allow effects from {interval((lower, upper))} "
            f"(one-sided {100 * level:.3g} % limits {interval(limits)}: {figures(null)} is "
            f"{'excluded' if excluded else 'included'}).",
            (
                f"To bring the estimate to {figures(null)} it would have to explain {percent(rv)} of both; "
                if rv > 0
                else f"The estimate is {figures(null)} already; "
            )
            + (
                f"to bring the confidence limit there, {percent(rv_interval)}."
                if rv_interval > 0
                else f"the confidence limit includes {figures(null)} without any confounding."
            ),
        )
        return Analysis(
            title="Omitted-variable bias",
            assumption=(
                "A hidden confounder explains at most given shares of the residual variance of the outcome (cf_y) and "
                "of the variation of the treatment (cf_d), without any assumption of linearity."
            ),
            measures=(
                Measure("robustness value", rv, f"of both to bring the estimate to {null:g}", True),
                Measure(
                    "robustness value of the interval", rv_interval, f"of both to bring the limit to {null:g}", True
                ),
            ),
            scenarios=tuple(scenarios),
            sentences=(*sentences, *(self._compared(one, question) for one in scenarios[1:])),
            notes=("Confidence limits take the nuisances as estimated well enough (Neyman orthogonal scores).",),
            contours=(self._contour(subject, question, rv, tuple(marks)),),
            tipping=self._tipping(subject, question, rv, tuple(marks)),
            bounds=self._band(subject, question, rv),
        )

    def _scenario(self, label: str, subject: RieszEstimate, level: float, observed: float | None = None) -> Scenario:
        strengths = {"cf_y": self.cf_y, "cf_d": self.cf_d, "rho": abs(self.rho)}
        more = {} if observed is None else {"rho_observed": observed}
        return Scenario(label, strengths, *self.bounds(subject), self.interval(subject, level), more)

    def _compared(self, one: Scenario, question: Question) -> str:
        limits = one.interval or (math.nan, math.nan)
        inside = limits[0] <= question.null <= limits[1]
        return (
            f"A confounder as strong as {one.label[4:]} (cf_y = {figures(one.strengths['cf_y'])}, cf_d = "
            f"{figures(one.strengths['cf_d'])}) would allow {interval((one.lower, one.upper))} (limits {interval(limits)}: "
            f"{figures(question.null)} is {'included' if inside else 'excluded'})."
        )

    def _contour(self, subject: RieszEstimate, question: Question, rv: float, marks: tuple[Mark, ...]) -> Contour:
        largest = max([1.3 * self.cf_d, 1.3 * self.cf_y, *(1.3 * max(mark.x, mark.y or 0.0) for mark in marks)])
        axis = np.linspace(0, min(max(0.05, 1.6 * rv, largest), 0.98), _GRID)
        share = abs(self.rho) * np.sqrt(axis[:, None] * axis / (1 - axis))
        sign = math.copysign(1, subject.estimate - question.null)
        values = subject.estimate - sign * subject.scale * share
        return Contour("bound of the effect", _D, _Y, axis, axis, values, question.null, marks)

    def _tipping(self, subject: RieszEstimate, question: Question, rv: float, marks: tuple[Mark, ...]) -> Curves:
        f2 = ((subject.estimate - question.null) / subject.scale / self.rho) ** 2
        far = min(max(0.05, 1.6 * rv), 0.98)
        x = np.linspace(far / 200, far, 200)
        y = f2 * (1 - x) / x
        return Curves(_D, _Y, (Line("estimate at the null", x, np.where(y <= 1, y, np.nan)),), None, marks)

    def _band(self, subject: RieszEstimate, question: Question, rv: float) -> Band:
        x = np.linspace(0, min(max(0.05, 1.6 * rv), 0.98), _GRID)
        models = [OmittedVariableBias(float(r), float(r), self.rho) for r in x]
        lower, upper = np.array([one.bounds(subject) for one in models]).T
        limits = np.array([one.interval(subject, question.level) for one in models]).T
        name = f"effect of {subject.treatment}"
        return Band("cf_y = cf_d", name, x, lower, upper, question.null, (limits[0], limits[1]))


_D, _Y = "cf_d: share of the variation of the treatment", "cf_y: share of the residual variance of the outcome"
