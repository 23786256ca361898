"""Coupling layers (see ``flow_layers``)."""

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
from probgen.nets.mlp import MLP

__all__ = ["CouplingLayers"]


class _Bias(eqx.Module):
    """A network of nothing."""

    value: Array

    def __call__(self, x: Array) -> Array:
        return self.value.astype(x.dtype)


class _Coupling(Bijection):
    """The first entries set the parameters of the others."""

    net: MLP | _Bias
    scalar: ScalarTransform = eqx.field(static=True)
    kept: int = eqx.field(static=True)

    def __init__(self, key: PRNGKey, dim: int, given: int, scalar: ScalarTransform, width: int, depth: int) -> None:
        self.scalar, self.kept = scalar, dim // 2
        inputs, outputs = self.kept + given, (dim - self.kept) * scalar.parameters
        self.net = (
            MLP(key, inputs, outputs, width, depth, zero=True) if inputs else _Bias(jnp.zeros(outputs, jnp.float32))
        )

    def _parts(self, x: Array, condition: Array | None) -> tuple[Array, Array, Array]:
        kept, moved = x[: self.kept], x[self.kept :]
        p = self.net(kept if condition is None else jnp.concatenate([kept, condition]))
        return kept, moved, p.reshape(moved.shape[0], -1)

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        kept, moved, p = self._parts(x, condition)
        moved, log_slope = self.scalar.inward(moved, p)
        return jnp.concatenate([kept, moved]), log_slope.sum()

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        kept, moved, p = self._parts(z, condition)
        moved, log_slope = self.scalar.outward(moved, p)
        return jnp.concatenate([kept, moved]), log_slope.sum()


class CouplingLayers(FlowLayers):
    """Coupling layers.

    Attributes:
        scales: Number of scales, of ``count`` layers each.
    """

    scales: int = eqx.field(static=True, default=1)

    def check(self, shape: tuple[int, ...]) -> None:
        """See ``FlowLayers.check``."""
        most = max(math.prod(shape).bit_length() - 1, 1)
        if not 1 <= self.scales <= most:
            raise MethodError(
                f"CouplingLayers got scales={self.scales}; data of shape {shape} can be halved {most - 1} times. Choose "
                f"scales from 1 to {most}."
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
        dim = math.prod(shape)
        parts: list[Bijection] = [Permuted.make(jnp.asarray(nested_halves(shape)), None)]
        sizes = [dim]
        for key_scale in jax.random.split(key, self.scales):
            size = dim // 2 ** len(parts[1:])
            key_layers, key_orders = jax.random.split(key_scale)
            orders, last = _shuffles(key_orders, size, count)

            def make(key: PRNGKey, order: Array, size: int = size) -> Permuted:
                return Permuted.make(order, _Coupling(key, size, given, scalar, width, depth))

            parts.append(Stack(eqx.filter_vmap(make)(jax.random.split(key_layers, count), orders)))
            sizes.append(size)
            if self.scales > 1:
                # The halves as they were, of which the second is now noise.
                parts[-1] = Chain((parts[-1], Permuted.make(last, None)), (size, size))
        return Chain(tuple(parts), tuple(sizes))


def nested_halves(shape: tuple[int, ...]) -> np.ndarray:
    """An order of the entries of an array in which halves, quarters and so on of the list are ever coarser grids."""
    dim = math.prod(shape)
    if len(shape) < 2:
        return np.arange(dim)
    rows, columns = np.indices(shape)[:2].reshape(2, -1)
    depth = np.zeros(dim, int)  # how many scales an entry survives
    alive = np.ones(dim, bool)
    for level in range(2 * dim.bit_length()):
        step = 2 ** (level // 2)
        at = rows // step + columns // step if level % 2 == 0 else rows // step
        alive &= at % 2 == 0
        depth += alive
    return np.argsort(-depth, kind="stable")


def _shuffles(key: PRNGKey, size: int, count: int) -> tuple[Array, Array]:
    """For each layer its permutation after those before it, and the one that undoes all."""
    swap = jnp.concatenate([jnp.arange(size // 2, size), jnp.arange(size // 2)])
    wholes = []  # permutations from the original entries
    for i, key_pair in enumerate(jax.random.split(key, (count + 1) // 2)):
        whole = jnp.arange(size) if i == 0 or size <= 2 else jax.random.permutation(key_pair, size)
        wholes += [whole, whole[swap]]
    orders, before = [], jnp.arange(size)
    for whole in wholes[:count]:
        orders.append(jnp.argsort(before)[whole])
        before = whole
    return jnp.stack(orders), jnp.argsort(before)
