"""Both tails of discrete distributions: P(V <= k) and P(V > k), each accurate where it is small."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import betainc, gammainc, gammaincc

__all__ = ["Tails", "probabilities", "tails_of"]

type Tails = Callable[[Any, Array], tuple[Array, Array]]
"""From a distribution and integers k (as floats, from -1) to P(V <= k) and P(V > k)."""


def probabilities(fn: Any) -> Array:
    """Probabilities of the values 0, 1, ... of a categorical distribution, along a last axis."""
    if isinstance(fn, dist.CategoricalLogits):
        return jax.nn.softmax(jnp.asarray(fn.logits), -1)
    probs = jnp.asarray(fn.probs)
    return probs / jnp.sum(probs, -1, keepdims=True)


def tails_of(fn: Any) -> tuple[Tails, int | None] | None:
    """The tails of a distribution, and how many values it has from 0; ``None`` where that is unbounded.

    Args:
        fn: A distribution over 0, 1, 2, ... without wrappers.

    Returns:
        ``None`` for distributions whose tails are not known here.
    """
    if isinstance(fn, dist.BernoulliProbs | dist.BernoulliLogits):
        return _bernoulli, 2
    if isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits):
        return _categorical, probabilities(fn).shape[-1]
    if isinstance(fn, dist.ZeroInflatedProbs):
        inner = _unwrapped(fn.base_dist)
        known = tails_of(inner)
        return None if known is None else (_ZeroInflated(known[0]), known[1])
    for family, tails in _UNBOUNDED:
        if isinstance(fn, family):
            return tails, None
    return None


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _bernoulli(fn: Any, k: Array) -> tuple[Array, Array]:
    if isinstance(fn, dist.BernoulliLogits):
        no, yes = jax.nn.sigmoid(-jnp.asarray(fn.logits)), jax.nn.sigmoid(jnp.asarray(fn.logits))
    else:
        yes = jnp.asarray(fn.probs)
        no = 1 - yes
    return _within(k, k >= 1, no, yes)


def _categorical(fn: Any, k: Array) -> tuple[Array, Array]:
    probs = probabilities(fn)
    upto = jnp.cumsum(probs, -1)
    above = jnp.flip(jnp.cumsum(jnp.flip(probs, -1), -1), -1) - probs
    batch = jnp.broadcast_shapes(k.shape, probs.shape[:-1])
    at = jnp.broadcast_to(jnp.clip(k, 0, probs.shape[-1] - 1).astype(int), batch)[..., None]
    both = [
        jnp.take_along_axis(jnp.broadcast_to(p, (*batch, p.shape[-1])), at, -1)[..., 0]
        for p in (upto, jnp.maximum(above, 0))
    ]
    return _within(k, k >= probs.shape[-1] - 1, *both)


@dataclasses.dataclass(frozen=True)
class _ZeroInflated:
    """Zero for certain with probability ``gate``, else the base."""

    inner: Tails

    def __call__(self, fn: Any, k: Array) -> tuple[Array, Array]:
        upto, above = self.inner(_unwrapped(fn.base_dist), k)
        gate = jnp.asarray(fn.gate)
        return _within(k, False, gate + (1 - gate) * upto, (1 - gate) * above)


def _uniform(fn: Any, k: Array) -> tuple[Array, Array]:
    low, high = jnp.asarray(fn.low), jnp.asarray(fn.high)
    count = high - low + 1.0
    # Values below low have probability zero, like any integer below the smallest value.
    upto, above = jnp.clip((k - low + 1) / count, 0, 1), jnp.clip((high - k) / count, 0, 1)
    return _within(k, k >= high, upto, above)


def _poisson(fn: Any, k: Array) -> tuple[Array, Array]:
    rate = jnp.asarray(fn.rate, float)
    at = jnp.maximum(k, 0) + 1
    return _within(k, False, gammaincc(at, rate), gammainc(at, rate))


def _binomial(fn: Any, k: Array) -> tuple[Array, Array]:
    n, p = jnp.asarray(fn.total_count, float), jnp.asarray(fn.probs)
    inside = jnp.clip(k, 0, jnp.maximum(n - 1, 0))
    size = jnp.maximum(n, 1) - inside
    return _within(k, k >= n, betainc(size, inside + 1, 1 - p), betainc(inside + 1, size, p))


def _geometric(fn: Any, k: Array) -> tuple[Array, Array]:
    log_q = jnp.log1p(-jnp.asarray(fn.probs))
    exponent = (jnp.maximum(k, 0) + 1) * log_q
    return _within(k, False, -jnp.expm1(exponent), jnp.exp(exponent))


def _gamma_poisson(fn: Any, k: Array) -> tuple[Array, Array]:
    a, rate = jnp.asarray(fn.concentration, float), jnp.asarray(fn.rate, float)
    at = jnp.maximum(k, 0) + 1
    return _within(k, False, betainc(a, at, rate / (1 + rate)), betainc(at, a, 1 / (1 + rate)))


def _within(k: Array, last: Array | bool, upto: Array, above: Array) -> tuple[Array, Array]:
    """Nothing lies below 0, nothing above the last value."""
    upto, above = jnp.where(k < 0, 0.0, upto), jnp.where(k < 0, 1.0, above)
    return jnp.where(last, 1.0, upto), jnp.where(last, 0.0, above)


_UNBOUNDED: tuple[tuple[Any, Tails], ...] = (
    (dist.Poisson, _poisson),
    ((dist.BinomialProbs, dist.BinomialLogits), _binomial),
    ((dist.GeometricProbs, dist.GeometricLogits), _geometric),
    (dist.GammaPoisson, _gamma_poisson),
    (dist.DiscreteUniform, _uniform),
)
