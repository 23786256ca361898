"""The ``scan`` of a program, opened: one step at a time, with given values; and whether it is a Markov chain.

A step reads the sites outside of the scan (*statics*), the carry and the rows of ``xs``. Which parts of the carry hold
the state is told by following the traced operations: a leaf is *live* where a latent site reaches it, and it belongs to
the state where it reaches, now or later, a term of the density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import ModelError
from probgen.base.typing import Values
from probgen.program.degree import Dependence, dependences
from probgen.program.model import Model
from probgen.program.scanned import OneStep, Scan, before_scan
from probgen.program.sites import Kind

__all__ = [
    "Lane",
    "Layout",
    "NotAChain",
    "StepDependence",
    "all_of",
    "carries",
    "carry_source",
    "grown",
    "layout_of",
    "leaves_of",
    "one_step",
    "opened",
    "step_dependences",
]


class NotAChain(Exception):
    """Why a block is no Markov chain along a ``scan``; a clause for a message."""


def opened(model: Model, values: Values) -> Scan:
    """The scan of a program, with latent sites before it at ``values``; those without a value stand at zero."""
    zeros = {s.name: jnp.zeros(s.shape, s.dtype) for s in model.of_kind(Kind.continuous, Kind.discrete)}
    return before_scan(model, {**zeros, **values})[1]


def leaves_of(scan: Scan) -> list[Array]:
    """The leaves of the first carry."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(scan.init)]


def one_step(scan: Scan, t: Array, leaves: list[Array], values: Values) -> tuple[list[Array], dict[str, Any]]:
    """Run one step.

    Args:
        scan: The scan.
        t: Number of the step, from 1.
        leaves: The leaves of the carry.
        values: Values of the latent sites of the body, of this step.

    Returns:
        The leaves of the new carry, and the trace of the sites.
    """
    carry = jax.tree.unflatten(jax.tree.structure(scan.init), leaves)
    trace, (new, _) = OneStep(scan, t, carry, tuple(values), {}).trace(values, iter(()))
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(new)], trace


def carries(scan: Scan, values: Values) -> list[Array]:
    """The leaves of the carry before each step, with leading axis ``size``, for values of all rows."""

    def step(leaves: list[Array], t: Array) -> tuple[list[Array], list[Array]]:
        row = scan.row(t)
        new, _ = one_step(scan, t, leaves, {name: value[row] for name, value in values.items()})
        return [jnp.astype(a, old.dtype) for a, old in zip(new, leaves, strict=True)], leaves

    def types(leaves: list[Array]) -> list[Array]:
        return one_step(scan, jnp.asarray(1), leaves, {name: value[0] for name, value in values.items()})[0]

    # A Python number, or a weak type, becomes what the body makes of it.
    begin = leaves_of(scan)
    made = jax.eval_shape(types, begin)
    begin = [leaf.astype(shape.dtype) for leaf, shape in zip(begin, made, strict=True)]
    return jax.lax.scan(step, begin, jnp.arange(1, scan.size + 1))[1]


