"""Formulas over the observed law P: what an estimand is made of.

A formula is a tree of conditional laws P(a | b), products, sums over values, ratios, differences and means. A variable
stands for a value of a node: x and x' are two values of X (``copy`` 0 and 1), and a variable can be fixed at a label.
Sums and means bind their variables, as in logic; a formula is a function of those that are left free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping

__all__ = [
    "Constant",
    "Difference",
    "Expression",
    "Mean",
    "Probability",
    "Product",
    "Ratio",
    "Sum",
    "Variable",
    "apart",
    "canonical",
    "factors_of",
    "free",
    "has_ratio",
    "nodes_in",
    "product",
    "size",
    "substitute",
    "variables",
]


@dataclasses.dataclass(frozen=True)
class Variable:
    """A value of a node.

    Attributes:
        name: The node.
        copy: Which of the values of this node that the formula speaks of; the number of primes.
        value: A label when the variable is fixed; ``None`` when it varies.
    """

    name: str
    copy: int = 0
    value: Hashable = None

    @property
    def fixed(self) -> bool:
        """Whether it stands for one label."""
        return self.value is not None

    @property
    def key(self) -> tuple[str, int, str]:
        """For sorting."""
        return self.name, self.copy, repr(self.value)


def variables(names: Iterable[str]) -> frozenset[Variable]:
    """One free variable for each name."""
    return frozenset(Variable(name) for name in names)


@dataclasses.dataclass(frozen=True)
class Probability:
    """P(of | given)."""

    of: frozenset[Variable]
    given: frozenset[Variable] = frozenset()


@dataclasses.dataclass(frozen=True)
class Product:
    """A product; made by ``product``, which flattens and sorts."""

    factors: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum over all values of some variables, which it binds."""

    over: frozenset[Variable]
    body: Expression


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A quotient."""

    numerator: Expression
    denominator: Expression


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference."""

    minuend: Expression
    subtrahend: Expression


@dataclasses.dataclass(frozen=True)
class Mean:
    """The sum of ``variable`` times ``body`` over the values of the variable, which it binds."""

    variable: Variable
    body: Expression


@dataclasses.dataclass(frozen=True)
class Constant:
    """A number."""

    value: float


type Expression = Probability | Product | Sum | Ratio | Difference | Mean | Constant


def product(factors: Iterable[Expression]) -> Expression:
    """The product, without ones and nested products, in a fixed order."""
    flat = [part for factor in factors for part in factors_of(factor)]
    if any(part == Constant(0.0) for part in flat):
        return Constant(0.0)
    flat.sort(key=_key)
    return flat[0] if len(flat) == 1 else Product(tuple(flat)) if flat else Constant(1.0)


def factors_of(expression: Expression) -> tuple[Expression, ...]:
    """The factors that an expression is the product of."""
    match expression:
        case Product(factors):
            return tuple(part for factor in factors for part in factors_of(factor))
        case Constant(1.0):
            return ()
        case _:
            return (expression,)


def free(expression: Expression) -> frozenset[Variable]:
    """The variables that an expression is a function of."""
    match expression:
        case Probability(of, given):
            return frozenset(variable for variable in of | given if not variable.fixed)
        case Product(factors):
            return frozenset[Variable]().union(*(free(factor) for factor in factors))
        case Sum(over, body):
            return free(body) - over
        case Ratio(a, b) | Difference(a, b):
            return free(a) | free(b)
        case Mean(variable, body):
            return free(body) - {variable}
        case Constant():
            return frozenset()


def nodes_in(expression: Expression) -> frozenset[str]:
    """The nodes that an expression speaks of."""
    match expression:
        case Probability(of, given):
            return frozenset(variable.name for variable in of | given)
        case Product(factors):
            return frozenset[str]().union(*(nodes_in(factor) for factor in factors))
        case Sum(_, body):
            return nodes_in(body)
        case Mean(variable, body):
            return nodes_in(body) | {variable.name}
        case Ratio(a, b) | Difference(a, b):
            return nodes_in(a) | nodes_in(b)
        case Constant():
            return frozenset()


