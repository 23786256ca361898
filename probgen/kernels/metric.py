r"""The metric: a linear map that makes the posterior round, learned during warm-up.

A transition from ``u`` runs in whitened coordinates ``z`` with :math:`u' = u + L z`, where :math:`L L^\top` is the
inverse mass matrix: the engine always sees the identity metric, so its cost per leapfrog step does not depend on the
kind of metric, and every gradient-based kernel gets the same adaptation.

The map minimises the Fisher divergence between the whitened posterior and a standard normal over the draws of a
window. With :math:`C` the covariance of the draws and :math:`G` that of the gradients, the optimum over dense metrics
is the geometric mean :math:`M = C \# G^{-1}`, over diagonal ones :math:`\sigma^2 = \sqrt{C_{ii} / G_{ii}}`
(Seyboldt, Carlson, Carpenter 2026, arXiv:2603.18845). On a Gaussian it is exact after ``dim + 1`` draws, where a
sample covariance still has noise.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Position, Scalar

__all__ = ["DENSE_LIMIT", "DenseMetric", "Estimate", "LowRankMetric", "Metric", "estimate_of"]

DENSE_LIMIT = 64
"""Largest dimension in which ``auto`` keeps a dense metric; above, low rank plus diagonal."""
RIDGE = 0.35
"""The machine epsilon to this power is added to both covariances, in units of the diagonal optimum: what a window has
not explored keeps scale one, and what it has explored is hardly blurred."""
RANK = 32
KEPT = 100
"""Draws that a low-rank estimate keeps of each window (its last ones)."""


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


class DiagonalMetric(Metric):
    """A scale per coordinate."""

    scale: Array

    def push(self, z: Array) -> Array:
        return self.scale * z

    def pull(self, g: Array) -> Array:
        return self.scale * g

    def pull_back(self, g: Array) -> Array:
        return g / self.scale


class DenseMetric(Metric):
    """Any invertible map. ``inverse`` is kept so that no step solves a system."""

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
    """What one window of the warm-up has learned about the posterior's shape."""

    @classmethod
    @abc.abstractmethod
    def empty(cls, dim: int) -> Estimate:
        """No draws yet."""

    @classmethod
    @abc.abstractmethod
    def start(cls, grad: Array) -> Metric:
        """A first guess of the metric from one gradient: coordinates with steep gradients are narrow."""

    @abc.abstractmethod
    def add(self, u: Position, grad: Array) -> Estimate:
        """Add one draw and its gradient, both in unconstrained coordinates."""

    @abc.abstractmethod
    def metric(self) -> Metric:
        """The metric of least Fisher divergence over what was seen."""


class DiagonalEstimate(Estimate):
    """Running means and variances (Welford)."""

    count: Scalar
    means: Array
    squares: Array

    @classmethod
    def empty(cls, dim: int) -> DiagonalEstimate:
        return cls(jnp.zeros(()), jnp.zeros((2, dim)), jnp.zeros((2, dim)))

    @classmethod
    def start(cls, grad: Array) -> DiagonalMetric:
        return DiagonalMetric(_start_scale(grad))

    def add(self, u: Position, grad: Array) -> DiagonalEstimate:
        new, count = jnp.stack([u, grad]), self.count + 1
        before = new - self.means
        means = self.means + before / count
        return DiagonalEstimate(count, means, self.squares + before * (new - means))

    def metric(self) -> DiagonalMetric:
        draws, grads = self.squares
        return DiagonalMetric(_diagonal(draws, grads))


class DenseEstimate(Estimate):
    """Running covariances of draws and of gradients (Welford)."""

    count: Scalar
    means: Array
    products: Array

    @classmethod
    def empty(cls, dim: int) -> DenseEstimate:
        return cls(jnp.zeros(()), jnp.zeros((2, dim)), jnp.zeros((2, dim, dim)))

    @classmethod
    def start(cls, grad: Array) -> DenseMetric:
        scale = _start_scale(grad)
        return DenseMetric(jnp.diag(scale), jnp.diag(1 / scale))

    def add(self, u: Position, grad: Array) -> DenseEstimate:
        new, count = jnp.stack([u, grad]), self.count + 1
        before = new - self.means
        means = self.means + before / count
        return DenseEstimate(count, means, self.products + before[:, :, None] * (new - means)[:, None, :])

    def metric(self) -> DenseMetric:
        draws, grads = self.products / self.count
        scale = _diagonal(jnp.diag(draws), jnp.diag(grads))
        values, vectors = _correction(draws / jnp.outer(scale, scale), grads * jnp.outer(scale, scale))
        root = (vectors * jnp.sqrt(values)) @ vectors.T
        inverse = (vectors / jnp.sqrt(values)) @ vectors.T
        return DenseMetric(scale[:, None] * root, inverse / scale[None, :])


