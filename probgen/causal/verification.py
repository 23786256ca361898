"""Estimands tried on random models before anybody sees them.

A formula is evaluated on the observed laws of a few random discrete models of the graph, and compared with what the
intervention does in these models, which is known exactly. A wrong formula agrees with the truth on a set of models of
measure zero only.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import ProbgenError
from probgen.causal.contraction import LARGEST, TooLarge
from probgen.causal.contrast import Contrast, ControlledDirectEffect, TotalEffect
from probgen.causal.discrete_scm import DiscreteSCM
from probgen.causal.expression import Expression, Variable, free, nodes_in
from probgen.causal.observed_law import ObservedLaw
from probgen.causal.query import Query

if TYPE_CHECKING:
    import xarray

    from probgen.causal.graph import CausalGraph

__all__ = ["Verification", "verify"]

_TOLERANCE = 1e-9
_MOST_NODES = 18
_LEVELS = 2
_HIDDEN_LEVELS = 3
_SEED = 20061


@dataclasses.dataclass(frozen=True)
class Verification:
    """How an estimand was tried.

    Attributes:
        models: On how many random models; zero if it was not tried.
        error: The largest absolute difference between the formula and the truth, over all models, values of the query's
            variables, and values of nodes that the formula formally speaks of; NaN if it was not tried.
        reason: Why it was not tried; empty if it was.
    """

    models: int
    error: float
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"not verified: {self.reason}"
        return f"verified on {self.models} random discrete models, largest error {self.error:.1e}"


def verify(graph: CausalGraph, query: Query | Contrast, expression: Expression, models: int = 3) -> Verification:
    """Try a formula on random models of the graph.

    Args:
        graph: The graph.
        query: The query; labels of a ``Query`` are not looked at, those of an ``Contrast`` are 1 and 0.
        expression: The formula.
        models: How many models.

    Returns:
        How it went; without a try if the tables would be too large.

    Raises:
        ProbgenError: If the formula is wrong.
    """
    names = nodes_in(expression) | set(query.names)
    if len(names) > _MOST_NODES:
        return Verification(0, np.nan, f"too large, the formula speaks of {len(names)} variables")
    part = graph.subgraph(graph.ancestors(names))
    settings: list[tuple[CausalGraph, list[frozenset[str]] | None]] = [(part, None), (part, _groups(part))]
    if isinstance(query, Query | TotalEffect | ControlledDirectEffect):
        # What the formula does not speak of may as well be hidden: it then has as many values as are needed.
        small = part.project(frozenset(part.nodes) - names)
        settings += [(small, None), (small, _groups(small))]
    cells = 0
    for where, causes in settings:
        try:
            error = _largest_error(where, query, expression, names, causes, models)
            break
        except TooLarge as large:
            cells = large.cells
    else:
        return Verification(0, np.nan, f"too large, a table would have {cells} cells")
    if not error <= _TOLERANCE:
        raise ProbgenError(
            f"the formula that was found for {query} is wrong by {error:.2g} on a random model of {graph}. This is a "
            f"bug of probgen: please report it with this message."
        )
    return Verification(models, error)


def _largest_error(
    graph: CausalGraph,
    query: Query | Contrast,
    expression: Expression,
    names: frozenset[str],
    causes: list[frozenset[str]] | None,
    models: int,
) -> float:
    rng = np.random.default_rng(_SEED)
    error = 0.0
    for _ in range(models):
        wrong = _error(graph, query, expression, names, rng, causes)
        error = max(error, wrong)
    return error


def _error(
    graph: CausalGraph,
    query: Query | Contrast,
    expression: Expression,
    names: frozenset[str],
    rng: np.random.Generator,
    causes: list[frozenset[str]] | None,
) -> float:
    for name in graph.nodes:
        hidden = sum(name in cause for cause in (graph.bidirected if causes is None else causes))
        cells = _LEVELS ** (1 + len(graph.parents(name))) * _HIDDEN_LEVELS**hidden
        if cells > LARGEST:
            raise TooLarge(cells)
    model = DiscreteSCM.random(graph, rng, levels=_LEVELS, hidden_levels=_HIDDEN_LEVELS, causes=causes)
    law = ObservedLaw(model.table(sorted(names)), names)
    value = law.value(expression)
    truth = _truth(model, query)
    axes = tuple(dict.fromkeys((*(Variable(str(dim)) for dim in truth.dims), *free(expression))))
    expected = np.reshape(truth.values, truth.shape + (1,) * (len(axes) - truth.ndim))
    return float(np.max(np.abs(value.aligned(axes) - expected)))


def _truth(model: DiscreteSCM, query: Query | Contrast) -> xarray.DataArray:
    """What the intervention does in a model."""
    if not isinstance(query, Contrast):
        law = model.table((*query.outcomes, *query.given), query.do)
        return law / law.sum(query.outcomes)
    numbers = model.table([query.outcome]).coords[query.outcome]
    if isinstance(query, ControlledDirectEffect):
        law = model.table([query.outcome], query.do)
        mean = (law * numbers).sum(query.outcome)
        return mean.sel({query.treatment: 1}, drop=True) - mean.sel({query.treatment: 0}, drop=True)
    active = [child for child, (count, _) in query.counts(model.graph).items() if count]
    mixed = model.path_law(query.outcome, query.treatment, active)
    base = model.path_law(query.outcome, query.treatment, [])
    return ((mixed - base) * numbers).sum(query.outcome)


def _groups(graph: CausalGraph) -> list[frozenset[str]]:
    """Few groups of nodes whose pairs are the bidirected edges: fewer hidden causes make smaller tables."""
    left = set(graph.bidirected)
    groups: list[frozenset[str]] = []
    while left:  # a group takes at least one edge away
        group = set(min(left, key=sorted))
        for name in graph.topological:
            if name not in group and all(frozenset((name, other)) in graph.bidirected for other in group):
                group.add(name)
        groups.append(frozenset(group))
        left -= {frozenset(pair) for pair in itertools.combinations(group, 2)}
    return groups
