"""Where the nodes of a small directed graph with plates go: rows from the direction of dependence, columns from short,
uncrossed edges.

Rows are longest paths from the top; sites outside a plate stand above it if they feed it and below it if they are
computed from it. The order from left to right keeps the members of a plate together; it starts from barycentres and is
improved by moving one at a time. Given the order, columns minimise squared edge lengths under the distances that nodes
and plate borders need.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx
import numpy as np

__all__ = ["PLATE_BOTTOM", "PLATE_PAD", "Box", "Layout", "arrange"]

PLATE_PAD, PLATE_BOTTOM = 0.17, 0.32
"""Inches between what a plate holds and its border; more at the bottom, where its label stands."""
_GAP, _ROW_GAP = 0.26, 0.42
_TRIALS = 400
"""Orders to try at most; a drawing should not take longer than a second or two."""

type Box = tuple[float, float, float, float]
"""Left, bottom, right, top in inches."""


@dataclasses.dataclass
class Layout:
    """A finished layout, in inches, y upwards.

    Attributes:
        centers: Centre of each node.
        boxes: Rectangle of each plate, outer ones first.
        size: Width and height of the whole.
    """

    centers: dict[str, tuple[float, float]]
    boxes: dict[str, Box]
    size: tuple[float, float]


def arrange(
    edges: Iterable[tuple[str, str]], plates: Mapping[str, set[str]], extents: Mapping[str, tuple[float, float]]
) -> Layout:
    """Lay a graph out.

    Args:
        edges: Pairs of parent and child, acyclic.
        plates: Members of each plate.
        extents: Width and height of each node, in inches; its keys are the nodes.
    """
    graph = networkx.DiGraph()
    graph.add_nodes_from(extents)
    graph.add_edges_from(edges)
    plates = {name: members for name, members in plates.items() if members}
    rows = _rows(graph, plates)
    columns = _Columns(graph, rows, plates, {n: w for n, (w, _) in extents.items()})
    return _finished(rows, columns.best(), plates, extents)


def _levels(plates: Mapping[str, set[str]]) -> dict[str, int]:
    """How many plates deep a plate is, counted from the inside: 1 for one that holds no other."""
    levels: dict[str, int] = {}
    for name in sorted(plates, key=lambda name: len(plates[name])):
        inner = [levels[other] for other in levels if plates[other] <= plates[name]]
        levels[name] = 1 + max(inner, default=0)
    return levels


def _cells(nodes: Iterable[str], plates: Mapping[str, set[str]]) -> dict[frozenset[str], list[str]]:
    """Nodes by the set of plates around them."""
    cells: dict[frozenset[str], list[str]] = {}
    for node in nodes:
        cells.setdefault(frozenset(p for p, members in plates.items() if node in members), []).append(node)
    return cells


def _rows(graph: networkx.DiGraph, plates: Mapping[str, set[str]]) -> dict[str, int]:
    ranked = graph.copy()
    cells = _cells(graph, plates)
    for outer, inner in itertools.permutations(cells, 2):
        if not outer < inner:
            continue
        for node in cells[outer]:
            above, below = networkx.ancestors(graph, node), networkx.descendants(graph, node)
            feeds, uses = any(m in below for m in cells[inner]), any(m in above for m in cells[inner])
            if feeds == uses:
                continue
            for member in cells[inner]:
                pair = (node, member) if feeds else (member, node)
                if not networkx.has_path(ranked, pair[1], pair[0]):
                    ranked.add_edge(*pair)
    order = list(networkx.topological_sort(ranked))
    rows: dict[str, int] = {}
    for node in order:
        rows[node] = max((rows[parent] + 1 for parent in ranked.predecessors(node)), default=0)
    for node in reversed(order):
        if not ranked.in_degree(node) and ranked.out_degree(node):
            rows[node] = min(rows[child] for child in ranked.successors(node)) - 1
    used = sorted(set(rows.values()))
    return {node: used.index(row) for node, row in rows.items()}


type _Tree = list[str | _Tree]
"""Nodes and groups whose members stay together."""


def _tree(nodes: Sequence[str], plates: Mapping[str, set[str]]) -> _Tree:
    free = [node for node in nodes if not any(node in members for members in plates.values())]
    together = networkx.Graph()
    for members in plates.values():
        networkx.add_path(together, [node for node in nodes if node in members])
        together.add_nodes_from(node for node in nodes if node in members)
    tree: _Tree = list(free)
    for component in networkx.connected_components(together):
        inside = [node for node in nodes if node in component]
        within = {name: members & component for name, members in plates.items() if members & component}
        inner = {name: members for name, members in within.items() if members != component}
        if len(inner) < len(within):
            tree.append(_tree(inside, inner))
        else:  # crossed plates: those of one cell stay together
            tree.append([list(cell) for cell in _cells(inside, within).values()])
    return tree


def _flat(tree: _Tree) -> list[str]:
    return [node for item in tree for node in ([item] if isinstance(item, str) else _flat(item))]


def _groups(tree: _Tree) -> list[_Tree]:
    return [tree, *(group for item in tree if not isinstance(item, str) for group in _groups(item))]


class _Columns:
    """The search for an order from left to right, and the columns that it gives."""

    def __init__(
        self,
        graph: networkx.DiGraph,
        rows: Mapping[str, int],
        plates: Mapping[str, set[str]],
        widths: Mapping[str, float],
    ) -> None:
        self.nodes = sorted(graph, key=lambda node: rows[node])
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.rows = np.array([rows[node] for node in self.nodes])
        self.edges = np.array([(self.index[a], self.index[b]) for a, b in graph.edges], int).reshape(-1, 2)
        self.members = np.array([[n in members for n in self.nodes] for members in plates.values()], bool)
        self.members = self.members.reshape(len(plates), len(self.nodes))
        levels = _levels(plates)
        self.pads = np.array([PLATE_PAD * levels[name] for name in plates])
        self.widths = np.array([widths[node] for node in self.nodes])
        self.tree = _tree(self.nodes, plates)
        self.spans = [(self.rows[m].min(), self.rows[m].max()) for m in self.members]
        self.apart = self._apart()

    def _apart(self) -> np.ndarray:
        """How far apart the centres of each pair must be; 0 where the pair may stand one above the other."""
        count = len(self.nodes)
        apart = np.zeros((count, count))
        for i, j in itertools.combinations(range(count), 2):
            mine, yours = self.members[:, i] & ~self.members[:, j], self.members[:, j] & ~self.members[:, i]
            beside = self.rows[i] == self.rows[j]
            beside |= any(self._meets(p, self.rows[j], self.rows[j]) for p in np.flatnonzero(mine))
            beside |= any(self._meets(q, self.rows[i], self.rows[i]) for q in np.flatnonzero(yours))
            for p, q in itertools.product(np.flatnonzero(mine), np.flatnonzero(yours)):
                beside |= self._meets(p, *self.spans[q]) and not (self.members[p] & self.members[q]).any()
            if beside:
                border = max(self.pads[mine], default=0.0) + max(self.pads[yours], default=0.0)
                apart[i, j] = apart[j, i] = (self.widths[i] + self.widths[j]) / 2 + _GAP + border
        return apart

    def _meets(self, plate: Any, first: int, last: int) -> bool:
        low, high = self.spans[plate]
        return bool(low <= last and first <= high)

    def best(self) -> dict[str, float]:
        """Column of each node, in inches."""
        neighbours: dict[str, list[float]] = {node: [] for node in self.nodes}
        place = {node: float(i) for i, node in enumerate(_flat(self.tree))}
        for _ in range(4):
            for a, b in self.edges:
                neighbours[self.nodes[a]].append(place[self.nodes[b]])
                neighbours[self.nodes[b]].append(place[self.nodes[a]])
            self._sort(self.tree, {n: float(np.mean(near or [place[n]])) for n, near in neighbours.items()})
            place = {node: float(i) for i, node in enumerate(_flat(self.tree))}
        cost, trials = self._cost(), 0
        for _ in range(6):
            before = cost
            for group in _groups(self.tree):
                for i, j in itertools.permutations(range(len(group)), 2):
                    if trials >= _TRIALS:
                        break
                    trials += 1
                    group.insert(j, group.pop(i))
                    moved = self._cost()
                    if moved < cost - 1e-6:
                        cost = moved
                    else:
                        group.insert(i, group.pop(j))
            if cost >= before:
                break
        return dict(zip(self.nodes, self._columns(200), strict=True))

    def _sort(self, tree: _Tree, key: Mapping[str, float]) -> None:
        def mean(item: str | _Tree) -> float:
            return float(np.mean([key[node] for node in ([item] if isinstance(item, str) else _flat(item))]))

        for group in _groups(tree):
            group.sort(key=mean)

    def _columns(self, sweeps: int) -> np.ndarray:
        order = np.array([self.index[node] for node in _flat(self.tree)])
        apart = np.where(self.apart > 0, self.apart, -np.inf)[np.ix_(order, order)]
        count = len(order)
        near = np.zeros((len(self.nodes), len(self.nodes)))
        # Edges within a plate are its spine and should stand upright; a weak pull to the middle keeps lone nodes near.
        strength = 1.0 + 3.0 * (self.members[:, self.edges[:, 0]] & self.members[:, self.edges[:, 1]]).any(0)
        near[self.edges[:, 0], self.edges[:, 1]] = near[self.edges[:, 1], self.edges[:, 0]] = strength
        near = near[np.ix_(order, order)] + 0.02 / count
        weight = near.sum(1)

        def feasible(x: np.ndarray) -> np.ndarray:
            # Both are feasible, one leans right and one left, and the constraints are convex: so is their mean.
            right, left = x.copy(), x.copy()
            for j in range(1, count):
                right[j] = max(right[j], np.max(right[:j] + apart[:j, j]))
            for j in range(count - 2, -1, -1):
                left[j] = min(left[j], np.min(left[j + 1 :] - apart[j, j + 1 :]))
            return (right + left) / 2

        x = feasible(np.zeros(count))
        for _ in range(sweeps):
            x = feasible((x + (near @ x) / weight) / 2)
        columns = np.empty(count)
        columns[order] = x
        return columns

    def _cost(self) -> float:
        """Crossed edges, edges over nodes and plates, members of a plate that are parted, and length."""
        x, y = self._columns(12), self.rows.astype(float)
        starts, ends = self.edges[:, 0], self.edges[:, 1]
        long = float(np.sum((x[starts] - x[ends]) ** 2)) + 0.3 * float(np.ptp(x))
        crossed = 6.0 * _crossings(x, y, starts, ends) + 2.5 * self._covered(x, y) + 5.0 * self._trespassing(x, y)
        return long + crossed + 200.0 * self._parted()

    def _covered(self, x: np.ndarray, y: np.ndarray) -> int:
        if not len(self.edges):
            return 0
        start, end = self.edges[:, :1], self.edges[:, 1:]
        inside = (y[start] < y) & (y < y[end])
        share = (y - y[start]) / np.maximum(y[end] - y[start], 1)
        return int(np.sum(inside & (np.abs(x[start] + share * (x[end] - x[start]) - x) < self.widths / 2)))

    def _trespassing(self, x: np.ndarray, y: np.ndarray) -> int:
        """Edges that run over a plate where neither end stands."""
        count, share = 0, np.linspace(0, 1, 15)[:, None]
        starts, ends = self.edges[:, 0], self.edges[:, 1]
        at_x, at_y = (v[starts] + share * (v[ends] - v[starts]) for v in (x, y))
        for members, (low, high) in zip(self.members, self.spans, strict=True):
            half, within = self.widths[members] / 2 + PLATE_PAD, x[members]
            over = (at_x > np.min(within - half)) & (at_x < np.max(within + half))
            over &= (at_y > low - 0.4) & (at_y < high + 0.5)
            count += int(np.sum(over.any(0) & ~members[starts] & ~members[ends]))
        return count

    def _parted(self) -> int:
        place = np.empty(len(self.nodes))
        place[[self.index[node] for node in _flat(self.tree)]] = np.arange(len(self.nodes))
        count = 0
        for plate, members in enumerate(self.members):
            between = (place > place[members].min()) & (place < place[members].max()) & ~members
            count += sum(self._meets(plate, row, row) for row in self.rows[between])
        return count


def _crossings(x: np.ndarray, y: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> int:
    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.sign((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))

    a, b, c, d = starts[:, None], ends[:, None], starts[None], ends[None]
    crossed = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    return int(crossed.sum()) // 2


def _finished(
    rows: Mapping[str, int],
    columns: Mapping[str, float],
    plates: Mapping[str, set[str]],
    extents: Mapping[str, tuple[float, float]],
) -> Layout:
    levels = _levels(plates)
    count = max(rows.values(), default=0) + 1
    heights = [max((extents[n][1] for n in rows if rows[n] == r), default=0.0) for r in range(count)]
    over, under = [0.0] * count, [0.0] * count
    for name, members in plates.items():
        first, last = min(rows[m] for m in members), max(rows[m] for m in members)
        over[first] = max(over[first], PLATE_PAD * levels[name])
        under[last] = max(under[last], PLATE_BOTTOM * levels[name])
    ys, y = [], 0.0
    for row in range(count):
        y -= over[row] + heights[row] / 2
        ys.append(y)
        y -= heights[row] / 2 + under[row] + _ROW_GAP
    boxes: dict[str, Box] = {}
    for name in sorted(plates, key=lambda name: levels[name]):
        parts = [
            (
                columns[n] - extents[n][0] / 2,
                ys[rows[n]] - heights[rows[n]] / 2,
                columns[n] + extents[n][0] / 2,
                ys[rows[n]] + heights[rows[n]] / 2,
            )
            for n in plates[name]
        ]
        parts += [boxes[inner] for inner in boxes if plates[inner] <= plates[name]]
        left, bottom, right, top = zip(*parts, strict=True)
        boxes[name] = (
            min(left) - PLATE_PAD,
            min(bottom) - PLATE_BOTTOM,
            max(right) + PLATE_PAD,
            max(top) + PLATE_PAD,
        )
    parts = [(columns[n] - extents[n][0] / 2, 0.0, columns[n] + extents[n][0] / 2, 0.0) for n in rows]
    lefts, _, rights, _ = zip(*parts, *boxes.values(), strict=True)
    bottom, top = y + _ROW_GAP, 0.0
    dx, dy = -min(lefts), -bottom
    return Layout(
        {n: (columns[n] + dx, ys[rows[n]] + dy) for n in rows},
        {n: (b[0] + dx, b[1] + dy, b[2] + dx, b[3] + dy) for n, b in reversed(boxes.items())},
        (max(rights) - min(lefts), top - bottom),
    )
