"""Pairs of one treated and one control unit, matched on what was observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError
from probgen.causal.columns import binary, numbers
from probgen.causal.columns import labels as labelled

if TYPE_CHECKING:
    from probgen.causal.columns import Data

__all__ = ["MatchedPairs"]


@dataclass(frozen=True, eq=False)
class MatchedPairs:
    """Outcomes of matched pairs.

    Attributes:
        treated: Outcomes of the treated units, shape (pairs,).
        control: Outcomes of their controls, shape (pairs,).
        treatment: Name of the treatment.
        outcome: Name of the outcome.
    """

    treated: np.ndarray
    control: np.ndarray
    treatment: str = "treatment"
    outcome: str = "outcome"

    def __post_init__(self) -> None:
        for name in ("treated", "control"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or values.dtype.kind not in "biuf":
                raise DataError(f"{name} must hold one number per pair, got {values.dtype} of shape {values.shape}.")
            values = values.astype(float)
            if not np.isfinite(values).all():
                raise DataError(f"{name} has values that are not finite. Drop these pairs.")
            object.__setattr__(self, name, values)
        if len(self.treated) != len(self.control):
            raise DataError(
                f"there are {len(self.treated)} treated units and {len(self.control)} controls. Give one control for "
                f"each treated unit, in the same order."
            )
        if not (self.treated != self.control).any():
            raise DataError("no pair differs in its outcome, so there is nothing to test. Are the columns the same?")

    @classmethod
    def of(cls, data: Data, outcome: str, treatment: str, pair: str) -> MatchedPairs:
        """From a table with a row per unit.

        Args:
            data: A DataFrame, or a mapping of arrays of one length.
            outcome: Name of the outcome, a column of numbers.
            treatment: Name of the treatment, a column of zeros and ones.
            pair: Name of the column that says which pair a unit belongs to.

        Raises:
            DataError: If a column is missing, or a pair is not one treated unit and one control.
        """
        y, t = numbers(data, outcome), binary(data, treatment)
        labels, which = labelled(data, pair)
        if not len(y) == len(t) == len(which):
            raise DataError(
                f"the columns have different lengths {sorted({len(y), len(t), len(which)})}. Give equal ones."
            )
        treated, units = np.bincount(which, weights=t), np.bincount(which)
        wrong = np.flatnonzero((treated != 1) | (units != 2))
        if len(wrong):
            shown = ", ".join(str(labels[i]) for i in wrong[:5])
            raise DataError(
                f"{len(wrong)} pairs in {pair!r} are not one treated unit and one control ({shown}"
                f"{', …' if len(wrong) > 5 else ''}). Drop or mend them."
            )
        order = np.argsort(which, kind="stable")
        by_unit = y[order], t[order] == 1
        return cls(by_unit[0][by_unit[1]], by_unit[0][~by_unit[1]], str(treatment), str(outcome))

    @classmethod
    def discordant(
        cls, treated_only: int, control_only: int, *, treatment: str = "treatment", outcome: str = "outcome"
    ) -> MatchedPairs:
        """Pairs of a binary outcome by the two counts that matter (McNemar's).

        Args:
            treated_only: Pairs in which only the treated unit has the outcome.
            control_only: Pairs in which only the control has it.
            treatment: Name of the treatment.
            outcome: Name of the outcome.
        """
        if min(treated_only, control_only) < 0 or treated_only + control_only == 0:
            raise DataError(
                f"counts of discordant pairs must be at least 0 and not both 0, got {treated_only} and "
                f"{control_only}. Count the pairs that differ."
            )
        treated = np.repeat([1.0, 0.0], [treated_only, control_only])
        return cls(treated, 1 - treated, treatment, outcome)

    @property
    def differences(self) -> np.ndarray:
        """Treated less control, pairs that do not differ left out."""
        differences: Any = self.treated - self.control
        return differences[differences != 0]

    @property
    def is_binary(self) -> bool:
        """Whether the outcomes are zeros and ones."""
        return bool(np.isin(self.treated, (0, 1)).all() and np.isin(self.control, (0, 1)).all())
