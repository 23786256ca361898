"""A Gaussian as a map between a vector and standard normal noise."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Scalar

__all__ = ["Whitening"]


class Whitening(eqx.Module):
    r"""The units of a Gaussian with mean :math:`m` and covariance :math:`R\, (C C^\top)^{-1} R^\top`: :math:`r = C^\top
    R^{-1} (u - m)` is standard normal.

    Two factors, so that no covariance is ever formed or factorised anew: a precision is known where rows are multiplied.

    Attributes:
        loc: ``m``, shape ``(dim,)``.
        outer: ``R``, shape ``(dim, dim)``, lower triangular.
        inner: ``C``, shape ``(dim, dim)``, lower triangular; ``None`` for the identity.
    """

    loc: Array
    outer: Array
    inner: Array | None = None

    def inward(self, u: Array) -> Array:
        """From parameters to residuals, shape ``(dim,)``."""
        rest = u - self.loc
        rest = jax.scipy.linalg.solve_triangular(self.outer.astype(rest.dtype), rest, lower=True)
        return rest if self.inner is None else self.inner.T.astype(rest.dtype) @ rest

    def outward(self, rest: Array) -> Array:
        """From residuals to parameters."""
        if self.inner is not None:
            rest = jax.scipy.linalg.solve_triangular(self.inner.astype(rest.dtype), rest, lower=True, trans="T")
        return self.outer @ rest + self.loc

    def log_det(self) -> Scalar:
        """Log determinant of ``inward``."""
        inner = 0.0 if self.inner is None else jnp.sum(jnp.log(jnp.diagonal(self.inner)))
        return inner - jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.outer))))

    def log_density(self, u: Array) -> Scalar:
        """Of the Gaussian."""
        rest = self.inward(u)
        return self.log_det() - 0.5 * rest @ rest - 0.5 * u.size * math.log(2 * math.pi)
