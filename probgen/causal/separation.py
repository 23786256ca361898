"""m-separation by reachability.

A path between a and b is open given Z when each of its colliders (arrowheads from both sides) is in Z or a cause of
something in Z, and no other node of it is in Z (Richardson 2003; without bidirected edges this is d-separation, Pearl
1988). Walks that may turn back join the same nodes as such paths when only colliders in Z itself are open: where a
collider causes something in Z, a walk goes down to it and back up. So it is enough to walk over pairs (node, whether
the last edge has an arrowhead there). Sets of nodes are bit masks; all that one step reaches is found at once.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Marks", "bits", "reached", "separated"]


class Marks(NamedTuple):
    """The edges of a mixed graph: for the node at each place, a mask of the places that it is joined to."""

    parents: tuple[int, ...]
    children: tuple[int, ...]
    spouses: tuple[int, ...]

    def cut_out_of(self, nodes: int) -> Marks:
        """The edges without the arrows that leave ``nodes``."""
        children = tuple(0 if nodes >> place & 1 else mask for place, mask in enumerate(self.children))
        return Marks(tuple(mask & ~nodes for mask in self.parents), children, self.spouses)

    @staticmethod
    def closure(neighbours: tuple[int, ...], start: int) -> int:
        """All that is reached from ``start`` over ``neighbours``, with ``start``."""
        found = new = start
        while new:
            near = 0
            for place in bits(new):
                near |= neighbours[place]
            new = near & ~found
            found |= new
        return found


def bits(mask: int) -> list[int]:
    """The places of the ones of a mask."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def reached(marks: Marks, start: int, given: int) -> int:
    """The nodes outside of ``given`` to which an open path leads from a node in ``start``; those in ``start`` count."""
    # Those that were reached by an edge with a tail there (or are the start), and with an arrowhead there.
    by_tail, by_head = start & ~given, 0
    new_tail, new_head = by_tail, 0
    while new_tail or new_head:
        tails = heads = 0
        for place in bits(new_tail & ~given):
            tails |= marks.parents[place]
            heads |= marks.children[place] | marks.spouses[place]
        for place in bits(new_head & ~given):
            heads |= marks.children[place]
        for place in bits(new_head & given):
            tails |= marks.parents[place]
            heads |= marks.spouses[place]
        new_tail, new_head = tails & ~by_tail, heads & ~by_head
        by_tail |= new_tail
        by_head |= new_head
    return (by_tail | by_head) & ~given


def separated(marks: Marks, left: int, right: int, given: int) -> bool:
    """Whether no open path given ``given`` joins ``left`` and ``right``, which are disjoint from one another and it."""
    return not reached(marks, left, given) & right
