"""All worlds of one unit or population, for every posterior draw, in one compiled program.

Per draw: the factual world, the noise in it, then the other worlds level by level (a world comes after those that it
refers to). Worlds of one level that only set sites run side by side on an axis of their own; those that compute, draw
or change mechanisms are executions of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Values
from probgen.infer.replayed import reported
from probgen.program.model import Model
from probgen.program.simulate import trace_forward
from probgen.program.sites import Kind
from probgen.program.structural import Assumption, Change, Fix, Operation, abduct, descendants, run_world

__all__ = ["Plan", "Refer", "evaluate"]


class Refer(eqx.Module):
    """Take the value of a site in another world, by its number; -1 is the factual one."""

    world: int = eqx.field(static=True)
    site: str = eqx.field(static=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compiled in.

    Attributes:
        kept: Observed sites that keep their observations.
        drawn: Sites whose factual value is drawn from its distribution.
        levels: Numbers of the worlds, those that others refer to first.
        assume: Assumptions by site.
        sites: Sites to return; ``None`` for all that some world may change.
        evidence: Whether the factual world is that of the observations, so that nothing may be drawn upstream of them.
    """

    kept: frozenset[str]
    drawn: frozenset[str]
    levels: tuple[tuple[int, ...], ...]
    assume: tuple[tuple[str, Assumption], ...]
    sites: tuple[str, ...] | None
    evidence: bool


def evaluate(
    model: Model,
    key: PRNGKey,
    operations: Sequence[Mapping[str, Operation | Refer]],
    indices: Array,
    held: Values,
    plan: Plan,
) -> tuple[tuple[Values, Values, dict[str, Any], Values], dict[str, str]]:
    """Run all worlds at many posterior draws.

    Args:
        model: The model.
        key: The seed; draw ``i`` uses ``fold_in(key, i)``.
        operations: What is done, by world and site.
        indices: Which draws, shape ``(n,)``.
        held: Latent sites, with a leading axis ``n``.
        plan: What is compiled in.

    Returns:
        Values in the worlds, ``(n, worlds, ...)``; factual values, ``(n, ...)``; noise; how many entries have no noise
        that would give their value, ``(n,)``; and the assumption of each site with noise, in words.

    Raises:
        ModelError: If a site that a world may change has no known mechanism.
        MethodError: If a site without value stands upstream of an observation.
    """
    done = frozenset(name for world in operations for name in world)
    changed = frozenset(name for world in operations for name, what in world.items() if isinstance(what, Change))
    affected = descendants(model, done) if done else frozenset[str]()
    if plan.evidence and plan.drawn:
        _check_upstream(model, plan)
    assume = dict(plan.assume)
    needed = frozenset(s.name for s in model.sites if s.name in affected | changed and _is_random(s.kind))
    wanted = plan.kept | plan.drawn
    names = plan.sites or tuple(n for n in reported(model) if n in affected | done)
    said: dict[str, str] = {}

    def one(index: Array, held: Values) -> tuple[Values, Values, dict[str, Any], Values]:
        nonlocal said
        key_unit, key_noise, key_new = jax.random.split(jax.random.fold_in(key, index), 3)
        traced = trace_forward(model, key_unit, held, plan.kept)
        factual = {n: site["value"] for n, site in traced.items() if site["type"] in ("sample", "deterministic")}
        standing = {n: site["value"] for n, site in traced.items() if site["type"] in ("sample", "param")}
        noises, impossible, said = abduct(model, key_noise, traced, needed, wanted, assume)

        def run(what: Mapping[str, Operation]) -> Values:
            return run_world(model, key_new, standing, noises, affected, what, assume)

        results: dict[int, Values] = {-1: factual}
        for level in plan.levels:
            todo = {world: _resolved(operations[world], results) for world in level}
            plain = [w for w, what in todo.items() if all(isinstance(x, Fix) for x in what.values())]
            if len(plain) > 1:
                side_by_side = jax.vmap(run)(_stacked([todo.pop(w) for w in plain], factual))
                results |= {w: {n: x[i] for n, x in side_by_side.items()} for i, w in enumerate(plain)}
            results |= {w: run(what) for w, what in todo.items()}
        worlds = {n: jnp.stack([jnp.asarray(results[w][n]) for w in range(len(operations))]) for n in names}
        shown = {n: jnp.asarray(factual[n]) for n in (*names, *plan.drawn) if n in factual and n not in plan.kept}
        return worlds, shown, noises, impossible

    return jax.vmap(one)(indices, held), said


def _is_random(kind: Kind) -> bool:
    return kind in (Kind.continuous, Kind.discrete, Kind.observed)


def _check_upstream(model: Model, plan: Plan) -> None:
    for name in sorted(plan.drawn):
        below = sorted(descendants(model, [name]) & plan.kept)
        if below:
            raise MethodError(
                f"site {name!r} has neither a value nor draws, but site {below[0]!r}, which depends on it, is observed: "
                f"the evidence says something about {name!r}. Infer it: fit the model to this evidence with pg.infer."
            )


def _resolved(world: Mapping[str, Operation | Refer], results: Mapping[int, Values]) -> dict[str, Operation]:
    return {
        name: Fix(jnp.asarray(results[what.world][what.site])) if isinstance(what, Refer) else what
        for name, what in world.items()
    }


def _stacked(worlds: Sequence[Mapping[str, Any]], factual: Values) -> dict[str, Fix]:
    """What several worlds set, on a leading axis; a mask says where a world sets nothing."""
    stacked: dict[str, Fix] = {}
    for name in dict.fromkeys(name for world in worlds for name in world):
        shape = jnp.shape(factual[name])
        values = [jnp.asarray(w[name].value if name in w else factual[name]) for w in worlds]
        masks = [w[name].mask if name in w else jnp.asarray(False) for w in worlds]
        everywhere = all(mask is None for mask in masks)
        full = [jnp.asarray(True) if mask is None else mask for mask in masks]
        entrywise = any(mask.ndim for mask in full)
        full = [jnp.broadcast_to(mask, shape if entrywise else ()) for mask in full]
        stacked[name] = Fix(jnp.stack(values), None if everywhere else jnp.stack(full))
    return stacked
