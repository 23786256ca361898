r"""Denoisers: what a noisy value :math:`x_t = \alpha x_0 + \sigma \varepsilon` says about the data :math:`x_0`.

Everything that a diffusion model is used for follows from the posterior mean :math:`m = E[x_0 \mid x_t]`:

.. math::

    s &= \nabla \log q_t(x) = \frac{\alpha m - x}{\sigma^2}, &
    \hat\varepsilon &= \frac{x - \alpha m}{\sigma}, \\
    u &= \alpha' m + \sigma' \hat\varepsilon = f x - \tfrac12 g^2 s, &
    \operatorname{Cov}[x_0 \mid x_t] &= \frac{\sigma^2}{\alpha} \frac{\partial m}{\partial x}

(Tweedie's formulas; Robbins 1956, Efron 2011). The velocity :math:`u` carries :math:`q_t` along in time.

Mixtures of Gaussians stay so under noise, :math:`q_t = \sum_k w_k N(\alpha \mu_k, \alpha^2 \Sigma_k + \sigma^2 I)`, so
theirs is the denoiser of which everything is known exactly: samplers, likelihoods and correctors are tested against it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.path import Path, Time

__all__ = ["Denoiser", "GaussianMixture", "Guidance", "Posterior"]


class Posterior(eqx.Module):
    """The data given a noisy value, as far as a denoiser knows.

    Attributes:
        mean: Posterior mean, the shape of the data.
        action: Multiplies a vector of that shape by the posterior covariance.
    """

    mean: Array
    action: Callable[[Array], Array]

    def matrix(self) -> Array:
        """The posterior covariance, shape ``(dim, dim)``: ``dim`` actions."""
        shape, dim = self.mean.shape, self.mean.size
        basis = jnp.eye(dim, dtype=self.mean.dtype).reshape(dim, *shape)
        return jax.vmap(self.action)(basis).reshape(dim, dim)


class Denoiser(Part):
    """A posterior mean for every time of a path; one point at a time."""

    path: eqx.AbstractVar[Path]
    """From data to noise."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one datum."""

    @abc.abstractmethod
    def mean(self, x: Array, t: Time) -> Array:
        r""":math:`E[x_0 \mid x_t = x]`, the shape of ``x``."""

    def __call__(self, x: Array, t: Time) -> Posterior:
        """The posterior of the data given ``x`` at time ``t``; its covariance by Tweedie's formula."""
        alpha, sigma = self.path(t)
        mean, push = jax.linearize(lambda x: self.mean(x, t), x)
        return Posterior(mean, jax.tree_util.Partial(lambda push, scale, v: scale * push(v), push, sigma**2 / alpha))

    def score(self, x: Array, t: Time) -> Array:
        r""":math:`\nabla \log q_t(x)`, the shape of ``x``."""
        alpha, sigma = self.path(t)
        return (alpha * self.mean(x, t) - x) / sigma**2

    def velocity(self, x: Array, t: Time) -> Array:
        """Velocity of the probability flow in forward time, the shape of ``x``."""
        return self.fields(x, t)[1]

    def fields(self, x: Array, t: Time) -> tuple[Array, Array]:
        """Score and velocity, from one evaluation."""
        (alpha, sigma), (d_alpha, d_sigma) = self.path(t), self.path.rates(t)
        mean = self.mean(x, t)
        score = (alpha * mean - x) / sigma**2
        return score, d_alpha * mean - d_sigma * sigma * score

    def ancestral(self, t: Time, s: Time) -> tuple[Array, Array, Array]:
        r"""The law of :math:`x_s` given :math:`x_t` and the data, for ``s < t``: the step of DDPM.

        Returns:
            ``(a, b, v)``: it is Gaussian with mean :math:`a x_t + b x_0` and variance :math:`v`.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.path(t), self.path(s)
        kept = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2
        return kept, alpha_s - kept * alpha_t, sigma_s**2 - kept * alpha_t / alpha_s * sigma_s**2

    def log_noise(self, x: Array) -> Scalar:
        """Log density at the noise end of the path: that of the Gaussian which sampling starts from."""
        scale = self.path(self.path.end)[1]
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=scale))

    def draw_noise(self, key: PRNGKey) -> Array:
        """A draw from the law whose density is ``log_noise``."""
        return self.path(self.path.end)[1] * jax.random.normal(key, self.shape)


class GaussianMixture(Denoiser):
    r"""The exact denoiser of a mixture of Gaussians with full covariances; one component is a Gaussian.

    Attributes:
        log_weights: Normalised log weights, shape ``(k,)``.
        means: Means, shape ``(k, dim)``.
        axes: Eigenvectors of the covariances, in columns, shape ``(k, dim, dim)``.
        variances: Their eigenvalues, shape ``(k, dim)``.
        path: From data to noise.
    """

    log_weights: Array
    means: Array
    axes: Array
    variances: Array
    path: Path

    def __init__(self, weights: Any, means: Any, covariances: Any, path: Path) -> None:
        """Make the denoiser.

        Args:
            weights: Weights, positive and summing to one, shape ``(k,)``.
            means: Means, shape ``(k, dim)``.
            covariances: Covariances, symmetric positive definite, shape ``(k, dim, dim)`` or ``(dim, dim)`` for all.
            path: From data to noise.

        Raises:
            MethodError: If the arrays do not fit one another, or are no weights or no covariances.
        """
        weights, means, covariances = (np.asarray(v, float) for v in (weights, means, covariances))
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            raise MethodError(
                f"a mixture got weights of shape {weights.shape} and means of shape {means.shape}, expected (k,) and "
                f"(k, dim). Give one weight and one row of means per component."
            )
        k, dim = means.shape
        if covariances.shape not in ((k, dim, dim), (dim, dim)):
            raise MethodError(
                f"a mixture got covariances of shape {covariances.shape}, expected {(k, dim, dim)} or {(dim, dim)}. "
                f"Give full matrices."
            )
        if not (np.all(weights > 0) and math.isclose(weights.sum(), 1.0, rel_tol=1e-6)):
            raise MethodError(
                f"the weights of a mixture must be positive and sum to one, got sum {weights.sum():.6g} and least "
                f"{weights.min():.3g}. Normalise them."
            )
        covariances = np.broadcast_to(covariances, (k, dim, dim))
        variances, axes = np.linalg.eigh(covariances)
        if not np.allclose(covariances, covariances.swapaxes(1, 2)) or variances.min() <= 0:
            raise MethodError(
                f"the covariances of a mixture must be symmetric and positive definite, got the eigenvalue "
                f"{variances.min():.3g}. Check them."
            )
        self.log_weights = jnp.log(jnp.asarray(weights / weights.sum()))
        self.means, self.axes, self.variances = jnp.asarray(means), jnp.asarray(axes), jnp.asarray(variances)
        self.path = path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.means.shape[1:]

    def _rotated(self, x: Array, t: Time) -> tuple[Array, Array, Array]:
        """``x`` from each mean along each axis, the variances there, and the log share of each component."""
        alpha, sigma = self.path(t)
        # Sums of products, not matrix products: under vmap these fuse, and tiny batched matrix products do not.
        z = jnp.sum(self.axes * (x - alpha * self.means)[:, :, None], 1)
        v = alpha**2 * self.variances + sigma**2
        return z, v, self.log_weights - 0.5 * jnp.sum(z**2 / v + jnp.log(2 * jnp.pi * v), -1)

    def log_density(self, x: Array, t: Time) -> Scalar:
        r""":math:`\log q_t(x)`, exact."""
        return logsumexp(self._rotated(x, t)[2])

    def _back(self, z: Array) -> Array:
        """From coordinates along the axes of each component to those of the data, shape ``(k, dim)``."""
        return jnp.sum(self.axes * z[:, None, :], -1)

    def shares(self, x: Array, t: Time) -> Array:
        """Posterior probability of each component, shape ``(k,)``."""
        return jax.nn.softmax(self._rotated(x, t)[2])

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        return self._moments(x, t)[1]

    def _moments(self, x: Array, t: Time) -> tuple[Array, Array, Array, Array]:
        """Shares, posterior mean, and per component the posterior means and the variances along the axes."""
        alpha, sigma = self.path(t)
        z, v, log_share = self._rotated(x, t)
        means = self.means + alpha * self._back(self.variances / v * z)
        share = jax.nn.softmax(log_share)
        return share, jnp.sum(share[:, None] * means, 0), means, self.variances * sigma**2 / v

    def __call__(self, x: Array, t: Time) -> Posterior:
        """The posterior of the data, covariance in closed form."""
        share, mean, means, variances = self._moments(x, t)
        within = jnp.einsum("k,kij,kj,klj->il", share, self.axes, variances, self.axes)
        apart = means - mean
        covariance = within + jnp.einsum("k,ki,kl->il", share, apart, apart)
        return Posterior(mean, jax.tree_util.Partial(jnp.matmul, covariance))

    def score(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.score``; summed over components, which loses no digits where the noise is small."""
        z, v, log_share = self._rotated(x, t)
        return -jnp.sum(jax.nn.softmax(log_share)[:, None] * self._back(z / v), 0)

    def fields(self, x: Array, t: Time) -> tuple[Array, Array]:
        """See ``Denoiser.fields``."""
        score = self.score(x, t)
        return score, self.path.f(t) * x - 0.5 * self.path.g2(t) * score

    def log_noise(self, x: Array) -> Scalar:
        """Log density at the noise end, exact."""
        return self.log_density(x, self.path.end)

    def draw_noise(self, key: PRNGKey) -> Array:
        """An exact draw at the noise end."""
        return self.draw(key, self.path.end)

    def draw(self, key: PRNGKey, t: Time) -> Array:
        r"""An exact draw from :math:`q_t`."""
        key_component, key_value = jax.random.split(key)
        alpha, sigma = self.path(t)
        k = jax.random.categorical(key_component, self.log_weights)
        scale = jnp.sqrt(alpha**2 * self.variances[k] + sigma**2)
        return alpha * self.means[k] + self.axes[k] @ (scale * jax.random.normal(key_value, self.shape))


