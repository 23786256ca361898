r"""Poisson flows in an augmented space: PFGM++.

Data of :math:`N` dimensions are charges in a space of :math:`D` more. The field that they send out, followed inwards to
the data, is the probability flow of the perturbation

.. math:: p_r(x \mid x_0) \propto \bigl(\|x - x_0\|^2 + r^2\bigr)^{-(N + D)/2}, \qquad r = \sigma \sqrt D,

which is a multivariate t law of :math:`D` degrees of freedom and scale :math:`\sigma`: noise
:math:`\sigma\, \varepsilon \sqrt{D / \chi^2_D}` with one :math:`\chi^2_D` for all entries. With this alignment of
:math:`r` everything else is that of a diffusion model, training and solvers included, and :math:`D \to \infty` is one. A
smaller :math:`D` means heavier tails, which forgive more of what a denoiser gets wrong.

The velocity at :math:`x` is still the mean of that given the data, :math:`\alpha' m + \sigma' (x - \alpha m)/\sigma`, so
the probability flow and its density are exact for the learned :math:`m`. The score is not :math:`(\alpha m - x)/\sigma^2`
any more, so there are no stochastic samplers and no correctors.

Xu, Liu, Tian, Tong, Tegmark and Jaakkola (2023), "PFGM++: Unlocking the potential of physics-inspired generative models".
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.diffusion import Diffusion, LearnedDenoiser, LearnedDiffusion, _Net
from probgen.generative.ended import Ended
from probgen.generative.family import Spec
from probgen.generative.learned import Exactness
from probgen.generative.point_distribution import PointDistribution

__all__ = ["LearnedPoissonFlow", "PoissonFlow", "PoissonKernel"]


class PoissonKernel(PointDistribution):
    r"""The noise of a Poisson flow: :math:`p(x) \propto (\|x\|^2 + \sigma^2 D)^{-(N + D)/2}`.

    Args:
        shape: Shape of the data, :math:`N` entries.
        extra: :math:`D`, number of extra dimensions, > 0.
        scale: :math:`\sigma`.
    """

    pytree_data_fields = ("extra", "scale")

    def __init__(self, shape: tuple[int, ...], extra: Array | float, scale: Array | float) -> None:
        self.extra, self.scale = extra, scale
        super().__init__((), tuple(shape))

    def draw(self, key: PRNGKey) -> Array:
        key_normal, key_spread = jax.random.split(key)
        spread = jnp.sqrt(self.extra / 2 / jax.random.gamma(key_spread, jnp.asarray(self.extra, float) / 2))
        return self.scale * spread * jax.random.normal(key_normal, self.event_shape)

    def density(self, x: Array) -> Scalar:
        size, extra = math.prod(self.event_shape), self.extra
        constant = gammaln((extra + size) / 2) - gammaln(extra / 2) - size / 2 * jnp.log(jnp.pi * extra)
        inside = jnp.log1p(jnp.sum((x / self.scale) ** 2) / extra)
        return constant - size * jnp.log(self.scale) - (extra + size) / 2 * inside


class PoissonFlow(Diffusion):
    """A Poisson flow generative model of real data (PFGM++); settings are those of ``Diffusion``, and

    Attributes:
        extra: Number of extra dimensions, > 0; as it grows the model becomes ``Diffusion``.
    """

    extra: float = eqx.field(static=True, default=128.0)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not (math.isfinite(self.extra) and self.extra > 0):
            raise MethodError(f"PoissonFlow got extra={self.extra!r}, expected a positive number. Use extra=128.")
        if self.sampler.random:
            raise MethodError(
                f"PoissonFlow got sampler={self.sampler}, which adds noise, and a Poisson flow has an ordinary equation "
                f"only. Use sampler=UniPC() or Heun()."
            )
        if self.ending is not None:
            raise MethodError("PoissonFlow has a noise end of its own. Leave ending out.")

    def noise_for(self, key: PRNGKey, x: Array) -> Array:
        """See ``Diffusion.noise_for``."""
        key_normal, key_spread = jax.random.split(key)
        normal = jax.random.normal(key_normal, x.shape, x.dtype)
        half = jax.random.gamma(key_spread, self.extra / 2, (x.shape[0],), x.dtype)
        return normal * jnp.sqrt(self.extra / 2 / half).reshape(-1, *[1] * (x.ndim - 1))

    def distribution(self, net: _Net, spec: Spec) -> LearnedPoissonFlow:
        return LearnedPoissonFlow(self, spec, net)


class LearnedPoissonFlow(LearnedDiffusion):
    """The law of a learned Poisson flow; see ``LearnedDiffusion`` for what it offers."""

    offers: ClassVar = {
        "log_prob": Exactness.ode,
        "velocity": Exactness.estimate,
        "sample": Exactness.ode,
    }

    family: PoissonFlow

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser, in standard units, given one condition; its ``velocity`` is right, its ``score`` is not one."""
        path = self.family.path
        denoiser = LearnedDenoiser(net=self.net.net, path=path, condition=self.condition)
        return Ended(denoiser, PoissonKernel(self.event_shape, self.family.extra, path(path.end)[1]))
