"""Minimal separating sets.

A set within the ancestors of a and b m-separates them in a mixed graph exactly when it separates them in the undirected
graph that joins, for each district of those ancestors, its members and their parents to one another (Richardson 2003).
All minimal separating sets lie within the ancestors (van der Zander, Liskiewicz and Textor 2014). They are listed from
the one nearest to a, each from one nearer to a by moving a node of it to the side of a (Shen and Liang 1997), in time
that is polynomial per set. Sets of nodes are bit masks.
"""

from __future__ import annotations

from collections.abc import Iterator

from probgen.causal.separation import Marks, bits

__all__ = ["minimal_separators"]


def minimal_separators(marks: Marks, left: int, right: int, allowed: int) -> Iterator[int]:
    """All inclusion-minimal subsets of ``allowed`` that m-separate ``left`` and ``right``.

    Args:
        marks: The edges.
        left: Mask of the nodes on one side.
        right: Mask of those on the other, disjoint.
        allowed: Mask of the nodes that a set may have.
    """
    near = _undirected(marks, marks.closure(marks.parents, left | right))
    allowed &= ~(left | right)
    for place in bits(~(allowed | left | right) & ((1 << len(near)) - 1)):
        # Paths cannot be cut at this node: whatever it joins is joined.
        around = near[place]
        for other in bits(around):
            near[other] = (near[other] | around) & ~(1 << place | 1 << other)
        near[place] = 0
    first = _nearest(near, left, right)
    if first is None:
        return
    waiting, seen = [first], {first}
    while waiting:  # every set is met once
        found = waiting.pop()
        yield found
        side = _component(near, left, found)
        for place in bits(found):
            further = _nearest(near, side | 1 << place, right)
            if further is not None and further not in seen:
                seen.add(further)
                waiting.append(further)


def _nearest(near: list[int], left: int, right: int) -> int | None:
    """The minimal separator nearest to ``left``; ``None`` where the two sides are joined."""
    border = _around(near, left)
    if border & right:
        return None
    return _around(near, _component(near, right, border))


def _around(near: list[int], nodes: int) -> int:
    found = 0
    for place in bits(nodes):
        found |= near[place]
    return found & ~nodes


def _component(near: list[int], start: int, removed: int) -> int:
    """What is connected to ``start`` when ``removed`` is gone."""
    found = new = start
    while new:
        new = _around(near, new) & ~(found | removed)
        found |= new
    return found


def _undirected(marks: Marks, ancestors: int) -> list[int]:
    """Who is joined by a path of colliders, or an edge, among ``ancestors``."""
    near = [0] * len(marks.parents)
    inside = tuple(spouses & ancestors for spouses in marks.spouses)
    left = ancestors
    while left:
        district = marks.closure(inside, left & -left)
        left &= ~district
        joined = district
        for place in bits(district):
            joined |= marks.parents[place]
        for place in bits(joined):
            near[place] |= joined & ~(1 << place)
    return near
