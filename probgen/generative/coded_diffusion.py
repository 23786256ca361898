r"""Diffusion models that are given a code of the datum, inferred by an encoder that is trained with them.

The loss is that of the diffusion model given :math:`c \sim q(c \mid x)`, plus what keeps the codes in order
(``CodeLaw``). A code that says something of the datum makes denoising easier, so it is learned without labels. With
``GaussianCode`` this is InfoDiffusion: codes that follow :math:`N(0, I)` and are informative. With ``SymbolCode`` it is
DisCo-Diff: a few symbols take over what is discrete in the data, such as the mode, so that the probability flow given
them no longer has to branch and is less curved; ``LatentModel(model, CodePrior())`` then learns their law.

References: Wang et al. (2023), "InfoDiffusion: representation learning using information maximizing diffusion models";
Xu et al. (2024), "DisCo-Diff: enhancing continuous diffusion models with discrete latents".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.code_law import CodeLaw, GaussianCode
from probgen.generative.diffusion import Diffusion, LearnedDiffusion
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.learned_encoder import LearnedEncoder
from probgen.nets import MLP

__all__ = ["CodedDiffusion", "LearnedCodedDiffusion"]


class Net(eqx.Module):
    """The network from data to codes, and that of the diffusion model."""

    encoder: MLP
    decoder: Any

    def said(self, x: Array) -> Array:
        """What the encoder says of one datum."""
        return self.encoder(self.decoder.units.inward(x).reshape(-1))


class CodedDiffusion(Family):
    """A diffusion model of real data with a code.

    Attributes:
        law: What the codes are: ``GaussianCode(...)`` or ``SymbolCode(...)``.
        diffusion: The diffusion model given the code.
        width: Length of the hidden layers of the encoder.
        depth: Number of hidden layers of the encoder.
    """

    law: CodeLaw = GaussianCode()
    diffusion: Diffusion = Diffusion()
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar[Training] = Diffusion.training

    def check(self, spec: Spec) -> None:
        if not isinstance(self.law, CodeLaw):
            raise MethodError(f"law is {self.law!r}, expected GaussianCode(...) or SymbolCode(...).")
        self.law.check()
        check_without_condition(self, spec)

    def coded(self, spec: Spec) -> Spec:
        """Shapes of the diffusion model given the code."""
        return Spec(spec.shape, (self.law.features_size,))

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        key_encoder, key_decoder = jax.random.split(key)
        encoder = MLP(key_encoder, math.prod(spec.shape), self.law.outputs, self.width, self.depth)
        return Net(encoder, self.diffusion.build(key_decoder, self.coded(spec)))

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.decoder, net, self.diffusion.adapt(key, net.decoder, x, None))

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_code, key_loss = jax.random.split(key)
        features, penalty = self.law.relaxed(key_code, jax.vmap(net.said)(x))
        return self.diffusion.loss(key_loss, net.decoder, x, features, now) + penalty

    def distribution(self, net: Net, spec: Spec) -> LearnedCodedDiffusion:
        return LearnedCodedDiffusion(self, spec, net)


class LearnedCodedDiffusion(LearnedEncoder):
    """The law of a learned diffusion model with a code.

    With ``GaussianCode``, draws begin with a code from :math:`N(0, I)`; with ``SymbolCode`` there are none before
    ``LatentModel`` has learned the law of the codes. ``encode`` and ``decode(code, key)`` are there in any case.
    """

    family: CodedDiffusion
    net: Net

    @property
    def offers(self) -> Mapping[str, Exactness]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the law of the codes has it."""
        return self.family.law.offers

    @property
    def code(self) -> Spec:
        return self.family.law.spec

    @property
    def decoder_noise(self) -> tuple[int, ...]:
        return self.event_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of the code, then of the diffusion model."""
        return (math.prod(self.code.shape) + math.prod(self.event_shape),)

    def diffusion_of(self, code: Array) -> LearnedDiffusion:
        """The diffusion model of the data of one code."""
        model = self.family.diffusion.distribution(self.net.decoder, self.family.coded(self.spec))
        return model.given(self.family.law.features(code))  # pyright: ignore[reportReturnType]

    def encode_at(self, x: Array) -> Array:
        return self.family.law.decided(self.net.said(x))

    def decode_at(self, code: Array, noise: Array) -> Array:
        return self.diffusion_of(code).push(noise)

    def draw(self, key: PRNGKey) -> Array:
        key_code, key_rest = jax.random.split(key)
        return self.diffusion_of(jax.random.normal(key_code, self.code.shape)).draw(key_rest)

    def push(self, z: Array) -> Array:
        size = math.prod(self.code.shape)
        return self.decode_at(z[:size].reshape(self.code.shape), z[size:].reshape(self.event_shape))
