"""Residual networks from a vector to a vector."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey

__all__ = ["Residual"]


class Residual(eqx.Module):
    r"""Blocks :math:`h + W\,\phi(\gamma(c)\,\mathrm{norm}(h) + \beta(c))` between a first and a last linear map.

    The last layer begins at zero.

    Args:
        key: For the initial weights.
        inputs: Length of the input.
        outputs: Length of the output.
        given: Length of the vector that it is given (features of time, a condition); may be 0.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
    """

    first: eqx.nn.Linear
    blocks: tuple[tuple[eqx.nn.Linear, eqx.nn.Linear], ...]
    last: eqx.nn.Linear

    def __init__(
        self, key: PRNGKey, inputs: int, outputs: int, given: int = 0, width: int = 128, depth: int = 3
    ) -> None:
        key_first, key_last, *keys = jax.random.split(key, 2 + 2 * depth)
        # One more input, always 1: the modulation has a constant part, and exists where nothing is given.
        self.first = eqx.nn.Linear(inputs + given, width, key=key_first, dtype=jnp.float32)
        self.blocks = tuple(
            (
                eqx.nn.Linear(given + 1, 2 * width, use_bias=False, key=keys[2 * i], dtype=jnp.float32),
                eqx.nn.Linear(width, width, key=keys[2 * i + 1], dtype=jnp.float32),
            )
            for i in range(depth)
        )
        self.last = jax.tree.map(jnp.zeros_like, eqx.nn.Linear(width, outputs, key=key_last, dtype=jnp.float32))

    def __call__(self, x: Array, given: Array | None = None) -> Array:
        """Shape ``(outputs,)``, from ``(inputs,)`` and ``(given,)``."""
        given = jnp.zeros(0, x.dtype) if given is None else given
        h = self.first(jnp.concatenate([x, given]))
        for modulation, layer in self.blocks:
            scale, shift = jnp.split(modulation(jnp.append(given, jnp.ones((), given.dtype))), 2)
            normed = (h - h.mean()) * jax.lax.rsqrt(h.var() + 1e-6)
            h = h + layer(jax.nn.silu((1 + scale) * normed + shift))
        return self.last(jax.nn.silu(h))
