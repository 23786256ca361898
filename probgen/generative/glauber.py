r"""Glauber generative models: heat-bath steps that undo noise, learned by telling noise from signal.

Sites are visited in turn, in ``sweeps`` rounds. At step :math:`t` the site :math:`i_t` keeps its value with probability
:math:`\phi`, and else takes one of :math:`K` values at random. Given what the site shows afterwards and all the others,
was it kept (signal) or replaced (noise)? By Bayes' rule the odds are

.. math:: \frac{P(\text{signal} \mid x_{t+1})}{P(\text{noise} \mid x_{t+1})}
          = \frac{\phi K}{1 - \phi}\; P\bigl(x_{t, i} = a \mid x_{t, -i}\bigr), \qquad a = x_{t+1, i},

so a binary classifier knows the conditional of the site under the law of :math:`x_t`, and drawing the site from it undoes
the step exactly: the law of :math:`x_{t+1}` becomes that of :math:`x_t`. Sampling starts from independent uniform values,
from which :math:`x_T` differs by what survives, a share ``left`` of every site.

Reference: Varma, Nagaraj and Shanmugam (2025), "Glauber generative model: discrete diffusion models via binary
classification".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete, given_size, log_shares
from probgen.generative.family import Now, Spec
from probgen.generative.learned import Exactness
from probgen.nets import SymbolNet, TimeFeatures

__all__ = ["Glauber", "LearnedGlauber", "heat_bath"]


def heat_bath(key: PRNGKey, predict: Callable[[Array, Array], Array], size: int, values: int, steps: int) -> Array:
    """Undo noise step by step, from independent uniform values.

    Args:
        key: Randomness.
        predict: From a row, shape ``(size,)``, and a step ``t`` to log probabilities of the values of site ``t % size``
            given the others, shape ``(values,)``.
        size: Number of sites.
        values: Number of values.
        steps: Number of steps.
    """
    key_start, key_steps = jax.random.split(key)
    x = jax.random.randint(key_start, (size,), 0, values, jnp.int32)

    def one(x: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
        key, t = at
        return x.at[t % size].set(jax.random.categorical(key, predict(x, t)).astype(jnp.int32)), None

    return jax.lax.scan(one, x, (jax.random.split(key_steps, steps), jnp.arange(steps - 1, -1, -1)))[0]


class Glauber(DiscreteFamily):
    """A Glauber generative model.

    Attributes:
        sweeps: Rounds through all sites.
        left: Share of the sites that no noise has reached at the end; what sampling gets wrong by starting from noise.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
    """

    sweeps: int = eqx.field(static=True, default=16)
    left: float = eqx.field(static=True, default=1e-2)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not is_count(self.sweeps):
            raise MethodError(f"Glauber got sweeps={self.sweeps!r}, expected an int of at least 1. Use sweeps=16.")
        if not 0.0 < self.left < 1.0:
            raise MethodError(f"Glauber got left={self.left}, expected 0 < left < 1. Use left=0.01.")

    @property
    def kept(self) -> float:
        """Chance that a visited site keeps its value."""
        return self.left ** (1.0 / self.sweeps)

    def build(self, key: PRNGKey, spec: Spec) -> SymbolNet:
        size = spec.shape[0]
        given = TimeFeatures().size + size + given_size(spec)
        return SymbolNet(key, size, spec.values, given, self.width, self.depth)

    def visits(self, t: Array, size: int) -> Array:
        """How often each site was visited before step ``t``, shape ``(size,)``."""
        return t // size + (jnp.arange(size) < t % size)

    def scores(self, net: SymbolNet, x: Array, t: Array, condition: Array | None) -> Array:
        """Log odds of signal for each value of the visited site, up to a constant, shape ``(values,)``."""
        size, site = x.shape[0], t % x.shape[0]
        given = [
            TimeFeatures()(t / (self.sweeps * size)).astype(jnp.float32),
            jax.nn.one_hot(site, size, dtype=jnp.float32),
        ]
        if condition is not None:
            given.append(condition.reshape(-1).astype(jnp.float32))
        # The classifier must not see the site itself: its score for every value is asked at once. Those of a perfect one
        # are log K p for a distribution p, so only such scores are made.
        raw = net(x.at[site].set(net.values), jnp.concatenate(given))[site]
        return jax.nn.log_softmax(raw) + jnp.log(net.values)

    def loss(self, key: PRNGKey, net: SymbolNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        count, size = x.shape
        key_step, key_noise = jax.random.split(key)
        share = (jnp.arange(count) + jax.random.uniform(key_step, (count,), jnp.float32)) / count
        steps = jnp.floor(share * self.sweeps * size).astype(int)

        def one(key: PRNGKey, x: Array, t: Array, c: Array | None) -> Scalar:
            key_kept, key_values, key_signal, key_replaced = jax.random.split(key, 4)
            survives = jax.random.bernoulli(key_kept, self.kept ** self.visits(t, size))
            x_t = jnp.where(survives, x, jax.random.randint(key_values, (size,), 0, net.values, x.dtype))
            signal = jax.random.bernoulli(key_signal, self.kept)
            shown = jnp.where(signal, x_t[t % size], jax.random.randint(key_replaced, (), 0, net.values, x.dtype))
            odds = self.scores(net, x_t, t, c)[shown] + jnp.log(self.kept / (1.0 - self.kept))
            return jax.nn.softplus(jnp.where(signal, -odds, odds))

        return jnp.mean(jax.vmap(one)(jax.random.split(key_noise, count), x, steps, condition))

    def distribution(self, net: SymbolNet, spec: Spec) -> LearnedGlauber:
        return LearnedGlauber(self, spec, net)


class LearnedGlauber(LearnedDiscrete):
    """The law of a learned Glauber model: draws alone. The learned scores are
    :math:`\\log K P(x_i \\mid x_{-i})`, as those of a perfect classifier are."""

    offers: ClassVar = {"sample": Exactness.exact}

    family: Glauber
    net: SymbolNet

    def predict(self, x: Array, t: Array) -> Array:
        """Log probabilities of the values of site ``t % length`` given the others, under the law of step ``t``."""
        return log_shares(self.family.scores(self.net, x, jnp.asarray(t), self.condition))

    def draw(self, key: PRNGKey) -> Array:
        size, values = self.spec.shape[0], self.spec.values
        return heat_bath(key, self.predict, size, values, self.family.sweeps * size)
