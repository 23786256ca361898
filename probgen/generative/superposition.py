r"""Superposition of diffusion models: what one *or* another would draw, and what both find *equally* likely.

Particles follow the usual stochastic equation with a mixed score,

.. math:: dx = \bigl(u - \tfrac12 g^2 \bar s\bigr) dt + g\, dW, \qquad \bar s = \sum_i \kappa_i s_i, \quad \sum_i \kappa_i = 1

backwards in time, :math:`u` the velocity that belongs to :math:`\bar s`. Every particle keeps an estimate of its log
densities :math:`\log q_i`, from scores alone (``feynman_kac/correctors.py``), and the shares :math:`\kappa` depend on
them (Skreta et al. 2025, "The superposition of diffusion models using the Itô density estimator"):

- ``Either``: :math:`\kappa = \operatorname{softmax}(T \log q_i + \ell_i)`. With :math:`T = 1` and :math:`\ell = \log w`
  this is the score of the mixture :math:`\sum_i w_i q_i`, whose law the particles then have.
- ``Both``: :math:`\kappa` such that all :math:`\log q_i` become equal. The law of the particles is *not* the product of
  the densities, nor any other closed form: ``Product`` is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.correctors import DensityEstimate, Ito, KernelRatio
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser, check_same
from probgen.generative.path import Path, even_log_snr
from probgen.generative.point_distribution import PointDistribution
from probgen.generative.sampler import flow_log_density

__all__ = ["Both", "Either", "Superposed"]


class Superposed(NamedTuple):
    """Draws from a superposition.

    Attributes:
        x: Values, shape ``(draws, *event_shape)``.
        log_q: Estimates of their log densities under the parts, shape ``(draws, parts)``.
    """

    x: Array
    log_q: Array


class _Superposition(PointDistribution):
    pytree_data_fields = ("denoisers",)
    pytree_aux_fields = ("steps", "density_estimate")

    def __init__(self, parts: Sequence[DenoisedDistribution | Denoiser], steps: int, estimate: DensityEstimate) -> None:
        what = type(self).__name__
        denoisers = tuple(part.denoiser if isinstance(part, DenoisedDistribution) else part for part in parts)
        if len(denoisers) < 2 or not all(isinstance(denoiser, Denoiser) for denoiser in denoisers):
            raise MethodError(f"{what} got {parts!r}, expected at least two diffusion models. Give a list of them.")
        if any(getattr(part, "units", None) is not None for part in parts):
            raise MethodError(
                f"{what} takes denoisers in the units of the data, and a part was learned in standard units. Give the "
                f"denoisers themselves (model.denoiser), fitted in the same units, and map the draws back."
            )
        check_same(denoisers)
        with jax.ensure_compile_time_eval():
            even_log_snr(denoisers[0].path, steps)
        self.denoisers, self.steps, self.density_estimate = denoisers, steps, estimate
        super().__init__((), denoisers[0].shape)

    def shares(self, log_q: Array, scores: Array, dx: Array, x: Array, t: Array, s: Array) -> Array:
        """The shares of the parts, shape ``(parts,)``.

        Args:
            log_q: Log densities up to now, shape ``(parts,)``.
            scores: Scores, shape ``(parts, *event_shape)``.
            dx: The increment without the mixed score: drift of the noising process, and noise.
            x: The value.
            t: Its time.
            s: The time to reach.
        """
        raise NotImplementedError

    def run(self, key: PRNGKey, draws: int) -> Superposed:
        """Draws with their log densities under the parts."""
        return _run(self, jax.random.split(key, draws))

    def draw(self, key: PRNGKey) -> Array:
        return self.one(key).x

    def one(self, key: PRNGKey) -> Superposed:
        """One draw with its log densities."""
        path: Path = self.denoisers[0].path
        key_noise, key_path = jax.random.split(key)
        x = path(path.end)[1] * jax.random.normal(key_noise, self.event_shape)
        log_q = jnp.stack([denoiser.log_noise(x) for denoiser in self.denoisers])
        times = even_log_snr(path, self.steps)

        def step(carry: tuple[Array, Array], at: tuple[PRNGKey, Array, Array]) -> tuple[tuple[Array, Array], None]:
            (x, log_q), (key, t, s) = carry, at
            g2, h = path.g2(t), t - s
            scores = jnp.stack([denoiser.score(x, t) for denoiser in self.denoisers])
            dx = -h * path.f(t) * x + jnp.sqrt(g2 * h) * jax.random.normal(key, x.shape, x.dtype)
            kappa = self.shares(log_q, scores, dx, x, t, s)
            y = x + dx + h * g2 * jnp.tensordot(kappa, scores, 1)
            return (y, log_q + self.density_estimate.increment(path, scores, x, t, y, s)), None

        keys = jax.random.split(key_path, self.steps)
        (x, log_q), _ = jax.lax.scan(step, (x, log_q), (keys, times[:-1], times[1:]))
        return Superposed(x, log_q)


@eqx.filter_jit
def _run(superposition: _Superposition, keys: Array) -> Superposed:
    return jax.vmap(superposition.one)(keys)


class Either(_Superposition):
    r"""What one or another of several diffusion models would draw: their mixture, for ``temperature=1``.

    Draws are those of the stochastic equation: approximate, with errors that fall with ``steps``, slowly (the log
    densities that decide on the shares are estimated). ``log_prob`` is that of the mixture, by the probability flows of
    the parts; other temperatures have none.

    Args:
        parts: Diffusion models over the same space and path.
        weights: Their shares, positive and summing to one; equal if left out.
        temperature: :math:`T`; above 1, the likeliest part at a value takes all of it.
        steps: Steps from noise to data.
        tolerance: Of ``log_prob``.
    """

    pytree_data_fields = ("log_weights",)
    pytree_aux_fields = ("temperature", "tolerance")

    def __init__(
        self,
        parts: Sequence[DenoisedDistribution | Denoiser],
        weights: Sequence[float] | None = None,
        *,
        temperature: float = 1.0,
        steps: int = 1000,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(parts, steps, KernelRatio())
        count = len(self.denoisers)
        shares = np.full(count, 1 / count) if weights is None else np.asarray(weights, float)
        if shares.shape != (count,) or not (np.all(shares > 0) and math.isclose(shares.sum(), 1.0, rel_tol=1e-6)):
            raise MethodError(
                f"Either got weights {weights!r} for {count} parts, expected as many positive numbers that sum to one. "
                f"Normalise them."
            )
        if not (math.isfinite(temperature) and temperature >= 0):
            raise MethodError(f"temperature must be a finite number >= 0, got {temperature}. Use 1 for the mixture.")
        self.log_weights, self.temperature, self.tolerance = jnp.log(jnp.asarray(shares)), temperature, tolerance

    def shares(self, log_q: Array, scores: Array, dx: Array, x: Array, t: Array, s: Array) -> Array:
        return jax.nn.softmax(self.temperature * log_q + self.log_weights)

    def density(self, x: Array) -> Scalar:
        if self.temperature != 1.0:
            raise MethodError("Either has a known density at temperature=1 only: that of the mixture. Use that.")
        each = jnp.stack([flow_log_density(denoiser, x, self.tolerance) for denoiser in self.denoisers])
        return jax.scipy.special.logsumexp(each + self.log_weights)


class Both(_Superposition):
    r"""Values that several diffusion models find equally likely.

    The shares are the least change from equal ones that makes the log densities equal after the step, by Itô's formula,
    as far as the scores allow (they hardly differ near the noise end). There is no density.

    Args:
        parts: Diffusion models over the same space and path.
        steps: Steps from noise to data.
    """

    def __init__(self, parts: Sequence[DenoisedDistribution | Denoiser], *, steps: int = 1000) -> None:
        super().__init__(parts, steps, Ito())

    def shares(self, log_q: Array, scores: Array, dx: Array, x: Array, t: Array, s: Array) -> Array:
        # log q_i after the step is affine in the shares: free_i + gain_ij kappa_j.
        path = self.denoisers[0].path
        free = log_q + Ito().increment(path, scores, x, t, x + dx, s)
        flat = scores.reshape(scores.shape[0], -1)
        gain = path.g2(t) * (t - s) * flat @ flat.T
        count = scores.shape[0]
        equal = jnp.full(count, 1 / count)
        # Differences from the first part, over changes of the shares that sum to zero.
        basis = jnp.eye(count)[1:] - jnp.eye(count)[0]
        matrix = basis @ gain @ basis.T
        missing = -basis @ (free + gain @ equal)
        ridge = 1e-6 * path.g2(t) * (t - s) * jnp.mean(jnp.sum(flat**2, 1)) + jnp.finfo(x.dtype).tiny
        return equal + basis.T @ jnp.linalg.solve(matrix + ridge * jnp.eye(count - 1), missing)

    def density(self, x: Array) -> Scalar:
        raise MethodError("Both has no density: its draws follow no closed form. Use Product for the product.")
