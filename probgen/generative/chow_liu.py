r"""Chow-Liu trees: of all distributions of which every entry depends on at most one other, the most likely.

.. math:: p(x) = \prod_i p(x_i \mid x_{\pi(i)}),

where :math:`\pi` is the maximum spanning tree of the mutual information of all pairs (Chow and Liu 1968): closed form.
Marginals and conditionals are exact, by messages from the leaves to the root: with evidence :math:`\ell` on the entries,
:math:`\log Z(\ell)` is one sweep, and its gradient in :math:`\log\ell` the posterior marginals.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete
from probgen.generative.family import Solved, Spec
from probgen.generative.learned import Exactness
from probgen.generative.table import known
from probgen.nets import Constant

__all__ = ["ChowLiu", "LearnedChowLiu"]


class _Tree(eqx.Module):
    """Entries in an order in which parents come first."""

    order: Constant
    parents: Constant
    """Shape ``(size,)``; the root is its own."""
    log_p: Constant
    """Of every value given the parent's, shape ``(size, values of the parent, values)``; the root's does not depend."""


class ChowLiu(DiscreteFamily, Solved):
    """The most likely tree.

    Attributes:
        smoothing: Rows that are added to the counts of every pair, spread evenly over its states; > 0 keeps every
            probability positive.
        edges: Whether there are any; without them the entries are independent.
    """

    smoothing: float = eqx.field(static=True, default=1.0)
    edges: bool = eqx.field(static=True, default=True)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if spec.condition is not None:
            raise MethodError("ChowLiu has no conditions. Leave condition out, or append it to the data as entries.")
        if not self.smoothing > 0:
            raise MethodError(f"ChowLiu got smoothing={self.smoothing}, expected a positive number of rows. Use 1.")

    def build(self, key: PRNGKey, spec: Spec) -> _Tree:
        size, values = spec.shape[0], spec.values
        order = jnp.arange(size, dtype=jnp.int32)
        flat = jnp.full((size, values, values), -np.log(values), jnp.float32)
        return _Tree(Constant(order), Constant(order), Constant(flat))

    def solve(self, key: PRNGKey, net: _Tree, x: Array, condition: Array | None) -> _Tree:
        size, values = net.log_p.value.shape[:2]
        rows = np.asarray(x)
        marks = np.eye(values)[rows].reshape(len(rows), size * values)
        pairs = (marks.T @ marks).reshape(size, values, size, values).transpose(0, 2, 1, 3)
        pairs = (pairs + self.smoothing / values**2) / (len(rows) + self.smoothing)
        # The pair of an entry with itself: smoothed like the others, or its marginal would not be theirs.
        alone = (marks.sum(0).reshape(size, values) + self.smoothing / values) / (len(rows) + self.smoothing)
        information = np.sum(pairs * np.log(pairs / (alone[:, None, :, None] * alone[None, :, None, :])), (2, 3))
        order, parents = spanning_tree(information) if self.edges else (np.arange(size), np.arange(size))
        log_p = np.log(pairs[parents, np.arange(size)] / alone[parents][:, :, None])
        roots = parents == np.arange(size)
        log_p[roots] = np.log(alone[roots])[:, None, :]
        return _Tree(
            Constant(jnp.asarray(order, jnp.int32)),
            Constant(jnp.asarray(parents, jnp.int32)),
            Constant(jnp.asarray(log_p, jnp.float32)),
        )

    def distribution(self, net: _Tree, spec: Spec) -> LearnedChowLiu:
        return LearnedChowLiu(self, spec, net)


def spanning_tree(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spanning tree of largest weight, grown from entry 0 (Prim 1957): the order of growth, and parents."""
    size = len(weights)
    order, parents = [0], np.zeros(size, int)
    best, waiting = weights[0].copy(), np.arange(size) > 0
    while waiting.any():
        new = int(np.argmax(np.where(waiting, best, -np.inf)))
        order.append(new)
        waiting[new] = False
        closer = waiting & (weights[new] > best)
        parents[closer], best[closer] = new, weights[new][closer]
    return np.array(order), parents


class LearnedChowLiu(LearnedDiscrete):
    """A Chow-Liu tree. ``conditional(x, mask)`` gives the log probabilities of every value of every entry given those
    where the mask is true, shape ``(..., length, values)``."""

    offers: ClassVar = {
        "log_prob": Exactness.exact,
        "marginal": Exactness.exact,
        "conditional": Exactness.exact,
        "sample": Exactness.exact,
    }

    family: ChowLiu
    net: _Tree

    @property
    def parents(self) -> Array:
        """The parent of every entry, shape ``(length,)``; a root is its own."""
        return self.net.parents.value

    def _log_p(self) -> Array:
        # Stored in 32 bits; normalised again in the precision of the program.
        return jax.nn.log_softmax(self.net.log_p.value.astype(jnp.result_type(float)), axis=-1)

    def draw(self, key: PRNGKey) -> Array:
        log_p, parents = self._log_p(), self.parents

        def one(x: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
            key, i = at
            return x.at[i].set(jax.random.categorical(key, log_p[i, x[parents[i]]]).astype(jnp.int32)), None

        order = self.net.order.value
        keys = jax.random.split(key, order.shape[0])
        return jax.lax.scan(one, jnp.zeros(self.spec.shape, jnp.int32), (keys, order))[0]

    def density(self, x: Array) -> Scalar:
        size = self.spec.shape[0]
        return jnp.sum(self._log_p()[jnp.arange(size), x[self.parents], x])

    def _evidence(self, log_likelihood: Array) -> Scalar:
        """Log of the mean of a product of likelihoods of the entries, shape ``(length, values)``."""
        log_p, parents = self._log_p(), self.parents

        def up(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            messages, total = state
            message = logsumexp(log_p[i] + messages[i], axis=-1)  # by the parent's value
            root = parents[i] == i
            messages = messages.at[parents[i]].add(jnp.where(root, 0.0, message))
            return (messages, total + jnp.where(root, message[0], 0.0)), None

        start = (log_likelihood, jnp.zeros((), log_likelihood.dtype))
        return jax.lax.scan(up, start, self.net.order.value[::-1])[0][1]

    def marginal_at(self, x: Array, mask: Array) -> Scalar:
        return self._evidence(known(jnp.where(mask, x, self.spec.values), self.spec.values))

    def complete(self, x: Array, mask: Array) -> Array:
        # Minus infinity has no gradient; what is known is overwritten below, and its likelihood only has to be small.
        evidence = jnp.maximum(known(jnp.where(mask, x, self.spec.values), self.spec.values), -1e6)
        certain = jnp.where(jnp.arange(self.spec.values) == x[:, None], 0.0, -jnp.inf)
        return jnp.where(mask[:, None], certain, jnp.log(jax.grad(self._evidence)(evidence)))
