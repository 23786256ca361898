r"""Probabilistic circuits: densities whose every marginal and conditional is exact.

A circuit is a tree of latent states (see ``latent_tree``), the hidden Chow-Liu tree of Liu and Van den Broeck (2021) or a
random tree of regions (Peharz et al. 2019), fitted by expectation maximisation. The derivative of the log likelihood with
respect to a log weight is the expected number of times :math:`n_w` that the weight is used, so a step of EM is one
gradient and a normalisation,

.. math:: w \propto \sum_x \frac{\partial \log p(x)}{\partial \log w} + \text{prior},

and with mini-batches the expected counts are averages with a falling step size (Cappe and Moulines 2009).
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Solved, Spec
from probgen.generative.latent_tree import Categories, HiddenChowLiu, LatentTree, Normals, Shape, Structure
from probgen.generative.standardisation import Standardisation
from probgen.generative.tractable import Tractable, check_rows

__all__ = ["Circuit", "LearnedCircuit"]


class Weights(eqx.Module):
    """The weights of a circuit; ``tree`` makes them a distribution.

    Attributes:
        shape: The tree.
        units: Between data and the units of the leaves; not used for discrete data.
        log_root: See ``LatentTree``.
        log_links: See ``LatentTree``.
        leaves: See ``LatentTree``.
    """

    shape: Shape
    units: Standardisation
    log_root: Array
    log_links: Array
    leaves: Categories | Normals

    def tree(self, dtype: Any) -> LatentTree:
        """The circuit, normalised in this precision."""
        root, links, leaves = jax.tree.map(lambda a: a.astype(dtype), (self.log_root, self.log_links, self.leaves))
        if isinstance(leaves, Categories):
            leaves = Categories(jax.nn.log_softmax(leaves.log_probs))
        return LatentTree(self.shape, jax.nn.log_softmax(root), jax.nn.log_softmax(links), leaves)


class Circuit(Solved):
    """A probabilistic circuit, for discrete data, or real data with normal leaves.

    Attributes:
        states: States of each latent node; 1 makes the entries independent.
        structure: How the tree is chosen.
        real: Whether the data are real, rather than 0, 1, ....
        epochs: Passes over the data.
        batch: Data per step of EM; with at least as many as there are data it is plain EM.
        prior: Counts added to every weight's state, spread evenly.
    """

    states: int = eqx.field(static=True, default=16)
    structure: Structure = eqx.field(static=True, default=HiddenChowLiu())
    real: bool = eqx.field(static=True, default=False)
    epochs: int = eqx.field(static=True, default=30)
    batch: int = eqx.field(static=True, default=512)
    prior: float = eqx.field(static=True, default=1.0)

    @property
    def discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the data are integers."""
        return not self.real

    def check(self, spec: Spec) -> None:
        check_rows(self, spec)
        for name in ("states", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise MethodError(f"Circuit got {name}={getattr(self, name)!r}, expected at least 1. Change {name}.")
        if not self.prior > 0:
            raise MethodError(f"Circuit got prior={self.prior!r}, expected a positive number of counts.")

    def build(self, key: PRNGKey, spec: Spec) -> Weights:
        key_links, key_leaves = jax.random.split(key)
        size, count = spec.shape[0], self.structure.nodes(spec.shape[0])
        links = jax.random.normal(key_links, (count, self.states, self.states), jnp.float32)
        # Random links without preferences average out along a path: EM would start at a saddle.
        links = links + math.log(4 * self.states) * jnp.eye(self.states, dtype=jnp.float32)
        leaves = first_leaves(key_leaves, size, self.states, spec.values)
        root = jnp.zeros(self.states, jnp.float32)
        return Weights(self.structure.empty(size), Standardisation((size,)), root, links, leaves)

    def adapt(self, key: PRNGKey, net: Weights, x: Array, condition: Array | None) -> Weights:
        net = eqx.tree_at(lambda n: n.shape, net, self.structure.adapted(key, x, 0 if self.real else int(x.max()) + 1))
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x)) if self.real else net

    def solve(self, key: PRNGKey, net: Weights, x: Array, condition: Array | None) -> Weights:
        batch = min(self.batch, len(x))
        per_epoch = len(x) // batch
        prior, x = self.prior / len(x), net.units.inward(x) if self.real else x

        @jax.jit
        def epoch(key: PRNGKey, net: Weights, counts: Any, first: Array) -> tuple[Weights, Any]:
            rows = jax.random.permutation(key, len(x))[: per_epoch * batch].reshape(per_epoch, batch)

            def step(carried: tuple[Weights, Any], at: tuple[Array, Array]) -> tuple[tuple[Weights, Any], None]:
                (net, counts), (i, rows) = carried, at
                rate = 1.0 if per_epoch == 1 else 0.5 - 0.45 * i / (self.epochs * per_epoch)
                here = expected_counts(net, x[rows])
                counts = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, counts, here)
                return (maximised(net, counts, prior), counts), None

            return jax.lax.scan(step, (net, counts), (first + jnp.arange(per_epoch, dtype=jnp.float32), rows))[0]

        counts = jax.tree.map(jnp.zeros_like, jax.eval_shape(expected_counts, net, x[:1]))
        for i, key_epoch in enumerate(jax.random.split(key, self.epochs)):
            net, counts = epoch(key_epoch, net, counts, jnp.float32(i * per_epoch))
        return net

    def distribution(self, net: Weights, spec: Spec) -> LearnedCircuit:
        return LearnedCircuit(self, spec, net)