def size(expression: Expression) -> int:
    """How many variables are written in an expression, and one for each ratio."""
    match expression:
        case Probability(of, given):
            return len(of) + len(given)
        case Product(factors):
            return sum(size(factor) for factor in factors)
        case Sum(over, body):
            return len(over) + size(body)
        case Mean(_, body):
            return 1 + size(body)
        case Ratio(a, b) | Difference(a, b):
            return 1 + size(a) + size(b)
        case Constant():
            return 0


def has_ratio(expression: Expression) -> bool:
    """Whether there is a quotient in an expression."""
    match expression:
        case Ratio():
            return True
        case Product(factors):
            return any(has_ratio(factor) for factor in factors)
        case Sum(_, body) | Mean(_, body):
            return has_ratio(body)
        case Difference(a, b):
            return has_ratio(a) or has_ratio(b)
        case _:
            return False


def canonical(expression: Expression, taken: frozenset[Variable] = frozenset()) -> Expression:
    """The same expression, its bound variables named anew: the fewest primes without using a name twice in a scope.

    Expressions that differ only in the names of bound variables become equal.

    Args:
        expression: An expression.
        taken: Variables that no bound one may be named as.
    """
    return _renamed(expression, {}, free(expression) | taken)


def apart(expression: Sum, taken: frozenset[Variable]) -> Sum:
    """The sum with other names for what it binds than those in ``taken``."""
    other = _renamed(expression, {}, free(expression) | taken)
    assert isinstance(other, Sum)
    return other


def substitute(expression: Expression, values: Mapping[Variable, Variable]) -> Expression:
    """The expression with other variables (or fixed ones) in the place of free ones."""
    new = {values.get(variable, variable) for variable in free(expression)}
    return _renamed(expression, values, frozenset(variable for variable in new if not variable.fixed))


def _renamed(expression: Expression, names: Mapping[Variable, Variable], taken: frozenset[Variable]) -> Expression:
    """``names`` says what each variable in scope is called now; ``taken`` are all names in scope."""

    def inside(over: Iterable[Variable]) -> tuple[dict[Variable, Variable], frozenset[Variable]]:
        now, used = dict(names), taken
        for variable in sorted(over, key=lambda variable: variable.key):
            copy = 0
            while Variable(variable.name, copy) in used:
                copy += 1
            now[variable] = Variable(variable.name, copy)
            used |= {now[variable]}
        return now, used

    match expression:
        case Probability(of, given):
            return Probability(frozenset(names.get(v, v) for v in of), frozenset(names.get(v, v) for v in given))
        case Product(factors):
            return product(_renamed(factor, names, taken) for factor in factors)
        case Sum(over, body):
            now, used = inside(over)
            return Sum(frozenset(now[variable] for variable in over), _renamed(body, now, used))
        case Mean(variable, body):
            now, used = inside([variable])
            return Mean(now[variable], _renamed(body, now, used))
        case Ratio(a, b):
            return Ratio(_renamed(a, names, taken), _renamed(b, names, taken))
        case Difference(a, b):
            return Difference(_renamed(a, names, taken), _renamed(b, names, taken))
        case Constant():
            return expression


def _key(expression: Expression) -> tuple[object, ...]:
    """An order of expressions, the same in every process."""

    def keys(some: frozenset[Variable]) -> tuple[object, ...]:
        return tuple(sorted(variable.key for variable in some))

    match expression:
        case Probability(of, given):
            return (0, keys(of), keys(given))
        case Constant(value):
            return (1, value)
        case Sum(over, body):
            return (2, keys(over), _key(body))
        case Mean(variable, body):
            return (3, variable.key, _key(body))
        case Ratio(a, b):
            return (4, _key(a), _key(b))
        case Difference(a, b):
            return (5, _key(a), _key(b))
        case Product(factors):
            return (6, *(_key(factor) for factor in factors))
