"""Drawing a causal graph in matplotlib, without pyplot and without graphviz. All lengths are inches; y points upwards.

Directed edges bend around nodes that are in their way. Bidirected ones are dashed arcs with two heads; which way and
how far an arc bends is chosen so that it passes over as little as possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch, PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from probgen.base import palette
from probgen.base.errors import ModelError
from probgen.program.drawing import arrow
from probgen.program.layout import Layout, arrange

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgen.causal.graph import CausalGraph, Names

__all__ = ["drawn"]

_NAME, _HEIGHT, _MARGIN, _KEY = 11.0, 0.5, 0.34, 0.3
_STRAIGHT = (0.0, 0.14, -0.14, 0.28, -0.28, 0.45, -0.45, 0.65, -0.65)
_ARCS = (0.22, -0.22, 0.32, -0.32, 0.45, -0.45, 0.6, -0.6)
"""How far an edge may bulge, as a part of its length."""
_ROLES = {"treatment": palette.SERIES[0], "outcome": palette.SERIES[1], "adjusted for": palette.SERIES[2]}


def drawn(graph: CausalGraph, treatment: Names, outcome: Names, adjustment: Names) -> Figure:
    """A figure of a causal graph; see ``CausalGraph.draw``."""
    if not graph.nodes:
        raise ModelError("the graph has no node, so there is nothing to draw. Write edges as 'W->X; X->Y'.")
    roles: dict[str, str] = {}
    for role, names in zip(_ROLES, (treatment, outcome, adjustment), strict=True):
        for name in sorted(graph.require(names, f"draw({role})")):
            if name in roles:
                raise ModelError(f"{name!r} is drawn both as {roles[name]} and as {role}. Give each node one role.")
            roles[name] = role
    extents = {name: (max(1.3 * _text_width(name) + 0.2, 0.62), _HEIGHT) for name in graph.nodes}
    layout = arrange(sorted(graph.directed), {}, extents)
    shapes = {name: (width / 2, height / 2) for name, (width, height) in extents.items()}
    edges = [(a, b, False) for a, b in sorted(graph.directed)]
    edges += [(a, b, True) for a, b in sorted(sorted(pair) for pair in graph.bidirected)]
    edges.sort(key=lambda edge: float(np.hypot(*np.subtract(layout.centers[edge[0]], layout.centers[edge[1]]))))
    curves: list[tuple[np.ndarray, bool]] = []
    for a, b, arc in edges:  # short ones first: the long ones have more ways around them
        curves.append((_clear(layout, shapes, [curve for curve, _ in curves], a, b, arc), arc))
    bottom = _MARGIN + (_KEY if roles else 0.0)
    corners = np.concatenate([np.array([[0.0, 0.0], layout.size]), *(curve for curve, _ in curves)])
    (left, low), (right, high) = corners.min(0), corners.max(0)
    if roles:  # room for the names of the roles
        lacking = max(0.0, sum(_text_width(role) + 0.45 for role in set(roles.values())) - (right - left))
        left, right = left - lacking / 2, right + lacking / 2
    width, height = right - left + 2 * _MARGIN, high - low + _MARGIN + bottom
    figure = Figure(figsize=(width, height), facecolor=palette.PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left - _MARGIN, right + _MARGIN), ylim=(low - bottom, high + _MARGIN))
    axes.set_axis_off()
    for curve, arc in curves:
        _draw_edge(axes, curve, arc)
    for name in graph.nodes:
        _draw_node(axes, graph, name, roles.get(name), layout.centers[name], shapes[name])
    if roles:
        patches = [
            Patch(facecolor=colour, edgecolor="none", label=role)
            for role, colour in _ROLES.items()
            if role in roles.values()
        ]
        axes.legend(
            handles=patches,
            loc="lower center",
            ncols=3,
            frameon=False,
            fontsize=8.5,
            handlelength=0.9,
            handleheight=0.9,
        )
    return figure


def _text_width(text: str) -> float:
    plain = text.replace("$", "S")  # drawn as it is, not as mathematics
    return TextPath((0, 0), plain, size=_NAME).get_extents().width / 72 if text.strip() else 0.0


def _draw_node(
    axes: Axes,
    graph: CausalGraph,
    name: str,
    role: str | None,
    center: tuple[float, float],
    half: tuple[float, float],
) -> None:
    face = palette.SHADE if role is None else _ROLES[role]
    axes.add_patch(
        Ellipse(
            center,
            2 * half[0],
            2 * half[1],
            facecolor=face,
            edgecolor=palette.INK,
            lw=1.2,
            ls=":" if name in graph.given else "-",  # the program does not say what causes it
            zorder=4,
        )
    )
    ink = palette.INK if role is None else palette.PAPER
    axes.text(*center, name, size=_NAME, color=ink, ha="center", va="center", zorder=5, parse_math=False)


def _draw_edge(axes: Axes, curve: np.ndarray, arc: bool) -> None:
    colour = palette.QUIET if arc else palette.LINE
    if arc:  # the line is dashed, the heads are not
        axes.add_patch(PathPatch(Path(curve), fill=False, lw=1.2, ls=(0, (3.5, 2.5)), color=colour, zorder=3))
    for end in (curve[::-1], curve) if arc else (curve,):
        axes.add_patch(arrow(end[-6:] if arc else end, colour))


def _clear(
    layout: Layout,
    shapes: dict[str, tuple[float, float]],
    others: list[np.ndarray],
    first: str,
    last: str,
    arc: bool,
) -> np.ndarray:
    """The curve from node to node, of shape (points, 2), that keeps clear of nodes and other curves and bends little.

    Args:
        layout: Gives the centres.
        shapes: Half axes of each node.
        others: The curves that are there already.
        first: Where the edge begins.
        last: Where it ends.
        arc: Whether it must bend, and keeps clear of both ends.
    """
    start, end = (np.array(layout.centers[name]) for name in (first, last))
    along = end - start
    across = np.array([-along[1], along[0]])
    t = np.linspace(0, 1, 241)[:, None]

    def curve(bend: float) -> np.ndarray:
        control = (start + end) / 2 + 2 * bend * across
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        outside = ~(_inside(points, layout.centers[first], shapes[first], 0.02 if arc else 0.0))
        outside &= ~_inside(points, layout.centers[last], shapes[last], 0.02)
        return points[outside] if outside.sum() >= 8 else points

    def cost(bend: float) -> float:
        points = curve(bend)
        nodes = (name for name in shapes if name not in (first, last))
        hits = sum(bool(_inside(points, layout.centers[n], shapes[n], 0.06).any()) for n in nodes)
        return hits + _beside(points, others) + abs(bend) / 10

    return curve(min(_ARCS if arc else _STRAIGHT, key=cost))


def _inside(points: np.ndarray, center: tuple[float, float], half: tuple[float, float], gap: float) -> np.ndarray:
    return np.sum(((points - np.array(center)) / (np.array(half) + gap)) ** 2, axis=1) < 1


def _beside(points: np.ndarray, others: list[np.ndarray]) -> float:
    """The part of a curve that runs along others."""
    if not others:
        return 0.0
    taken = np.concatenate([other[::6] for other in others])
    apart = np.linalg.norm(points[::6, None] - taken[None], axis=-1).min(1)
    return float((apart < 0.09).mean())
