"""A histogram with half-normal tails, as a distribution over the real line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from numpyro.distributions import Distribution, constraints

from probgen.base.typing import PRNGKey

__all__ = ["BarDistribution"]


class BarDistribution(Distribution):
    """A density that is constant between edges and half-normal beyond the first and the last (Mueller et al. 2022).

    Args:
        logits: Log masses of the bars, not normalised, shape ``(*batch, bars)``: the lower tail, those between edges, the
            upper tail.
        edges: Increasing, shape ``(bars - 1,)``.
        tails: Scales of the lower and the upper tail, shape ``(2,)``.
    """

    pytree_data_fields = ("logits", "edges", "tails")

    def __init__(self, logits: Array, edges: Array, tails: Array, *, validate_args: bool | None = None) -> None:
        self.logits, self.edges, self.tails = logits, edges, tails
        super().__init__(jnp.shape(logits)[:-1], (), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The real line."""
        return constraints.real

    @property
    def masses(self) -> Array:
        """Probability of each bar, shape ``(*batch, bars)``."""
        return jax.nn.softmax(self.logits)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """See ``Distribution.sample``."""
        key_bar, key_place, key_tail = jax.random.split(key, 3)
        shape = (*sample_shape, *self.batch_shape)
        bar = jax.random.categorical(key_bar, self.logits, shape=shape)
        low = self.edges[jnp.clip(bar - 1, 0, len(self.edges) - 1)]
        high = self.edges[jnp.clip(bar, 0, len(self.edges) - 1)]
        inside = low + (high - low) * jax.random.uniform(key_place, shape, self.edges.dtype)
        out = jnp.abs(jax.random.normal(key_tail, shape, self.edges.dtype))
        upper = jnp.where(bar == len(self.edges), self.edges[-1] + self.tails[1] * out, inside)
        return jnp.where(bar == 0, self.edges[0] - self.tails[0] * out, upper)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """See ``Distribution.log_prob``."""
        value = jnp.asarray(value)
        bar = jnp.searchsorted(self.edges, value, side="right")
        log_mass = jax.nn.log_softmax(self.logits)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        at = jnp.broadcast_to(bar, shape)[..., None]
        picked = jnp.take_along_axis(jnp.broadcast_to(log_mass, (*shape, log_mass.shape[-1])), at, -1)[..., 0]
        widths = jnp.diff(self.edges)
        inside = -jnp.log(widths[jnp.clip(bar - 1, 0, len(widths) - 1)])
        below = jnp.log(2.0) + norm.logpdf(self.edges[0] - value, scale=self.tails[0])
        above = jnp.log(2.0) + norm.logpdf(value - self.edges[-1], scale=self.tails[1])
        return picked + jnp.where(bar == 0, below, jnp.where(bar == len(self.edges), above, inside))

    def cdf(self, value: Array) -> Array:
        """See ``Distribution.cdf``."""
        value = jnp.asarray(value)[..., None]
        low, high = self.edges[:-1], self.edges[1:]
        inside = jnp.clip((value - low) / (high - low), 0.0, 1.0)
        below = 2 * norm.cdf(jnp.minimum(value - self.edges[0], 0.0), scale=self.tails[0])
        above = 2 * norm.cdf(jnp.maximum(value - self.edges[-1], 0.0), scale=self.tails[1]) - 1
        return jnp.sum(self.masses * jnp.concatenate([below, inside, above], -1), -1)

    @property
    def _moments(self) -> tuple[Array, Array]:
        """First and second moment of each bar."""
        low, high = self.edges[:-1], self.edges[1:]
        reach = self.tails * jnp.sqrt(2 / jnp.pi)  # mean of a half-normal
        first, last = self.edges[0], self.edges[-1]
        mean = jnp.concatenate([(first - reach[0])[None], (low + high) / 2, (last + reach[1])[None]])
        square = jnp.concatenate(
            [
                (first**2 - 2 * first * reach[0] + self.tails[0] ** 2)[None],
                (low**2 + low * high + high**2) / 3,
                (last**2 + 2 * last * reach[1] + self.tails[1] ** 2)[None],
            ]
        )
        return mean, square

    @property
    def mean(self) -> Array:
        """Shape ``batch_shape``."""
        return self.masses @ self._moments[0]

    @property
    def variance(self) -> Array:
        """Shape ``batch_shape``."""
        return self.masses @ self._moments[1] - self.mean**2
