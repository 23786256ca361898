r"""The posterior given many rows of data, from scores of the posterior given one.

Rows :math:`x_1, \dots, x_n` that are independent given the parameters :math:`u` have

.. math:: p(u \mid x_{1:n}) \propto \lambda(u)^{1-n} \prod_i p(u \mid x_i)

with the prior :math:`\lambda` (Geffner, Papamakarios and Mnih 2023, "Compositional score modeling for simulation-based
inference"). So a network that has seen single rows only answers for any number of them. Under noise, :math:`u_t = \alpha u
+ \sigma\varepsilon`, the product of the diffused laws is not the diffused product; but the law of clean parameters given
noisy ones is such a product at every time,

.. math:: p(u \mid u_t, x_{1:n}) \propto p_\lambda(u \mid u_t)^{1-n} \prod_i p(u \mid u_t, x_i)

With each factor taken as Gaussian, of means :math:`m_\lambda, m_i` and precisions :math:`P_\lambda, P_i`, the denoiser of
the product is

.. math:: m = m_\lambda + \Bigl(P_\lambda + \sum_i (P_i - P_\lambda)\Bigr)^{-1} \sum_i P_i (m_i - m_\lambda)

which is exact where the single-row posteriors and the prior are Gaussian, and otherwise an approximation that is best at
both ends of the path (Linhart, Victorino Cardoso, Gramfort, Le Corff and Rodrigues 2024, "Diffusion posterior sampling for
simulation-based inference in tall data settings"). What differs is where the precisions come from:

- ``Gauss``: :math:`P_i = \Sigma_i^{-1} + (\alpha/\sigma)^2`, with :math:`\Sigma_i` the covariance of draws given row i;
- ``Jacobian``: Tweedie's :math:`P_i^{-1} = \tfrac{\sigma^2}{\alpha}\,\partial m_i / \partial u_t`;
- ``AnnealedLangevin``: none. The scores themselves are added, and unadjusted Langevin moves follow :math:`\prod_i q_{i,t}\,
  q_{\lambda,t}^{1-n}` through falling noise: for moves that are short and many enough;
- ``Particles``: none. Weighted particles of that same product (``pg.generative.Product``), consistent as their number and
  that of the steps grow, whatever the laws are.

:math:`P_i - P_\lambda`, what a row tells, is made positive semidefinite, so that no precision is negative; for Gaussians it
is already. All of this multiplies the error of one score by up to :math:`n`: what is learned of one row must be good.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey
from probgen.generative.corrected import Correction, Product
from probgen.generative.denoiser import Denoiser, GaussianMixture, check_same
from probgen.generative.path import Path, Time, even_log_snr
from probgen.generative.sampler import Sampler, UniPC, sample_path

__all__ = ["AnnealedLangevin", "Composed", "Composition", "Gauss", "Jacobian", "Particles", "RowDenoisers"]

_BATCH = 256
_LEAST = 1e-6
"""Smallest eigenvalue of a covariance, as a share of the largest that it can have."""


class RowDenoisers(eqx.Module):
    """Denoisers that differ in some arrays: those of one network given one row each.

    Attributes:
        own: What differs, stacked along the first axis; ``None`` elsewhere.
        shared: The rest.
    """

    own: Denoiser
    shared: Denoiser

    @classmethod
    def stacked(cls, denoisers: Sequence[Denoiser]) -> RowDenoisers:
        """Denoisers of one kind, with arrays of the same shapes.

        Raises:
            MethodError: If there are none, or their paths differ.
        """
        if not denoisers:
            raise MethodError("RowDenoisers got no denoisers. Give one for each row.")
        check_same(tuple(denoisers))
        parts = [eqx.partition(denoiser, eqx.is_array) for denoiser in denoisers]
        own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part[0] for part in parts))
        return cls(own, parts[0][1])

    @property
    def count(self) -> int:
        """Number of rows."""
        return jax.tree.leaves(self.own)[0].shape[0]

    def one(self, i: int | Array) -> Denoiser:
        """That of one row."""
        return eqx.combine(jax.tree.map(lambda leaf: leaf[i], self.own), self.shared)

    def each(self, function: Any) -> Any:
        """Map a function of one denoiser over the rows; results are stacked along the first axis."""
        return jax.vmap(lambda own: function(eqx.combine(own, self.shared)))(self.own)


class Composed(Denoiser):
    """The denoiser of parameters given all rows, from those given one. See the module.

    Attributes:
        rows: Denoisers given one row each.
        prior: That of the prior.
        precision: Precision of the clean prior, shape ``(dim, dim)``; ``None`` for Tweedie's formula.
        gains: Precision that each row adds to it, positive semidefinite, shape ``(n, dim, dim)``; likewise.
        path: From data to noise.
    """

    rows: RowDenoisers
    prior: Denoiser
    precision: Array | None
    gains: Array | None
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.prior.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, sigma = self.path(t)
        if self.precision is None or self.gains is None:
            prior, base = _tweedie(self.prior, x, t)
            means, own = self.rows.each(lambda row: _tweedie(row, x, t))
            gains = jax.vmap(positive)(own - base)
        else:
            prior, base = self.prior.mean(x, t), self.precision + (alpha / sigma) ** 2 * jnp.eye(x.size)
            means, gains = self.rows.each(lambda row: row.mean(x, t)), self.gains
        moved = jnp.einsum("nij,nj->i", base + gains, means - prior)
        total = base + gains.sum(0)
        return (prior + jax.scipy.linalg.solve(total, moved, assume_a="pos")).astype(x.dtype)


def _tweedie(denoiser: Denoiser, x: Array, t: Time) -> tuple[Array, Array]:
    """Mean and precision of the data given a noisy value."""
    foreseen, (alpha, sigma) = denoiser(x, t), denoiser.path(t)
    covariance = foreseen.matrix()
    values, axes = jnp.linalg.eigh((covariance + covariance.T) / 2)
    largest = (sigma / alpha) ** 2
    return foreseen.mean, (axes / jnp.maximum(values, _LEAST * largest)) @ axes.T


def positive(matrix: Array) -> Array:
    """The closest positive semidefinite matrix to a symmetric one."""
    values, axes = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (axes * jnp.maximum(values, 0)) @ axes.T


class Composition(Part):
    """How single-row posteriors are composed."""

    said: ClassVar[str]
    """What it is, in a few words."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, rows: RowDenoisers, prior: Denoiser, count: int) -> Array:
        """Draws of the parameters given all rows, shape ``(count, dim)``, in the units of the denoisers."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""


def _counts(here: Any, *names: str) -> None:
    for name in names:
        if not is_count(getattr(here, name)):
            raise MethodError(
                f"{type(here).__name__} got {name}={getattr(here, name)!r}, expected an int of at least 1. Change {name}."
            )


def _sampler(here: Any) -> None:
    if not isinstance(here.sampler, Sampler):
        raise MethodError(f"{type(here).__name__} got sampler={here.sampler!r}, expected a sampler. Use UniPC().")


class Gauss(Composition):
    """Precisions from draws given each row (GAUSS). The cheaper of the two corrections: one evaluation of the network per
    row and step.

    Attributes:
        pilot: Draws given each row, from which its covariance is estimated.
        steps: Steps of the sampler.
        sampler: How to draw.
    """

    pilot: int = eqx.field(static=True, default=256)
    steps: int = eqx.field(static=True, default=64)
    sampler: Sampler = eqx.field(static=True, default=UniPC())

    said: ClassVar[str] = "scores with Gaussian precisions (GAUSS)"

    def check(self) -> None:
        """See ``Composition.check``."""
        _counts(self, "pilot", "steps")
        _sampler(self)

    def denoiser(self, key: PRNGKey, rows: RowDenoisers, prior: Denoiser) -> Composed:
        """The denoiser given all rows; its covariances are those of pilot draws."""
        dim = math.prod(prior.shape)
        if self.pilot < 2 * dim:
            raise MethodError(
                f"Gauss got pilot={self.pilot} draws for covariances in {dim} dimensions, expected at least {2 * dim}. Use "
                f"pilot={20 * dim}."
            )
        key_prior, key_rows = jax.random.split(key)
        keys = jax.random.split(key_rows, rows.count)
        precision = self._precision(key_prior, prior)
        own = jax.lax.map(lambda at: self._precision(at[0], rows.one(at[1])), (keys, jnp.arange(rows.count)))
        gains = jax.vmap(positive)(own - precision)
        return Composed(rows=rows, prior=prior, precision=precision, gains=gains, path=prior.path)

    def _precision(self, key: PRNGKey, denoiser: Denoiser) -> Array:
        if isinstance(denoiser, GaussianMixture) and len(denoiser.log_weights) == 1:
            return (denoiser.axes[0] / denoiser.variances[0]) @ denoiser.axes[0].T
        draws = _sampled(key, self.sampler, denoiser, self.steps, self.pilot)
        dim = draws.shape[1]
        covariance = jnp.cov(draws, rowvar=False).reshape(dim, dim)
        ridge = _LEAST * jnp.trace(covariance) / dim * jnp.eye(dim)
        # Scaled so that the inverse is right on average (the mean of an inverse Wishart).
        return (self.pilot - dim - 2) / (self.pilot - 1) * jnp.linalg.inv(covariance + ridge)

    def draw(self, key: PRNGKey, rows: RowDenoisers, prior: Denoiser, count: int) -> Array:
        """See ``Composition.draw``."""
        key_pilot, key_draw = jax.random.split(key)
        denoiser = self.denoiser(key_pilot, rows, prior)
        return _sampled(key_draw, self.sampler, denoiser, self.steps, count)


class Jacobian(Composition):
    """Precisions from derivatives of the denoisers (JAC). Takes ``dim`` derivatives of the network per row and step, and
    follows how the covariance changes with place and noise.

    Attributes:
        steps: Steps of the sampler.
        sampler: How to draw.
    """

    steps: int = eqx.field(static=True, default=64)
    sampler: Sampler = eqx.field(static=True, default=UniPC())

    said: ClassVar[str] = "scores with precisions by derivatives (JAC)"

    def check(self) -> None:
        """See ``Composition.check``."""
        _counts(self, "steps")
        _sampler(self)

    def denoiser(self, rows: RowDenoisers, prior: Denoiser) -> Composed:
        """The denoiser given all rows."""
        return Composed(rows=rows, prior=prior, precision=None, gains=None, path=prior.path)

    def draw(self, key: PRNGKey, rows: RowDenoisers, prior: Denoiser, count: int) -> Array:
        """See ``Composition.draw``."""
        return _sampled(key, self.sampler, self.denoiser(rows, prior), self.steps, count)


def _sampled(key: PRNGKey, sampler: Sampler, denoiser: Denoiser, steps: int, count: int) -> Array:
    times = even_log_snr(denoiser.path, steps)

    def one(key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        return sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    return jax.lax.map(one, jax.random.split(key, count), batch_size=_BATCH)


class AnnealedLangevin(Composition):
    r"""Langevin moves with the sum of the scores (F-NPSE), through falling noise.

    A move is :math:`u \leftarrow u + h s + \sqrt{2h}\,\xi` with :math:`h = \mathtt{step}\,\sigma^2 / n`, and is not
    adjusted: at variance :math:`v` it leaves :math:`v / (1 - h / 2v)`.

    Attributes:
        levels: Levels of noise.
        moves: Moves at each.
        step: Length of a move.
    """

    levels: int = eqx.field(static=True, default=200)
    moves: int = eqx.field(static=True, default=5)
    step: float = eqx.field(static=True, default=0.3)

    said: ClassVar[str] = "annealed Langevin moves with the sum of the scores (F-NPSE)"

    def check(self) -> None:
        """See ``Composition.check``."""
        _counts(self, "levels", "moves")
        if not (math.isfinite(self.step) and 0 < self.step < 2):
            raise MethodError(f"AnnealedLangevin got step={self.step!r}, expected 0 < step < 2. Use 0.3.")

    def draw(self, key: PRNGKey, rows: RowDenoisers, prior: Denoiser, count: int) -> Array:
        """See ``Composition.draw``."""
        n, path = rows.count, prior.path
        times = even_log_snr(path, self.levels)

        def score(x: Array, t: Array) -> Array:
            return rows.each(lambda row: row.score(x, t)).sum(0) + (1 - n) * prior.score(x, t)

        def one(key: PRNGKey) -> Array:
            key_noise, key_moves = jax.random.split(key)

            def move(x: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
                key, t = at
                h = self.step * path(t)[1] ** 2 / n
                noise = jax.random.normal(key, x.shape, x.dtype)
                return (x + h * score(x, t) + jnp.sqrt(2 * h) * noise).astype(x.dtype), None

            at = (jax.random.split(key_moves, len(times) * self.moves), jnp.repeat(times, self.moves))
            return jax.lax.scan(move, prior.draw_noise(key_noise), at)[0]

        return jax.lax.map(one, jax.random.split(key, count), batch_size=_BATCH)


class Particles(Composition):
    """Weighted particles of the product, whose error falls with their number and steps: the consistent composition. The
    network is compiled once per row, so it is meant for a few rows.

    Attributes:
        particles: Number of particles; at least as many as draws are asked for, if those are more.
        steps: Steps from noise to data.
    """

    particles: int = eqx.field(static=True, default=2048)
    steps: int = eqx.field(static=True, default=300)

    said: ClassVar[str] = "weighted particles of the product"

    def check(self) -> None:
        """See ``Composition.check``."""
        _counts(self, "particles", "steps")

    def product(self, rows: RowDenoisers, prior: Denoiser) -> Product:
        """The product, with its evidence: the density of all rows over the product of the densities of each."""
        parts = [rows.one(i) for i in range(rows.count)]
        powers = [1.0] * rows.count + [float(1 - rows.count)]
        return Product([*parts, prior], powers, correction=Correction(self.particles, self.steps))

    def draw(self, key: PRNGKey, rows: RowDenoisers, prior: Denoiser, count: int) -> Array:
        """See ``Composition.draw``."""
        return self.product(rows, prior).sample(key, (count,))
