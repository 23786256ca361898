"""Units in which every entry of the data has mean 0 and standard deviation 1."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Scalar
from probgen.nets.constant import Constant

__all__ = ["Standardisation"]


class Standardisation(eqx.Module):
    """The affine map between data and standard units, entry by entry.

    Attributes:
        loc: Mean of the data, the shape of one datum.
        scale: Standard deviation; 1 where the data are constant.
    """

    loc: Constant
    scale: Constant

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.loc, self.scale = Constant(jnp.zeros(shape, jnp.float32)), Constant(jnp.ones(shape, jnp.float32))

    def adapted(self, x: Array) -> Standardisation:
        """That of data, shape ``(n, *shape)``."""
        loc, scale = x.mean(0), x.std(0)
        # Of a column of one value, rounding leaves a deviation that is all noise.
        scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
        return eqx.tree_at(lambda s: (s.loc.value, s.scale.value), self, (loc, scale))

    def inward(self, x: Array) -> Array:
        """From data to standard units."""
        return (x - self.loc.value) / self.scale.value

    def outward(self, x: Array) -> Array:
        """From standard units to data."""
        return self.loc.value + self.scale.value * x

    def log_det(self) -> Scalar:
        """Log determinant of ``inward``: what a log density in standard units gains in data units."""
        return -jnp.sum(jnp.log(self.scale.value))
