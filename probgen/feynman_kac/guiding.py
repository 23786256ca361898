r"""Backward filtering, forward guiding: conditioned processes, simulated with known weights.

For a Markov process on a tree (``MarkovTree``), let :math:`h_v(x)` be the likelihood of everything observed at vertex
:math:`v` and below it, given the state :math:`x` at :math:`v`. Conditioned on the data, the process is again Markov: its
kernels are :math:`k_v(x, dx') h_v(x') / (k_v h_v)(x)`. Where :math:`h` is not known, a backward filter with an
*auxiliary* process, whose kernels :math:`\tilde k` are linear-Gaussian, gives an approximation

.. math:: \tilde h_v(x) = \tilde g_v(x) \prod_{u : \mathrm{pa}(u) = v} (\tilde k_u \tilde h_u)(x) ,

and the *guided* process, with the true kernels, moves by :math:`k_v(x, dx') \tilde h_v(x') / (k_v \tilde h_v)(x)`. The
density of a conditioned path with respect to a guided one is a product of factors that are all known,

.. math::

    w(x) = (k_0 \tilde h_0) \prod_{v > 0} \frac{(k_v \tilde h_v)(x_{\mathrm{pa}(v)})}{(\tilde k_v \tilde h_v)(x_{\mathrm{pa}(v)})}
    \prod_v \frac{g_v(y_v \mid x_v)}{\tilde g_v(x_v)} , \qquad \mathbb{E}\, w = p(y) ,

so that the evidence is estimated without bias, whatever the auxiliary process; in a linear-Gaussian tree, and in a
finite one, all factors but the first are 1 and the estimate is exact. Along the vertices the weights are potentials of a
Feynman-Kac model, and particles may be resampled on the way.

The auxiliary process is found automatically: kernels are linearised, and log likelihoods expanded to second order, at a
reference path. That path starts as the noise-free one and is then refined: the most likely guided path becomes the next
reference, and the one with the highest joint density is kept (the iteration of iterated Kalman smoothing, but with each
candidate a path of the true process).

Exact: the weights, hence the evidence (in mean) and weighted expectations. Approximate: how well the guided process
fits, which is what the effective sample size says.

References: van der Meulen and Schauer (2020), "Automatic backward filtering forward guiding for Markov processes and
graphical models", arXiv 2010.03509; Schauer, van der Meulen and van Zanten (2017), Bernoulli 23(4A).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError, ModelError
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.markov_tree import MarkovTree, bound
from probgen.feynman_kac.messages import Continuous
from probgen.feynman_kac.protocol import FeynmanKac

__all__ = ["Guided", "GuidedChain", "GuidedTree", "guide"]


class Guided(FeynmanKac):
    """A guided process: one particle is a conditioned path in the making. Made by ``guide``.

    Attributes:
        tree: The process and its data.
        anchors: The reference path, shape ``(vertices, dim)``.
        observed: Messages of the observations, leading axis ``vertices``.
        messages: What the data at and below each vertex say about its state.
        pulled: The same, as said to the state above (entry 0 is empty).
    """

    tree: eqx.AbstractVar[MarkovTree]
    anchors: eqx.AbstractVar[Array]
    observed: eqx.AbstractVar[Any]
    messages: eqx.AbstractVar[Any]
    pulled: eqx.AbstractVar[Any]

    @property
    def steps(self) -> int:
        """Vertices after the root."""
        return self.tree.vertices - 1

    @property
    def log_evidence(self) -> Scalar:
        """Log evidence of the auxiliary process: exact for a linear-Gaussian or finite tree, else an approximation."""
        return self.tree.space.evidence(self.tree.initial, _at(self.messages, 0), self.anchors[0])

    def draw(self, key: PRNGKey) -> tuple[Array, Scalar]:
        """One guided path without resampling, and its log weight.

        The mean of ``exp(log_w)`` over draws is an unbiased estimate of the evidence; under ``vmap``, draws are weighted
        draws of the posterior.

        Returns:
            States, shape ``(vertices, dim)``, or ``(vertices,)`` in a finite space, and the log weight.
        """
        keys = jax.random.split(key, self.tree.vertices)
        x, log_w = self._root(keys[0])
        path = jnp.zeros((self.tree.vertices, *x.shape), x.dtype).at[0].set(x)

        def visit(carry: tuple[Array, Scalar], at: tuple[Array, Array]) -> tuple[tuple[Array, Scalar], None]:
            path, log_w = carry
            v, key = at
            above = path[self.tree.parents[v]]
            x, log_g = self._arrive(key, v, above)
            return (path.at[v].set(x), log_w + self._leave(v, above) + log_g), None

        (path, log_w), _ = jax.lax.scan(visit, (path, log_w), (jnp.arange(1, self.tree.vertices), keys[1:]))
        return path, log_w

    def _root(self, key: PRNGKey) -> tuple[Array, Scalar]:
        x = self.tree.space.draw(key, self.tree.initial, _at(self.messages, 0), self.anchors[0])
        return x, self.log_evidence + self._seen(jnp.zeros((), jnp.int32), x)

    def _leave(self, v: Array, above: Array) -> Scalar:
        """Log ratio of the true and the auxiliary evidence, from the state above ``v``."""
        space, anchors = self.tree.space, self.anchors
        true = space.evidence(self.tree.law(v, above), _at(self.messages, v), anchors[v])
        return _ratio(true, space.value(_at(self.pulled, v), above, anchors[self.tree.parents[v]]))

    def _arrive(self, key: PRNGKey, v: Array, above: Array) -> tuple[Array, Scalar]:
        """A guided state at ``v``, and its log potential."""
        law = self.tree.law(v, above)
        x = self.tree.space.draw(key, law, _at(self.messages, v), self.anchors[v])
        return x, self._seen(v, x)

    def _seen(self, v: Array, x: Array) -> Scalar:
        """Log ratio of the likelihood at ``v`` and its message."""
        message = self.tree.space.value(_at(self.observed, v), x, self.anchors[v])
        return _ratio(self.tree.log_likelihood(v, x), message)


class GuidedChain(Guided):
    """A guided chain: a particle is the state at the present vertex, shape ``(dim,)``, or ``()`` in a finite space."""

    tree: MarkovTree
    anchors: Array
    observed: Any
    messages: Any
    pulled: Any

    def init(self, key: PRNGKey) -> tuple[Array, Scalar]:
        """See ``FeynmanKac.init``."""
        return self._root(key)

    def look_ahead(self, t: Array, x: Array, context: Any) -> Scalar:
        """See ``FeynmanKac.look_ahead``."""
        return self._leave(t, x)

    def step(self, key: PRNGKey, t: Array, x: Array, context: Any) -> tuple[Array, Scalar]:
        """See ``FeynmanKac.step``."""
        return self._arrive(key, t, x)

    def log_transition(self, t: Array, x_prev: Array, x: Array) -> Scalar:
        """See ``FeynmanKac.log_transition``.

        Raises:
            ModelError: If the noise is singular: there is no density.
        """
        space = self.tree.space
        below = space.value(_at(self.messages, t), x, self.anchors[t])
        above = space.value(_at(self.pulled, t), x_prev, self.anchors[t - 1])
        return space.density(self.tree.law(t, x_prev), x) + below - above + self._seen(t, x)

    def log_potential(self, t: Array, x_prev: Array | None, x: Array, context: Any) -> Scalar:
        """See ``FeynmanKac.log_potential``."""
        return self._seen(t, x) + (self.log_evidence if x_prev is None else 0.0)


class GuidedTree(Guided):
    """A guided tree: a particle holds the states of all vertices, shape ``(vertices, dim)``; those to come are zero."""

    tree: MarkovTree
    anchors: Array
    observed: Any
    messages: Any
    pulled: Any

    def init(self, key: PRNGKey) -> tuple[Array, Scalar]:
        """See ``FeynmanKac.init``."""
        x, log_g = self._root(key)
        return jnp.zeros((self.tree.vertices, *x.shape), x.dtype).at[0].set(x), log_g

    def look_ahead(self, t: Array, x: Array, context: Any) -> Scalar:
        """See ``FeynmanKac.look_ahead``."""
        return self._leave(t, x[self.tree.parents[t]])

    def step(self, key: PRNGKey, t: Array, x: Array, context: Any) -> tuple[Array, Scalar]:
        """See ``FeynmanKac.step``."""
        new, log_g = self._arrive(key, t, x[self.tree.parents[t]])
        return x.at[t].set(new), log_g

    def log_potential(self, t: Array, x_prev: Array | None, x: Array, context: Any) -> Scalar:
        """See ``FeynmanKac.log_potential``."""
        return self._seen(t, x[t]) + (self.log_evidence if x_prev is None else 0.0)


def guide(
    tree: MarkovTree,
    *,
    auxiliary: Callable[..., Any] | None = None,
    anchors: Array | None = None,
    refinements: int = 10,
) -> Guided:
    """Filter backward, and guide forward.

    Args:
        tree: The process and its data.
        auxiliary: Kernel of the auxiliary process, called as the transition of the tree is; by default that transition.
            On R^d it is linearised at the reference path. It must not exclude what the transition allows.
        anchors: Where to start the reference path, shape ``(vertices, dim)``; by default at the noise-free path.
        refinements: Times that the reference path is refined, >= 0. It has no effect on what is estimated.

    Returns:
        A Feynman-Kac model with one step per vertex after the root.

    Raises:
        MethodError: If a setting is out of range.
        ModelError: If ``auxiliary`` does not return what it should, or ``anchors`` do not fit.
    """
    if isinstance(refinements, bool) or not isinstance(refinements, int) or refinements < 0:
        raise MethodError(f"refinements must be a non-negative int, got {refinements!r}. Give 10, say.")
    if anchors is not None:
        if not isinstance(tree.space, Continuous):
            raise ModelError("a finite tree has no reference path, and got anchors. Leave them out.")
        shape = (tree.vertices, tree.space.dim)
        if jnp.shape(anchors) != shape:
            raise ModelError(f"anchors has shape {jnp.shape(anchors)}, expected {shape}. Give one state per vertex.")
    return _guided(tree, bound(auxiliary), anchors, refinements)


@functools.partial(jax.jit, static_argnames="refinements")
def _guided(tree: MarkovTree, auxiliary: Callable[..., Any] | None, anchors: Array | None, refinements: int) -> Guided:
    if isinstance(tree.space, Continuous):
        # Whatever the reference path is, the evidence is unbiased: its derivatives need not pass through here.
        anchors = _reference(*jax.lax.stop_gradient((tree, auxiliary, anchors)), refinements)
    else:
        anchors = jnp.zeros(tree.vertices, jnp.int32)
    kind = GuidedChain if tree.chain else GuidedTree
    return kind(tree, anchors, *_backward(tree, anchors, auxiliary))


def _backward(tree: MarkovTree, anchors: Array, auxiliary: Callable[..., Any] | None) -> tuple[Any, Any, Any]:
    """Messages of the observations, all messages, and what each vertex passes up; leading axis ``vertices``."""
    vertices = jnp.arange(tree.vertices)
    observed = jax.vmap(lambda v, anchor: tree.space.observe(lambda x: tree.log_likelihood(v, x), anchor))(
        vertices, anchors
    )

    def visit(messages: Any, v: Array) -> tuple[Any, Any]:
        above = tree.parents[v]
        pulled = tree.space.pull(lambda x: tree.law(v, x, auxiliary), _at(messages, v), anchors[v], anchors[above])
        return jax.tree.map(lambda all_, one: all_.at[above].add(one), messages, pulled), pulled

    messages, pulled = jax.lax.scan(visit, observed, vertices[1:], reverse=True)
    return observed, messages, jax.tree.map(lambda p: jnp.concatenate([jnp.zeros_like(p[:1]), p]), pulled)


def _reference(
    tree: MarkovTree, auxiliary: Callable[..., Any] | None, anchors: Array | None, refinements: int
) -> Array:
    """The path of highest joint density among the iterates; only a given one is not a path of the process itself."""
    dtype = tree.initial.mean.dtype
    if anchors is None:  # without messages, the likely path is the noise-free one
        count = refinements + 1
        now = jnp.zeros((tree.vertices, tree.space.anchor(tree.initial).size), dtype)
        messages = jax.vmap(lambda _: tree.space.zero(dtype))(jnp.arange(tree.vertices))
    else:
        count, now = refinements, jnp.asarray(anchors, dtype)
        messages = _backward(tree, now, auxiliary)[1]

    def refine(carry: tuple[Array, Any, Array, Scalar], _: None) -> tuple[tuple[Array, Any, Array, Scalar], None]:
        now, messages, best, height = carry
        path, log_density = _likely(tree, messages, now)
        better = log_density > height  # never for NaN
        best, height = jnp.where(better, path, best), jnp.where(better, log_density, height)
        return (path, _backward(tree, path, auxiliary)[1], best, height), None

    start = (now, messages, now, jnp.asarray(-jnp.inf, dtype))
    return jax.lax.scan(refine, start, None, length=count)[0][2]


def _likely(tree: MarkovTree, messages: Any, anchors: Array) -> tuple[Array, Scalar]:
    """The guided path with the most likely noise at each vertex, and its joint log density with the data."""
    space = tree.space
    assert isinstance(space, Continuous)
    x, height = space.mode(tree.initial, _at(messages, 0), anchors[0])
    height = height + tree.log_likelihood(jnp.zeros((), jnp.int32), x)

    def visit(carry: tuple[Array, Scalar], v: Array) -> tuple[tuple[Array, Scalar], None]:
        path, height = carry
        x, log_noise = space.mode(tree.law(v, path[tree.parents[v]]), _at(messages, v), anchors[v])
        return (path.at[v].set(x), height + log_noise + tree.log_likelihood(v, x)), None

    start = (jnp.zeros_like(anchors).at[0].set(x), height)
    return jax.lax.scan(visit, start, jnp.arange(1, tree.vertices))[0]


def _at(stack: Any, v: Array | int) -> Any:
    return jax.tree.map(lambda leaf: leaf[v], stack)


def _ratio(true: Scalar, approximate: Scalar) -> Scalar:
    """Log ratio, which is zero probability where the truth is."""
    return jnp.where(true == -jnp.inf, -jnp.inf, true - approximate)
