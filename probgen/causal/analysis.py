"""What one sensitivity model says about one effect: numbers, scenarios, sentences, and what to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.wording import figures

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Analysis", "Band", "Contour", "Curves", "Line", "Mark", "Measure", "Scenario"]


@dataclass(frozen=True)
class Measure:
    """One number that sums up how much confounding a result can bear.

    Attributes:
        name: What it is called, ``"robustness value"``.
        value: The number.
        meaning: A phrase that a reader who does not know it understands.
        percent: Whether it is a share, shown in per cent.
    """

    name: str
    value: float
    meaning: str
    percent: bool = False

    @property
    def shown(self) -> str:
        """The number as text."""
        return f"{figures(100 * self.value, 4)} %" if self.percent else figures(self.value)


@dataclass(frozen=True)
class Scenario:
    """A confounder of some strength, and what it would leave of the effect.

    Attributes:
        label: A name for it, ``"2 x age"``, ``"gamma = 1.5"``.
        strengths: The strength, in the parameters of the sensitivity model.
        lower: Smallest effect that the scenario allows.
        upper: Largest effect; equal to ``lower`` where the scenario fixes the effect.
        interval: Confidence limits that take sampling into account as well; None where the model has none.
        statistics: Further columns for the table of the model: standard errors, p-values.
    """

    label: str
    strengths: Mapping[str, float]
    lower: float
    upper: float
    interval: tuple[float, float] | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """A benchmark in a picture: where an observed covariate lies. ``y`` is None where it is a place on one axis."""

    label: str
    x: float
    y: float | None = None


@dataclass(frozen=True)
class Contour:
    """A surface over two strengths.

    Attributes:
        title: What is drawn, ``"adjusted estimate"``.
        xlabel: Name of the first strength.
        ylabel: Name of the second strength.
        x: Values of the first strength, shape (n,).
        y: Values of the second strength, shape (m,).
        values: The surface, shape (m, n).
        threshold: The value at which the conclusion changes.
        marks: Benchmarks.
    """

    title: str
    xlabel: str
    ylabel: str
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    threshold: float
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Line:
    """A curve with a name; ``x`` and ``y`` have the shape (n,)."""

    label: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Curves:
    """Curves in one frame: effects against a strength, or pairs of strengths that just tip the conclusion.

    Attributes:
        xlabel: Name of the horizontal axis.
        ylabel: Name of the vertical axis.
        lines: The curves.
        threshold: Height at which the conclusion changes; None where the curves themselves are that place.
        marks: Benchmarks.
        log: Whether both axes are logarithmic.
    """

    xlabel: str
    ylabel: str
    lines: tuple[Line, ...]
    threshold: float | None = None
    marks: tuple[Mark, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Band:
    """Bounds of the effect against the strength of confounding.

    Attributes:
        xlabel: Name of the strength.
        ylabel: Name of the effect.
        x: Strengths, increasing, shape (n,).
        lower: Lower bounds, shape (n,).
        upper: Upper bounds, shape (n,).
        threshold: The effect at which the conclusion changes.
        interval: Confidence limits of the bounds, two arrays of shape (n,); None where there are none.
        marks: Benchmarks on the axis of strengths.
    """

    xlabel: str
    ylabel: str
    x: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    threshold: float
    interval: tuple[np.ndarray, np.ndarray] | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """What one sensitivity model says about one effect.

    Attributes:
        title: Name of the sensitivity model.
        assumption: One sentence: what the model lets a hidden confounder do, and what its parameters mean.
        measures: Numbers that sum up, the most important first.
        scenarios: Confounders of given strengths, and what each leaves of the effect.
        sentences: The result in words.
        notes: What is approximate, and what the numbers leave out.
        contours: Surfaces over two strengths.
        extreme: Effects against one strength, under extreme choices of the other.
        tipping: Pairs of strengths that just change the conclusion.
        bounds: Bounds of the effect against one strength.
    """

    title: str
    assumption: str
    measures: tuple[Measure, ...]
    scenarios: tuple[Scenario, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    contours: tuple[Contour, ...] = ()
    extreme: Curves | None = None
    tipping: Curves | None = None
    bounds: Band | None = None

    @property
    def table(self) -> pandas.DataFrame:
        """One row per scenario: its strengths, the bounds of the effect, confidence limits, further statistics."""
        import pandas

        rows = []
        for one in self.scenarios:
            row: dict[str, Any] = {**one.strengths}
            row |= {"estimate": one.lower} if self.fixes_the_effect else {"lower": one.lower, "upper": one.upper}
            row |= one.statistics
            if one.interval is not None:
                row |= {"ci_lower": one.interval[0], "ci_upper": one.interval[1]}
            rows.append(row)
        index = pandas.Index([one.label for one in self.scenarios], name="scenario")
        return pandas.DataFrame(rows, index=index)

    @property
    def fixes_the_effect(self) -> bool:
        """Whether a scenario gives one effect, and not bounds."""
        return all(one.lower == one.upper for one in self.scenarios)

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(self.sentences)

    def plot_contour(self) -> Figure:
        """The surfaces over two strengths, with benchmarks."""
        from probgen.causal.sensitivity_plots import contour_figure

        if not self.contours:
            raise self._nothing("surface over two strengths")
        return contour_figure(self.contours)

    def plot_extreme(self) -> Figure:
        """Effects against one strength, under extreme choices of the other."""
        from probgen.causal.sensitivity_plots import curves_figure

        if self.extreme is None:
            raise self._nothing("extreme scenarios")
        return curves_figure(self.extreme)

    def plot_tipping(self) -> Figure:
        """Pairs of strengths that just change the conclusion."""
        from probgen.causal.sensitivity_plots import curves_figure

        if self.tipping is None:
            raise self._nothing("tipping curve")
        return curves_figure(self.tipping)

    def plot_bounds(self) -> Figure:
        """Bounds of the effect against one strength."""
        from probgen.causal.sensitivity_plots import band_figure

        if self.bounds is None:
            raise self._nothing("bounds against one strength")
        return band_figure(self.bounds)

    def _nothing(self, what: str) -> MethodError:
        drawn = {"contour": self.contours, "extreme": self.extreme, "tipping": self.tipping, "bounds": self.bounds}
        has = ", ".join(f"plot_{name}" for name, part in drawn.items() if part)
        return MethodError(
            f"the analysis {self.title} has no {what} to draw. {f'It has {has}.' if has else 'None at all.'}"
        )

    def to_dataset(self) -> xarray.Dataset:
        """The table with the dimension ``scenario``; the measures are scalar variables, the text is an attribute."""
        import xarray

        table = self.table
        data = {str(name): ("scenario", table[name].to_numpy(float)) for name in table.columns}
        data |= {one.name.replace(" ", "_"): ((), one.value) for one in self.measures}
        attrs = {"title": self.title, "assumption": self.assumption, "text": self.text, "notes": " ".join(self.notes)}
        return xarray.Dataset(data, coords={"scenario": list(map(str, table.index))}, attrs=attrs)
