r"""Autoencoders: a short code for each datum, and the way back.

In standard units :math:`x \mapsto (\mu, \omega)`, the code is :math:`z \sim N(\mu, \operatorname{diag} e^\omega)`, and

.. math:: \tfrac12 E\,\lVert x - D(z) \rVert^2 + v\, KL\bigl(N(\mu, e^\omega), N(0, I)\bigr)

is minimised. Divided by :math:`v` this is, up to a constant, the evidence lower bound with a decoder
:math:`x \mid z \sim N(D(z), v I)`: with a :math:`v` as large as the error that is left it is a variational autoencoder,
whose draws are those of :math:`z \sim N(0, I)`; with a small one the code is only kept from growing, and needs a prior
of its own (``LatentModel``). :math:`v = 0` is a plain autoencoder, without noise.

Reference: Kingma and Welling (2014); Rombach et al. (2022), "High-resolution image synthesis with latent diffusion
models" (the weak regularisation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.learned_encoder import LearnedEncoder
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["Autoencoder", "LearnedAutoencoder"]


class Net(eqx.Module):
    """Units, and the networks from data to codes and back."""

    units: Standardisation
    encoder: MLP
    decoder: MLP

    def inward(self, x: Array) -> Array:
        """What the encoder says of one datum."""
        return self.encoder(self.units.inward(x).reshape(-1))


class Autoencoder(Family):
    """An autoencoder of real data, with codes that are real vectors.

    Attributes:
        size: Length of a code.
        variance: ``v``, of the decoder, in standard units; 0 for an autoencoder without noise.
        width: Length of the hidden layers.
        depth: Number of hidden layers; 0 for linear maps.
    """

    size: int = eqx.field(static=True, default=2)
    variance: float = eqx.field(static=True, default=0.01)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar[Training] = Training(weight_decay=0.0)

    def check(self, spec: Spec) -> None:
        if not is_count(self.size):
            raise MethodError(f"Autoencoder got size={self.size!r}, expected an int of at least 1.")
        if not self.variance >= 0:
            raise MethodError(f"Autoencoder got variance={self.variance!r}, expected >= 0. Use 0.01.")
        check_without_condition(self, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        key_encoder, key_decoder = jax.random.split(key)
        dim = math.prod(spec.shape)
        return Net(
            Standardisation(spec.shape),
            MLP(key_encoder, dim, 2 * self.size, self.width, self.depth),
            MLP(key_decoder, self.size, dim, self.width, self.depth),
        )

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        each = jax.vmap(self.terms, (0, None, 0))
        error, divergence = each(jax.random.split(key, len(x)), net, x)
        return jnp.mean(error / 2 + self.variance * divergence)

    def terms(self, key: PRNGKey, net: Net, x: Array) -> tuple[Scalar, Scalar]:
        """Squared error of the decoder at a code of one datum, in standard units, and the divergence of its law."""
        mean, log_variance = jnp.split(net.inward(x), 2)
        z = self.code(key, mean, log_variance)
        error = jnp.sum((net.units.inward(x).reshape(-1) - net.decoder(z)) ** 2)
        return error, 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance)

    def code(self, key: PRNGKey, mean: Array, log_variance: Array) -> Array:
        """A draw of the code."""
        if self.variance == 0:
            return mean
        return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)

    def distribution(self, net: Net, spec: Spec) -> LearnedAutoencoder:
        return LearnedAutoencoder(self, spec, net)


def check_without_condition(family: Family, spec: Spec) -> None:
    """Refuse conditions.

    Raises:
        MethodError: If there are any.
    """
    if spec.condition is not None:
        raise MethodError(
            f"{type(family).__name__} takes no condition, got one of shape {spec.condition}. Give the condition to the "
            f"model of its codes: LatentModel."
        )


class LearnedAutoencoder(LearnedEncoder):
    """A learned autoencoder: ``encode`` gives the mean of the code, ``decode`` the mean of the datum.

    With ``variance > 0`` it is a variational autoencoder: draws add the noise of the decoder, and ``bound`` is the
    evidence lower bound. Without, it only encodes and decodes.
    """

    family: Autoencoder
    net: Net

    @property
    def offers(self) -> Mapping[str, Exactness]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Nothing but codes without noise."""
        if self.family.variance == 0:
            return {}
        return {"bound": Exactness.bound, "noise_map": Exactness.exact, "sample": Exactness.exact}

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units of the networks."""
        return self.net.units

    @property
    def code(self) -> Spec:
        return Spec((self.family.size,))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of the code, then of the decoder."""
        return (self.family.size + math.prod(self.event_shape),)

    def encode_at(self, x: Array) -> Array:
        return self.net.inward(x)[: self.family.size]

    def infer(self, key: PRNGKey, x: Array) -> Array:
        """A draw of the code of one datum."""
        return self.family.code(key, *jnp.split(self.net.inward(x), 2))

    def decode_at(self, code: Array, noise: Array) -> Array:
        return self.units.outward(self.net.decoder(code).reshape(self.event_shape))

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))

    def push(self, z: Array) -> Array:
        inner = self.net.decoder(z[: self.family.size]) + math.sqrt(self.family.variance) * z[self.family.size :]
        return self.units.outward(inner.reshape(self.event_shape))

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        error, divergence = self.family.terms(key, self.net, x)
        v = self.family.variance
        return -error / (2 * v) - 0.5 * x.size * math.log(2 * math.pi * v) - divergence + self.units.log_det()
