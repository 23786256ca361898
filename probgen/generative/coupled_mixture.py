r"""Coupled mixture autoencoders (Marghi, Gala, Baftizadeh and Sumbul 2024, "Joint inference of discrete cell types and
continuous type-specific variability"): a mixture with many categories, found because several autoencoders must agree.

Each of :math:`A` *arms* is a variational autoencoder with a categorical and a continuous latent variable,

.. math:: c \sim \mathrm{Cat}(1/K), \quad s \mid c \sim N(0, I), \quad x \mid c, s \sim p(x \mid c, s);
          \qquad q_a(c \mid x)\, q_a(s \mid c, x),

and sees its own noisy copy of the datum. Alone, such a model leaves most categories unused, since the continuous
variable explains the data too. Coupled, the arms maximise the sum of their bounds less a consensus distance,

.. math:: \sum_a L_a - \lambda \sum_{a < b} E \left\lVert \frac{\operatorname{clr} q_a}{\sigma_a} -
          \frac{\operatorname{clr} q_b}{\sigma_b} \right\rVert^2, \qquad
          \operatorname{clr}(q)_k = \log q_k - \tfrac1K \textstyle\sum_j \log q_j,

Aitchison's distance of the two vectors of probabilities, each entry in units of its standard deviation over the batch:
without that, agreement would be cheapest with one category. Categories are drawn relaxed in training (Gumbel-softmax:
Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017), so what it follows is no bound of the likelihood; ``bound`` sums
over the categories of the first arm, exactly, and is one.
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
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.likelihood import GaussianLikelihood
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["CoupledMixture", "LearnedCoupledMixture", "consensus_distance"]

_RIDGE = 1e-3


class _Arm(eqx.Module):
    categories: MLP
    states: MLP
    decoder: MLP
    noise: Array

    def log_shares(self, features: Array) -> Array:
        """Log probabilities of the categories, shape ``(K,)``."""
        return jax.nn.log_softmax(self.categories(features))

    def state(self, features: Array, category: Array) -> tuple[Array, Array]:
        """Mean and log standard deviation of the continuous variable given a category, one-hot or relaxed."""
        loc, log_scale = jnp.split(self.states(jnp.concatenate([features, category])), 2)
        return loc, log_scale

    def outputs(self, category: Array, state: Array) -> Array:
        return self.decoder(jnp.concatenate([category, state]))


class _Net(eqx.Module):
    units: Standardisation
    arms: tuple[_Arm, ...]


class CoupledMixture(Family):
    """A mixture found by coupled autoencoders, of real data.

    Attributes:
        categories: Number of categories.
        state: Length of the continuous latent variable.
        arms: Number of autoencoders.
        coupling: Weight of the consensus distance.
        temperature: Of the relaxed categories.
        augmentation: Standard deviation of the noise that makes the copies of a datum, in standard units.
        likelihood: Of the data.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    categories: int = eqx.field(static=True, default=8)
    state: int = eqx.field(static=True, default=2)
    arms: int = eqx.field(static=True, default=2)
    coupling: float = eqx.field(static=True, default=1.0)
    temperature: float = eqx.field(static=True, default=0.5)
    augmentation: float = eqx.field(static=True, default=0.1)
    likelihood: GaussianLikelihood = eqx.field(static=True, default=GaussianLikelihood())
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=1)

    training: ClassVar = Training(steps=2000, batch=256, learning_rate=3e-3, weight_decay=0.0, ema=0.99)

    def check(self, spec: Spec) -> None:
        for name, least in (("categories", 2), ("state", 1), ("arms", 1), ("width", 1), ("depth", 0)):
            value = getattr(self, name)
            if not is_count(value, least):
                raise MethodError(f"CoupledMixture got {name}={value!r}, expected an int of at least {least}.")
        for name in ("coupling", "augmentation"):
            if not getattr(self, name) >= 0:
                raise MethodError(f"CoupledMixture got {name}={getattr(self, name)!r}, expected at least 0.")
        if not self.temperature > 0:
            raise MethodError(f"CoupledMixture got temperature={self.temperature!r}, expected a positive number.")
        if spec.condition is not None:
            raise MethodError("CoupledMixture takes no conditions. Leave out condition=, or fit a VAE.")
        self.likelihood.check(spec)

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        size, k, shape = math.prod(spec.shape), self.categories, (self.width, self.depth)

        def arm(key: PRNGKey) -> _Arm:
            key_category, key_state, key_decoder = jax.random.split(key, 3)
            return _Arm(
                MLP(key_category, size, k, *shape),
                MLP(key_state, size + k, 2 * self.state, *shape),
                MLP(key_decoder, k + self.state, size, *shape),
                self.likelihood.noise(spec),
            )

        return _Net(Standardisation(spec.shape), tuple(arm(key) for key in jax.random.split(key, self.arms)))

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        net = eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))
        noise = self.likelihood.adapted(net.arms[0].noise, x)
        return eqx.tree_at(lambda n: [arm.noise for arm in n.arms], net, [noise] * self.arms)

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        total, shares = jnp.zeros((), x.dtype), []
        spec = Spec(x.shape[1:])
        for arm, key_arm in zip(net.arms, jax.random.split(key, self.arms), strict=True):
            one = jax.vmap(lambda key, x, arm=arm: self._arm_terms(key, net, arm, x, spec))
            bound, log_shares = one(jax.random.split(key_arm, x.shape[0]), x)
            total = total - jnp.mean(bound)
            shares.append(log_shares)
        for i, a in enumerate(shares):
            for b in shares[i + 1 :]:
                total = total + self.coupling * consensus_distance(a, b)
        return total

    def _arm_terms(self, key: PRNGKey, net: _Net, arm: _Arm, x: Array, spec: Spec) -> tuple[Scalar, Array]:
        """The relaxed bound of one datum, and the log probabilities of the categories."""
        key_copy, key_category, key_state = jax.random.split(key, 3)
        features = net.units.inward(x).reshape(-1)
        features = features + self.augmentation * jax.random.normal(key_copy, features.shape, features.dtype)
        log_shares = arm.log_shares(features)
        gumbel = jax.random.gumbel(key_category, log_shares.shape, log_shares.dtype)
        category = jax.nn.softmax((log_shares + gumbel) / self.temperature)
        loc, log_scale = arm.state(features, category)
        state = loc + jnp.exp(log_scale) * jax.random.normal(key_state, loc.shape, loc.dtype)
        law = self.likelihood.law(arm.outputs(category, state), arm.noise, net.units, spec)
        of_category = jnp.sum(jnp.exp(log_shares) * log_shares) + math.log(self.categories)
        return jnp.asarray(law.log_prob(x)) - of_category - _divergence(loc, log_scale), log_shares

    def distribution(self, net: _Net, spec: Spec) -> LearnedCoupledMixture:
        return LearnedCoupledMixture(self, spec, net)


