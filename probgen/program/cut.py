"""What the parts of a program with a ``scan`` have to do with one another: found once, by tracing it abstractly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from probgen.base.errors import MethodError, ModelError
from probgen.base.typing import Values
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.provenance import provenance
from probgen.program.scanned import OneStep, after_scan, before_scan, observed
from probgen.program.sites import Kind

__all__ = ["Cut", "cut_of"]

type Shapes = tuple[tuple[str, jax.ShapeDtypeStruct], ...]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A program cut at its scan.

    Attributes:
        size: Steps of the scan.
        reverse: Whether it runs from the last row to the first.
        sites: Latent sites of the body, by name, with the shape of one step.
        drawn: Latent sites before the scan whose values are not given.
        fixed: Those of ``drawn`` that the steps use, other than through the first carry, or an observation behind the
            scan.
        in_rows: Those of ``fixed`` that stand in the rows of ``xs``.
        later: Latent sites behind the scan whose values are not given.
        needed: Those of ``later`` on which an observation depends.
        carry: Shapes of the leaves of the carry.
        tree: The structure of the carry.
        series: Shapes of the leaves, and the structure, of the series that the scan returns.
        in_carry: Latent sites of the body that are a leaf of the new carry, and which.
        in_start: Latent sites before the scan that are a leaf of the first carry, and which.
        weighs_after: Whether an observed site or a factor stands behind the scan.
        keeps: Why a step cannot be told from its latent values alone (the carry remembers more); empty if it can.
    """

    size: int
    reverse: bool
    sites: Shapes
    drawn: Shapes
    fixed: tuple[str, ...]
    in_rows: tuple[str, ...]
    later: Shapes
    needed: tuple[str, ...]
    carry: tuple[jax.ShapeDtypeStruct, ...]
    tree: Any
    series: tuple[tuple[jax.ShapeDtypeStruct, ...], Any]
    in_carry: tuple[tuple[str, int], ...]
    in_start: tuple[tuple[str, int], ...]
    weighs_after: bool
    keeps: str


def cut_of(model: Model, given: Mapping[str, Any]) -> Cut:
    """Cut a program at its scan.

    Args:
        model: The model.
        given: Values of latent sites outside the scan, by name; only their shapes are looked at.

    Raises:
        ModelError: If there is no scan, or more than one, or if a part of it cannot be run step by step.
        MethodError: If a latent site that would have to be drawn has an improper prior.
    """
    _check(model, given)
    arrays, static = eqx.partition(model, eqx.is_array)
    arrays, given = _shapes(arrays), _shapes({name: jnp.asarray(value) for name, value in given.items()})
    found: dict[str, Any] = {}

    def look(arrays: Any, given: Values, key: jax.Array) -> tuple[Any, ...]:
        model = eqx.combine(arrays, static)
        trace, scan = before_scan(model, given, itertools.repeat(key))
        drawn = {name: site["value"] for name, site in _latent(trace) if name not in given}
        step = OneStep(scan, 1, scan.init, (), {})
        sites, (carry, y) = step.trace({}, itertools.repeat(key))
        ys = jax.tree.map(lambda leaf: jnp.zeros((scan.size, *jnp.shape(leaf)), jnp.result_type(leaf)), y)
        after = after_scan(model, {**given, **drawn}, carry, ys, itertools.repeat(key))
        behind = {name: site for name, site in after.items() if name not in trace}
        later = {name: site["value"] for name, site in _latent(behind) if name not in given}
        found.update(size=scan.size, reverse=scan.reverse, weighs_after=bool(observed(behind)))
        found.update(order=[list(drawn), [name for name, _ in _latent(sites)], list(later)])
        return (
            drawn,
            {name: site["value"] for name, site in _latent(sites)},
            later,
            jax.tree.map(jnp.asarray, carry),
            ys,
        )

    drawn, sites, later, carry, ys = jax.eval_shape(look, arrays, given, jax.random.key(0))
    drawn, sites, later = (
        {n: part[n] for n in order} for part, order in zip((drawn, sites, later), found["order"], strict=True)
    )
    leaves, tree = jax.tree.flatten(carry)

    def parts(inputs: dict[str, Any]) -> dict[str, Any]:
        model = eqx.combine(inputs["model"], static)
        before = {**inputs["given"], **{name: inputs[f"before {name}"] for name in drawn}}
        after = {**inputs["given"], **{name: inputs[f"later {name}"] for name in later}}
        here = tree.unflatten([inputs[f"carry {i}"] for i in range(len(leaves))])
        values = {name: inputs[f"site {name}"] for name in sites}
        trace, scan = before_scan(model, before)
        step = OneStep(scan, 1, here, tuple(sites), {})(values)
        behind = after_scan(model, {**before, **after}, here, inputs["ys"])
        terms = {name: site for name, site in observed(behind).items() if name not in trace}
        return {
            **{f"start {i}": leaf for i, leaf in enumerate(jax.tree.leaves(scan.init))},
            "row": jax.tree.map(jnp.asarray, scan.xs),
            **{f"next {i}": leaf for i, leaf in enumerate(jax.tree.leaves(step.carry))},
            "step": (step.log_laws, step.terms, step.log_potential),
            **{f"after {name}": site_log_prob(site) for name, site in terms.items()},
        }

    inputs = {
        "model": arrays,
        "given": given,
        "ys": ys,
        **{f"before {name}": shape for name, shape in drawn.items()},
        **{f"later {name}": shape for name, shape in later.items()},
        **{f"site {name}": shape for name, shape in sites.items()},
        **{f"carry {i}": shape for i, shape in enumerate(leaves)},
    }
    reach = {out: {source.name for source in sources} for out, sources in provenance(parts, inputs).items()}
    series = [
        out.removeprefix("after ") for out, sources in reach.items() if out.startswith("after ") and "ys" in sources
    ]
    if series:
        raise ModelError(
            f"site {series[0]!r} behind the scan depends on the series that the scan returns, so no step would learn "
            f"from it. Observe it in the body of the scan, one row a step: pass its data as xs."
        )
    used = set().union(*(reach[out] for out in reach if not out.startswith("start ")))
    fixed = tuple(name for name in drawn if f"before {name}" in used)
    same = _same(parts, inputs)
    return Cut(
        found["size"],
        found["reverse"],
        tuple(sites.items()),
        tuple(drawn.items()),
        fixed,
        tuple(name for name in fixed if f"before {name}" in reach["row"]),
        tuple(later.items()),
        tuple(name for name in later if f"later {name}" in used),
        tuple(leaves),
        tree,
        (tuple(jax.tree.leaves(ys)), jax.tree.structure(ys)),
        tuple((name, i) for name in sites if (i := same(f"site {name}", "next")) is not None),
        tuple((name, i) for name in drawn if (i := same(f"before {name}", "start")) is not None),
        found["weighs_after"],
        _kept(reach, fixed, carry),
    )


