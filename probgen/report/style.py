"""How the pictures of a report look, and how they get into a page.

A picture becomes inline SVG. Its text stays text, in the fonts of the page; the colours of text, axes and surfaces
become the variables of the page, so that one picture serves a light and a dark one. What has very many points is drawn
as an image inside the SVG.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from probgen.base.palette import BORDER, HALO, INK, LINE, PAPER, PLATE, QUIET, SERIES, SHADE

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["STYLE", "cut", "drawing", "inline", "series"]

STYLE: Any = {
    "axes.edgecolor": BORDER,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "probgen",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": BORDER,
    "xtick.labelcolor": QUIET,
    "ytick.color": BORDER,
    "ytick.labelcolor": QUIET,
}
_COLOURS = {
    INK: "--ink",
    "#000000": "--ink",
    QUIET: "--quiet",
    LINE: "--line",
    PAPER: "--paper",
    SHADE: "--shade",
    PLATE: "--plate",
    BORDER: "--border",
    HALO: "--paper",
}
_LINES, _POINTS = 3000, 400
"""Points of the lines and of the clouds of one panel above which they are drawn as an image."""
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_PALETTE = 64


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Our style, and no figure left open or shown."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with warnings.catch_warnings(), plt.ioff(), plt.rc_context(STYLE):
        # Missing glyphs, layouts that do not fit, fewer samples than asked for: nothing that a reader could act on.
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for number in set(plt.get_fignums()) - set(before):
                plt.close(number)


def series(count: int) -> list[str]:
    """Colours for ``count`` things that stand side by side."""
    return [SERIES[i % len(SERIES)] for i in range(count)]


def cut(axes: Axes, size: tuple[float, float], margins: tuple[float, float, float, float], label: str) -> Markup:
    """One panel of a figure as an inline SVG of its own.

    Args:
        axes: The panel.
        size: Width and height, in inches.
        margins: Room for labels: left, bottom, right, top, in inches.
        label: What a reader who does not see it is told.
    """
    figure: Any = axes.figure
    left, bottom, right, top = margins
    others = [(other, other.get_visible()) for other in figure.axes if other is not axes]
    before = figure.get_size_inches()
    # Whatever stands in the way of a fixed place is switched off: layout engines, shared cells.
    figure.set_layout_engine("none")
    for other, _ in others:
        other.set_visible(False)
    figure.set_size_inches(*size)
    axes.set_in_layout(False)
    width, height = size
    axes.set_position((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    _rasterise(axes)
    picture = inline(figure, label)
    for other, visible in others:
        other.set_visible(visible)
    figure.set_size_inches(*before)
    return picture


def _rasterise(axes: Axes) -> None:
    """Draw the data of a crowded panel as an image."""
    lines: list[Any] = list(axes.lines)
    clouds: list[Any] = list(axes.collections)
    if sum(len(line.get_xdata()) for line in lines) > _LINES:
        for line in lines:
            line.set_rasterized(True)
    if sum(len(cloud.get_offsets()) for cloud in clouds) > _POINTS:
        for cloud in clouds:
            cloud.set_rasterized(True)


def inline(figure: Figure, label: str) -> Markup:
    """A figure as inline SVG, with the colours and fonts of the page.

    Args:
        figure: The figure; it is drawn without a background.
        label: What a reader who does not see it is told.
    """
    from markupsafe import Markup

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    root = ElementTree.fromstring(text)
    prefix = f"i{hashlib.blake2b(text, digest_size=5).hexdigest()}-"
    used = set(re.findall(rb'(?:url\(#|href="#)([^)"]+)', text))
    _clean(root, prefix, {name.decode() for name in used})
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(node: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Make an element of matplotlib's one of a page: no namespaces, no styles for the whole page, ids of its own."""
    node.tag = node.tag.removeprefix(_SVG)
    # Text of the picture is never touched, only what matplotlib wrote around it.
    for name, value in list(node.attrib.items()):
        if name == "id":
            del node.attrib[name]
            if value in used:
                node.attrib["id"] = prefix + value
        elif name == _LINK:
            del node.attrib[name]
            node.attrib["href"] = f"#{prefix}{value[1:]}" if value.startswith("#") else _smaller(value)
        elif name == "style":
            own = re.sub(r"font-family: [^;]*(; )?", "", value)
            node.attrib[name] = re.sub(r"#[0-9a-f]{6}", _variable, own).strip().rstrip(";")
        elif name == "d":
            node.attrib[name] = re.sub(r"-?\d+\.\d+", _rounded, " ".join(value.split()))
        elif "url(#" in value:
            node.attrib[name] = value.replace("url(#", f"url(#{prefix}")
    for child in list(node):
        if child.tag.removeprefix(_SVG) in ("metadata", "style"):
            node.remove(child)
        else:
            _clean(child, prefix, used)
    if node.tag != "text":
        node.text = node.text if node.text and node.text.strip() else None
    node.tail = None


def _variable(found: re.Match[str]) -> str:
    colour = found.group()
    return f"var({_COLOURS[colour]})" if colour in _COLOURS else colour


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found.group()):.1f}".removesuffix(".0")


def _smaller(link: str) -> str:
    """The same image in few colours: half the size, and nobody sees it."""
    from PIL import Image

    head, _, data = link.partition(",")
    if head != "data:image/png;base64":
        raise ValueError(f"an image of a picture is not inline: {link[:40]}")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    buffer = io.BytesIO()
    image.quantize(_PALETTE, method=Image.Quantize.FASTOCTREE).save(buffer, format="png", optimize=True)
    return f"{head},{base64.b64encode(buffer.getvalue()).decode()}"
