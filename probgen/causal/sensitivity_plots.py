"""Pictures of sensitivity analyses, in matplotlib without pyplot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from probgen.base.palette import ACCENT, BORDER, INK, PAPER, PLATE, QUIET, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgen.causal.analysis import Band, Contour, Curves, Mark

__all__ = ["band_figure", "contour_figure", "curves_figure"]

_STYLE: Any = {
    "axes.edgecolor": BORDER,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "figure.facecolor": PAPER,
    "font.size": 9,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": BORDER,
    "xtick.labelcolor": QUIET,
    "ytick.color": BORDER,
    "ytick.labelcolor": QUIET,
}
_SIZE = (4.8, 3.8)
_LEVELS = 9


@contextlib.contextmanager
def _framed(panels: int = 1) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0] * panels, _SIZE[1]), layout="constrained")
        yield figure, np.ravel(figure.subplots(1, panels)).tolist()


def contour_figure(contours: Sequence[Contour]) -> Figure:
    """Surfaces side by side; the line where the conclusion changes is thick."""
    with _framed(len(contours)) as (figure, panels):
        for axes, contour in zip(panels, contours, strict=True):
            values = np.ma.masked_invalid(contour.values)
            low, high = float(values.min()), float(values.max())
            levels = _levels(values, contour.threshold)
            style: dict[str, Any] = {"colors": PLATE, "linewidths": 0.9, "linestyles": "solid"}
            if len(levels):
                lines = axes.contour(contour.x, contour.y, values, levels, **style)
                axes.clabel(lines, fontsize=7.5, colors=QUIET, fmt=lambda value: f"{value:.3g}")
            if low < contour.threshold < high:
                style = {"colors": ACCENT, "linewidths": 1.8, "linestyles": "solid"}
                thick = axes.contour(contour.x, contour.y, values, [contour.threshold], **style)
                axes.clabel(thick, fontsize=8, colors=ACCENT, fmt=lambda value: f"{value:.3g}")
            axes.plot(0, 0, marker="^", color=INK, ms=6, clip_on=False, ls="none", zorder=5)
            axes.set(xlabel=contour.xlabel, ylabel=contour.ylabel)
            axes.set(xlim=(0, contour.x[-1]), ylim=(0, contour.y[-1]))
            axes.set_title(f"{contour.title} (now {float(contour.values[0, 0]):.3g})", loc="left")
            _marks(axes, contour.marks)
    return figure


def _levels(values: Any, threshold: float) -> np.ndarray:
    """Round levels that lie densely enough where most of the surface is."""
    from matplotlib.ticker import MaxNLocator

    low, high = np.percentile(np.ma.compressed(values), [3, 97])
    ticks = MaxNLocator(_LEVELS).tick_values(low, high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return np.array([tick for tick in ticks if low < tick < high and abs(tick - threshold) > 0.25 * step])


def curves_figure(curves: Curves) -> Figure:
    """Curves in one frame; benchmarks are points, or ticks on the horizontal axis."""
    with _framed() as (figure, (axes,)):
        for i, line in enumerate(curves.lines):
            axes.plot(line.x, line.y, color=SERIES[i % len(SERIES)], lw=1.6, label=line.label, ls=_DASHES[i % 4])
        if curves.threshold is not None:
            axes.axhline(curves.threshold, color=ACCENT, lw=1.2)
        if curves.log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        else:
            axes.set_xlim(left=0)
        if curves.threshold is None and not curves.log:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=curves.xlabel, ylabel=curves.ylabel)
        _marks(axes, curves.marks)
        if curves.lines:
            axes.legend(fontsize=8)
    return figure


_DASHES: Any = ("-", "--", ":", "-.")


def band_figure(band: Band) -> Figure:
    """Bounds as a band, confidence limits as dashed lines around it."""
    with _framed() as (figure, (axes,)):
        colour = SERIES[0]
        axes.fill_between(band.x, band.lower, band.upper, color=colour, alpha=0.22, lw=0, label="bounds")
        for edge in (band.lower, band.upper):
            axes.plot(band.x, edge, color=colour, lw=1.5)
        if band.interval is not None:
            for i, edge in enumerate(band.interval):
                axes.plot(band.x, edge, color=colour, lw=1, ls="--", label="confidence limits" if not i else None)
        axes.axhline(band.threshold, color=ACCENT, lw=1.2)
        axes.set(xlabel=band.xlabel, ylabel=band.ylabel, xlim=(band.x[0], band.x[-1]))
        _marks(axes, band.marks)
        axes.legend(fontsize=8)
    return figure


def _label_box(label: str, spot: tuple[float, float], right: bool, above: bool) -> tuple[float, float, float, float]:
    """Where a name will stand, as left, right, bottom, top in shares of the frame; its width is an estimate."""
    wide, high = 0.0145 * len(label), 0.045
    left = spot[0] + 0.02 if right else spot[0] - 0.02 - wide
    bottom = spot[1] + 0.008 if above else spot[1] - 0.008 - high
    return left, left + wide, bottom, bottom + high


def _apart(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Gap between two boxes, negative where they overlap."""
    return max(one[0] - other[1], other[0] - one[1], one[2] - other[3], other[2] - one[3])


def _marks(axes: Axes, marks: Sequence[Mark]) -> None:
    """Benchmarks; names stand where they cover neither each other nor a point, those farthest out first."""
    points = [(mark.label, mark.x, mark.y) for mark in marks if mark.y is not None]
    for _, x, y in points:
        axes.plot(x, y, marker="D", color=INK, ms=4.5, ls="none", zorder=5)
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = [tuple(to_axes.transform(point[1:])) for point in points]
    written: list[tuple[float, float, float, float]] = []
    for i in sorted(range(len(points)), key=lambda i: -sum(spots[i])):
        label, x, y = points[i]
        others = [spot for j, spot in enumerate(spots) if j != i]
        for right, above in ((True, True), (False, True), (True, False), (False, False)):
            box = _label_box(label, spots[i], right, above)
            outside = box[0] < -0.02 or box[1] > 1.02 or box[2] < -0.02 or box[3] > 1.02
            if outside or any(_apart(box, other) <= 0 for other in written):
                continue
            if any(box[0] < u < box[1] and box[2] < v < box[3] for u, v in others):
                continue
            written.append(box)
            style: dict[str, Any] = {"ha": "left" if right else "right", "va": "bottom" if above else "top"}
            style["xytext"] = (6 if right else -6, 2 if above else -2)
            text = axes.annotate(label, (x, y), textcoords="offset points", fontsize=7.5, zorder=6, **style)
            text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
            break
    ticks: list[float] = []
    for mark in sorted((mark for mark in marks if mark.y is None), key=lambda mark: -mark.x):
        axes.axvline(mark.x, ymax=0.04, color=INK, lw=1.6)
        place = axes.transAxes.inverted().transform(axes.transData.transform((mark.x, 0)))[0]
        if any(abs(place - other) < 0.035 for other in ticks):
            continue
        ticks.append(place)
        style = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "center", "va": "bottom"}
        text = axes.annotate(mark.label, (mark.x, 0.05), fontsize=7, **style)
        text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