def _check(model: Model, given: Mapping[str, Any]) -> None:
    if model.own_keys:
        raise MethodError(
            "the program calls numpyro.prng_key(), so its density would be random. Write what it draws as "
            "numpyro.sample sites."
        )
    for site in model.sites:
        if site.kind is Kind.param:
            raise MethodError(f"site {site.name!r} is a numpyro.param, which has no prior. Write it as a sample site.")
        if any(plate.subsample < plate.size for plate in site.plates):
            raise MethodError(
                f"site {site.name!r} stands in a plate that sees only part of its rows, and a particle needs all of "
                f"them. Drop subsample_size."
            )
        if site.latent and not site.proper and site.name not in given:
            raise MethodError(
                f"site {site.name!r} has an improper prior, which particles cannot be drawn from. Give it a proper one."
            )


def _latent(trace: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(n, site) for n, site in trace.items() if site["type"] == "sample" and not site["is_observed"]]


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), tree)


def _same(parts: Any, inputs: dict[str, Any]) -> Any:
    """A function that tells which output of a kind *is* a given input, passed on as it came."""
    closed, shapes = jax.make_jaxpr(parts, return_shape=True)(inputs)
    names_in = [name for name in sorted(inputs) for _ in jax.tree.leaves(inputs[name])]
    names_out = [name for name in sorted(shapes) for _ in jax.tree.leaves(shapes[name])]
    variables = dict(zip(names_in, closed.jaxpr.invars, strict=True))
    outputs = dict(zip(names_out, closed.jaxpr.outvars, strict=True))

    def same(name: str, kind: str) -> int | None:
        for out, variable in outputs.items():
            if out.startswith(f"{kind} ") and variable is variables[name]:
                return int(out.split()[1])
        return None

    return same


def _kept(reach: dict[str, set[str]], fixed: tuple[str, ...], carry: Any) -> str:
    """Why a new carry is no function of the latent values of its step, in words; empty if it is."""
    if fixed:
        return f"site {fixed[0]!r} is drawn with each particle and used by every step"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    # What is the same for all particles (a clock, say) may pass from carry to carry.
    latent = ("site ", "before ", "later ")
    moves = [any(s.startswith(latent) for s in reach[f"next {i}"] | reach[f"start {i}"]) for i in range(len(paths))]
    while True:
        more = [
            m or any(moves[j] and f"carry {j}" in reach[f"next {i}"] for j in range(len(paths)))
            for i, m in enumerate(moves)
        ]
        if more == moves:
            break
        moves = more
    for i, path in enumerate(paths):
        if any(moves[j] and f"carry {j}" in reach[f"next {i}"] for j in range(len(paths))):
            return f"the carry of the scan{f' (its part {path})' if path else ''} is made from the carry before it"
    return ""
