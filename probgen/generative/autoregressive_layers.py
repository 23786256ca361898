"""Masked autoregressive layers (see ``flow_layers``)."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.flow_layers import Bijection, FlowLayers, Inverse, Permuted, Stack
from probgen.generative.scalar_transform import ScalarTransform
from probgen.nets.masked import MaskedMLP

__all__ = ["AutoregressiveLayers"]


class _Autoregressive(Bijection):
    """Each entry by those before it."""

    net: MaskedMLP
    scalar: ScalarTransform = eqx.field(static=True)

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        z, log_slope = self.scalar.inward(x, self.net(x, condition))
        return z, log_slope.sum()

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        def one(x: Array, i: Array) -> tuple[Array, Scalar]:
            # Later entries stay 0 until it is their turn: the masks multiply them by 0, which must not meet infinity.
            p = jax.lax.dynamic_slice_in_dim(self.net(x, condition), i, 1)
            found, log_slope = self.scalar.outward(jax.lax.dynamic_slice_in_dim(z, i, 1), p)
            return jax.lax.dynamic_update_slice_in_dim(x, found, i, 0), log_slope[0]

        x, log_slope = jax.lax.scan(one, jnp.zeros_like(z), jnp.arange(z.shape[0]))
        return x, log_slope.sum()


class AutoregressiveLayers(FlowLayers):
    """Masked autoregressive layers.

    Attributes:
        inverse: Whether draws, rather than densities, are what one evaluation gives.
    """

    inverse: bool = eqx.field(static=True, default=False)

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
        dim = math.prod(shape)

        def make(key: PRNGKey, order: Array) -> Permuted:
            layer = _Autoregressive(MaskedMLP(key, dim, scalar.parameters, width, depth, given), scalar)
            return Permuted.make(order, Inverse(layer) if self.inverse else layer)

        forward = jnp.arange(dim)
        orders = jnp.stack([forward if i == 0 else forward[::-1] for i in range(count)])
        return Stack(eqx.filter_vmap(make)(jax.random.split(key, count), orders))
