r"""Samplers: from noise to data along a path, given a denoiser.

With :math:`m = E[x_0 \mid x_t]`, :math:`\hat\varepsilon = (x - \alpha m)/\sigma`, and :math:`\lambda = \log(\alpha/\sigma)`,
the probability flow is

.. math::

    \frac{d(x/\alpha)}{d(\sigma/\alpha)} = \hat\varepsilon, \qquad
    x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_{\lambda_t}^{\lambda_s} e^{\lambda - \lambda_s} m_\lambda\, d\lambda

for any path. ``DDIM`` takes :math:`m` as constant over a step (order 1), ``DPM2M`` as the line through the last two
values (order 2); ``UniPC`` adds the parabola through them and the new value, which the next step uses anyway (order 3
for one evaluation a step). ``Heun`` is the trapezoidal rule on the left equation (order 2, two evaluations).
``EulerMaruyama`` takes the stochastic equation of which Langevin rate :math:`\kappa = 1` is the usual one:

.. math:: dx = \bigl(u - \kappa \tfrac12 g^2 s\bigr) dt + \sqrt\kappa\, g\, dW, \qquad \text{backwards in time.}

A sampler is a pure ``step``; what a multistep one remembers is its state, and one scan runs them all.

References: Song, Meng and Ermon (2021) (DDIM); Karras et al. (2022) (Heun); Lu et al. (2022) (DPM-Solver++); Zhao et
al. (2023) (UniPC; here with the exact integral of the interpolating polynomial).
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path

__all__ = ["DDIM", "DPM2M", "EulerMaruyama", "Heun", "Sampler", "UniPC", "flow_log_density", "sample_path"]


class Sampler(eqx.Module):
    """One step from time ``t`` to an earlier time ``s``."""

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Any:
        """What the sampler remembers before its first step, from ``x`` at time ``t``: nothing, unless it says so."""
        return None

    @abc.abstractmethod
    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        """Go from ``x`` at time ``t`` to time ``s < t``.

        Args:
            key: Randomness; unused by deterministic samplers.
            denoiser: Posterior mean and path.
            x: One value.
            t: Its time.
            s: The time to reach.
            memory: From ``start``, or from the step before.

        Returns:
            The value at time ``s``, and the memory for the next step.
        """


def sample_path(key: PRNGKey, sampler: Sampler, denoiser: Denoiser, x: Array, times: Array) -> Array:
    """Run a sampler from ``x`` at ``times[0]`` through falling times; returns the value at the last one."""

    def one(carry: tuple[Array, Any], at: tuple[PRNGKey, Array, Array]) -> tuple[tuple[Array, Any], None]:
        key, t, s = at
        return sampler.step(key, denoiser, carry[0], t, s, carry[1]), None

    keys = jax.random.split(key, times.shape[0] - 1)
    (x, _), _ = jax.lax.scan(one, (x, sampler.start(denoiser, x, times[0])), (keys, times[:-1], times[1:]))
    return x


class EulerMaruyama(Sampler):
    """The stochastic equation by Euler's rule; weak order 1.

    Attributes:
        kappa: Langevin rate, >= 0; 0 for the probability flow.
    """

    kappa: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not (math.isfinite(self.kappa) and self.kappa >= 0):
            raise MethodError(f"kappa is a rate of Langevin moves, got {self.kappa}, expected >= 0. Use kappa=1.")

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        score, velocity = denoiser.fields(x, t)
        spread = self.kappa * denoiser.path.g2(t) * (t - s)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return x + (s - t) * velocity + 0.5 * spread * score + jnp.sqrt(spread) * noise, None


class DDIM(Sampler):
    r"""The mean of the data taken as constant over a step; order 1.

    Attributes:
        eta: 0 for the probability flow; 1 for the ancestral sampler of DDPM, whose step has the law of
            :math:`x_s` given :math:`x_t` and :math:`x_0 = m`.
    """

    eta: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise MethodError(f"eta is a share of the ancestral noise, got {self.eta}, expected 0 to 1. Use eta=0.")

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        mean = denoiser.mean(x, t)
        variance = denoiser.ancestral(t, s)[2]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.path(t), denoiser.path(s)
        spread = self.eta**2 * variance
        x = alpha_s * mean + jnp.sqrt(sigma_s**2 - spread) * (x - alpha_t * mean) / sigma_t
        return (x if self.eta == 0.0 else x + jnp.sqrt(spread) * jax.random.normal(key, x.shape, x.dtype)), None


class Heun(Sampler):
    r"""The trapezoidal rule in :math:`\sigma / \alpha`, as in EDM; order 2, two evaluations a step."""

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.path(t), denoiser.path(s)
        length = sigma_s / alpha_s - sigma_t / alpha_t
        noise = (x - alpha_t * denoiser.mean(x, t)) / sigma_t
        ahead = alpha_s * (x / alpha_t + length * noise)
        noise_ahead = (ahead - alpha_s * denoiser.mean(ahead, s)) / sigma_s
        return alpha_s * (x / alpha_t + length * (noise + noise_ahead) / 2), None


class Memory(NamedTuple):
    """What a multistep sampler remembers.

    Attributes:
        mean: Denoised value at the time reached (``UniPC``), or at the one before (``DPM2M``).
        last: The one before ``mean`` (``UniPC``).
        width: Step in log-SNR / 2 between the last two denoised values; 0 before the second step.
    """

    mean: Array
    last: Array
    width: Array


def _line(h: Array, width: Array, here: Array, before: Array) -> Array:
    """Slope, per step of length ``h``, of the line through the last two values; 0 before there are two."""
    known = width > 0
    return jnp.where(known, h / jnp.where(known, width, 1.0), 0.0) * (here - before)


class DPM2M(Sampler):
    """DPM-Solver++(2M): the mean of the data runs on along a line; order 2, one evaluation a step."""

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Memory:
        return Memory(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros(()))

    def step(
        self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        h, shrink, gain = _scales(denoiser.path, t, s)
        mean = denoiser.mean(x, t)
        slope = _line(h, memory.width, mean, memory.mean)
        x = shrink * x + gain * (_integral(0, h) * mean + _integral(1, h) * slope)
        return x, Memory(mean, memory.mean, h)


class UniPC(Sampler):
    """Unified predictor-corrector: ``DPM2M``, then corrected by the denoised value at the point it has reached, which
    the next step uses too; order 3, one evaluation a step."""

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Memory:
        mean = denoiser.mean(x, t)
        return Memory(mean, mean, jnp.zeros(()))

    def step(
        self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        h, shrink, gain = _scales(denoiser.path, t, s)
        here, before, width = memory
        slope = _line(h, width, here, before)
        kept = shrink * x + gain * _integral(0, h) * here
        ahead = denoiser.mean(kept + gain * _integral(1, h) * slope, s)
        # The parabola here + a z + b z^2 in z = (lambda - lambda_t) / h, through z = 1 and, if known, z = -width / h.
        b = jnp.where(width > 0, h / (h + width), 0.0) * (ahead - here - slope)
        a = ahead - here - b
        x = kept + gain * (_integral(1, h) * a + _integral(2, h) * b)
        return x, Memory(ahead, here, h)


def _scales(path: Path, t: Array, s: Array) -> tuple[Array, Array, Array]:
    h = (path.log_snr(s) - path.log_snr(t)) / 2
    return h, path(s)[1] / path(t)[1], path(s)[0]


def _integral(power: int, h: Array) -> Array:
    r""":math:`\int_0^1 e^{-h (1 - z)} z^p\, h\, dz`, by its series where the recursion loses digits."""
    series = h * sum((-h) ** j * (math.factorial(power) / math.factorial(power + j + 1)) for j in range(14))
    value = -jnp.expm1(-h)
    safe = jnp.maximum(h, 0.1)
    for k in range(1, power + 1):
        value = 1 - k / safe * value
    return jnp.where(h < 0.5, series, value)


def flow_log_density(denoiser: Denoiser, x: Array, tolerance: float = 1e-6) -> Scalar:
    r"""Log density at the data end, by the probability flow up to the noise end:

    .. math:: \log q_{start}(x) = \log q_{end}(x_{end}) + \int_{start}^{end} \nabla \cdot u(x_t, t)\, dt

    with the exact divergence (``dim`` derivatives) and Dormand-Prince steps of order 8.

    Args:
        denoiser: Posterior mean and path.
        x: One value.
        tolerance: Absolute and relative, of the integration per step.
    """
    import diffrax  # takes long, and sampling does without

    path, shape, dim = denoiser.path, x.shape, x.size
    basis = jnp.eye(dim, dtype=x.dtype)

    def slope(t: Array, y: tuple[Array, Array], _: None) -> tuple[Array, Array]:
        velocity, push = jax.linearize(lambda x: denoiser.velocity(x.reshape(shape), t).reshape(-1), y[0])
        return velocity, jnp.trace(jax.vmap(push)(basis))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),  # pyright: ignore[reportArgumentType]
        diffrax.Dopri8(),
        path.start,
        path.end,
        None,
        (x.reshape(-1), jnp.zeros((), x.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=4096,
    )
    end, gained = jax.tree.map(lambda y: y[0], solution.ys)
    return denoiser.log_noise(end.reshape(shape)) + gained
