"""The directed graph of a program: which site's distribution, or value, is computed from which other sites.

Edges are found by giving every site a value of its own and following these values through the traced program to the
parameters of each distribution and to the value of each deterministic site. So an edge means direct dependence (not
through another site), and arguments of the program are no nodes. In a ``scan``, what comes from an earlier step is
marked as lagged; without lagged edges the graph is acyclic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers

from probgen.base.errors import ModelError
from probgen.program.handlers import Message, _Reaching, base_of
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.provenance import provenance
from probgen.program.simulate import halves
from probgen.program.sites import start_value

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

__all__ = ["draw_graph", "graph_of"]

_COMPUTED = " (computed)"


def graph_of(model: Model) -> networkx.DiGraph:
    """The directed graph of a model's sites.

    Args:
        model: The model; interventions cut the edges into a site, conditions make it observed.

    Returns:
        A graph with one node per site (an ``obs_mask`` site is one node, with ``partly_observed=True``) and edges from
        parent to child. Nodes have the attributes ``kind`` (``continuous``, ``discrete``, ``observed``,
        ``deterministic``, ``factor`` or ``param``), ``distribution``, ``support``, ``shape``, ``dims``, ``plates``
        (names, outermost first), ``scan`` (name of the time axis, or ``None``) and ``intervened``. Edges have
        ``lagged``: whether the dependence is on earlier steps of a scan only. The graph has ``plates`` and ``scans``:
        sizes by name.
    """
    import networkx

    parents, scan_of = _parents(model)
    scaffold = halves(model)
    graph = networkx.DiGraph(plates={}, scans={})
    for site in model.sites:
        if site.name in scaffold:
            continue
        half = model.sites[f"{site.name}_observed"] if site.name in scaffold.values() else None
        shown = half or site
        graph.add_node(
            site.name,
            kind="observed" if half else site.kind.name,
            distribution=shown.distribution,
            support=shown.support,
            shape=site.shape,
            dims=shown.dims,
            plates=tuple(plate.name for plate in shown.plates[::-1]),
            scan=shown.dims[0] if shown.scanned and shown.dims else None,
            intervened=site.name in model.world or site.name in dict(model.mechanisms),
            partly_observed=half is not None,
        )
        graph.graph["plates"] |= {plate.name: plate.size for plate in shown.plates}
        if shown.scanned and shown.dims:
            graph.graph["scans"][shown.dims[0]] = shown.shape[0]
    for child, sources in parents.items():
        for source in sources:
            parent, node = scaffold.get(source.name, source.name), scaffold.get(child, child)
            if parent == node and not source.lagged:
                continue
            # What leaves a scan is no longer lagged to those who use it outside.
            lagged = source.lagged and child in scan_of and scan_of[child] == scan_of.get(source.name)
            if parent == node and not lagged:
                continue
            before = graph.edges.get((parent, node), {"lagged": True})["lagged"]
            graph.add_edge(parent, node, lagged=before and lagged)
    return graph


def draw_graph(model: Model, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the graph of a model.

    Observed sites are shaded, deterministic ones have a dashed outline, factors are small squares, plates and scans are
    labelled rectangles; lagged edges are dotted.

    Args:
        model: The model.
        path: Where to write the picture; its suffix (``.png``, ``.svg``, ``.pdf``) says how.

    Returns:
        A matplotlib figure, made without pyplot.

    Raises:
        ModelError: If the program has no site.
    """
    from probgen.program.drawing import drawn

    if not model.sites:
        raise ModelError("the program has no site, so there is nothing to draw. Write numpyro.sample statements.")
    figure = drawn(graph_of(model))
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure


def arguments_of(model: Model, constants: Callable[[Any], str | None]) -> dict[str, frozenset[str]]:
    """The arguments that each site's distribution, or value, is computed from without passing through another site.

    Masks and scales around a distribution do not count.

    Args:
        model: The model.
        constants: A name for an array that the program finds outside of its arguments, under which it counts as an
            argument; ``None`` for one that does not.

    Returns:
        By name of the site (either half of an ``obs_mask`` site has its own), names of arguments.
    """
    stems = {f"argument {name}": name for name in model.leaves}

    def computed(values: dict[str, Any]) -> dict[str, Any]:
        leaves = {name: values[label] for label, name in stems.items()}
        tag = _Tag(model._bind(leaves, {}, model.world), {k: v for k, v in values.items() if k not in stems})
        return _computed(tag, lambda site: _numbers({**site, "fn": base_of(site["fn"]), "scale": None}))

    inputs = {**_values(model), **{label: model.leaves[name] for label, name in stems.items()}}
    found = provenance(computed, inputs, constants)
    return {
        name: frozenset(stems.get(s.name, s.name) for s in sources if s.name in stems or s.name not in inputs)
        for name, sources in found.items()
    }


class _Tag(_Reaching):
    """Give every site a value from outside, and remember which scan each stands in."""

    def __init__(self, program: Callable[[], Any], values: Mapping[str, Any]) -> None:
        super().__init__(program)
        self.values = values
        self.scan_of: dict[str, int] = {}
        self._scans = 0

    def _wrap_body(self, msg: Message) -> None:
        self._scans += 1
        super()._wrap_body(msg)

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        if msg["type"] not in ("sample", "deterministic", "param") or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        if msg["type"] == "deterministic":
            numpyro.deterministic(msg["name"] + _COMPUTED, msg["value"])
        if step is not None:
            self.scan_of[msg["name"]] = self._scans
            value = jax.tree.map(lambda series: series[step], value)
        msg["value"] = value


def _parents(model: Model) -> tuple[dict[str, Any], dict[str, int]]:
    """The sources that reach each site, and the scan that a site stands in."""
    program = model._bind(model.leaves, {}, model.world)
    tag = _Tag(program, {})

    def computed(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal tag
        tag = _Tag(program, values)
        return _computed(tag, _numbers)

    return provenance(computed, _values(model)), tag.scan_of


def _values(model: Model) -> dict[str, Any]:
    """Shapes of the value of each site."""
    program = model._bind(model.leaves, {}, model.world)

    def values() -> dict[str, Any]:
        started = handlers.seed(handlers.substitute(program, substitute_fn=start_value), jax.random.key(0))
        kinds = ("sample", "deterministic", "param")
        return {
            name: site["value"] for name, site in handlers.trace(started).get_trace().items() if site["type"] in kinds
        }

    return jax.eval_shape(values)


def _computed(tag: _Tag, numbers: Callable[[Message], list[Array]]) -> dict[str, Any]:
    """By site, the numbers of its distribution, or its value, computed from the values that ``tag`` gives."""
    traced = handlers.trace(handlers.seed(tag, jax.random.key(0))).get_trace()
    found: dict[str, Any] = {}
    for name, site in traced.items():
        if site["type"] == "sample":
            found[name] = numbers(site)
        elif site["type"] == "deterministic" and name.endswith(_COMPUTED):
            found[name.removesuffix(_COMPUTED)] = site["value"]
    return found


def _numbers(site: Message) -> list[Array]:
    """The parameters of a distribution, and its log density for those that it keeps out of sight."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(site["fn"]) if isinstance(leaf, Array | float | int)]
    try:
        return [*leaves, site_log_prob(site)]
    except NotImplementedError:
        return leaves
