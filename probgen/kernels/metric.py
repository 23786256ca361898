r"""The metric: a linear map that makes the posterior round, learned during warm-up.

A transition from ``u`` runs in whitened coordinates ``z`` with :math:`u' = u + L z`, where :math:`L L^\top` is the inverse mass matrix: the engine always
sees the identity metric, so its cost per leapfrog step does not depend on the kind of metric, and every gradient-based kernel gets the same adaptation.

The map minimises the Fisher divergence between the whitened posterior and a standard normal over the draws of a window. With :math:`C` the covariance of the
draws and :math:`G` that of the gradients, the optimum over dense metrics is the geometric mean :math:`C \# G^{-1}`, over diagonal ones
:math:`\sigma^2 = \sqrt{C_{ii} / G_{ii}}` (Seyboldt, Carlson, Carpenter 2026, arXiv:2603.18845). On a Gaussian it is exact after ``dim + 1`` draws, where a sample covariance
still has noise. Eigenvalues of the correction between ``1/CUTOFF`` and ``CUTOFF`` are set to one: they would add noise and no speed.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Position, Scalar

__all__ = [
    "DENSE_LIMIT",
    "DenseMetric",
    "Estimate",
    "LowRankMetric",
    "Metric",
    "dense_metric",
    "low_rank_metric",
    "start_metric",
]

DENSE_LIMIT = 64
"""Largest dimension for which a dense metric is kept; above, low rank plus diagonal."""
CUTOFF = 2.0
RIDGE = 1e-5
"""Added to both covariances, in units of the diagonal optimum: directions that the window has not explored keep scale one."""


class Metric(eqx.Module):
    """A linear map :math:`L` between whitened and unconstrained coordinates."""

    @abc.abstractmethod
    def push(self, z: Array) -> Array:
        """:math:`L z`."""

    @abc.abstractmethod
    def pull(self, g: Array) -> Array:
        r""":math:`L^\top g`: a gradient in whitened coordinates."""

    @abc.abstractmethod
    def pull_back(self, g: Array) -> Array:
        r""":math:`L^{-\top} g`: the inverse of ``pull``."""


class DenseMetric(Metric):
    """Any symmetric map in small dimension. ``inverse`` is kept so that no step solves a system."""

    root: Array
    inverse: Array

    def push(self, z: Array) -> Array:
        return self.root @ z

    def pull(self, g: Array) -> Array:
        return self.root.T @ g

    def pull_back(self, g: Array) -> Array:
        return self.inverse.T @ g


class LowRankMetric(Metric):
    r""":math:`L = D (I + U (\Lambda^{1/2} - I) U^\top)`: a scale per coordinate and a few directions, O(dim rank)."""

    scale: Array
    directions: Array
    values: Array

    def push(self, z: Array) -> Array:
        return self.scale * self._apply(z, jnp.sqrt(self.values))

    def pull(self, g: Array) -> Array:
        return self._apply(self.scale * g, jnp.sqrt(self.values))

    def pull_back(self, g: Array) -> Array:
        return self._apply(g, 1 / jnp.sqrt(self.values)) / self.scale

    def _apply(self, z: Array, values: Array) -> Array:
        return z + self.directions @ ((values - 1) * (self.directions.T @ z))


class Estimate(eqx.Module):
    """Running moments of draws and gradients over one window (Welford)."""

    count: Scalar
    draw_mean: Array
    grad_mean: Array
    draw_cov: Array
    grad_cov: Array

    @classmethod
    def empty(cls, dim: int) -> Estimate:
        """No draws yet."""
        zeros, square = jnp.zeros(dim), jnp.zeros((dim, dim))
        return cls(jnp.zeros(()), zeros, zeros, square, square)

    def add(self, u: Position, grad: Array) -> Estimate:
        """Add one draw and its gradient; both in unconstrained coordinates."""
        count = self.count + 1
        to_draw, to_grad = u - self.draw_mean, grad - self.grad_mean
        draw_mean, grad_mean = self.draw_mean + to_draw / count, self.grad_mean + to_grad / count
        return Estimate(
            count,
            draw_mean,
            grad_mean,
            self.draw_cov + jnp.outer(to_draw, u - draw_mean),
            self.grad_cov + jnp.outer(to_grad, grad - grad_mean),
        )


def start_metric(grad: Array, rank: int) -> Metric:
    """A first guess from one gradient: coordinates with steep gradients are narrow.

    Args:
        grad: Gradient at the starting point.
        rank: Directions of a low-rank metric; 0 for a dense one.
    """
    scale = jnp.clip(1 / jnp.sqrt(jnp.clip(jnp.abs(grad), 1e-10)), 1e-3, 1e1)
    if rank == 0:
        return DenseMetric(jnp.diag(scale), jnp.diag(1 / scale))
    return LowRankMetric(scale, jnp.eye(grad.shape[0], rank), jnp.ones(rank))


def dense_metric(estimate: Estimate) -> DenseMetric:
    """The metric of least Fisher divergence over the draws of a window."""
    draws, grads = estimate.draw_cov / estimate.count, estimate.grad_cov / estimate.count
    scale = _diagonal(jnp.diag(draws), jnp.diag(grads))
    eye = jnp.eye(scale.shape[0])
    c = draws / jnp.outer(scale, scale) + RIDGE * eye
    g = grads * jnp.outer(scale, scale) + RIDGE * eye
    g_root, g_inverse_root = _power(g, 0.5), _power(g, -0.5)
    mean = g_inverse_root @ _power(g_root @ c @ g_root, 0.5) @ g_inverse_root
    values, vectors = jnp.linalg.eigh((mean + mean.T) / 2)
    values = jnp.where((values > CUTOFF) | (values < 1 / CUTOFF), jnp.clip(values, 1e-12), 1.0)
    root = (vectors * jnp.sqrt(values)) @ vectors.T
    inverse = (vectors / jnp.sqrt(values)) @ vectors.T
    return DenseMetric(scale[:, None] * root, inverse / scale[None, :])


def _diagonal(draw_var: Array, grad_var: Array) -> Array:
    scale = jnp.sqrt(jnp.sqrt(draw_var / grad_var))
    return jnp.where(jnp.isfinite(scale) & (scale > 0), jnp.clip(scale, 1e-10, 1e10), 1.0)


def _power(matrix: Array, exponent: float) -> Array:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * jnp.clip(values, 1e-20) ** exponent) @ vectors.T


def low_rank_metric(draws: Array, grads: Array, rank: int) -> LowRankMetric:
    """As ``dense_metric``, from stored draws and gradients (shape ``(n, dim)``), within the span of both.

    Args:
        draws: Draws of a window in unconstrained coordinates.
        grads: Their gradients.
        rank: Number of directions to keep.
    """
    draws, grads = draws - draws.mean(0), grads - grads.mean(0)
    count = draws.shape[0]
    scale = _diagonal(jnp.mean(draws**2, 0), jnp.mean(grads**2, 0))
    x, s = draws / scale, grads * scale
    basis = jnp.linalg.qr(jnp.concatenate([x, s]).T)[0]  # (dim, <= 2n)
    x, s = x @ basis, s @ basis
    eye = jnp.eye(basis.shape[1])
    c, g = x.T @ x / count + RIDGE * eye, s.T @ s / count + RIDGE * eye
    g_root, g_inverse_root = _power(g, 0.5), _power(g, -0.5)
    mean = g_inverse_root @ _power(g_root @ c @ g_root, 0.5) @ g_inverse_root
    values, vectors = jnp.linalg.eigh((mean + mean.T) / 2)
    values = jnp.where((values > CUTOFF) | (values < 1 / CUTOFF), jnp.clip(values, 1e-12), 1.0)
    kept = jax.lax.top_k(jnp.abs(jnp.log(values)), rank)[1]
    return LowRankMetric(scale, basis @ vectors[:, kept], values[kept])
