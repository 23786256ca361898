"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey

__all__ = ["MLP", "Conditioned"]


class MLP(eqx.Module):
    """Dense layers with an activation between them.

    Weights are 32-bit: a network computes in the precision of what it is given, at least 32 bits.

    Args:
        key: For the initial weights.
        inputs: Length of the input.
        outputs: Length of the output.
        width: Length of the hidden layers.
        depth: Number of hidden layers; 0 for a linear map.
        activation: Between layers.
        zero: Whether the last layer begins at zero, so that the network begins as a constant.
    """

    layers: tuple[eqx.nn.Linear, ...]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKey,
        inputs: int,
        outputs: int,
        width: int = 128,
        depth: int = 2,
        activation: Callable[[Array], Array] = jax.nn.silu,
        *,
        zero: bool = False,
    ) -> None:
        sizes = [inputs, *[width] * depth, outputs]
        keys = jax.random.split(key, depth + 1)
        layers = [
            eqx.nn.Linear(a, b, key=k, dtype=jnp.float32) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        if zero:
            layers[-1] = jax.tree.map(jnp.zeros_like, layers[-1])
        self.layers, self.activation = tuple(layers), activation

    def __call__(self, x: Array) -> Array:
        """Shape ``(outputs,)`` from ``(inputs,)``."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class Conditioned(eqx.Module):
    r"""A residual network of a point, given a vector: blocks :math:`h + W\,\phi(\gamma(c)\,\mathrm{norm}(h) + \beta(c))`.

    The last layer begins at zero.

    Args:
        key: For the initial weights.
        shape: Shape of the point, and of the output.
        given: Length of the vector that it is given (features of time, a condition).
        width: Length of the hidden layers.
        depth: Number of residual blocks.
    """

    first: eqx.nn.Linear
    blocks: tuple[tuple[eqx.nn.Linear, eqx.nn.Linear], ...]
    last: eqx.nn.Linear
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, key: PRNGKey, shape: tuple[int, ...], given: int, width: int = 128, depth: int = 3) -> None:
        key_first, key_last, *keys = jax.random.split(key, 2 + 2 * depth)
        size = math.prod(shape)
        self.shape = shape
        self.first = eqx.nn.Linear(size + given, width, key=key_first, dtype=jnp.float32)
        self.blocks = tuple(
            (
                eqx.nn.Linear(given, 2 * width, key=keys[2 * i], dtype=jnp.float32),
                eqx.nn.Linear(width, width, key=keys[2 * i + 1], dtype=jnp.float32),
            )
            for i in range(depth)
        )
        last = eqx.nn.Linear(width, size, key=key_last, dtype=jnp.float32)
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(self, x: Array, given: Array) -> Array:
        """The shape of ``x``."""
        h = self.first(jnp.concatenate([x.reshape(-1), given]))
        for modulation, layer in self.blocks:
            scale, shift = jnp.split(modulation(given), 2)
            normed = (h - h.mean()) * jax.lax.rsqrt(h.var() + 1e-6)
            h = h + layer(jax.nn.silu((1 + scale) * normed + shift))
        return self.last(jax.nn.silu(h)).reshape(self.shape)
