"""Smooth networks from a point to a vector of its shape."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey

__all__ = ["Modulated"]


class Modulated(eqx.Module):
    r"""Layers :math:`\tanh((1 + \gamma(c))\,W h + \beta(c))` with linear :math:`\gamma, \beta`, for fields that are
    integrated: nothing is divided by, so that derivatives of all orders are as small as the weights. (In a network whose
    layers are normalised a point that is near the mean of its layer is blown up, and the field is stiff there.)

    The last layer begins at zero.

    Args:
        key: For the initial weights.
        shape: Shape of the point, and of the output.
        given: Length of the vector that it is given (features of time, a condition).
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    layers: tuple[tuple[eqx.nn.Linear, eqx.nn.Linear], ...]
    last: eqx.nn.Linear
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, key: PRNGKey, shape: tuple[int, ...], given: int, width: int = 64, depth: int = 2) -> None:
        key_last, *keys = jax.random.split(key, 1 + 2 * depth)
        size = math.prod(shape)
        self.shape = shape
        self.layers = tuple(
            (
                eqx.nn.Linear(given, 2 * width, key=keys[2 * i], dtype=jnp.float32),
                eqx.nn.Linear(width if i else size, width, key=keys[2 * i + 1], dtype=jnp.float32),
            )
            for i in range(depth)
        )
        self.last = jax.tree.map(jnp.zeros_like, eqx.nn.Linear(width, size, key=key_last, dtype=jnp.float32))

    def __call__(self, x: Array, given: Array) -> Array:
        """The shape of ``x``."""
        h = x.reshape(-1)
        for modulation, layer in self.layers:
            scale, shift = jnp.split(modulation(given), 2)
            h = jnp.tanh((1 + scale) * layer(h) + shift)
        return self.last(h).reshape(self.shape)
