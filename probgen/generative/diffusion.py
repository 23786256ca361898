r"""Diffusion models: denoisers learned by denoising score matching.

In standard units and along a path :math:`x_t = \alpha x_0 + \sigma\varepsilon`, with :math:`\tilde\sigma = \sigma/\alpha`,

.. math:: m(x_t, t) = \frac{1}{1 + \tilde\sigma^2}\,\frac{x_t}{\alpha}
          + \frac{\tilde\sigma}{\sqrt{1 + \tilde\sigma^2}}\,
          F\!\left(\frac{x_t}{\sqrt{\alpha^2 + \sigma^2}},\ \tfrac14\log\tilde\sigma\right)

is the preconditioning of Karras et al. (2022) for any path: the network :math:`F` has inputs and targets of variance 1 at
every noise level, and the squared error of :math:`m`, weighted by :math:`1 + \tilde\sigma^{-2}`, is that of :math:`F`.
Noise levels are drawn with a log-normal :math:`\tilde\sigma`, as there. The error of :math:`m` is that of
:math:`\hat\varepsilon` and of the score up to factors of :math:`\tilde\sigma`, so the weights that those parametrisations
imply differ from this one by the law of the noise levels alone.

The path may end before the data are forgotten, with an ``ending``: a family that is fitted, by the same descent, to the
noisy data at the end (Franzese et al. 2023). See ``Ended``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.chain_bound import chain_bound
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser
from probgen.generative.ended import Ended
from probgen.generative.family import Family, Now, Solved, Spec
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
    ending: Any = None


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
        bound_steps: Steps of the ancestral sampler whose log density ``bound`` bounds.
        ending: What is fitted to the noisy data at the end of the path; ``None`` for Gaussian noise, which a path that
            ends in noise needs no better than.
        standardise: Whether to go to standard units; without, the data should be of order 1 already. Models that are to
            be multiplied with one another must have the same units.
    """

    path: Path = eqx.field(static=True, default=VP())
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    noise: tuple[float, float] = eqx.field(static=True, default=(-0.8, 1.4))
    sampler: Sampler = eqx.field(static=True, default=UniPC())
    sampling_steps: int = eqx.field(static=True, default=32)
    tolerance: float = eqx.field(static=True, default=1e-4)
    bound_steps: int = eqx.field(static=True, default=500)
    ending: Family | None = eqx.field(static=True, default=None)
    standardise: bool = eqx.field(static=True, default=True)

    def check(self, spec: Spec) -> None:
        name = type(self).__name__
        for what in ("width", "depth", "sampling_steps", "bound_steps"):
            value = getattr(self, what)
            if not is_count(value):
                raise MethodError(f"{name} got {what}={value!r}, expected an int of at least 1. Change {what}.")
        if not isinstance(self.path, Path):
            raise MethodError(f"{name} got path={self.path!r}, expected a path. Use path=VP().")
        if not isinstance(self.sampler, Sampler):
            raise MethodError(f"{name} got sampler={self.sampler!r}, expected a sampler. Use sampler=UniPC().")
        if not (len(self.noise) == 2 and all(map(math.isfinite, self.noise)) and self.noise[1] > 0):
            raise MethodError(
                f"{name} got noise={self.noise!r}, expected the mean and the positive standard deviation of the log noise "
                f"level. Use noise=(-0.8, 1.4)."
            )
        if not 0 < self.tolerance < 1:
            raise MethodError(f"{name} got tolerance={self.tolerance!r}, expected 0 < tolerance < 1. Use 1e-4.")
        if self.ending is not None:
            if not isinstance(self.ending, Family) or isinstance(self.ending, Solved) or self.ending.discrete:
                raise MethodError(
                    f"{name} got ending={self.ending!r}, expected a family of real data that is trained by descent. Use "
                    f"ending=Flow()."
                )
            self.ending.check(spec)

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_net, key_ending = jax.random.split(key)
        features = TimeFeatures().size + math.prod(spec.condition or (0,))
        net = Conditioned(key_net, spec.shape, features, self.width, self.depth)
        return _Net(
            Standardisation(spec.shape), net, None if self.ending is None else self.ending.build(key_ending, spec)
        )

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        key_noise, key_ending = jax.random.split(key)
        if self.standardise:
            net = eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))
        if self.ending is not None:
            at_end = self._at_end(key_noise, jax.vmap(net.units.inward)(x))
            net = eqx.tree_at(lambda n: n.ending, net, self.ending.adapt(key_ending, net.ending, at_end, condition))
        return net

    def _at_end(self, key: PRNGKey, x: Array) -> Array:
        """Noisy data at the end of the path, from data in standard units."""
        alpha, sigma = self.path(self.path.end)
        return (alpha * x + sigma * self.noise_for(key, x)).astype(x.dtype)

    def noise_for(self, key: PRNGKey, x: Array) -> Array:
        """Noise of level 1 for a batch, the shape of ``x``."""
        return jax.random.normal(key, x.shape, x.dtype)

    def matching(
        self, key: PRNGKey, net: Any, x: Array, given: Array | None, shaped: Callable[[Array], Array] = lambda e: e
    ) -> Scalar:
        """The loss of denoising score matching.

        Args:
            key: Randomness.
            net: With ``units`` and ``net``.
            x: Data, shape ``(batch, *shape)``.
            given: What the network is given, by row.
            shaped: What is done to the noise.
        """
        key_level, key_noise = jax.random.split(key)
        x = jax.vmap(net.units.inward)(x)
        # One level in every equal slice of its law: the same expectation, less noise.
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), x.dtype)) / count
        low, high = (-self.path.log_snr(t) / 2 for t in (self.path.start, self.path.end))
        log_level = jnp.clip(self.noise[0] + self.noise[1] * ndtri(share), low, high).astype(x.dtype)
        level = jnp.exp(log_level).reshape(-1, *[1] * (x.ndim - 1))
        noisy = x + level * shaped(self.noise_for(key_noise, x))
        mean = jax.vmap(denoised, (None, 0, 0, 0))(net.net, noisy, jnp.exp(log_level), given)
        return jnp.mean((1 + level**-2) * (mean - x) ** 2)

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_matching, key_end, key_ending = jax.random.split(key, 3)
        loss = self.matching(key_matching, net, x, condition)
        if self.ending is not None:
            ending = now._replace(average=now.average.ending)
            at_end = self._at_end(key_end, jax.vmap(net.units.inward)(x))
            loss = loss + self.ending.loss(key_ending, net.ending, at_end, condition, ending)
        return loss

    def distribution(self, net: _Net, spec: Spec) -> LearnedDiffusion:
        return LearnedDiffusion(self, spec, net)


