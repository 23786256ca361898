r"""Transformers over a short sequence of tokens.

Blocks with the norm inside of the residual (Xiong et al. 2020) of the attention of Vaswani et al. (2017),

.. math:: h \leftarrow h + W\,\mathrm{softmax}\!\left(\frac{q k^\top}{\sqrt{m}} + \text{mask}\right) v, \qquad
          h \leftarrow h + \mathrm{MLP}(h),

:math:`m` the features per head. A vector that is given (a time, a condition) scales and shifts what each norm leaves.
With a causal mask token :math:`i` sees tokens :math:`0..i`, and one more token costs one row of attention: keys and
values of those before it are kept in a ``Cache``.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.nets.mlp import MLP

__all__ = ["Attention", "Block", "Cache", "Transformer"]


class Cache(NamedTuple):
    """Keys and values of the tokens so far; of those to come, zeros.

    Attributes:
        keys: Shape ``(depth, tokens, heads, features per head)``.
        values: The same shape.
    """

    keys: Array
    values: Array


class Attention(eqx.Module):
    """Self-attention with several heads.

    Args:
        key: For the initial weights.
        width: Features of a token.
        heads: Number of heads; divides ``width``.
    """

    project: eqx.nn.Linear
    last: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, key: PRNGKey, width: int, heads: int) -> None:
        if width % heads:
            raise MethodError(f"width={width} is no multiple of heads={heads}. Change one of them.")
        key_project, key_last = jax.random.split(key)
        self.project = eqx.nn.Linear(width, 3 * width, key=key_project, dtype=jnp.float32)
        self.last = eqx.nn.Linear(width, width, key=key_last, dtype=jnp.float32)
        self.heads = heads

    def split(self, h: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values of tokens, each ``(tokens, heads, features per head)``."""
        q, k, v = jnp.split(jax.vmap(self.project)(h), 3, axis=-1)
        shape = (h.shape[0], self.heads, -1)
        return q.reshape(shape), k.reshape(shape), v.reshape(shape)

    def mix(self, q: Array, k: Array, v: Array, seen: Array | None) -> Array:
        """What queries find among keys; ``seen`` of shape ``(queries, keys)`` says which they may see."""
        logits = jnp.einsum("qhm,khm->hqk", q, k) / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
        if seen is not None:
            logits = jnp.where(seen, logits, -jnp.inf)
        found = jnp.einsum("hqk,khm->qhm", jax.nn.softmax(logits), v)
        return jax.vmap(self.last)(found.reshape(q.shape[0], -1))

    def __call__(self, h: Array, seen: Array | None = None) -> Array:
        """Shape ``(tokens, width)`` from the same."""
        return self.mix(*self.split(h), seen)


class Block(eqx.Module):
    """One block of attention and of a network of each token."""

    attention: Attention
    inner: MLP
    modulation: eqx.nn.Linear | None

    def __init__(self, key: PRNGKey, width: int, heads: int, given: int) -> None:
        key_attention, key_inner, key_given = jax.random.split(key, 3)
        self.attention = Attention(key_attention, width, heads)
        self.inner = MLP(key_inner, width, width, 4 * width, 1, jax.nn.gelu)
        self.modulation = eqx.nn.Linear(given, 4 * width, key=key_given, dtype=jnp.float32) if given else None

    def norms(self, given: Array | None) -> tuple[Array, ...]:
        """Scale and shift after the two norms."""
        if self.modulation is None:
            return tuple(jnp.zeros((), jnp.float32) for _ in range(4))
        return tuple(jnp.split(self.modulation(given), 4))  # pyright: ignore[reportArgumentType]

    def __call__(self, h: Array, given: Array | None, seen: Array | None) -> Array:
        scale, shift, inner_scale, inner_shift = self.norms(given)
        h = h + self.attention(_normed(h) * (1 + scale) + shift, seen)
        return h + jax.vmap(self.inner)(_normed(h) * (1 + inner_scale) + inner_shift)

    def extend(self, h: Array, given: Array | None, keys: Array, values: Array, i: Array) -> tuple[Array, Array, Array]:
        """The same for token ``i`` alone, ``(1, width)``, which sees those before it through their keys and values."""
        scale, shift, inner_scale, inner_shift = self.norms(given)
        q, k, v = self.attention.split(_normed(h) * (1 + scale) + shift)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k, i, 0)
        values = jax.lax.dynamic_update_slice_in_dim(values, v, i, 0)
        seen = (jnp.arange(keys.shape[0]) <= i)[None]
        h = h + self.attention.mix(q, keys, values, seen)
        return h + jax.vmap(self.inner)(_normed(h) * (1 + inner_scale) + inner_shift), keys, values


