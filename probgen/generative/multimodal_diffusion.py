r"""One diffusion model of the codes of several modalities: any of them from any others.

Every modality has an autoencoder of its own. Their codes, standardised and put side by side as
:math:`z = (z_1, \dots, z_M)`, are diffused with *a time for each*: in training a random set of modalities (perhaps none,
never all) stays clean and the rest share a time; the network is told the level of each, and learns the posterior mean of
those with noise. So it knows every conditional of the joint law: a draw of some modalities given others holds the codes of
these clean, all the way.

Reference: Bounoua, Franzese and Michiardi (2024), "Multi-modal latent diffusion".
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.denoiser import Denoiser
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.generative.learned_encoder import LearnedEncoder, check_encoder
from probgen.generative.path import VP, Path, Time, even_log_snr
from probgen.generative.sampler import Sampler, UniPC, sample_path
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["JointDenoiser", "LearnedMultimodal", "MultimodalDiffusion"]

_FEATURES = TimeFeatures(size=16)


class Net(eqx.Module):
    """Units of the codes side by side, and the network."""

    units: Standardisation
    net: Conditioned


class MultimodalDiffusion(Family):
    """A joint diffusion model of several modalities, which stand side by side in the columns of the data.

    Attributes:
        encoders: A fitted autoencoder for each, in the order of the columns; its codes are real and its decoder is
            deterministic.
        path: From codes to noise.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        noise: Mean and standard deviation of the log of the noise level in training.
        sampler: How to draw.
        sampling_steps: Steps of the sampler.
    """

    encoders: tuple[LearnedEncoder, ...]
    path: Path = eqx.field(static=True, default=VP())
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    noise: tuple[float, float] = eqx.field(static=True, default=(-0.8, 1.4))
    sampler: Sampler = eqx.field(static=True, default=UniPC())
    sampling_steps: int = eqx.field(static=True, default=32)

    def check(self, spec: Spec) -> None:
        if len(self.encoders) < 2:
            raise MethodError(
                "MultimodalDiffusion got fewer than two encoders. Give one per modality: encoders=(a, b)."
            )
        for i, encoder in enumerate(self.encoders):
            check_encoder(f"encoders[{i}]", encoder)
            if encoder.code.values or encoder.decoder_noise != (0,):
                raise MethodError(
                    f"encoders[{i}] has codes of symbols or a random decoder, expected an Autoencoder or "
                    f"PrincipalComponents."
                )
        if spec.shape != (sum(self.columns),):
            raise MethodError(
                f"one datum has shape {spec.shape}, and the encoders take {self.columns} numbers. Put the modalities side "
                f"by side in columns, in the order of the encoders."
            )
        check_without_condition(self, spec)

    @property
    def columns(self) -> tuple[int, ...]:
        """Numbers in a datum of each modality."""
        return tuple(math.prod(encoder.spec.shape) for encoder in self.encoders)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers in a code of each modality."""
        return tuple(math.prod(encoder.code.shape) for encoder in self.encoders)

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        shape = (sum(self.sizes),)
        given = len(self.encoders) * (_FEATURES.size + 1)
        return Net(Standardisation(shape), Conditioned(key, shape, given, self.width, self.depth))

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(jax.vmap(self.encoded)(x)))

    def encoded(self, x: Array) -> Array:
        """The codes of one datum, side by side."""
        parts = jnp.split(x, np.cumsum(self.columns)[:-1])
        codes = [e.encode_at(p.reshape(e.spec.shape)) for e, p in zip(self.encoders, parts, strict=True)]
        return jnp.concatenate([code.reshape(-1) for code in codes])

    def decoded(self, codes: Array) -> Array:
        """The datum of codes side by side."""
        parts = jnp.split(codes, np.cumsum(self.sizes)[:-1])
        data = [
            e.decode_at(p.reshape(e.code.shape), jnp.zeros(0, p.dtype))
            for e, p in zip(self.encoders, parts, strict=True)
        ]
        return jnp.concatenate([datum.reshape(-1) for datum in data])

    def spread(self, flags: Array) -> Array:
        """One entry per modality, as one per number of the codes."""
        return jnp.repeat(flags, np.asarray(self.sizes), total_repeat_length=sum(self.sizes))

    def mean(self, net: Conditioned, z: Array, level: Scalar, clean: Array) -> Array:
        """The posterior mean of codes, in standard units.

        Args:
            net: The network.
            z: Codes, those of clean modalities as they are, the others with noise, at signal scale 1.
            level: Noise level of the others.
            clean: For each modality, whether it is clean, shape ``(modalities,)``.
        """
        waves = jnp.where(clean[:, None], 0.0, _FEATURES(jnp.log(level) / 4))
        given = jnp.concatenate([waves.reshape(-1), clean.astype(waves.dtype)]).astype(z.dtype)
        levels = self.spread(jnp.where(clean, 0.0, level))
        size = jnp.sqrt(1 + levels**2)
        return z / size**2 + levels / size * net(z / size, given)

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_level, key_clean, key_noise = jax.random.split(key, 3)
        z = jax.vmap(lambda x: net.units.inward(self.encoded(x)))(x)
        count, modalities = len(x), len(self.encoders)
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), z.dtype)) / count
        low, high = (-self.path.log_snr(t) / 2 for t in (self.path.start, self.path.end))
        level = jnp.exp(jnp.clip(self.noise[0] + self.noise[1] * ndtri(share), low, high))
        # Every set of clean modalities but that of all of them, with equal probabilities.
        subsets = jax.random.randint(key_clean, (count,), 0, 2**modalities - 1)
        clean = (subsets[:, None] >> jnp.arange(modalities)) & 1 == 1
        noise = jax.random.normal(key_noise, z.shape, z.dtype)

        def one(z: Array, noise: Array, level: Scalar, clean: Array) -> Scalar:
            noisy = ~self.spread(clean)
            mean = self.mean(net.net, z + jnp.where(noisy, level * noise, 0.0), level, clean)
            return (1 + level**-2) * jnp.sum(jnp.where(noisy, (mean - z) ** 2, 0.0)) / z.size

        return jnp.mean(jax.vmap(one)(z, noise, level, clean))

    def distribution(self, net: Net, spec: Spec) -> LearnedMultimodal:
        return LearnedMultimodal(self, spec, net)


