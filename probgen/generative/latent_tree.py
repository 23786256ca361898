r"""Trees of latent variables: smooth and decomposable circuits, evaluated in two passes.

Every node :math:`i` of a tree has a latent state :math:`z_i \in \{1..K\}` and some nodes emit an entry of the data,

.. math:: p(x) = \sum_z p(z_0) \prod_{i > 0} p(z_i \mid z_{\mathrm{pa}(i)}) \prod_i p(x_{v(i)} \mid z_i).

A node is a layer of :math:`K` product units over the scopes of its children, which are disjoint (decomposable); a link is
a layer of :math:`K` sum units over one scope (smooth). So one pass from the leaves to the root sums over all of
:math:`z`, in time linear in the number of nodes; an entry that is not observed is integrated out by the leaf value 1;
and the derivatives of the log likelihood with respect to the log weights are the expected counts of the weights.
Sums are log-einsum-exp: the largest term is factored out before a product of matrices (Peharz et al. 2020).
"""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.chow_liu import spanning_tree
from probgen.nets import Constant

__all__ = ["HiddenChowLiu", "LatentTree", "RandomRegions", "Shape", "Structure"]


class Shape(eqx.Module):
    """Which node hangs on which, and which entry it emits.

    Attributes:
        parent: Parent of each node, shape ``(nodes,)``, smaller than the node itself; node 0 is the root.
        node: The node that emits each entry, shape ``(size,)``.
    """

    parent: Constant
    node: Constant


class Structure(Part):
    """How the tree of a circuit is chosen."""

    @abc.abstractmethod
    def nodes(self, size: int) -> int:
        """Number of nodes, for data of ``size`` entries."""

    @abc.abstractmethod
    def shape(self, key: PRNGKey, x: np.ndarray, values: int) -> tuple[np.ndarray, np.ndarray]:
        """Parents and emitting nodes (see ``Shape``), for data of shape ``(n, size)``; ``values`` is 0 for real data."""

    def empty(self, size: int) -> Shape:
        """A chain, until there are data."""
        parent = np.maximum(np.arange(self.nodes(size)) - 1, 0)
        return Shape(Constant(jnp.asarray(parent)), Constant(jnp.arange(size)))

    def adapted(self, key: PRNGKey, x: Array, values: int) -> Shape:
        """The tree for data of shape ``(n, size)``."""
        parent, node = self.shape(key, np.asarray(x), values)
        return Shape(Constant(jnp.asarray(parent)), Constant(jnp.asarray(node)))


class HiddenChowLiu(Structure):
    """One node per entry, along the tree that best fits pairs of entries: the maximum spanning tree of their mutual
    informations (Chow and Liu 1968; hidden: Liu and Van den Broeck 2021). For real data those of Gaussians."""

    def nodes(self, size: int) -> int:
        return size

    def shape(self, key: PRNGKey, x: np.ndarray, values: int) -> tuple[np.ndarray, np.ndarray]:
        order, parents = spanning_tree(mutual_information(x, values))
        node = np.empty(len(order), int)
        node[order] = np.arange(len(order))
        return node[parents[order]], node


