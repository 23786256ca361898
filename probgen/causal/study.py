"""Data of an observational study as arrays: treatment, outcome, and an instrument where there is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError
from probgen.causal.columns import binary, labels, numbers

if TYPE_CHECKING:
    from probgen.causal.columns import Data

__all__ = ["Study"]


@dataclass(frozen=True, eq=False)
class Study:
    """Treatment and outcome of independent units, for bounds that need no model.

    Attributes:
        y: Outcome, shape (n,).
        t: Treatment, zeros and ones, shape (n,).
        z: Instrument, values of any kind, shape (n,); None if there is none.
        outcome: Name of the outcome.
        treatment: Name of the treatment.
        instrument: Name of the instrument.
    """

    y: np.ndarray = field(repr=False)
    t: np.ndarray = field(repr=False)
    z: np.ndarray | None = field(default=None, repr=False)
    outcome: str = "outcome"
    treatment: str = "treatment"
    instrument: str = ""

    @classmethod
    def of(cls, data: Data, outcome: str, treatment: str, *, instrument: str | None = None) -> Study:
        """From a table.

        Args:
            data: A DataFrame, or a mapping of arrays of one length.
            outcome: Name of the outcome, a column of numbers.
            treatment: Name of the treatment, a column of zeros and ones.
            instrument: Name of an instrument: it goes with the treatment, and with the outcome only through it.

        Raises:
            DataError: If a column is missing, has missing values, or the treatment is not binary.
        """
        y, t = numbers(data, outcome), binary(data, treatment)
        z = None
        if instrument is not None:
            levels, which = labels(data, instrument)
            z = levels[which]
        lengths = {len(values) for values in (y, t, z) if values is not None}
        if len(lengths) > 1:
            raise DataError(f"the columns have different lengths {sorted(lengths)}. Give one value per unit of each.")
        if z is not None and len(np.unique(z)) < 2:
            raise DataError(f"the instrument {instrument!r} is constant. It must take at least two values.")
        return cls(y, t, z, str(outcome), str(treatment), "" if instrument is None else str(instrument))
