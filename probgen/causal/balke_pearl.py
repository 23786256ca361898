"""Bounds on an average effect by an instrument that need no model (Balke and Pearl, 1997; see ``response_program``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.analysis import Analysis, Measure, Scenario
from probgen.causal.response_program import ResponseProgram
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.study import Study
from probgen.causal.wording import figures, interval

if TYPE_CHECKING:
    import xarray

__all__ = ["BalkePearl"]

_LEVELS = 8


@dataclass(frozen=True)
class BalkePearl(SensitivityModel):
    """Sharp bounds of an average effect by an instrument, for discrete variables.

    Attributes:
        monotone: Whether a larger instrument never lowers the treatment of anybody (there are no defiers). Values of
            the instrument are taken in sorted order.
    """

    monotone: bool = False

    def refuses(self, subject: Any) -> str:
        if not isinstance(subject, Study) or subject.z is None:
            return f"it needs a pg.causal.Study with an instrument, got {type(subject).__name__}"
        for name, values in (("instrument", subject.z), ("outcome", subject.y)):
            if len(np.unique(values)) > _LEVELS:
                return f"the {name} has {len(np.unique(values))} values, more than {_LEVELS}: make it coarser"
        return ""

    def bounds(self, study: Study) -> tuple[float, float]:
        """Smallest and largest average effect of the treatment.

        Raises:
            DataError: If the data violate the instrumental inequality.
        """
        program, table, query, excluded = self._program(study)
        return program.bound(table, query, excluded=excluded)

    def interval(self, study: Study, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval of the average effect, exact and cautious (see ``ResponseProgram.interval``).

        Raises:
            DataError: If the data contradict the instrument at this level.
        """
        program, table, query, excluded = self._program(study)
        return program.interval(table, query, level=level, excluded=excluded)

    def _program(self, study: Study) -> tuple[ResponseProgram, xarray.DataArray, np.ndarray, np.ndarray | None]:
        if study.z is None:
            raise MethodError("the study has no instrument. Name one: Study.of(..., instrument=...).")
        table, values = self._table(study)
        levels = {"z": table.sizes["z"], "x": 2, "y": len(values)}
        program = ResponseProgram({"x": ("z",), "y": ("x",)}, levels, ("z",))
        excluded = self._defiers(program) if self.monotone else None
        return program, table, program.effect("y", "x", values=values), excluded

    def _defiers(self, program: ResponseProgram) -> np.ndarray:
        x = program.response()["x"]
        return (np.diff(x, axis=1) < 0).any(axis=1)

    def _table(self, study: Study) -> tuple[xarray.DataArray, tuple[float, ...]]:
        import xarray

        values, y = np.unique(study.y, return_inverse=True)
        if len(values) < 2:
            raise DataError(f"the outcome {study.outcome!r} is constant. An effect needs variation.")
        kinds, z = np.unique(np.asarray(study.z), return_inverse=True)
        counts = np.zeros((len(kinds), 2, len(values)))
        np.add.at(counts, (z, study.t.astype(int), y), 1.0)
        return xarray.DataArray(counts, dims=("z", "x", "y")), tuple(map(float, values))

    def analyse(self, subject: Study, question: Question) -> Analysis:
        from probgen.causal.manski import Manski

        ends = self.bounds(subject)
        limits = self.interval(subject, question.level)
        without = Manski((float(subject.y.min()), float(subject.y.max()))).bounds(subject)[0]
        label = "instrument, no defiers" if self.monotone else "instrument"
        scenarios = (Scenario("no instrument", {}, *without), Scenario(label, {}, *ends, limits))
        inside = limits[0] <= question.null <= limits[1]
        sentences = (
            f"With {subject.instrument or 'z'} as an instrument{' that nobody defies' if self.monotone else ''}, whatever the "
            f"hidden confounding, the average effect of {subject.treatment} on {subject.outcome} lies within "
            f"{interval(ends)} (without the instrument: {interval(without)}). The {100 * question.level:.3g} % "
            f"interval, {interval(limits)}, {'includes' if inside else 'excludes'} {figures(question.null)}.",
        )
        return Analysis(
            title="Balke-Pearl bounds",
            assumption=(
                "The instrument shares no hidden cause with treatment and outcome, and acts on the outcome only through "
                "the treatment; the treatment and the outcome may be confounded in any way."
            ),
            measures=(Measure("width of the bounds", ends[1] - ends[0], "of what the assumptions leave open"),),
            scenarios=scenarios,
            sentences=sentences,
            notes=(
                "The interval is exact for any number of units, and wider than need be (Clopper-Pearson for each "
                "probability, with Bonferroni's correction).",
            ),
        )