# -- is it a chain? ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Lane:
    """A plate over all sites of a chain: one chain per row, which do not know of one another.

    Attributes:
        plate: Name of the plate.
        size: Number of rows.
        state: For each leaf of the state, which of its axes is the plate.
    """

    plate: str
    size: int
    state: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a block of sites is a Markov chain along a scan.

    Attributes:
        length: Number of steps.
        reverse: Whether they run from the last row to the first.
        statics: Latent sites outside of the scan.
        direct: Those of them that the steps read, other than through the first carry.
        latent: Latent sites of the scan.
        inside: Terms of the density in the scan.
        outside: Terms of the density outside of it; they depend on statics only.
        state: Leaves of the carry that hold the state.
        shapes: Their shapes.
        lane: The plate that all sites share, where there is one.
    """

    length: int
    reverse: bool
    statics: tuple[str, ...]
    direct: tuple[str, ...]
    latent: tuple[str, ...]
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    state: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    lane: Lane | None


class StepDependence(NamedTuple):
    """How a step depends on latent sites and on live leaves of the carry (named as ``carry_source`` does)."""

    init: list[Dependence]
    carry: list[Dependence]
    terms: dict[str, Any]


def carry_source(leaf: int) -> str:
    """Name under which a leaf of the carry stands among dependences."""
    return f"<carry {leaf}>"


def step_dependences(
    model: Model,
    live: frozenset[int],
    parts: Callable[[str, dict[str, Any]], Any],
    moving: frozenset[str] | None = None,
) -> StepDependence:
    """Follow the operations of one step.

    Args:
        model: The program.
        live: Leaves of the carry to follow; the others count as constants.
        parts: Makes of a name and a traced site a pytree of arrays.
        moving: Latent sites to follow; the others count as constants. All where none is given.
    """
    arrays, static = eqx.partition(model, eqx.is_array)
    first = eqx.filter_eval_shape(lambda m: leaves_of(opened(m, {})), model)
    names = [site.name for site in model.of_kind(Kind.continuous, Kind.discrete)]
    inside = [name for name in names if model.sites[name].scanned]
    values = {n: jax.ShapeDtypeStruct(model.sites[n].shape[n in inside :], model.sites[n].dtype) for n in names}
    still = {n: values.pop(n) for n in names if moving is not None and n not in moving}
    followed = {carry_source(i): first[i] for i in live}
    others = [leaf for i, leaf in enumerate(first) if i not in live]

    def run(values: Values, still: Values, others: list[Array], t: Array, arrays: Any) -> tuple[Any, ...]:
        latent = {n: still[n] if n in still else values[n] for n in names}
        scan = opened(eqx.combine(arrays, static), {n: latent[n] for n in names if n not in inside})
        rest = iter(others)
        leaves = [values[carry_source(i)] if i in live else next(rest) for i in range(len(first))]
        new, trace = one_step(scan, t, leaves, {n: latent[n] for n in inside})
        terms = {name: parts(name, site) for name, site in trace.items() if site["type"] == "sample"}
        return leaves_of(scan), new, jax.tree.map(jnp.asarray, terms)

    index = jax.ShapeDtypeStruct((), jnp.result_type(int))
    return StepDependence(*dependences(run, {**values, **followed}, still, others, index, arrays))


def _names_in(model: Model) -> tuple[list[str], int, bool]:
    """Names of the sample sites in the scan, its length, and whether it is reversed."""
    names: list[str] = []
    length, reverse = 0, False

    def look(model: Model) -> None:
        nonlocal length, reverse
        scan = opened(model, {})
        inside = [s for s in model.of_kind(Kind.continuous, Kind.discrete) if s.scanned]
        zeros = {s.name: jnp.zeros(s.shape[1:], s.dtype) for s in inside}
        _, trace = one_step(scan, jnp.asarray(1), leaves_of(scan), zeros)
        names.extend(name for name, site in trace.items() if site["type"] == "sample")
        length, reverse = scan.size, scan.reverse

    eqx.filter_eval_shape(look, model)
    return names, length, reverse


def all_of(tree: Any) -> Dependence:
    """The dependence of all arrays of a pytree together."""
    total = Dependence()
    for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Dependence)):
        total = total | leaf
    return total


def layout_of(
    model: Model,
    sites: tuple[str, ...],
    terms: dict[str, frozenset[str]],
    parts: Callable[[str, dict[str, Any]], Any],
    *,
    lanes: bool,
    moving: frozenset[str] | None = None,
) -> tuple[Layout, StepDependence]:
    """How a block is a Markov chain along a scan.

    Args:
        model: The program.
        sites: The latent sites of the block.
        terms: The terms of the density that depend on them, each with all latent sites that it depends on.
        parts: See ``step_dependences``.
        lanes: Whether to solve the rows of a common plate one by one.
        moving: Latent sites to follow; the others are held. All where none is given.

    Returns:
        The layout, and how a step depends on the latent sites and on the live leaves.

    Raises:
        NotAChain: If it is none; the message says why.
    """
    latent = tuple(name for name in sites if model.sites[name].scanned)
    if not latent:
        raise NotAChain("no site of it stands in a scan")
    try:
        names, length, reverse = _names_in(model)
    except ModelError as error:
        raise NotAChain(str(error).split(". ")[0]) from error
    if latent[0] not in names:
        raise NotAChain(f"site {latent[0]!r} stands in a second scan")
    inside = tuple(name for name in terms if name in names)
    outside = tuple(name for name in terms if name not in names)
    statics = tuple(name for name in sites if name not in names)
    for name in outside:
        if terms[name] & set(latent):
            raise NotAChain(f"site {name!r} outside of the scan depends on {min(terms[name] & set(latent))!r} in it")
    leaves = eqx.filter_eval_shape(lambda m: leaves_of(opened(m, {})), model)
    everything = step_dependences(model, frozenset(range(len(leaves))), parts, moving)
    latents = {s.name for s in model.of_kind(Kind.continuous, Kind.discrete)}
    latents = latents if moving is None else latents & moving
    live = grown({i for i, d in enumerate(everything.init) if d.sites}, everything.carry, latents)
    followed = step_dependences(model, frozenset(live), parts, moving)
    reached = frozenset().union(*(all_of(followed.terms[name]).sites for name in inside))
    relevant = {i for i in live if carry_source(i) in reached}
    while True:
        back = frozenset().union(*(followed.carry[i].sites for i in relevant))
        more = {i for i in live if carry_source(i) in back} - relevant
        if not more:
            break
        relevant |= more
        reached = reached | back
    reached = reached | frozenset().union(*(followed.carry[i].sites for i in relevant))
    state = tuple(sorted(relevant))
    direct = tuple(name for name in statics if name in reached)
    shapes = tuple(tuple(leaves[i].shape) for i in state)
    lane = _lane(model, (*inside, *outside), direct, shapes) if lanes else None
    return Layout(length, reverse, statics, direct, latent, inside, outside, state, shapes, lane), followed


def grown(live: set[int], carry: list[Dependence], latents: set[str]) -> set[int]:
    """The live leaves: what latent sites reach, through other leaves too."""
    while True:
        sources = latents | {carry_source(i) for i in live}
        more = {i for i, d in enumerate(carry) if d.sites & sources} - live
        if not more:
            return live
        live = live | more


def _lane(
    model: Model, terms: tuple[str, ...], direct: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> Lane | None:
    """The largest plate that all terms share; None where there is none, or where the rows share a static site."""
    if direct:
        return None
    common = set.intersection(*({p.name for p in model.sites[name].plates} for name in terms))
    sizes = {p.name: p for p in model.sites[terms[0]].plates if p.name in common}
    for plate in sorted(sizes.values(), key=lambda p: -p.size):
        if not all(plate.name in model.sites[name].dims for name in terms):
            continue
        axes = []
        for shape in shapes:
            fits = [axis for axis, size in enumerate(shape) if size == plate.size]
            usual = len(shape) + plate.dim
            if fits:
                axes.append(usual if usual in fits else fits[0])
        if len(axes) == len(shapes):
            return Lane(plate.name, plate.size, tuple(axes))
    return None
