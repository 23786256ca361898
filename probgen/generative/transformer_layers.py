"""Layers of causal transformers over tokens (see ``flow_layers``)."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.flow_layers import Bijection, Chain, FlowLayers, Permuted, Stack
from probgen.generative.scalar_transform import ScalarTransform
from probgen.nets.attention import Cache, Transformer

__all__ = ["TransformerLayers"]

type _Carry = tuple[Array, Cache]


class _Tokens(Bijection):
    """Each token by those before it."""

    net: Transformer
    scalar: ScalarTransform = eqx.field(static=True)
    tokens: int = eqx.field(static=True)

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        rows = x.reshape(self.tokens, -1)
        before = jnp.concatenate([jnp.zeros_like(rows[:1]), rows[:-1]])
        z, log_slope = self.scalar.inward(x, self.net(before, condition).reshape(x.shape[0], -1))
        return z, log_slope.sum()

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        rows = z.reshape(self.tokens, -1)
        features = rows.shape[1]

        def one(carry: _Carry, at: tuple[Array, Array]) -> tuple[_Carry, tuple[Array, Array]]:
            before, cache = carry
            i, row = at
            p, cache = self.net.extend(before, i, cache, condition)
            x, log_slope = self.scalar.outward(row, p.reshape(features, -1))
            return (x, cache), (x, log_slope)

        start = (jnp.zeros_like(rows[0]), self.net.cache(z.dtype))
        _, (x, log_slope) = jax.lax.scan(one, start, (jnp.arange(self.tokens), rows))
        return x.reshape(-1), log_slope.sum()


class TransformerLayers(FlowLayers):
    """Causal transformers over tokens, ``depth`` blocks of ``width`` features in each layer. Data of shape
    ``(tokens, ...)`` are taken row by row; images, ``(rows, columns, ...)``, in patches if ``patch`` says so.

    Attributes:
        heads: Heads of attention.
        patch: Side of a square patch; 0 for rows.
    """

    heads: int = eqx.field(static=True, default=4)
    patch: int = eqx.field(static=True, default=0)

    def check(self, shape: tuple[int, ...]) -> None:
        """See ``FlowLayers.check``."""
        if self.patch and (len(shape) < 2 or shape[0] % self.patch or shape[1] % self.patch):
            raise MethodError(
                f"TransformerLayers got patch={self.patch}, but data of shape {shape} do not divide into such patches. "
                f"Choose a divisor of rows and columns, or patch=0 for rows."
            )

    def build(
        self,
        key: PRNGKey,
        shape: tuple[int, ...],
        given: int,
        scalar: ScalarTransform,
        count: int,
        width: int,
        depth: int,
    ) -> Bijection:
        """See ``FlowLayers.build``."""
        dim, (places, tokens) = math.prod(shape), self._places(shape)
        features = dim // tokens

        def make(key: PRNGKey, order: Array) -> Permuted:
            net = Transformer(
                key,
                features,
                features * scalar.parameters,
                tokens,
                width,
                depth,
                self.heads,
                given=given,
                causal=True,
            )
            return Permuted.make(order, _Tokens(net, scalar, tokens))

        forward = jnp.arange(dim)
        turned = forward.reshape(tokens, -1)[::-1].reshape(-1)
        orders = jnp.stack([forward if i == 0 else turned for i in range(count)])
        stack = Stack(eqx.filter_vmap(make)(jax.random.split(key, count), orders))
        return Chain((Permuted.make(jnp.asarray(places), None), stack), (dim, dim))

    def _places(self, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """The entries in the order of tokens, and the number of tokens."""
        index = np.arange(math.prod(shape))
        if not self.patch:
            return index, shape[0] if shape else 1
        side, (rows, columns) = self.patch, shape[:2]
        blocks = index.reshape(rows // side, side, columns // side, side, -1).swapaxes(1, 2)
        return blocks.reshape(-1), (rows // side) * (columns // side)
