r"""Linear multivariate diffusions: paths to noise in a space of data and auxiliary variables.

Data of :math:`m` rows and :math:`n` columns are joined by auxiliary rows, :math:`z \in R^{K \times n}`, and all columns
follow the same equation

.. math:: dz = \beta(t)\, A z\, dt + \sqrt{\beta(t)}\, N^{1/2} dW, \qquad z_0 = (x_0, v_0), \quad v_0 \sim N(0, V_0).

Given the data, with the auxiliary rows integrated out, :math:`z_t` is Gaussian, column by column, of mean
:math:`\Phi_x x_0` and covariance :math:`P`,

.. math:: \Phi = e^{A b}, \quad P = \int_0^b e^{A u} N e^{A^T u} du + \Phi_v V_0 \Phi_v^T, \quad b = \int_0^t \beta,

both from one exponential of a :math:`2K \times 2K` matrix (Van Loan 1978), by squaring, which is as exact for short as for
long times. The complete recipe (Ma, Chen and Fox 2015)

.. math:: A = -(D + Q) S^{-1}, \quad N = 2 D, \qquad D = D^T \ge 0, \; Q = -Q^T

is all that has the stationary law :math:`N(0, S)`. What a noisy value says about the data goes through
:math:`\hat y = T \Phi_x^T P^{-1} z = x_0 + N(0, T)` with :math:`T = (\Phi_x^T P^{-1} \Phi_x)^{-1}` alone, so with one row
of data *every* such path has the denoiser of an ordinary diffusion, at the noise level :math:`\sqrt T`.

References: Pandey and Mandt (2023), "Generative diffusions in augmented spaces: a complete recipe" (PSLD); Dockhorn,
Vahdat and Kreis (2022) (CLD, ``phase_space(position=0)``); Singhal, Goldstein and Ranganath (2023), "Where to diffuse,
how to diffuse, and how to get back" (MDM); Du, Zhang, Yang, Liu and Chen (2023), "A flexible diffusion model"
(``spatial``).
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import Scalar
from probgen.generative.path import Time

__all__ = ["CompleteRecipe", "LinearPath", "phase_space", "spatial"]

_SQUARINGS, _TERMS = 10, 12

type Matrix = tuple[tuple[float, ...], ...]


class LinearPath(eqx.Module):
    r"""A linear diffusion of :math:`K` rows, of which the first are data.

    Attributes:
        drift: :math:`A`, shape ``(K, K)``.
        noise: :math:`N`, symmetric, shape ``(K, K)``.
        initial: Variances :math:`V_0` of the auxiliary rows at the beginning, shape ``(K - m,)``.
        end_covariance: Covariance of each column at the noise end, where sampling begins, shape ``(K, K)``.
        beta: Rate at ``t = 0`` and ``t = 1``, linear between.
        start: Data end.
        end: Noise end.
    """

    drift: Array
    noise: Array
    initial: Array
    end_covariance: Array
    beta: tuple[float, float] = eqx.field(static=True, default=(0.1, 20.0))
    start: float = eqx.field(static=True, default=1e-3)
    end: float = eqx.field(static=True, default=1.0)

    @property
    def rows(self) -> int:
        """Number of rows of data."""
        return self.drift.shape[0] - self.initial.shape[0]

    def rate(self, t: Time) -> Scalar:
        r""":math:`\beta(t)`."""
        return self.beta[0] + (self.beta[1] - self.beta[0]) * jnp.asarray(t, float)

    def elapsed(self, t: Time) -> Scalar:
        r""":math:`b = \int_0^t \beta`."""
        t = jnp.asarray(t, float)
        return self.beta[0] * t + 0.5 * (self.beta[1] - self.beta[0]) * t**2

    def transition(self, t: Time, s: Time = 0.0) -> tuple[Array, Array]:
        r"""Matrix and covariance of :math:`z_t` given :math:`z_s`, for ``s <= t``, shape ``(K, K)`` each."""
        size = self.drift.shape[0]
        short = (self.elapsed(t) - self.elapsed(s)) / 2**_SQUARINGS
        block = short * jnp.block([[self.drift, self.noise], [jnp.zeros_like(self.drift), -self.drift.T]])
        power = total = jnp.eye(2 * size, dtype=block.dtype)
        for k in range(1, _TERMS):
            power = power @ block / k
            total = total + power
        phi, covariance = total[:size, :size], total[:size, size:] @ total[:size, :size].T
        for _ in range(_SQUARINGS):
            phi, covariance = phi @ phi, covariance + phi @ covariance @ phi.T
        return phi, (covariance + covariance.T) / 2

    def moments(self, t: Time) -> tuple[Array, Array]:
        r"""What :math:`z_t` is given the data.

        Returns:
            ``(phi, p)``: :math:`\Phi_x`, shape ``(K, m)``, and the covariance :math:`P`, shape ``(K, K)``.
        """
        phi, covariance = self.transition(t)
        of_data, of_rest = phi[:, : self.rows], phi[:, self.rows :]
        return of_data, covariance + (of_rest * self.initial) @ of_rest.T

    def information(self, t: Time) -> Array:
        r""":math:`\Phi_x^T P^{-1} \Phi_x`, what :math:`z_t` says about a column of the data, shape ``(m, m)``."""
        phi, p = self.moments(t)
        return phi.T @ jnp.linalg.solve(p, phi)

    def log_level(self, t: Time) -> Scalar:
        """Log of the noise level of what is said about the data: half the log determinant of the covariance T, by
        row. It grows with ``t``."""
        return -0.5 * jnp.linalg.slogdet(self.information(t))[1] / self.rows

    def times(self, steps: int) -> Array:
        """Times from the noise end to the data end, evenly spaced in ``log_level``, shape ``(steps + 1,)``."""
        if not is_count(steps):
            raise MethodError(f"steps must be an int of at least 1, got {steps!r}. Use 100 or more.")
        # The log level on a grid that is even in the log of the time, and the inverse by interpolation.
        dense = jnp.geomspace(self.start, self.end, 513)
        levels = jax.vmap(self.log_level)(dense)
        wanted = jnp.linspace(levels[-1], levels[0], steps + 1)
        times = jnp.exp(jnp.interp(wanted, levels, jnp.log(dense)))
        return times.at[0].set(self.end).at[-1].set(self.start)


class CompleteRecipe(Part):
    r"""A linear diffusion with the stationary law :math:`N(0, S)`, as a setting: rows of numbers.

    Attributes:
        root: Lower triangular :math:`L` of :math:`D = L L^T`.
        skew: :math:`U` of :math:`Q = U - U^T`.
        stationary: :math:`S`, symmetric and positive definite.
        initial: Variances of the auxiliary rows at the beginning; the other rows are data.
        beta: Rate at ``t = 0`` and ``t = 1``.
        start: Data end.
        end: Noise end.
    """

    root: Matrix = eqx.field(static=True)
    skew: Matrix = eqx.field(static=True)
    stationary: Matrix = eqx.field(static=True)
    initial: tuple[float, ...] = eqx.field(static=True)
    beta: tuple[float, float] = eqx.field(static=True, default=(0.1, 20.0))
    start: float = eqx.field(static=True, default=1e-3)
    end: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        size = len(self.root)
        for name in ("root", "skew", "stationary"):
            shape = np.shape(getattr(self, name))
            if shape != (size, size):
                raise MethodError(f"CompleteRecipe got {name} of shape {shape}, expected {(size, size)} as for root.")
        stationary = np.asarray(self.stationary, float)
        if not np.allclose(stationary, stationary.T) or np.linalg.eigvalsh(stationary).min() <= 0:
            raise MethodError("CompleteRecipe got a stationary covariance that is not symmetric and positive definite.")
        if not np.allclose(self.root, np.tril(np.asarray(self.root, float))):
            raise MethodError("CompleteRecipe got a root that is not lower triangular. Give a Cholesky factor of D.")
        if not (len(self.initial) < size and all(v > 0 for v in self.initial)):
            raise MethodError(
                f"CompleteRecipe got initial={self.initial} with {size} rows, expected positive variances of fewer "
                f"auxiliary rows than there are rows."
            )
        if not (0 < self.beta[0] <= self.beta[1] and 0 < self.start < self.end <= 1):
            raise MethodError(
                f"CompleteRecipe got beta={self.beta}, start={self.start}, end={self.end}, expected rates that are "
                f"positive and do not fall, and 0 < start < end <= 1."
            )
        if not np.linalg.eigvalsh(self._first_covariance()).min() > 0:
            raise MethodError(
                "with these matrices noise does not reach every row by the start of the path. Raise start or the rank of D."
            )

    def _first_covariance(self) -> np.ndarray:
        """:math:`P` at ``start``, without JAX: a recipe is a setting, and is judged where modules are imported."""
        from scipy.linalg import expm

        root, skew = np.asarray(self.root, float), np.asarray(self.skew, float)
        noise = 2 * root @ root.T
        drift = -(root @ root.T + skew - skew.T) @ np.linalg.inv(np.asarray(self.stationary, float))
        elapsed = self.beta[0] * self.start + 0.5 * (self.beta[1] - self.beta[0]) * self.start**2
        size = len(root)
        power = expm(elapsed * np.block([[drift, noise], [np.zeros_like(drift), -drift.T]]))
        phi = power[:size, :size]
        of_rest = phi[:, self.rows :]
        return power[:size, size:] @ phi.T + (of_rest * np.asarray(self.initial)) @ of_rest.T

    @property
    def rows(self) -> int:
        """Number of rows of data."""
        return len(self.root) - len(self.initial)

    def path(self, root: Array | None = None, skew: Array | None = None) -> LinearPath:
        """The path, with these or other matrices ``root`` and ``skew``: its stationary law stays what it is."""
        root = jnp.asarray(self.root, float) if root is None else root
        skew = jnp.asarray(self.skew, float) if skew is None else skew
        stationary = jnp.asarray(np.asarray(self.stationary, float)).astype(root.dtype)
        precision = jnp.asarray(np.linalg.inv(np.asarray(self.stationary, float))).astype(root.dtype)
        lower = jnp.tril(root)
        diffusion = lower @ lower.T
        drift = -(diffusion + skew - skew.T) @ precision
        initial = jnp.asarray(self.initial, root.dtype)
        return LinearPath(drift, 2 * diffusion, initial, stationary, self.beta, self.start, self.end)


def phase_space(
    position: float = 0.02, *, mass: float = 0.25, friction: float | None = None, initial: float = 0.04
) -> CompleteRecipe:
    r"""Position and momentum (PSLD): :math:`D = \frac12 \operatorname{diag}(\Gamma, M \nu)`, :math:`Q` the rotation.

    Args:
        position: :math:`\Gamma`, noise in the positions, >= 0; at 0, noise comes through the momenta alone (CLD).
        mass: :math:`M` > 0, the stationary variance of the momenta.
        friction: :math:`\nu`, noise in the momenta; critical damping, :math:`\Gamma + 2 / \sqrt M`, if left out.
        initial: Variance of the momenta at the beginning, as a share of the mass.
    """
    if not (position >= 0 and mass > 0 and initial > 0 and (friction is None or friction > 0)):
        raise MethodError(
            f"phase_space got position={position}, mass={mass}, friction={friction}, initial={initial}, expected "
            f"position >= 0 and the others positive."
        )
    nu = position + 2 / math.sqrt(mass) if friction is None else friction
    # With S = diag(1, M): dx = beta/2 (-Gamma x + v/M), dv = beta/2 (-x - nu v).
    root = ((math.sqrt(position / 2), 0.0), (0.0, math.sqrt(mass * nu / 2)))
    return CompleteRecipe(root, ((0.0, -0.5), (0.0, 0.0)), ((1.0, 0.0), (0.0, mass)), (initial * mass,))


def spatial(metric: Matrix, form: Matrix) -> CompleteRecipe:
    r"""No auxiliary variables: a diffusion whose noise differs by direction and turns, :math:`D = \frac12 R^{-1}`,
    :math:`Q = \frac12 \omega`, :math:`S = I`.

    Args:
        metric: :math:`R^{-1}`, symmetric and positive definite, one row for each entry of the data.
        form: :math:`\omega`, antisymmetric.
    """
    inverse, turn = np.asarray(metric, float), np.asarray(form, float)
    if inverse.ndim != 2 or inverse.shape[0] != inverse.shape[1] or turn.shape != inverse.shape:
        raise MethodError(f"spatial got matrices of shapes {inverse.shape} and {turn.shape}, expected two square ones.")
    if not np.allclose(inverse, inverse.T) or np.linalg.eigvalsh(inverse).min() <= 0 or not np.allclose(turn, -turn.T):
        raise MethodError("spatial needs a symmetric positive definite metric and an antisymmetric form. Check them.")
    parts = np.linalg.cholesky(inverse / 2), np.triu(turn) / 2, np.eye(len(inverse))
    root, skew, stationary = (tuple(map(tuple, part.tolist())) for part in parts)
    return CompleteRecipe(root, skew, stationary, ())
