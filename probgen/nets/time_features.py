"""A scalar as a vector of waves."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array

__all__ = ["TimeFeatures"]


class TimeFeatures(eqx.Module):
    r"""A time in :math:`[0, 1]` (or another number of that order) as :math:`(\sin 2\pi\omega_i t, \cos 2\pi\omega_i t)_i`
    with frequencies spaced evenly on a log scale (Vaswani et al. 2017).

    Attributes:
        size: Length of the vector, even.
        most: Largest frequency; the least is 1/4, so that the ends of the unit interval are told apart.
    """

    size: int = eqx.field(static=True, default=32)
    most: float = eqx.field(static=True, default=16.0)

    def __call__(self, t: Array | float) -> Array:
        """Shape ``(size,)``."""
        waves = jnp.geomspace(0.25, self.most, self.size // 2, dtype=jnp.result_type(t, jnp.float32))
        angles = 2 * jnp.pi * waves * t
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
