"""A network that reads any number of rows."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey
from probgen.nets.attention import Block
from probgen.nets.mlp import MLP
from probgen.nets.time_features import TimeFeatures

__all__ = ["RowEncoder"]


class RowEncoder(eqx.Module):
    r"""Rows as one vector: blocks of attention among the rows, then attention pooling by learned queries (the set
    transformer of Lee et al. 2019), beside the mean over the rows and the logarithm of their number.

    The result does not depend on the order of the rows unless they are ``ordered``: then each row is also told its
    place. Rows that are not seen play no part at all.

    Args:
        key: For the initial weights.
        features: Numbers per row.
        width: Features of a row inside; the result has ``2 * width + 1``.
        depth: Blocks of attention.
        heads: Heads of attention; divides ``width``.
        ordered: Whether the order of the rows says something.
    """

    first: MLP
    blocks: tuple[Block, ...]
    query: Array
    key_value: eqx.nn.Linear
    ordered: bool = eqx.field(static=True)

    def __init__(
        self, key: PRNGKey, features: int, width: int = 64, depth: int = 2, heads: int = 4, *, ordered: bool = False
    ) -> None:
        key_first, key_query, key_pool, *keys = jax.random.split(key, 3 + depth)
        places = TimeFeatures().size if ordered else 0
        self.first = MLP(key_first, features + places, width, width, 1)
        self.blocks = tuple(Block(k, width, heads, 0) for k in keys)
        self.query = jax.random.normal(key_query, (heads, width // heads), jnp.float32)
        self.key_value = eqx.nn.Linear(width, 2 * width, key=key_pool, dtype=jnp.float32)
        self.ordered = ordered

    @property
    def size(self) -> int:
        """Length of the result."""
        return 2 * self.query.size + 1

    def __call__(self, rows: Array, seen: Array) -> Array:
        """Shape ``(size,)``.

        Args:
            rows: Shape ``(n, features)``.
            seen: Which rows are there, shape ``(n,)``.
        """
        count = rows.shape[0]
        if self.ordered:
            # In rows since the first: what a place means does not change with the number of rows.
            places = jax.vmap(TimeFeatures(most=8.0))(jnp.arange(count, dtype=rows.dtype) / 16)
            rows = jnp.concatenate([rows, places], -1)
        h = jax.vmap(self.first)(jnp.where(seen[:, None], rows, 0.0))
        # A row that sees nothing would be NaN: those that are not there see themselves.
        visible = seen[None, :] | jnp.eye(count, dtype=bool)
        for block in self.blocks:
            h = block(h, None, visible)
        number = jnp.sum(seen)
        mean = jnp.sum(jnp.where(seen[:, None], h, 0.0), 0) / jnp.maximum(number, 1)
        keys, values = (a.reshape(count, *self.query.shape) for a in jnp.split(jax.vmap(self.key_value)(h), 2, -1))
        logits = jnp.einsum("hm,nhm->hn", self.query.astype(h.dtype), keys) / jnp.sqrt(self.query.shape[1] * 1.0)
        weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), where=seen)
        pooled = jnp.einsum("hn,nhm->hm", jnp.where(seen, weights, 0.0), values).reshape(-1)
        return jnp.concatenate([mean, pooled, jnp.log1p(number)[None]]).astype(h.dtype)
