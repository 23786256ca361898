r"""What the assertions share: two ways to fail, the two error rates, and the power of a t test.

An estimate :math:`m` with standard error :math:`s`, of :math:`\nu` degrees of freedom, is compared with the expected
value :math:`\mu_0` by :math:`|m - \mu_0| / s`, which exceeds :math:`t = t_\nu^{-1}(1 - \alpha / 2)` with probability
:math:`\alpha` when nothing is wrong. An error of :math:`\delta` true standard errors is seen with probability

.. math:: P(Z + \delta > t W), \qquad Z \sim N(0, 1), \quad \nu W^2 \sim \chi^2_\nu ,

and :math:`\delta^*(\nu, \alpha, \text{power})` is the smallest one that is seen with the power asked for. A test passes
only if :math:`\delta^* s` is at most the error that it is meant to see. As :math:`s` is in both conditions, such an
error passes with a probability of at most one minus the power *whatever the true spread is*: where the spread is so
large that the deviation may hide in it, it must also look small by chance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError

__all__ = ["FEWEST", "Outcome", "Rates", "Refuted", "TooWeak", "broadcast", "judge", "replicates_of", "shift"]

FEWEST = 24
"""Least number of replicates. With fewer, a t test at 1e-6 sees next to nothing, and leans on the normal law."""
_ROUNDING = 8
"""Units in the last place by which numbers that do not vary may differ."""


class Refuted(AssertionError):
    """The numbers contradict what was expected of them."""


class TooWeak(AssertionError):
    """The test could not see the error that it is meant to see, or its assumptions do not hold: it proves nothing."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a test that passed has seen.

    Attributes:
        p_value: Smallest p-value, times the number of entries, at most 1. Uniform, or larger, when nothing is wrong.
        detectable: The smallest error, by entry, that is seen with the power asked for; units as for ``detects``.
    """

    p_value: float
    detectable: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rates:
    """The two error rates of a test.

    Attributes:
        false_fail: Probability that the whole test fails when nothing is wrong.
        power: Probability that it fails when there is an error as large as it is meant to see.
    """

    false_fail: float
    power: float

    def __post_init__(self) -> None:
        if not 0 < self.false_fail < 1:
            raise MethodError(f"false_fail must lie between 0 and 1, got {self.false_fail!r}. 1e-6 is usual.")
        if not 0.5 <= self.power < 1:
            raise MethodError(f"power must be at least 0.5 and below 1, got {self.power!r}. 0.99 is usual.")


def replicates_of(values: Any, name: str = "replicates") -> np.ndarray:
    """Replicates as an array, shape ``(n, ...)``; 32-bit stays what it is.

    Raises:
        DataError: If there are fewer than ``FEWEST``.
        Refuted: If one is not finite.
    """
    x = np.asarray(values)
    if not np.issubdtype(x.dtype, np.floating):
        x = x.astype(float)
    if x.ndim < 1 or len(x) < FEWEST:
        raise DataError(
            f"{name} must have at least {FEWEST} independent replicates along the first axis, got an array of shape "
            f"{x.shape}. Run more of them, with keys of their own."
        )
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        raise Refuted(f"{len(bad)} of the {name} are not finite, the first at {tuple(map(int, bad[0]))}.")
    return x


def broadcast(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An argument with the shape of what it is compared with.

    Raises:
        DataError: If it has another shape, or is not finite.
    """
    array = np.asarray(value, float)
    if not np.isfinite(array).all():
        raise DataError(f"{name} must be finite, got {value!r}. Correct {name}.")
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise DataError(
            f"{name} has shape {array.shape}, but what it is compared with has shape {shape}. Give one value per entry."
        ) from error


