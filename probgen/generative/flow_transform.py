"""Flows as NumPyro transforms."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

__all__ = ["FlowTransform"]


class FlowTransform(Transform):
    """The map of a flow from noise to data: for ``TransformedDistribution``, and with ``TransformReparam`` for sampling
    in noise space.

    Args:
        net: With ``inward(x, condition)`` and ``outward(z, condition)``, each a value and a log determinant.
        condition: One condition, or ``None``.
        shape: Shape of one datum.
    """

    def __init__(self, net: Any, condition: Array | None, shape: tuple[int, ...]) -> None:
        self.net, self.condition, self.shape = net, condition, tuple(shape)

    @property
    def domain(self) -> constraints.Constraint:
        """Noise of the shape of one datum."""
        return constraints.independent(constraints.real, len(self.shape))

    @property
    def codomain(self) -> constraints.Constraint:
        """Real data."""
        return self.domain

    def _each(self, function: Any, x: Array) -> tuple[Array, Array]:
        batch = x.shape[: x.ndim - len(self.shape)]
        found, gained = jax.vmap(lambda x: function(x, self.condition))(x.reshape(math.prod(batch), *self.shape))
        return found.reshape(*batch, *self.shape), gained.reshape(batch)

    def __call__(self, x: Any) -> Any:
        """From noise to data."""
        return self._each(self.net.outward, jnp.asarray(x))[0]

    def _inverse(self, y: Any) -> Any:
        return self._each(self.net.inward, jnp.asarray(y))[0]

    def call_with_intermediates(self, x: Any) -> tuple[Any, Any]:
        """From noise to data, and the log determinant that was found on the way."""
        return self._each(self.net.outward, jnp.asarray(x))

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """Of the map from noise to data."""
        return self._each(self.net.outward, jnp.asarray(x))[1] if intermediates is None else intermediates

    def tree_flatten(self) -> tuple:
        """The network and the condition are leaves."""
        return (self.net, self.condition), (("net", "condition"), {"shape": self.shape})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether it is the very same flow, given the same."""
        return self is other or (
            isinstance(other, FlowTransform) and self.net is other.net and self.condition is other.condition
        )