class RandomRegions(Structure):
    """A random binary tree of regions: the entries are halved at random until each stands alone (Peharz et al. 2019)."""

    def nodes(self, size: int) -> int:
        return 2 * size - 1

    def shape(self, key: PRNGKey, x: np.ndarray, values: int) -> tuple[np.ndarray, np.ndarray]:
        size = x.shape[1]
        parent, node = np.zeros(2 * size - 1, int), np.zeros(size, int)
        todo, made = [(np.asarray(jax.random.permutation(key, size)), 0)], 0
        while todo:
            scope, above = todo.pop(0)
            here, made = made, made + 1
            parent[here] = above
            if len(scope) == 1:
                node[scope[0]] = here
            else:
                todo += [(scope[: len(scope) // 2], here), (scope[len(scope) // 2 :], here)]
        return parent, node


def mutual_information(x: np.ndarray, values: int, prior: float = 0.5) -> np.ndarray:
    """Between all pairs of entries, shape ``(size, size)``, of counts to which ``prior`` is added; for real data
    (``values=0``) that of a Gaussian with their correlation."""
    n, size = x.shape
    if not values:
        scale = np.where(x.std(0) > 0, x.std(0), 1.0)
        z = (x - x.mean(0)) / scale
        correlation = z.T @ z / n
        return -0.5 * np.log(np.maximum(1 - correlation**2, 1e-12))
    hot = (x[:, :, None] == np.arange(values)).reshape(n, -1).astype(np.float32)
    counts = (hot.T @ hot).reshape(size, values, size, values).transpose(0, 2, 1, 3) + prior / values**2
    joint = counts / counts.sum((2, 3), keepdims=True)
    one, other = joint.sum(3, keepdims=True), joint.sum(2, keepdims=True)
    return (joint * np.log(joint / (one * other))).sum((2, 3))


class LatentTree(eqx.Module):
    """Normalised weights on a tree.

    Attributes:
        shape: The tree.
        log_root: Log probabilities of the root's states, shape ``(states,)``.
        log_links: Log probabilities of a node's state (last axis) given its parent's, shape ``(nodes, states, states)``;
            the first is not used.
        leaves: Laws of the entries given the states, ``Categories`` or ``Normals``.
    """

    shape: Shape
    log_root: Array
    log_links: Array
    leaves: Categories | Normals

    def values(self, x: Array, mask: Array) -> Array:
        """Log values of the leaves at a point, shape ``(nodes, states)``; 0 where ``mask`` is false."""
        return self.placed(jnp.where(mask[:, None], self.leaves(x), 0.0))

    def placed(self, leaves: Array) -> Array:
        """Log values of the leaves at the nodes that emit the entries, shape ``(nodes, states)``."""
        nodes = self.shape.parent.value.shape[0]
        return jnp.zeros((nodes, leaves.shape[1]), leaves.dtype).at[self.shape.node.value].set(leaves)

    def upward(self, values: Array, add: Any = None) -> tuple[Array, Scalar]:
        """Log messages into every node, shape ``(nodes, states)``, and the log likelihood.

        Args:
            values: Log values of the leaves.
            add: How log terms are added: ``log_product`` (sums), or ``max_product`` for the most probable states.
        """
        add = log_product if add is None else add
        parent = self.shape.parent.value

        def step(total: Array, i: Array) -> tuple[Array, None]:
            return total.at[parent[i]].add(add(self.log_links[i], total[i])), None

        total, _ = jax.lax.scan(step, values, jnp.arange(parent.shape[0] - 1, 0, -1))
        return total, add(self.log_root[None], total[0])[0]

    def log_prob(self, x: Array, mask: Array) -> Scalar:
        """Log probability of the entries of a point where ``mask`` is true, shapes ``(size,)``."""
        return self.upward(self.values(x, mask))[1]

    def states(self, x: Array, mask: Array) -> Array:
        """Probabilities of the state behind every entry given the observed ones, shape ``(size, states)``."""
        shares = jax.grad(lambda values: self.upward(values)[1])(self.values(x, mask))
        return shares[self.shape.node.value]

    def descend(self, total: Array, choose: Any) -> Array:
        """States from the root down, for every entry: ``choose(i, logits)`` picks the state of node ``i``."""
        parent = self.shape.parent.value

        def step(z: Array, i: Array) -> tuple[Array, None]:
            return z.at[i].set(choose(i, self.log_links[i][z[parent[i]]] + total[i])), None

        z = jnp.zeros(parent.shape[0], int).at[0].set(choose(0, self.log_root + total[0]))
        z, _ = jax.lax.scan(step, z, jnp.arange(1, parent.shape[0]))
        return z[self.shape.node.value]

    def draw(self, key: PRNGKey, x: Array, mask: Array) -> Array:
        """A draw of the entries where ``mask`` is false, given the others."""
        key_states, key_leaves = jax.random.split(key)
        keys = jax.random.split(key_states, self.shape.parent.value.shape[0])
        total, _ = self.upward(self.values(x, mask))
        z = self.descend(total, lambda i, logits: jax.random.categorical(keys[i], logits))
        return jnp.where(mask, x, self.leaves.draw(key_leaves, z).astype(x.dtype))

    def most_probable(self, x: Array, mask: Array) -> Array:
        """The entries where ``mask`` is false that are, with the states behind them, the most probable."""
        height, where = self.leaves.modes()
        total, _ = self.upward(self.placed(jnp.where(mask[:, None], self.leaves(x), height)), max_product)
        z = self.descend(total, lambda i, logits: jnp.argmax(logits))
        found = jnp.take_along_axis(where, z[:, None], 1)[:, 0]
        return jnp.where(mask, x, found.astype(x.dtype))


def log_product(log_matrix: Array, log_vector: Array) -> Array:
    """Log of a matrix times a vector, both given by logs."""
    largest = jax.lax.stop_gradient(jnp.max(log_vector))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    total = jnp.exp(log_matrix) @ jnp.exp(log_vector - largest)
    positive = total > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, total, 1.0)) + largest, -jnp.inf)


