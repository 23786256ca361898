"""The observed law as a table, and the values of formulas on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError, suggestion
from probgen.causal.contraction import Factor, TooLarge, contract
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
    free,
)

if TYPE_CHECKING:
    import xarray

__all__ = ["ObservedLaw"]

_NEAR_ONE = 1e-6


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The label of an axis that is no variable."""

    dim: Hashable


class ObservedLaw:
    """A joint table of variables.

    A conditional law P(a | b) has no value where P(b) = 0. Such a cell is NaN, and it makes a sum NaN only if it counts
    there: if nothing that it is multiplied with is zero.

    Args:
        table: The joint law, with a dim per variable; dims that are not in ``names`` are kept as they are (draws of the
            law, say).
        names: Variables.

    Raises:
        DataError: If a dim is missing, or the numbers are not laws: NaN, negative, or a sum that is not one.
    """

    def __init__(self, table: xarray.DataArray, names: Iterable[str]):
        names = tuple(names)
        for name in names:
            if name not in table.dims:
                raise DataError(
                    f"the table has no dim {name!r}, which the formula needs. {suggestion(name, map(str, table.dims))}"
                )
        values = np.asarray(table.values, dtype=float)
        if not np.all(np.isfinite(values)) or np.any(values < 0):
            raise DataError("the table has a cell that is negative, NaN or infinite. Give probabilities.")
        self.names = names
        self.batch = tuple(dim for dim in table.dims if dim not in names)
        self.labels = {
            name: np.asarray(table.coords[name].values if name in table.coords else range(table.sizes[name]))
            for name in names
        }
        self.coords = {dim: table.coords[dim] for dim in self.batch if dim in table.coords}
        axes = tuple(dim if dim in names else _Batch(dim) for dim in table.dims)
        total = values.sum(tuple(n for n, axis in enumerate(axes) if axis in names))
        if np.any(np.abs(total - 1) > _NEAR_ONE):
            kept = f" for each value of {', '.join(map(str, self.batch))}, which are no nodes" if self.batch else ""
            raise DataError(
                f"the table sums to {float(np.ravel(total)[0]):.6g} over {', '.join(names)}{kept}, and a law sums to "
                f"one. Divide it by its sum, and sum out what is not asked about."
            )
        joint = Factor(
            axes,
            values
            / total.reshape([1 if axis in names else size for axis, size in zip(axes, values.shape, strict=True)]),
        )
        self._margins: dict[frozenset[str], Factor] = {frozenset(names): joint}
        self._joint = joint
        self.undefined: dict[str, None] = {}

    def value(self, expression: Expression) -> Factor:
        """The value of a formula for all values of its free variables; those are its axes, with the batch."""
        match expression:
            case Probability():
                return self._probability(expression)
            case Constant(number):
                return Factor((), np.asarray(number))
            case Product() | Sum() | Mean():
                return self._sum_product(expression)
            case Ratio(a, b):
                return _combined(_quotient, self.value(a), self.value(b))
            case Difference(a, b):
                return _combined(np.subtract, self.value(a), self.value(b))

    def batch_axes(self) -> tuple[Hashable, ...]:
        """The labels of the axes that are no variables."""
        return tuple(_Batch(dim) for dim in self.batch)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _margin(self, names: frozenset[str]) -> Factor:
        if names not in self._margins:
            drop = tuple(n for n, axis in enumerate(self._joint.axes) if axis in self.names and axis not in names)
            axes = tuple(axis for n, axis in enumerate(self._joint.axes) if n not in drop)
            self._margins[names] = Factor(axes, self._joint.array.sum(drop))
        return self._margins[names]

    def _probability(self, law: Probability) -> Factor:
        both = self._margin(frozenset(v.name for v in law.of | law.given))
        below = self._margin(frozenset(v.name for v in law.given))
        ratio = _quotient(both.array, below.aligned(both.axes)) if law.given else both.array
        by_name = {variable.name: variable for variable in law.of | law.given}
        axes: list[Hashable] = []
        take: list[int | slice] = []
        for axis in both.axes:
            variable = by_name.get(axis) if isinstance(axis, str) else None
            if variable is not None and variable.fixed:
                take.append(self._place(variable))
            else:
                take.append(slice(None))
                axes.append(axis if variable is None else variable)
        return Factor(tuple(axes), ratio[tuple(take)])

    def _place(self, variable: Variable) -> int:
        found = np.flatnonzero(self.labels[variable.name] == variable.value)
        if found.size != 1:
            labels = ", ".join(map(repr, self.labels[variable.name].tolist()[:10]))
            raise DataError(
                f"the query sets {variable.name} to {variable.value!r}, which is not a label of it. Its labels "
                f"are {labels}."
            )
        return int(found[0])

    def _sum_product(self, expression: Expression) -> Factor:
        """A product, summed over some of its variables."""
        parts: list[tuple[Expression, Factor]] = []
        body = expression
        if isinstance(expression, Sum):
            body = expression.body
        elif isinstance(expression, Mean):
            body = expression.body
            parts.append((Constant(1.0), self._numbers(expression.variable)))
        parts += [(factor, self.value(factor)) for factor in factors_of(body)]
        factors = [factor for _, factor in parts]
        keep = (*self.batch_axes(), *sorted(free(expression), key=lambda variable: variable.key))
        try:
            if not any(np.isnan(factor.array).any() for factor in factors):
                return contract(factors, keep)
            known = [Factor(f.axes, np.nan_to_num(f.array, nan=0.0)) for f in factors]
            total = contract(known, keep)
            # A term is undefined where a factor is NaN and no other one is zero: counted in whole numbers.
            some = contract([Factor(f.axes, (f.array != 0).astype(float)) for f in factors], keep)
            fine = contract([Factor(f.axes, (f.array != 0).astype(float)) for f in known], keep)
            for n, (part, factor) in enumerate(parts):
                self._note(
                    part, factor, [Factor(f.axes, (f.array != 0).astype(float)) for f in factors[:n] + factors[n + 1 :]]
                )
            return Factor(total.axes, np.where(some.array != fine.array, np.nan, total.array))
        except TooLarge as error:
            raise DataError(
                f"the formula needs an array of {error.cells} cells. Give variables fewer values, or estimate from "
                f"data with pg.causal.estimate."
            ) from None

    def _note(self, part: Expression, factor: Factor, others: list[Factor]) -> None:
        """Remember which conditions have no value where one is needed."""
        if not isinstance(part, Probability):
            return
        missing = np.isnan(factor.array).astype(float)
        hit = contract([Factor(factor.axes, missing), *others], factor.axes).aligned(factor.axes) > 0
        given = [v for v in factor.axes if isinstance(v, Variable) and v in part.given]
        drop = tuple(n for n, axis in enumerate(factor.axes) if axis not in given)
        fixed = [f"{v.name}={v.value}" for v in sorted(part.given, key=lambda v: v.key) if v.fixed]
        for cell in np.argwhere(hit.any(drop)):
            words = [f"{v.name}={self.labels[v.name][i]}" for v, i in zip(given, cell, strict=True)]
            self.undefined[", ".join([*words, *fixed])] = None

    def _numbers(self, variable: Variable) -> Factor:
        labels = self.labels[variable.name]
        try:
            numbers = labels.astype(float)
        except (TypeError, ValueError):
            raise DataError(
                f"the labels of {variable.name} are {', '.join(map(repr, labels.tolist()[:5]))}, and a mean needs "
                f"numbers. Give it a coordinate of numbers."
            ) from None
        return Factor((variable,), numbers)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is zero."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.full(a.shape, math.nan), where=b != 0)


def _combined(operation, a: Factor, b: Factor) -> Factor:  # noqa: ANN001
    axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
    return Factor(axes, operation(a.aligned(axes), b.aligned(axes)))
