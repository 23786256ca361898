r"""Assertions about draws: their distribution, and the moments of Markov chains.

Draws of a chain are autocorrelated, and how much must be estimated from the same draws. The error rates are then
approximate; independent replicates (``assert_moments``) have exact ones, where runs are cheap enough for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.testing.judge import FEWEST, Outcome, Rates, Refuted, TooWeak, broadcast, check_power, judge

if TYPE_CHECKING:
    import xarray

__all__ = ["assert_draws", "assert_same_distribution"]

_DECILES = tuple(i / 10 for i in range(1, 10))
_LEAST_ESS = 100
"""Fewest effective draws: with fewer, an effective sample size says little about itself."""


def assert_same_distribution(
    draws: Any,
    reference: Any | Callable[[np.ndarray], Any],
    *,
    detects: float,
    false_fail: float = 1e-6,
    power: float = 0.99,
) -> Outcome:
    r"""Draws of a scalar follow a distribution: that of other draws, or one with a known distribution function.

    The largest distance :math:`D` between the distribution functions is compared with the bound of Dvoretzky, Kiefer
    and Wolfowitz, :math:`P(D > d) \le 2 \exp(-2 n d^2)` (Massart 1990), and for two samples with :math:`n = n_1 n_2 /
    (n_1 + n_2)` and the factor :math:`e` instead of 2 (Wei and Dudley 2012: proved for equal sizes, and found to hold
    for the unequal ones that were tried). The rates hold for independent draws, of discrete distributions too. For
    autocorrelated draws :math:`n` is the smallest effective sample size of the deciles, an estimate.

    Args:
        draws: Independent draws, shape ``(n,)``, or those of Markov chains, shape ``(chains, draws)``.
        reference: Other draws, likewise, or a function that gives ``P(X <= x)`` for an array ``x``.
        detects: Largest distance between the distribution functions that must be seen, in (0, 1).
        false_fail: Probability that draws of the same distribution fail.
        power: Probability that a distance of ``detects`` fails.

    Raises:
        Refuted: If the distributions differ.
        TooWeak: If a distance of ``detects`` would not be seen.
        DataError: If there are too few draws, or an array has more than two axes.
    """
    rates = Rates(false_fail, power)
    if not 0 < detects < 1:
        raise MethodError(f"detects must lie between 0 and 1, got {detects!r}. Say how large a distance must be seen.")
    x, count = _sample(draws, "draws")
    if callable(reference):
        values, seen = np.unique(x, return_counts=True)
        # Just below each value: the same for a continuous distribution, another for one that jumps there.
        upper, lower = (np.asarray(reference(v), float) for v in (values, np.nextafter(values, -np.inf)))
        if upper.shape != values.shape or not ((upper >= 0) & (upper <= 1 + 1e-9)).all():
            raise DataError("reference must give probabilities, one per value. Give P(X <= x) of an array x.")
        share = np.cumsum(seen) / x.size
        distance, factor = float(np.abs([share - upper, share - seen / x.size - lower]).max()), 2.0
    else:
        other, others = _sample(reference, "reference")
        both = np.concatenate([x, other])
        below, under = (np.searchsorted(np.sort(one), both, side="right") / one.size for one in (x, other))
        distance, factor = float(np.abs(below - under).max()), math.e
        count = count * others / (count + others)
    p_value = min(1.0, factor * math.exp(-2 * count * distance**2))
    if p_value < false_fail:
        raise Refuted(
            f"the distribution functions are {distance:.3g} apart, with {count:.0f} effective draws: p = {p_value:.1e} "
            f"(false_fail {false_fail:g})."
        )
    # At the point of largest distance, by Hoeffding's inequality.
    seen_from = (math.sqrt(math.log(factor / false_fail)) + math.sqrt(-math.log(1 - power))) / math.sqrt(2 * count)
    check_power("the distribution function", np.asarray(seen_from), np.asarray(float(detects)), rates)
    return Outcome(p_value, np.asarray(seen_from))


def _sample(values: Any, name: str) -> tuple[np.ndarray, float]:
    """Draws as a flat array, and how many independent ones they are worth."""
    x = np.asarray(values, float)
    if x.ndim not in (1, 2) or x.shape[-1] < FEWEST:
        raise DataError(
            f"{name} must have shape (n,) or (chains, draws) with at least {FEWEST} draws, got {x.shape}. Test one "
            f"scalar at a time."
        )
    _check_finite(x, name)
    if x.ndim == 1:
        return x, float(x.size)
    from arviz_stats.base import array_stats

    worth: list[Any] = [array_stats.ess(x, chain_axis=0, draw_axis=1, method="quantile", prob=q) for q in _DECILES]
    return x.reshape(-1), float(min(x.size, *worth))


def assert_draws(
    draws: xarray.DataTree | xarray.Dataset | Mapping[str, Any] | Any,
    *,
    means: Any = None,
    sds: Any = None,
    detects: float,
    false_fail: float = 1e-6,
    power: float = 0.99,
    tolerance: float = 0.0,
) -> Outcome:
    """Means and standard deviations of Markov chain draws are what is expected, in Monte Carlo standard errors.

    The standard errors are ArviZ's ``mcse``. They are estimates too, and count as such: a t test with an eighth of the
    effective sample size for degrees of freedom. With four autoregressive chains of 250 to 2000 effective draws, false
    alarms were 0.8 to 1.2 times as frequent as stated at a level of 0.01, and 0.9 to 1.6 times at 0.001. A chain that
    has never left one mode knows nothing of another.

    Args:
        draws: A tree with a group ``posterior``, a Dataset or a mapping, by site; or one array. Axes ``(chain, draw,
            ...)``.
        means: True means by site (only these sites are looked at); for one array, an array of means.
        sds: True standard deviations, likewise.
        detects: Error that must be seen in every number, in standard deviations.
        false_fail: Probability that right draws fail, over all numbers together; approximate.
        power: Probability that an error of ``detects`` in one number fails; approximate.
        tolerance: An error that is known, documented and allowed, in standard deviations.

    Raises:
        Refuted: If a mean or standard deviation is another, a draw is not finite, or a site does not vary.
        TooWeak: If an error of ``detects`` would not be seen, or there are fewer than 100 effective draws.
        DataError: If a site is missing, or shapes do not match.
    """
    from arviz_stats.base import array_stats

    rates = Rates(false_fail, power)
    series, means, sds = _by_site(draws, means, sds)
    names: list[str] = []
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for site, x in series.items():
        shape = x.shape[2:]
        own = x.std((0, 1), ddof=1)
        if not (own > 0).all():
            raise Refuted(f"the draws of {site!r} do not vary in {(own == 0).sum()} of {own.size} entries.")
        scale = broadcast(sds[site], shape, f"sds of {site!r}") if site in sds else own
        if not (scale > 0).all():
            raise DataError(f"sds of {site!r} must be positive. What is constant needs no statistics.")
        entries = [f"{site!r}{list(index) if index else ''}" for index in np.ndindex(shape)]
        for what, given in (("mean", means), ("sd", sds)):
            if site in given:
                estimate = x.mean((0, 1)) if what == "mean" else own
                true = broadcast(given[site], shape, f"{what}s of {site!r}")
                # The error of a standard deviation grows with it: that of the expected one is what counts.
                error = array_stats.mcse(x, chain_axis=0, draw_axis=1, method=what) / (scale if what == "mean" else own)
                worth = array_stats.ess(x, chain_axis=0, draw_axis=1, method=what)
                for column, part in zip(columns, (estimate / scale, true / scale, error, worth), strict=True):
                    column.append(np.ravel(part))
                names += [f"the {what} of {entry} over its sd" for entry in entries]
    estimate, expected, error, worth = (np.concatenate(column) for column in columns)
    least = int(np.argmin(worth))
    if not worth[least] >= _LEAST_ESS:
        raise TooWeak(
            f"{names[least]} rests on {worth[least]:.0f} effective draws, and needs {_LEAST_ESS} at least. Draw more."
        )
    df = float(worth[least]) / 8
    return judge(names, estimate, expected, error, df, detects=detects, tolerance=tolerance, rates=rates)


def _by_site(draws: Any, means: Any, sds: Any) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """Draws as arrays, and expectations, by site."""
    if means is None and sds is None:
        raise MethodError("neither means nor sds are given, so there is nothing to compare. Give one of them.")
    if hasattr(draws, "children"):
        if "posterior" not in draws.children:
            raise DataError("the tree has no group 'posterior'. Give what pg.infer returned, or a Dataset.")
        draws = draws["posterior"].to_dataset()
    if not isinstance(draws, Mapping) and not hasattr(draws, "data_vars"):
        draws, means, sds = ({} if part is None else {"draws": part} for part in (draws, means, sds))
    means, sds = ({} if part is None else part for part in (means, sds))
    if not isinstance(means, Mapping) or not isinstance(sds, Mapping):
        raise DataError("the draws are given by site, so means and sds must be too. Give {site: value}.")
    sites = dict.fromkeys([*means, *sds])
    for site in sites:
        if site not in draws:
            raise DataError(f"the draws have no site {site!r}. They have: {', '.join(map(str, draws))}.")
    series = {site: np.asarray(draws[site], float) for site in sites}
    for site, x in series.items():
        if x.ndim < 2 or x.shape[1] < FEWEST:
            raise DataError(f"{site!r} must have axes (chain, draw, ...) with {FEWEST} draws at least, got {x.shape}.")
        _check_finite(x, f"draws of {site!r}")
    return series, dict(means), dict(sds)


def _check_finite(x: np.ndarray, name: str) -> None:
    if not np.isfinite(x).all():
        raise Refuted(f"{(~np.isfinite(x)).sum()} of the {name} are not finite.")
