r"""A variational autoencoder whose draws a diffusion model refines.

The first stage is an ``Autoencoder`` with noise: a code :math:`z` and the datum :math:`\hat x = D(z)` that it stands
for, blurred as such means are. The second is a diffusion model of the data *given* :math:`\hat x`, trained on pairs of
a datum and its own reconstruction. A draw is :math:`z \sim N(0, I)`, :math:`x \sim p(x \mid D(z))`: the code says what,
the diffusion fills in how, and since little is left to it a few steps do.

Reference: Pandey et al. (2022), "DiffuseVAE: efficient, controllable and high-fidelity generation from low-dimensional
latents" (their formulation 1, where the noise does not depend on the reconstruction).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import LearnedAutoencoder, check_without_condition
from probgen.generative.diffusion import Diffusion, LearnedDiffusion
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.learned_encoder import LearnedEncoder

__all__ = ["DiffuseVAE", "LearnedDiffuseVAE"]


class DiffuseVAE(Family):
    """A diffusion model that refines the draws of a variational autoencoder.

    Attributes:
        vae: The first stage: a fitted ``Autoencoder`` with ``variance > 0``.
        refiner: The second stage.
    """

    vae: LearnedAutoencoder
    refiner: Diffusion = Diffusion(sampling_steps=8)

    training: ClassVar[Training] = Diffusion.training

    def check(self, spec: Spec) -> None:
        if not isinstance(self.vae, LearnedAutoencoder) or self.vae.family.variance == 0:
            raise MethodError(
                f"vae is a {type(self.vae).__name__}, expected a fitted Autoencoder with variance > 0: codes are drawn "
                f"from N(0, I)."
            )
        if self.vae.spec.shape != spec.shape:
            raise MethodError(f"data have shape {spec.shape}, those of the autoencoder {self.vae.spec.shape}.")
        check_without_condition(self, spec)

    def refined(self, spec: Spec) -> Spec:
        """Shapes of the second stage, whose condition is a reconstruction."""
        return Spec(spec.shape, spec.shape)

    def build(self, key: PRNGKey, spec: Spec) -> Any:
        return self.refiner.build(key, self.refined(spec))

    def adapt(self, key: PRNGKey, net: Any, x: Array, condition: Array | None) -> Any:
        return self.refiner.adapt(key, net, x, None)

    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_code, key_loss = jax.random.split(key)
        codes = jax.vmap(self.vae.infer)(jax.random.split(key_code, len(x)), x)
        blurred = jax.vmap(self.blurred)(codes)
        return self.refiner.loss(key_loss, net, x, blurred, now)

    def blurred(self, code: Array) -> Array:
        """What the refiner is given: the datum of a code, in standard units."""
        return self.vae.units.inward(self.vae.decode_at(code, jnp.zeros(0)))

    def distribution(self, net: Any, spec: Spec) -> LearnedDiffuseVAE:
        return LearnedDiffuseVAE(self, spec, net)


class LearnedDiffuseVAE(LearnedEncoder):
    """The law of a refined autoencoder. ``decode(code, key)`` keeps the code and draws the rest."""

    offers: ClassVar = {"noise_map": Exactness.ode, "sample": Exactness.ode}

    family: DiffuseVAE

    @property
    def code(self) -> Spec:
        return self.family.vae.code

    @property
    def decoder_noise(self) -> tuple[int, ...]:
        return self.event_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of the code, then of the refiner."""
        return (self.family.vae.family.size + math.prod(self.event_shape),)

    def refiner_of(self, code: Array) -> LearnedDiffusion:
        """The diffusion model of the data of one code."""
        model = self.family.refiner.distribution(self.net, self.family.refined(self.spec))
        return model.given(self.family.blurred(code))  # pyright: ignore[reportReturnType]

    def encode_at(self, x: Array) -> Array:
        return self.family.vae.encode_at(x)

    def decode_at(self, code: Array, noise: Array) -> Array:
        return self.refiner_of(code).push(noise)

    def draw(self, key: PRNGKey) -> Array:
        key_code, key_rest = jax.random.split(key)
        return self.refiner_of(jax.random.normal(key_code, self.code.shape)).draw(key_rest)

    def push(self, z: Array) -> Array:
        size = self.family.vae.family.size
        return self.decode_at(z[:size], z[size:].reshape(self.event_shape))