def max_product(log_matrix: Array, log_vector: Array) -> Array:
    """The largest terms where ``log_product`` has sums."""
    return jnp.max(log_matrix + log_vector, -1)


class Categories(eqx.Module):
    """Categorical leaves.

    Attributes:
        log_probs: Shape ``(size, states, values)``.
    """

    log_probs: Array

    def __call__(self, x: Array) -> Array:
        """Log values, shape ``(size, states)``."""
        at = jnp.broadcast_to(x[:, None, None].astype(int), (*self.log_probs.shape[:2], 1))
        return jnp.take_along_axis(self.log_probs, at, 2)[:, :, 0]

    def statistics(self, x: Array) -> Array:
        """The numbers in which the log values are linear, shape ``(size, values)``."""
        return jax.nn.one_hot(x.astype(int), self.log_probs.shape[2], dtype=self.log_probs.dtype)

    def refitted(self, counts: Array, prior: float) -> Categories:
        """The most probable leaves for expected statistics, shape ``(size, states, values)``, of which ``prior`` more
        are spread evenly over the values."""
        counts = counts + prior / counts.shape[2]
        return Categories(jnp.log(counts / counts.sum(2, keepdims=True)))

    def draw(self, key: PRNGKey, z: Array) -> Array:
        """Draws given the states, shape ``(size,)``."""
        logits = jnp.take_along_axis(self.log_probs, z[:, None, None], 1)[:, 0]
        return jax.random.categorical(key, logits)

    def modes(self) -> tuple[Array, Array]:
        """Largest log values and where they are, shape ``(size, states)``."""
        return self.log_probs.max(2), self.log_probs.argmax(2)

    def law(self, shares: Array) -> Array:
        """Log probabilities of the values, shape ``(size, values)``, from the probabilities of the states."""
        return jnp.log(jnp.einsum("sk,skv->sv", shares, jnp.exp(self.log_probs)))


class Normals(eqx.Module):
    """Normal leaves.

    Attributes:
        loc: Means, shape ``(size, states)``.
        scale: Standard deviations.
    """

    loc: Array
    scale: Array

    def __call__(self, x: Array) -> Array:
        return jax.scipy.stats.norm.logpdf(x[:, None], self.loc, self.scale)

    def statistics(self, x: Array) -> Array:
        return jnp.stack([jnp.ones_like(x), x, x**2], 1)

    def refitted(self, counts: Array, prior: float) -> Normals:
        """As ``Categories.refitted``; the statistics that are added are those of a standard normal."""
        size, total, square = jnp.moveaxis(counts, 2, 0)
        loc = total / (size + prior)
        return Normals(
            loc, jnp.sqrt((square - 2 * loc * total + loc**2 * size + prior * (1 + loc**2)) / (size + prior))
        )

    def draw(self, key: PRNGKey, z: Array) -> Array:
        loc, scale = (jnp.take_along_axis(a, z[:, None], 1)[:, 0] for a in (self.loc, self.scale))
        return loc + scale * jax.random.normal(key, loc.shape, loc.dtype)

    def modes(self) -> tuple[Array, Array]:
        return jax.scipy.stats.norm.logpdf(0.0, 0.0, self.scale), self.loc

    def law(self, shares: Array) -> Array:
        """Means and variances, shape ``(size, 2)``."""
        mean = (shares * self.loc).sum(1)
        square = (shares * (self.scale**2 + (self.loc - mean[:, None]) ** 2)).sum(1)
        return jnp.stack([mean, square], 1)