class JointDenoiser(Denoiser):
    """Denoiser of the codes of all modalities in standard units, some of which are known.

    Attributes:
        family: Which modalities there are.
        net: The network.
        known: For each modality, whether it is known, shape ``(modalities,)``.
        codes: Codes in standard units; only the known ones are used.
        path: From codes to noise.
    """

    family: MultimodalDiffusion
    net: Conditioned
    known: Array
    codes: Array
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, sigma = self.path(t)
        known = self.family.spread(self.known)
        z = jnp.where(known, self.codes, x / alpha)
        return jnp.where(known, self.codes, self.family.mean(self.net, z, sigma / alpha, self.known))


class LearnedMultimodal(Learned):
    """The law of several modalities, side by side, and every conditional between them (``sample_given``)."""

    offers: ClassVar = {"noise_map": Exactness.ode, "sample": Exactness.ode}

    family: MultimodalDiffusion
    net: Net

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of the codes."""
        return (sum(self.family.sizes),)

    def _run(self, key: PRNGKey, z: Array, x: Array, known: Array) -> Array:
        """From standard normal noise to data, given the known modalities of ``x``."""
        family = self.family
        codes = self.net.units.inward(family.encoded(x))
        path = family.path
        denoiser = JointDenoiser(family=family, net=self.net.net, known=known, codes=codes, path=path)
        noise = path(path.end)[1] * z
        ends = sample_path(key, family.sampler, denoiser, noise, even_log_snr(path, family.sampling_steps))
        data = family.decoded(self.net.units.outward(jnp.where(family.spread(known), codes, ends)))
        of_column = jnp.repeat(known, np.asarray(family.columns), total_repeat_length=sum(family.columns))
        return jnp.where(of_column, x, data)

    def draw(self, key: PRNGKey) -> Array:
        key_noise, key_path = jax.random.split(key)
        z = jax.random.normal(key_noise, self.noise_shape)
        return self._run(key_path, z, jnp.zeros(self.event_shape), jnp.zeros(len(self.family.encoders), bool))

    def push(self, z: Array) -> Array:
        known = jnp.zeros(len(self.family.encoders), bool)
        return self._run(jax.random.key(0), z, jnp.zeros(self.event_shape, z.dtype), known)

    def sample_given(
        self, key: PRNGKey, x: Array, known: tuple[bool, ...], sample_shape: tuple[int, ...] = ()
    ) -> Array:
        """Draws of all modalities given some of them.

        Args:
            key: Randomness.
            x: Data, shape ``(..., columns)``; only the columns of known modalities are used, and returned as they are.
            known: For each modality, whether it is given.
            sample_shape: Draws for each datum.

        Returns:
            Shape ``(*sample_shape, ..., columns)``.

        Raises:
            DataError: If ``known`` does not have an entry per modality, or ``x`` has other columns.
        """
        x = jnp.asarray(x, float)
        if len(known) != len(self.family.encoders) or x.shape[-1:] != self.event_shape:
            raise DataError(
                f"known has {len(known)} entries and x has shape {x.shape}, expected {len(self.family.encoders)} entries "
                f"and shape (..., {self.event_shape[0]}). Give True or False for every modality."
            )
        x = jnp.broadcast_to(x, (*sample_shape, *x.shape))
        keys = jax.random.split(key, x.shape[:-1])
        flags = jnp.asarray(known, bool)

        def one(here: LearnedMultimodal, key: PRNGKey, x: Array) -> Array:
            key_noise, key_path = jax.random.split(key)
            return here._run(key_path, jax.random.normal(key_noise, here.noise_shape, x.dtype), x, flags)

        return self.pointwise(one, (keys, 0), (x, 1))
