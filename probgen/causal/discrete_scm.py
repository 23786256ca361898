"""Random structural causal models of discrete variables, and exact interventions on them.

In a model of a graph, each node V has a conditional table P(v | pa, u), where u are the hidden causes that it has: one
for each bidirected edge, shared by the two ends. An intervention do(x) drops the table of X from the product of all
tables (the truncated product of Pearl 2009), so what it does is known exactly: this is the ground that every estimand
is tried on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import ModelError
from probgen.causal.contraction import Factor, contract

if TYPE_CHECKING:
    import xarray

    from probgen.causal.graph import CausalGraph

__all__ = ["DiscreteSCM"]


@dataclasses.dataclass(frozen=True)
class _Hidden:
    """The label of a hidden cause's axis."""

    of: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DiscreteSCM:
    """A structural causal model of discrete variables.

    Attributes:
        graph: The graph of the nodes.
        tables: By node, P(v | pa, u): the first axis is the node itself, then its parents, then hidden causes.
        hidden: The laws of the hidden causes.
    """

    graph: CausalGraph
    tables: Mapping[str, Factor]
    hidden: tuple[Factor, ...]

    @classmethod
    def random(
        cls,
        graph: CausalGraph,
        seed: int | np.random.Generator,
        levels: int | Mapping[str, int] = 2,
        hidden_levels: int = 3,
        causes: Iterable[Iterable[str]] | None = None,
    ) -> DiscreteSCM:
        """A random model: every table is drawn, and every cell is positive.

        Args:
            graph: The graph.
            seed: Seed or generator.
            levels: How many values a node has, for all nodes or by name.
            hidden_levels: How many values each hidden cause has.
            causes: Groups of nodes, joined in pairs by bidirected edges, that share one hidden cause; by default each
                bidirected edge is a cause of its own.

        Raises:
            ModelError: If a node has fewer than two values, or ``causes`` are not those of the bidirected edges.
        """
        rng = np.random.default_rng(seed)
        count = dict.fromkeys(graph.nodes, levels) if isinstance(levels, int) else dict(levels)
        for name in graph.nodes:
            if count.get(name, 0) < 2:
                raise ModelError(f"levels gives {count.get(name)} values to {name!r}. Give every node at least 2.")
        groups = graph.bidirected if causes is None else [frozenset(group) for group in causes]
        pairs = {frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)}
        if pairs != graph.bidirected:
            wrong = sorted(next(iter(pairs ^ graph.bidirected)))
            raise ModelError(
                f"causes and the bidirected edges of the graph differ at {wrong[0]}<->{wrong[1]}. Give groups whose "
                f"pairs are the bidirected edges, or leave causes out."
            )
        sources = [_Hidden(tuple(sorted(group))) for group in sorted(groups, key=sorted)]
        tables = {}
        for name in graph.topological:
            parents = tuple(parent for parent in graph.topological if parent in graph.parents(name))
            mine = tuple(cause for cause in sources if name in cause.of)
            shape = [*(count[parent] for parent in parents), *(hidden_levels for _ in mine)]
            weights = 0.1 + rng.dirichlet(np.ones(count[name]), shape)
            table = np.moveaxis(weights / weights.sum(-1, keepdims=True), -1, 0)
            tables[name] = Factor((name, *parents, *mine), table)
        laws = tuple(Factor((cause,), rng.dirichlet(np.full(hidden_levels, 3.0))) for cause in sources)
        return cls(graph, tables, laws)

    def table(self, names: Iterable[str] | None = None, do: Iterable[str] = ()) -> xarray.DataArray:
        """The joint law of nodes, where other nodes are set.

        Args:
            names: Nodes; ``None`` for all that are not set.
            do: Nodes that are set to each of their values in turn.

        Returns:
            P(names | do), with one dim per name, then one per set node; labels are 0, 1, ...

        Raises:
            ModelError: If a name is not a node or has two roles.
        """
        do = tuple(do)
        self.graph.require(do, "do")
        names = tuple(name for name in self.graph.topological if name not in do) if names is None else tuple(names)
        self.graph.require(names, "names")
        if set(names) & set(do):
            raise ModelError(f"table() got {sorted(set(names) & set(do))[0]!r} both in names and in do.")
        needed = self.graph.cut_into(do).ancestors(names) - set(do)
        factors = [self.tables[name] for name in self.graph.topological if name in needed]
        return self._labelled(self._sum(factors, (*names, *do)), (*names, *do))

    def path_law(
        self, outcome: str, treatment: str, active: Iterable[str], levels: tuple[int, int] = (1, 0)
    ) -> xarray.DataArray:
        """The law of an outcome where some children of a treatment see one value of it and the others another.

        Noise that is not a hidden cause in the graph is independent between nodes, so each node takes one value in such
        a mixed world and the law is a sum of products of tables.

        Args:
            outcome: The outcome.
            treatment: The treatment.
            active: The children that see ``levels[0]``.
            levels: Indices of the treatment's active and reference values.
        """
        active = set(active)
        needed = self.graph.cut_into(treatment).ancestors(outcome) - {treatment}
        factors = []
        for name in self.graph.topological:
            if name in needed:
                table = self.tables[name]
                if treatment in table.axes:
                    axis = table.axes.index(treatment)
                    seen = np.take(table.array, levels[0] if name in active else levels[1], axis=axis)
                    table = Factor(table.axes[:axis] + table.axes[axis + 1 :], seen)
                factors.append(table)
        return self._labelled(self._sum(factors, (outcome,)), (outcome,))

    def _sum(self, factors: list[Factor], keep: tuple[str, ...]) -> Factor:
        used = {axis for factor in factors for axis in factor.axes}
        return contract([*factors, *(law for law in self.hidden if law.axes[0] in used)], keep)

    def _labelled(self, factor: Factor, dims: tuple[str, ...]) -> xarray.DataArray:
        import xarray

        shape = [self.tables[name].array.shape[0] for name in dims]
        coords: dict[Hashable, np.ndarray] = {name: np.arange(size) for name, size in zip(dims, shape, strict=True)}
        return xarray.DataArray(np.broadcast_to(factor.aligned(dims), shape).copy(), coords, dims)
