"""Networks that give the conditionals of all entries of a row, in any order, in one pass."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey
from probgen.nets.attention import Attention
from probgen.nets.mlp import MLP

__all__ = ["OrderedNet"]


class OrderedNet(eqx.Module):
    """A transformer with two tokens per entry (Yang et al. 2019): one carries the symbol, the other asks for it.

    The token that carries entry ``i`` sees those that carry entries of its rank or a lower one; the token that asks for it
    sees itself and those that carry entries of a lower rank. So all scores of a pass are those of conditionals given the
    entries of lower rank, whatever the other symbols are.

    Args:
        key: For the initial weights.
        size: Number of entries.
        values: Number of symbols.
        given: Length of a vector that the whole is given; 0 for none.
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of attention; divides ``width``.
    """

    carried: Array
    asked: Array
    nothing: Array
    condition: eqx.nn.Linear | None
    blocks: tuple[tuple[Attention, MLP], ...]
    last: eqx.nn.Linear

    def __init__(
        self, key: PRNGKey, size: int, values: int, given: int, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        key_carried, key_asked, key_nothing, key_given, key_last, *keys = jax.random.split(key, 5 + 2 * depth)
        self.carried = jax.random.normal(key_carried, (size, values, width), jnp.float32)
        self.asked = jax.random.normal(key_asked, (size, width), jnp.float32)
        self.nothing = jax.random.normal(key_nothing, (1, width), jnp.float32)
        self.condition = eqx.nn.Linear(given, width, key=key_given, dtype=jnp.float32) if given else None
        self.blocks = tuple(
            (Attention(keys[2 * i], width, heads), MLP(keys[2 * i + 1], width, width, 2 * width, 1, jax.nn.gelu))
            for i in range(depth)
        )
        self.last = jax.tree.map(jnp.zeros_like, eqx.nn.Linear(width, values, key=key_last, dtype=jnp.float32))

    def __call__(self, symbols: Array, ranks: Array, given: Array | None = None) -> Array:
        """Scores of the values of every entry given those of lower rank, shape ``(size, values)``.

        Args:
            symbols: Shape ``(size,)``; those that no entry of higher rank follows may be anything.
            ranks: Shape ``(size,)``.
            given: Shape ``(given,)``.
        """
        size = symbols.shape[0]
        carried = jnp.take_along_axis(self.carried, symbols.reshape(-1, 1, 1), axis=1, mode="clip")[:, 0]
        h = jnp.concatenate([self.nothing, carried, self.asked])
        if self.condition is not None and given is not None:
            h = h + self.condition(given.reshape(-1).astype(h.dtype))
        # Everyone sees the token of nothing, which sees itself.
        lower, same = ranks[:, None] > ranks, ranks[:, None] >= ranks
        head, none = jnp.ones((size, 1), bool), jnp.zeros((size, size), bool)
        seen = jnp.block(
            [
                [jnp.ones((1, 1), bool), jnp.zeros((1, 2 * size), bool)],
                [head, same, none],
                [head, lower, jnp.eye(size, dtype=bool)],
            ]
        )
        for attention, inner in self.blocks:
            h = h + attention(_normed(h), seen)
            h = h + jax.vmap(inner)(_normed(h))
        return jax.vmap(self.last)(_normed(h[1 + size :]))


def _normed(h: Array) -> Array:
    return (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6)
