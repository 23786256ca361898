r"""Diffusion of symbols in a learned space (Diffusion-LM); denoisers, clamping and control are in ``embedded_denoiser``.

Symbols stand at learned points of norm :math:`\sqrt{\mathrm{dim}}`; the denoiser is that of ``diffusion``, and what it finds is
rounded by :math:`\pi_{iv} \propto \exp(\tau\, m_i^\top e_v)`. The loss is the squared error of :math:`m` plus the
cross-entropy of :math:`\pi`, without which all symbols would move together.

Reference: Li et al. (2022), "Diffusion-LM improves controllable text generation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.classifier_guidance import ClassifierGuidance
from probgen.generative.denoiser import Denoiser
from probgen.generative.diffusion import denoised
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete, given_size, picked
from probgen.generative.embedded_denoiser import ClampedDenoiser, EmbeddedDenoiser
from probgen.generative.family import Now, Spec
from probgen.generative.learned import Exactness
from probgen.generative.path import VP, Path, Time, even_log_snr
from probgen.generative.sampler import DDIM, sample_path
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["EmbeddedDiffusion", "LearnedEmbeddedDiffusion"]


class _EmbeddedNet(eqx.Module):
    points: Array
    log_sharpness: Array
    net: Conditioned

    @property
    def embeddings(self) -> Array:
        """Shape ``(values, dim)``, each of norm ``sqrt(dim)``."""
        return self.points * jax.lax.rsqrt(jnp.mean(self.points**2, axis=-1, keepdims=True))

    def shares(self, x: Array) -> Array:
        """Log probabilities of the symbols of denoised points, shape ``(size, values)``."""
        return jax.nn.log_softmax(jnp.exp(self.log_sharpness) * x @ self.embeddings.T, axis=-1)


class _NetDenoiser(EmbeddedDenoiser):
    whole: _EmbeddedNet
    path: Path
    embeddings: Array
    condition: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.net.shape

    def mean(self, x: Array, t: Time) -> Array:
        alpha, sigma = self.path(t)
        return denoised(self.whole.net, x / alpha, sigma / alpha, self.condition)

    def entries(self, x: Array, t: Time) -> Array:
        return self.whole.shares(self.mean(x, t))


class EmbeddedDiffusion(DiscreteFamily):
    """A diffusion model of rows of symbols in a learned space.

    Attributes:
        path: From data to noise.
        dim: Dimension of the space of one symbol.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        noise: Mean and standard deviation of the log of the noise level in training.
        steps: Of the sampler, which is the ancestral one.
        clamp: Whether means are moved to the nearest symbols while sampling.
    """

    path: Path = eqx.field(static=True, default=VP())
    dim: int = eqx.field(static=True, default=8)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    noise: tuple[float, float] = eqx.field(static=True, default=(0.0, 1.2))
    steps: int = eqx.field(static=True, default=64)
    clamp: bool = eqx.field(static=True, default=False)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not is_count(self.dim):
            raise MethodError(f"EmbeddedDiffusion got dim={self.dim!r}, expected an int of at least 1. Use dim=8.")

    def build(self, key: PRNGKey, spec: Spec) -> _EmbeddedNet:
        key_points, key_net = jax.random.split(key)
        points = jax.random.normal(key_points, (spec.values, self.dim), jnp.float32)
        given = TimeFeatures().size + given_size(spec)
        net = Conditioned(key_net, (spec.shape[0], self.dim), given, self.width, self.depth)
        return _EmbeddedNet(points, jnp.zeros((), jnp.float32), net)

    def loss(self, key: PRNGKey, net: _EmbeddedNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_level, key_noise = jax.random.split(key)
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), jnp.float32)) / count
        low, high = (-self.path.log_snr(t) / 2 for t in (self.path.start, self.path.end))
        level = jnp.exp(jnp.clip(self.noise[0] + self.noise[1] * ndtri(share), low, high)).astype(jnp.float32)

        def one(key: PRNGKey, x: Array, level: Array, c: Array | None) -> Scalar:
            points = net.embeddings[x]
            noisy = points + level * jax.random.normal(key, points.shape, points.dtype)
            mean = denoised(net.net, noisy, level, c)
            squared = (1 + level**-2) * jnp.mean((mean - points) ** 2)
            return squared - jnp.mean(picked(net.shares(mean), x))

        return jnp.mean(jax.vmap(one)(jax.random.split(key_noise, count), x, level, condition))

    def distribution(self, net: _EmbeddedNet, spec: Spec) -> LearnedEmbeddedDiffusion:
        return LearnedEmbeddedDiffusion(self, spec, net)


class LearnedEmbeddedDiffusion(LearnedDiscrete):
    """The law of a learned diffusion of embedded symbols: draws, and draws under control (``steered``)."""

    offers: ClassVar = {"sample": Exactness.exact}

    family: EmbeddedDiffusion
    net: _EmbeddedNet

    @property
    def denoiser(self) -> EmbeddedDenoiser:
        """The denoiser, in the learned space."""
        return _NetDenoiser(
            whole=self.net, path=self.family.path, embeddings=self.net.embeddings, condition=self.condition
        )

    def draw(self, key: PRNGKey) -> Array:
        return self._sampled(key, self.denoiser)

    def steered(
        self,
        key: PRNGKey,
        log_chance: Callable[[Array], Scalar],
        sample_shape: tuple[int, ...] = (),
        strength: float = 1.0,
    ) -> Array:
        """Draws that are drawn towards a property at every step, shape ``(*sample_shape, *batch_shape, length)``.

        Args:
            key: Randomness.
            log_chance: From the log probabilities of the symbols of all entries, shape ``(length, values)``, to the log
                probability of the property: ``lambda s: s[2, 5]`` for the symbol 5 in place 2.
            sample_shape: How many.
            strength: Factor of its gradient; 1 for Bayes' rule.
        """
        self._ready("sample")
        keys = jax.random.split(key, (*sample_shape, *self.batch_shape))

        def one(here: LearnedEmbeddedDiffusion, key: PRNGKey) -> Array:
            symbols = here.denoiser

            def log_classifier(x: Array, t: Time) -> Scalar:
                return log_chance(symbols.entries(x, t))

            return here._sampled(key, ClassifierGuidance(symbols, log_classifier, strength))

        return self.pointwise(one, (keys, 0))

    def _sampled(self, key: PRNGKey, denoiser: Denoiser) -> Array:
        key_noise, key_path = jax.random.split(key)
        symbols = self.denoiser
        used = ClampedDenoiser(denoiser, symbols) if self.family.clamp else denoiser
        times = even_log_snr(self.family.path, self.family.steps)
        return symbols.rounded(sample_path(key_path, DDIM(eta=1.0), used, denoiser.draw_noise(key_noise), times))
