r"""A network that predicts the outcome of a row from a context of rows.

Rows of context are tokens of their inputs and outcome, rows to predict of their inputs alone. All tokens attend to the
context and to themselves, so the prediction does not depend on the order of the context, nor on which other rows are
predicted. Trained on data sets from the prior of a program, cut at random into context and rest,

.. math:: \min_\theta\; E\,[-\log q_\theta(y_* \mid x_*, D)],

:math:`q_\theta` approaches the posterior predictive of the program, at which the minimum is reached (Mueller, Hollmann,
Arango, Grabocka and Hutter 2022, "Transformers can do Bayesian inference").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.amortized.bar_distribution import BarDistribution
from probgen.amortized.encoder import Units
from probgen.amortized.reading import Field
from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets import MLP, Constant
from probgen.nets.attention import Block

__all__ = ["LearnedRowPredictor", "RowPredictor"]


class RowNet(eqx.Module):
    """Logits of the bars for each row.

    Attributes:
        inputs: Units of the inputs.
        outcome: Units of the outcome.
        edges: Of the bars, in the units of the data.
        tails: Scales of the two tails.
        first: From a row to a token.
        blocks: Attention.
        last: From a token to the logits.
    """

    inputs: Units
    outcome: Units
    edges: Constant
    tails: Constant
    first: MLP
    blocks: tuple[Block, ...]
    last: eqx.nn.Linear

    def __init__(self, key: PRNGKey, features: int, bars: int, width: int, depth: int, heads: int) -> None:
        key_first, key_last, *keys = jax.random.split(key, 2 + depth)
        self.inputs, self.outcome = Units(features), Units(1)
        edges = jnp.linspace(-1, 1, bars - 1, dtype=jnp.float32)
        self.edges, self.tails = Constant(edges), Constant(jnp.ones(2, jnp.float32))
        self.first = MLP(key_first, features + 2, width, width, 1, jax.nn.gelu)
        self.blocks = tuple(Block(k, width, heads, 0) for k in keys)
        last = eqx.nn.Linear(width, bars, key=key_last, dtype=jnp.float32)
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(self, x: Array, y: Array, context: Array) -> BarDistribution:
        """The law of the outcome of every row, of which those of rows outside of the context are predictions.

        Args:
            x: Inputs, shape ``(rows, features)``.
            y: Outcomes, shape ``(rows,)``; anything outside of the context.
            context: Which rows are context, shape ``(rows,)``.
        """
        told = self.outcome(y[:, None], context[:, None])
        tokens = jnp.concatenate([self.inputs(x), told, context[:, None]], -1).astype(jnp.float32)
        h = jax.vmap(self.first)(tokens)
        seen = context[None, :] | jnp.eye(len(x), dtype=bool)
        for block in self.blocks:
            h = block(h, None, seen)
        return BarDistribution(jax.vmap(self.last)(h), self.edges.value, self.tails.value)


class RowPredictor(Family):
    """The predictive law of a row given other rows. Data are data sets, shape ``(rows, features + 1)``, outcomes last.

    Attributes:
        inputs: Arguments of the program with a value per row.
        bars: Number of bars of the predictive density.
        width: Features of a token.
        depth: Blocks of attention.
        heads: Heads of attention; divides ``width``.
    """

    inputs: tuple[Field, ...]
    bars: int = eqx.field(static=True, default=200)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=4)
    heads: int = eqx.field(static=True, default=4)

    def check(self, spec: Spec) -> None:
        for name, least in (("bars", 8), ("width", 1), ("depth", 1), ("heads", 1)):
            if not is_count(getattr(self, name), least):
                raise MethodError(f"PFN got {name}={getattr(self, name)!r}, expected an int of at least {least}.")
        if self.width % self.heads:
            raise MethodError(f"PFN got width={self.width} and heads={self.heads}, expected a multiple. Change one.")

    def build(self, key: PRNGKey, spec: Spec) -> RowNet:
        return RowNet(key, spec.shape[1] - 1, self.bars, self.width, self.depth, self.heads)

    def adapt(self, key: PRNGKey, net: RowNet, x: Array, condition: Array | None) -> RowNet:
        rows = x.reshape(-1, x.shape[-1])
        inputs = net.inputs.adapted(rows[:, :-1], jnp.ones(rows[:, :-1].shape, bool))
        outcome = net.outcome.adapted(rows[:, -1:], jnp.ones((len(rows), 1), bool))
        edges, tails = _bars(rows[:, -1], self.bars)
        # Training begins at the prior predictive: the share of all outcomes in each bar.
        shares = jnp.bincount(jnp.searchsorted(edges, rows[:, -1], side="right"), length=self.bars) + 1.0
        bias = jnp.log(shares / shares.sum()).astype(jnp.float32)
        where = lambda n: (n.inputs, n.outcome, n.edges.value, n.tails.value, n.last.bias)  # noqa: E731
        return eqx.tree_at(where, net, (inputs, outcome, edges, tails, bias))

    def loss(self, key: PRNGKey, net: RowNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        def one(key: PRNGKey, rows: Array) -> Scalar:
            key_order, key_count = jax.random.split(key)
            rows = jax.random.permutation(key_order, rows)
            context = jnp.arange(len(rows)) < jax.random.randint(key_count, (), 0, len(rows))
            surprise = -net(rows[:, :-1], rows[:, -1], context).log_prob(rows[:, -1])
            return jnp.sum(jnp.where(context, 0.0, surprise)) / jnp.sum(~context)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, len(x)), x))

    def distribution(self, net: RowNet, spec: Spec) -> LearnedRowPredictor:
        return LearnedRowPredictor(self, spec, net)


class LearnedRowPredictor(Learned):
    """A trained predictor; ``predict`` gives the law of new rows. The law of whole data sets is never formed."""

    family: RowPredictor
    net: RowNet
    offers: ClassVar[Mapping[str, Exactness]] = {}

    def predict(self, x: Array, y: Array, context: Array) -> BarDistribution:
        """See ``RowNet``."""
        return self.net(x, y, context)


def _bars(y: Array, bars: int) -> tuple[Array, Array]:
    """Edges and tails for outcomes like ``y``: half of the edges share out the probability, half the range, so that bars
    are narrow where most outcomes are and not too wide elsewhere."""
    low, high = jnp.quantile(y, 1e-3), jnp.quantile(y, 1 - 1e-3)
    half = (bars - 1) // 2
    even = jnp.linspace(low, high, bars - 1 - half)
    alike = jnp.quantile(y, jnp.linspace(1e-3, 1 - 1e-3, half + 2)[1:-1])
    edges = jnp.sort(jnp.concatenate([even, alike]))
    # Equal edges would make bars without width.
    edges = edges + 1e-6 * (high - low) * jnp.arange(bars - 1)
    below, above = jnp.maximum(edges[0] - y, 0.0), jnp.maximum(y - edges[-1], 0.0)
    tails = jnp.stack([jnp.sqrt(jnp.sum(d**2) / jnp.maximum(jnp.sum(d > 0), 1)) for d in (below, above)])
    tails = jnp.where(tails > 0, tails, (high - low) / 10)
    return edges.astype(jnp.float32), tails.astype(jnp.float32)
