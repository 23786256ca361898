r"""How the layers of a flow are wired: which entries set the parameters of which.

A layer maps entry by entry with a ``ScalarTransform`` whose parameters are functions of other entries, so that its
Jacobian is triangular and the log determinant is a sum of logs of slopes.

- **Coupling** (Dinh et al. 2017): half of the entries set the parameters of the other half; both directions cost one
  evaluation of the network. Halves are exchanged after every layer and shuffled after every other. With ``scales``
  above 1 half of the entries go straight to the noise after each scale; of an image these are every other pixel of the
  grid that is left (its rows and columns, then its diagonals, in turn), and the first halves of each scale a checkerboard.
- **Autoregressive** (Papamakarios et al. 2017, MAF): entry :math:`i` follows from those before it, by a masked network;
  inward costs one evaluation, outward one per entry. ``inverse`` exchanges the directions (Kingma et al. 2016, IAF):
  draws are cheap. The order is reversed after every layer.
- **Transformer** (Zhai et al. 2024, TarFlow): the same for tokens, rows of the data or patches of an image, by a causal
  transformer; outward keeps keys and values, so that all of it costs about one evaluation in work, in as many steps as
  there are tokens.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.scalar_transform import ScalarTransform
from probgen.nets.constant import Constant

__all__ = ["Bijection", "FlowLayers"]


class Bijection(eqx.Module):
    """An invertible map of a vector, given another."""

    @abc.abstractmethod
    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        """From data to noise, and the log determinant of the Jacobian dz/dx."""

    @abc.abstractmethod
    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        """From noise to data, and the log determinant of the Jacobian dx/dz."""


class FlowLayers(Part):
    """A configuration of layers."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``MethodError`` if it does not fit data of this shape."""

    @abc.abstractmethod
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
        """An untrained bijection of ``math.prod(shape)`` numbers.

        Args:
            key: For the initial weights.
            shape: Shape of one datum.
            given: Length of a condition; 0 for none.
            scalar: What is done to each entry.
            count: Number of layers.
            width: Of the networks.
            depth: Of the networks.
        """


# -- what all have in common -----------------------------------------------------------------------------------------


def _permuted(x: Array, order: Array) -> Array:
    """``x[order]``, as a masked sum: the transpose of a gather is a scatter, which XLA has crashed on inside of a scan
    that is mapped, on CPU."""
    return jnp.sum(jnp.where(order[:, None] == jnp.arange(x.shape[0]), x, 0), 1)


class Permuted(Bijection):
    """A permutation, then a layer.

    Attributes:
        order: Entry ``i`` of what the layer gets is entry ``order[i]``.
        back: The inverse permutation.
        layer: The layer.
    """

    order: Constant
    back: Constant
    layer: Bijection | None

    @staticmethod
    def make(order: Array, layer: Bijection | None) -> Permuted:
        """With the inverse computed."""
        order = jnp.asarray(order, jnp.int32)
        return Permuted(Constant(order), Constant(jnp.argsort(order).astype(jnp.int32)), layer)

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        x = _permuted(x, self.order.value)
        return (x, jnp.zeros((), x.dtype)) if self.layer is None else self.layer.inward(x, condition)

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        gained = jnp.zeros((), z.dtype)
        if self.layer is not None:
            z, gained = self.layer.outward(z, condition)
        return _permuted(z, self.back.value), gained


class Stack(Bijection):
    """Layers of one kind, whose arrays have the layers as first axis: a scan, compiled once.

    Attributes:
        layers: The layers.
    """

    layers: Bijection

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        return self._run(x, condition, outward=False)

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        return self._run(z, condition, outward=True)

    def _run(self, x: Array, condition: Array | None, *, outward: bool) -> tuple[Array, Scalar]:
        arrays, fixed = eqx.partition(self.layers, eqx.is_array)

        def one(carry: tuple[Array, Scalar], arrays: Bijection) -> tuple[tuple[Array, Scalar], None]:
            layer = eqx.combine(arrays, fixed)
            x, gained = (layer.outward if outward else layer.inward)(carry[0], condition)
            return (x, carry[1] + gained), None

        return jax.lax.scan(one, (x, jnp.zeros((), x.dtype)), arrays, reverse=outward)[0]


class Chain(Bijection):
    """Bijections one after another, each of the first entries only.

    Attributes:
        parts: The bijections.
        sizes: How many entries each takes.
    """

    parts: tuple[Bijection, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        total = jnp.zeros((), x.dtype)
        for part, size in zip(self.parts, self.sizes, strict=True):
            z, gained = part.inward(x[:size], condition)
            x, total = jnp.concatenate([z, x[size:]]), total + gained
        return x, total

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        total = jnp.zeros((), z.dtype)
        for part, size in zip(self.parts[::-1], self.sizes[::-1], strict=True):
            x, gained = part.outward(z[:size], condition)
            z, total = jnp.concatenate([x, z[size:]]), total + gained
        return z, total


class Inverse(Bijection):
    """The other way round."""

    of: Bijection

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        return self.of.outward(x, condition)

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        return self.of.inward(z, condition)
