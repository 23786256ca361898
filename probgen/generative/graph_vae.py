r"""Variational autoencoders of a graph (Kipf and Welling 2016): a latent position per node, edges where they agree.

The model is :math:`z_i \sim N(0, I)`, :math:`A_{ij} \sim \mathrm{Bernoulli}(\sigma(z_i^\top z_j + b))` for
:math:`i < j`, an undirected graph without loops; the guide is :math:`q(z \mid A) = \prod_i N(\mu_i, \operatorname{diag}
s_i^2)`, computed by graph convolutions from the edges that were seen and the features of the nodes.

A graph is one datum: an adjacency matrix of shape ``(n, n)``, symmetric, of 0, 1 and 2, where 2 says that nobody
looked.
Pairs that were not seen have no likelihood; what the model says of them is link prediction. Sparse graphs have many
absent edges per present one, and training may weigh the present ones up to an equal share (``reweighted``); that is no
bound then, while ``bound`` always is.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.nets.graph_convolution import GraphConvolution, normalised_adjacency

__all__ = ["GraphVAE", "LearnedGraphVAE"]


class _Net(eqx.Module):
    nodes: Array
    first: GraphConvolution
    last: GraphConvolution
    bias: Array

    def __call__(self, adjacency: Array, features: Array | None) -> tuple[Array, Array]:
        """Means and log scales of the positions, shape ``(n, latent)`` each."""
        links = normalised_adjacency(jnp.where(adjacency == 1, 1, 0).astype(jnp.float32))
        given = self.nodes if features is None else jnp.concatenate([self.nodes, features], -1)
        loc, log_scale = jnp.split(self.last(links, jax.nn.relu(self.first(links, given))), 2, axis=-1)
        return loc, log_scale


class GraphVAE(Family):
    """A variational autoencoder of one graph. Data have shape ``(1, n, n)``: 0 no edge, 1 edge, 2 not seen; the
    condition, if any, has the features of the nodes, shape ``(1, n, features)``.

    Without features each node has learned ones (the first layer of the published model, whose features are then the
    identity).

    Attributes:
        latent: Length of a position.
        width: Length of the hidden layer.
        reweighted: Whether training weighs present edges up to an equal share.
    """

    latent: int = eqx.field(static=True, default=8)
    width: int = eqx.field(static=True, default=32)
    reweighted: bool = eqx.field(static=True, default=False)

    discrete: ClassVar = True
    training: ClassVar = Training(steps=1000, batch=1, learning_rate=1e-2, weight_decay=0.0, ema=0.9, validation=0.0)

    def check(self, spec: Spec) -> None:
        if self.latent < 1 or self.width < 1:
            raise MethodError(f"GraphVAE got latent={self.latent} and width={self.width}, expected at least 1.")
        if len(spec.shape) != 2 or spec.shape[0] != spec.shape[1] or spec.values > 3:
            raise DataError(
                f"a datum has shape {spec.shape} and {spec.values} values, expected an adjacency matrix (n, n) of 0, 1 "
                f"and 2 (not seen). Give one graph as data of shape (1, n, n)."
            )
        if spec.condition is not None and (len(spec.condition) != 2 or spec.condition[0] != spec.shape[0]):
            raise DataError(
                f"the features of the nodes have shape {spec.condition}, expected ({spec.shape[0]}, features)."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_nodes, key_first, key_last = jax.random.split(key, 3)
        features = 0 if spec.condition is None else spec.condition[1]
        nodes = jax.random.normal(key_nodes, (spec.shape[0], self.width), jnp.float32) / math.sqrt(self.width)
        return _Net(
            nodes,
            GraphConvolution(key_first, self.width + features, self.width),
            GraphConvolution(key_last, self.width, 2 * self.latent),
            jnp.zeros((), jnp.float32),
        )

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        matrix = np.asarray(x)
        if not np.array_equal(matrix, matrix.swapaxes(-1, -2)) or np.any(np.diagonal(matrix, axis1=-2, axis2=-1) == 1):
            raise DataError(
                "the adjacency matrix is not symmetric, or has loops; the model is one of undirected graphs without "
                "them. Give np.maximum(A, A.T) with a zero diagonal."
            )
        return net

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        model = self.distribution(net, Spec(x.shape[1:], None if condition is None else condition.shape[1:], 3))

        def one(key: PRNGKey, x: Array, c: Array | None) -> Scalar:
            likelihood, divergence = model.terms(key, x, c, reweighted=self.reweighted)
            return (divergence - likelihood) / x.shape[0]

        return jnp.mean(jax.vmap(one)(jax.random.split(key, x.shape[0]), x, condition))

    def distribution(self, net: _Net, spec: Spec) -> LearnedGraphVAE:
        return LearnedGraphVAE(self, spec, net)


class LearnedGraphVAE(Learned):
    """The law of a graph: draws (of 0 and 1), a bound, positions of nodes and probabilities of edges."""

    offers: ClassVar = {"sample": Exactness.exact, "bound": Exactness.bound, "conditional": Exactness.estimate}

    family: GraphVAE
    net: _Net

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, 2), 2)

    def draw(self, key: PRNGKey) -> Array:
        key_latent, key_edges = jax.random.split(key)
        z = jax.random.normal(key_latent, (self.spec.shape[0], self.family.latent))
        upper = jnp.triu(jax.random.bernoulli(key_edges, jax.nn.sigmoid(self._logits(z))), 1).astype(int)
        return upper + upper.T

    def _logits(self, z: Array) -> Array:
        return z @ z.T + self.net.bias

    def terms(self, key: PRNGKey, x: Array, c: Array | None, *, reweighted: bool = False) -> tuple[Scalar, Scalar]:
        """Expected log likelihood of the pairs that were seen, from one draw, and divergence of guide and prior."""
        loc, log_scale = self.net(x, c)
        z = loc + jnp.exp(log_scale) * jax.random.normal(key, loc.shape, loc.dtype)
        pairs = jnp.triu(jnp.ones(x.shape, bool), 1) & (x != 2)
        each = jnp.where(pairs, -jax.nn.softplus(jnp.where(x == 1, -1, 1) * self._logits(z)), 0.0)
        if reweighted:
            present, seen = jnp.sum(pairs & (x == 1)), jnp.sum(pairs)
            up = (seen - present) / jnp.maximum(present, 1)
            each = each * jnp.where(x == 1, up, 1.0) * seen / (2.0 * jnp.maximum(seen - present, 1))
        divergence = 0.5 * jnp.sum(jnp.exp(2 * log_scale) + loc**2 - 1 - 2 * log_scale)
        return jnp.sum(each), divergence

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        likelihood, divergence = self.terms(key, x, self.condition)
        return likelihood - divergence

    def encode(self, value: Array) -> Array:
        """Mean positions of the nodes, shape ``(..., n, latent)``."""
        self._ready("bound")
        value = jnp.asarray(value)
        return self.pointwise(lambda here, x: here.net(x, here.condition)[0], (value, self.event_dim))

    def complete(self, x: Array, mask: Array) -> Array:
        """Probabilities of all edges given the pairs for which ``mask`` is true, at the mean positions of the guide,
        shape ``(n, n)``; the diagonal is 0."""
        both = mask & mask.T
        loc, _ = self.net(jnp.where(both, x, 2), self.condition)
        return jax.nn.sigmoid(self._logits(loc)) * (1 - jnp.eye(x.shape[0]))
