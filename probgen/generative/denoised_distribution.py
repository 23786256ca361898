r"""The law of a denoiser as a NumPyro distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.chain_bound import chain_bound
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import even_log_snr
from probgen.generative.point_distribution import PointDistribution
from probgen.generative.sampler import Sampler, UniPC, flow_log_density, sample_path
from probgen.generative.standardisation import Standardisation

__all__ = ["DenoisedDistribution"]


class DenoisedDistribution(PointDistribution):
    r"""What a denoiser says the data look like: the law :math:`q_{start}` at the data end of its path.

    It is used in a program like any distribution. Draws are those of the sampler: its error falls with ``steps`` at the
    order of the sampler. ``log_prob`` integrates the probability flow, exact up to ``tolerance`` (``dim`` derivatives
    for every evaluation); for a *learned* denoiser it is the density of that flow.

    A learned denoiser lives in standard units; with ``units`` the distribution is over the data themselves.

    Args:
        denoiser: Posterior mean and path.
        units: Between the data and the units of the denoiser; the same if left out.
        sampler: How to draw.
        steps: Steps of the sampler, evenly spaced in the log signal-to-noise ratio.
        tolerance: Of the integration of ``log_prob``, absolute and relative per step.

    Raises:
        MethodError: If settings make no sense.
    """

    pytree_data_fields = ("denoiser", "units", "sampler")
    pytree_aux_fields = ("steps", "tolerance")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        units: Standardisation | None = None,
        sampler: Sampler = UniPC(),
        steps: int = 50,
        tolerance: float = 1e-6,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise MethodError(
                f"DenoisedDistribution got a {type(denoiser).__name__}, expected a denoiser. Give for example "
                f"GaussianMixture(weights, means, covariances, VP())."
            )
        if not (isinstance(tolerance, float) and 0 < tolerance < 1):
            raise MethodError(f"tolerance must be between 0 and 1, got {tolerance!r}. Use 1e-6.")
        with jax.ensure_compile_time_eval():
            even_log_snr(denoiser.path, steps)
        self.denoiser, self.units = denoiser, units
        self.sampler, self.steps, self.tolerance = sampler, steps, tolerance
        super().__init__((), denoiser.shape)

    def draw(self, key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        times = even_log_snr(self.denoiser.path, self.steps)
        x = sample_path(key_path, self.sampler, self.denoiser, self.denoiser.draw_noise(key_noise), times)
        return x if self.units is None else self.units.outward(x)

    def density(self, x: Array) -> Scalar:
        if self.units is None:
            return flow_log_density(self.denoiser, x, self.tolerance)
        return flow_log_density(self.denoiser, self.units.inward(x), self.tolerance) + self.units.log_det()

    def bound(self, key: PRNGKey, value: Array) -> Array:
        """An unbiased estimate of the variational bound of the ancestral sampler's log density, in ``steps`` steps;
        shape that of ``value`` without the event. See ``chain_bound``."""
        value = jnp.asarray(value)
        keys = jax.random.split(key, value.shape[: value.ndim - self.event_dim])
        return self.pointwise(lambda here, key, x: here._bound(key, x), (keys, 0), (value, self.event_dim))

    def _bound(self, key: PRNGKey, x: Array) -> Scalar:
        times = even_log_snr(self.denoiser.path, self.steps)
        if self.units is None:
            return chain_bound(key, self.denoiser, x, times).total
        return chain_bound(key, self.denoiser, self.units.inward(x), times).total + self.units.log_det()
