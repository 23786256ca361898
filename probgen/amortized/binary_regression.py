r"""The probability of a yes, given what all rows of an observation share and what belongs to one of them.

With :math:`z = (1, u)` the shared part of the condition and :math:`s = (1, t)` the part of the row, both in standard units,

.. math:: \operatorname{logit} P(x = 1 \mid u, t) = z^\top M s + a(z)^\top b(s)

:math:`M` begins at the logistic regression of the answers on all products, fitted by Newton's method before training; the
networks :math:`a` and :math:`b` meet in a scalar product only, so that for one observation :math:`b` is asked once and
:math:`a` once per parameter, not once per row, and begin with :math:`a = 0`. A sum of enough products approximates any
continuous function of both on a bounded set.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete
from probgen.generative.family import Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.standardisation import Standardisation
from probgen.nets.mlp import MLP

__all__ = ["BinaryRegression", "LearnedBinaryRegression"]

_MOST = 40_000
"""Answers that the regression before training looks at."""
_ROUNDS = 20
_RIDGE = 1.0
_CALM = 5.0
"""Standard units up to which products are taken as they are; beyond, entries are taken at this bound."""


class BinaryNet(eqx.Module):
    """See ``BinaryRegression``.

    Attributes:
        shared: Units of what all rows share.
        own: Units of what belongs to a row.
        products: :math:`M`, shape ``(1 + shared, 1 + own)``.
        first: :math:`a`.
        second: :math:`b`.
    """

    shared: Standardisation
    own: Standardisation
    products: Array
    first: MLP
    second: MLP

    def features(self, u: Array, rows: Array) -> tuple[Array, Array]:
        """:math:`z`, shape ``(1 + shared,)``, and :math:`s` of rows, shape ``(n, 1 + own)``."""
        z = jnp.concatenate([jnp.ones(1, u.dtype), self.shared.inward(u)])
        s = jnp.concatenate([jnp.ones((rows.shape[0], 1), rows.dtype), jax.vmap(self.own.inward)(rows)], 1)
        return z, s

    def logits(self, u: Array, rows: Array) -> Array:
        """Of rows, shape ``(n,)``, that share ``u``.

        Args:
            u: Shape ``(shared,)``.
            rows: Shape ``(n, own)``.
        """
        z, s = self.features(u, rows)
        return s @ (z @ self.products) + jax.vmap(self.second)(jnp.arcsinh(s)) @ self.first(jnp.arcsinh(z))


class BinaryRegression(DiscreteFamily):
    """A conditional law of one answer, no or yes (0 or 1).

    Attributes:
        shared: How many entries of the condition, its first, all rows of an observation share; the others belong to a
            row.
        rank: Length of :math:`a` and :math:`b`.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    training: ClassVar[Training] = Training(
        steps=4000, batch=1024, learning_rate=2e-3, weight_decay=1e-2, validation=0.05, block=200
    )

    shared: int = eqx.field(static=True, default=0)
    rank: int = eqx.field(static=True, default=32)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not is_count(self.rank):
            raise MethodError(f"BinaryRegression got rank={self.rank!r}, expected an int of at least 1. Change rank.")
        if spec.shape != (1,) or spec.values > 2:
            raise MethodError(
                f"BinaryRegression is the law of one answer, 0 or 1, and a datum has shape {spec.shape} and {spec.values} "
                f"values. Use pg.generative.MixtureDensity(), or a family of symbols."
            )
        size = None if spec.condition is None else math.prod(spec.condition)
        if size is None or not 0 <= self.shared <= size:
            raise MethodError(
                f"BinaryRegression got shared={self.shared!r}, and a condition has {size or 0} entries. Give a condition, and "
                f"shared between 0 and its length."
            )

    def build(self, key: PRNGKey, spec: Spec) -> BinaryNet:
        key_first, key_second = jax.random.split(key)
        own = math.prod(spec.condition or ()) - self.shared
        return BinaryNet(
            Standardisation((self.shared,)),
            Standardisation((own,)),
            jnp.zeros((1 + self.shared, 1 + own), jnp.float32),
            MLP(key_first, 1 + self.shared, self.rank, self.width, self.depth, zero=True),
            MLP(key_second, 1 + own, self.rank, self.width, self.depth),
        )

    def adapt(self, key: PRNGKey, net: BinaryNet, x: Array, condition: Array | None) -> BinaryNet:
        assert condition is not None
        condition = condition.reshape(len(condition), -1)
        units = (net.shared.adapted(condition[:, : self.shared]), net.own.adapted(condition[:, self.shared :]))
        net = dataclasses.replace(net, shared=units[0], own=units[1])
        rows = jax.random.permutation(key, len(x))[:_MOST]
        products = _regression(net, condition[rows], x[rows, 0], self.shared)
        return dataclasses.replace(net, products=products.astype(jnp.float32))

    def loss(self, key: PRNGKey, net: BinaryNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None
        condition = condition.reshape(len(condition), -1)
        logits = jax.vmap(lambda c: net.logits(c[: self.shared], c[None, self.shared :])[0])(condition)
        return -jnp.mean(_log_probability(logits, x[:, 0]))

    def distribution(self, net: BinaryNet, spec: Spec) -> LearnedBinaryRegression:
        return LearnedBinaryRegression(self, spec, net)


def _log_probability(logits: Array, answers: Array) -> Array:
    """Of answers."""
    return -jax.nn.softplus(jnp.where(answers > 0.5, -logits, logits))


@eqx.filter_jit
def _regression(net: BinaryNet, condition: Array, answers: Array, shared: int) -> Array:
    """Logistic regression on all products, with a ridge: Newton's method, each step as long as is best."""

    def products(c: Array) -> Array:
        z, s = net.features(c[:shared], c[None, shared:])
        return jnp.outer(jnp.clip(z, -_CALM, _CALM), jnp.clip(s[0], -_CALM, _CALM)).reshape(-1)

    design = jax.vmap(products)(condition)
    answers = answers.astype(design.dtype)

    def loss(w: Array) -> Scalar:
        return -jnp.sum(_log_probability(design @ w, answers)) + 0.5 * _RIDGE * jnp.sum(w**2)

    def step(w: Array, _: None) -> tuple[Array, None]:
        rate = jax.nn.sigmoid(design @ w)
        slope = design.T @ (rate - answers) + _RIDGE * w
        curved = (design * (rate * (1 - rate))[:, None]).T @ design + _RIDGE * jnp.eye(len(w), dtype=w.dtype)
        move = jnp.linalg.solve(curved, slope)
        lengths = jnp.concatenate([jnp.zeros(1, w.dtype), 0.25 ** jnp.arange(5.0, dtype=w.dtype)])
        tried = w - lengths[:, None] * move
        return tried[jnp.argmin(jax.lax.map(loss, tried))], None

    w, _ = jax.lax.scan(step, jnp.zeros(design.shape[1], design.dtype), None, length=_ROUNDS)
    return w.reshape(net.products.shape)


class LearnedBinaryRegression(LearnedDiscrete):
    """The law of an answer given a condition."""

    offers: ClassVar = {"log_prob": Exactness.exact, "sample": Exactness.exact}

    family: BinaryRegression
    net: BinaryNet

    def of_rows(self, shared: Array, rows: Array, answers: Array) -> Array:
        """Log probabilities of the answers of rows, shape ``(n,)``.

        Args:
            shared: What the rows share, shape ``(family.shared,)``.
            rows: What belongs to each, shape ``(n, own)``.
            answers: Shape ``(n, 1)``.
        """
        return _log_probability(self.net.logits(shared, rows), answers[:, 0])

    def density(self, x: Array) -> Scalar:
        assert self.condition is not None
        c = self.condition.reshape(-1).astype(jnp.result_type(self.condition, jnp.float32))
        return self.of_rows(c[: self.family.shared], c[None, self.family.shared :], x[None])[0]

    def draw(self, key: PRNGKey) -> Array:
        assert self.condition is not None
        c = self.condition.reshape(-1).astype(jnp.result_type(self.condition, jnp.float32))
        logits = self.net.logits(c[: self.family.shared], c[None, self.family.shared :])
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(jnp.int32)
