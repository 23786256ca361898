"""Causal graphs: acyclic directed mixed graphs.

An edge a -> b says that a is a direct cause of b among the nodes; a <-> b that the two share a hidden cause. What is
hidden stands in the graph by these bidirected edges only: the latent projection (Verma and Pearl 1990) of a graph with
hidden nodes keeps every path a -> h1 -> ... -> b through hidden nodes as a -> b, and joins a <-> b where a path between
them through hidden nodes without colliders has arrowheads at both of its ends. It answers every question about the
observed nodes as the larger graph does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

from probgen.base.errors import ModelError, suggestion
from probgen.causal.separation import Marks, separated

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

__all__ = ["CausalGraph", "Names", "names_of"]

type Names = str | Iterable[str]
"""One name, or several."""


def names_of(value: Names) -> frozenset[str]:
    """The set of names that ``value`` stands for; a string is one name."""
    return frozenset([value]) if isinstance(value, str) else frozenset(value)


@dataclasses.dataclass(frozen=True)
class CausalGraph:
    """An acyclic directed mixed graph.

    Wherever a method takes names, one string is one name, and a set or list is several. Methods return new graphs.

    Args:
        nodes: Names, in any order; the order is kept, and breaks ties in ``topological``.
        directed: Pairs (cause, effect).
        bidirected: Pairs, as frozensets, of nodes with a common hidden cause.
        absent: By name, why something that the source of the graph speaks of is no node, as a sentence for errors.
        given: Nodes that the source takes as given (arguments of a program): observed, but with no causes that it tells
            of, so that nothing can be asked about setting them.
        hidden_causes: By bidirected edge, the names of the hidden causes where they are known.

    Raises:
        ModelError: If an edge names an unknown node, joins a node to itself, or closes a cycle (which is named).
    """

    nodes: tuple[str, ...]
    directed: frozenset[tuple[str, str]] = frozenset()
    bidirected: frozenset[frozenset[str]] = frozenset()
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    given: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)
    hidden_causes: Mapping[frozenset[str], frozenset[str]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "directed", frozenset((a, b) for a, b in self.directed))
        object.__setattr__(self, "bidirected", frozenset(frozenset(pair) for pair in self.bidirected))
        for name in self.nodes:
            if not isinstance(name, str) or not name:
                raise ModelError(f"a node is called {name!r}. Give every node a name, as a string.")
        known = frozenset(self.nodes)
        if len(known) < len(self.nodes):
            twice = next(name for name in self.nodes if self.nodes.count(name) > 1)
            raise ModelError(f"nodes has {twice!r} twice. Name every node once.")
        for edge in (*self.directed, *self.bidirected):
            for name in edge:
                if name not in known:
                    raise ModelError(
                        f"the edge {_shown(edge)} names {name!r}, which is not a node. {suggestion(name, known)}"
                    )
            if len(set(edge)) != 2:
                raise ModelError(
                    f"the edge {_shown(edge)} joins {next(iter(edge))!r} to itself. Remove it; a variable at two times "
                    f"is two nodes."
                )
        cycle = self._cycle()
        if cycle:
            raise ModelError(
                f"the graph has the cycle {' -> '.join(cycle)}, and a cause cannot come after its effect. Remove an "
                f"edge, write a hidden common cause as {cycle[0]}<->{cycle[1]}, or give each time its own node."
            )

    def __hash__(self) -> int:
        return hash((frozenset(self.nodes), self.directed, self.bidirected))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CausalGraph):
            return NotImplemented
        mine = (frozenset(self.nodes), self.directed, self.bidirected)
        return mine == (frozenset(other.nodes), other.directed, other.bidirected)

    # -- looking -----------------------------------------------------------------------------------------------------

    def require(self, names: Names, what: str = "the query") -> frozenset[str]:
        """The names as a set, all of which must be nodes.

        Args:
            names: Names to look for.
            what: Who asks, for the message.

        Raises:
            ModelError: If one is not a node; the message says why where the source of the graph tells.
        """
        found = names_of(names)
        for name in sorted(found, key=str):
            if name in self.absent:
                raise ModelError(f"{what} names {name!r}, which is no node of the graph: {self.absent[name]}")
            if name not in self._places:
                raise ModelError(
                    f"{what} names {name!r}, which is not a node of the graph. {suggestion(str(name), self.nodes)}"
                )
        return found

    def require_causes(self, names: Names, what: str = "do()") -> frozenset[str]:
        """The names as a set, all of which must be nodes that can be set.

        Args:
            names: Names to look for: treatments, what a query sets.
            what: Who asks, for the message.

        Raises:
            ModelError: If one is not a node, or an argument of the program, of whose causes the program is silent.
        """
        found = self.require(names, what)
        for name in sorted(found & self.given):
            raise ModelError(
                f"{what} names {name!r}, which is an argument of the program and not one of its sites, so that the "
                f"graph does not say what causes it. Write {name} = numpyro.sample({name!r}, ..., obs={name})."
            )
        return found

    def parents(self, names: Names) -> frozenset[str]:
        """Direct causes of any of the nodes (for several nodes, those among the nodes themselves included)."""
        return self.names(self._union(self.marks.parents, self.mask(names)))

    def children(self, names: Names) -> frozenset[str]:
        """Direct effects of any of the nodes."""
        return self.names(self._union(self.marks.children, self.mask(names)))

    def spouses(self, names: Names) -> frozenset[str]:
        """Nodes that share a hidden cause with any of the nodes."""
        return self.names(self._union(self.marks.spouses, self.mask(names)))

    def ancestors(self, names: Names) -> frozenset[str]:
        """The nodes and all of their causes."""
        return self.names(self.marks.closure(self.marks.parents, self.mask(names)))

    def descendants(self, names: Names) -> frozenset[str]:
        """The nodes and all of their effects."""
        return self.names(self.marks.closure(self.marks.children, self.mask(names)))

    def district(self, names: Names) -> frozenset[str]:
        """The nodes and all that bidirected paths join to them."""
        return self.names(self.marks.closure(self.marks.spouses, self.mask(names)))

    @cached_property
    def topological(self) -> tuple[str, ...]:
        """The nodes, causes before effects; among several orders, the one nearest to ``nodes``."""
        waiting = {name: set(self.parents(name)) for name in self.nodes}
        order: list[str] = []
        while waiting:
            first = next(name for name, left in waiting.items() if not left)
            del waiting[first]
            order.append(first)
            for child in self.children(first):
                waiting[child].discard(first)
        return tuple(order)

    @cached_property
    def districts(self) -> tuple[frozenset[str], ...]:
        """The sets of nodes joined by bidirected paths (c-components), in the order of their first nodes."""
        found: list[frozenset[str]] = []
        for name in self.topological:
            if not any(name in district for district in found):
                found.append(self.district(name))
        return tuple(found)

    def separated(self, a: Names, b: Names, given: Names = ()) -> bool:
        """Whether ``a`` and ``b`` are m-separated by ``given``: independent given it in every model of the graph.

        Raises:
            ModelError: If a name is not a node, or the three sets overlap.
        """
        left, right, known = self.require(a), self.require(b), self.require(given)
        for one, other in ((left, right), (left, known), (right, known)):
            if one & other:
                raise ModelError(
                    f"separated() got {sorted(one & other)[0]!r} in two of its three sets. Give disjoint sets."
                )
        return separated(self.marks, self.mask(left), self.mask(right), self.mask(known))

    # -- other graphs ------------------------------------------------------------------------------------------------

    def subgraph(self, names: Names) -> CausalGraph:
        """The graph of these nodes and the edges among them."""
        kept = self.require(names)
        return self._with(
            tuple(name for name in self.nodes if name in kept),
            frozenset(edge for edge in self.directed if kept.issuperset(edge)),
            frozenset(edge for edge in self.bidirected if kept.issuperset(edge)),
        )

    def cut_into(self, names: Names) -> CausalGraph:
        """The graph without arrowheads at the nodes: their causes, hidden ones too, no longer reach them."""
        cut = self.require(names)
        return self._with(
            self.nodes,
            frozenset(edge for edge in self.directed if edge[1] not in cut),
            frozenset(edge for edge in self.bidirected if not edge & cut),
        )

    def cut_out_of(self, names: Names) -> CausalGraph:
        """The graph without the arrows that leave the nodes."""
        cut = self.require(names)
        return self._with(self.nodes, frozenset(edge for edge in self.directed if edge[0] not in cut), self.bidirected)

    def without_directed(self, edges: Iterable[tuple[str, str]]) -> CausalGraph:
        """The graph without these directed edges."""
        return self._with(self.nodes, self.directed - frozenset(edges), self.bidirected)

    def project(self, hidden: Names) -> CausalGraph:
        """The latent projection: the graph of the other nodes, in which ``hidden`` stands only by the edges it leaves.

        Exact for every query about the other nodes, whatever the order in which the hidden ones are taken out.
        """
        gone = self.require(hidden)
        directed, bidirected, hidden_causes = set(self.directed), set(self.bidirected), dict(self.hidden_causes)
        # Effects first, so that what remains in between is named after its first causes.
        for name in (name for name in reversed(self.topological) if name in gone):
            causes = {a for a, b in directed if b == name}
            effects = {b for a, b in directed if a == name}
            siblings = {other for pair in bidirected if name in pair for other in pair if other != name}
            directed = {edge for edge in directed if name not in edge}
            directed |= {(cause, effect) for cause in causes for effect in effects}
            bidirected = {pair for pair in bidirected if name not in pair}
            for a in effects:
                for b in (effects | siblings) - {a}:
                    between = hidden_causes.get(frozenset((name, b)), frozenset())
                    known = hidden_causes.get(frozenset((a, b)), frozenset())
                    hidden_causes[frozenset((a, b))] = known | between | {name}
                    bidirected.add(frozenset((a, b)))
            hidden_causes = {pair: known for pair, known in hidden_causes.items() if name not in pair}
        reasons = {name: f"{name!r} is hidden. Take it out of hidden= to ask about it." for name in gone}
        return dataclasses.replace(
            self,
            nodes=tuple(name for name in self.nodes if name not in gone),
            directed=frozenset(directed),
            bidirected=frozenset(bidirected),
            absent={**reasons, **self.absent},
            given=self.given - gone,
            hidden_causes=hidden_causes,
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """Edges, and nodes without edges, as ``pg.causal.graph`` reads them."""
        from probgen.causal.graph_text import edge_text

        return edge_text(self)

    def __repr__(self) -> str:
        return f"CausalGraph({str(self)!r})"

    def dot(self) -> str:
        """The graph in the DOT language of Graphviz; bidirected edges have ``dir=both, style=dashed``."""
        from probgen.causal.graph_text import dot_text

        return dot_text(self)

    def dagitty(self, treatment: Names = (), outcome: Names = ()) -> str:
        """The graph as a string for dagitty, with ``treatment`` as exposure and ``outcome`` as outcome."""
        from probgen.causal.graph_text import dagitty_text

        return dagitty_text(self, self.require(treatment), self.require(outcome))

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The graph for networkx: a bidirected edge is an edge each way with ``bidirected=True``."""
        from probgen.causal.graph_source import as_networkx

        return as_networkx(self)

    def draw(
        self,
        treatment: Names = (),
        outcome: Names = (),
        adjustment: Names = (),
        path: str | PathLike[str] | None = None,
    ) -> Figure:
        """Draw the graph.

        Args:
            treatment: Nodes to colour as treatments.
            outcome: Nodes to colour as outcomes.
            adjustment: Nodes to colour as an adjustment set.
            path: Where to write the picture; its suffix (``.png``, ``.svg``, ``.pdf``) says how.

        Returns:
            A matplotlib figure, made without pyplot; bidirected edges are dashed arcs, and arguments of a program have
            a dotted outline.

        Raises:
            ModelError: If the graph has no node, or a name is not one.
        """
        from probgen.causal.graph_drawing import drawn

        figure = drawn(self, treatment, outcome, adjustment)
        if path is not None:
            figure.savefig(path, dpi=200)
        return figure

    # -- inside ------------------------------------------------------------------------------------------------------

    @cached_property
    def marks(self) -> Marks:
        """The edges as bit masks over the places of ``nodes``, for what must be fast."""
        size = len(self.nodes)
        parents, children, spouses = [0] * size, [0] * size, [0] * size
        for a, b in self.directed:
            children[self._places[a]] |= 1 << self._places[b]
            parents[self._places[b]] |= 1 << self._places[a]
        for pair in self.bidirected:
            a, b = pair
            spouses[self._places[a]] |= 1 << self._places[b]
            spouses[self._places[b]] |= 1 << self._places[a]
        return Marks(tuple(parents), tuple(children), tuple(spouses))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.nodes)}

    def mask(self, names: Names) -> int:
        """The bit mask of the nodes, as in ``marks``."""
        return sum(1 << self._places[name] for name in self.require(names))

    def names(self, mask: int) -> frozenset[str]:
        """The nodes of a bit mask."""
        return frozenset(name for place, name in enumerate(self.nodes) if mask >> place & 1)

    @staticmethod
    def _union(neighbours: tuple[int, ...], mask: int) -> int:
        found = 0
        for place, near in enumerate(neighbours):
            if mask >> place & 1:
                found |= near
        return found

    def _with(
        self, nodes: tuple[str, ...], directed: frozenset[tuple[str, str]], bidirected: frozenset[frozenset[str]]
    ) -> CausalGraph:
        return dataclasses.replace(
            self,
            nodes=nodes,
            directed=directed,
            bidirected=bidirected,
            given=self.given.intersection(nodes),
            hidden_causes={pair: known for pair, known in self.hidden_causes.items() if pair in bidirected},
        )

    def _cycle(self) -> list[str]:
        """A directed cycle, its first node repeated at the end; empty where there is none."""
        parents: dict[str, list[str]] = {name: [] for name in self.nodes}
        for a, b in sorted(self.directed):
            parents[b].append(a)
        left = set(self.nodes)
        while True:  # nodes without a cause among the rest go first; what remains has a cycle
            free = {name for name in left if not left.intersection(parents[name])}
            if not free:
                break
            left -= free
        if not left:
            return []
        walk = [min(left)]
        while walk[-1] not in walk[:-1]:
            walk.append(next(name for name in parents[walk[-1]] if name in left))
        return walk[walk.index(walk[-1]) :][::-1]


def _shown(edge: tuple[str, str] | frozenset[str]) -> str:
    if isinstance(edge, tuple):
        return f"{edge[0]}->{edge[1]}"
    ends = sorted(edge, key=str)
    return f"{ends[0]}<->{ends[-1]}"
