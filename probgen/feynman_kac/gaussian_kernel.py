"""Linear-Gaussian kernels with likelihoods, and their composition: associative, so that a scan over time runs in parallel.

Reference: Särkkä and García-Fernández (2021), "Temporal parallelization of Bayesian smoothers", lemma 8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["GaussianKernel", "compose_laws", "compose_points", "symmetric", "then"]


class GaussianKernel(NamedTuple):
    """Law ``N(transition u + shift, covariance)`` of the next state given ``u`` and the data between, and the log
    likelihood ``-u' precision u / 2 + eta' u`` of those data."""

    transition: Array
    shift: Array
    covariance: Array
    eta: Array
    precision: Array


def then(one: GaussianKernel, two: GaussianKernel) -> GaussianKernel:
    """First ``one``, then ``two``."""
    d = one.shift.shape[0]
    a, b, c = one.transition, one.shift[:, None], one.covariance
    known = c @ jnp.concatenate([two.precision, two.eta[:, None]], axis=1)
    told = two.precision @ jnp.concatenate([a, b], axis=1)
    # (I + C J)^-1 from the left and its transpose; C may be singular, so that no Cholesky factor gives it.
    q, r = jnp.linalg.qr(jnp.eye(d, dtype=a.dtype) + known[:, :d])
    right = q.T @ jnp.concatenate([a, b + known[:, d:], c], axis=1)
    left = jnp.concatenate([told[:, :d], two.eta[:, None] - told[:, d:]], axis=1)
    moved = two.transition @ jax.scipy.linalg.solve_triangular(r, right)
    pulled = a.T @ (q @ jax.scipy.linalg.solve_triangular(r, left, trans=1))
    return GaussianKernel(
        moved[:, :d],
        moved[:, d] + two.shift,
        symmetric(moved[:, d + 1 :] @ two.transition.T + two.covariance),
        pulled[:, d] + one.eta,
        symmetric(pulled[:, :d] + one.precision),
    )


def compose_laws(one: tuple[Array, Array, Array], two: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """First one affine map with noise, ``(matrix, shift, covariance)``, then another; leading axes are kept."""
    (a1, c1, p1), (a2, c2, p2) = one, two
    return a2 @ a1, jnp.einsum("...ij,...j->...i", a2, c1) + c2, symmetric(a2 @ p1 @ a2.mT + p2)


def compose_points(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    """First one affine map, ``(matrix, shift)``, then another; leading axes are kept."""
    (a1, c1), (a2, c2) = one, two
    return a2 @ a1, jnp.einsum("...ij,...j->...i", a2, c1) + c2


def symmetric(a: Array) -> Array:
    """The symmetric part of a matrix."""
    return 0.5 * (a + a.mT)
