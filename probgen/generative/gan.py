r"""Generative adversarial networks: a generator against a critic that tells its draws from data.

With a critic of logit :math:`\ell`, so that :math:`D = 1 / (1 + e^{-\ell})` is its probability of "data", the critic
minimises and the generator :math:`x = G(z)` is trained against

.. math:: L = -\tfrac12 E_{p} \log D(x) - \tfrac12 E_{q} \log(1 - D(x)) + \tfrac{\gamma}{2} E_p \lVert\nabla\ell\rVert^2,
          \qquad L_G = -E_z \log D(G(z)).

For a given generator with law :math:`q`, and :math:`\gamma = 0`, the best critic is :math:`\ell^* = \log p - \log q`, and
:math:`L(\ell^*) = \log 2 - JS(p, q)`; where :math:`q = p` it says :math:`D = \tfrac12` everywhere. :math:`L_G` is the
*non-saturating* loss of the authors. The penalty on the gradient at the data (Mescheder, Geiger and Nowozin 2018) makes
the game converge near its equilibrium, where it vanishes. Nothing tells from the losses that a draw is good, nor that
no mode is missing: measure it (``neural_divergence``).

Reference: Goodfellow et al. (2014), "Generative adversarial nets".
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["GAN", "LearnedGAN"]


class Net(eqx.Module):
    """Units, and the two networks, in standard units and flat."""

    units: Standardisation
    generator: MLP
    critic: MLP

    def logit(self, x: Array) -> Scalar:
        """The critic's logit at one point in standard units."""
        return self.critic(x.reshape(-1))[0]


def critic_loss(real: Array, made: Array) -> Scalar:
    r"""The loss of a critic, from its logits at data and at draws: :math:`\log 2 - JS` at best."""
    return (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(made))) / 2


class GAN(Family):
    r"""A generative adversarial network for real data.

    Attributes:
        latent: Length of the noise.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        penalty: :math:`\gamma`.
    """

    latent: int = eqx.field(static=True, default=2)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)
    penalty: float = eqx.field(static=True, default=0.1)

    training: ClassVar[Training] = Training(steps=10_000, weight_decay=0.0, validation=0.0)
    validated: ClassVar[bool] = False

    def check(self, spec: Spec) -> None:
        if not is_count(self.latent):
            raise MethodError(f"GAN got latent={self.latent!r}, expected an int of at least 1.")
        if not self.penalty >= 0:
            raise MethodError(f"GAN got penalty={self.penalty!r}, expected >= 0. Use 0.1.")
        check_without_condition(self, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        key_generator, key_critic = jax.random.split(key)
        dim = math.prod(spec.shape)
        return Net(
            Standardisation(spec.shape),
            MLP(key_generator, self.latent, dim, self.width, self.depth),
            MLP(key_critic, dim, 1, self.width, self.depth),
        )

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def made(self, net: Net, z: Array) -> Array:
        """The generator's point, in standard units and flat, of one noise."""
        return net.generator(z)

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        """Both losses in one: each network is passed the gradient of its own alone."""
        x = jax.vmap(lambda x: net.units.inward(x).reshape(-1))(x)
        made = jax.vmap(self.made, (None, 0))(net, jax.random.normal(key, (len(x), self.latent), x.dtype))
        real = jax.vmap(net.logit)(x)
        slope = jax.vmap(jax.grad(net.logit))(x)
        stop = jax.lax.stop_gradient
        critic = critic_loss(real, jax.vmap(net.logit)(stop(made)))
        penalty = self.penalty / 2 * jnp.mean(jnp.sum(slope**2, -1))
        generator = jnp.mean(jax.nn.softplus(-jax.vmap(stop(net).logit)(made)))
        return critic + penalty + generator

    def distribution(self, net: Net, spec: Spec) -> LearnedGAN:
        return LearnedGAN(self, spec, net)


class LearnedGAN(Learned):
    """The law of a learned generator: draws and a noise map, no density; and the critic it was trained against."""

    offers: ClassVar = {"noise_map": Exactness.exact, "sample": Exactness.exact}

    family: GAN
    net: Net

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """That of the generator."""
        return (self.family.latent,)

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))

    def push(self, z: Array) -> Array:
        return self.net.units.outward(self.family.made(self.net, z).reshape(self.event_shape))

    def log_ratio(self, x: Array) -> Array:
        """The critic's logit: its estimate of log density of the data over that of the draws, shape that of ``x`` without
        the event."""
        return self.pointwise(
            lambda here, x: here.net.logit(here.net.units.inward(x)), (jnp.asarray(x), self.event_dim)
        )