class Transformer(eqx.Module):
    """A transformer of a fixed number of tokens; their places are learned.

    Args:
        key: For the initial weights.
        inputs: Features of a token that come in.
        outputs: Features of a token that come out.
        tokens: Number of tokens.
        width: Features of a token inside.
        depth: Number of blocks.
        heads: Heads of attention; divides ``width``.
        given: Length of a vector that the whole is given; 0 for none.
        causal: Whether token ``i`` sees only tokens ``0..i``.
        zero: Whether the last layer begins at zero.
    """

    first: eqx.nn.Linear
    places: Array
    blocks: tuple[Block, ...]
    last: eqx.nn.Linear
    causal: bool = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKey,
        inputs: int,
        outputs: int,
        tokens: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        *,
        given: int = 0,
        causal: bool = False,
        zero: bool = True,
    ) -> None:
        key_first, key_last, key_places, *keys = jax.random.split(key, 3 + depth)
        self.first = eqx.nn.Linear(inputs, width, key=key_first, dtype=jnp.float32)
        self.places = 0.1 * jax.random.normal(key_places, (tokens, width), jnp.float32)
        self.blocks = tuple(Block(k, width, heads, given) for k in keys)
        last = eqx.nn.Linear(width, outputs, key=key_last, dtype=jnp.float32)
        self.last = jax.tree.map(jnp.zeros_like, last) if zero else last
        self.causal = causal

    def __call__(self, x: Array, given: Array | None = None, seen: Array | None = None) -> Array:
        """Shape ``(tokens, outputs)`` from ``(tokens, inputs)``.

        Args:
            x: The tokens, in one-hot form if they are discrete.
            given: A vector, if the network is given one.
            seen: Which token (row) may see which (column), at least one each; all, or those up to itself if
                ``causal``, unless said.
        """
        if seen is None and self.causal:
            seen = jnp.tril(jnp.ones((x.shape[0], x.shape[0]), bool))
        h = jax.vmap(self.first)(x) + self.places
        for block in self.blocks:
            h = block(h, given, seen)
        return jax.vmap(self.last)(_normed(h))

    def cache(self, dtype: jnp.dtype) -> Cache:
        """That of no token yet."""
        heads = self.blocks[0].attention.heads
        tokens, width = self.places.shape
        empty = jnp.zeros((len(self.blocks), tokens, heads, width // heads), jnp.result_type(dtype, jnp.float32))
        return Cache(empty, empty)

    def extend(self, x: Array, i: Array, cache: Cache, given: Array | None = None) -> tuple[Array, Cache]:
        """The output for token ``i`` of a causal transformer, as the whole call has it.

        Args:
            x: Token ``i``, shape ``(inputs,)``.
            i: Its place.
            cache: Of the tokens before it.
            given: A vector, if the network is given one.

        Returns:
            Shape ``(outputs,)``, and the cache with this token.
        """
        h = (self.first(x) + self.places[i])[None]
        keys, values = [], []
        for block, k, v in zip(self.blocks, cache.keys, cache.values, strict=True):
            h, k, v = block.extend(h, given, k, v, i)  # noqa: PLW2901  (the new cache of this block)
            keys.append(k)
            values.append(v)
        return self.last(_normed(h)[0]), Cache(jnp.stack(keys), jnp.stack(values))


def _normed(h: Array) -> Array:
    """Each token with mean 0 and variance 1."""
    centred = h - h.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
