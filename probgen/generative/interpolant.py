r"""Stochastic interpolants: laws between data and source, and the equations that carry one to the other.

.. math:: x_t = \alpha(t)\, x + \beta(t)\, x_b + \gamma(t)\, z, \qquad z \sim N(0, I), \quad
          \gamma(t) = a \sqrt{t (1 - t)},

with data :math:`x` at :math:`t = 0` and starts :math:`x_b` at :math:`t = 1`. Two conditional expectations,

.. math:: b_0 = E[\alpha' x + \beta' x_b \mid x_t], \quad \eta = E[z \mid x_t], \qquad
          v = b_0 + \gamma' \eta, \quad \nabla \log \rho_t = -\eta / \gamma,

give the velocity and the score, and with them one ordinary and, for every :math:`\varepsilon \ge 0`, one stochastic
equation with the marginals :math:`\rho_t` of :math:`x_t` (backwards in time, from the source to the data):

.. math:: dx = (-v + \varepsilon \nabla \log \rho_t)\, d\tau + \sqrt{2 \varepsilon}\, dW, \qquad \tau = 1 - t

(Albergo, Boffi and Vanden-Eijnden 2023). They are integrated in the angle :math:`\theta`, :math:`t = \sin^2 \theta`, in
which :math:`\gamma = a \sin\theta \cos\theta` and all slopes are smooth, up to both ends:

.. math:: \frac{dx}{d\theta} = \sin 2\theta\, b_0 + a \cos 2\theta\, \eta, \qquad
          \nabla \log \rho_t\, \frac{dt}{d\theta} = -\frac{2}{a} \eta .

A Schroedinger bridge is the case of the coupling of entropic transport with regularisation :math:`a^2`, straight
:math:`\alpha, \beta`, and :math:`\varepsilon = a^2 / 2`: then the stochastic equation is that of the most likely
Brownian motion, of variance :math:`a^2`, between the two laws (Leonard 2014; Tong et al. 2024).
"""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey
from probgen.generative.path import Time

__all__ = ["GaussianInterpolant", "Interpolant", "InterpolantField", "Straight", "Trigonometric", "interpolant_path"]


class Interpolant(Part):
    """Weights of data, start and noise by time."""

    noise: eqx.AbstractVar[float]
    r""":math:`a`, positive."""

    def __check_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise MethodError(
                f"{type(self).__name__} got noise={self.noise!r}, expected a positive number. Use noise=1, or "
                f"FlowMatching, which has none."
            )

    @abc.abstractmethod
    def weights(self, t: Time) -> tuple[Array, Array]:
        r""":math:`(\alpha, \beta)`: (1, 0) at ``t = 0`` and (0, 1) at ``t = 1``."""

    def __call__(self, t: Time) -> tuple[Array, Array, Array]:
        r""":math:`(\alpha, \beta, \gamma)`, shape ``()`` each."""
        t = jnp.asarray(t, float)
        return *self.weights(t), self.noise * jnp.sqrt(t * (1 - t))

    def rates(self, t: Time) -> tuple[Array, Array]:
        r""":math:`(\alpha', \beta')`."""
        t = jnp.asarray(t, float)
        return jax.jvp(self.weights, (t,), (jnp.ones_like(t),))[1]


class Straight(Interpolant):
    r""":math:`\alpha = 1 - t`, :math:`\beta = t`.

    Attributes:
        noise: :math:`a`, positive: the standard deviation of a Brownian motion of which this is the bridge.
    """

    noise: float = eqx.field(static=True, default=1.0)

    def weights(self, t: Time) -> tuple[Array, Array]:
        t = jnp.asarray(t, float)
        return 1 - t, t


class Trigonometric(Interpolant):
    r""":math:`\alpha = \cos(\pi t / 2)`, :math:`\beta = \sin(\pi t / 2)`: between laws of one variance it stays.

    Attributes:
        noise: :math:`a`, positive.
    """

    noise: float = eqx.field(static=True, default=1.0)

    def weights(self, t: Time) -> tuple[Array, Array]:
        angle = jnp.pi / 2 * jnp.asarray(t, float)
        return jnp.cos(angle), jnp.sin(angle)


class InterpolantField(eqx.Module):
    """The two conditional expectations of an interpolant, and what follows from them; one point at a time."""

    interpolant: eqx.AbstractVar[Interpolant]

    @abc.abstractmethod
    def expected(self, x: Array, t: Time) -> tuple[Array, Array]:
        r""":math:`(b_0, \eta)` at a point and time."""

    def velocity(self, x: Array, t: Time) -> Array:
        r""":math:`v`, for ``0 < t < 1``."""
        t = jnp.asarray(t, float)
        drift, noise = self.expected(x, t)
        return drift + self.interpolant.noise * (1 - 2 * t) / (2 * jnp.sqrt(t * (1 - t))) * noise

    def score(self, x: Array, t: Time) -> Array:
        r""":math:`\nabla \log \rho_t`, for ``0 < t < 1``."""
        return -self.expected(x, t)[1] / self.interpolant(t)[2]

    def slopes(self, x: Array, theta: Array) -> tuple[Array, Array]:
        """Velocity and score times the rate of time, by angle: slopes in the angle, finite at both ends."""
        drift, noise = self.expected(x, jnp.sin(theta) ** 2)
        a = self.interpolant.noise
        return jnp.sin(2 * theta) * drift + a * jnp.cos(2 * theta) * noise, -2 / a * noise


