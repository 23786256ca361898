"""What estimators work on: a question and data, as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.causal.columns import coded, column, numbers

if TYPE_CHECKING:
    from probgen.causal.adjustment_question import Adjustment
    from probgen.causal.columns import Data

__all__ = ["Problem"]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Arrays of n units.

    Attributes:
        question: What is asked.
        y: Outcome, shape (n,).
        t: Treatment, shape (n,).
        x: Covariates as columns of numbers, shape (n, p).
        z: Instruments, shape (n, q).
        columns: Names of the columns of x.
        places: By covariate the places of its columns.
        clusters: Cluster of each unit as a whole number, shape (n,); None if units are independent.
        rows: Rows of the data that the units are, shape (n,).
    """

    question: Adjustment
    y: np.ndarray = dataclasses.field(repr=False)
    t: np.ndarray = dataclasses.field(repr=False)
    x: np.ndarray = dataclasses.field(repr=False)
    z: np.ndarray = dataclasses.field(repr=False)
    columns: tuple[str, ...] = dataclasses.field(repr=False)
    places: Mapping[str, list[int]] = dataclasses.field(repr=False)
    clusters: np.ndarray | None = dataclasses.field(repr=False)
    rows: np.ndarray = dataclasses.field(repr=False)

    @classmethod
    def of(cls, question: Adjustment, data: Data, clusters: str | None = None) -> Problem:
        """From a table.

        Args:
            question: The question.
            data: A DataFrame, or a mapping of arrays of one length.
            clusters: Name of a column: units with the same value may depend on one another.

        Raises:
            DataError: If a column is missing, has missing values, or is constant where it must vary.
        """
        y = numbers(data, question.outcome)
        t = _treatment(data, question)
        x, places, labels = coded(data, question.covariates)
        if not question.covariates:
            x = np.zeros((len(y), 0))
        instruments = [numbers(data, name) for name in question.instruments]
        groups = None
        if clusters is not None:
            groups = np.unique(column(data, clusters), return_inverse=True)[1]
        lengths = {len(part) for part in (y, t, x, groups, *instruments) if part is not None}
        if len(lengths) > 1:
            raise DataError(f"the columns have different lengths {sorted(lengths)}. Give one value per unit of each.")
        for name, values in ((question.treatment, t), (question.outcome, y)):
            if np.ptp(values) == 0:
                raise DataError(f"the column {name!r} is constant. There is nothing to compare.")
        for name, values in zip(question.instruments, instruments, strict=True):
            if np.ptp(values) == 0:
                raise DataError(f"the instrument {name!r} is constant. It must take at least two values.")
        if groups is not None and len(np.unique(groups)) < 2:
            raise DataError(f"all units are of one cluster of {clusters!r}. There must be at least two.")
        z = np.column_stack([np.zeros((len(y), 0)), *instruments])
        return cls(question, y, t, x, z, tuple(labels), places, groups, np.arange(len(y)))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def is_binary(self) -> bool:
        """Whether the treatment is zeros and ones."""
        return bool(np.isin(self.t, (0.0, 1.0)).all())

    @property
    def treated(self) -> np.ndarray:
        """Who is treated, booleans of shape (n,).

        Raises:
            DataError: If the treatment is not zeros and ones.
        """
        if not self.is_binary:
            shown = ", ".join(f"{value:g}" for value in np.unique(self.t)[:4])
            raise DataError(
                f"the treatment {self.question.treatment!r} holds {shown}, …, expected 0 and 1. Code it so, or use "
                f"pg.causal.PartiallyLinear, which takes any number."
            )
        return self.t == 1

    @property
    def strata(self) -> np.ndarray:
        """Whole numbers by which folds are balanced, shape (n,): arms, and values of a binary instrument."""
        strata = self.t.astype(int) if self.is_binary else np.zeros(len(self), int)
        if self.z.shape[1] == 1 and np.isin(self.z, (0.0, 1.0)).all():
            strata = 2 * strata + self.z[:, 0].astype(int)
        return strata

    def take(self, rows: np.ndarray) -> Problem:
        """The problem of some units; ``rows`` are places or booleans."""
        clusters = None if self.clusters is None else self.clusters[rows]
        return dataclasses.replace(
            self,
            y=self.y[rows],
            t=self.t[rows],
            x=self.x[rows],
            z=self.z[rows],
            clusters=clusters,
            rows=self.rows[rows],
        )

    def columns_of(self, names: tuple[str, ...]) -> list[int]:
        """Places of the columns of some covariates."""
        for name in names:
            if name not in self.places:
                raise MethodError(f"{name!r} is not among the covariates. {suggestion(name, self.places)}")
        return [place for name in names for place in self.places[name]]


def _treatment(data: Data, question: Adjustment) -> np.ndarray:
    """The treatment as numbers; zeros and ones where it takes just the two values of the question."""
    values = column(data, question.treatment)
    active, rest = values == question.active, values == question.reference
    if np.all(active | rest):
        return active.astype(float)
    if (question.active, question.reference) != (1, 0):
        others = np.unique(values[~(active | rest)].astype(str))[:3]
        raise DataError(
            f"the treatment {question.treatment!r} also holds {', '.join(others)}, beside {question.active!r} and "
            f"{question.reference!r}. Keep the rows with these two values."
        )
    return numbers(data, question.treatment)
