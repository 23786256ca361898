"""The result of a calibration check: numbers that are uniform if the draws are what they claim to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.palette import ACCENT, INK, PAPER, QUIET, SERIES, SHADE
from probgen.check.findings import Finding, Findings, Severity, listed
from probgen.check.uniform import uniformity

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Calibration", "Words", "about_fits", "scalars"]

ERROR, WARNING = 1e-4, 1e-2
"""Family-wise p-values below which a quantity is an error, or a warning."""
LEVEL = 0.95
_CLEAR = 3.0
"""Standard errors from which the shape of a deviation is named."""
_CORRELATED = 1.5
_MANY = 0.05
"""Share of the data sets from which failed fits are an error, and divergences a warning."""
_SHOWN = 5


@dataclass(frozen=True)
class Words:
    """What the shapes of a deviation from uniformity mean.

    Attributes:
        name: Of the check.
        statistic: What is uniform.
        low: Values tend to be small.
        high: Values tend to be large.
        outer: Values tend to either end.
        inner: Values tend to the middle.
        advice: What to do.
    """

    name: str
    statistic: str
    low: str
    high: str
    outer: str
    inner: str
    advice: str


class Calibration:
    """What a calibration check found. Printable.

    Args:
        words: What is checked.
        values: One number in (0, 1) per data set and quantity, dims ``(dataset, ...)``; uniform under calibration.
        points: Where their distribution function is looked at, ascending, inside (0, 1).
        tree: The data sets, truths and draws.

    Attributes:
        tree: Groups ``truth``, ``posterior``, ``simulated_data``, ``fits``; of ``pg.check.sbc`` also ``ranks``.
        values: As given.
        curve: The empirical distribution function of each quantity at ``ecdf_level``, dims ``(ecdf_level, ...)``.
        band: ``lower`` and ``upper`` at ``ecdf_level``: a calibrated quantity stays inside everywhere with
            probability 0.95.
        p_values: Exact p-value of each quantity, of the worst point of its curve; not adjusted for their number.
        findings: What is wrong: quantities whose p-value, times their number, is below 0.01 (an error: 0.0001), and
            what the fits had to complain about.
    """

    def __init__(self, words: Words, values: xarray.Dataset, points: np.ndarray, tree: xarray.DataTree) -> None:
        import xarray

        self.words, self.values, self.tree = words, values, tree
        law = uniformity(values.sizes["dataset"], tuple(points.tolist()))
        counts = {name: law.counts(v.transpose("dataset", ...).values) for name, v in values.items()}
        dims = {name: v.transpose("dataset", ...).dims[1:] for name, v in values.items()}
        coords = {name: c for name, c in values.coords.items() if "dataset" not in c.dims}
        size = law.count
        self.curve = xarray.Dataset(
            {name: (("ecdf_level", *dims[name]), c / size) for name, c in counts.items()},
            {**coords, "ecdf_level": law.points},
        )
        lower, upper = law.band(LEVEL)
        band = {"lower": ("ecdf_level", lower / size), "upper": ("ecdf_level", upper / size)}
        self.band = xarray.Dataset(band, {"ecdf_level": law.points})
        self.p_values = xarray.Dataset(
            {name: (dims[name], np.apply_along_axis(law.p_value, 0, c)) for name, c in counts.items()}, coords
        )
        self.findings = self._judged()

    @property
    def datasets(self) -> int:
        """Number of data sets that were judged."""
        return int(self.values.sizes["dataset"])

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per quantity, worst first.

        Columns: ``p_value``, ``adjusted`` (times the number of quantities), ``mean`` of the values (0.5 if calibrated),
        ``spread`` (their variance over that of a uniform, 1 if calibrated), and ``shape`` in words where it is clear.
        """
        import pandas

        labels, values = scalars(self.values)
        _, p = scalars(self.p_values.expand_dims("dataset"))
        table = pandas.DataFrame(
            {
                "p_value": p[0],
                "adjusted": np.minimum(1.0, p[0] * len(labels)),
                "mean": values.mean(0),
                "spread": 12 * ((values - 0.5) ** 2).mean(0),
                "shape": [self._shape(column) for column in values.T],
            },
            index=pandas.Index(labels, name="quantity"),
        )
        return table.sort_values("p_value", kind="stable")

    def plot(self, most: int = 12) -> Figure:
        """Distribution function minus the diagonal, with the simultaneous band of 95 %, worst quantities first.

        Args:
            most: Largest number of panels.

        Returns:
            A matplotlib figure, made without pyplot.
        """
        from matplotlib.figure import Figure

        table = self.to_dataframe().iloc[:most]
        labels, curves = scalars(self.curve, "ecdf_level")
        level = np.concatenate([[0.0], self.band["ecdf_level"].values, [1.0]])
        lower, upper = (np.concatenate([[0.0], self.band[n].values, [1.0]]) - level for n in ("lower", "upper"))
        columns = min(3, len(table))
        rows = -(-len(table) // columns)
        figure = Figure(figsize=(3.1 * columns + 0.4, 2.3 * rows + 0.5), layout="constrained", facecolor=PAPER)
        axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
        for axis, (label, row) in zip(axes, table.iterrows(), strict=False):
            curve = np.concatenate([[0.0], curves[:, labels.index(str(label))], [1.0]]) - level
            bad = row["adjusted"] < WARNING
            axis.fill_between(level, lower, upper, color=SHADE, lw=0)
            axis.axhline(0, color=QUIET, lw=0.8)
            axis.plot(level, curve, color=ACCENT if bad else SERIES[0], lw=1.6)
            axis.set_title(f"{label}   p = {row['p_value']:.2g}", fontsize=9, color=INK)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8, colors=QUIET)
        for axis in axes[len(table) :]:
            axis.set_visible(False)
        hidden = len(labels) - len(table)
        more = f" (worst {len(table)} of {len(labels)})" if hidden else ""
        figure.suptitle(f"{self.words.name}: {self.datasets} data sets{more}", fontsize=10, color=INK)
        figure.supxlabel(self.words.statistic, fontsize=9, color=QUIET)
        figure.supylabel("ECDF minus diagonal", fontsize=9, color=QUIET)
        return figure

    def __repr__(self) -> str:
        return repr(self.findings)

    def _shape(self, values: np.ndarray) -> str:
        """What the values tend to, where that is clear."""
        shift = (values.mean() - 0.5) * np.sqrt(12 * len(values))
        spread = (((values - 0.5) ** 2).mean() - 1 / 12) * np.sqrt(180 * len(values))
        if max(abs(shift), abs(spread)) < _CLEAR:
            return ""
        if abs(shift) > abs(spread):
            return self.words.low if shift < 0 else self.words.high
        return self.words.outer if spread > 0 else self.words.inner

    def _judged(self) -> Findings:
        table: Any = self.to_dataframe()  # its stubs know less than we do
        wrong = table[table["adjusted"] < WARNING]
        found = about_fits(self.tree)
        for shape, group in wrong.groupby("shape", sort=False):
            error = group["adjusted"].min() < ERROR
            chance = (
                ""
                if error
                else f"By chance this happens in less than {WARNING:.0%} of checks; repeat with another seed. "
            )
            found.append(
                Finding(
                    Severity.error if error else Severity.warning,
                    f"{self.words.statistic} not uniform in {len(group)} of {len(table)} quantities"
                    + (f": {shape}" if shape else ""),
                    listed(list(group["p_value"].items()), "p = {:.2g}", _SHOWN),
                    chance + self.words.advice,
                    "calibration",
                    tuple(map(str, group.index)),
                )
            )
        smallest = float(table["p_value"].min())
        fine = f"{len(table)} quantities over {self.datasets} data sets, smallest p-value {smallest:.2g}"
        return Findings(found, [] if len(wrong) else [fine])


