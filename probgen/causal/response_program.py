r"""Sharp bounds for discrete variables by linear programming over response types (Balke and Pearl, 1994, 1997).

Let some variables be confounded with one another in any way, and others, *exogenous*, be roots that share no hidden
cause with anything. Each confounded variable :math:`V` with :math:`k` values is a function of its parents; a person is
one of the :math:`k^{|\mathrm{pa}(V)|}` possible functions, and a *type* names one function for each confounded
variable. The law :math:`q` of types is all that hidden causes can do. With the exogenous :math:`z`, both what is
observed and what is asked are linear in it:

.. math::
   P(v \mid z) = \sum_{r:\, V(r, z) = v} q_r, \qquad P(\text{counterfactual event}) = \sum_{r \in \text{event}} q_r ,

so that the smallest and the largest answer that the data allow are two linear programs. For an instrument
(``Z -> X; X -> Y; X <-> Y``, all binary) there are 16 types. The bounds are sharp if one hidden cause may act on all
confounded variables; otherwise they hold, but better ones may exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, ModelError, suggestion

if TYPE_CHECKING:
    import xarray

    from probgen.causal.graph import CausalGraph

__all__ = ["ResponseProgram"]

_LARGEST = 20_000_000
"""Entries of the matrix of constraints."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class ResponseProgram:
    """The linear program of a discrete graph.

    Attributes:
        parents: By confounded variable, in topological order, its parents.
        levels: By variable, its number of values, which are 0, 1, ...
        exogenous: The exogenous variables.
    """

    parents: Mapping[str, tuple[str, ...]]
    levels: Mapping[str, int]
    exogenous: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (*self.exogenous, *self.parents):
            if name not in self.levels:
                raise ModelError(f"the number of values of {name!r} is missing. Give it in levels.")
            if self.levels[name] < 2:
                raise ModelError(f"{name!r} has {self.levels[name]} values, expected 2 or more. Leave constants out.")
        known = set(self.exogenous)
        for name, parents in self.parents.items():
            for parent in parents:
                if parent not in known:
                    raise ModelError(f"{parent!r}, a parent of {name!r}, does not stand before it. Sort the parents.")
            known.add(name)
        entries = self.types * math.prod(self.levels[name] for name in known)
        if entries > _LARGEST:
            raise ModelError(
                f"the graph has {self.types:,} response types, too many for a linear program ({entries:,} entries). Use "
                f"fewer values or fewer parents."
            )

    @classmethod
    def of(cls, graph: CausalGraph, levels: Mapping[str, int]) -> ResponseProgram:
        """The program of a graph: roots without bidirected edges are exogenous, all others may share hidden causes.

        Args:
            graph: The graph, from ``pg.causal.graph("Z -> X; X -> Y; X <-> Y")``.
            levels: By variable, its number of values.
        """
        exogenous = tuple(name for name in graph.topological if not graph.parents(name) and not graph.spouses(name))
        inner = [name for name in graph.topological if name not in exogenous]
        if not inner:
            raise ModelError("no variable of the graph has a parent, so there is no effect to bound. Add edges.")
        return cls({name: tuple(sorted(graph.parents(name))) for name in inner}, dict(levels), exogenous)

    @property
    def types(self) -> int:
        """Number of response types."""
        return math.prod(
            self.levels[name] ** math.prod(self.levels[parent] for parent in parents)
            for name, parents in self.parents.items()
        )

    def response(self, do: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
        """What every type does, at every value of the exogenous variables.

        Args:
            do: Variables that are set, and their values.

        Returns:
            By variable, its values, of shape (types, values of the exogenous variables).
        """
        do = {} if do is None else dict(do)
        for name, value in do.items():
            self._check_value(name, value)
        functions = {
            name: self.levels[name] ** math.prod(self.levels[p] for p in parents)
            for name, parents in self.parents.items()
        }
        places = np.unravel_index(np.arange(self.types), list(functions.values()))
        grids = np.unravel_index(np.arange(self._settings), [self.levels[name] for name in self.exogenous] or [1])
        shape = (self.types, self._settings)
        values: dict[str, np.ndarray] = {}
        for name, grid in zip(self.exogenous, grids, strict=False):
            values[name] = np.broadcast_to(do[name] if name in do else grid[None, :], shape)
        for (name, parents), function in zip(self.parents.items(), places, strict=True):
            if name in do:
                values[name] = np.full(shape, do[name])
                continue
            # A function is a number in base k whose digits are its values at the settings of the parents.
            setting = np.zeros(shape, dtype=int)
            for parent in parents:
                setting = setting * self.levels[parent] + values[parent]
            values[name] = function[:, None] // self.levels[name] ** setting % self.levels[name]
        return values

    def event(self, *parts: tuple[Mapping[str, int], Mapping[str, int]]) -> np.ndarray:
        """For which types a counterfactual event holds.

        Args:
            parts: Pairs of an event and of what is done: ``({"Y": 1}, {"X": 1})`` is that Y is 1 had X been set to 1;
                all parts must hold together.

        Returns:
            Zeros and ones, shape (types, values of the exogenous variables).
        """
        holds = np.ones((self.types, self._settings))
        for event, do in parts:
            values = self.response(do)
            for name, value in event.items():
                self._check_value(name, value)
                holds = holds * (values[name] == value)
        return holds

    def effect(
        self, outcome: str, treatment: str, *, high: int = 1, low: int = 0, values: tuple[float, ...] | None = None
    ) -> np.ndarray:
        """The average effect of setting the treatment to ``high`` and not to ``low``, as a query.

        Args:
            outcome: The outcome.
            treatment: The treatment.
            high: Place of the one value among those of the treatment.
            low: Place of the other.
            values: What the values of the outcome stand for; None for 0, 1, ...
        """
        worth = np.arange(self.levels.get(outcome, 2)) if values is None else np.asarray(values, float)
        up, down = (self.response({treatment: place})[outcome] for place in (high, low))
        return (worth[up] - worth[down]).astype(float)

    def bound(
        self, table: xarray.DataArray, query: np.ndarray, *, excluded: np.ndarray | None = None
    ) -> tuple[float, float]:
        """The smallest and the largest answer that a table allows.

        Args:
            table: Probabilities or counts with one dimension per variable; rows of the exogenous variables are
                normalised. Where the answer depends on exogenous variables that are not set, the table must be of all
                variables together, since their law is taken from it.
            query: What is asked, from ``event``, ``effect``, or linear combinations of them.
            excluded: Types that are assumed away, shape (types,), boolean.

        Raises:
            DataError: If the table does not fit the graph, or no law of hidden causes gives it (for an instrument: it
                violates the instrumental inequality).
        """
        from scipy.optimize import linprog

        law, weights = self._law(table)
        objective = self._objective(query, weights)
        kept = np.ones(self.types, bool) if excluded is None else ~np.asarray(excluded, bool)
        matrix, target = self._constraints(law)
        matrix = matrix[:, kept]
        ends = []
        for sign in (1, -1):
            found = linprog(sign * objective[kept], A_eq=matrix, b_eq=target, bounds=(0, None), method="highs")
            if found.status == 2:
                self._infeasible(matrix, target, excluded is not None)
            if found.status != 0:
                raise DataError(f"the linear program was not solved ({found.message}). Check the table.")
            ends.append(sign * float(found.fun))
        return ends[0], ends[1]

    def interval(
        self, counts: xarray.DataArray, query: np.ndarray, *, level: float = 0.95, excluded: np.ndarray | None = None
    ) -> tuple[float, float]:
        """A confidence interval of the answer, whatever the hidden causes do.

        Every probability may lie anywhere in an exact interval of its own (Clopper-Pearson, with Bonferroni's
        correction for their number), and the two programs take the worst. The answer is covered with at least the
        level for any sample size; the interval is wider than need be.

        Args:
            counts: Numbers of units, one dimension per variable.
            query: What is asked; its answer must not depend on exogenous variables that are not set.
            level: Level of the interval.
            excluded: Types that are assumed away, shape (types,), boolean.

        Raises:
            DataError: If the table does not hold counts, or contradicts the graph at this level.
        """
        from scipy.optimize import linprog
        from scipy.stats import beta

        if not 0 < level < 1:
            raise ModelError(f"level must lie between 0 and 1, got {level}. Use 0.95, for example.")
        law, sums = self._law(counts)
        hits = law * sums[:, None]
        if np.abs(hits - np.rint(hits)).max() > 1e-6 * max(1.0, hits.max()) or (sums < 1).any():
            raise DataError("the table does not hold numbers of units. An interval needs counts, not probabilities.")
        objective = self._objective(query, sums)
        if not (np.asarray(query) == np.asarray(query)[:, :1]).all():
            raise ModelError(
                f"the answer depends on {', '.join(self.exogenous)}, whose law is estimated as well. Ask about values of "
                f"them that are set."
            )
        tail, trials = (1 - level) / 2 / hits.size, np.broadcast_to(sums[:, None], hits.shape)
        with np.errstate(invalid="ignore"):
            low = np.where(hits > 0.5, beta.ppf(tail, hits, trials - hits + 1), 0.0).ravel()
            high = np.where(hits < trials - 0.5, beta.isf(tail, hits + 1, trials - hits), 1.0).ravel()
        kept = np.ones(self.types, bool) if excluded is None else ~np.asarray(excluded, bool)
        matrix = self._constraints(law)[0][:, kept]
        limits = {"A_ub": np.vstack([matrix, -matrix]), "b_ub": np.concatenate([high, -low])}
        whole = {"A_eq": np.ones((1, kept.sum())), "b_eq": [1.0]}
        ends = []
        for sign in (1, -1):
            found = linprog(sign * objective[kept], **limits, **whole, bounds=(0, None), method="highs")
            if found.status != 0:
                raise DataError(
                    f"the counts contradict the graph at the level of {100 * level:.3g} %: no law of hidden causes comes "
                    f"near enough. {', '.join(self.exogenous) or 'An exogenous variable'} is no valid instrument."
                )
            ends.append(sign * float(found.fun))
        return ends[0], ends[1]

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> int:
        return math.prod(self.levels[name] for name in self.exogenous)

    def _check_value(self, name: str, value: int) -> None:
        names = [*self.exogenous, *self.parents]
        if name not in names:
            raise ModelError(f"the graph has no variable {name!r}. {suggestion(name, names)}")
        if not 0 <= value < self.levels[name]:
            raise ModelError(f"{name!r} has the values 0 to {self.levels[name] - 1}, got {value}. Give one of them.")

    def _law(self, table: Any) -> tuple[np.ndarray, np.ndarray]:
        """Conditional probabilities, shape (settings, cells), and weights of the settings."""
        names = [*self.exogenous, *self.parents]
        if set(map(str, table.dims)) != set(names):
            raise DataError(
                f"the table has the dimensions {', '.join(map(str, table.dims))}, expected {', '.join(names)}. Name them "
                f"after the variables."
            )
        array = np.asarray(table.transpose(*names).values, float)
        expected = tuple(self.levels[name] for name in names)
        if array.shape != expected:
            raise DataError(f"the table has the shape {array.shape}, expected {expected}. One entry per combination.")
        if not np.isfinite(array).all() or (array < 0).any():
            raise DataError("the table has entries that are negative or not finite. Give probabilities or counts.")
        array = array.reshape(self._settings, -1)
        sums = array.sum(1)
        if (sums <= 0).any():
            raise DataError(
                "some values of the exogenous variables do not occur in the table, so that nothing is known of them. "
                "Leave these values out."
            )
        return array / sums[:, None], sums

    def _objective(self, query: np.ndarray, weights: np.ndarray) -> np.ndarray:
        query = np.asarray(query, float)
        if query.shape != (self.types, self._settings):
            raise ModelError(
                f"the query has the shape {query.shape}, expected {(self.types, self._settings)}. Make it by event or "
                f"effect of this program."
            )
        if (query == query[:, :1]).all():
            return query[:, 0]
        if len(weights) > 1 and np.allclose(weights, 1.0):
            raise DataError(
                f"the answer depends on {', '.join(self.exogenous)}, whose law the table does not have: each of its rows "
                f"sums to 1. Give the joint probabilities, or counts."
            )
        return query @ (weights / weights.sum())

    def _constraints(self, law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = self.response()
        cell = np.zeros((self.types, self._settings), dtype=int)
        for name in self.parents:
            cell = cell * self.levels[name] + values[name]
        cells = law.shape[1]
        matrix = np.zeros((self._settings, cells, self.types))
        matrix[np.arange(self._settings)[:, None], cell.T, np.arange(self.types)] = 1.0
        return matrix.reshape(-1, self.types), law.reshape(-1)

    def _infeasible(self, matrix: np.ndarray, target: np.ndarray, restricted: bool) -> None:
        """Say how far the table is from any that the graph allows."""
        from scipy.optimize import linprog

        rows, types = matrix.shape
        both = np.hstack([matrix, np.eye(rows), -np.eye(rows)])
        cost = np.concatenate([np.zeros(types), np.ones(2 * rows)])
        found = linprog(cost, A_eq=both, b_eq=target, bounds=(0, None), method="highs")
        distance = float(found.fun) / 2 / self._settings if found.status == 0 else math.nan
        if distance < _TOLERANCE:
            return
        why = "with the types that are assumed away, " if restricted else ""
        raise DataError(
            f"{why}no law of hidden causes gives this table: it violates what the graph implies (for an instrument, the "
            f"instrumental inequality), and probabilities of {distance:.3g} per row would have to move. Either "
            f"{', '.join(self.exogenous) or 'an exogenous variable'} is no valid instrument, or the table comes from "
            f"few observations: use more of them, or fewer values."
        )
