"""Laws of districts from the observed law.

Q[C](c | pa) = P(c | do(everything else)) for a set C of nodes. The observed law is the product of Q over the districts
of the graph, and Q of a district is the product of P(v | earlier nodes) over its members. From Q[T] of a larger set T,
Q[C] is found by summing out what has no effect on C, and by taking the district of what is left, again and again; where
neither step makes the set smaller, Q[C] is not a function of the observed law, and T with C is a hedge (Tian and Pearl
2002; complete by Huang and Valtorta 2006 and Shpitser and Pearl 2006).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probgen.causal.expression import Expression, Probability, product, variables
from probgen.causal.hedge import Hedge

if TYPE_CHECKING:
    from probgen.causal.graph import CausalGraph
    from probgen.causal.simplify import Simplifier

__all__ = ["Stuck", "district_kernels"]


class Stuck(Exception):
    """P(outcomes | do) is not identified: there is a ``hedge``."""

    def __init__(self, hedge: Hedge):
        super().__init__(str(hedge))
        self.hedge = hedge


def district_kernels(
    graph: CausalGraph, outcomes: frozenset[str], do: frozenset[str], simplifier: Simplifier
) -> dict[frozenset[str], Expression]:
    """The kernels whose product, summed over all but outcomes, is P(outcomes | do).

    Args:
        graph: The graph; every node is a cause of an outcome or is set.
        outcomes: Outcomes.
        do: Nodes that are set.
        simplifier: Shortens formulas about this graph.

    Returns:
        By district D of the causes of outcomes that remain without ``do``: Q[D]. It can formally be a function of other
        nodes than D and its parents; its value is the same for all their values.

    Raises:
        Stuck: If P(outcomes | do) is not identified.
    """
    kept = graph.subgraph(frozenset(graph.nodes) - do).ancestors(outcomes)
    kernels = {}
    for inner in graph.subgraph(kept).districts:
        found = _kernel(graph, inner, simplifier)
        if not isinstance(found, frozenset):
            kernels[inner] = found
            continue
        within = graph.subgraph(inner)
        roots = frozenset(name for name in inner if not within.children(name))
        raise Stuck(Hedge(found, inner, roots, do, outcomes))
    return kernels


def _kernel(graph: CausalGraph, target: frozenset[str], simplifier: Simplifier) -> Expression | frozenset[str]:
    """Q[target], or the set T from whose Q[T] it cannot be found."""
    around = graph.district(target)
    law: Expression = product(
        Probability(variables([name]), variables(_pillow(graph, name))) for name in graph.topological if name in around
    )
    while True:  # every round makes ``around`` smaller
        causes = graph.subgraph(around).ancestors(target)
        if causes == around != target:
            return around
        law = simplifier.sum(variables(around - causes), law)
        if causes == target:
            return law
        inside = graph.subgraph(causes)
        around = inside.district(target)
        if around != causes:
            law = _of_district(inside, around, law, simplifier)


def _pillow(graph: CausalGraph, name: str) -> frozenset[str]:
    """What makes a node independent of all other earlier nodes: its district among them, and the parents of that."""
    order = graph.topological
    before = graph.subgraph(order[: order.index(name) + 1])
    district = before.district(name)
    return (district | before.parents(district)) - {name}


def _of_district(graph: CausalGraph, district: frozenset[str], law: Expression, simplifier: Simplifier) -> Expression:
    """Q of a district of ``graph``, from Q of all of its nodes."""
    order = _contiguous(graph, district)
    parts, before = [], None
    for place, name in enumerate(order):
        if name in district and (place == 0 or order[place - 1] not in district):
            before = simplifier.sum(variables(order[place:]), law) if place else None
        if name in district and (place + 1 == len(order) or order[place + 1] not in district):
            upto = simplifier.sum(variables(order[place + 1 :]), law)
            parts.append(upto if before is None else simplifier.ratio(upto, before))
    return product(parts)


def _contiguous(graph: CausalGraph, district: frozenset[str]) -> tuple[str, ...]:
    """A topological order in which the district stands in few runs: its members go first where they can."""
    left, order = list(graph.topological), []
    while left:
        ready = [name for name in left if not graph.parents(name) & set(left)]
        last_in = bool(order) and order[-1] in district
        mine = [name for name in ready if name in district]
        others = [name for name in ready if name not in district]
        # A run ends only when no member of the district is ready, and begins only when nothing else is.
        choice = mine[0] if mine and (last_in or not others) else (others or mine)[0]
        left.remove(choice)
        order.append(choice)
    return tuple(order)
