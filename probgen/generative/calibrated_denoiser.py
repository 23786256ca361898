r"""Score calibration: the score of noisy data has mean zero, and that of a model should.

Along the noising process the score of the data is a martingale (backwards in time), and its mean is zero at every
noise level, whatever the data are. A learned score :math:`s` whose mean :math:`\bar s_t` is not zero is improved by
:math:`s - \bar s_t`: the loss of denoising score matching falls by :math:`\|\bar s_t\|^2` exactly, as
:math:`E \|s - \bar s_t + \varepsilon/\sigma\|^2 = E \|s + \varepsilon/\sigma\|^2 - \|\bar s_t\|^2` by :math:`E\varepsilon = 0`.
For the denoiser this is :math:`m - \sigma^2 \bar s_t / \alpha = m - (E m - E x_0)`: its mean is set to that of the data.

Pang, Lu, Du, Lin, Yan and Deng (2023), "On calibrating diffusion probabilistic models".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path, Time, even_log_snr

__all__ = ["CalibratedDenoiser", "calibrated"]


class CalibratedDenoiser(Denoiser):
    r"""A denoiser minus its mean error at each noise level.

    Attributes:
        denoiser: The denoiser.
        log_snr: Log signal-to-noise ratios of the table, rising, shape ``(n,)``.
        offset: Mean error there, :math:`\sigma^2 \bar s_t / \alpha`, shape ``(n, *shape)``; linear between.
    """

    denoiser: Denoiser
    log_snr: Array
    offset: Array
    path: Path

    def __init__(self, denoiser: Denoiser, log_snr: Array, offset: Array) -> None:
        self.denoiser, self.log_snr, self.offset, self.path = denoiser, log_snr, offset, denoiser.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        place = self.path.log_snr(t)
        i = jnp.clip(jnp.searchsorted(self.log_snr, place) - 1, 0, self.log_snr.shape[0] - 2)
        share = jnp.clip((place - self.log_snr[i]) / (self.log_snr[i + 1] - self.log_snr[i]), 0, 1)
        return self.denoiser.mean(x, t) - ((1 - share) * self.offset[i] + share * self.offset[i + 1])

    def log_noise(self, x: Array) -> Scalar:
        """See ``Denoiser.log_noise``."""
        return self.denoiser.log_noise(x)

    def draw_noise(self, key: PRNGKey) -> Array:
        """See ``Denoiser.draw_noise``."""
        return self.denoiser.draw_noise(key)


def calibrated(key: PRNGKey, denoiser: Denoiser, data: Array, levels: int = 256) -> CalibratedDenoiser:
    """Subtract the mean of a denoiser's error, estimated on noisy data.

    The noise comes in pairs of opposite signs, and is the same at all levels: the table is smooth.

    Args:
        key: Randomness.
        denoiser: The denoiser, given what the data were given, if anything.
        data: Data in the units of the denoiser, shape ``(n, *shape)``; thousands, as an error of the mean of
            ``1 / sqrt(n)`` is put in.
        levels: Number of noise levels, evenly spaced in the log signal-to-noise ratio. The error of a network that was
            trained briefly oscillates with the level as its time features do, with periods down to 0.5.

    Raises:
        MethodError: If the data do not have the shape of the denoiser's.
    """
    if data.ndim != len(denoiser.shape) + 1 or data.shape[1:] != denoiser.shape:
        raise MethodError(f"data must have the shape (n, *{denoiser.shape}), got {data.shape}. Stack data along rows.")
    path = denoiser.path
    noise = jax.random.normal(key, data.shape, data.dtype)
    times = even_log_snr(path, levels - 1 if levels > 1 else 1)

    def offset(t: Array) -> Array:
        alpha, sigma = path(t)
        means = [jax.vmap(denoiser.mean, (0, None))(alpha * data + sign * sigma * noise, t) for sign in (1, -1)]
        return (means[0].mean(0) + means[1].mean(0)) / 2 - data.mean(0)

    return CalibratedDenoiser(denoiser, jax.vmap(path.log_snr)(times), jax.lax.map(offset, times))
