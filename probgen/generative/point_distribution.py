"""Distributions that are written for one point."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution, constraints

from probgen.base.typing import PRNGKey, Scalar

__all__ = ["PointDistribution"]


class PointDistribution(Distribution):
    """A distribution over one array of reals, written for one point: subclasses give ``draw`` and ``density``.

    With a ``condition`` it is a batch of distributions, one per condition; ``draw`` and ``density`` see one.
    """

    condition: Array | None = None
    """Shape ``(*batch_shape, *shape of one condition)``."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    def draw(self, key: PRNGKey) -> Array:
        """One draw."""
        raise NotImplementedError

    def density(self, x: Array) -> Scalar:
        """Normalised log density at one point."""
        raise NotImplementedError

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)  # an old-style key, which would look like two points
        shape = (*sample_shape, *self.batch_shape)
        keys = jax.random.split(key, math.prod(shape)).reshape(shape) if shape else key
        return self.pointwise(lambda here, key: here.draw(key), (keys, 0))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density, shape that of ``value`` without the event."""
        return self.pointwise(lambda here, x: here.density(x), (jnp.asarray(value), self.event_dim))

    def pointwise(self, function: Callable[..., Any], *parts: tuple[Array, int]) -> Any:
        """Map a function of a distribution without batch, and of points, over conditions and points.

        Args:
            function: Called with the distribution given one condition, and one point of each part.
            parts: Arrays of points, each with the number of axes of one point; the leading axes are broadcast against
                one another and ``batch_shape``.
        """
        heads = [array.shape[: array.ndim - ndim] for array, ndim in parts]
        batch = jnp.broadcast_shapes(self.batch_shape, *heads)
        if not batch:
            return function(self, *(array for array, _ in parts))
        size = math.prod(batch)

        def flat(array: Array, ndim: int) -> Array:
            point = array.shape[array.ndim - ndim :]
            return jnp.broadcast_to(array, (*batch, *point)).reshape(size, *point)

        points = [flat(array, ndim) for array, ndim in parts]
        if self.condition is None:
            found = jax.vmap(lambda *at: function(self, *at))(*points)
        else:
            conditions = flat(self.condition, self.condition.ndim - len(self.batch_shape))
            found = jax.vmap(lambda c, *at: function(self._given_one(c), *at))(conditions, *points)
        return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), found)

    def _given_one(self, condition: Array) -> PointDistribution:
        here = copy.copy(self)
        here.condition, here._batch_shape = condition, ()
        return here
