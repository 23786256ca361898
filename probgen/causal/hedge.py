"""Why a query has no estimand: hedges and recanting districts.

A C-forest with roots R is a set of nodes that bidirected edges connect, each of which has a directed path to R inside
of the set. Two C-forests F' in F with the same roots R, where F meets the treatments and F' does not, and where every
root causes an outcome that the intervention leaves alone, are a hedge: two models then agree on all that is observed
and differ in P(y | do(x)) (Shpitser and Pearl 2006). A recanting district is a set of nodes that bidirected edges
connect among the causes of the outcome, which the treatment enters both on paths whose effect is asked for and on
others (Shpitser 2013): its hidden causes would have to be in two worlds at once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probgen.causal.graph import CausalGraph

__all__ = ["Hedge", "RecantingDistrict"]


@dataclasses.dataclass(frozen=True)
class Hedge:
    """A hedge for P(outcomes | do(do)).

    Attributes:
        outer: The nodes of F, some of which are treatments.
        inner: The nodes of F', none of which is.
        roots: R.
        do: The treatments.
        outcomes: The outcomes.
    """

    outer: frozenset[str]
    inner: frozenset[str]
    roots: frozenset[str]
    do: frozenset[str]
    outcomes: frozenset[str]

    def holds(self, graph: CausalGraph) -> bool:
        """Whether this is a hedge in the graph, by the definition."""

        def forest(names: frozenset[str]) -> bool:
            inside = graph.subgraph(names)
            return len(inside.districts) == 1 and inside.ancestors(self.roots) == names

        return (
            bool(self.roots)
            and self.roots <= self.inner < self.outer
            and bool(self.outer & self.do)
            and not self.inner & self.do
            and forest(self.outer)
            and forest(self.inner)
            and self.roots <= graph.cut_into(self.do).ancestors(self.outcomes)
        )

    def __str__(self) -> str:
        return f"F = {_set(self.outer)}, F' = {_set(self.inner)}"


@dataclasses.dataclass(frozen=True)
class RecantingDistrict:
    """A district that a treatment enters on paths of both kinds.

    Attributes:
        nodes: The district, among the causes of the outcome without the treatment.
        asked: Children of the treatment in it on a path whose effect is asked for.
        other: Children of the treatment in it on a path whose effect is not; a node can be in both.
    """

    nodes: frozenset[str]
    asked: frozenset[str]
    other: frozenset[str]

    def __str__(self) -> str:
        return _set(self.nodes)


def _set(names: frozenset[str]) -> str:
    return f"{{{', '.join(sorted(names))}}}"
