"""An effect that was estimated from data, with its standard error and everything that it was made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.omitted_variable import RieszEstimate
from probgen.causal.overlap import Overlap
from probgen.causal.target import ATE, Target
from probgen.causal.wording import figures, interval

if TYPE_CHECKING:
    import xarray

    from probgen.causal.adjustment_question import Adjustment
    from probgen.causal.estimator import Estimator
    from probgen.causal.problem import Problem

__all__ = ["Estimate", "standard_error"]


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """An estimated effect; prints itself.

    Attributes:
        value: The effect.
        se: Its standard error (the posterior standard deviation where there are draws); NaN where the estimator has
            none.
        effect: Which effect: ``"ATE"``, ``"ATT"``, ``"ATO"``, ``"LATE"``, or ``"coefficient"``.
        question: What was asked.
        estimator: The estimator.
        problem: The units it was fitted to, as arrays; None for a fitted program.
        target: Whose effect.
        influence: Influence values of the units, with the mean zero, shape (n,); None where there are none.
        propensity: Probability of treatment by unit, shape (n,), or None.
        predictions: Outcome predicted without and with treatment, shape (2, n), or None.
        residuals: Residuals of outcome and treatment after regression on the covariates, shape (2, n), or None.
        draws: Posterior draws of the effect, dims ``(chain, draw)``, or None.
        notes: What to know about the number.
    """

    value: float
    se: float
    effect: str
    question: Adjustment
    estimator: Estimator
    problem: Problem | None = None
    target: Target = ATE()  # noqa: RUF009
    influence: np.ndarray | None = None
    propensity: np.ndarray | None = None
    predictions: np.ndarray | None = None
    residuals: np.ndarray | None = None
    draws: xarray.DataArray | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def treatment(self) -> str:
        """Name of the treatment."""
        return self.question.treatment

    @property
    def outcome(self) -> str:
        """Name of the outcome."""
        return self.question.outcome

    @property
    def method(self) -> str:
        """Name of the estimator."""
        return type(self.estimator).__name__

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Limits of the normal confidence interval; of the equal-tailed posterior interval where there are draws.

        Raises:
            MethodError: If the level is not between 0 and 1, or there is no standard error.
        """
        if not 0 < level < 1:
            raise MethodError(f"level must lie between 0 and 1, got {level}. Use 0.95, for example.")
        if self.draws is not None:
            low, high = np.quantile(self.draws.values, [(1 - level) / 2, (1 + level) / 2])
            return float(low), float(high)
        if math.isnan(self.se):
            raise MethodError(
                f"{self.method} has no standard error with these learners. Use AIPW or PartiallyLinear, or "
                f"pg.causal.refute with Bootstrap()."
            )
        from scipy.stats import norm

        reach = float(norm.ppf((1 + level) / 2)) * self.se
        return self.value - reach, self.value + reach

    @property
    def overlap(self) -> Overlap:
        """How comparable treated and controls are.

        Raises:
            MethodError: If the estimator has no propensities.
        """
        if self.propensity is None or self.problem is None:
            raise MethodError(f"{self.method} has no propensities. Use IPW, AIPW or TMLE for an account of overlap.")
        return Overlap.of(self.problem, self.propensity, self.target)

    def riesz(self) -> RieszEstimate:
        """The estimate with its residuals and representer, for the sensitivity analysis of omitted variables.

        Raises:
            MethodError: If the estimator does not have both.
        """
        names = {"treatment": self.treatment, "outcome": self.outcome}
        problem = self.problem
        if (
            problem is not None
            and self.effect == "ATE"
            and self.propensity is not None
            and self.predictions is not None
        ):
            return RieszEstimate.interactive(
                self.value,
                problem.y,
                problem.t,
                self.predictions[0],
                self.predictions[1],
                self.propensity,
                clusters=problem.clusters,
                **names,
            )
        if problem is not None and self.effect == "coefficient" and self.residuals is not None:
            return RieszEstimate.partially_linear(
                self.value, self.residuals[0], self.residuals[1], clusters=problem.clusters, **names
            )
        raise MethodError(
            f"{self.method} of the {self.effect} has no residuals and Riesz representer. Estimate the ATE with AIPW or "
            f"TMLE, or a coefficient with PartiallyLinear."
        )

    def to_datatree(self) -> xarray.DataTree:
        """Groups ``estimate`` (scalars), ``units`` (dim ``unit``), and ``posterior`` where there are draws."""
        import xarray

        scalars: dict[str, Any] = {"value": self.value, "se": self.se}
        if self.draws is not None or not math.isnan(self.se):
            scalars["lower"], scalars["upper"] = self.interval()
        groups = {"estimate": xarray.Dataset(scalars)}
        units: dict[str, Any] = {}
        if self.influence is not None:
            units["influence"] = ("unit", self.influence)
        if self.propensity is not None:
            units["propensity"] = ("unit", self.propensity)
        if self.predictions is not None:
            units["prediction"] = (("arm", "unit"), self.predictions)
        if self.residuals is not None:
            units["residual"] = (("of", "unit"), self.residuals)
        if units and self.problem is not None:
            coords: dict[str, Any] = {"unit": self.problem.rows}
            if "prediction" in units:
                coords["arm"] = [0, 1]
            if "residual" in units:
                coords["of"] = ["outcome", "treatment"]
            groups["units"] = xarray.Dataset(units, coords)
        if self.draws is not None:
            groups["posterior"] = self.draws.to_dataset(name=self.effect)
        tree = xarray.DataTree.from_dict(groups)
        tree.attrs |= {"effect": self.effect, "method": self.method, "notes": " ".join(self.notes)}
        tree.attrs |= {"treatment": self.treatment, "outcome": self.outcome}
        return tree

    def __repr__(self) -> str:
        lines = [f"Estimate: {self.effect} of {self.treatment} on {self.outcome} by {self.method}"]
        if math.isnan(self.se) and self.draws is None:
            lines.append(f"  {figures(self.value, 4)}, no standard error")
        else:
            word = "standard error" if self.draws is None else "posterior sd"
            lines.append(f"  {figures(self.value, 4)}, {word} {figures(self.se)}, 95 % {interval(self.interval())}")
        problem = self.problem
        if problem is not None:
            count = f"{len(problem):,} units"
            if problem.is_binary:
                count += f", {int(problem.t.sum()):,} treated"
            if problem.clusters is not None:
                count += f", {len(np.unique(problem.clusters)):,} clusters"
            lines.append(f"  {count}, {len(problem.columns)} columns of covariates")
        if self.propensity is not None:
            o = self.overlap
            lines.append(
                f"  propensities {figures(o.lowest, 2)} to {figures(o.highest, 2)}; effective units: "
                f"{o.effective_treated:.0f} treated, {o.effective_controls:.0f} controls"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def standard_error(influence: np.ndarray, clusters: np.ndarray | None) -> float:
    """Standard error of a mean of influence values, shape (n,); sums over clusters are independent."""
    n = len(influence)
    if clusters is not None:
        influence = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=influence)
    return math.sqrt(float(influence @ influence)) / n
