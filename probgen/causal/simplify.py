"""Formulas made shorter, with the independences of the graph.

Three facts are used again and again. A variable that only one law P(a, v | b) speaks of is summed out of it. Two laws
join, P(v | b) P(a | v, c) = P(a, v | b, c), where the graph makes each independent of what the other brings
(m-separation of the observed law). What numerator and denominator of a ratio have in common goes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

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
    apart,
    canonical,
    factors_of,
    free,
    product,
)

if TYPE_CHECKING:
    from probgen.causal.graph import CausalGraph

__all__ = ["Simplifier"]

_ORDERS = 24
"""Orders of a few laws that are tried before joining them is given up."""


class Simplifier:
    """Shortens formulas about one graph.

    Args:
        graph: The graph whose independences hold.
    """

    def __init__(self, graph: CausalGraph):
        self.graph = graph
        self._place = {name: n for n, name in enumerate(graph.topological)}
        self._known: dict[tuple[frozenset[str], frozenset[str], frozenset[str]], bool] = {}

    # -- making ------------------------------------------------------------------------------------------------------

    def sum(self, over: Iterable[Variable], body: Expression) -> Expression:
        """The sum of ``body`` over variables."""
        over = frozenset(over) & free(body)
        if not over:
            return body
        if isinstance(body, Sum):
            inner = apart(body, over)
            return self.sum(over | inner.over, inner.body)
        if isinstance(body, Ratio) and not free(body.denominator) & over:
            return self.ratio(self.sum(over, body.numerator), body.denominator)
        factors, over = self._eliminated(self._cancelled(list(factors_of(body))), over)
        outside = [factor for factor in factors if not free(factor) & over]
        inside = [factor for factor in factors if free(factor) & over]
        return product([*outside, *(self._sum(group, over) for group in _groups(inside, over))])

    def ratio(self, numerator: Expression, denominator: Expression) -> Expression:
        """The quotient."""
        if isinstance(numerator, Ratio):
            return self.ratio(numerator.numerator, product([numerator.denominator, denominator]))
        above = Counter(canonical(factor) for factor in factors_of(numerator))
        below = Counter(canonical(factor) for factor in factors_of(denominator))
        above, below = above - below, below - above
        tops, bottoms = list(above.elements()), list(below.elements())
        for bottom in list(bottoms):
            for top in tops:
                if isinstance(top, Probability) and isinstance(bottom, Probability):
                    rest = top.of - bottom.of
                    if top.given == bottom.given and bottom.of < top.of:
                        tops.remove(top)
                        bottoms.remove(bottom)
                        tops.append(Probability(rest, top.given | bottom.of))
                        break
        return Ratio(product(tops), product(bottoms)) if bottoms else product(tops)

    def difference(self, minuend: Expression, subtrahend: Expression) -> Expression:
        """The difference, with what the two have in common outside of it."""
        minuend, subtrahend = canonical(minuend), canonical(subtrahend)
        if minuend == subtrahend:
            return Constant(0.0)
        if isinstance(minuend, Sum) and isinstance(subtrahend, Sum) and minuend.over == subtrahend.over:
            common = Counter(factors_of(minuend.body)) & Counter(factors_of(subtrahend.body))
            if common:
                return Sum(minuend.over, self.difference(minuend.body, subtrahend.body))
        first, second = Counter(factors_of(minuend)), Counter(factors_of(subtrahend))
        common = first & second
        left, right = product((first - common).elements()), product((second - common).elements())
        return product([*common.elements(), Difference(left, right)])

    def mean(self, variable: Variable, body: Expression) -> Expression:
        """The mean over a variable, taken as far inside as it goes."""
        factors = factors_of(body)
        with_it = [factor for factor in factors if variable in free(factor)]
        if len(with_it) == 1 and len(factors) > 1:
            rest = [factor for factor in factors if factor is not with_it[0]]
            return product([*rest, self.mean(variable, with_it[0])])
        if isinstance(body, Sum):
            inner = apart(body, frozenset([variable]))
            return Sum(inner.over, self.mean(variable, inner.body))
        if isinstance(body, Ratio) and variable not in free(body.denominator):
            return Ratio(self.mean(variable, body.numerator), body.denominator)
        return Mean(variable, body)

    def resummed(self, expression: Expression) -> Expression:
        """The same, with what can be summed out of the outermost sums summed out."""
        match expression:
            case Sum(over, body):
                return self.sum(over, body)
            case Product(factors):
                return product(self.resummed(factor) for factor in factors)
            case _:
                return expression

    def chained(self, expression: Expression) -> Expression:
        """The same with P(a | b) P(c | a, b) written as P(a, c | b) everywhere."""
        match expression:
            case Product(factors):
                return product(_chained([self.chained(factor) for factor in factors]))
            case Sum(over, body):
                return Sum(over, self.chained(body))
            case Mean(variable, body):
                return Mean(variable, self.chained(body))
            case Ratio(a, b):
                return Ratio(self.chained(a), self.chained(b))
            case Difference(a, b):
                return Difference(self.chained(a), self.chained(b))
            case _:
                return expression

    # -- inside ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _sum(factors: list[Expression], over: frozenset[Variable]) -> Expression:
        body = product(factors)
        return Sum(over & free(body), body)

    def _cancelled(self, factors: list[Expression]) -> list[Expression]:
        """Factors, where what one of them is divided by is no longer there as another."""
        plain: list[Expression] = [factor for factor in factors if not isinstance(factor, Ratio)]
        for ratio in factors:
            if isinstance(ratio, Ratio):
                below = list(factors_of(ratio.denominator))
                for factor in [factor for factor in plain if factor in below]:
                    plain.remove(factor)
                    below.remove(factor)
                plain.extend(factors_of(self.ratio(ratio.numerator, product(below))))
        return plain

    def _eliminated(
        self, factors: list[Expression], over: frozenset[Variable]
    ) -> tuple[list[Expression], frozenset[Variable]]:
        """Sum out every variable that can be summed out of one law."""
        again = True
        while again:  # each round takes a variable away
            again = False
            for variable in sorted(over, key=lambda v: (-self._place[v.name], v.key)):
                with_it = [factor for factor in factors if variable in free(factor)]
                if len(with_it) == 1 and self._takes(with_it[0], variable):
                    rest = [factor for factor in factors if factor is not with_it[0]]
                    factors = [*rest, *factors_of(self.sum([variable], with_it[0]))]
                    over = over - {variable}
                    again = True
                    break
                laws = [factor for factor in with_it if isinstance(factor, Probability)]
                if len(laws) < len(with_it) or not laws:
                    continue
                joint = self._joined(laws)
                if joint is None or variable not in joint.of:
                    continue
                rest = [factor for factor in factors if factor not in laws]
                of = joint.of - {variable}
                factors = [*rest, *([self._pruned(Probability(of, joint.given))] if of else [])]
                over = over - {variable}
                again = True
                break
        return factors, over

    @staticmethod
    def _takes(factor: Expression, variable: Variable) -> bool:
        """Whether a sum over the variable can go inside of a factor."""
        return isinstance(factor, Sum) or (isinstance(factor, Ratio) and variable not in free(factor.denominator))

    def _joined(self, laws: list[Probability]) -> Probability | None:
        """The one law that is the product of several, or ``None`` if the graph does not say so."""
        if len(laws) == 1:
            return laws[0]
        of = frozenset[Variable]().union(*(law.of for law in laws))
        everything = of.union(*(law.given for law in laws))
        if len(of) < sum(len(law.of) for law in laws) or len({v.name for v in everything}) < len(everything):
            return None
        given = everything - of
        laws = sorted(laws, key=lambda law: (max(self._place[v.name] for v in law.of), sorted(v.key for v in law.of)))
        for order in itertools.islice(itertools.permutations(laws), _ORDERS):
            known = given
            for law in order:
                if not law.given <= known or not self._independent(law.of, known - law.given, law.given):
                    break
                known = known | law.of
            else:
                return Probability(of, given)
        return None

    def _pruned(self, law: Probability) -> Probability:
        """The law without what the graph makes irrelevant among its conditions."""
        given = law.given
        for variable in sorted(given, key=lambda v: (self._place[v.name], v.key)):
            if self._independent(law.of, frozenset([variable]), given - {variable}):
                given = given - {variable}
        return Probability(law.of, given)

    def _independent(self, a: frozenset[Variable], b: frozenset[Variable], given: frozenset[Variable]) -> bool:
        if not b:
            return True
        left, right, known = (frozenset(variable.name for variable in some) for some in (a, b, given))
        if left & right or left & known or right & known:
            return False
        question = (left, right, known)
        if question not in self._known:
            self._known[question] = self.graph.separated(left, right, known)
        return self._known[question]


def _groups(factors: list[Expression], over: frozenset[Variable]) -> list[list[Expression]]:
    """The factors in groups that share no summed variable."""
    groups: list[list[Expression]] = []
    for factor in factors:
        mine = [group for group in groups if any(free(factor) & free(other) & over for other in group)]
        groups = [group for group in groups if group not in mine]
        groups.append([*(other for group in mine for other in group), factor])
    return groups


def _chained(factors: list[Expression]) -> list[Expression]:
    for first, second in itertools.permutations(factors, 2):
        if (
            isinstance(first, Probability)
            and isinstance(second, Probability)
            and second.given == first.given | first.of
            and not second.of & first.of
        ):
            rest = [factor for factor in factors if factor is not first and factor is not second]
            return _chained([*rest, Probability(first.of | second.of, first.given)])
    return factors
