"""From a causal query to a formula about the observed law, or the reason why there is none.

P(y | do(x)) is a sum of products of Q[D] over the districts D of the causes of Y that remain without X, each of which
is found by Tian and Pearl's (2002) algorithm or is not identified; this decides every query (Shpitser and Pearl 2006;
Huang and Valtorta 2006). For P(y | do(x), z), each given node that may be set as well as seen is moved into do() first
(rule 2 of the do-calculus), and what remains is a ratio (Shpitser and Pearl 2006b). Natural and path-specific effects
are identified if the total effect is and no district is recanting (Avin, Shpitser and Pearl 2005; Shpitser 2013).

Formulas are shortened with the independences of the graph, and tried on random discrete models before they are
returned.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from probgen.base.errors import ModelError, NotIdentified
from probgen.causal.contrast import Contrast, ControlledDirectEffect, TotalEffect, contrast_of
from probgen.causal.estimand import Estimand, smallest_adjustment
from probgen.causal.expression import (
    Expression,
    Probability,
    Sum,
    Variable,
    canonical,
    free,
    has_ratio,
    product,
    size,
    substitute,
    variables,
)
from probgen.causal.graph import CausalGraph
from probgen.causal.hedge import RecantingDistrict
from probgen.causal.instruments import conditional_instruments
from probgen.causal.kernels import Stuck, district_kernels
from probgen.causal.query import Query
from probgen.causal.simplify import Simplifier
from probgen.causal.verification import Verification, verify

__all__ = ["identify"]

_EDGES_TRIED = 24


def identify(graph: Any, query: Query | Contrast | str) -> Estimand:
    """Find a formula that answers a causal query from the observed law.

    Args:
        graph: A ``CausalGraph``, or anything that ``pg.causal.graph`` reads.
        query: A ``Query``, an effect (``NaturalDirectEffect`` ...), or its notation: ``"P(Y | do(X))"``,
            ``"P(Y | do(X=1), W)"``, ``"TE(X -> Y)"``, ``"CDE(X -> Y; M=0)"``, ``"NDE(X -> Y)"``, ``"NIE(X -> Y; M)"``,
            ``"PSE(X -> M -> Y)"``.

    Returns:
        The formula, which has been tried on random discrete models of the graph.

    Raises:
        NotIdentified: If no formula exists; it carries the ``hedge`` (or the ``recanting`` district) that proves so,
            and ``advice``.
        ModelError: If the query cannot be read, or names a node that the graph lacks.
    """
    from probgen.causal.graph_source import graph as graph_from

    found = graph if isinstance(graph, CausalGraph) else graph_from(graph)
    asked = (contrast_of(query) or Query.parse(query)) if isinstance(query, str) else query
    if not isinstance(asked, Query | Contrast):
        raise ModelError(
            f"query is a {type(asked).__name__}, expected a Query, an effect, or its notation as a string."
        )
    asked.check(found)
    try:
        expression, verification = _answer(found, asked)
    except Stuck as stuck:
        raise _not_identified(found, asked, stuck) from None
    except _Recanting as recanting:
        raise _not_natural(recanting.effect, recanting.district) from None
    return Estimand(found, asked, expression, verification)


def _answer(graph: CausalGraph, query: Query | Contrast) -> tuple[Expression, Verification]:
    if isinstance(query, Query):
        general = _law(graph, query.outcomes, query.do, query.given)
        tried = verify(graph, query, general)
        labels = {Variable(name): Variable(name, value=label) for name, label in query.values.items()}
        taken = variables(name for name in query.names if name not in query.values)
        return canonical(substitute(general, labels), taken), tried
    plain = dataclasses.replace(query, active=1, reference=0)
    if isinstance(plain, ControlledDirectEffect):
        plain = dataclasses.replace(plain, mediators=tuple(plain.labels))
    tried = verify(graph, plain, _effect(graph, plain))
    return canonical(_effect(graph, query)), tried


# -- laws --------------------------------------------------------------------------------------------------------------


def _law(graph: CausalGraph, outcomes: tuple[str, ...], do: tuple[str, ...], given: tuple[str, ...]) -> Expression:
    """P(outcomes | do, given), with a free variable for each."""
    left, right, seen = frozenset(outcomes), frozenset(do), frozenset(given)
    if not do:
        return Probability(variables(left), variables(seen))
    moved = True
    while moved and seen:  # each round moves one node
        moved = False
        for name in sorted(seen):
            cut = graph.cut_into(right).cut_out_of(name)
            if cut.separated(left, name, right | (seen - {name})):
                seen, right = seen - {name}, right | {name}
                moved = True
                break
    joint, simplifier = _joint(graph, left | seen, right)
    if seen:
        joint = simplifier.ratio(joint, simplifier.sum(variables(left), joint))
    adjustment = None if given else smallest_adjustment(graph, do, outcomes)
    candidates = [] if adjustment is None else [_adjusted(graph, left, right, adjustment)]
    candidates.append(canonical(simplifier.chained(joint)))
    return min(candidates, key=lambda formula: _cost(formula, left | frozenset(do) | frozenset(given)))


def _joint(graph: CausalGraph, outcomes: frozenset[str], do: frozenset[str]) -> tuple[Expression, Simplifier]:
    part = graph.subgraph(graph.ancestors(outcomes))
    simplifier = Simplifier(part)
    kernels = district_kernels(part, outcomes, do & frozenset(part.nodes), simplifier)
    inner = frozenset[str]().union(*kernels) - outcomes
    return simplifier.sum(variables(inner), product(kernels.values())), simplifier


def _adjusted(
    graph: CausalGraph, outcomes: frozenset[str], do: frozenset[str], adjustment: frozenset[str]
) -> Expression:
    """The sum over w of P(w) P(y | x, w)."""
    simplifier = Simplifier(graph)
    own = adjustment - outcomes - do
    laws = [Probability(variables(outcomes), variables(do | own))]
    laws += [Probability(variables(own))] if own else []
    return canonical(simplifier.sum(variables(own), product(laws)))


def _cost(formula: Expression, asked: frozenset[str]) -> tuple[int, int, int]:
    """What makes a formula worse: nodes whose value is arbitrary, quotients, length."""
    arbitrary = {variable.name for variable in free(formula)} - asked
    return len(arbitrary), int(has_ratio(formula)), size(formula)


# -- effects -----------------------------------------------------------------------------------------------------------


class _Recanting(Exception):
    def __init__(self, effect: Contrast, district: RecantingDistrict):
        super().__init__(str(district))
        self.effect = effect
        self.district = district


def _effect(graph: CausalGraph, effect: Contrast) -> Expression:
    """The contrast, with the labels of the effect."""
    outcome, treatment = Variable(effect.outcome), Variable(effect.treatment)
    levels = {
        True: Variable(treatment.name, value=effect.active),
        False: Variable(treatment.name, value=effect.reference),
    }
    simplifier = Simplifier(graph)
    if isinstance(effect, TotalEffect | ControlledDirectEffect):
        law = _law(graph, effect.outcomes, effect.do, ())
        held = effect.labels if isinstance(effect, ControlledDirectEffect) else {}
        fixed = {Variable(name): Variable(name, value=label) for name, label in held.items() if label is not None}
        sides = [
            simplifier.mean(outcome, substitute(law, {treatment: levels[active], **fixed})) for active in (True, False)
        ]
        return simplifier.difference(*sides)
    part = graph.subgraph(graph.ancestors(effect.outcome))
    counts = effect.counts(graph)
    asked = frozenset(child for child, (count, _) in counts.items() if count)
    other = frozenset(child for child, (count, total) in counts.items() if count < total)
    if not asked:
        return simplifier.difference(Probability(frozenset([outcome])), Probability(frozenset([outcome])))
    kernels = district_kernels(part, frozenset([outcome.name]), frozenset([treatment.name]), simplifier)
    for district in kernels:
        if district & asked and district & other:
            raise _Recanting(effect, RecantingDistrict(district, district & asked, district & other))
    inner = frozenset[str]().union(*kernels) - {outcome.name}
    sides = []
    for active in (True, False):
        parts = [substitute(law, {treatment: levels[active and bool(set_ & asked)]}) for set_, law in kernels.items()]
        body = product(parts)
        over = variables(inner) & free(body)
        sides.append(simplifier.mean(outcome, Sum(over, body) if over else body))
    return simplifier.resummed(simplifier.difference(*sides))


# -- no formula --------------------------------------------------------------------------------------------------------


def _not_identified(graph: CausalGraph, query: Query | Contrast, stuck: Stuck) -> NotIdentified:
    advice = [*_measurements(graph, query), *_bounds(graph, query)]
    hedge = stuck.hedge
    message = (
        f"{query} has no estimand in this graph: hidden causes join {', '.join(sorted(hedge.outer))}, and no observed "
        f"variable takes them apart (hedge {hedge}). {' '.join(advice)}"
    )
    return NotIdentified(message, hedge=hedge, advice=tuple(advice))


def _not_natural(effect: Contrast, district: RecantingDistrict) -> NotIdentified:
    both = district.asked & district.other
    if both:
        why = f"paths of both kinds leave {effect.treatment} by {', '.join(sorted(both))}"
    else:
        asked, other = ", ".join(sorted(district.asked)), ", ".join(sorted(district.other))
        why = f"a hidden cause joins {asked}, on the paths asked for, to {other}, on the others"
    advice = (
        f"Ask for the total effect, TE({effect.treatment} -> {effect.outcome}), or a controlled direct effect, which "
        f"are about one world each.",
        "With a model of the noise, pg.causal.worlds answers (what it assumes of each site is in its result).",
    )
    message = f"{effect} has no estimand in this graph: {why} (recanting district {district}). {' '.join(advice)}"
    return NotIdentified(message, recanting=district, advice=advice)


def _measurements(graph: CausalGraph, query: Query | Contrast) -> list[str]:
    """Hidden causes that would identify the query if they were measured, one at a time."""
    helpful = []
    for pair in sorted(graph.bidirected, key=sorted)[:_EDGES_TRIED]:
        a, b = sorted(pair)
        name = f"the cause of {a} and {b}"
        measured = CausalGraph((*graph.nodes, name), graph.directed | {(name, a), (name, b)}, graph.bidirected - {pair})
        try:
            if isinstance(query, Contrast):
                _effect(measured, query)
            else:
                _law(measured, query.outcomes, query.do, query.given)
        except (Stuck, _Recanting):
            continue
        helpful.append(f"{a}<->{b}")
    if not helpful:
        return []
    return [f"It has one if the hidden cause behind {' or '.join(helpful)} is measured."]


def _bounds(graph: CausalGraph, query: Query | Contrast) -> list[str]:
    """What the data say without a formula."""
    advice = []
    if len(query.do) == 1 and len(query.outcomes) == 1 and not query.given:
        found = conditional_instruments(graph, query.do, query.outcomes)
        for name, covariates in found[:1]:
            given = f" given {', '.join(sorted(covariates))}" if covariates else ""
            advice.append(
                f"{name} is an instrument{given}: it gives bounds without further assumptions (pg.causal.BalkePearl), "
                f"and an estimate with linear effects or monotonicity."
            )
    advice.append(
        "Bounds (pg.causal.Manski) and a sensitivity analysis (pg.causal.sensitivity) say what the data allow without "
        "it."
    )
    return advice
