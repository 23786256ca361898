r"""Discrete sites along a ``scan``: a hidden Markov chain, solved in time linear in its length.

The state of a step is the joint value of its discrete sites, counted in mixed radix. Where the carry that a step leaves
is a function of that state (and of what is known), the joint density is a sum of

.. math:: w_t(i, j) = \log p(z_t = j, y_t \mid \text{carry left by } z_{t-1} = i),

tables that come from running one step of the program for all pairs of states. Observations may have any distribution.
Sites before the scan are the first state; where the steps read them directly, they are part of every state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.forward_backward import FiniteChain, Messages, best_path, draw, messages, smoothed
from probgen.program.finite import supports
from probgen.program.gaussian_step import unpacked
from probgen.program.joint import Block, Joint, Posterior, Variables
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.steps import (
    Layout,
    NotAChain,
    carries,
    carry_source,
    layout_of,
    leaves_of,
    one_step,
    opened,
)

__all__ = ["ForwardBackward", "forward_backward_of"]

_PROBES = 8
_TABLE = 2**27
"""Most numbers in the tables of a chain."""


class _Part(NamedTuple):
    """Joint states of several sites, of one row of the lane.

    Attributes:
        names: The sites.
        counts: Number of values of each site.
        shapes: Shape of each site without its event axes, of one step.
        axes: Where the lane stands in it.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[int | None, ...]

    @property
    def radix(self) -> tuple[int, ...]:
        sizes = [math.prod(s) // (1 if a is None else s[a]) for s, a in zip(self.shapes, self.axes, strict=True)]
        return tuple(count for count, size in zip(self.counts, sizes, strict=True) for _ in range(size))

    @property
    def states(self) -> int:
        return math.prod(self.radix)

    def digits(self, state: Array) -> Array:
        """Digits of state numbers, in a new last axis."""
        places = [math.prod(self.radix[i + 1 :]) for i in range(len(self.radix))]
        return state[..., None] // jnp.asarray(places, int) % jnp.asarray(self.radix, int)

    def values(self, support: Mapping[str, Array], state: Array) -> Values:
        """Values by site of state numbers, shape ``(..., rows)``."""
        indices = unpacked(self.digits(state), self.shapes, self.axes)
        return {name: support[name][index] for name, index in zip(self.names, indices, strict=True)}

    def marginals(self, probability: Array) -> dict[str, Array]:
        """Probabilities by site of those of states, shape ``(..., rows, states)``; a new last axis for the values."""
        digits = self.digits(jnp.arange(self.states))
        top = max(self.counts, default=1)
        hot = jax.nn.one_hot(digits, top, dtype=probability.dtype)
        by_digit = jnp.einsum("...s,sdv->v...d", probability, hot)
        parts = unpacked(by_digit, self.shapes, self.axes)
        found = zip(self.names, self.counts, parts, strict=True)
        return {name: jnp.moveaxis(part, 0, -1)[..., :count] for name, count, part in found}


@dataclasses.dataclass(frozen=True)
class ForwardBackward(Block):
    """A hidden Markov chain.

    Attributes:
        layout: How the sites are a chain.
        first: States before the scan.
        each: States of a step.
    """

    sites: tuple[str, ...]
    terms: tuple[str, ...]
    layout: Layout
    first: _Part
    each: _Part
    rule: ClassVar = "forward-backward: finite along a scan"

    @property
    def lane(self) -> str | None:
        """The plate whose rows are solved one by one."""
        return None if self.layout.lane is None else self.layout.lane.plate

    @property
    def _rows(self) -> int:
        return 1 if self.layout.lane is None else self.layout.lane.size

    def solve(self, joint: Joint) -> Posterior:
        """See ``Block.solve``.

        ``parameters``: the chain of each row with its messages, and by site ``SITE_support``.
        """
        support = supports(joint, self.sites)
        chain = self._chain(joint, support)
        found = jax.vmap(messages)(chain)
        log_z = jnp.sum(found.log_z[:, -1])
        # Recognition proved that steps depend on one another through the state; these paths guard against rows of a plate
        # that know of one another. Half are drawn from the posterior, half at random, where many are impossible.
        key_drawn, key_begin, key_states = jax.random.split(jax.random.key(0), 3)
        begin, states = self._paths(key_drawn, chain, found, _PROBES // 2)
        shape = (_PROBES // 2, *begin.shape[1:])
        begin = jnp.concatenate([begin, jax.random.randint(key_begin, shape, 0, self.first.states)])
        anything = jax.random.randint(key_states, (*shape, self.layout.length), 0, self.each.states)
        if self.layout.direct:
            anything = begin[-len(anything) :, :, None] * self.each.states + anything
        states = jnp.concatenate([states, anything])

        def miss(path: tuple[Array, Array]) -> Scalar:
            alone = [a[None] for a in path]
            values = {name: value[0] for name, value in self._values(joint.model, support, *alone).items()}
            total, size = joint(values, self.terms)
            expected = jnp.sum(jax.vmap(_log_weight)(chain, *path))
            gap = jnp.abs(total - expected) / (1 + size)
            both = (total == -jnp.inf) & (expected == -jnp.inf)
            return jnp.where(both, 0.0, jnp.where(jnp.isfinite(gap), gap, jnp.inf))

        residual = jnp.max(jax.lax.map(miss, (begin, states)))
        parameters = {"chain": chain, "messages": found} | {f"{name}_support": a for name, a in support.items()}
        return Posterior(parameters, log_z, residual, jnp.isfinite(log_z))

    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Any], count: int) -> Values:
        """See ``Block.draw``."""
        support = {name: parameters[f"{name}_support"] for name in self.sites}
        paths = self._paths(key, parameters["chain"], parameters["messages"], count)
        return self._values(model, support, *paths)

    def summary(self, model: Model, parameters: dict[str, Any]) -> Variables:
        """See ``Block.summary``: the values of each site, their probabilities given all data and (of the sites of the scan)
        given the data up to their step, and the most probable path of all sites together."""
        chain, found = parameters["chain"], parameters["messages"]
        support = {name: parameters[f"{name}_support"] for name in self.sites}
        begin, given_all = jax.vmap(smoothed)(chain, found)
        begin = jax.tree.map(jnp.exp, begin)
        probability = self.first.marginals(begin) | self._by_step(given_all)
        now = self._by_step(found.forward)
        paths = jax.vmap(best_path)(chain)
        best = self._values(model, support, *(a[None] for a in paths))
        variables: Variables = {}
        for name in self.sites:
            site, state, event = model.sites[name], f"{name}_state", support[name].ndim - 1
            dims = site.dims[: len(site.dims) - event]
            variables[f"{name}_value"] = ((state, *site.dims[len(dims) :]), support[name])
            variables[f"{name}_probability"] = ((*dims, state), probability[name])
            if name in now:
                variables[f"{name}_filtered_probability"] = ((*dims, state), now[name])
            variables[f"{name}_path"] = (site.dims, best[name][0])
        return variables

    def _by_step(self, log_p: Array) -> dict[str, Array]:
        """Marginals in the order of rows, from log probabilities of states (lane, T, states)."""
        p = jnp.exp(jnp.moveaxis(log_p, 0, 1))
        p = jnp.sum(p.reshape(*p.shape[:-1], -1, self.each.states), -2)
        return self.each.marginals(jnp.flip(p, 0) if self.layout.reverse else p)

    def _paths(self, key: PRNGKey, chain: FiniteChain, found: Messages, count: int) -> tuple[Array, Array]:
        """First states ``(count, rows)`` and states ``(count, rows, T)``."""
        keys = jax.random.split(key, self._rows)
        return jax.vmap(lambda key, chain, found: draw(key, chain, found, count), out_axes=1)(keys, chain, found)

    def _values(self, model: Model, support: Mapping[str, Array], begin: Array, states: Array) -> Values:
        """Values by site of first states ``(n, rows)`` and states ``(n, rows, T)``."""
        steps = jnp.moveaxis(states % self.each.states, 1, 2)
        steps = jnp.flip(steps, 1) if self.layout.reverse else steps
        return self.first.values(support, begin) | self.each.values(support, steps)

    def _chain(self, joint: Joint, support: Mapping[str, Array]) -> FiniteChain:
        model, layout, rows = joint.model, self.layout, self._rows
        scanned = [s for s in model.sites if s.latent and s.scanned]
        others = {s.name: jnp.zeros(s.shape[1:], s.dtype) for s in scanned if s.name not in layout.latent}

        def statics(state: Array) -> Values:
            return self.first.values(support, jnp.broadcast_to(state, (rows,)))

        def latent(state: Array) -> Values:
            return others | self.each.values(support, jnp.broadcast_to(state, (rows,)))

        def log_start(state: Array) -> Array:
            traced = joint.run(statics(state))
            return self._by_row(model, {name: traced[name] for name in layout.outside})

        scan = opened(model, statics(jnp.asarray(0)))
        still = {name: jnp.broadcast_to(a, (layout.length, *a.shape)) for name, a in latent(jnp.asarray(0)).items()}
        # What no latent site reaches; the other leaves are replaced, or matter to nothing.
        along = carries(scan, still)

        def weigh(begin: Array, t: Array, leaves: list[Array], state: Array) -> Array:
            _, trace = one_step(opened(model, statics(begin)), t, leaves, latent(state))
            return self._by_row(model, {name: trace[name] for name in layout.inside})

        def left(begin: Array, t: Array, leaves: list[Array], state: Array) -> list[Array]:
            new, _ = one_step(opened(model, statics(begin)), t, leaves, latent(state))
            return [new[i] for i in layout.state]

        def placed(leaves: list[Array], state: list[Array]) -> list[Array]:
            chosen = dict(zip(layout.state, state, strict=True))
            return [jnp.astype(chosen[i], leaf.dtype) if i in chosen else leaf for i, leaf in enumerate(leaves)]

        begins, states = jnp.arange(self.first.states), jnp.arange(self.each.states)

        def opening(begin: Array, state: Array) -> Array:
            leaves = leaves_of(opened(model, statics(begin)))
            return weigh(begin, jnp.asarray(1), leaves, state)

        def table(begin: Array, now: tuple[Array, list[Array], list[Array]]) -> Array:
            t, before, leaves = now
            after = jax.vmap(lambda i: left(begin, t - 1, before, i))(states)

            def row(state: list[Array]) -> Array:
                start = placed(leaves, state)
                return jax.vmap(lambda j: weigh(begin, t, start, j))(states)

            return jax.vmap(row)(after)

        def tables(begin: Array) -> Array:
            now = jnp.arange(2, layout.length + 1), [a[:-1] for a in along], [a[1:] for a in along]
            return jax.vmap(lambda *x: table(begin, x))(*now)

        start = jax.vmap(log_start)(begins) if layout.outside else jnp.zeros((1, rows))
        first = jax.vmap(lambda i: jax.vmap(lambda j: opening(i, j))(states))(begins)
        if not layout.direct:
            steps = tables(jnp.asarray(0))
            return jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), FiniteChain(start, first, steps))
        # The first state stays: moves between states with different ones are impossible.
        apart = jnp.where(jnp.eye(len(begins), dtype=bool), 0.0, -jnp.inf)
        count = len(begins) * len(states)
        steps = jnp.moveaxis(jax.vmap(tables)(begins), 0, 1)
        steps = (steps[:, :, :, None] + apart[:, None, :, None, None]).reshape(-1, count, count, rows)
        first = (first[:, None] + apart[:, :, None, None]).reshape(-1, count, rows)
        return jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), FiniteChain(start, first, steps))

    def _by_row(self, model: Model, trace: Mapping[str, Any]) -> Array:
        """Sums of log probabilities by row of the lane."""
        total = jnp.zeros(self._rows)
        for name, site in trace.items():
            log_prob = jnp.asarray(site_log_prob(site))
            if self.layout.lane is None:
                total = total + jnp.sum(log_prob)
            else:
                plate = next(p for p in model.sites[name].plates if p.name == self.layout.lane.plate)
                rows = jnp.moveaxis(log_prob, log_prob.ndim + plate.dim, 0)
                total = total + jnp.sum(rows.reshape(rows.shape[0], -1), 1)
        return total


