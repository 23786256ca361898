r"""Marginalisation models: the probability of any part of a row in one pass of a network.

One network reads a row with blanks and gives two things: :math:`\log p_\theta(x_S)`, the log probability of its known
entries :math:`S`, with :math:`\log p_\theta(\emptyset) = 0`; and the conditionals :math:`p_\phi(x_i \mid x_S)` of the
others. They are consistent where

.. math::

    \log p_\theta(x_S) + \log p_\phi(x_i \mid x_S) = \log p_\theta(x_{S \cup i}),
    \qquad\text{hence}\qquad p_\theta(x_S) = \sum_{x_i} p_\theta(x_S, x_i).

Two kinds of training:

- *From data.* The conditionals maximise the bound in any order (see ``unmasking``), and the marginals follow them: along
  a random order the squared difference of :math:`\log p_\theta(x_{\sigma_{\le k}})` and
  :math:`\sum_{j \le k} \log p_\phi(x_{\sigma_j} \mid x_{\sigma_{<j}})` for all :math:`k`. These are the residuals above,
  summed along the order: they vanish together, and sums hand errors down the order at once.
- *From an unnormalised density* :math:`f`, without data. Rows are drawn from the conditionals, and
  :math:`\tfrac12 \operatorname{Var}(\log p_\theta(x) - \log f(x))` over them, whose gradient on draws of
  :math:`p_\theta` is that of :math:`\mathrm{KL}(p_\theta \| f)` (Richter et al. 2020), is reduced together with the same
  residuals, now moved from both sides: the network has to learn how to marginalise :math:`f`.

What is exact? The conditionals, multiplied along one fixed order, are a normalised distribution; ``log_prob`` is its log
density and ``sample`` draws from it. The marginals in one pass are *estimates* of it: nothing bounds their error but
the residuals of training, so look at ``consistency``. (A short fit to a 4 x 4 Ising lattice was wrong by 0.15 in the log
marginals of random halves, which are about -5.)

References: Liu, Ramadge and Adams (2024), "Generative marginalization models"; Richter et al. (2020), "VarGrad".
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete, given_size, log_shares, picked
from probgen.generative.family import Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.table import DiscreteTarget
from probgen.generative.unmasking import any_order_loss, ordered_log_prob, random_ranks, unmask
from probgen.nets import Residual

__all__ = ["LearnedMarginalModel", "MarginalModel"]


class _MarginalNet(eqx.Module):
    """Log marginals and conditionals from one trunk."""

    trunk: Residual
    base: Array
    """Scores of the values of the entries taken alone, shape ``(size, values)``."""

    def __init__(self, key: PRNGKey, size: int, values: int, given: int, width: int, depth: int) -> None:
        self.trunk = Residual(key, size * values, size * values + 1, given, width, depth)
        self.base = jnp.zeros((size, values), jnp.float32)

    def __call__(self, symbols: Array, given: Array | None) -> tuple[Array, Array]:
        """Log probability of what is known, shape ``()``, and scores of the conditionals, shape ``(size, values)``."""
        marks = jax.nn.one_hot(symbols, self.base.shape[1], dtype=self.base.dtype)
        out = self.trunk(marks.reshape(-1), None if given is None else given.reshape(-1).astype(marks.dtype))
        alone = jnp.sum(marks * jax.nn.log_softmax(self.base, axis=-1))
        # Nothing known: probability 1, whatever the network says.
        log_marginal = jnp.where(jnp.any(marks > 0), alone + out[-1], 0.0)
        return log_marginal, self.base + out[:-1].reshape(self.base.shape)

    def logits(self, symbols: Array, given: Array | None) -> Array:
        """The conditionals alone."""
        return self(symbols, given)[1]


class MarginalModel(DiscreteFamily):
    """A network of the log probability of any part of a row of symbols.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        consistency: Weight of the residuals.
        target: An unnormalised density to learn from instead of data. The data of ``fit`` then only say how many rows
            are drawn per step (``batch`` at most) and how long they are; their values are not used.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    consistency: float = eqx.field(static=True, default=1.0)
    target: DiscreteTarget | None = None

    training: ClassVar[Training] = Training(steps=4000, learning_rate=2e-3)

    @property
    def validated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The variance of the model's own draws says little about another step's."""
        return self.target is None

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not self.consistency > 0:
            raise MethodError(f"MarginalModel got consistency={self.consistency}, expected a positive weight. Use 1.")
        if self.target is None:
            return
        if (self.target.size, self.target.values) != (spec.shape[0], spec.values):
            raise MethodError(
                f"target has {self.target.size} entries of {self.target.values} values, and the data have "
                f"{spec.shape[0]} of {spec.values}. Give data of its shape (and values={self.target.values})."
            )
        if spec.condition is not None:
            raise MethodError("MarginalModel learns a target without conditions. Leave condition out.")

    def build(self, key: PRNGKey, spec: Spec) -> _MarginalNet:
        return _MarginalNet(key, spec.shape[0], spec.values, given_size(spec), self.width, self.depth)

    def loss(self, key: PRNGKey, net: _MarginalNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        if self.target is not None:
            return self._from_density(key, net, x.shape[0])
        key_bound, key_orders = jax.random.split(key)
        bound = any_order_loss(key_bound, net.logits, x, condition)
        # Whole orders of some rows cost as much as one set of blanks for all.
        count = max(1, x.shape[0] // x.shape[1])
        keys, given = jax.random.split(key_orders, count), None if condition is None else condition[:count]
        marginals, chains = jax.vmap(lambda k, x, c: _along_order(k, net, x, c))(keys, x[:count], given)
        return bound + self.consistency * jnp.mean((marginals - jax.lax.stop_gradient(chains)) ** 2)

    def _from_density(self, key: PRNGKey, net: _MarginalNet, count: int) -> Scalar:
        assert self.target is not None
        size, values = self.target.size, self.target.values
        key_ranks, key_draws, key_orders = jax.random.split(key, 3)

        def draw(key_ranks: PRNGKey, key: PRNGKey) -> Array:
            blank, ranks = jnp.full(size, values), random_ranks(key_ranks, size)
            return unmask(key, lambda s: jax.nn.log_softmax(net.logits(s, None)), blank, ranks, values).x

        rows = jax.lax.stop_gradient(
            jax.vmap(draw)(jax.random.split(key_ranks, count), jax.random.split(key_draws, count))
        )
        keys = jax.random.split(key_orders, count)
        marginals, chains = jax.vmap(lambda k, x: _along_order(k, net, x, None))(keys, rows)
        log_ratio = marginals[:, -1] - jax.vmap(self.target.log_density)(rows).astype(marginals.dtype)
        return 0.5 * jnp.var(log_ratio) + self.consistency * jnp.mean((marginals - chains) ** 2)

    def distribution(self, net: _MarginalNet, spec: Spec) -> LearnedMarginalModel:
        return LearnedMarginalModel(self, spec, net)


def _along_order(key: PRNGKey, net: _MarginalNet, x: Array, given: Array | None) -> tuple[Array, Array]:
    """For the first 1, 2, ... entries of a random order, their log marginal and the sum of their log conditionals."""
    size = x.shape[0]
    ranks = random_ranks(key, size)
    known = ranks < jnp.arange(size + 1)[:, None]
    symbols = jnp.where(known, x, jnp.iinfo(jnp.int32).max)
    marginals, logits = jax.vmap(lambda s: net(s, given))(symbols)
    steps = jax.vmap(lambda scores: picked(jax.nn.log_softmax(scores, axis=-1), x))(logits[:-1])
    order = jnp.argsort(ranks)
    return marginals[1:], jnp.cumsum(steps[jnp.arange(size), order])


class LearnedMarginalModel(LearnedDiscrete):
    """The law of a learned marginalisation model.

    ``log_prob`` is exact, that of the conditionals multiplied from the first entry to the last: one call of the network
    per entry. ``marginal(x, mask)`` is one call for any part, and an estimate, as is ``marginal`` of the whole row;
    ``conditional(x, mask)`` gives the log probabilities of every value of every entry given those where the mask is
    true, shape ``(..., length, values)``, likewise in one call; they are those of ``log_prob`` itself where the mask is
    a beginning of the row and the entry the next one.
    """

    offers: ClassVar = {
        "log_prob": Exactness.exact,
        "marginal": Exactness.estimate,
        "conditional": Exactness.estimate,
        "sample": Exactness.exact,
    }

    family: MarginalModel
    net: _MarginalNet

    def predict(self, symbols: Array) -> Array:
        """Log probabilities of every value of every entry given those that are not blank, shape ``(length, values)``."""
        return log_shares(self.net.logits(symbols, self.condition))

    def draw(self, key: PRNGKey) -> Array:
        size, values = self.spec.shape[0], self.spec.values
        return unmask(key, self.predict, jnp.full(size, values), jnp.arange(size), values).x

    def density(self, x: Array) -> Scalar:
        return ordered_log_prob(self.predict, x, jnp.arange(x.shape[0]), self.spec.values)

    def marginal_at(self, x: Array, mask: Array) -> Scalar:
        symbols = jnp.where(mask, x, self.spec.values)
        return self.net(symbols, self.condition)[0].astype(jnp.result_type(float))

    def complete(self, x: Array, mask: Array) -> Array:
        certain = jnp.where(jnp.arange(self.spec.values) == x[:, None], 0.0, -jnp.inf)
        return jnp.where(mask[:, None], certain, self.predict(jnp.where(mask, x, self.spec.values)))

    def consistency(self, value: Array, mask: Array) -> Array:
        r"""How far the marginals are from adding up: :math:`\log \sum_v p(x_S, x_i = v) - \log p(x_S)` for every entry
        :math:`i` where the mask is false, 0 where it is true; the shape of ``value``."""
        self._ready("marginal")

        def one(here: Any, x: Array, mask: Array) -> Array:
            size, values = x.shape[0], here.spec.values
            known = jnp.where(mask, x, values)
            each = jax.vmap(
                lambda i: jax.vmap(lambda v: here.net(known.at[i].set(v), here.condition)[0])(jnp.arange(values))
            )
            sums = logsumexp(each(jnp.arange(size)), axis=1)
            return jnp.where(mask, 0.0, sums - here.net(known, here.condition)[0])

        return self.pointwise(one, (jnp.asarray(value), 1), (jnp.asarray(mask, bool), 1))
