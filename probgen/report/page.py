"""What a page is made of: sections of blocks. The template knows how each block looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = [
    "NONE",
    "TIMES",
    "Block",
    "Code",
    "Facts",
    "Item",
    "Items",
    "Legend",
    "Note",
    "Panels",
    "Picture",
    "Section",
    "Table",
    "Verdict",
]


@dataclass(frozen=True)
class Picture:
    """One inline picture.

    Attributes:
        svg: The picture; it carries its own alternative text.
        name: Heading above it.
        note: Sentence below it.
    """

    svg: Markup
    name: str = ""
    note: str = ""


@dataclass(frozen=True)
class Panels:
    """Pictures of one size, side by side where there is room.

    Attributes:
        pictures: The pictures.
        width: Smallest width of one, in CSS pixels.
        scroll: Keep that width on a narrow screen, and scroll inside.
    """

    kind: ClassVar[str] = "panels"
    pictures: Sequence[Picture]
    width: int = 300
    scroll: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: Names of the columns.
        rows: Cells.
        caption: What it is, for those who hear it; and shown.
        numbers: Whether all columns but the first are numbers.
        sortable: Whether to offer sorting and filtering.
        flagged: Rows to point out.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: bool = True
    sortable: bool = False
    flagged: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Facts:
    """Numbers at a glance: ``(what, value, remark)``."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Item:
    """A finding: severity in a word, what, where, what to do."""

    severity: str
    what: str
    where: str
    advice: str


@dataclass(frozen=True)
class Items:
    """Findings, and what was looked at and is fine."""

    kind: ClassVar[str] = "items"
    items: Sequence[Item]
    fine: Sequence[str] = ()


@dataclass(frozen=True)
class Note:
    """A paragraph; ``heading`` stands above it where given."""

    kind: ClassVar[str] = "note"
    text: str
    heading: str = ""


@dataclass(frozen=True)
class Legend:
    """What colours mean: ``(colour, name)``."""

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Program text; folded away under ``fold`` where given."""

    kind: ClassVar[str] = "code"
    text: str
    fold: str = ""


NONE = "\N{EN DASH}"
"""What stands in a cell that has no number."""
TIMES = "\N{MULTIPLICATION SIGN}"

type Block = Panels | Table | Facts | Items | Note | Legend | Code


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: Name in links.
        title: Heading.
        about: What it shows and how to read it.
        blocks: What it holds.
        missing: Why it is empty, where it is.
    """

    key: str
    title: str
    about: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: str = ""


@dataclass(frozen=True)
class Verdict:
    """May the result be used?

    Attributes:
        level: ``good``, ``look`` or ``bad``: how it is coloured.
        title: The answer.
        reasons: Why, and where.
        remark: What no check can see.
    """

    level: str
    title: str
    reasons: Sequence[tuple[str, str]]
    remark: str = ""