def about_fits(tree: xarray.DataTree) -> list[Finding]:
    """What the fits themselves had to complain about."""
    found = []
    if "fits" in tree.children:
        fits = tree["fits"].to_dataset()
        finite, diverged = fits["finite"].values, fits["divergences"].values
        failed = int((~finite).sum())
        if failed:
            found.append(
                Finding(
                    Severity.error if failed > _MANY * len(finite) else Severity.warning,
                    f"{failed} of {len(finite)} fits failed, and were left out",
                    str(tree.attrs.get("first_failure", "draws that are not finite")).rstrip("."),
                    "Fit such data with pg.infer: what is left out may be where the method is wrong.",
                    "failed_fits",
                )
            )
        if diverged.any():
            found.append(
                Finding(
                    Severity.warning if (diverged > 0).mean() > _MANY else Severity.note,
                    f"{int((diverged > 0).sum())} of {len(finite)} fits had divergences",
                    f"{int(diverged.sum())} draws",
                    "Raise target_accept, or reparameterise: the draws may miss a region.",
                    "divergences",
                )
            )
    correlated = float(tree.attrs.get("autocorrelation_time", 1.0))
    if correlated > _CORRELATED:
        found.append(
            Finding(
                Severity.warning,
                f"the draws of a fit are correlated (autocorrelation time {correlated:.1f}), so truths fall into the "
                "tails too often",
                "",
                "Raise thin, or leave it out to have it chosen.",
                "autocorrelation",
            )
        )
    return found


def scalars(dataset: xarray.Dataset, first: str = "dataset") -> tuple[list[str], np.ndarray]:
    """Every entry of every variable as a column: labels such as ``theta[A]``, and an array of shape ``(n, columns)``.

    Args:
        dataset: Variables that all have the dim ``first``.
        first: The dim that stays.
    """
    labels: list[str] = []
    columns: list[Any] = []
    for name, variable in dataset.transpose(first, ...).items():
        ticks = [variable[d].values if d in variable.coords else np.arange(n) for d, n in variable.sizes.items()][1:]
        values = variable.values.reshape(len(variable), -1)
        for column, index in enumerate(np.ndindex(variable.shape[1:])):
            where = ", ".join(str(tick[i]) for tick, i in zip(ticks, index, strict=True))
            labels.append(f"{name}[{where}]" if where else str(name))
            columns.append(values[:, column])
    return labels, np.stack(columns, 1)
