r"""Twisted diffusion: particles of a posterior whose prior is a diffusion model.

The denoising chain from noise to data is the prior: given the data, :math:`x_s \sim N(a x_t + b x_0, v)`, so that
:math:`x_s \mid x_t` has mean :math:`\mu = a x_t + b\, E[x_0 \mid x_t]` and covariance :math:`V = v I + b^2
\operatorname{Cov}[x_0 \mid x_t]`, and is taken as Gaussian (where the covariance is not asked for, :math:`V = v I`).
:math:`L(x) = \log p(y \mid x)` is the log likelihood at the data end. Wu, Trippe, Naesseth, Blei and Cunningham (2023,
"Practical and asymptotically exact conditional sampling in diffusion models") twist the chain by what a denoiser foresees,

.. math:: \tilde p_t(y \mid x_t) \approx \int p(y \mid x_0)\, p(x_0 \mid x_t)\, dx_0

They move particles by some :math:`\tilde q(x_s \mid x_t)` that heeds it, and weigh them by :math:`q(x_s \mid x_t)\, \tilde
p_s(y \mid x_s) \,/\, \tilde q(x_s \mid x_t)\, \tilde p_t(y \mid x_t)`, with the likelihood itself at the data end. The
evidence is unbiased for the chain at hand, whatever the twist; what the chain itself gets wrong falls with the number of
steps.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.protocol import FeynmanKac

__all__ = ["AtMean", "Denoising", "Foreseen", "SecondOrder", "Sight", "Twist", "Twisted"]


class Foreseen(Protocol):
    """The data given a noisy value."""

    @property
    def mean(self) -> Array:
        """Posterior mean."""
        ...

    def matrix(self) -> Array:
        """Posterior covariance, shape ``(dim, dim)``."""
        ...


class Denoising(Protocol):
    """The denoising chain."""

    def __call__(self, x: Array, t: Array) -> Foreseen:
        """The data given ``x`` at time ``t``."""
        ...

    def mean(self, x: Array, t: Array) -> Array:
        """Their mean."""
        ...

    def draw_noise(self, key: PRNGKey) -> Array:
        """A draw at the noise end."""
        ...

    def ancestral(self, t: Array, s: Array) -> tuple[Array, Array, Array]:
        """The step from ``t`` to ``s`` given the data: :math:`a`, :math:`b`, :math:`v`."""
        ...


class Sight(NamedTuple):
    """What is foreseen from a noisy value.

    Attributes:
        log_twist: :math:`\\log \\tilde p`.
        mean: Mean of the data.
        more: What else the twist needs in order to move.
    """

    log_twist: Scalar
    mean: Array
    more: Any


class Twist(eqx.Module):
    """How the likelihood is foreseen from a noisy value, and how particles heed it. Whatever is wrong with it is corrected
    by the weights; a better one wastes fewer particles."""

    @abc.abstractmethod
    def look(self, denoiser: Denoising, log_likelihood: Callable[[Array], Scalar], x: Array, t: Array) -> Sight:
        """What is foreseen from ``x`` at time ``t``."""

    @abc.abstractmethod
    def move(self, key: PRNGKey, sight: Sight, x: Array, a: Array, b: Array, v: Array) -> tuple[Array, Scalar]:
        r"""A draw from :math:`\tilde q`, and :math:`\log q - \log \tilde q` there; ``a, b, v`` are those of the chain."""


class AtMean(Twist):
    r"""The likelihood at the denoised value, and :math:`\tilde q = N(\mu + v \nabla \log \tilde p, v)`, as published: one
    derivative of the denoiser. Too sure of itself while there is noise."""

    def look(self, denoiser: Denoising, log_likelihood: Callable[[Array], Scalar], x: Array, t: Array) -> Sight:
        """See ``Twist.look``."""

        def twist(x: Array) -> tuple[Scalar, Array]:
            mean = denoiser.mean(x, t)
            return log_likelihood(mean), mean

        (log_twist, mean), slope = jax.value_and_grad(twist, has_aux=True)(x)
        return Sight(log_twist, mean, slope)

    def move(self, key: PRNGKey, sight: Sight, x: Array, a: Array, b: Array, v: Array) -> tuple[Array, Scalar]:
        """See ``Twist.move``."""
        shift, noise = v * sight.more, jnp.sqrt(v) * jax.random.normal(key, x.shape, x.dtype)
        return a * x + b * sight.mean + shift + noise, -jnp.vdot(sight.more, 0.5 * shift + noise)


class SecondOrder(Twist):
    r"""The likelihood expanded to second order at the denoised value :math:`m`, and the data taken as Gaussian with the
    covariance :math:`C` that they have given the noisy value. With :math:`c = \nabla L(m)`, and :math:`H = -\nabla^2
    L(m)` made positive,

    .. math:: \log \tilde p = L(m) + \tfrac12 c^\top C' c - \tfrac12 \log \det (I + C H), \qquad C' = (I + C H)^{-1} C

    and :math:`\tilde q` is the chain with :math:`m + C' c` and :math:`C'` for :math:`m` and :math:`C`: the data given the
    observation. For a Gaussian prior and an observation :math:`y \sim N(A x, R)` both are exact, and no weight is lost.
    Takes ``dim`` derivatives of the denoiser, and equations in ``dim`` unknowns.
    """

    def look(self, denoiser: Denoising, log_likelihood: Callable[[Array], Scalar], x: Array, t: Array) -> Sight:
        """See ``Twist.look``."""
        foreseen = denoiser(x, t)
        mean, covariance = foreseen.mean, foreseen.matrix()
        dim = mean.size
        value, slope = jax.value_and_grad(log_likelihood)(mean)
        slope = slope.reshape(-1)
        bends, axes = jnp.linalg.eigh(-_symmetric(jax.hessian(log_likelihood)(mean).reshape(dim, dim)))
        matrix = jnp.eye(dim) + covariance @ (axes * jnp.maximum(bends, 0)) @ axes.T
        given = _symmetric(jnp.linalg.solve(matrix, covariance))
        shift = given @ slope
        log_twist = value + 0.5 * slope @ shift - 0.5 * jnp.linalg.slogdet(matrix)[1]
        return Sight(log_twist, mean, (covariance, shift.reshape(mean.shape), given))

    def move(self, key: PRNGKey, sight: Sight, x: Array, a: Array, b: Array, v: Array) -> tuple[Array, Scalar]:
        """See ``Twist.move``."""
        covariance, shift, given = sight.more
        z = jax.random.normal(key, (x.size,), x.dtype)
        root, root_given = (jnp.linalg.cholesky(v * jnp.eye(x.size) + b**2 * c) for c in (covariance, given))
        off = b * shift.reshape(-1) + root_given @ z
        away = jax.scipy.linalg.solve_triangular(root, off, lower=True)
        log_ratio = 0.5 * (z @ z - away @ away) + jnp.sum(jnp.log(jnp.diag(root_given)) - jnp.log(jnp.diag(root)))
        return a * x + b * sight.mean + off.reshape(x.shape), log_ratio


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2


class Traveller(NamedTuple):
    """A particle: its place, and what it foresees."""

    x: Array
    sight: Sight


class Twisted(FeynmanKac):
    """The twisted denoising chain.

    Attributes:
        denoiser: The prior.
        log_likelihood: :math:`L`, of one value.
        times: Falling times, shape ``(steps + 1,)``.
        twist: How the likelihood is foreseen.
    """

    denoiser: Denoising
    log_likelihood: Callable[[Array], Scalar]
    times: Array
    twist: Twist = SecondOrder()

    @property
    def steps(self) -> int:
        return self.times.shape[0] - 1

    def init(self, key: PRNGKey) -> tuple[Traveller, Scalar]:
        """See ``FeynmanKac.init``."""
        here = self._look(self.denoiser.draw_noise(key), self.times[0])
        return here, here.sight.log_twist

    def step(self, key: PRNGKey, t: Array, x: Traveller, context: Any) -> tuple[Traveller, Scalar]:
        """See ``FeynmanKac.step``."""
        now, then = self.times[t - 1], self.times[t]
        moved, log_ratio = self.twist.move(key, x.sight, x.x, *self.denoiser.ancestral(now, then))
        there = self._look(moved, then)
        log_twist = jnp.where(t == self.steps, self.log_likelihood(moved), there.sight.log_twist)
        return there, log_ratio + log_twist - x.sight.log_twist

    def _look(self, x: Array, t: Array) -> Traveller:
        return Traveller(x, self.twist.look(self.denoiser, self.log_likelihood, x, t))
