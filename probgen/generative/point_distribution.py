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

    pytree_aux_fields = ("_ranks", "_promoted")

    condition: Array | None = None
    """Shape ``(*batch_shape, *shape of one condition)``."""
    _ranks: tuple[int, ...] | None = None
    """Axes of each array that is not the condition, one distribution at a time."""
    _promoted: bool = False
    """Whether axes in front of the arrays are known to be those of a scan, along which the arrays are equal."""

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

    def _unstacked(self) -> PointDistribution:
        """With one copy of the arrays: those of all steps are equal."""
        stacked = self._stacked()
        if not stacked:
            return self
        if not self._promoted:
            raise MethodError(
                f"this is a stack of shape {stacked} of {type(self).__name__}s, each with arrays of its own. Map over it: "
                f"jax.vmap(lambda one: one.log_prob(x))(stack)."
            )
        here, ranks = copy.copy(self), iter(self._ranks or ())
        for name, part in self._shared().items():
            setattr(here, name, jax.tree.map(lambda leaf: leaf[(0,) * (leaf.ndim - next(ranks))], part))
        return here

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
        whole = self._unstacked()
        heads = [array.shape[: array.ndim - ndim] for array, ndim in parts]
        batch = jnp.broadcast_shapes(whole.batch_shape, *heads)
        if not batch:
            return function(whole, *(array for array, _ in parts))
        size = math.prod(batch)

        def flat(array: Array, ndim: int) -> Array:
            point = array.shape[array.ndim - ndim :]
            return jnp.broadcast_to(array, (*batch, *point)).reshape(size, *point)

        points = [flat(array, ndim) for array, ndim in parts]
        if whole.condition is None:
            found = jax.vmap(lambda *at: function(whole, *at))(*points)
        else:
            conditions = flat(whole.condition, whole.condition.ndim - len(whole.batch_shape))
            found = jax.vmap(lambda c, *at: function(whole._given_one(c), *at))(conditions, *points)
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
    promoted._promoted = True
    return promoted
