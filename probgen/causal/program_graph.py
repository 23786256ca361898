"""The causal graph of a program's units.

A program says more than how the variables of one unit cause one another: it also holds what all units share. Sites
with an axis of the units (a plate of an observed site, or its rows) are variables; those without one are parameters of
mechanisms, the same for every unit, and join nothing. What varies with the units and is not observed confounds what it
reaches, and so does what varies with groups of units: ``with plate("school", 20): a ~ Normal()`` is a hidden cause of
all that uses ``a`` within that plate. Where units look up their group, as in ``a[school]``, the lookup is the variable:
``a`` is a table, and whoever knows ``school`` can adjust for it.

Arguments that vary with the units (covariates, group labels) are nodes as well, of which the program says only what
they do. They may depend on one another in any way, so that hidden causes join each pair of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

from probgen.base.errors import ModelError, suggestion
from probgen.causal.graph import CausalGraph
from probgen.program.graph import arguments_of, graph_of
from probgen.program.model import Model
from probgen.program.simulate import halves

__all__ = ["graph_of_program"]

_CONSTANT = "an array outside of the arguments"
_OWN = "other units' values of a site, used as an argument"
_UNNAMED = frozenset({_CONSTANT, _OWN})
"""What varies with the units and has no name by which it could be a column of data."""


@dataclasses.dataclass(frozen=True)
class _Units:
    """Which axes belong to the units: names of plates, and lengths of axes."""

    plates: frozenset[str]
    lengths: frozenset[int]
    single: bool
    """Whether the program is about one unit: nothing observed has an axis."""

    def vary(self, plates: Iterable[str], shape: tuple[int, ...]) -> bool:
        return self.single or bool(self.plates.intersection(plates) or self.lengths.intersection(shape))


def graph_of_program(model: Model, hidden: frozenset[str], keep: frozenset[str]) -> CausalGraph:
    """The causal graph of a program, as ``pg.causal.graph`` returns it.

    Args:
        model: The model.
        hidden: Observed sites or arguments to take as hidden.
        keep: Latent sites of the units, deterministic sites, or plates of groups, to take as nodes.
    """
    sites = graph_of(model)
    for name in hidden | keep:
        known = {*sites, *sites.graph["plates"], *model.leaves}
        if name not in known:
            what = "hidden=" if name in hidden else "keep="
            raise ModelError(f"{what} names {name!r}, which is not in the program. {suggestion(name, known)}")
    units = _units(sites, keep)
    varying = {
        name
        for name, data in sites.nodes(data=True)
        if data["kind"] != "param" and units.vary(data["plates"], data["shape"])
    }
    for name in sorted(keep.intersection(sites) - varying):
        raise ModelError(
            f"keep= names {name!r}, which does not vary with the units, so that it is a parameter and no variable. Leave "
            f"it out."
        )
    arguments = _arguments(model, sites, units)
    _refuse(sites, varying, arguments)

    tables = {
        name: plates
        for name in varying
        if (plates := units.plates.intersection(sites.nodes[name]["plates"]))
        and sites.nodes[name]["kind"] in ("continuous", "discrete")
        and name not in keep
        and plates <= keep
    }
    whole = nx.DiGraph()
    whole.add_nodes_from(n for n in sites if n in varying and n not in tables and sites.nodes[n]["kind"] != "factor")
    for child in sites:
        if sites.nodes[child]["kind"] == "factor":
            continue
        sources = {name for name in sites.predecessors(child) if name != child} | arguments.get(child, set())
        for source in sources:
            for cause in tables.get(source, frozenset([source])):
                whole.add_edge(cause, child)
    given = {name for names in arguments.values() for name in names} | (keep & set(sites.graph["plates"]))
    computed = [
        name
        for name, data in sites.nodes(data=True)
        if data["kind"] == "deterministic" and not data["intervened"] and name not in keep
    ]
    for name in computed:  # a deterministic site has no noise of its own: it only passes on
        if name in whole:
            whole.add_edges_from((a, b) for a in list(whole.pred[name]) for b in list(whole.succ[name]))
            whole.remove_node(name)
    shared = [name for name in sites if name not in varying or name in tables]
    absent = _absent(model, sites, shared, computed, given)
    whole.remove_nodes_from(shared)  # parameters are the same for all units
    whole.add_nodes_from(sorted(given))

    latent = _latent(sites, whole, keep)
    made = CausalGraph(
        tuple(whole),
        frozenset(whole.edges),
        frozenset(frozenset(pair) for pair in combinations(sorted(given), 2)),
        absent=absent,
        given=frozenset(given - _UNNAMED),
    )
    gone = latent | (given & _UNNAMED) | made.require(hidden, "hidden=")
    if len(gone) == len(made.nodes):
        raise ModelError(
            "no site of the program is observed for its units, so its causal graph would have no node. Give the data, "
            "or name the sites in keep=."
        )
    projected = made.project(gone)
    reasons = {
        name: f"it is a latent site, which varies with the units and is hidden. Name it in keep={name!r}."
        for name in latent
    }
    return dataclasses.replace(projected, absent={**projected.absent, **reasons})


def _units(sites: nx.DiGraph, keep: frozenset[str]) -> _Units:
    observed = [name for name, data in sites.nodes(data=True) if data["kind"] == "observed"]
    # Where nothing is observed, what the program ends with cannot be a parameter.
    ends = [n for n in sites if not sites.out_degree(n) and sites.nodes[n]["kind"] in ("continuous", "discrete")]
    seen = observed or sorted(keep.intersection(sites)) or ends
    plates = {plate for name in seen for plate in sites.nodes[name]["plates"]}
    lengths = {size for plate, size in sites.graph["plates"].items() if plate in plates}
    # Without a plate, the first axis is that of the rows; all axes of a site in plates but the plates are its own.
    lengths |= {d["shape"][0] for n in seen if (d := sites.nodes[n])["shape"] and not d["plates"]}
    return _Units(frozenset(plates), frozenset(lengths - {1}), not lengths)


def _arguments(model: Model, sites: nx.DiGraph, units: _Units) -> dict[str, set[str]]:
    """By site, the arguments that vary with the units and reach it directly."""
    scaffold = halves(model)
    varies = {
        name
        for name, leaf in model.leaves.items()
        if units.vary((), tuple(size for part in jax.tree.leaves(leaf) for size in jnp.shape(part)))
    }
    observed: dict[str, str] = {}
    for site in model.sites:
        if site.source is not None and site.source[0] == "data":
            observed[site.source[1]] = scaffold.get(site.name, site.name)

    def constant(array: Any) -> str | None:
        random = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        if random or not array.shape or not units.vary((), array.shape):
            return None
        rows = np.asarray(array)
        return None if (rows == rows.flat[0]).all() else _CONSTANT

    found: dict[str, set[str]] = {}
    for half, names in arguments_of(model, constant).items():
        site = scaffold.get(half, half)
        if site not in sites or half in scaffold.values():  # the missing values and the others put together
            continue
        for name in names & (varies | {_CONSTANT}):
            owner = observed.get(name)
            if owner is None:
                found.setdefault(site, set()).add(name)
            elif owner == site:  # an earlier value, as in Y[1:] given Y[:-1]
                found.setdefault(site, set()).add(_OWN)
            elif units.vary(sites.nodes[site]["plates"], sites.nodes[site]["shape"]):
                raise ModelError(
                    f"site {site!r} uses the argument {name!r} and not the value of the site {owner!r} that observes "
                    f"it, so that setting {owner!r} would not reach {site!r}. Write {name} = "
                    f"numpyro.sample({owner!r}, ..., obs={name}), and use that value."
                )
    return found


def _refuse(sites: nx.DiGraph, varying: set[str], arguments: dict[str, set[str]]) -> None:
    """Raise for dependence that no acyclic graph of the sites shows."""
    for name, data in sites.nodes(data=True):
        if data["kind"] != "factor":
            continue
        tied = sorted(varying.intersection(sites.predecessors(name)) | arguments.get(name, set()))
        if tied:
            raise ModelError(
                f"the factor {name!r} ties {', '.join(map(repr, tied))} together without saying what causes what. "
                f"Write it as a site with a distribution, numpyro.sample(..., obs=...)."
            )
    for a, b, lagged in sites.edges(data="lagged"):
        if lagged and {a, b} <= varying:
            raise ModelError(
                f"site {b!r} depends on {a!r} of an earlier step of the scan, and the graph of the sites has one node "
                f"for all steps. Write the steps as sites of their own ({b}_0, {b}_1, ...) in a Python loop."
            )


def _latent(sites: nx.DiGraph, whole: nx.DiGraph, keep: frozenset[str]) -> frozenset[str]:
    """The sites that nobody observes; none where nothing at all is observed, as before there are data."""
    if not keep.intersection(sites) and not any(data["kind"] == "observed" for _, data in sites.nodes(data=True)):
        return frozenset()
    return frozenset(
        name
        for name in whole
        if name in sites and sites.nodes[name]["kind"] in ("continuous", "discrete") and name not in keep
    )


def _absent(model: Model, sites: nx.DiGraph, shared: list[str], computed: list[str], given: set[str]) -> dict[str, str]:
    """Why what the program names is no node."""
    reasons = {
        name: (
            "it is an argument of the program that does not vary with the units, or reaches no site. Write it as a "
            f"site, {name} = numpyro.sample({name!r}, ..., obs={name})."
        )
        for name in model.leaves
        if name not in given and name not in sites
    }
    for name in shared:
        reasons[name] = "it does not vary with the units, so that it is a parameter. Ask about what varies with them."
    for name in computed:
        reasons[name] = f"it is a deterministic site, which the graph passes through. Name it in keep={name!r}."
    return reasons
