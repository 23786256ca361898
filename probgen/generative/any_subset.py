r"""Any-subset autoregression, and drawing several symbols at a time without changing their law.

Given any part :math:`S` of a row, the rest is modelled from left to right,

.. math:: p(x_U \mid x_S) = \prod_{i \in U} p(x_i \mid x_S, x_{U, <i}),

by a network that gives all factors in one pass, whatever :math:`S` is. Its law is that of :math:`S = \emptyset`.

To draw, all blanks are *guessed* in one pass, independently from :math:`q_i = p(x_i \mid x_S)`; a second pass gives
:math:`p_i = p(x_i \mid x_S, x_{U,<i})` at the guesses; from left to right guess :math:`i` is accepted with probability
:math:`\min(1, p_i/q_i)`, and at the first refusal :math:`x_i` is drawn from the law proportional to :math:`(p_i - q_i)_+`
and the round ends. Whatever the guesses, the joint law is exactly the product above (Leviathan, Kalman and Matias 2023).
The first blank has :math:`p_i = q_i`, and is always accepted: a round of two passes settles at least two symbols, and the
last blank alone needs no second pass. So there are never more passes than symbols.

Reference: Guo and Ermon (2025), "Reviving any-subset autoregressive models with principled parallel sampling and
speculative decoding".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import (
    DiscreteFamily,
    LearnedDiscrete,
    draw_symbols,
    given_size,
    log_shares,
    picked,
)
from probgen.generative.family import Now, Spec
from probgen.generative.learned import Exactness
from probgen.generative.unmasking import Unmasked, random_ranks
from probgen.nets import OrderedNet

__all__ = ["AnySubset", "LearnedAnySubset", "speculate"]

type PredictOrdered = Callable[[Array, Array], Array]
"""From symbols and ranks, ``(size,)`` each, to log probabilities of every entry given those of lower rank."""


def left_to_right(blank: Array) -> Array:
    """Ranks in which the known entries come first, together, and then the blanks from left to right."""
    return jnp.where(blank, jnp.cumsum(blank), 0)


def speculate(key: PRNGKey, predict: PredictOrdered, symbols: Array, values: int) -> Unmasked:
    """Fill in blanks by guessing all and keeping those that the chain of conditionals accepts.

    Args:
        key: Randomness.
        predict: Conditionals of all entries given those of lower rank.
        symbols: A row, shape ``(size,)``; blank where it is ``values``.
        values: Number of symbols.

    Returns:
        A row from the law of ``predict`` from left to right, exactly, and the number of passes: never more than blanks.
    """

    def one_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, calls = state
        key_guess, key_accept, key_again = jax.random.split(jax.random.fold_in(key, calls), 3)
        blank = x == values
        log_q = predict(x, blank.astype(int))
        guess = jnp.where(blank, draw_symbols(key_guess, log_q), x)
        ranks, count = left_to_right(blank), blank.sum()
        log_p = jax.lax.cond(count > 1, lambda: predict(guess, ranks), lambda: log_q)
        log_ratio = picked(log_p, guess) - picked(log_q, guess)
        # The first blank has the same law under both, but for rounding.
        refused = blank & (ranks > 1) & (jnp.log(jax.random.uniform(key_accept, x.shape)) >= log_ratio)
        first = jnp.min(jnp.where(refused, ranks, x.shape[0] + 1))
        excess = jnp.log(jnp.maximum(jnp.exp(log_p) - jnp.exp(log_q), 0.0))
        again = draw_symbols(key_again, excess)
        x = jnp.where(blank & (ranks < first), guess, jnp.where(blank & (ranks == first), again, x))
        return x, calls + jnp.where(count > 1, 2, 1)

    start = symbols.astype(jnp.int32), jnp.zeros((), jnp.int32)
    return Unmasked(*jax.lax.while_loop(lambda state: jnp.any(state[0] == values), one_round, start))


class AnySubset(DiscreteFamily):
    """An any-subset autoregressive model.

    Attributes:
        width: Features of a token of the transformer.
        depth: Number of its blocks.
        heads: Heads of attention; divides ``width``.
    """

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    heads: int = eqx.field(static=True, default=4)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if self.heads < 1 or self.width % self.heads:
            raise MethodError(
                f"AnySubset got width={self.width} and heads={self.heads}, expected a multiple. Change one."
            )

    def build(self, key: PRNGKey, spec: Spec) -> OrderedNet:
        return OrderedNet(key, spec.shape[0], spec.values, given_size(spec), self.width, self.depth, self.heads)

    def loss(self, key: PRNGKey, net: OrderedNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        count, size = x.shape
        key_number, key_subset = jax.random.split(key)
        share = (jnp.arange(count) + jax.random.uniform(key_number, (count,), jnp.float32)) / count
        number = 1 + jnp.floor(share * size)
        ranks = jax.vmap(lambda k: random_ranks(k, size))(jax.random.split(key_subset, count))
        blank = ranks < number[:, None]

        def one(x: Array, blank: Array, c: Array | None) -> Scalar:
            log_p = picked(jax.nn.log_softmax(net(x, left_to_right(blank), c), axis=-1), x)
            return -jnp.sum(jnp.where(blank, log_p, 0.0)) * size / blank.sum()

        return jnp.mean(jax.vmap(one)(x, blank, condition))

    def distribution(self, net: OrderedNet, spec: Spec) -> LearnedAnySubset:
        return LearnedAnySubset(self, spec, net)


class LearnedAnySubset(LearnedDiscrete):
    """The law of a learned any-subset autoregressive model.

    ``log_prob`` is exact, in one pass; so is ``given_log_prob`` of the rest of a row given a part. ``conditional(x, mask)``
    gives in one pass the log probabilities of every value of every entry given those where the mask is true, shape
    ``(..., length, values)``: for the first entry of the rest those of ``given_log_prob``, for later ones estimates of
    what it implies. ``infill`` draws the rest from ``given_log_prob`` exactly, and ``unmasked`` also counts the passes.
    """

    offers: ClassVar = {"log_prob": Exactness.exact, "conditional": Exactness.estimate, "sample": Exactness.exact}

    family: AnySubset
    net: OrderedNet

    def predict(self, symbols: Array, ranks: Array) -> Array:
        """Log probabilities of every value of every entry given those of lower rank, shape ``(length, values)``."""
        return log_shares(self.net(symbols, ranks, self.condition))

    def density(self, x: Array) -> Scalar:
        return jnp.sum(picked(self.predict(x, jnp.arange(x.shape[0])), x))

    def given_log_prob(self, value: Array, mask: Array) -> Array:
        """Log probability of the entries where ``mask`` is false given the others, from left to right."""
        self._ready("log_prob")

        def one(here: LearnedAnySubset, x: Array, mask: Array) -> Scalar:
            return jnp.sum(jnp.where(mask, 0.0, picked(here.predict(x, left_to_right(~mask)), x)))

        return self.pointwise(one, (jnp.asarray(value), 1), (jnp.asarray(mask, bool), 1))

    def unmasked(self, key: PRNGKey, symbols: Array) -> Unmasked:
        """Fill in the blanks (``values``) of one row, shape ``(length,)``, and count the passes of the network."""
        return speculate(key, self.predict, symbols, self.spec.values)

    def draw(self, key: PRNGKey) -> Array:
        return self.unmasked(key, jnp.full(self.spec.shape, self.spec.values)).x

    def infill(self, key: PRNGKey, value: Array, mask: Array) -> Array:
        """Draw the entries where ``mask`` is false given the others, the shape of ``value`` (and any batch)."""
        self._ready("conditional")
        symbols = jnp.where(mask, value, self.spec.values)
        batch = jnp.broadcast_shapes(self.batch_shape, symbols.shape[:-1])
        return self.pointwise(lambda here, k, s: here.unmasked(k, s).x, (jax.random.split(key, batch), 0), (symbols, 1))

    def complete(self, x: Array, mask: Array) -> Array:
        certain = jnp.where(jnp.arange(self.spec.values) == x[:, None], 0.0, -jnp.inf)
        return jnp.where(mask[:, None], certain, self.predict(x, (~mask).astype(int)))
