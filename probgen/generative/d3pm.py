"""Structured discrete diffusion (D3PM); the mathematics stands in ``discrete_process``."""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.corruption import Corruption, UniformCorruption
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete, given_size, log_shares, picked
from probgen.generative.discrete_process import DiscreteProcess
from probgen.generative.family import Now, Spec
from probgen.generative.learned import Exactness
from probgen.nets import SymbolNet, TimeFeatures

__all__ = ["D3PM", "LearnedD3PM"]


class D3PM(DiscreteFamily):
    """Discrete diffusion with structured corruption.

    The loss is the negative bound, one step per row, plus a multiple of the cross-entropy of the clean row.

    Attributes:
        corruption: How symbols are corrupted; ``UniformCorruption`` on two values is Bernoulli ("binomial") diffusion.
        steps: Of the corruption, and of the sampler.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        cross_entropy: Weight of the cross-entropy, per step; 0 for the bound alone.
    """

    corruption: Corruption = UniformCorruption()
    steps: int = eqx.field(static=True, default=64)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    cross_entropy: float = eqx.field(static=True, default=0.01)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not (math.isfinite(self.cross_entropy) and self.cross_entropy >= 0):
            raise MethodError(f"D3PM got cross_entropy={self.cross_entropy}, expected a weight >= 0. Use 0.01.")
        jax.eval_shape(lambda: self.corruption.matrices(spec.values, self.steps))

    def build(self, key: PRNGKey, spec: Spec) -> SymbolNet:
        given = TimeFeatures().size + given_size(spec)
        states = self.corruption.states(spec.values)
        return SymbolNet(key, spec.shape[0], states, given, self.width, self.depth, spec.values)

    def process(self, values: int) -> DiscreteProcess:
        """The corruption of rows of ``values`` symbols."""
        return DiscreteProcess.of(self.corruption, values, self.steps)

    def loss(self, key: PRNGKey, net: SymbolNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        process = self.process(net.outputs)
        key_step, key_noise = jax.random.split(key)
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_step, (count,), jnp.float32)) / count
        steps = 1 + jnp.floor(share * self.steps).astype(int)

        def one(key: PRNGKey, x: Array, t: Array, c: Array | None) -> Scalar:
            x_t = process.corrupted(key, x, t)
            log_clean = jax.nn.log_softmax(_scores(net, x_t, t / self.steps, c), axis=-1)
            bound = process.divergence(log_clean, x, x_t, t)
            return self.steps * (bound - self.cross_entropy * jnp.sum(picked(log_clean, x)))

        return jnp.mean(jax.vmap(one)(jax.random.split(key_noise, count), x, steps, condition))

    def distribution(self, net: SymbolNet, spec: Spec) -> LearnedD3PM:
        return LearnedD3PM(self, spec, net)


def _scores(net: SymbolNet, x: Array, t: Array, condition: Array | None) -> Array:
    features = TimeFeatures()(t)
    given = features if condition is None else jnp.concatenate([features, condition.reshape(-1)])
    return net(x, given)


class LearnedD3PM(LearnedDiscrete):
    """The law of a learned discrete diffusion. ``bound`` takes one corrupted row for every step."""

    offers: ClassVar = {"bound": Exactness.bound, "sample": Exactness.exact}

    family: D3PM
    net: SymbolNet

    @property
    def process(self) -> DiscreteProcess:
        """The corruption and its reverse."""
        return self.family.process(self.spec.values)

    def predict(self, x: Array, t: Array | int) -> Array:
        """Log probabilities of the clean entries of a row that was corrupted in ``t`` steps, shape ``(length, values)``."""
        return log_shares(_scores(self.net, x, jnp.asarray(t) / self.family.steps, self.condition))

    def draw(self, key: PRNGKey) -> Array:
        return self.process.sample(key, self.predict, self.spec.shape[0])

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        return self.process.bound(key, self.predict, x)
