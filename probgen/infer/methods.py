"""The table behind ``pg.methods()``: what exists, which engines serve it, what it asks of a model."""

from __future__ import annotations

import html
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

from probgen.backends.registry import backends_of
from probgen.base.errors import MethodError, suggestion
from probgen.infer.method import Method

__all__ = ["MethodRow", "MethodTable", "methods"]

_HEADER = ("method", "class", "backends", "needs", "summary")


@dataclass(frozen=True)
class MethodRow:
    """One method.

    Attributes:
        name: Its name on the command line.
        method: Its class.
        backends: Engines that serve it, the default first, registered ones last.
        needs: What it asks of a model.
        summary: What it is, in a line.
    """

    name: str
    method: type[Method]
    backends: tuple[str, ...]
    needs: tuple[str, ...]
    summary: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row in words, in the order of the table's columns."""
        needs = ", ".join(self.needs) or "nothing"
        return self.name, f"pg.{self.method.__name__}", ", ".join(self.backends), needs, self.summary


class MethodTable(tuple[MethodRow, ...]):
    """The methods by name; printable."""

    header = _HEADER

    def find(self, name: str) -> type[Method]:
        """The class of the method called ``name``.

        Raises:
            MethodError: If there is none; the nearest is suggested.
        """
        for row in self:
            if row.name == name:
                return row.method
        raise MethodError(f"there is no method {name!r}. {suggestion(name, [row.name for row in self])}")

    def __repr__(self) -> str:
        rows = [_HEADER, *(row.cells for row in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        def line(tag: str, cells: tuple[str, ...]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row.cells) for row in self)
        return f"<table><thead>{line('th', _HEADER)}</thead><tbody>{body}</tbody></table>"


def methods() -> MethodTable:
    """Every method that probgen has, with the engines registered at the time of the call.

    A method is found by being defined: each module of ``probgen.infer`` is looked through for concrete subclasses of
    ``Method``.
    """
    found = sorted(set(_concrete(Method)), key=lambda method: method.name)
    return MethodTable(
        MethodRow(
            name=method.name,
            method=method,
            backends=backends_of(method.name, method.backends),
            needs=tuple(need.value for need in sorted(method.needs, key=lambda need: need.name)),
            summary=method.summary,
        )
        for method in found
    )


def _concrete(base: type[Method]) -> Iterator[type[Method]]:
    package = __name__.rpartition(".")[0]
    # Through sys.modules: as an attribute of probgen, `infer` is the function.
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    waiting = [base]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith(f"{package}.") and hasattr(kind, "name") and not inspect.isabstract(kind):
                yield kind