class Guidance(Denoiser):
    r"""Guidance without correction: the mean :math:`(1 - w)\, m_{uncond} + w\, m_{cond}` (Ho and Salimans 2022).

    What a sampler makes of it is *not* the geometric average of the two laws: ``Guided`` is.

    With a smaller or undertrained version of ``cond`` in place of ``uncond`` it is autoguidance (Karras et al. 2024).

    Attributes:
        cond: The denoiser given the condition.
        uncond: The one without.
        weight: :math:`w`; 1 for ``cond`` alone, above 1 to exaggerate the condition.
    """

    cond: Denoiser
    uncond: Denoiser
    weight: float | Array
    path: Path

    def __init__(self, cond: Denoiser, uncond: Denoiser, weight: float | Array) -> None:
        check_same((cond, uncond))
        self.cond, self.uncond, self.weight, self.path = cond, uncond, weight, cond.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.cond.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        return (1 - self.weight) * self.uncond.mean(x, t) + self.weight * self.cond.mean(x, t)


def check_same(denoisers: tuple[Denoiser, ...]) -> None:
    """Refuse denoisers that cannot be combined.

    Raises:
        MethodError: If their data have different shapes, or their paths differ.
    """
    first = denoisers[0]
    for i, other in enumerate(denoisers[1:], 1):
        if other.shape != first.shape:
            raise MethodError(
                f"part {i} has data of shape {other.shape}, part 0 of shape {first.shape}. Combine distributions over "
                f"the same space."
            )
        if other.path != first.path:
            raise MethodError(
                f"part {i} goes from data to noise along {other.path}, part 0 along {first.path}. Combine denoisers of "
                f"one path."
            )
