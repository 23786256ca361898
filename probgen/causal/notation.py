"""How formulas are written: plain text and LaTeX.

Outcomes of a law stand causes first, what they are given stands causes last, as in textbooks: P(y | x, w) where W
causes X. A value is written as its node in small letters unless two nodes would then look alike.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from probgen.causal.expression import (
    Constant,
    Difference,
    Expression,
    Mean,
    Probability,
    Product,
    Ratio,
    Sum,
    Variable,
    factors_of,
)

__all__ = ["Notation", "escaped"]


@dataclasses.dataclass(frozen=True)
class Notation:
    """A way to write formulas about some nodes.

    Attributes:
        nodes: All nodes, causes before effects.
        latex: Whether LaTeX is written, or plain text.
    """

    nodes: tuple[str, ...]
    latex: bool = False

    def symbol(self, variable: Variable) -> str:
        """A variable, with its primes or its label."""
        if variable.fixed:
            label = str(variable.value)
            return f"{self._name(variable.name)} = {escaped(label)}" if self.latex else f"{variable.name}={label}"
        small = len({name.lower() for name in self.nodes}) == len(set(self.nodes))
        name = variable.name.lower() if small else variable.name
        return (self._name(name) if self.latex else name) + "'" * variable.copy

    def symbols(self, some: Iterable[Variable], causes_last: bool = False) -> str:
        """Variables, separated by commas."""
        place = {name: n for n, name in enumerate(self.nodes)}
        order = sorted(some, key=lambda v: (place.get(v.name, len(place)), v.key))
        return ", ".join(self.symbol(variable) for variable in (reversed(order) if causes_last else order))

    def write(self, expression: Expression) -> str:
        """An expression."""
        match expression:
            case Probability(of, given):
                return f"P({self._law(of, given)})"
            case Mean(variable, Probability(of, given)) if of == {variable}:
                bar = self._bar + self.symbols(given, causes_last=True) if given else ""
                return f"E({self._name(variable.name)}{bar})"
            case Mean(variable, body):
                return self._summed([variable], f"{self.symbol(variable)} {self._tight(body)}")
            case Sum(over, body):
                inner = self.write(body)
                return self._summed(over, self._brackets(inner) if isinstance(body, Difference | Ratio) else inner)
            case Product():
                return self._product(factors_of(expression))
            case Ratio(a, b):
                if self.latex:
                    return rf"\frac{{{self.write(a)}}}{{{self.write(b)}}}"
                return f"{self._tight(a)} / {self._tight(b)}"
            case Difference(a, b):
                second = self.write(b)
                return f"{self.write(a)} - {self._brackets(second) if isinstance(b, Difference) else second}"
            case Constant(value):
                return f"{value:g}"

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _bar(self) -> str:
        return r" \mid " if self.latex else " | "

    def _law(self, of: Iterable[Variable], given: Iterable[Variable]) -> str:
        given = list(given)
        return self.symbols(of) + (self._bar + self.symbols(given, causes_last=True) if given else "")

    def _product(self, factors: tuple[Expression, ...]) -> str:
        """Causes before effects; sums last, where they need no brackets."""
        place = {name: n for n, name in enumerate(self.nodes)}

        def order(factor: Expression) -> tuple[object, ...]:
            late = isinstance(factor, Sum | Mean) and not _expectation(factor)
            of = factor.of if isinstance(factor, Probability) else frozenset()
            return late, not of, min((place.get(v.name, 0) for v in of), default=0), self.write(factor)

        ordered = sorted(factors, key=order)
        parts = [self._tight(factor) for factor in ordered[:-1]]
        last = ordered[-1]
        parts.append(self.write(last) if isinstance(last, Sum | Mean) else self._tight(last))
        return (r" \, " if self.latex else " ").join(parts)

    def _tight(self, expression: Expression) -> str:
        """With brackets, unless it cannot be misread as a factor."""
        text = self.write(expression)
        closed = isinstance(expression, Probability | Constant) or (self.latex and isinstance(expression, Ratio))
        return text if closed or _expectation(expression) else self._brackets(text)

    def _brackets(self, text: str) -> str:
        return rf"\left[ {text} \right]" if self.latex else f"[{text}]"

    def _summed(self, over: Iterable[Variable], text: str) -> str:
        names = self.symbols(over)
        if self.latex:
            return rf"\sum_{{{names}}} {text}"
        names = names.replace(" ", "")
        return f"Σ_{{{names}}} {text}" if "," in names else f"Σ_{names} {text}"

    def _name(self, name: str) -> str:
        if not self.latex:
            return name
        match = re.fullmatch(r"([A-Za-z])_?(\d+)", name)
        if match:
            return f"{match[1]}_{{{match[2]}}}"
        return name if re.fullmatch(r"[A-Za-z]", name) else rf"\mathrm{{{escaped(name)}}}"


def _expectation(expression: Expression) -> bool:
    """Whether it is written as E(Y | ...)."""
    match expression:
        case Mean(variable, Probability(of, _)):
            return of == {variable}
        case _:
            return False


def escaped(text: str) -> str:
    """Text with a backslash before what LaTeX would read as a sign."""
    return re.sub(r"([_%$#&{}])", r"\\\1", text)
