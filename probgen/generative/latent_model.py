r"""Models of codes: an encoder that was fitted first, and a generative model of the codes of the data.

A draw is :math:`c \sim p(c)`, :math:`x = D(c)`. With ``Diffusion`` as the model of the codes of an ``Autoencoder`` this is
latent diffusion; with ``CodePrior`` on those of a ``QuantisedAutoencoder`` it is autoregressive generation over code
stacks; on those of a ``CodedDiffusion`` it is its missing prior. The law of the data has no density: where the code is
shorter than the datum and the decoder deterministic, it lives on a surface.

Reference: Rombach et al. (2022), "High-resolution image synthesis with latent diffusion models"; Lee et al. (2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.diffusion import Diffusion
from probgen.generative.family import Family, Now, Solved, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.learned_encoder import LearnedEncoder, check_encoder

__all__ = ["LatentModel", "LearnedLatentModel"]


class LatentModel(Family):
    """A generative model of data, by way of their codes. Conditions go to the model of the codes.

    Attributes:
        encoder: What was fitted first: an autoencoder, or another model with codes.
        prior: What is fitted to the codes: a family of real data, or of symbols if the codes are.
    """

    encoder: LearnedEncoder
    prior: Family = Diffusion()

    @property
    def training(self) -> Training:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the model of the codes."""
        return self.prior.training

    @property
    def validated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the model of the codes."""
        return self.prior.validated

    def check(self, spec: Spec) -> None:
        check_encoder("encoder", self.encoder)
        if self.encoder.spec.shape != spec.shape:
            raise MethodError(
                f"data have shape {spec.shape}, those of the encoder {self.encoder.spec.shape}. Fit both to the same data."
            )
        if not isinstance(self.prior, Family) or isinstance(self.prior, Solved):
            raise MethodError(f"prior is {self.prior!r}, expected a family that is trained. Use Diffusion().")
        if self.prior.discrete != (self.encoder.code.values > 0):
            kind, use = ("symbols", "CodePrior()") if self.encoder.code.values else ("real numbers", "Diffusion()")
            raise MethodError(
                f"the codes are {kind}, and {type(self.prior).__name__} is not for these. Use prior={use}."
            )
        self.prior.check(self.codes(spec))

    def codes(self, spec: Spec) -> Spec:
        """Shapes of the codes and their conditions."""
        code = self.encoder.code
        return Spec(code.shape, spec.condition, code.values)

    def build(self, key: PRNGKey, spec: Spec) -> Any:
        return self.prior.build(key, self.codes(spec))

    def adapt(self, key: PRNGKey, net: Any, x: Array, condition: Array | None) -> Any:
        return self.prior.adapt(key, net, self.encoder.encode(x), condition)

    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        return self.prior.loss(key, net, self.encoder.encode(x), condition, now)

    def distribution(self, net: Any, spec: Spec) -> LearnedLatentModel:
        return LearnedLatentModel(self, spec, net)


class LearnedLatentModel(LearnedEncoder):
    """The law of a learned model of codes: draws, and a noise map where the model of the codes has one.

    ``prior`` is the distribution of the codes, with all that it offers.
    """

    family: LatentModel

    @property
    def prior(self) -> Learned:
        """The distribution of the codes."""
        model = self.family.prior.distribution(self.net, self.family.codes(self.spec))
        return model if self.condition is None else model.given(self.condition)

    @property
    def offers(self) -> Mapping[str, Exactness]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Draws, and a noise map, as exact as those of the codes."""
        inner = self.family.prior.distribution(self.net, self.family.codes(self.spec)).offers
        return {name: inner[name] for name in ("noise_map", "sample") if name in inner}

    @property
    def code(self) -> Spec:
        return self.family.encoder.code

    @property
    def decoder_noise(self) -> tuple[int, ...]:
        return self.family.encoder.decoder_noise

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of the code, then of the decoder."""
        inner = self.family.prior.distribution(self.net, self.family.codes(self.spec)).noise_shape
        return (math.prod(inner) + math.prod(self.decoder_noise),)

    def encode_at(self, x: Array) -> Array:
        return self.family.encoder.encode_at(x)

    def decode_at(self, code: Array, noise: Array) -> Array:
        return self.family.encoder.decode_at(code, noise)

    def draw(self, key: PRNGKey) -> Array:
        key_code, key_noise = jax.random.split(key)
        return self.decode_at(cast(Any, self.prior).draw(key_code), jax.random.normal(key_noise, self.decoder_noise))

    def push(self, z: Array) -> Array:
        prior = self.prior
        size = math.prod(prior.noise_shape)
        code = prior.push(z[:size].reshape(prior.noise_shape))
        return self.decode_at(code, jnp.reshape(z[size:], self.decoder_noise))