def interpolant_path(
    key: PRNGKey, field: InterpolantField, start: Array, epsilon: float | Array, steps: int
) -> tuple[Array, Array]:
    r"""Follow the stochastic equation from the source to the data, by the trapezoidal rule in the angle: weak order 2,
    two evaluations a step.

    Args:
        key: Randomness.
        field: The expectations.
        start: A start.
        epsilon: :math:`\varepsilon \ge 0`, which changes the paths and not the marginals; 0 for the ordinary equation.
        steps: How many.

    Returns:
        The times, falling from 1 to 0, shape ``(steps + 1,)``, and the values, shape ``(steps + 1, *shape)``.
    """
    angles = jnp.linspace(jnp.pi / 2, 0.0, steps + 1, dtype=start.dtype)
    times = jnp.sin(angles) ** 2

    def drift(x: Array, theta: Array) -> Array:
        velocity, score = field.slopes(x, theta)
        return epsilon * score - velocity

    def step(x: Array, at: tuple[PRNGKey, Array, Array, Array]) -> tuple[Array, Array]:
        key, here, width, passed = at
        noise = jnp.sqrt(2 * epsilon * passed) * jax.random.normal(key, x.shape, x.dtype)
        first = drift(x, here)
        ahead = x + width * first + noise
        x = x + width * (first + drift(ahead, here - width)) / 2 + noise
        return x, x

    keys = jax.random.split(key, steps)
    _, values = jax.lax.scan(step, start, (keys, angles[:-1], angles[:-1] - angles[1:], times[:-1] - times[1:]))
    return times, jnp.concatenate([start[None], values])


class GaussianInterpolant(InterpolantField):
    """The exact expectations where data and start are jointly Gaussian.

    Attributes:
        means: Of data and start, shape ``(2, dim)``.
        covariances: Between them, shape ``(2, dim, 2, dim)``.
        interpolant: Weights of data, start and noise.
    """

    means: Array
    covariances: Array
    interpolant: Interpolant

    def __init__(self, means: Any, covariances: Any, interpolant: Interpolant) -> None:
        """Make the field.

        Args:
            means: Of data and start, shape ``(2, dim)``.
            covariances: ``covariances[i, :, j]`` is the covariance of i and j, data 0 and start 1; shape ``(2, dim, 2,
                dim)``.
            interpolant: Weights of data, start and noise.

        Raises:
            MethodError: If the arrays do not fit one another, or are no covariances.
        """
        means, covariances = np.asarray(means, float), np.asarray(covariances, float)
        if means.ndim != 2 or len(means) != 2 or covariances.shape != (*means.shape, *means.shape):
            raise MethodError(
                f"got means of shape {means.shape} and covariances of shape {covariances.shape}, expected (2, dim) and (2, "
                f"dim, 2, dim). Give data and start."
            )
        whole = covariances.reshape(means.size, means.size)
        if not np.allclose(whole, whole.T) or np.linalg.eigvalsh(whole).min() < -1e-9 * np.abs(whole).max():
            raise MethodError("the covariances of data and start must be symmetric and positive. Check them.")
        self.means, self.covariances, self.interpolant = jnp.asarray(means), jnp.asarray(covariances), interpolant

    @classmethod
    def bridge(cls, means: Any, covariance: Any, start_covariance: Any, epsilon: float) -> GaussianInterpolant:
        r"""The Schroedinger bridge between two Gaussians, for a Brownian motion of variance ``epsilon``.

        The covariance of data and start is
        :math:`A^{1/2} (A^{1/2} B A^{1/2} + \tfrac14\varepsilon^2 I)^{1/2} A^{-1/2} - \tfrac12\varepsilon I` for
        covariances :math:`A` and :math:`B` (Janati et al. 2020; Bunne et al. 2023).

        Args:
            means: Of data and start, shape ``(2, dim)``.
            covariance: Of the data, shape ``(dim, dim)``.
            start_covariance: Of the start.
            epsilon: Variance of the Brownian motion over the whole time.
        """
        a, b = np.asarray(covariance, float), np.asarray(start_covariance, float)
        root, inverse = _power(a, 0.5), _power(a, -0.5)
        eye = np.eye(len(a))
        across = root @ _power(root @ b @ root + epsilon**2 / 4 * eye, 0.5) @ inverse - epsilon / 2 * eye
        covariances = np.stack([np.stack([a, across], 1), np.stack([across.T, b], 1)])
        return cls(means, covariances, Straight(math.sqrt(epsilon)))

    def moments(self, t: Time) -> tuple[Array, Array]:
        r"""Mean and covariance of :math:`x_t`."""
        alpha, beta, gamma = self.interpolant(t)
        weights = jnp.stack([alpha, beta])
        covariance = jnp.einsum("i,iajb,j->ab", weights, self.covariances, weights)
        return weights @ self.means, covariance + gamma**2 * jnp.eye(self.means.shape[1])

    def expected(self, x: Array, t: Time) -> tuple[Array, Array]:
        (alpha, beta, gamma), rates = self.interpolant(t), jnp.stack(self.interpolant.rates(t))
        mean, covariance = self.moments(t)
        white = jnp.linalg.solve(covariance, x - mean)
        across = jnp.einsum("i,iajb,j->ab", rates, self.covariances, jnp.stack([alpha, beta]))
        return rates @ self.means + across @ white, gamma * white


def _power(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T