class LearnedDiffusion(Learned):
    """The law of a learned diffusion model.

    Draws are those of the sampler. ``log_prob`` integrates the probability flow of the learned score. ``bound`` is the
    variational bound of another law, that of the ancestral sampler in ``bound_steps`` steps, and cheaper where the data
    have many dimensions. ``noise_map`` is the deterministic sampler, from noise that is scaled to that at the end of the
    path. ``score`` and ``velocity`` are in standard units (``units``), those of the path.
    """

    offers: ClassVar = {
        "log_prob": Exactness.ode,
        "bound": Exactness.bound,
        "noise_map": Exactness.ode,
        "score": Exactness.estimate,
        "velocity": Exactness.estimate,
        "sample": Exactness.ode,
    }

    family: Diffusion
    net: _Net

    def __init__(self, family: Diffusion, spec: Spec, net: _Net, condition: Array | None = None) -> None:
        super().__init__(family, spec, net, condition)
        # A sampler that draws noise of its own is no map.
        self.noise_space = self.noise_space and not family.sampler.random

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the path lives."""
        return self.net.units

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser, in standard units, given one condition."""
        denoiser = LearnedDenoiser(net=self.net.net, path=self.family.path, condition=self.condition)
        ending = self.ending
        return denoiser if ending is None else Ended(denoiser, ending)

    @property
    def ending(self) -> Learned | None:
        """The law at the noise end of the path in standard units, if it was learned."""
        if self.family.ending is None:
            return None
        law = self.family.ending.distribution(self.net.ending, self.spec)
        return law if self.condition is None else law.given(self.condition)

    @property
    def denoised(self) -> DenoisedDistribution:
        """The same law as one that can be tempered, multiplied, guided, tilted, and sampled given data.

        Raises:
            MethodError: If it was fitted with conditions and has not been given exactly one.
        """
        self._ready("score")
        if self.batch_shape != ():
            raise MethodError(
                f"denoised is for one condition, and this {type(self.family).__name__} was given a batch of shape "
                f"{self.batch_shape}. Write model.given(condition).denoised for each."
            )
        family = self.family
        return DenoisedDistribution(
            self.denoiser,
            units=self.units,
            sampler=family.sampler,
            steps=family.sampling_steps,
            tolerance=family.tolerance,
        )

    def draw(self, key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        return self._sampled(key_path, self.denoiser.draw_noise(key_noise))

    def push(self, z: Array) -> Array:
        if self.family.sampler.random:
            raise MethodError(
                f"noise_map is deterministic, and {self.family.sampler} draws noise of its own. Fit with sampler=UniPC()."
            )
        # The sampler draws nothing, so the key does not matter.
        return self._sampled(jax.random.key(0), self._noise(z))

    def _noise(self, z: Array) -> Array:
        """From standard normal noise to the law at the noise end."""
        if self.ending is not None:
            return self.ending.noise_map(z)
        return self.family.path(self.family.path.end)[1] * z

    def _sampled(self, key: PRNGKey, noise: Array) -> Array:
        times = even_log_snr(self.family.path, self.family.sampling_steps)
        return self.units.outward(sample_path(key, self.family.sampler, self.denoiser, noise, times))

    def density(self, x: Array) -> Scalar:
        inward = flow_log_density(self.denoiser, self.units.inward(x), self.family.tolerance)
        return inward + self.units.log_det()

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        times = even_log_snr(self.family.path, self.family.bound_steps)
        return chain_bound(key, self.denoiser, self.units.inward(x), times).total + self.units.log_det()

    def score_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.score(x, t)

    def velocity_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.velocity(x, t)
