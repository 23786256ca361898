r"""Posterior predictive checks: do the data look like those that the fitted model would make?

For a statistic :math:`T`, the posterior predictive p-value is the share of replicated data sets with
:math:`T(y^{rep})` above :math:`T(y)`, ties counting half (Gelman, Meng and Stern 1996). Near 0 or 1 the model does not
make such data. The data are used twice, so the values of a right model crowd around 0.5: they are no calibrated
p-values, and extreme ones mean more than they say. Leave-one-out values (LOO-PIT) use every observation once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.base.palette import ACCENT, INK, PAPER, QUIET, SERIES
from probgen.check.calibration import scalars
from probgen.check.findings import Finding, Findings, Severity, listed
from probgen.check.uniform import uniformity
from probgen.infer.predict import log_likelihood, predict
from probgen.program.model import Model

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

__all__ = ["PredictiveCheck", "Statistic", "posterior_predictive"]

type Statistic = Callable[[np.ndarray], Any]
"""A function of the data of one site, an array of its shape; the result is a number."""

STATISTICS: dict[str, Statistic] = {"mean": np.mean, "sd": np.std, "min": np.min, "max": np.max}
EXTREME = 0.01
_ODD = 1e-3
_LEAST = 10


class PredictiveCheck:
    """What posterior predictive checks found. Printable.

    Attributes:
        tree: The tree, with the groups that were computed.
        replicated: Each statistic of each replicated data set, by observed site, dims ``(statistic, chain, draw)``.
        observed: Each statistic of the data, dims ``(statistic,)``.
        p_values: Posterior predictive p-values, dims ``(statistic,)``.
        loo_pit: Leave-one-out probability of a smaller value than the observed one, for each observation; empty where
            observations have no separate likelihoods.
        loo_pit_p: By site, p-value of the uniformity of ``loo_pit``, as if its values were independent (they share
            the fit, so it is approximate).
        findings: What is extreme.
    """

    def __init__(
        self, tree: xarray.DataTree, replicated: xarray.Dataset, observed: xarray.Dataset, loo_pit: xarray.Dataset
    ) -> None:
        self.tree, self.replicated, self.observed, self.loo_pit = tree, replicated, observed, loo_pit
        above = (replicated > observed).mean(("chain", "draw")) + 0.5 * (replicated == observed).mean(("chain", "draw"))
        self.p_values: xarray.Dataset = above
        self.loo_pit_p = {str(name): _uniform_p(v.values.ravel()) for name, v in loo_pit.items()}
        self.findings = self._judged()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per site and statistic: the statistic of the data, its replicated mean and sd, and the p-value."""
        import pandas

        rows = []
        for name in self.p_values.data_vars:
            for statistic in self.p_values["statistic"].values:
                one = self.replicated[name].sel(statistic=statistic)
                values = self.observed[name], one.mean(), one.std(), self.p_values[name]
                at = [float(v.sel(statistic=statistic)) if "statistic" in v.dims else float(v) for v in values]
                rows.append((str(name), str(statistic), *at))
        return pandas.DataFrame(
            rows, columns=["site", "statistic", "observed", "replicated_mean", "replicated_sd", "p_value"]
        )

    def plot(self, most: int = 12) -> Figure:
        """Replicated statistics as histograms, those of the data as lines, most extreme first.

        Args:
            most: Largest number of panels.

        Returns:
            A matplotlib figure, made without pyplot.
        """
        from matplotlib.figure import Figure

        table = self.to_dataframe()
        table = table.assign(extreme=np.minimum(table["p_value"], 1 - table["p_value"]))
        table = table.sort_values("extreme", kind="stable").iloc[:most]
        columns = min(4, len(table))
        rows = -(-len(table) // columns)
        figure = Figure(figsize=(2.5 * columns + 0.2, 2.1 * rows + 0.2), layout="constrained", facecolor=PAPER)
        axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axis, row in zip(axes, table.itertuples(), strict=False):
            site: Any = row.site
            axis.hist(self.replicated[site].sel(statistic=row.statistic).values.ravel(), bins=40, color=SERIES[0])
            axis.axvline(row.observed, color=ACCENT, lw=1.6)
            axis.set_title(f"{row.statistic} of {site}   p = {row.p_value:.2g}", fontsize=9, color=INK)
            axis.set_yticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.tick_params(labelsize=8, colors=QUIET)
        for axis in axes[len(table) :]:
            axis.set_visible(False)
        return figure

    def __repr__(self) -> str:
        return f"{self.to_dataframe().round(3).to_string(index=False)}\n{self.findings!r}"

    def _judged(self) -> Findings:
        labels, p = scalars(self.p_values, "statistic")
        names = self.p_values["statistic"].values
        extreme: dict[str, float] = {
            f"{names[i]} of {labels[j]}": float(p[i, j])
            for i, j in np.argwhere(np.minimum(p, 1 - p) < EXTREME / 2).tolist()
        }
        found = []
        if extreme:
            found.append(
                Finding(
                    Severity.warning,
                    f"the model does not make such data: {len(extreme)} of {p.size} statistics lie outside of what it "
                    "replicates",
                    listed(sorted(extreme.items(), key=_extremity), "p = {:.3f}", 5),
                    "Look at the plot; give the model what makes such data (a heavier tail, a trend, groups).",
                    "predictive",
                    tuple(extreme),
                )
            )
        odd = {name: value for name, value in self.loo_pit_p.items() if value < _ODD}
        if odd:
            found.append(
                Finding(
                    Severity.warning,
                    "leave-one-out predictions are not calibrated (LOO-PIT is not uniform)",
                    listed(list(odd.items()), "p = {:.2g}", 5),
                    "Plot loo_pit: towards 0 and 1, predictions are too narrow; towards the middle, too wide.",
                    "loo_pit",
                    tuple(odd),
                )
            )
        fine = [f"{p.size} statistics"] if not extreme else []
        fine += [f"LOO-PIT of {name} (p = {value:.2g})" for name, value in self.loo_pit_p.items() if name not in odd]
        return Findings(found, fine)


def _extremity(item: tuple[str, float]) -> float:
    return -abs(item[1] - 0.5)


def posterior_predictive(
    model: Model,
    tree: xarray.DataTree,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    seed: int | jax.Array = 0,
    progress: bool | None = None,
) -> PredictiveCheck:
    """Compare statistics of the data with those of data that the fitted model makes.

    Args:
        model: The model that was fitted.
        tree: What ``pg.infer`` returned. It is not changed. Predictions and log likelihoods that it lacks are computed.
        statistics: Functions of the data of one site, by name; each is applied to every observed site. ``None``: mean,
            sd, min and max.
        seed: An int or a typed JAX key, for predictions.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        The result: ``.p_values``, ``.loo_pit``, ``.findings``, ``.plot()``, ``.to_dataframe()``.

    Raises:
        MethodError: If the model has no observed site, or the posterior lacks a site.
        DataError: If a statistic is not a number, or no observed site is complete (``obs_mask`` sites are left out).
    """
    import xarray

    named = dict(STATISTICS if statistics is None else statistics)
    for name, statistic in named.items():
        if not callable(statistic):
            raise MethodError(
                f"statistics[{name!r}] is {statistic!r}, expected a function of an array. Pass a function."
            )
    if not named:
        raise MethodError("statistics is empty, so there is nothing to compare. Leave it out for the default ones.")
    if "posterior_predictive" not in getattr(tree, "children", {}):
        tree = predict(model, tree, seed=seed, progress=progress)
    made = tree["posterior_predictive"].to_dataset()
    data = tree["observed_data"].to_dataset() if "observed_data" in tree.children else xarray.Dataset()
    names = [n for n in data.data_vars if n in made and made[n].sizes.keys() - {"chain", "draw"} == set(data[n].dims)]
    if not names:
        raise DataError("no observed site has both data and predictions. Sites with obs_mask cannot be checked so.")
    coords = {"statistic": list(named)}
    replicated, observed = xarray.Dataset(coords=coords), xarray.Dataset(coords=coords)
    for name in names:
        draws = made[name].transpose("chain", "draw", *data[name].dims)
        flat = draws.values.reshape(-1, *draws.shape[2:])
        rows = [[_number(label, f, y) for y in flat] for label, f in named.items()]
        sizes = draws.sizes["chain"], draws.sizes["draw"]
        replicated[name] = (("statistic", "chain", "draw"), np.reshape(rows, (len(named), *sizes)))
        observed[name] = ("statistic", [_number(label, f, data[name].values) for label, f in named.items()])
    tree, pit = _loo_pit(model, tree, [str(name) for name in names])
    return PredictiveCheck(tree, replicated, observed, pit)


def _number(label: str, statistic: Statistic, data: np.ndarray) -> float:
    value = np.asarray(statistic(data))
    if value.shape != () or value.dtype.kind not in "biuf" or np.isnan(value):
        raise DataError(f"statistic {label!r} gave {value!r}, expected a number. Reduce the array to one number.")
    return float(value)


def _loo_pit(model: Model, tree: xarray.DataTree, names: list[str]) -> tuple[xarray.DataTree, xarray.Dataset]:
    """LOO-PIT by ArviZ; empty where observations have no separate likelihoods, or are too few to say anything."""
    import arviz_stats
    import xarray

    if "log_likelihood" not in tree.children:
        try:
            tree = log_likelihood(model, tree, progress=False)
        except MethodError:
            return tree, xarray.Dataset()
    likelihoods = tree["log_likelihood"].to_dataset()
    data = tree["observed_data"].to_dataset()
    usable = [
        n
        for n in names
        if n in likelihoods and set(likelihoods[n].dims) == {"chain", "draw", *data[n].dims} and data[n].size >= _LEAST
    ]
    if not usable or tree["posterior"].sizes["draw"] < 4:
        return tree, xarray.Dataset()
    return tree, arviz_stats.loo_pit(tree, var_names=usable)


def _uniform_p(values: np.ndarray) -> float:
    points = tuple((np.arange(1, min(len(values), 100)) / min(len(values), 100)).tolist())
    law = uniformity(len(values), points)
    return law.p_value(law.counts(values))
