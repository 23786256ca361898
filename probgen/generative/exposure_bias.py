r"""Exposure bias: a sampler sees its own values, a denoiser was trained on noisy data.

At each time the standard deviations of what the sampler has reached and of the noising process are compared, entry by
entry; the metric is the mean square of their difference. Scaling the predicted noise, :math:`\hat\varepsilon / \rho_t`
with :math:`\rho_t = k t + c`, moves the former towards the latter without an evaluation more. A sampler with few steps
has such a bias even with an exact denoiser: DDIM overshoots and ends too narrow, which :math:`\rho > 1` mends.

Ning, Li, Su, Salah and Onal Ertugrul (2024), "Elucidating the exposure bias in diffusion models".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path, Time
from probgen.generative.sampler import Sampler, trajectory

__all__ = ["EpsilonScaling", "ExposureBias", "exposure_bias"]


class EpsilonScaling(Denoiser):
    r"""A denoiser whose predicted noise is divided by :math:`\rho_t = k t + c`.

    Attributes:
        denoiser: The denoiser.
        constant: :math:`c`; a little above 1.
        slope: :math:`k`.
    """

    denoiser: Denoiser
    constant: Array | float
    slope: Array | float
    path: Path

    def __init__(self, denoiser: Denoiser, constant: Array | float, slope: Array | float = 0.0) -> None:
        if not isinstance(denoiser, Denoiser):
            raise MethodError(f"EpsilonScaling got a {type(denoiser).__name__}, expected a denoiser.")
        self.denoiser, self.constant, self.slope, self.path = denoiser, constant, slope, denoiser.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, _ = self.path(t)
        return (x - (x - alpha * self.denoiser.mean(x, t)) / (self.constant + self.slope * t)) / alpha

    def log_noise(self, x: Array) -> Scalar:
        """See ``Denoiser.log_noise``."""
        return self.denoiser.log_noise(x)

    def draw_noise(self, key: PRNGKey) -> Array:
        """See ``Denoiser.draw_noise``."""
        return self.denoiser.draw_noise(key)


class ExposureBias(NamedTuple):
    """What a sampler's values look like on the way, next to noisy data.

    Attributes:
        times: Times, falling, shape ``(steps + 1,)``.
        sampled: Standard deviations of the sampler's values, shape ``(steps + 1, *shape)``.
        forward: Those of noisy data, in closed form given the variances of the data.
    """

    times: Array
    sampled: Array
    forward: Array

    @property
    def metric(self) -> Array:
        """Mean square of their difference over entries, shape ``(steps + 1,)``."""
        return jnp.mean((self.sampled - self.forward) ** 2, tuple(range(1, self.sampled.ndim)))


def exposure_bias(
    key: PRNGKey, sampler: Sampler, denoiser: Denoiser, variances: Array, times: Array, draws: int = 1000
) -> ExposureBias:
    """Measure the exposure bias of a sampler.

    Args:
        key: Randomness.
        sampler: The sampler.
        denoiser: What it is given.
        variances: Of the data in the units of the denoiser, shape ``denoiser.shape``.
        times: Falling times, see ``even_log_snr``.
        draws: Number of runs; the standard deviations have a relative error of about ``1 / sqrt(2 * draws)``.
    """
    if jnp.shape(variances) != denoiser.shape:
        raise MethodError(
            f"variances have shape {jnp.shape(variances)}, expected {denoiser.shape}: one for each entry."
        )

    def one(key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        return trajectory(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    values = jax.vmap(one)(jax.random.split(key, draws))
    alpha, sigma = jax.vmap(denoiser.path)(times)
    shape = (-1, *[1] * len(denoiser.shape))
    forward = jnp.sqrt(alpha.reshape(shape) ** 2 * variances + sigma.reshape(shape) ** 2)
    return ExposureBias(times, values.std(0), forward)
