"""Findings: what is wrong with a result, where, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import pandas


__all__ = ["Finding", "Findings", "Severity", "listed", "worst"]

_SHOWN = 3


class Severity(enum.Enum):
    """How much a finding matters; ``.value`` is a sentence for people."""

    error = "The result must not be used as it is."
    warning = "The result may be off; look before using it."
    note = "Nothing is wrong, but a careful reader would want to know."


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        severity: How much it matters.
        what: What is wrong, with the numbers.
        where: The variables, chains or draws concerned, worst first, with numbers, for people.
        advice: What to do.
        kind: A short name of what was found, for programs: ``"rhat"``, ``"divergences"`` ...
        variables: Labels of all variables concerned (``"theta[A]"``), worst first; empty where it concerns no variable.
    """

    severity: Severity
    what: str
    where: str
    advice: str
    kind: str = ""
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        return f"{self.severity.name}: {self.what}{where}. {self.advice}"


class Findings(Sequence[Finding]):
    """What a check found, worst first; empty when all is well. Printable.

    Args:
        found: The findings.
        checked: One phrase per thing that was looked at and is fine.
        caveat: What no check can see: how the method that made the draws is approximate. Empty for an exact one.
    """

    def __init__(self, found: Sequence[Finding], checked: Sequence[str] = (), caveat: str = "") -> None:
        self._found = tuple(sorted(found, key=lambda finding: list(Severity).index(finding.severity)))
        self.checked = tuple(checked)
        self.caveat = caveat

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def of_kind(self, *kinds: str) -> tuple[Finding, ...]:
        """The findings of some kinds (``"rhat"``, ``"divergences"`` ...), worst first."""
        return tuple(finding for finding in self if finding.kind in kinds)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Errors and warnings, without notes."""
        return tuple(finding for finding in self if finding.severity is not Severity.note)

    @property
    def summary(self) -> str:
        """No problems and what was looked at, or how many of which severity; and the caveat."""
        caveat = f" The result is approximate: {self.caveat}" if self.caveat else ""
        counts = [(sum(f.severity is severity for f in self), severity.name) for severity in Severity]
        counted = ", ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in counts if n)
        if self.problems:
            return f"{counted}.{caveat}"
        return f"No problems found: {'; '.join(self.checked)}.{f' {counted}.' if counted else ''}{caveat}"

    def __repr__(self) -> str:
        return "\n".join([self.summary, *(f"- {finding}" for finding in self)])

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per finding: severity, kind, what, where, variables (a tuple of labels), advice."""
        import pandas

        rows = [(f.severity.name, f.kind, f.what, f.where, f.variables, f.advice) for f in self]
        return pandas.DataFrame(rows, columns=["severity", "kind", "what", "where", "variables", "advice"])


def worst(values: Mapping[str, float], *, largest: bool) -> list[tuple[str, float]]:
    """Items of a mapping, worst first."""
    return sorted(values.items(), key=lambda item: -item[1] if largest else item[1])


def listed(items: Sequence[tuple[str, float | str]], form: str = "{}", shown: int = _SHOWN) -> str:
    """The first items in words: ``a (1.02), b (1.01) and 7 more``."""
    text = ", ".join(f"{label} ({form.format(value)})" for label, value in items[:shown])
    more = len(items) - shown
    return f"{text} and {more} more" if more > 0 else text
