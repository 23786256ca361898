"""Instruments: nodes that move a treatment and touch the outcome through it alone.

z is an instrument for the total effect of x on y given a set W (Brito and Pearl 2002; van der Zander, Textor and
Liskiewicz 2015) when x causes neither z nor W, W does not separate z from x, and W m-separates z from y after the
arrows by which x acts on y are removed. In a linear model the effect is then cov(z, y | W) / cov(z, x | W); otherwise
it is the effect on compliers under monotonicity, or bounded (Balke and Pearl 1997).

Hidden causes stand in the graph as bidirected edges, so that none of them can be returned.
"""

from __future__ import annotations

import itertools

from probgen.base.errors import ModelError
from probgen.causal.adjustment import sides, without_effect
from probgen.causal.graph import CausalGraph, Names
from probgen.causal.separators import minimal_separators

__all__ = ["conditional_instruments", "instruments", "is_instrument"]

_SETS = 200
"""Separating sets to look at for each node."""


def instruments(graph: CausalGraph, treatment: Names, outcome: Names) -> frozenset[str]:
    """The nodes that are instruments without any covariate.

    Args:
        graph: The graph.
        treatment: The treatment.
        outcome: The outcome.

    Raises:
        ModelError: If a name is not a node, or there is more than one treatment or outcome.
    """
    candidates = sorted(set(graph.nodes) - _pair(graph, treatment, outcome))
    return frozenset(name for name in candidates if is_instrument(graph, name, treatment, outcome))


def conditional_instruments(graph: CausalGraph, treatment: Names, outcome: Names) -> list[tuple[str, frozenset[str]]]:
    """Instruments with a set of covariates that makes them so.

    Args:
        graph: The graph.
        treatment: The treatment.
        outcome: The outcome.

    Returns:
        Pairs (instrument, covariates), instruments that need none first. Every pair is valid. Covariates are a minimal
        set among the ancestors of instrument and outcome that separates the two and leaves the instrument dependent on
        the treatment, the smallest of the first few hundred; an instrument is listed once.

    Raises:
        ModelError: If a name is not a node, or there is more than one treatment or outcome.
    """
    pair = _pair(graph, treatment, outcome)
    cut = without_effect(graph, treatment, outcome)
    allowed = frozenset(graph.nodes) - pair - graph.descendants(treatment) - graph.descendants(outcome)
    found = []
    for name in sorted(allowed):
        masks = minimal_separators(cut.marks, cut.mask(name), cut.mask(outcome), cut.mask(allowed - {name}))
        sets = sorted((cut.names(mask) for mask in itertools.islice(masks, _SETS)), key=lambda s: (len(s), sorted(s)))
        valid = (known for known in sets if is_instrument(graph, name, treatment, outcome, known))
        found += [(name, known) for known in itertools.islice(valid, 1)]
    return sorted(found, key=lambda item: (len(item[1]), item[0]))


def is_instrument(
    graph: CausalGraph, instrument: str, treatment: Names, outcome: Names, covariates: Names = ()
) -> bool:
    """Whether a node is an instrument for the effect of the treatment on the outcome, given covariates.

    Raises:
        ModelError: If a name is not a node, there is more than one treatment or outcome, or a node has two roles.
    """
    pair = _pair(graph, treatment, outcome)
    ((name,), known) = graph.require(instrument, "instrument"), graph.require(covariates, "covariates")
    if (known | {name}) & pair or name in known:
        raise ModelError(
            f"a node has two roles among instrument {name!r}, covariates, treatment and outcome. Give each one."
        )
    if (known | {name}) & (graph.descendants(treatment) | graph.descendants(outcome)):
        return False
    if graph.separated(name, treatment, known):
        return False
    return without_effect(graph, treatment, outcome).separated(name, outcome, known)


def _pair(graph: CausalGraph, treatment: Names, outcome: Names) -> frozenset[str]:
    causes, effects = sides(graph, treatment, outcome)
    if len(causes) > 1 or len(effects) > 1:
        raise ModelError("an instrument is one for one treatment and one outcome. Ask about them one by one.")
    return causes | effects
