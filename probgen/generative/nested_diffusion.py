r"""Diffusion models in a chain, from coarse codes to data.

Encoders give every datum codes :math:`z_1, \dots, z_L`, from coarse to fine. The first level is a diffusion model of
:math:`z_1`; each next one is a diffusion model of :math:`z_{l+1}` (the last: of the datum) given the code before it *with
noise*, :math:`\tilde z_l = z_l + s\,\varepsilon` in standard units. The noise limits what a level can take from the one
above to :math:`\tfrac12 \log(1 + s^{-2})` nats an entry, so that it neither copies it nor suffers from its errors. Draws
run down the chain with the same noise. The joint law is

.. math:: p(z_1) \prod_l p(z_{l+1} \mid \tilde z_l)\, p(\tilde z_l \mid z_l),

whose marginal of the data is right when all levels are; levels are trained at once, each with its own network.

Reference: Zhang et al. (2024), "Nested diffusion models using hierarchical latent priors".
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.diffusion import Diffusion, LearnedDiffusion
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.learned_encoder import LearnedEncoder, check_encoder

__all__ = ["LearnedNested", "NestedDiffusion"]


class NestedDiffusion(Family):
    """A chain of diffusion models.

    Attributes:
        encoders: Fitted models with real codes, from the coarsest to the finest.
        noise: Standard deviation of the noise between levels, in standard deviations of the codes.
        diffusion: Every level.
    """

    encoders: tuple[LearnedEncoder, ...]
    noise: float = eqx.field(static=True, default=0.3)
    diffusion: Diffusion = Diffusion()

    training: ClassVar[Training] = Diffusion.training

    def check(self, spec: Spec) -> None:
        if not self.encoders:
            raise MethodError("NestedDiffusion got no encoders. Give at least one: encoders=(coarse, fine).")
        for i, encoder in enumerate(self.encoders):
            check_encoder(f"encoders[{i}]", encoder)
            if encoder.code.values:
                raise MethodError(f"encoders[{i}] has codes of symbols, expected real codes.")
            if encoder.spec.shape != spec.shape:
                raise MethodError(
                    f"encoders[{i}] takes data of shape {encoder.spec.shape}, the data have {spec.shape}."
                )
        if not self.noise > 0:
            raise MethodError(f"NestedDiffusion got noise={self.noise!r}, expected a positive number. Use 0.3.")
        check_without_condition(self, spec)

    def levels(self, spec: Spec) -> tuple[Spec, ...]:
        """Shapes of each level and of what it is given; the last one is that of the data."""
        shapes = [encoder.code.shape for encoder in self.encoders]
        return tuple(Spec(here, above) for here, above in zip([*shapes, spec.shape], [None, *shapes], strict=True))

    def build(self, key: PRNGKey, spec: Spec) -> tuple[Any, ...]:
        levels = self.levels(spec)
        return tuple(
            self.diffusion.build(k, s) for k, s in zip(jax.random.split(key, len(levels)), levels, strict=True)
        )

    def adapt(self, key: PRNGKey, net: tuple[Any, ...], x: Array, condition: Array | None) -> tuple[Any, ...]:
        return tuple(self.diffusion.adapt(key, n, v, None) for n, v in zip(net, self._values(x), strict=True))

    def _values(self, x: Array) -> list[Array]:
        """The codes of data, and the data."""
        return [*(jax.vmap(encoder.encode_at)(x) for encoder in self.encoders), x]

    def loss(self, key: PRNGKey, net: tuple[Any, ...], x: Array, condition: Array | None, now: Now) -> Scalar:
        values = self._values(x)
        total = jnp.zeros((), x.dtype)
        for level, (own, value) in enumerate(zip(net, values, strict=True)):
            key_noise, key_loss = jax.random.split(jax.random.fold_in(key, level))
            above = None
            if level > 0:
                above = jax.vmap(net[level - 1].units.inward)(values[level - 1])
                above = above + self.noise * jax.random.normal(key_noise, above.shape, above.dtype)
            total = total + self.diffusion.loss(key_loss, own, value, above, now)
        return total / len(net)

    def distribution(self, net: tuple[Any, ...], spec: Spec) -> LearnedNested:
        return LearnedNested(self, spec, net)


class LearnedNested(Learned):
    """The law of a chain of diffusion models; ``sample_levels`` gives the codes of a draw too."""

    offers: ClassVar = {"noise_map": Exactness.ode, "sample": Exactness.ode}

    family: NestedDiffusion
    net: tuple[Any, ...]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of each level, and of each passage to the next."""
        sizes = [math.prod(spec.shape) for spec in self.family.levels(self.spec)]
        return (2 * sum(sizes[:-1]) + sizes[-1],)

    def levels_of(self, z: Array) -> tuple[Array, ...]:
        """The codes, from coarse to fine, and the datum, of one noise."""
        found, above = [], None
        for net, spec in zip(self.net, self.family.levels(self.spec), strict=True):
            model: LearnedDiffusion = self.family.diffusion.distribution(net, spec)
            if above is not None:
                model = model.given(above)  # pyright: ignore[reportAssignmentType]
            size = math.prod(spec.shape)
            value = model.push(z[:size].reshape(spec.shape))
            found.append(value)
            z = z[size:]
            if len(found) < len(self.net):
                above = net.units.inward(value) + self.family.noise * z[:size].reshape(spec.shape)
                z = z[size:]
        return tuple(found)

    def sample_levels(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> tuple[Array, ...]:
        """Draws of the codes, from coarse to fine, and of the data that they led to."""
        noise = jax.random.normal(key, (*sample_shape, *self.noise_shape))
        return self.pointwise(lambda here, z: here.levels_of(z), (noise, 1))

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))

    def push(self, z: Array) -> Array:
        return self.levels_of(z)[-1]
