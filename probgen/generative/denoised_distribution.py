r"""The law of a denoiser as a NumPyro distribution."""

from __future__ import annotations

import jax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import even_log_snr
from probgen.generative.point_distribution import PointDistribution
from probgen.generative.sampler import Sampler, UniPC, flow_log_density, sample_path

__all__ = ["DenoisedDistribution"]


class DenoisedDistribution(PointDistribution):
    r"""What a denoiser says the data look like: the law :math:`q_{start}` at the data end of its path.

    It is used in a program like any distribution. Draws are those of the sampler: its error falls with ``steps`` at the
    order of the sampler. ``log_prob`` integrates the probability flow, exact up to ``tolerance`` (``dim`` derivatives
    for every evaluation); for a *learned* denoiser it is the density of that flow.

    Args:
        denoiser: Posterior mean and path.
        sampler: How to draw.
        steps: Steps of the sampler, evenly spaced in the log signal-to-noise ratio.
        tolerance: Of the integration of ``log_prob``, absolute and relative per step.

    Raises:
        MethodError: If settings make no sense.
    """

    pytree_data_fields = ("denoiser",)
    pytree_aux_fields = ("sampler", "steps", "tolerance")

    def __init__(
        self, denoiser: Denoiser, *, sampler: Sampler = UniPC(), steps: int = 50, tolerance: float = 1e-6
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
        self.denoiser, self.sampler, self.steps, self.tolerance = denoiser, sampler, steps, tolerance
        super().__init__((), denoiser.shape)

    def draw(self, key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        times = even_log_snr(self.denoiser.path, self.steps)
        return sample_path(key_path, self.sampler, self.denoiser, self.denoiser.draw_noise(key_noise), times)

    def density(self, x: Array) -> Scalar:
        return flow_log_density(self.denoiser, x, self.tolerance)