class LowRankEstimate(Estimate):
    """Running variances, and the last draws and gradients of the window."""

    diagonal: DiagonalEstimate
    last: Array

    @classmethod
    def empty(cls, dim: int) -> LowRankEstimate:
        return cls(DiagonalEstimate.empty(dim), jnp.zeros((KEPT, 2, dim)))

    @classmethod
    def start(cls, grad: Array) -> LowRankMetric:
        rank = min(RANK, grad.shape[0])
        return LowRankMetric(_start_scale(grad), jnp.eye(grad.shape[0], rank), jnp.ones(rank))

    def add(self, u: Position, grad: Array) -> LowRankEstimate:
        slot = self.diagonal.count.astype(int) % KEPT
        return LowRankEstimate(self.diagonal.add(u, grad), self.last.at[slot].set(jnp.stack([u, grad])))

    def metric(self) -> LowRankMetric:
        scale = self.diagonal.metric().scale
        count = jnp.minimum(self.diagonal.count, KEPT)
        filled = (jnp.arange(KEPT) < count)[:, None]
        centred = [jnp.where(filled, x - x.sum(0) / count, 0.0) for x in (self.last[:, 0], self.last[:, 1])]
        draws, grads = centred[0] / scale, centred[1] * scale
        basis = jnp.linalg.qr(jnp.concatenate([draws, grads]).T)[0]
        draws, grads = draws @ basis, grads @ basis
        values, vectors = _correction(draws.T @ draws / count, grads.T @ grads / count)
        kept = jax.lax.top_k(jnp.abs(jnp.log(values)), min(RANK, values.shape[0]))[1]
        return LowRankMetric(scale, basis @ vectors[:, kept], values[kept])


def estimate_of(kind: str, dim: int) -> type[Estimate]:
    """How the metric called ``kind`` is estimated: ``auto`` is dense up to ``DENSE_LIMIT`` coordinates, low rank above."""
    if kind == "auto":
        kind = "dense" if dim <= DENSE_LIMIT else "low_rank"
    return {"dense": DenseEstimate, "diagonal": DiagonalEstimate, "low_rank": LowRankEstimate}[kind]


def _start_scale(grad: Array) -> Array:
    return jnp.clip(1 / jnp.sqrt(jnp.clip(jnp.abs(grad), 1e-10)), 1e-3, 1e1)


def _diagonal(draw_var: Array, grad_var: Array) -> Array:
    scale = jnp.sqrt(jnp.sqrt(draw_var / grad_var))
    return jnp.where(jnp.isfinite(scale) & (scale > 0), jnp.clip(scale, 1e-10, 1e10), 1.0)


def _correction(draws: Array, grads: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of the optimum, from covariances in units of the diagonal optimum."""
    ridge = float(jnp.finfo(draws.dtype).eps) ** RIDGE
    c_root, g_root = _root(draws, ridge), _root(grads, ridge)
    # C # G^-1 = C^1/2 (C^1/2 G C^1/2)^-1/2 C^1/2. Singular values of the roots and not eigenvalues of the products:
    # where a window has fewer draws than dimensions, the square of the ridge would drown in rounding.
    _, values, vectors = jnp.linalg.svd(g_root @ c_root)
    _, values, vectors = jnp.linalg.svd((vectors / jnp.sqrt(values)[:, None]) @ c_root)
    return jnp.clip(values**2, 1e-12), vectors.T


def _root(matrix: Array, ridge: float) -> Array:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * jnp.sqrt(jnp.clip(values, 0.0) + ridge)) @ vectors.T
