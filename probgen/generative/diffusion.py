r"""Diffusion models: denoisers learned by denoising score matching.

In standard units and along a path :math:`x_t = \alpha x_0 + \sigma\varepsilon`, with :math:`\tilde\sigma = \sigma/\alpha`,

.. math:: m(x_t, t) = \frac{1}{1 + \tilde\sigma^2}\,\frac{x_t}{\alpha}
          + \frac{\tilde\sigma}{\sqrt{1 + \tilde\sigma^2}}\,
          F\!\left(\frac{x_t}{\sqrt{\alpha^2 + \sigma^2}},\ \tfrac14\log\tilde\sigma\right)

is the preconditioning of Karras et al. (2022) for any path: the network :math:`F` has inputs and targets of variance 1 at
every noise level, and the squared error of :math:`m`, weighted by :math:`1 + \tilde\sigma^{-2}`, is that of :math:`F`.
Noise levels are drawn with a log-normal :math:`\tilde\sigma`, as there.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.generative.path import VP, Path, Time, even_log_snr
from probgen.generative.sampler import Sampler, UniPC, flow_log_density, sample_path
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["Diffusion", "LearnedDenoiser", "LearnedDiffusion"]


class LearnedDenoiser(Denoiser):
    """A network as denoiser of data in standard units.

    Attributes:
        net: ``net(x, given)``, the shape of ``x``.
        path: From data to noise.
        condition: What the data are given, flat; ``None`` without conditions.
    """

    net: Conditioned
    path: Path
    condition: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, sigma = self.path(t)
        return denoised(self.net, x / alpha, sigma / alpha, self.condition)


def denoised(net: Conditioned, x: Array, level: Scalar, condition: Array | None) -> Array:
    """The posterior mean of data in standard units, given data plus noise of standard deviation ``level``."""
    features = TimeFeatures()(jnp.log(level) / 4)
    given = features if condition is None else jnp.concatenate([features, condition.reshape(-1)])
    size = jnp.sqrt(1 + level**2)
    return x / size**2 + level / size * net(x / size, given.astype(x.dtype))


class _Net(eqx.Module):
    units: Standardisation
    net: Conditioned


class Diffusion(Family):
    """A diffusion model of real data.

    Attributes:
        path: From data to noise.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        noise: Mean and standard deviation of the log of the noise level in training.
        sampler: How to draw.
        sampling_steps: Steps of the sampler.
        tolerance: Of the integration of ``log_prob``, absolute and relative per step.
    """

    path: Path = eqx.field(static=True, default=VP())
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    noise: tuple[float, float] = eqx.field(static=True, default=(-0.8, 1.4))
    sampler: Sampler = eqx.field(static=True, default=UniPC())
    sampling_steps: int = eqx.field(static=True, default=32)
    tolerance: float = eqx.field(static=True, default=1e-4)

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        features = TimeFeatures().size + math.prod(spec.condition or (0,))
        return _Net(Standardisation(spec.shape), Conditioned(key, spec.shape, features, self.width, self.depth))

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_level, key_noise = jax.random.split(key)
        x = jax.vmap(net.units.inward)(x)
        # One level in every equal slice of its law: the same expectation, less noise.
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), x.dtype)) / count
        low, high = (-self.path.log_snr(t) / 2 for t in (self.path.start, self.path.end))
        log_level = jnp.clip(self.noise[0] + self.noise[1] * ndtri(share), low, high)
        level = jnp.exp(log_level).reshape(-1, *[1] * (x.ndim - 1))
        noisy = x + level * jax.random.normal(key_noise, x.shape, x.dtype)
        mean = jax.vmap(denoised, (None, 0, 0, 0))(net.net, noisy, jnp.exp(log_level), condition)
        return jnp.mean((1 + level**-2) * (mean - x) ** 2)

    def distribution(self, net: _Net, spec: Spec) -> LearnedDiffusion:
        return LearnedDiffusion(self, spec, net)


class LearnedDiffusion(Learned):
    """The law of a learned diffusion model.

    Draws are those of the sampler. ``log_prob`` integrates the probability flow of the learned score. ``noise_map`` is
    the deterministic sampler, from noise that is scaled to that at the end of the path. ``score`` and ``velocity`` are
    in standard units (``units``), those of the path.
    """

    offers: ClassVar = {
        "log_prob": Exactness.ode,
        "noise_map": Exactness.ode,
        "score": Exactness.estimate,
        "velocity": Exactness.estimate,
        "sample": Exactness.ode,
    }

    family: Diffusion
    net: _Net

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the path lives."""
        return self.net.units

    @property
    def denoiser(self) -> LearnedDenoiser:
        """The denoiser, in standard units."""
        return LearnedDenoiser(net=self.net.net, path=self.family.path, condition=self.condition)

    def draw(self, key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        return self._sampled(key_path, self.denoiser.draw_noise(key_noise))

    def push(self, z: Array) -> Array:
        return self._sampled(jax.random.key(0), self.denoiser.path(self.family.path.end)[1] * z)

    def _sampled(self, key: PRNGKey, noise: Array) -> Array:
        times = even_log_snr(self.family.path, self.family.sampling_steps)
        return self.units.outward(sample_path(key, self.family.sampler, self.denoiser, noise, times))

    def density(self, x: Array) -> Scalar:
        inward = flow_log_density(self.denoiser, self.units.inward(x), self.family.tolerance)
        return inward + self.units.log_det()

    def score_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.score(x, t)

    def velocity_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.velocity(x, t)
