"""A Markov process on a tree, observed at some of its vertices: chains, phylogenies, Euler paths of an SDE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.core import Tracer

from probgen.base.errors import DataError, ModelError
from probgen.base.typing import Scalar
from probgen.feynman_kac.messages import Gaussian, Space, space_of

__all__ = ["SDE", "MarkovTree", "bound"]


def bound(function: Any) -> Any:
    """A callable as a pytree without leaves, unless it is one already."""
    if function is None or isinstance(function, eqx.Module | jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


class MarkovTree(eqx.Module):
    r"""States on a directed tree: the root from a law, each vertex from a kernel, given the state above it.

    .. math:: p(x, y) = p(x_0) \prod_{v > 0} k_v(x_{\mathrm{pa}(v)}, x_v) \prod_v g_v(y_v \mid x_v)

    Vertex 0 is the root, and a vertex comes after its parent; without ``parents`` the tree is a chain. States are vectors
    of shape ``(dim,)`` with Gaussian kernels of any mean and scale, or numbers 0, ..., K - 1 with ``Categorical`` ones.

    Functions are called for one vertex at a time, as ``transition(t, x)``, with ``t`` the entry of ``inputs`` of that
    vertex. What they close over is compiled in; parameters that change belong into ``inputs``, into
    ``jax.tree_util.Partial(function, parameters)``, or into an ``eqx.Module`` with ``__call__``.

    Attributes:
        initial: Law of the root: ``Normal`` or ``MultivariateNormal`` over a vector, a ``Gaussian``, a point as an array
            of shape ``(dim,)``, or ``Categorical``.
        transition: ``transition(t, x)``, the law at a vertex given the state ``x`` above it: ``Normal`` over a vector,
            ``MultivariateNormal``, a ``Gaussian`` (mean and scale, which may be singular), or ``Categorical``.
        observation: ``observation(t, x)``, any distribution of the observation at a vertex with state ``x``.
        y: Observations, shape ``(vertices, ...)``; NaN where there is none. Integers are all observed, unless
            ``observed`` says otherwise. Where the components of an observation are independent, some may be missing.
        inputs: A pytree of arrays with the leading axis ``vertices`` (times, branch lengths); entry 0 goes with the root.
            By default the number of the vertex.
        parents: Parent of each vertex, shape ``(vertices,)``; that of the root is -1.
        observed: Which entries of ``y`` were observed: booleans of the shape of ``y`` or of its leading axes.
        space: Where the states live.

    Raises:
        DataError: For parents that make no tree in this order, or arrays that do not fit.
        ModelError: If a function does not return what it should.
    """

    initial: Any
    transition: Callable[..., Any]
    observation: Callable[..., Any]
    y: Array
    inputs: Any
    parents: Array
    observed: Array
    space: Space
    chain: bool = eqx.field(static=True)

    def __init__(
        self,
        initial: Any,
        transition: Callable[..., Any],
        observation: Callable[..., Any],
        y: Any,
        *,
        inputs: Any = None,
        parents: Any = None,
        observed: Any = None,
    ) -> None:
        self.space = space_of(initial)
        self.initial = self.space.law(initial, "initial")
        self.transition, self.observation = bound(transition), bound(observation)
        self.y, self.observed = _observations(y, observed)
        vertices = len(self.y)
        self.inputs = jnp.arange(vertices) if inputs is None else jax.tree.map(jnp.asarray, inputs)
        for leaf in jax.tree.leaves(self.inputs):
            if leaf.ndim == 0 or len(leaf) != vertices:
                raise DataError(
                    f"inputs has an array of shape {leaf.shape}, expected {vertices} entries along the first axis, as y "
                    f"has. Give one entry per vertex; that of the root may be anything."
                )
        self.chain = parents is None
        self.parents = jnp.arange(-1, vertices - 1) if parents is None else _parents(parents, vertices)
        self._try()

    @property
    def vertices(self) -> int:
        """Number of vertices, the root included."""
        return len(self.y)

    def law(self, v: Array, x: Array, transition: Callable[..., Any] | None = None) -> Any:
        """Law of the state at vertex ``v`` given the state ``x`` above it, under ``transition`` or that of the tree."""
        function = self.transition if transition is None else transition
        return self.space.law(function(self._inputs(v), x), "what transition(t, x) returns")

    def log_likelihood(self, v: Array, x: Array) -> Scalar:
        """Log likelihood of what was observed at vertex ``v`` given its state ``x``; 0 if nothing was."""
        law, observed = self._emission(v, x), self.observed[v]
        if law.event_shape:
            observed = jnp.all(observed, tuple(range(-len(law.event_shape), 0)))
        return jnp.sum(jnp.where(observed, law.log_prob(self.y[v]), 0.0))

    def _emission(self, v: Array, x: Array) -> dist.Distribution:
        law, shape = self.observation(self._inputs(v), x), self.y.shape[1:]
        if not isinstance(law, dist.Distribution) or law.shape() != shape:
            got = f"a distribution of shape {law.shape()}" if isinstance(law, dist.Distribution) else type(law).__name__
            raise ModelError(
                f"observation(t, x) returns {got}, expected a distribution of shape {shape}, as one entry of y has. "
                f"Correct the function or y."
            )
        return law

    def _try(self) -> None:
        """Run both functions abstractly: what they return wrongly is an error now."""
        events = []

        def run(x: Array) -> Any:
            root = jnp.zeros((), jnp.int32)
            events.append(len(self._emission(root, x).event_shape))
            return self.law(root, x), self.log_likelihood(root, x)

        jax.eval_shape(run, self.space.anchor(self.initial))
        if events[0] and not isinstance(self.observed, Tracer):
            axes = tuple(range(-events[0], 0))
            if bool(jnp.any(jnp.any(self.observed, axes) & ~jnp.all(self.observed, axes))):
                raise DataError(
                    "an observation is missing in part, but its components are not independent (they are one event). Mark "
                    "all of it as missing, or return a distribution without event dimensions."
                )

    def _inputs(self, v: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[v], self.inputs)


class SDE(eqx.Module):
    r"""Transition of a diffusion :math:`dX = b(t, X)\,dt + \sigma(t, X)\,dW` over one step of Euler and Maruyama.

    Inputs of the tree are then pairs ``(t, dt)`` of arrays of shape ``(vertices,)``: time at the *start* of the step to
    that vertex, and its length. Noise may be singular (fewer Brownian motions than coordinates). What is exact is exact
    for the discretised process.

    Attributes:
        drift: ``drift(t, x)``, shape ``(dim,)``.
        diffusion: ``diffusion(t, x)``, shape ``(dim, noises)``.
    """

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]

    def __init__(self, drift: Callable[..., Any], diffusion: Callable[..., Any]) -> None:
        self.drift, self.diffusion = bound(drift), bound(diffusion)

    def __call__(self, step: tuple[Array, Array], x: Array) -> Gaussian:
        """The law at the end of a step from ``x``."""
        t, dt = step
        return Gaussian(x + self.drift(t, x) * dt, self.diffusion(t, x) * jnp.sqrt(dt))


def _observations(y: Any, observed: Any) -> tuple[Array, Array]:
    """Observations with something legal in the gaps, and which entries are none."""
    y = jnp.asarray(y)
    if y.ndim == 0 or not len(y):
        raise DataError(f"y has shape {y.shape}, expected one entry per vertex. Fill gaps with NaN.")
    missing = jnp.isnan(y) if jnp.issubdtype(y.dtype, jnp.floating) else jnp.zeros(y.shape, bool)
    if observed is not None:
        given = jnp.asarray(observed)
        if given.dtype != bool or given.shape != y.shape[: given.ndim]:
            raise DataError(
                f"observed has dtype {given.dtype} and shape {given.shape}, expected booleans of the shape {y.shape} of "
                f"y or of its leading axes. Correct observed."
            )
        missing = missing | ~given.reshape(*given.shape, *[1] * (y.ndim - given.ndim))
    # Any observed value is inside the support, so neither the density nor its gradient is NaN in the gaps.
    flat, gone = y.reshape(len(y), -1), missing.reshape(len(y), -1)
    some = jnp.take_along_axis(flat, jnp.argmin(gone, 0)[None], 0)
    if not isinstance(gone, Tracer):
        if bool(jnp.any(jnp.all(gone, 0))):
            raise DataError("y has no observation of some component. Drop it, or give one.")
        if bool(jnp.any(jnp.isinf(flat) & ~gone)):
            raise DataError("y has infinite entries. Correct them, or mark them as missing with NaN.")
    return jnp.where(gone, some, flat).reshape(y.shape), ~missing


def _parents(parents: Any, vertices: int) -> Array:
    found = jnp.asarray(parents)
    if found.shape != (vertices,) or not jnp.issubdtype(found.dtype, jnp.integer):
        raise DataError(
            f"parents has shape {found.shape} and dtype {found.dtype}, expected {vertices} integers, one per entry of y. "
            f"Give the number of the parent of each vertex, and -1 for the root."
        )
    if not isinstance(found, Tracer):
        order = np.asarray(found)
        wrong = np.flatnonzero((order < 0) | (order >= np.arange(vertices)))
        if order[0] != -1 or wrong[wrong > 0].size:
            v = 0 if order[0] != -1 else int(wrong[wrong > 0][0])
            raise DataError(
                f"parents[{v}] is {order[v]}, expected {'-1' if v == 0 else f'a vertex before it, 0 to {v - 1}'}. Number "
                f"the vertices such that the root is 0 and parents come first."
            )
    return found.astype(jnp.int32)
