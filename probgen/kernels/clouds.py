"""Numbers of a cloud of weighted particles: the next power of its likelihood, its covariance, the error of its mean."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.typing import Scalar

__all__ = ["covariance_root", "evenly", "log_ess", "next_power", "relative_variance"]

_ENOUGH = 10
"""Effective particles per dimension that make a sample covariance good enough as it is."""


def next_power(log_w: Array, term: Array, before: Scalar, share: float) -> Scalar:
    """The power at which the effective sample size is the wanted one; 1 if it is not less there.

    The equation for its log is solved by false position (Illinois), to rounding. Particles whose likelihood is zero are
    lost at any power above ``before``: the wanted share is one of what is left.
    """
    impossible = (term == -jnp.inf) | jnp.isnan(term)
    possible = jnp.where(impossible, -jnp.inf, log_w)
    finite = jnp.where(possible == -jnp.inf, 0.0, term)

    count = log_w.shape[0]
    wanted = log_ess(possible) - log_ess(log_w) + math.log(share * count)

    def excess(step: Scalar) -> Scalar:
        return log_ess(possible + step * finite) - wanted

    class Search(NamedTuple):
        low: Scalar
        high: Scalar
        at_low: Scalar
        at_high: Scalar
        side: Array
        step: Scalar
        value: Scalar
        count: Array

    tolerance = 4 * jnp.finfo(term.dtype).eps * math.sqrt(count)

    def more(s: Search) -> Array:
        return (jnp.abs(s.value) > tolerance) & (s.high - s.low > jnp.finfo(term.dtype).eps * s.high) & (s.count < 100)

    def narrower(s: Search) -> Search:
        step = (s.low * s.at_high - s.high * s.at_low) / (s.at_high - s.at_low)
        value = excess(step)
        up = value > 0
        # The end that stays for the second time counts half: otherwise it might stay for ever.
        return Search(
            jnp.where(up, step, s.low),
            jnp.where(up, s.high, step),
            jnp.where(up, value, jnp.where(s.side < 0, s.at_low / 2, s.at_low)),
            jnp.where(up, jnp.where(s.side > 0, s.at_high / 2, s.at_high), value),
            jnp.where(up, 1, -1),
            step,
            value,
            s.count + 1,
        )

    most = 1 - before
    at_most, zero = excess(most), jnp.zeros_like(most)
    start = Search(zero, most, excess(zero), at_most, jnp.zeros((), int), most, at_most, jnp.zeros((), int))
    enough = ~(at_most < 0)  # also where no particle is left, which the log evidence will tell
    found = jax.lax.while_loop(lambda s: ~enough & more(s), narrower, start)
    return jnp.where(enough, 1.0, jnp.minimum(before + found.step, 1.0))


def log_ess(log_w: Array) -> Scalar:
    """Log of the effective sample size of log weights of any normalisation."""
    return 2 * logsumexp(log_w) - logsumexp(2 * log_w)


def relative_variance(means: Array) -> Scalar:
    """Variance of the mean of independent values over the square of the mean."""
    return jnp.var(means, ddof=1) / means.shape[0] / jnp.mean(means) ** 2


def evenly(u: Array, log_w: Array, count: int) -> Array:
    """``count`` of the weighted points ``u``, equally weighted: systematic resampling without chance."""
    edges = jnp.cumsum(jax.nn.softmax(log_w))
    at = (jnp.arange(count) + 0.5) / count * edges[-1]
    return u[jnp.minimum(jnp.searchsorted(edges, at), u.shape[0] - 1)]


def covariance_root(u: Array, log_w: Array, otherwise: Array) -> Array:
    """Cholesky factor of the covariance of a cloud, or standard deviations where ``otherwise`` is a vector.

    A sample covariance is good to a relative error of the root of ``dim / particles`` along every direction, however
    unequal they are. Of fewer than ``_ENOUGH * dim`` effective particles, correlations are shrunk by as much as they
    could be noise (Schäfer and Strimmer 2005, their target D).
    """
    w = jax.nn.softmax(log_w)[:, None]
    u = jnp.where(w > 0, u, 0.0)  # not 0 * inf
    centred = u - jnp.sum(w * u, 0)
    sd = jnp.sqrt(jnp.sum(w * centred**2, 0))
    spread = sd > 10 * jnp.finfo(u.dtype).eps * jnp.max(jnp.abs(u), 0)  # else all that differs is rounding
    if otherwise.ndim == 1:
        return jnp.where(jnp.isfinite(sd) & spread, sd, otherwise)
    dim = u.shape[1]
    z = centred / sd
    r = (w * z).T @ z
    off = ~jnp.eye(dim, dtype=bool)
    noise, signal = jnp.sum(jnp.where(off, (1 - r**2) ** 2, 0.0)) * jnp.sum(w**2), jnp.sum(jnp.where(off, r**2, 0.0))
    few = (1 / jnp.sum(w**2) < _ENOUGH * dim) & (signal > 0)
    kept = jnp.where(few, 1 - jnp.minimum(noise / jnp.where(few, signal, 1.0), 1.0), 1.0)
    root = sd[:, None] * jnp.linalg.cholesky(jnp.where(off, kept * r, 1 + 10 * jnp.finfo(u.dtype).eps * dim))
    return jnp.where(jnp.all(jnp.isfinite(root)) & jnp.all(spread), root, otherwise)