def _divergence(loc: Array, log_scale: Array) -> Scalar:
    return 0.5 * jnp.sum(jnp.exp(2 * log_scale) + loc**2 - 1 - 2 * log_scale)


def consensus_distance(a: Array, b: Array) -> Scalar:
    """The mean squared distance of two sets of log probabilities, shape ``(n, K)`` each, as in the module."""

    def scaled(log_shares: Array) -> Array:
        centred = log_shares - jnp.mean(log_shares, 1, keepdims=True)
        return centred / jnp.sqrt(centred.var(0) + _RIDGE)

    return jnp.mean(jnp.sum((scaled(a) - scaled(b)) ** 2, 1))


class LearnedCoupledMixture(Learned):
    """The law of the first arm, which all should agree with: draws, a bound, and categories of data."""

    offers: ClassVar = {"sample": Exactness.exact, "bound": Exactness.bound}

    family: CoupledMixture
    net: _Net

    def draw(self, key: PRNGKey) -> Array:
        key_category, key_state, key_datum = jax.random.split(key, 3)
        arm, family = self.net.arms[0], self.family
        category = jax.nn.one_hot(jax.random.randint(key_category, (), 0, family.categories), family.categories)
        outputs = arm.outputs(category, jax.random.normal(key_state, (family.state,)))
        return jnp.asarray(family.likelihood.law(outputs, arm.noise, self.net.units, self.spec).sample(key_datum))

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        arm, units, k = self.net.arms[0], self.net.units, self.family.categories
        features = units.inward(x).reshape(-1)
        log_shares = arm.log_shares(features)

        def given(category: Array, key: PRNGKey) -> Scalar:
            loc, log_scale = arm.state(features, category)
            state = loc + jnp.exp(log_scale) * jax.random.normal(key, loc.shape, loc.dtype)
            law = self.family.likelihood.law(arm.outputs(category, state), arm.noise, units, self.spec)
            return jnp.asarray(law.log_prob(x)) - _divergence(loc, log_scale)

        each = jax.vmap(given)(jnp.eye(k, dtype=features.dtype), jax.random.split(key, k))
        return jnp.sum(jnp.exp(log_shares) * (each - log_shares)) - math.log(k)

    def shares(self, value: Array) -> Array:
        """Probabilities of the categories by arm, shape ``(..., arms, categories)``."""
        self._ready("bound")

        def at(here: LearnedCoupledMixture, x: Array) -> Array:
            features = here.net.units.inward(x).reshape(-1)
            return jnp.exp(jnp.stack([arm.log_shares(features) for arm in here.net.arms]))

        return self.pointwise(at, (jnp.asarray(value), self.event_dim))

    def agreement(self, value: Array) -> Array:
        """Share of data, shape ``(n, *event_shape)``, whose most probable category is the same in all arms."""
        best = jnp.argmax(self.shares(value), -1)
        return jnp.mean(jnp.all(best == best[..., :1], -1))
