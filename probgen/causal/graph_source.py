"""A causal graph from whatever says what causes what: a program, text, or networkx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probgen.base.errors import ModelError
from probgen.causal.graph import CausalGraph, Names, names_of
from probgen.causal.graph_text import Drawing, read_text
from probgen.program.model import Model

if TYPE_CHECKING:
    import networkx

__all__ = ["as_networkx", "graph"]


def graph(source: Any, hidden: Names = (), *, keep: Names = ()) -> CausalGraph:
    """Make a causal graph.

    Args:
        source: One of

            - a ``pg.Model``: nodes are the observed sites of the units, see the notes;
            - edges as text, ``"W->X; X->Y; X<->Y"``, with chains ``A->B->C`` and ``<-``; ``<->`` says that two nodes
              share a hidden cause; a name alone is a node without edges;
            - DOT (``digraph {...}``; ``dir=both``, or two dashed edges, one each way, for a hidden cause;
              ``observed=no`` for a hidden node);
            - dagitty (``dag {...}``; ``[latent]`` for a hidden node);
            - lavaan (``y ~ x + m``, ``x ~~ y``, ``f =~ y1 + y2``, where ``f`` is hidden);
            - a directed graph of networkx (``bidirected=True`` at an edge for a hidden cause, ``latent=True`` at a
              node for a hidden one).
        hidden: Further nodes that nobody observes. They are projected out: what they do to others becomes edges.
        keep: For a program: deterministic sites, latent ones of the units, or plates of groups (the group that a unit is
            in), that shall be nodes.

    Returns:
        The graph of the observed nodes, with what is hidden projected into its edges.

    Raises:
        ModelError: If the source cannot be read, has a cycle or an edge from a node to itself, or does not have a name
            in ``hidden`` or ``keep``; if a program has factors between units or dependence over time that no acyclic
            graph of its sites shows.

    Notes:
        Of a program, the nodes are the sites that vary with the units: those in the plates, or with the rows, of the
        observed sites. Sites without them (priors of coefficients, scales) are parameters: they say how a mechanism
        works, not what happened to a unit. A latent site that varies with the units, or with groups of them, is a
        hidden cause of the units. Deterministic sites are projected through. Arguments that vary with the units
        (covariates, group labels) are nodes as well, but nothing can be asked about setting them: a treatment must be a
        site, ``T = numpyro.sample("T", ..., obs=T)``. Arrays that a program finds outside of its arguments are hidden.
    """
    kept = names_of(keep)
    if isinstance(source, Model):
        from probgen.causal.program_graph import graph_of_program

        return graph_of_program(source, names_of(hidden), kept)
    if kept:
        raise ModelError("keep= names sites of a program, but the source is no pg.Model. Use hidden= instead.")
    if isinstance(source, CausalGraph):
        return source.project(source.require(hidden, "hidden="))
    if isinstance(source, str):
        drawing = read_text(source)
    elif hasattr(source, "is_directed") and hasattr(source, "edges"):
        drawing = _from_networkx(source)
    else:
        raise ModelError(
            f"a causal graph cannot be made from {type(source).__name__}. Give a pg.Model, a text such as "
            f"'W->X; X->Y; X<->Y', DOT, dagitty, lavaan, or a directed graph of networkx."
        )
    if not drawing.nodes:
        raise ModelError("the graph has no node. Write edges as 'W->X; X->Y; X<->Y'.")
    whole = CausalGraph(tuple(drawing.nodes), frozenset(drawing.directed), frozenset(drawing.bidirected))
    return whole.project(drawing.hidden | whole.require(hidden, "hidden="))


def _from_networkx(source: Any) -> Drawing:
    if not source.is_directed():
        raise ModelError(
            f"the source is an undirected {type(source).__name__}, in which an edge does not say which end is the "
            f"cause. Give a networkx.DiGraph or MultiDiGraph."
        )
    drawing = Drawing.empty()
    for node, data in source.nodes(data=True):
        drawing.nodes[_name(node)] = None
        if data.get("latent", False) or data.get("observed", True) in (False, "no", "No", "false", "False"):
            drawing.hidden.add(_name(node))
    drawing.hidden.update(_name(node) for node in getattr(source, "latents", ()) or ())
    for a, b, data in source.edges(data=True):
        drawing.add(_name(a), "<->" if data.get("bidirected", False) else "->", _name(b))
    return drawing


def _name(node: Any) -> str:
    if not isinstance(node, str | int):
        raise ModelError(f"a node of the graph is {node!r}. Name the nodes by strings (networkx.relabel_nodes).")
    return str(node)


def as_networkx(source: CausalGraph) -> networkx.MultiDiGraph:
    """The graph for networkx, as ``graph`` reads it."""
    import networkx

    made = networkx.MultiDiGraph()
    made.add_nodes_from(source.nodes)
    made.add_edges_from(sorted(source.directed), bidirected=False)
    for pair in sorted(sorted(pair) for pair in source.bidirected):
        made.add_edge(pair[0], pair[1], bidirected=True)
        made.add_edge(pair[1], pair[0], bidirected=True)
    return made