def first_leaves(key: PRNGKey, size: int, states: int, values: int) -> Categories | Normals:
    """Random leaves in standard units: categorical, or for ``values=0`` normal."""
    if values:
        return Categories(jax.nn.log_softmax(jax.random.normal(key, (size, states, values), jnp.float32)))
    return Normals(jax.random.normal(key, (size, states), jnp.float32), jnp.ones((size, states), jnp.float32))


def expected_counts(net: Weights, x: Array) -> tuple[Array, Array, Array]:
    """Mean expected statistics of root, links and leaves: derivatives of the mean log likelihood of a batch."""
    tree = net.tree(jnp.float32)
    statistics = jax.vmap(tree.leaves.statistics)(x)

    def log_likelihood(root: Array, links: Array, leaves: Array) -> Scalar:
        here = LatentTree(tree.shape, tree.log_root + root, tree.log_links + links, tree.leaves)

        def one(x: Array, statistics: Array) -> Scalar:
            values = tree.leaves(x) + jnp.einsum("skv,sv->sk", leaves, statistics)
            return here.upward(here.placed(values))[1]

        return jnp.mean(jax.vmap(one)(x, statistics))

    zero = jnp.zeros((x.shape[1], tree.log_root.shape[0], statistics.shape[2]), jnp.float32)
    parts = jnp.zeros_like(tree.log_root), jnp.zeros_like(tree.log_links), zero
    return jax.grad(log_likelihood, (0, 1, 2))(*parts)


def maximised(net: Weights, counts: tuple[Array, Array, Array], prior: float) -> Weights:
    """The most probable weights for expected counts per datum, and a prior per datum."""
    root, links, leaves = counts
    states = root.shape[0]
    parts = jnp.log(root + prior / states), jnp.log(links + prior / states**2), net.leaves.refitted(leaves, prior)
    return eqx.tree_at(lambda n: (n.log_root, n.log_links, n.leaves), net, parts)


class LearnedCircuit(Tractable):
    """A circuit as a distribution: density, marginals, conditionals and draws of them are exact.

    ``conditional(x, mask)`` gives the law of each entry given those where ``mask`` is true: log probabilities of its
    values, shape ``(..., length, values)``, or for real data means and variances, ``(..., length, 2)``. For joint draws
    of the rest use ``impute``.
    """

    net: Any

    @property
    def tree(self) -> LatentTree:
        """The circuit, in the units of its leaves and the default precision of JAX."""
        return self.net.tree(jnp.zeros(()).dtype)

    def most_probable(self, value: Array, mask: Array) -> Array:
        """``value`` with the entries where ``mask`` is false replaced by those which, *with the states behind them*, are
        the most probable. That need not be the most probable completion, which is hard to find."""
        parts = (jnp.asarray(value), self.event_dim), (jnp.asarray(mask, bool), self.event_dim)
        return self.pointwise(lambda here, x, m: here._best(x, m), *parts)

    # -- for one point -------------------------------------------------------------------------------------------------

    def _inward(self, x: Array) -> Array:
        return x.astype(int) if self.spec.values else self.net.units.inward(x)

    def _outward(self, x: Array) -> Array:
        return x if self.spec.values else self.net.units.outward(x)

    def marginal_at(self, x: Array, mask: Array) -> Scalar:
        here = self.tree.log_prob(self._inward(x), mask)
        if self.spec.values:
            return here
        log_scale = jnp.log(self.net.units.scale.value.astype(here.dtype))
        return here - jnp.sum(jnp.where(mask, log_scale, 0.0))

    def impute_at(self, key: PRNGKey, x: Array, mask: Array) -> Array:
        drawn = self._outward(self.tree.draw(key, self._inward(x), mask))
        return jnp.where(mask, x, drawn.astype(x.dtype))

    def _best(self, x: Array, mask: Array) -> Array:
        found = self._outward(self.tree.most_probable(self._inward(x), mask))
        return jnp.where(mask, x, found.astype(x.dtype))

    def complete(self, x: Array, mask: Array) -> Array:
        tree, inner = self.tree, self._inward(x)
        law = tree.leaves.law(tree.states(inner, mask))
        if self.spec.values:
            known = jnp.where(inner[:, None] == jnp.arange(self.spec.values), 0.0, -jnp.inf)
        else:
            units = self.net.units
            law = jnp.stack([units.outward(law[:, 0]), law[:, 1] * units.scale.value**2], 1)
            known = jnp.stack([x, jnp.zeros(x.size)], 1)
        return jnp.where(mask[:, None], known, law)
