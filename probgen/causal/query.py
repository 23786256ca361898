"""A causal query: the law of outcomes under an intervention, possibly among those with given values of other nodes.

``P(y | do(x), z)`` is the law of Y where X was set to x for everybody, among those who then have Z = z. The notation is
Pearl's (2009).
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from probgen.base.errors import ModelError

if TYPE_CHECKING:
    from probgen.causal.graph import CausalGraph

__all__ = ["Query", "label_of"]

_EXAMPLE = "Write queries as 'P(Y | do(X))', 'P(Y1, Y2 | do(X=1, Z), W)' or 'P(Y)'."


@dataclasses.dataclass(frozen=True)
class Query:
    """The law of ``outcomes`` under an intervention on ``do``, given ``given``.

    Args:
        outcomes: Names; a string is one name, here as below.
        do: Names that are set.
        given: Names that are seen after the intervention.
        values: Labels of some of these names: ``{"X": 1}`` asks for do(X=1); names without a label stay variables.

    Raises:
        ModelError: If there is no outcome, a name has two roles, or ``values`` names another node.
    """

    outcomes: tuple[str, ...]
    do: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    values: Mapping[str, Hashable] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("outcomes", "do", "given"):
            names = getattr(self, role)
            names = (
                (names,) if isinstance(names, str) else sorted(names) if isinstance(names, frozenset | set) else names
            )
            object.__setattr__(self, role, tuple(names))
        object.__setattr__(self, "values", dict(self.values))
        if not self.outcomes:
            raise ModelError(f"the query has no outcome. {_EXAMPLE}")
        seen: dict[str, str] = {}
        for role, word in (("outcomes", "an outcome"), ("do", "in do()"), ("given", "given")):
            for name in getattr(self, role):
                if name in seen:
                    raise ModelError(
                        f"the query has {name!r} twice: as {seen[name]} and as {word}. Give every node one role."
                    )
                seen[name] = word
        for name in self.values:
            if name not in seen:
                raise ModelError(f"values names {name!r}, which is not in the query. Its names are {', '.join(seen)}.")

    def __hash__(self) -> int:
        return hash((self.outcomes, self.do, self.given, frozenset(self.values.items())))

    @property
    def names(self) -> tuple[str, ...]:
        """All names: outcomes, then do, then given."""
        return (*self.outcomes, *self.do, *self.given)

    @classmethod
    def parse(cls, text: str) -> Query:
        """Read a query from its notation.

        Args:
            text: As ``"P(Y | do(X))"`` or ``"P(Y1, Y2 | do(X=1, Z), W)"``. Labels are numbers, ``True``, ``False``,
                quoted strings or bare words; a name with blanks or signs goes in double quotes.

        Raises:
            ModelError: If the text is not such a query; the message says where.
        """
        inner = re.fullmatch(r"\s*[Pp]\s*\((.*)\)\s*", text, re.S)
        if inner is None:
            raise ModelError(f"the query {text!r} is not of the form P(... | ...). {_EXAMPLE}")
        outcomes: list[str] = []
        do: list[str] = []
        given: list[str] = []
        values: dict[str, Hashable] = {}
        place, role = 0, outcomes
        tokens = _tokens(inner[1], text)
        while place < len(tokens):
            if tokens[place] == "do" and tokens[place + 1 : place + 2] == ["("]:
                if role is not given:
                    raise ModelError(f"the query {text!r} has do() before the bar. {_EXAMPLE}")
                if ")" not in tokens[place:]:
                    raise ModelError(f"the query {text!r} has a do( that is not closed. {_EXAMPLE}")
                end = tokens.index(")", place)
                _items(tokens[place + 2 : end], do, values, text)
                place = end + 1
            else:
                stops = [n for n in range(place, len(tokens)) if tokens[n] in {",", "|"}]
                end = min(stops, default=len(tokens))
                _items(tokens[place:end], role, values, text)
                place = end
            if place == len(tokens):
                break
            if tokens[place] == "|":
                if role is given:
                    raise ModelError(f"the query {text!r} has two bars. {_EXAMPLE}")
                role = given
            elif tokens[place] != ",":
                raise ModelError(f"the query {text!r} has {tokens[place]!r} where a comma is due. {_EXAMPLE}")
            place += 1
            if place == len(tokens):
                raise ModelError(f"the query {text!r} ends where a name is due. {_EXAMPLE}")
        return cls(tuple(outcomes), tuple(do), tuple(given), values)

    def check(self, graph: CausalGraph) -> None:
        """Raise a ModelError if a name is not a node of the graph."""
        graph.require((*self.outcomes, *self.given), f"the query {self}")
        graph.require_causes(self.do, f"the query {self}")

    def __str__(self) -> str:
        def shown(names: tuple[str, ...]) -> str:
            return ", ".join(f"{name}={self.values[name]!r}" if name in self.values else name for name in names)

        conditions = [f"do({shown(self.do)})"] if self.do else []
        conditions += [shown(self.given)] if self.given else []
        return f"P({shown(self.outcomes)}{' | ' if conditions else ''}{', '.join(conditions)})"


def _tokens(inner: str, text: str) -> list[str]:
    """Names, labels and signs, in order; quoted strings keep their quotes."""
    found = re.findall(r"""\s*("[^"]*"|'[^']*'|[(),|=]|[^\s(),|="']+(?:\s+[^\s(),|="']+)*|\S)""", inner)
    if any(token in {'"', "'"} for token in found):
        raise ModelError(f"the query {text!r} has a quote that is not closed. {_EXAMPLE}")
    return found


def _items(tokens: list[str], names: list[str], values: dict[str, Hashable], text: str) -> None:
    """Read ``name`` or ``name=label``, separated by commas."""
    groups: list[list[str]] = [[]]
    for token in tokens:
        if token == ",":
            groups.append([])
        else:
            groups[-1].append(token)
    for group in groups:
        match group:
            case []:
                raise ModelError(f"the query {text!r} lacks a name. {_EXAMPLE}")
            case [name] if name not in "(=)":
                names.append(_name(name))
            case [name, "=", label] if name not in "(=)" and label not in "(=)":
                names.append(_name(name))
                values[_name(name)] = label_of(label)
            case _:
                raise ModelError(f"the query {text!r} cannot be read at {' '.join(group)!r}. {_EXAMPLE}")


def _name(token: str) -> str:
    return token[1:-1] if token[0] in "\"'" else token


def label_of(token: str) -> Hashable:
    """The label that a word of a query stands for: a number, a truth value, or itself as a string."""
    try:
        value = ast.literal_eval(token)
    except (ValueError, SyntaxError):
        return token
    return value if isinstance(value, int | float | str | bool) else token
