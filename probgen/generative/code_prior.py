r"""Autoregressive models of rows of symbols: :math:`p(c) = \prod_l p(c_l \mid c_{<l})`, with the exact likelihood.

One network gives every factor: its input are the symbols before the position, those after it blank, and the position.
It is meant for short rows, such as the codes of an autoencoder: a likelihood takes one evaluation per symbol.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete, given_size, log_shares
from probgen.generative.family import Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.nets import MLP

__all__ = ["CodePrior", "LearnedCodePrior"]


class CodePrior(DiscreteFamily):
    """An autoregressive model of short rows of symbols.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar[Training] = Training(steps=3000)

    def build(self, key: PRNGKey, spec: Spec) -> MLP:
        (length,) = spec.shape
        inputs = length * spec.values + length + given_size(spec)
        return MLP(key, inputs, spec.values, self.width, self.depth, zero=True)

    def loss(self, key: PRNGKey, net: MLP, x: Array, condition: Array | None, now: Now) -> Scalar:
        return -jnp.mean(jax.vmap(row_log_prob, (None, 0, 0))(net, x, condition))

    def distribution(self, net: MLP, spec: Spec) -> LearnedCodePrior:
        return LearnedCodePrior(self, spec, net)


def symbol_log_probs(net: MLP, row: Array, position: Array, condition: Array | None) -> Array:
    """Log probabilities of the symbol at a position given those before it, shape ``(values,)``."""
    values = net.layers[-1].bias.shape[0]  # pyright: ignore[reportOptionalMemberAccess]
    before = jnp.arange(len(row)) < position
    dtype = jnp.float32 if condition is None else jnp.result_type(condition, jnp.float32)
    known = jax.nn.one_hot(row, values, dtype=dtype) * before[:, None]
    given = [] if condition is None else [condition.reshape(-1)]
    return log_shares(
        net(jnp.concatenate([known.reshape(-1), jax.nn.one_hot(position, len(row), dtype=dtype), *given]))
    )


def row_log_prob(net: MLP, row: Array, condition: Array | None) -> Scalar:
    """Log probability of one row."""
    positions = jnp.arange(len(row))
    table = jax.vmap(symbol_log_probs, (None, None, 0, None))(net, row, positions, condition)
    return jnp.sum(table[positions, row])


class LearnedCodePrior(LearnedDiscrete):
    """The law of a learned autoregressive model: exact log probabilities and draws."""

    offers: ClassVar = {"log_prob": Exactness.exact, "sample": Exactness.exact}

    family: CodePrior
    net: MLP

    def draw(self, key: PRNGKey) -> Array:
        (length,) = self.event_shape

        def one(row: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
            key, position = at
            symbol = jax.random.categorical(key, symbol_log_probs(self.net, row, position, self.condition))
            return row.at[position].set(symbol.astype(row.dtype)), None

        start = jnp.zeros(length, jnp.int32)
        return jax.lax.scan(one, start, (jax.random.split(key, length), jnp.arange(length)))[0]

    def density(self, x: Array) -> Scalar:
        return row_log_prob(self.net, x, self.condition)
