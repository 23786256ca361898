"""Mechanisms of discrete sites and of mixtures, whose values say where their noise lies and not what it is.

The mathematics stands in ``probgen.program.noise``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from probgen.base.typing import PRNGKey
from probgen.program.noise import NoiseMap
from probgen.program.tails import Tails, probabilities

__all__ = ["FreshNoise", "GumbelNoise", "MixtureNoise", "Steps"]

_TOLERANCE = 64
"""Units of rounding by which two executions of the same formula may differ."""
_STEPS = 128
"""Doublings and halvings that find an integer; counts above 2**63 are out of reach."""
_FEW = 16
"""So many values are compared one by one."""


@dataclasses.dataclass(frozen=True)
class Steps(NoiseMap):
    """An ordered discrete site by its quantile function.

    The noise is ``u`` where that is at most 1/2, and ``u - 1``, a negative number, above.

    Attributes:
        tails: Both tails of the distribution.
        count: Number of values; ``None`` where that is unbounded.
    """

    tails: Tails
    count: int | None
    assumption: str = "increasing in the noise (monotone)"

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        below, above_below, upto, above = self.around(fn, value)
        tiny = jnp.finfo(upto.dtype).tiny
        r = jax.random.uniform(key, jnp.broadcast_shapes(upto.shape, jnp.shape(value)), upto.dtype, minval=tiny)
        low = jnp.clip(below + r * (upto - below), jnp.nextafter(below, jnp.ones_like(below)), upto)
        high = jnp.clip(above + (1 - r) * (above_below - above), above, jnp.nextafter(above_below, -below))
        noise = jnp.where(low <= 0.5, low, -jnp.maximum(high, tiny))
        possible = jnp.where(upto <= 0.5, upto > below, above_below > above)
        return jnp.where(possible, noise, jnp.nan)

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""

        def reaches(k: Array, lean: Array | float) -> Array:
            """Whether the noise lies at or below P(V <= k); ``lean`` says in whose favour rounding is counted."""
            upto, above = self.tails(fn, k)
            slack = lean * _TOLERANCE * jnp.finfo(upto.dtype).eps
            return jnp.where(noise > 0, noise <= upto * (1 + slack), -noise >= above * (1 - slack))

        factual = jnp.broadcast_to(jnp.asarray(value, noise.dtype), noise.shape)
        if self.count is not None and self.count <= _FEW:
            values = jnp.arange(self.count - 1.0, dtype=noise.dtype).reshape(-1, *(1,) * noise.ndim)
            lean = jnp.where(values == factual, 1.0, jnp.where(values == factual - 1, -1.0, 0.0))
            return jnp.sum(~reaches(jnp.broadcast_to(values, lean.shape), lean), 0).astype(noise.dtype)
        return _smallest(reaches, factual)

    def around(self, fn: Any, value: Array) -> tuple[Array, Array, Array, Array]:
        """``P(V < v), P(V >= v), P(V <= v), P(V > v)``."""
        k = jnp.asarray(value, float)
        (below, upto), (above_below, above) = self.tails(fn, jnp.stack([k - 1, k]))
        return below, above_below, upto, above


@dataclasses.dataclass(frozen=True)
class GumbelNoise(NoiseMap):
    """A categorical site by the largest of its perturbed log probabilities; the noise has one more axis."""

    assumption: str = "Gumbel-max"

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        key_top, key_rest = jax.random.split(key)
        log_p = jnp.log(probabilities(fn))
        log_p = jnp.broadcast_to(log_p, (*jnp.shape(value), log_p.shape[-1]))
        # The largest is Gumbel whatever it was; the others lie below it.
        top = jax.random.gumbel(key_top, (*jnp.shape(value), 1), log_p.dtype)
        free = jax.random.gumbel(key_rest, log_p.shape, log_p.dtype)
        rest = -jnp.logaddexp(log_p - top, -free)
        won = jnp.arange(log_p.shape[-1]) == jnp.asarray(value)[..., None]
        return jnp.where(won, jnp.where(jnp.isfinite(log_p), top - log_p, jnp.nan), rest)

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""
        scores = jnp.log(probabilities(fn)) + noise
        best = jnp.max(scores, -1)
        mine = jnp.take_along_axis(scores, jnp.asarray(value).astype(int)[..., None], -1)[..., 0]
        kept = mine >= best - _TOLERANCE * jnp.finfo(best.dtype).eps * (1 + jnp.abs(best))
        return jnp.where(kept, value, jnp.argmax(scores, -1))


@dataclasses.dataclass(frozen=True)
class FreshNoise(NoiseMap):
    """A discrete site that keeps its value while its distribution stays, and else is drawn independently of it.

    Attributes:
        base: How it is drawn; worlds in which its distribution is the same agree.
    """

    base: Steps | GumbelNoise
    assumption: str = "independent of the factual value as soon as the distribution changes"

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        key_value, key_noise, key_possible = jax.random.split(key, 3)
        other = fn.expand(jnp.shape(value)).sample(key_value)
        possible = jnp.isfinite(_summed(self.base.abduct(key_possible, fn, value), jnp.ndim(value)))
        sign = jnp.stack(jnp.broadcast_arrays(*self._signature(fn, value)), -1)
        return self.base.abduct(key_noise, fn, other), jnp.where(possible[..., None], sign, jnp.nan)

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""
        sign = jnp.stack(jnp.broadcast_arrays(*self._signature(fn, value)), -1)
        near = jnp.abs(sign - noise[1]) <= _TOLERANCE * jnp.finfo(sign.dtype).eps * jnp.maximum(sign, noise[1])
        return jnp.where(jnp.all(near, -1), value, self.base.again(fn, noise[0], value))

    def _signature(self, fn: Any, value: Array) -> tuple[Array, ...]:
        """Numbers that tell one distribution from another."""
        if isinstance(self.base, Steps):
            return self.base.around(fn, value)
        probs = probabilities(fn)
        probs = jnp.broadcast_to(probs, (*jnp.shape(value), probs.shape[-1]))
        return tuple(jnp.moveaxis(probs, -1, 0))


@dataclasses.dataclass(frozen=True)
class MixtureNoise(NoiseMap):
    """A mixture of one family: Gumbel-max noise of the component, and the noise of every component.

    Attributes:
        base: How a component and its noise belong together.
        unwrap: Takes masks, expansion and reinterpreted axes off a distribution.
    """

    base: NoiseMap
    unwrap: Callable[[Any], Any]
    assumption: str

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        key_which, key_others, key_mixing, key_noise = jax.random.split(key, 4)
        mixing, component = fn.mixing_distribution, fn.component_distribution
        here = jnp.expand_dims(value, value.ndim - fn.event_dim)
        batch = value.shape[: value.ndim - fn.event_dim]
        log_joint = jnp.log(probabilities(mixing)) + component.log_prob(here)
        which = jax.random.categorical(key_which, log_joint)
        which = jnp.where(jnp.any(jnp.isfinite(log_joint), -1), which, -1)
        others = component.expand((*batch, fn.mixture_size)).sample(key_others)
        won = (jnp.arange(fn.mixture_size) == which[..., None]).reshape(*batch, fn.mixture_size, *(1,) * fn.event_dim)
        values = jnp.where(won, here, others)
        noise = self.base.abduct(key_noise, self.unwrap(component), values)
        choice = GumbelNoise().abduct(key_mixing, mixing, which)
        return jnp.where(which[..., None] >= 0, choice, jnp.nan), noise

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""
        batch = value.shape[: value.ndim - fn.event_dim]
        scores = jnp.log(probabilities(fn.mixing_distribution)) + noise[0]
        which = jnp.argmax(scores, -1)
        here = jnp.expand_dims(value, len(batch))
        every = jnp.broadcast_to(here, (*batch, fn.mixture_size, *value.shape[len(batch) :]))
        values = self.base.again(self.unwrap(fn.component_distribution), noise[1], every)
        at = which.reshape(*which.shape, 1, *(1,) * fn.event_dim)
        return jnp.take_along_axis(values, at, which.ndim).squeeze(which.ndim)


def _smallest(reaches: Callable[[Array, Array], Array], start: Array) -> Array:
    """The smallest integer from 0 that reaches its goal: first a look at ``start`` and the one below, then doubling and
    halving."""

    def apart(state: tuple[Array, ...]) -> Array:
        step, low, high, _ = state
        return (step < _STEPS) & jnp.any(high - low > 1)

    def look(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, low, high, probe = state
        lean = jnp.where(step == 0, 1.0, jnp.where(step == 1, -1.0, 0.0))
        enough = reaches(probe, lean)
        low, high = jnp.where(enough, low, probe), jnp.where(enough, probe, high)
        middle = jnp.where(jnp.isfinite(high), jnp.floor((low + high) / 2), 2 * low + 2)
        return step + 1, low, high, jnp.where((step == 0) & enough, probe - 1, middle)

    low, high = jnp.full_like(start, -1.0), jnp.full_like(start, jnp.inf)
    *_, high, _ = lax.while_loop(apart, look, (jnp.asarray(0), low, high, start))
    return high


def _summed(noise: Array, ndim: int) -> Array:
    """Finite where all noise of an entry is."""
    return jnp.sum(noise, axis=tuple(range(ndim, noise.ndim)))
