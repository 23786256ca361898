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
from numpyro.distributions.batch_util import promote_batch_shape

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["PointDistribution"]


class PointDistribution(Distribution):
    """A distribution over one array of reals, written for one point: subclasses give ``draw`` and ``density``.

    With a ``condition`` it is a batch of distributions, one per condition; ``draw`` and ``density`` see one.
    """

    pytree_aux_fields = ("_ranks",)

    condition: Array | None = None
    """Shape ``(*batch_shape, *shape of one condition)``."""
    _ranks: tuple[int, ...] | None = None
    """Axes of each array that is not the condition, one distribution at a time."""

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if self._ranks is None:
            self._ranks = tuple(jnp.ndim(leaf) for leaf in jax.tree.leaves(self._shared()))
        return super().tree_flatten()

    def _shared(self) -> dict[str, Any]:
        """What all distributions of a batch have in common, networks above all."""
        names = set(self.gather_pytree_data_fields()) - {"condition"}
        return {name: getattr(self, name) for name in sorted(names) if name in self.__dict__}

    def _stacked(self) -> tuple[int, ...]:
        """Axes in front of the arrays, which ``numpyro.contrib.control_flow.scan`` puts there: it stacks what every
        step returns, and distributions return their networks."""
        if self._ranks is None:
            return ()
        for leaf, rank in zip(jax.tree.leaves(self._shared()), self._ranks, strict=True):
            return jnp.shape(leaf)[: jnp.ndim(leaf) - rank]
        return ()

    def _by_step(
        self, stacked: tuple[int, ...], function: Callable[..., Any], parts: tuple[tuple[Array, int], ...]
    ) -> Any:
        """``pointwise``, one step of a scan after another: each has arrays of its own."""
        if self.batch_shape[: len(stacked)] != stacked:  # the axes of a scan are a batch, see ``_promote``
            raise MethodError(
                f"this is a stack of shape {stacked} of {type(self).__name__}s, each with arrays of its own. Map over it: "
                f"jax.vmap(lambda one: one.log_prob(x))(stack)."
            )
        batch = jnp.broadcast_shapes(self.batch_shape, *(array.shape[: array.ndim - ndim] for array, ndim in parts))
        at = len(batch) - len(self.batch_shape)
        own = (self._shared(), self.condition)
        if stacked[0] == 1:  # for all points
            own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch[at], *leaf.shape[1:])), own)

        def steps_first(array: Array, ndim: int) -> Array:
            return jnp.moveaxis(jnp.broadcast_to(array, (*batch, *array.shape[array.ndim - ndim :])), at, 0)

        def at_step(own: tuple[dict[str, Any], Array | None], *points: Array) -> Any:
            here, (shared, condition) = copy.copy(self), own
            here.condition, here._batch_shape = condition, self.batch_shape[1:]
            for name, part in shared.items():
                setattr(here, name, part)
            return here.pointwise(function, *((a, ndim) for a, (_, ndim) in zip(points, parts, strict=True)))

        found = jax.vmap(at_step)(own, *(steps_first(array, ndim) for array, ndim in parts))
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, at), found)

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
        stacked = self._stacked()
        if stacked:
            return self._by_step(stacked, function, parts)
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


@promote_batch_shape.register  # pyright: ignore[reportCallIssue, reportArgumentType]
def _promote(here: PointDistribution) -> PointDistribution:
    """See ``_stacked``: the steps become a batch."""
    promoted = copy.copy(here)
    promoted._batch_shape = (*here._stacked(), *here.batch_shape)
    return promoted