@functools.lru_cache(maxsize=1024)
def shift(df: float, level: float, power: float) -> float:
    r""":math:`\delta^*`: the smallest error, in standard errors, that a two-sided t test sees with a given power.

    Args:
        df: Degrees of freedom; infinite for a known standard error.
        level: Probability of rejection without an error.
        power: Probability of rejection with it.
    """
    from scipy import optimize, stats

    critical = float(stats.t.isf(level / 2, df))
    x = np.linspace(-8.0, 8.0, 801)
    weight = stats.norm.pdf(x) / stats.norm.pdf(x).sum()
    ratio = np.ones_like(x) if np.isinf(df) else np.sqrt(stats.chi2.isf(stats.norm.sf(x), df) / df)

    def excess(delta: float) -> float:
        return float(weight @ stats.norm.cdf(delta - critical * ratio)) - power

    root: Any = optimize.brentq(excess, 0.0, critical * ratio.max() + 10)
    return float(root)


def judge(
    what: str | Sequence[str],
    estimate: np.ndarray,
    expected: np.ndarray,
    error: np.ndarray,
    df: float,
    *,
    detects: Any,
    tolerance: float | np.ndarray,
    rates: Rates,
    resolution: float = float(np.finfo(float).eps),
) -> Outcome:
    """Compare estimates with what is expected, entry by entry, at a family-wise level.

    Args:
        what: What the estimates are, in words: one name for all, or one per entry.
        estimate: Estimates.
        expected: What they should be, same shape.
        error: Their standard errors, same shape.
        df: Degrees of freedom of the standard errors.
        detects: Error that must be seen, broadcastable to that shape.
        tolerance: Error that is known and allowed, same units.
        rates: Error rates.
        resolution: Machine epsilon of the numbers that the estimates are made of.

    Raises:
        Refuted: If an estimate is too far off.
        TooWeak: If an error of ``detects`` would not be seen.
    """
    from scipy import stats

    shape, count = estimate.shape, max(1, estimate.size)
    wanted = broadcast(detects, shape, "detects")
    if not (wanted > 0).all():
        raise MethodError(f"detects must be positive, got {detects!r}. Say how large an error the test must see.")
    allowed = broadcast(tolerance, shape, "tolerance")
    if not (allowed >= 0).all():
        raise MethodError(f"tolerance must not be negative, got {tolerance!r}. 0 allows no error.")
    gap = estimate - expected
    error = np.hypot(error, _ROUNDING * resolution * np.maximum(np.abs(estimate), np.abs(expected)))
    beyond = np.maximum(np.abs(gap) - allowed, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(beyond > 0, beyond / error, 0.0)
    p_value = 2 * stats.t.sf(score, df)
    level = rates.false_fail / count
    if (p_value < level).any():
        where = np.unravel_index(np.argmax(score), shape)
        more = f"; {(p_value < level).sum()} of {count} entries are off" if count > 1 else ""
        off = f" beyond the tolerance of {allowed[where]:g}" if allowed[where] else ""
        raise Refuted(
            f"{named(what, where, shape)} is {estimate[where]:.6g}, expected {expected[where]:.6g}: {score[where]:.1f} "
            f"standard errors of {error[where]:.2g}{off}, p = {p_value[where]:.1e} "
            f"(false_fail {rates.false_fail:g}{more})."
        )
    detectable = allowed + shift(float(df), level, rates.power) * error
    check_power(what, detectable, wanted, rates)
    return Outcome(float(min(1.0, count * p_value.min(initial=1.0))), np.asarray(detectable))


def check_power(what: str | Sequence[str], detectable: np.ndarray, wanted: np.ndarray, rates: Rates) -> None:
    """Raise ``TooWeak`` where an error of the size that is wanted would not be seen."""
    ratio = detectable / wanted
    if (ratio > 1).any():
        where = np.unravel_index(np.argmax(ratio), ratio.shape)
        raise TooWeak(
            f"the test is too weak: it sees an error of {detectable[where]:.3g} in "
            f"{named(what, where, ratio.shape)} with a probability of {rates.power:g}, and must see "
            f"{wanted[where]:.3g}. Give it more or longer replicates "
            f"(about {np.ceil(ratio[where] ** 2):.0f} times the work), or a larger detects."
        )


def named(what: str | Sequence[str], where: tuple[Any, ...], shape: tuple[int, ...]) -> str:
    """An entry in words."""
    if not isinstance(what, str):
        return what[int(np.ravel_multi_index(where, shape))]
    return f"{what} at {tuple(map(int, where))}" if where else what