def _log_weight(chain: FiniteChain, begin: Array, states: Array) -> Scalar:
    moves = jnp.sum(jax.vmap(lambda w, i, j: w[i, j])(chain.steps, states[:-1], states[1:]))
    return chain.start[begin] + chain.first[begin, states[0]] + moves


def forward_backward_of(
    model: Model,
    sites: tuple[str, ...],
    counts: tuple[int, ...],
    terms: dict[str, frozenset[str]],
    parts: Callable[[Mapping[str, Any]], Any],
    max_states: int,
    lanes: bool,
) -> ForwardBackward:
    """The rule for a block of finite discrete sites.

    Args:
        model: The program.
        sites: The latent sites.
        counts: Number of values of each of them.
        terms: Terms of the density, each with the latent sites that it depends on.
        parts: The parameters and the value of a traced site.
        max_states: Most joint states of two steps that follow one another.
        lanes: Whether the rows of a common plate may be solved one by one.

    Raises:
        NotAChain: If the block is no Markov chain along the scan, or too large a one.
    """
    layout, step = layout_of(model, sites, terms, lambda _, site: parts(site), lanes=lanes)
    for i in layout.state:
        kept = [name for name in step.carry[i].sites if name.startswith(carry_source(0)[:6])]
        if kept:
            raise NotAChain("the carry remembers more than the discrete sites of the last step")
    by_name = dict(zip(sites, counts, strict=True))

    def part(names: tuple[str, ...]) -> _Part:
        shapes, axes = [], []
        for name in names:
            site = model.sites[name]
            event = eqx.filter_eval_shape(lambda m, n=name: supports(Joint(m), (n,))[n], model).ndim - 1
            shapes.append(site.shape[site.scanned : len(site.shape) - event])
            axes.append(None if layout.lane is None else site.dims.index(layout.lane.plate) - site.scanned)
        return _Part(names, tuple(by_name[name] for name in names), tuple(shapes), tuple(axes))

    block = ForwardBackward(sites, tuple(terms), layout, part(layout.statics), part(layout.latent))
    rows = 1 if layout.lane is None else layout.lane.size
    count = block.each.states * (block.first.states if layout.direct else 1)
    if max(count, block.first.states) * count > max_states:
        raise NotAChain(f"two steps that follow one another have {count**2} joint states")
    if layout.length * count**2 * rows > _TABLE:
        raise NotAChain(f"the tables of its {layout.length} steps would hold {layout.length * count**2 * rows} numbers")
    return block
