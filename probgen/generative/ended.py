"""A denoiser whose noise end has a law of its own."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path, Time

__all__ = ["Ended"]


class Ended(Denoiser):
    r"""A denoiser on a path that ends early, with a distribution for where it ends.

    A shorter path leaves less to integrate and fewer noise levels to learn, but at its end the data are not forgotten:
    Gaussian noise of variance :math:`\sigma^2` is then the wrong place to begin, and the bound of the log density loses
    the divergence between the two (the part ``end`` of ``chain_bound``). A distribution that was fitted to noisy data at
    the end makes up for it. Franzese et al. (2023).

    Attributes:
        denoiser: Posterior mean and path.
        law: Distribution of values at the noise end; ``sample`` and ``log_prob`` are used.
    """

    denoiser: Denoiser
    law: Distribution
    path: Path

    def __init__(self, denoiser: Denoiser, law: Distribution) -> None:
        if not isinstance(law, Distribution):
            raise MethodError(
                f"Ended got a {type(law).__name__}, expected a NumPyro distribution. Fit one to noisy data."
            )
        if law.batch_shape != () or law.event_shape != denoiser.shape:
            raise MethodError(
                f"the law at the noise end has batch shape {law.batch_shape} and event shape {law.event_shape}, expected "
                f"() and {denoiser.shape}. Use .to_event() where its entries are independent."
            )
        self.denoiser, self.law, self.path = denoiser, law, denoiser.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        return self.denoiser.mean(x, t)

    def log_noise(self, x: Array) -> Scalar:
        """See ``Denoiser.log_noise``."""
        return jnp.asarray(self.law.log_prob(x))

    def draw_noise(self, key: PRNGKey) -> Array:
        """See ``Denoiser.draw_noise``."""
        return jnp.asarray(self.law.sample(key))
