"""Drawing a graph of sites in matplotlib, without pyplot and without graphviz. All lengths are inches; y points
upwards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from probgen.base import palette
from probgen.program.layout import Box, Layout, arrange

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes

__all__ = ["arrow", "drawn"]

_INK, _QUIET, _LINE = palette.INK, palette.QUIET, palette.LINE
_LATENT, _OBSERVED, _PLATE, _BORDER = palette.PAPER, palette.SHADE, palette.PLATE, palette.BORDER
_NAME, _SMALL = 11.0, 7.5
_HEIGHT, _FACTOR, _LOOP, _MARGIN = 0.62, 0.15, 0.34, 0.18
_BENDS = (0.0, 0.14, -0.14, 0.28, -0.28, 0.45, -0.45, 0.65, -0.65)
"""How far an edge may bulge, as a part of its length, in order of preference."""


def drawn(graph: networkx.DiGraph) -> Figure:
    """A figure of what ``graph_of`` returns."""
    extents = {name: _extent(graph, name, data) for name, data in graph.nodes(data=True)}
    members: dict[str, set[str]] = {}
    for name, data in graph.nodes(data=True):
        for plate in (*data["plates"], *([data["scan"]] if data["scan"] else [])):
            members.setdefault(plate, set()).add(name)
    straight = [(a, b) for a, b, lagged in graph.edges(data="lagged") if not lagged]
    layout = arrange(straight, members, extents)
    width, height = (side + 2 * _MARGIN for side in layout.size)
    figure = Figure(figsize=(width, height), facecolor=palette.PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-_MARGIN, width - _MARGIN), ylim=(-_MARGIN, height - _MARGIN))
    axes.set_axis_off()
    _draw_plates(axes, graph, layout)
    shapes = {name: _shape(graph, name, extents[name]) for name in graph}
    obstacles = {name: (layout.centers[name], (a + 0.07, b + 0.07)) for name, (a, b) in shapes.items()}
    for name in graph:
        if graph.has_edge(name, name):
            (x, y), (a, _) = layout.centers[name], shapes[name]
            obstacles[f"{name} loop"] = ((x + a + 0.05, y), (0.36, 0.27))
    for a, b, lagged in graph.edges(data="lagged"):
        curve = _loop(layout, shapes, a) if a == b else _clear(layout, shapes, obstacles, a, b, lagged)
        _draw_edge(axes, curve, lagged)
    for name, data in graph.nodes(data=True):
        _draw_node(axes, name, data, layout.centers[name], shapes[name])
    return figure


# -- nodes -----------------------------------------------------------------------------------------------------------


def _caption(data: dict[str, Any]) -> str:
    """The second line of a node."""
    if data["intervened"]:
        return "set by do"
    return data["distribution"].removesuffix("Probs").removesuffix("Logits")


def _text_width(text: str, size: float) -> float:
    plain = text.replace("$", "S")  # drawn as it is, not as mathematics
    return TextPath((0, 0), plain, size=size, prop=_font()).get_extents().width / 72 if text.strip() else 0.0


def _font(weight: str = "normal") -> FontProperties:
    return FontProperties(family="DejaVu Sans", weight=weight)


def _extent(graph: networkx.DiGraph, name: str, data: dict[str, Any]) -> tuple[float, float]:
    """Width and height that a node needs."""
    if data["kind"] == "factor":
        return max(_FACTOR, _text_width(name, _SMALL) + 0.1), _HEIGHT
    # The name stands above the middle of an ellipse, where it is a little narrower.
    width = max(1.28 * _text_width(name, _NAME), 1.35 * _text_width(_caption(data), _SMALL)) + 0.24
    return max(width, 0.86) + (2 * _LOOP if graph.has_edge(name, name) else 0.0), _HEIGHT


def _shape(graph: networkx.DiGraph, name: str, extent: tuple[float, float]) -> tuple[float, float]:
    """Half axes of what is drawn."""
    if graph.nodes[name]["kind"] == "factor":
        return _FACTOR / 2, _FACTOR / 2
    loop = 2 * _LOOP if graph.has_edge(name, name) else 0.0
    return (extent[0] - loop) / 2, extent[1] / 2


def _draw_node(
    axes: Axes, name: str, data: dict[str, Any], center: tuple[float, float], half: tuple[float, float]
) -> None:
    x, y = center
    if data["kind"] == "factor":
        axes.add_patch(Rectangle((x - half[0], y - half[1]), 2 * half[0], 2 * half[1], color=_INK, zorder=4))
        axes.text(x, y - half[1] - 0.1, name, size=_SMALL, color=_QUIET, ha="center", va="center", zorder=5)
        return
    style: dict[str, Any] = {"width": 2 * half[0], "height": 2 * half[1], "zorder": 4}
    whole = data["kind"] == "observed" and not data["partly_observed"]
    fill = Ellipse(center, facecolor=_OBSERVED if whole else _LATENT, edgecolor="none", **style)
    axes.add_patch(fill)
    if data["partly_observed"]:
        shade = Rectangle((x - half[0], y - half[1]), 2 * half[0], half[1], color=_OBSERVED, lw=0, zorder=4)
        axes.add_patch(shade)
        shade.set_clip_path(fill)
    dashes = (0, (3.5, 2.2)) if data["kind"] in ("deterministic", "param") else "-"
    axes.add_patch(Ellipse(center, facecolor="none", edgecolor=_INK, lw=1.2, ls=dashes, **style))
    caption = _caption(data)
    lift = 0.075 if caption else 0.0
    text: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 5, "parse_math": False}
    axes.text(x, y + lift, name, size=_NAME, color=_INK, fontproperties=_font(), **text)
    axes.text(x, y - 0.125, caption, size=_SMALL, color=_QUIET, fontproperties=_font(), **text)


# -- plates ----------------------------------------------------------------------------------------------------------


def _draw_plates(axes: Axes, graph: networkx.DiGraph, layout: Layout) -> None:
    sizes = {**graph.graph["plates"], **graph.graph["scans"]}
    for depth, (name, (left, bottom, right, top)) in enumerate(layout.boxes.items()):
        rounded = FancyBboxPatch(
            (left, bottom),
            right - left,
            top - bottom,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=(*to_rgb(_PLATE), 0.07),
            edgecolor=_BORDER,
            lw=1.0,
            zorder=1 + 0.01 * depth,
        )
        axes.add_patch(rounded)
        text = f"{name}  ({sizes[name]})"
        width = _text_width(text, 8.5)
        starts = (right - 0.1 - width, left + 0.1, (left + right - width) / 2)
        places = [(start, bottom + 0.09) for start in starts]
        place = min(places, key=lambda place: _clutter(graph, layout, name, place, width))
        style: dict[str, Any] = {"size": 8.5, "color": _PLATE, "zorder": 3.5, "parse_math": False}
        label = axes.text(*place, text, va="bottom", fontproperties=_font(), **style)
        label.set_path_effects([withStroke(linewidth=3.5, foreground=palette.HALO)])


def _clutter(graph: networkx.DiGraph, layout: Layout, plate: str, place: tuple[float, float], width: float) -> int:
    """How much is in the way of a label: another plate that crosses this one, edges."""
    x, y = place
    own = layout.boxes[plate]
    points = np.array([(x, y), (x + width, y)])
    crossing = sum(
        bool(_within(points, box).any()) and not (box[0] <= own[0] and box[2] >= own[2])
        for box in layout.boxes.values()
    )
    share = np.linspace(0, 1, 60)[:, None]
    area = (x - 0.05, y - 0.05, x + width + 0.05, y + 0.18)
    lines = (np.array(layout.centers[a]) * (1 - share) + np.array(layout.centers[b]) * share for a, b in graph.edges)
    return 10 * crossing + sum(bool(_within(line, area).any()) for line in lines)


def _within(points: np.ndarray, box: Box) -> np.ndarray:
    return np.all((points > np.array(box[:2])) & (points < np.array(box[2:])), axis=1)


# -- edges -----------------------------------------------------------------------------------------------------------


type _Point = tuple[float, float]


def _draw_edge(axes: Axes, curve: np.ndarray, lagged: bool) -> None:
    if lagged:
        # The line is dotted, the head is not.
        axes.add_patch(PathPatch(Path(curve[:-6]), fill=False, lw=1.1, ls=(0, (1.2, 1.6)), color=_LINE, zorder=3))
        curve = curve[-6:]
    axes.add_patch(arrow(curve, _LINE))


def arrow(curve: np.ndarray, colour: str) -> FancyArrowPatch:
    """A line with a head at its end, along points of shape (n, 2)."""
    return FancyArrowPatch(
        path=Path(curve),
        arrowstyle="-|>,head_length=0.42,head_width=0.17",
        mutation_scale=14,
        lw=1.0,
        color=colour,
        capstyle="butt",
        joinstyle="round",
        shrinkA=0,
        shrinkB=0,
        zorder=3,
    )


def _clear(
    layout: Layout,
    shapes: dict[str, _Point],
    obstacles: dict[str, tuple[_Point, _Point]],
    parent: str,
    child: str,
    lagged: bool,
) -> np.ndarray:
    """The straightest curve from node to node that passes over nothing else.

    Args:
        layout: Gives the centres.
        shapes: Half axes of each node.
        obstacles: Centre and half axes of what to avoid, by name; the ends of the edge do not count.
        parent: Where the edge begins.
        child: Where it ends.
        lagged: Whether it must bend, to keep clear of the arrow that goes the other way.
    """
    start, end = (np.array(layout.centers[name]) for name in (parent, child))
    along = end - start
    across = np.array([-along[1], along[0]])
    t = np.linspace(0, 1, 241)[:, None]

    def cost(bend: float) -> float:
        points = curve(bend)
        hits = sum(bool(_inside(points, *o).any()) for name, o in obstacles.items() if name not in (parent, child))
        return hits + abs(bend) / 10

    def curve(bend: float) -> np.ndarray:
        control = (start + end) / 2 + 2 * bend * across
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        left = np.flatnonzero(~_inside(points, layout.centers[parent], shapes[parent]))[0]
        gap = (shapes[child][0] + 0.02, shapes[child][1] + 0.02)
        reached = np.flatnonzero(~_inside(points, layout.centers[child], gap))[-1]
        return points[left : max(reached, left + 2) + 1]

    return curve(min(_BENDS[1:] if lagged else _BENDS, key=cost))


def _inside(points: np.ndarray, center: tuple[float, float], half: tuple[float, float]) -> np.ndarray:
    return np.sum(((points - np.array(center)) / np.array(half)) ** 2, axis=1) < 1


def _loop(layout: Layout, shapes: dict[str, tuple[float, float]], name: str) -> np.ndarray:
    """From a node to itself, around its right end."""
    (x, y), (a, b) = layout.centers[name], shapes[name]
    angle = math.radians(38)
    out = np.array([x + a * math.cos(angle), y + b * math.sin(angle)])
    back = np.array([x + a * math.cos(angle) + 0.02, y - b * math.sin(angle) - 0.02])
    reach = x + a + 1.15 * _LOOP
    t = np.linspace(0, 1, 60)[:, None]
    first, second = np.array([reach, y + 0.42]), np.array([reach, y - 0.42])
    return (1 - t) ** 3 * out + 3 * t * (1 - t) ** 2 * first + 3 * t**2 * (1 - t) * second + t**3 * back
