"""Overlap: whether units of both arms can be compared, in numbers, and the error where they cannot."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import MethodError, ProbgenWarning
from probgen.causal.target import ATE, ATO, ATT, Target

if TYPE_CHECKING:
    from probgen.causal.problem import Problem

__all__ = ["Overlap", "Trim", "check_overlap"]

_NONE, _LITTLE = 1e-6, 0.01
_SHOWN = 5


@dataclass(frozen=True)
class Trim:
    """Leave out units whose propensity is outside some limits; the effect is then that on the others.

    After Crump, Hotz, Imbens and Mitnik (2009). The propensity is fitted again to the units that are left.

    Attributes:
        low: Lower limit, at least 0.
        high: Upper limit, at most 1.
    """

    low: float = 0.1
    high: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise MethodError(f"limits must have 0 <= low < high <= 1, got {self.low}, {self.high}. Use 0.1 and 0.9.")


@dataclass(frozen=True)
class Overlap:
    """How comparable the arms are.

    Attributes:
        treated: Number of treated units.
        controls: Number of control units.
        lowest: Lowest propensity.
        highest: Highest propensity.
        outside: Number of units with propensities outside 0.1 to 0.9.
        effective_treated: Effective number of treated units after weighting (Kish).
        effective_controls: Effective number of control units.
        imbalance: By column of the covariates the difference of means in pooled standard deviations, before weighting.
        imbalance_weighted: The same after it.
    """

    treated: int
    controls: int
    lowest: float
    highest: float
    outside: int
    effective_treated: float
    effective_controls: float
    imbalance: dict[str, float]
    imbalance_weighted: dict[str, float]

    @classmethod
    def of(cls, problem: Problem, propensity: np.ndarray, target: Target = ATE()) -> Overlap:
        """Of propensities of shape (n,)."""
        treated, e = problem.treated, propensity
        w1, w0 = target.weights(e)
        w1, w0 = w1[treated], w0[~treated]
        x1, x0 = problem.x[treated], problem.x[~treated]
        pooled = np.sqrt((x1.var(axis=0) + x0.var(axis=0)) / 2)
        pooled = np.where(pooled > 0, pooled, 1.0)
        before = (x1.mean(axis=0) - x0.mean(axis=0)) / pooled
        after = (w1 @ x1 / w1.sum() - w0 @ x0 / w0.sum()) / pooled
        return cls(
            int(treated.sum()),
            int((~treated).sum()),
            float(e.min()),
            float(e.max()),
            int(((e < 0.1) | (e > 0.9)).sum()),
            float(w1.sum() ** 2 / (w1 @ w1)),
            float(w0.sum() ** 2 / (w0 @ w0)),
            dict(zip(problem.columns, before.tolist(), strict=True)),
            dict(zip(problem.columns, after.tolist(), strict=True)),
        )


def check_overlap(problem: Problem, e: np.ndarray, target: Target | None = None, event: str = "be treated") -> None:
    """Raise where some units have no counterpart; warn where weights are very large.

    Args:
        problem: The data.
        e: Probabilities of the event, shape (n,).
        target: Whose effect; None for the ATE.
        event: What has these probabilities, for the message.

    Raises:
        MethodError: If a propensity is 0 or 1 where the target needs the other arm; names the rows.
    """
    if isinstance(target, ATO):
        return
    margin = 1 - e if isinstance(target, ATT) else np.minimum(e, 1 - e)
    for limit in (_NONE, _LITTLE):
        rows = problem.rows[margin < limit]
        if len(rows) == 0:
            continue
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
        what = f"{len(rows)} of {len(e)} units (rows {shown})"
        advice = (
            "Trim them (trim=pg.causal.Trim(0.1, 0.9)), drop covariates that decide on treatment, or ask for ATO()."
        )
        if limit == _NONE:
            raise MethodError(f"no overlap: {what} were bound to {event}, or not to. {advice}")
        warnings.warn(
            f"little overlap: {what} have propensities within {_LITTLE} of 0 or 1, and their weights decide the "
            f"estimate. {advice}",
            ProbgenWarning,
            stacklevel=4,
        )
