"""Mediators that identify an effect although treatment and outcome are confounded.

A set M is a front door from x to y (Pearl 1995) when (i) every directed path from x to y passes through M, (ii) no
back-door path from x to M is open, and (iii) x blocks every back-door path from M to y. Then

    P(y | do(x)) = sum_m P(m | x) sum_x' P(y | x', m) P(x').

It is conditional on covariates W that x does not cause (Xu, Cheng, Li, Liu, Liu and Yu 2024) when W blocks the paths of
(ii), and x and W those of (iii):

    P(y | do(x)) = sum_w P(w) sum_m P(m | x, w) sum_x' P(y | x', m, w) P(x' | w).

Sets that satisfy (ii) and (iii) are closed under union, because arrows out of M only become fewer as M grows; so the
largest one within any candidates is found by removing offenders until none is left, and it says whether there is any
front door among them (Jeong, Tian and Bareinboim 2022 list all sets with the help of such an answer).
"""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterator

from probgen.base.errors import ModelError, ProbgenWarning
from probgen.causal.adjustment import sides
from probgen.causal.graph import CausalGraph, Names
from probgen.causal.separation import bits, reached

__all__ = ["conditional_front_doors", "front_door_sets", "is_front_door"]

_STEPS = 2000
"""Largest number of candidate sets to look into."""


def front_door_sets(
    graph: CausalGraph, treatment: Names, outcome: Names, *, given: Names = (), limit: int = 100
) -> list[frozenset[str]]:
    """All minimal front-door sets of mediators.

    Args:
        graph: The graph.
        treatment: The treatment.
        outcome: One outcome, or several.
        given: Covariates W of a conditional front door.
        limit: How many sets to list at most.

    Returns:
        The sets, small ones first; ``[]`` where there is none.

    Raises:
        ModelError: If a name is not a node, there are several treatments, or a covariate is one of treatment and
            outcome.
    """
    cause, effects, known = _asked(graph, treatment, outcome, given)
    if known & graph.descendants(cause):
        return []
    candidates = frozenset(graph.nodes) - cause - effects - known
    masks = _Search(graph, cause, effects, known).minimal(graph.mask(candidates))
    found = [graph.names(mask) for mask in itertools.islice(masks, limit)]
    return sorted(found, key=lambda names: (len(names), sorted(names)))


def conditional_front_doors(
    graph: CausalGraph, treatment: Names, outcome: Names, *, covariates: int = 3, limit: int = 100
) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Front doors, with the fewest covariates that they need.

    Args:
        graph: The graph.
        treatment: The treatment.
        outcome: One outcome, or several.
        covariates: The largest number of covariates W to look at; all sets of that many nodes are tried.
        limit: How many pairs to list at most.

    Returns:
        Pairs (mediators, covariates), few covariates first, mediators minimal; a pair is left out if a smaller set of
        covariates serves the same mediators. ``[]`` where there is none.

    Raises:
        ModelError: As ``front_door_sets``.
    """
    cause, effects, _ = _asked(graph, treatment, outcome, ())
    outside = sorted(set(graph.nodes) - graph.descendants(cause) - effects)
    found: list[tuple[frozenset[str], frozenset[str]]] = []
    for size in range(min(covariates, len(outside)) + 1):
        for known in map(frozenset, itertools.combinations(outside, size)):
            for mediators in front_door_sets(graph, cause, effects, given=known, limit=limit):
                if not any(mediators == other and fewer < known for other, fewer in found):
                    found.append((mediators, known))
                    if len(found) == limit:
                        return found
    return found


def is_front_door(graph: CausalGraph, treatment: Names, outcome: Names, mediators: Names, *, given: Names = ()) -> bool:
    """Whether ``mediators`` are a front door, conditional on the covariates ``given``.

    Raises:
        ModelError: As ``front_door_sets``; or if a mediator is one of the other nodes.
    """
    cause, effects, known = _asked(graph, treatment, outcome, given)
    inside = graph.require(mediators, "mediators")
    if inside & (cause | effects | known):
        raise ModelError(f"{sorted(inside & (cause | effects | known))[0]!r} is a mediator and has another role too.")
    if known & graph.descendants(cause):
        return False
    return _Search(graph, cause, effects, known).within(graph.mask(inside)) == graph.mask(inside)


def _asked(
    graph: CausalGraph, treatment: Names, outcome: Names, given: Names
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    cause, effects = sides(graph, treatment, outcome)
    known = graph.require(given, "given=")
    if len(cause) > 1:
        raise ModelError(f"treatment has {len(cause)} nodes, but a front door has one. Ask about one treatment.")
    if known & (cause | effects):
        raise ModelError(
            f"given= has {sorted(known & (cause | effects))[0]!r}, the treatment or outcome. Leave it out."
        )
    return cause, effects, known


class _Search:
    """Front-door sets for one question; sets are bit masks."""

    def __init__(
        self, graph: CausalGraph, cause: frozenset[str], effects: frozenset[str], known: frozenset[str]
    ) -> None:
        self.marks = graph.marks
        self.cause, self.effects, self.known = graph.mask(cause), graph.mask(effects), graph.mask(known)
        # (ii) is about each node alone.
        self.unconfounded = ~reached(self.marks.cut_out_of(self.cause), self.cause, self.known)

    def within(self, among: int) -> int | None:
        """The largest front-door set within these nodes; ``None`` where there is none."""
        kept = among & self.unconfounded
        while True:  # loses a node each time
            cut = self.marks.cut_out_of(kept)
            open_to_effects = reached(cut, self.effects, self.cause | self.known)
            if not kept & open_to_effects:
                break
            kept &= ~open_to_effects
        return None if cut.closure(cut.children, self.cause) & self.effects else kept

    def minimal(self, candidates: int) -> Iterator[int]:
        """The minimal sets, each once.

        Whatever holds a front door within it keeps one as it grows. So every minimal set but the one found first lacks
        a node of that one, and is found again without that node.
        """
        waiting, seen, found = deque([candidates]), {candidates}, set()
        for _ in range(_STEPS):
            if not waiting:
                return
            among = waiting.popleft()
            kept = self.within(among)
            if kept is None:
                continue
            for place in bits(kept):
                smaller = self.within(kept & ~(1 << place))
                kept = kept if smaller is None else smaller
            if kept not in found:
                found.add(kept)
                yield kept
            for place in bits(kept):
                fewer = among & ~(1 << place)
                if fewer not in seen:
                    seen.add(fewer)
                    waiting.append(fewer)
        warnings.warn(
            f"the search for front-door sets was given up after {_STEPS} steps, and may have missed some. Take nodes "
            f"that were not measured out of the graph (project).",
            ProbgenWarning,
            stacklevel=4,
        )
