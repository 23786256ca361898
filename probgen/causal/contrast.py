"""Contrasts between two values of a treatment: total, controlled direct, natural and path-specific effects.

With x the active and x* the reference value, and M all that lies between X and Y (Pearl 2001; Robins and Greenland
1992):

- total effect: E[Y(x)] - E[Y(x*)];
- controlled direct effect: E[Y(x, m)] - E[Y(x*, m)], with M set to m for everybody;
- natural direct effect: E[Y(x, M(x*))] - E[Y(x*)];
- natural indirect effect: E[Y(x*, M(x))] - E[Y(x*)];
- effect along given paths: E[Y] where x passes along these paths and x* along all others, minus E[Y(x*)].

The total effect is the natural direct effect minus the natural indirect effect of the opposite change, from x to x*.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from probgen.base.errors import ModelError
from probgen.causal.query import label_of

if TYPE_CHECKING:
    from probgen.causal.graph import CausalGraph, Names

__all__ = [
    "Contrast",
    "ControlledDirectEffect",
    "NaturalDirectEffect",
    "NaturalIndirectEffect",
    "PathSpecificEffect",
    "TotalEffect",
    "contrast_of",
]


@dataclasses.dataclass(frozen=True)
class Contrast(abc.ABC):
    """A contrast of mean outcomes between two values of a treatment.

    Args:
        treatment: The treatment.
        outcome: The outcome, whose labels are numbers.
        active: The value of the treatment whose effect is asked for.
        reference: The value that it is compared with.

    Raises:
        ModelError: If treatment and outcome, or active and reference, are the same.
    """

    treatment: str
    outcome: str
    active: Hashable = 1
    reference: Hashable = 0

    def __post_init__(self) -> None:
        if self.treatment == self.outcome:
            raise ModelError(f"{self.treatment!r} is treatment and outcome. Ask for the effect on another node.")
        if self.active == self.reference:
            raise ModelError(f"active and reference are both {self.active!r}. Give two values of {self.treatment!r}.")

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The outcome, as for a ``Query``."""
        return (self.outcome,)

    @property
    def do(self) -> tuple[str, ...]:
        """What is set, as for a ``Query``."""
        return (self.treatment,)

    @property
    def given(self) -> tuple[str, ...]:
        """Nothing, as for a ``Query``."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (*self.outcomes, *self.do)

    def check(self, graph: CausalGraph) -> None:
        """Raise a ModelError if a name is not a node of the graph."""
        graph.require(self.outcome, f"the query {self}")
        graph.require_causes(self.do, f"the query {self}")

    @abc.abstractmethod
    def counts(self, graph: CausalGraph) -> dict[str, tuple[int, int]]:
        """By child of the treatment: over how many of the paths from it to the outcome the active value passes, and how
        many there are."""

    def _levels(self) -> str:
        return f", {self.treatment}: {self.reference} to {self.active}"


@dataclasses.dataclass(frozen=True)
class TotalEffect(Contrast):
    """E[Y(x)] - E[Y(x*)]: what changing the treatment does, by whatever way."""

    def counts(self, graph: CausalGraph) -> dict[str, tuple[int, int]]:
        return {child: (count, count) for child, count in _paths(graph, self.treatment, self.outcome).items()}

    def __str__(self) -> str:
        return f"TE({self.treatment} -> {self.outcome}{self._levels()})"


@dataclasses.dataclass(frozen=True)
class ControlledDirectEffect(Contrast):
    """E[Y(x, m)] - E[Y(x*, m)]: what changing the treatment does where mediators are held for everybody.

    Args:
        mediators: Names that are held; a mapping gives labels to hold them at, names alone make the effect a function
            of their values.
    """

    mediators: Mapping[str, Hashable] | Names = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = dict(self.mediators) if isinstance(self.mediators, Mapping) else dict.fromkeys(_tuple(self.mediators))
        object.__setattr__(self, "mediators", labels)
        if not labels:
            raise ModelError("the controlled direct effect needs mediators to hold. Name at least one.")
        for name in (self.treatment, self.outcome):
            if name in labels:
                raise ModelError(f"mediators has {name!r}, which is the treatment or the outcome. Give other nodes.")

    def __hash__(self) -> int:
        return hash((self.treatment, self.outcome, self.active, self.reference, frozenset(self.labels.items())))

    @property
    def labels(self) -> dict[str, Hashable]:
        """By mediator, the label that it is held at; ``None`` where the effect is a function of it."""
        assert isinstance(self.mediators, dict)
        return self.mediators

    @property
    def do(self) -> tuple[str, ...]:
        return (self.treatment, *self.labels)

    def counts(self, graph: CausalGraph) -> dict[str, tuple[int, int]]:
        held = frozenset(self.labels)
        return {
            child: (count, count)
            for child, count in _paths(graph.subgraph(set(graph.nodes) - held), self.treatment, self.outcome).items()
        }

    def __str__(self) -> str:
        held = ", ".join(name if label is None else f"{name}={label!r}" for name, label in self.labels.items())
        return f"CDE({self.treatment} -> {self.outcome}; {held}{self._levels()})"


@dataclasses.dataclass(frozen=True)
class _Mediated(Contrast):
    """A contrast along some of the paths: past the mediators, or through them."""

    mediators: Names = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names = _tuple(self.mediators)
        object.__setattr__(self, "mediators", names)
        for name in (self.treatment, self.outcome):
            if name in names:
                raise ModelError(f"mediators has {name!r}, which is the treatment or the outcome. Give other nodes.")

    def check(self, graph: CausalGraph) -> None:
        super().check(graph)
        graph.require(self.mediators, f"the query {self}")


@dataclasses.dataclass(frozen=True)
class NaturalDirectEffect(_Mediated):
    """E[Y(x, M(x*))] - E[Y(x*)]: what changing the treatment does past the mediators.

    Args:
        mediators: Names; paths through any of them are indirect. By default the edge from treatment to outcome alone is
            direct.
    """

    def counts(self, graph: CausalGraph) -> dict[str, tuple[int, int]]:
        return _past(graph, self.treatment, self.outcome, _tuple(self.mediators))

    def __str__(self) -> str:
        return f"NDE({self.treatment} -> {self.outcome}{_shown(self.mediators)}{self._levels()})"


@dataclasses.dataclass(frozen=True)
class NaturalIndirectEffect(_Mediated):
    """E[Y(x*, M(x))] - E[Y(x*)]: what changing the treatment does through the mediators.

    Args:
        mediators: Names; paths through any of them are indirect. By default all but the edge from treatment to outcome
            is.
    """

    def counts(self, graph: CausalGraph) -> dict[str, tuple[int, int]]:
        past = _past(graph, self.treatment, self.outcome, _tuple(self.mediators))
        return {child: (total - direct, total) for child, (direct, total) in past.items()}

    def __str__(self) -> str:
        return f"NIE({self.treatment} -> {self.outcome}{_shown(self.mediators)}{self._levels()})"


@dataclasses.dataclass(frozen=True)
class PathSpecificEffect(Contrast):
    """E[Y] where x passes along some paths and x* along the others, minus E[Y(x*)].

    Args:
        paths: Directed paths from treatment to outcome, as ``"X -> M -> Y"`` or tuples of names.
    """

    paths: Iterable[str | tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)
        paths = tuple(
            tuple(part.strip() for part in path.split("->")) if isinstance(path, str) else tuple(path) for path in given
        )
        object.__setattr__(self, "paths", tuple(dict.fromkeys(paths)))
        if not paths:
            raise ModelError("the path-specific effect needs paths. Give some as 'X -> M -> Y'.")
        for path in paths:
            if len(path) < 2 or path[0] != self.treatment or path[-1] != self.outcome:
                raise ModelError(
                    f"the path {' -> '.join(path)} does not lead from {self.treatment} to {self.outcome}. Give "
                    f"directed paths from treatment to outcome."
                )

    def check(self, graph: CausalGraph) -> None:
        super().check(graph)
        for path in self.paths:
            graph.require(path, f"the query {self}")
            for a, b in itertools.pairwise(path):
                if (a, b) not in graph.directed:
                    raise ModelError(f"the path {' -> '.join(path)} has {a} -> {b}, which is no edge of the graph.")

    def counts(self, graph: CausalGraph) -> dict[str, tuple[int, int]]:
        return {
            child: (sum(path[1] == child for path in self.paths), count)
            for child, count in _paths(graph, self.treatment, self.outcome).items()
        }

    def __str__(self) -> str:
        return f"PSE({'; '.join(' -> '.join(path) for path in self.paths)}{self._levels()})"


def contrast_of(text: str) -> Contrast | None:
    """The effect that a text stands for, or ``None`` if it is not of that form.

    Args:
        text: ``"TE(X -> Y)"`` (or ATE), ``"NDE(X -> Y)"``, ``"NIE(X -> Y; M)"``, ``"CDE(X -> Y; M=0)"`` or
            ``"PSE(X -> M -> Y; X -> Y)"``; the treatment goes from 0 to 1.
    """
    match = re.fullmatch(r"\s*(ATE|TE|CDE|NDE|NIE|PSE)\s*\((.*)\)\s*", text, re.S)
    if match is None:
        return None
    kind, inner = match[1], match[2]
    groups = [group.strip() for group in inner.split(";")]
    path = [part.strip() for part in groups[0].split("->")]
    if len(path) < 2 or not all(path) or (len(path) > 2 and kind != "PSE") or (len(groups) > 2 and kind != "PSE"):
        raise ModelError(
            f"the query {text!r} cannot be read. Write 'NDE(X -> Y)', 'CDE(X -> Y; M=0)' or 'PSE(X -> M -> Y)'."
        )
    treatment, outcome = path[0], path[-1]
    if kind == "PSE":
        return PathSpecificEffect(treatment, outcome, paths=tuple(groups))
    words = [word.strip() for word in groups[1].split(",")] if len(groups) == 2 else []
    if kind in {"TE", "ATE"}:
        if words:
            raise ModelError(
                f"the query {text!r} names mediators, and a total effect has none. Ask for NDE, NIE or CDE."
            )
        return TotalEffect(treatment, outcome)
    if kind == "CDE":
        pairs = [word.partition("=") for word in words]
        return ControlledDirectEffect(
            treatment, outcome, mediators={a.strip(): label_of(b.strip()) if sign else None for a, sign, b in pairs}
        )
    made = NaturalDirectEffect if kind == "NDE" else NaturalIndirectEffect
    return made(treatment, outcome, mediators=tuple(words))


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(sorted(names) if isinstance(names, frozenset | set) else names)


def _shown(mediators: Names) -> str:
    return f"; {', '.join(mediators)}" if mediators else ""


def _paths(graph: CausalGraph, treatment: str, outcome: str) -> dict[str, int]:
    """By child of the treatment, the number of directed paths from it to the outcome; children without one left out."""
    count = dict.fromkeys(graph.nodes, 0) | {outcome: 1}
    for name in reversed(graph.topological):
        if name not in {outcome, treatment}:
            count[name] = sum(count[child] for child in graph.children(name))
    return {child: count[child] for child in sorted(graph.children(treatment)) if count[child]}


def _past(graph: CausalGraph, treatment: str, outcome: str, mediators: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """By child of the treatment: how many paths avoid the mediators, and how many there are."""
    total = _paths(graph, treatment, outcome)
    if not mediators:
        return {child: (int(child == outcome), count) for child, count in total.items()}
    past = _paths(graph.subgraph(set(graph.nodes) - set(mediators)), treatment, outcome)
    return {child: (past.get(child, 0), count) for child, count in total.items()}
