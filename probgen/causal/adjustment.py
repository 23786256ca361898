"""Sets of covariates that remove confounding: the adjustment criterion, and the most efficient set.

For treatments X and outcomes Y, the causal nodes cn(X, Y) are those but X on directed paths from X to Y that meet X
only at their start; forb(X, Y) are their descendants, and X. A set Z without forbidden nodes gives the total effect,

    P(y | do(x)) = sum_z P(y | x, z) P(z),

in every model of the graph exactly when it m-separates X and Y after the arrows from X to cn(X, Y) are removed
(Shpitser, VanderWeele and Robins 2010; van der Zander, Liskiewicz and Textor 2014; with bidirected edges as the latent
projection of hidden causes). This is complete: it finds sets that the back-door criterion of Pearl (1993) does not.

Where nothing near the causal nodes is hidden, O = pa(cn) without forb is valid whenever any set is, and its estimator
has the smallest asymptotic variance of all of them (Henckel, Perkovic and Maathuis 2022 for linear models; Rotnitzky
and Smucler 2020 for any). With hidden causes of a causal node there may be no best observed set (Smucler, Sapienza and
Rotnitzky 2022), and none is named.
"""

from __future__ import annotations

import itertools
import warnings

from probgen.base.errors import ModelError, ProbgenWarning
from probgen.causal.graph import CausalGraph, Names
from probgen.causal.separators import minimal_separators

__all__ = [
    "adjustment_sets",
    "causal_nodes",
    "efficient_adjustment_set",
    "forbidden_nodes",
    "is_adjustment_set",
    "without_effect",
]


def adjustment_sets(
    graph: CausalGraph, treatment: Names, outcome: Names, *, among: Names | None = None, limit: int = 1000
) -> list[frozenset[str]]:
    """All minimal adjustment sets: sets that identify the total effect, and no part of which does.

    Args:
        graph: The graph.
        treatment: One treatment, or several that are set together.
        outcome: One outcome, or several.
        among: Covariates that a set may have (those that were measured, say); by default all nodes.
        limit: How many sets to list at most; a warning says when there are more.

    Returns:
        The sets, small ones first. ``[frozenset()]`` says that nothing has to be adjusted for, ``[]`` that no set of
        covariates will do (the effect may still be identified, see ``pg.causal.identify``).

    Raises:
        ModelError: If a name is not a node, or a treatment is an outcome or an argument of the program.
    """
    causes, effects = sides(graph, treatment, outcome)
    allowed = frozenset(graph.nodes) if among is None else graph.require(among, "among=")
    allowed -= forbidden_nodes(graph, causes, effects) | causes | effects
    cut = without_effect(graph, causes, effects)
    masks = minimal_separators(cut.marks, cut.mask(causes), cut.mask(effects), cut.mask(allowed))
    found = [cut.names(mask) for mask in itertools.islice(masks, limit + 1)]
    if len(found) > limit:
        warnings.warn(
            f"there are more than {limit} minimal adjustment sets, and only {limit} are listed. Raise limit=, or name "
            f"the covariates that were measured in among=.",
            ProbgenWarning,
            stacklevel=2,
        )
    return sorted(found[:limit], key=lambda names: (len(names), sorted(names)))


def is_adjustment_set(graph: CausalGraph, treatment: Names, outcome: Names, covariates: Names) -> bool:
    """Whether adjusting for ``covariates`` gives the total effect in every model of the graph.

    Args:
        graph: The graph.
        treatment: One treatment, or several that are set together.
        outcome: One outcome, or several.
        covariates: The set to judge; ``()`` for no adjustment.

    Raises:
        ModelError: If a name is not a node, or a treatment is an outcome or an argument of the program.
    """
    causes, effects = sides(graph, treatment, outcome)
    known = graph.require(covariates, "covariates")
    if known & (forbidden_nodes(graph, causes, effects) | causes | effects):
        return False
    return without_effect(graph, causes, effects).separated(causes, effects, known)


def efficient_adjustment_set(graph: CausalGraph, treatment: Names, outcome: Names) -> frozenset[str] | None:
    """The adjustment set whose estimator has the smallest asymptotic variance, where the graph tells which it is.

    Args:
        graph: The graph.
        treatment: One treatment, or several (for which the set is known to be the best of linear models only).
        outcome: One outcome, or several.

    Returns:
        The set; ``None`` if there is no adjustment set, or hidden causes of a node between treatment and outcome leave
        open which set is best, or the treatment has no effect.

    Raises:
        ModelError: If a name is not a node, or a treatment is an outcome or an argument of the program.
    """
    causes, effects = sides(graph, treatment, outcome)
    between = causal_nodes(graph, causes, effects)
    if not between or graph.spouses(between):
        return None
    best = graph.parents(between) - forbidden_nodes(graph, causes, effects) - causes
    return best if is_adjustment_set(graph, causes, effects, best) else None


def causal_nodes(graph: CausalGraph, treatment: Names, outcome: Names) -> frozenset[str]:
    """The nodes on directed paths from treatments to outcomes that meet the treatments only at their start, without the
    treatments."""
    causes, effects = graph.require(treatment), graph.require(outcome)
    return graph.cut_into(causes).descendants(causes) & graph.cut_out_of(causes).ancestors(effects) - causes


def forbidden_nodes(graph: CausalGraph, treatment: Names, outcome: Names) -> frozenset[str]:
    """The descendants of the causal nodes, adjusting for which would remove or distort the effect."""
    return graph.descendants(causal_nodes(graph, treatment, outcome))


def without_effect(graph: CausalGraph, treatment: Names, outcome: Names) -> CausalGraph:
    """The graph without the arrows by which the treatments act on the outcomes (the proper back-door graph)."""
    causes, between = graph.require(treatment), causal_nodes(graph, treatment, outcome)
    gone = {(a, b) for a, b in graph.directed if a in causes and b in between}
    return graph.without_directed(gone)


def sides(graph: CausalGraph, treatment: Names, outcome: Names) -> tuple[frozenset[str], frozenset[str]]:
    """Treatments and outcomes as sets, after checking them."""
    causes, effects = graph.require_causes(treatment, "treatment"), graph.require(outcome, "outcome")
    if not causes or not effects:
        raise ModelError(f"{'outcome' if causes else 'treatment'} names no node. Name at least one.")
    if causes & effects:
        raise ModelError(f"{sorted(causes & effects)[0]!r} is both treatment and outcome. Give two nodes.")
    return causes, effects
