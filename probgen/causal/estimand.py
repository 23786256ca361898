"""A causal quantity as a formula about the observed law, and its value on tables and data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError, MethodError, ProbgenWarning
from probgen.base.keys import as_key
from probgen.causal.adjustment import adjustment_sets
from probgen.causal.columns import column
from probgen.causal.contrast import Contrast, ControlledDirectEffect, TotalEffect
from probgen.causal.expression import Expression, Probability, Product, Variable, free, nodes_in
from probgen.causal.front_door import front_door_sets
from probgen.causal.instruments import instruments
from probgen.causal.notation import Notation, escaped
from probgen.causal.observed_law import ObservedLaw
from probgen.causal.query import Query

if TYPE_CHECKING:
    import xarray
    from jax import Array

    from probgen.causal.columns import Data
    from probgen.causal.graph import CausalGraph, Names
    from probgen.causal.verification import Verification

__all__ = ["Estimand", "smallest_adjustment"]

_FRONT_DOORS = 20
_SETS = 64
_MOST_LEVELS = 50
_MOST_CELLS = 2**22
_MOST_NUMBERS = 2**26
_MOST_SHOWN = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Estimand:
    """A formula for a causal query, made by ``pg.causal.identify``.

    A fitted program needs no formula: it has a mechanism for every site, and ``pg.causal.worlds`` intervenes on them.
    That there is a formula says that the data decide the answer, and not what the program assumes of hidden causes.

    Attributes:
        graph: The graph.
        query: The query.
        expression: The formula, a tree of ``pg.causal.expression``.
        verification: How the formula was tried on random models.
    """

    graph: CausalGraph
    query: Query | Contrast
    expression: Expression
    verification: Verification

    @cached_property
    def adjustment(self) -> frozenset[str] | None:
        """A minimal set of covariates whose adjustment answers the query, a small one; ``None`` if there is none.

        The empty set says that nothing has to be adjusted for. Natural and path-specific effects and queries with given
        nodes have none. ``pg.causal.adjustment_sets`` lists all of them, ``pg.causal.efficient_adjustment_set`` names
        the best where the graph tells.
        """
        if self.query.given or not self.query.do or not _is_total(self.query):
            return None
        return smallest_adjustment(self.graph, self.query.do, self.query.outcomes)

    @cached_property
    def front_door(self) -> frozenset[str] | None:
        """A set of mediators by the front-door criterion, one of the smallest; ``None`` if there is none."""
        if self.query.given or len(self.query.do) != 1 or not _is_total(self.query):
            return None
        found = front_door_sets(self.graph, self.query.do, self.query.outcomes, limit=_FRONT_DOORS)
        return found[0] if found else None

    @cached_property
    def instruments(self) -> frozenset[str]:
        """Instruments that need no covariates; ``pg.causal.conditional_instruments`` finds the others."""
        if self.query.given or len(self.query.do) != 1 or len(self.query.outcomes) != 1 or not _is_total(self.query):
            return frozenset()
        return instruments(self.graph, self.query.do, self.query.outcomes)

    @property
    def constant_in(self) -> tuple[str, ...]:
        """Nodes that the formula formally speaks of, and whose value does not change it if the graph is right.

        ``evaluate`` averages over their values where the formula is defined; ``spread`` says how much it changes.
        """
        asked = {Variable(name) for name in self.query.names}
        names = {variable.name for variable in free(self.expression) - asked}
        return tuple(name for name in self.graph.topological if name in names)

    # -- reading -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        notation = Notation(self.graph.topological)
        formula = f"{self._left(notation)} = {notation.write(self.expression)}"
        return f"{formula}{self._any(notation, ' ')}" if self.constant_in else formula

    def __repr__(self) -> str:
        return f"Estimand({str(self)!r})"

    def latex(self) -> str:
        """The formula in LaTeX, without dollar signs."""
        notation = Notation(self.graph.topological, latex=True)
        return f"{self._left(notation)} = {notation.write(self.expression)}{self._any(notation, r' \quad ')}"

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def _any(self, notation: Notation, gap: str) -> str:
        if not self.constant_in:
            return ""
        names = notation.symbols(Variable(name) for name in self.constant_in)
        return rf"{gap}\text{{for any }} {names}" if notation.latex else f"{gap}(for any {names})"

    def _left(self, notation: Notation) -> str:
        query = self.query
        if isinstance(query, Contrast):
            text = str(query)
            return r" \to ".join(rf"\text{{{escaped(part)}}}" for part in text.split("->")) if notation.latex else text
        do = r"\mathrm{do}" if notation.latex else "do"
        bar = r" \mid " if notation.latex else " | "

        def written(names: tuple[str, ...]) -> str:
            return ", ".join(notation.symbol(Variable(name, value=query.values.get(name))) for name in names)

        parts = [f"{do}({written(query.do)})"] if query.do else []
        parts += [written(query.given)] if query.given else []
        return f"P({written(query.outcomes)}{bar if parts else ''}{', '.join(parts)})"

    # -- evaluating --------------------------------------------------------------------------------------------------

    def evaluate(self, table: xarray.DataArray) -> xarray.DataArray:
        """The value of the formula on an observed law.

        Args:
            table: The joint law of the observed nodes: one dim per node, with labels as coordinates (0, 1, ... if there
                are none). Nodes that the formula does not need may be absent; dims that are no nodes (draws of the
                law, say) are carried through.

        Returns:
            For a law: one dim per outcome, per set and per given node without a label, after the dims that are no
            nodes. For an effect: a number, a function of held mediators without labels. NaN where the law leaves a
            condition of the formula without a value: no overlap there.

        Raises:
            DataError: If the table lacks a node, is no law, or lacks a label of the query.
        """
        return self._evaluated(table)[0]

    def spread(self, table: xarray.DataArray) -> float:
        """How far the values of the formula are apart for different values of the nodes in ``constant_in``.

        It is zero on every law of the graph: a test of the graph, where the formula has such nodes.

        Args:
            table: As for ``evaluate``.

        Raises:
            DataError: As ``evaluate``.
        """
        law, array, count = self._valued(table)
        del law
        wide = array.reshape(*array.shape[: array.ndim - count], -1)
        seen = ~np.isnan(wide)
        high = np.where(seen, wide, -np.inf).max(-1)
        low = np.where(seen, wide, np.inf).min(-1)
        gap = np.where(seen.any(-1), high - low, 0.0)
        return float(gap.max())

    def plug_in(self, data: Data) -> xarray.DataArray:
        """The value of the formula on the empirical law of discrete data.

        Args:
            data: A DataFrame or a mapping of arrays, with a column of few different values for each node that the
                formula needs.

        Returns:
            As ``evaluate``; NaN, with a ``ProbgenWarning`` that names the empty cells, where the data leave a condition
            of the formula without a row.

        Raises:
            DataError: If a column is missing, has missing values, or is not discrete; or if the formula has no value
                anywhere on these data.
        """
        result, law = self._evaluated(self.table_of(data))
        if law.undefined and np.isnan(result.values).any():
            cells = list(law.undefined)
            named = "; ".join(cells[:_MOST_SHOWN])
            more = f" and {len(cells) - _MOST_SHOWN} more" if len(cells) > _MOST_SHOWN else ""
            message = (
                f"the data have no rows with {named}{more}, and the formula {self} needs them. Join levels, restrict "
                f"the question to where there is overlap, or estimate with a model (pg.causal.estimate)."
            )
            if np.isnan(result.values).all():
                raise DataError(message)
            warnings.warn(message, ProbgenWarning, stacklevel=2)
        return result

    def posterior(self, data: Data, *, seed: int | Array, draws: int = 1000, prior: float = 0.5) -> xarray.DataArray:
        """The posterior of the formula's value given discrete data, under a Dirichlet prior of the joint law.

        Each cell of the joint table of the nodes that the formula needs has the same pseudo-count. Cells without rows
        keep their prior, so that the answer is wide, and not missing, where there is no overlap; in a table with many
        more cells than rows the prior says more than the data.

        Args:
            data: As for ``plug_in``.
            seed: An int or a typed key.
            draws: How many draws.
            prior: The pseudo-count of a cell; 0.5 is Jeffreys' prior.

        Returns:
            As ``evaluate``, with a first dim ``draw``.

        Raises:
            DataError: As ``plug_in``; or if the draws need too large an array.
            MethodError: If ``draws`` or ``prior`` is not positive.
        """
        import jax
        import xarray

        if draws < 1 or not 0 < prior < np.inf:
            raise MethodError(f"draws is {draws} and prior is {prior}. Give positive numbers.")
        counts = self._counts(data)
        if counts.size * draws > _MOST_NUMBERS:
            raise DataError(
                f"{draws} draws of a table with {counts.size} cells are {counts.size * draws:.2g} numbers. Ask for "
                f"fewer draws. {self._instead()}"
            )
        rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(seed))))
        laws = rng.dirichlet(counts.values.ravel() + prior, draws).reshape(draws, *counts.shape)
        return self.evaluate(xarray.DataArray(laws, counts.coords, ("draw", *counts.dims)))

    def table_of(self, data: Data) -> xarray.DataArray:
        """The empirical joint law of the nodes that the formula needs.

        Args:
            data: As for ``plug_in``.

        Raises:
            DataError: As ``plug_in``.
        """
        counts = self._counts(data)
        return counts / counts.sum()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _counts(self, data: Data) -> xarray.DataArray:
        """How many rows each cell has."""
        import xarray

        names = [name for name in self.graph.topological if name in self._needed()]
        coords: dict[Hashable, np.ndarray] = {}
        codes = []
        for name in names:
            levels, code = np.unique(column(data, name), return_inverse=True)
            if len(levels) > _MOST_LEVELS:
                raise DataError(
                    f"{name!r} takes {len(levels)} different values, and a plug-in needs discrete columns (at most "
                    f"{_MOST_LEVELS} values). {self._instead()}"
                )
            coords[name] = levels
            codes.append(code)
        lengths = {name: len(code) for name, code in zip(names, codes, strict=True)}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns have different lengths: {lengths}. Give one value per row of each.")
        if not codes or not len(codes[0]):
            raise DataError("the data have no rows. Give at least one row.")
        shape = tuple(len(levels) for levels in coords.values())
        cells = np.prod(shape, dtype=float)
        if cells > _MOST_CELLS:
            raise DataError(f"the table of {', '.join(names)} has {cells:.2g} cells. {self._instead()}")
        counts = np.bincount(np.ravel_multi_index(codes, shape), minlength=int(cells)).reshape(shape)
        return xarray.DataArray(counts, coords, names)

    def _needed(self) -> frozenset[str]:
        return nodes_in(self.expression) | frozenset(self.query.names)

    def _instead(self) -> str:
        if self.adjustment is not None or self.front_door is not None:
            way = "the back-door adjustment" if self.adjustment is not None else "the front-door formula"
            return f"Estimate {way} with models: pg.causal.estimate(estimand, data, estimator)."
        return "Cut it into a few levels, or answer with a fitted program: pg.causal.worlds."

    def _asked(self) -> tuple[str, ...]:
        """The dims of the result, without batch."""
        query = self.query
        if isinstance(query, ControlledDirectEffect):
            return tuple(name for name, label in query.labels.items() if label is None)
        return () if isinstance(query, Contrast) else tuple(name for name in query.names if name not in query.values)

    def _valued(self, table: xarray.DataArray) -> tuple[ObservedLaw, np.ndarray, int]:
        """The value by batch, asked and arbitrary variables, in this order; and how many there are of the last."""
        present = [name for name in self.graph.nodes if name in table.dims]
        law = ObservedLaw(table, dict.fromkeys([*present, *sorted(self._needed())]))
        formula = self.expression
        value = law.value(Product((formula,)) if isinstance(formula, Probability) else formula)
        axes = [*law.batch_axes(), *(Variable(name) for name in (*self._asked(), *self.constant_in))]
        sizes = [*(table.sizes[dim] for dim in law.batch), *(len(law.labels[n]) for n in self._asked())]
        sizes += [len(law.labels[name]) for name in self.constant_in]
        return law, np.broadcast_to(value.aligned(axes), sizes), len(self.constant_in)

    def _evaluated(self, table: xarray.DataArray) -> tuple[xarray.DataArray, ObservedLaw]:
        import xarray

        law, array, count = self._valued(table)
        if count:
            weight = law.value(Probability(frozenset(Variable(name) for name in self.constant_in)))
            asked = [Variable(name) for name in self._asked()]
            last = [Variable(name) for name in self.constant_in]
            weights = weight.aligned([*law.batch_axes(), *asked, *last]) * ~np.isnan(array)
            over = tuple(range(array.ndim - count, array.ndim))
            total = weights.sum(over)
            sums = (np.nan_to_num(array) * weights).sum(over)
            array = np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0)
        dims = (*law.batch, *self._asked())
        coords: Mapping[Hashable, object] = {**law.coords, **{name: law.labels[name] for name in self._asked()}}
        return xarray.DataArray(array, coords, dims, name=str(self.query)), law


def smallest_adjustment(graph: CausalGraph, do: Names, outcomes: Names) -> frozenset[str] | None:
    """A minimal adjustment set, the smallest of the first few; ``None`` if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbgenWarning)  # one of them is enough
        found = adjustment_sets(graph, do, outcomes, limit=_SETS)
    return found[0] if found else None


def _is_total(query: Query | Contrast) -> bool:
    """Whether the query is about one world at a time."""
    return isinstance(query, Query | TotalEffect | ControlledDirectEffect)
