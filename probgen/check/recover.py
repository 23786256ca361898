"""Simulate and recover: could these parameters be found from data of this size and design?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from probgen.base.errors import MethodError
from probgen.base.keys import as_key
from probgen.base.palette import ACCENT, INK, PAPER, QUIET, SERIES
from probgen.check.calibration import about_fits, scalars
from probgen.check.design import Settings
from probgen.check.findings import Finding, Findings, Severity, listed
from probgen.check.ranks import draws_of, truth_of
from probgen.check.refits import refit
from probgen.infer.method import Method
from probgen.infer.predict import simulate
from probgen.program.model import Model

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Recovery", "simulate_recover"]

_INTERVALS = (0.5, 0.9)
_LEARNT = 0.2
"""Contraction below which the data have told little."""
_PRIOR_DRAWS = 2000


class Recovery:
    """How well parameters were recovered from simulated data. Printable.

    Args:
        tree: Truths and draws by data set.
        prior: Draws from the prior of the model that was fitted, ``None`` where it has none: dims ``(draw, ...)``.

    Attributes:
        tree: Groups ``truth``, ``posterior``, ``simulated_data``, ``fits``, each with the dim ``dataset``.
        table: One row per entry of a latent or deterministic site. ``prior_sd`` is that of the prior; ``bias`` the
            mean of posterior mean minus truth, with its Monte Carlo error ``bias_se``; ``rmse`` the root of the mean
            square of that difference; ``correlation`` Spearman's, of posterior mean and truth over data sets;
            ``coverage_50`` and ``coverage_90`` how often central intervals contain the truth; ``contraction`` one minus
            the squared ratio of interquartile ranges, posterior to prior, averaged over data sets: near 1 the data
            decide, near 0 the prior does.
        findings: Which parameters the design does not inform.
    """

    def __init__(self, tree: xarray.DataTree, prior: xarray.Dataset | None) -> None:
        self.tree = tree
        self._labels, self._truth = scalars(truth_of(tree))
        draws = draws_of(tree)[list(truth_of(tree).data_vars)]
        count, length = draws.sizes["dataset"], draws.sizes["draw"]
        flat = draws.stack(both=("dataset", "draw"), create_index=False)
        columns = scalars(flat.drop_vars(["dataset", "draw", "both"], errors="ignore"), "both")[1]
        self._draws = columns.reshape(count, length, -1).astype(float)
        self.table = self._tabulated(None if prior is None else dict(zip(*_prior_columns(prior), strict=True)))
        self.findings = self._judged()

    def to_dataframe(self) -> pandas.DataFrame:
        """``table``."""
        return self.table

    def plot(self, most: int = 12) -> Figure:
        """Posterior mean and central 90 % interval against the truth, least informed parameters first.

        Args:
            most: Largest number of panels.

        Returns:
            A matplotlib figure, made without pyplot.
        """
        from matplotlib.figure import Figure

        order = self.table.reset_index().sort_values("contraction", kind="stable").index[:most]
        columns = min(3, len(order))
        rows = -(-len(order) // columns)
        figure = Figure(figsize=(3.0 * columns + 0.4, 2.6 * rows + 0.5), layout="constrained", facecolor=PAPER)
        axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        low, high = np.quantile(self._draws, [0.05, 0.95], axis=1)
        mean = self._draws.mean(1)
        for axis, i in zip(axes, order, strict=False):
            truth = self._truth[:, i]
            inside = (low[:, i] <= truth) & (truth <= high[:, i])
            for chosen, colour in ((inside, SERIES[0]), (~inside, ACCENT)):
                spans = np.stack([mean[chosen, i] - low[chosen, i], high[chosen, i] - mean[chosen, i]])
                axis.errorbar(
                    truth[chosen],
                    mean[chosen, i],
                    np.maximum(spans, 0),  # a mean can lie outside of an interval of quantiles
                    fmt="o",
                    ms=2.5,
                    lw=0.6,
                    color=colour,
                    alpha=0.7,
                )
            axis.axline((truth.mean(), truth.mean()), slope=1, color=QUIET, lw=0.8, zorder=0)
            contraction = self.table["contraction"].iloc[i]
            axis.set_title(f"{self._labels[i]}   contraction {contraction:.2f}", fontsize=9, color=INK)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8, colors=QUIET)
        for axis in axes[len(order) :]:
            axis.set_visible(False)
        figure.supxlabel("truth", fontsize=9, color=QUIET)
        figure.supylabel("posterior mean, central 90 %", fontsize=9, color=QUIET)
        return figure

    def __repr__(self) -> str:
        return f"{self.table.round(3).to_string()}\n{self.findings!r}"

    def _tabulated(self, prior: dict[str, np.ndarray] | None) -> pandas.DataFrame:
        import pandas
        from scipy.stats import rankdata

        truth, draws = self._truth.astype(float), self._draws
        count = len(truth)
        mean = draws.mean(1)
        error = mean - truth
        table: dict[str, Any] = {}
        table["prior_sd"] = [np.nan if prior is None else prior[label].std() for label in self._labels]
        table["bias"] = error.mean(0)
        table["bias_se"] = error.std(0, ddof=1) / np.sqrt(count)
        table["rmse"] = np.sqrt((error**2).mean(0))
        ranked = [rankdata(x, axis=0) - (count + 1) / 2 for x in (truth, mean)]
        with np.errstate(divide="ignore", invalid="ignore"):  # truths that were fixed
            table["correlation"] = (ranked[0] * ranked[1]).sum(0) / np.sqrt(
                (ranked[0] ** 2).sum(0) * (ranked[1] ** 2).sum(0)
            )
        for level in _INTERVALS:
            low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=1)
            table[f"coverage_{level * 100:.0f}"] = ((low <= truth) & (truth <= high)).mean(0)
        quartiles = np.quantile(draws, [0.25, 0.75], axis=1)
        width = quartiles[1] - quartiles[0]
        reach = np.array(
            [np.nan if prior is None else np.subtract(*np.quantile(prior[x], [0.75, 0.25])) for x in self._labels]
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            table["contraction"] = np.where(reach > 0, 1 - ((width / reach) ** 2).mean(0), np.nan)
        return pandas.DataFrame(table, index=pandas.Index(self._labels, name="quantity"))

    def _judged(self) -> Findings:
        found = about_fits(self.tree)
        table: Any = self.table  # its stubs know less than we do
        dull = table[table["contraction"] < _LEARNT].sort_values("contraction")
        if len(dull):
            found.append(
                Finding(
                    Severity.warning,
                    f"the data tell little about {len(dull)} of {len(table)} parameters: contraction below {_LEARNT}",
                    listed(list(dull["contraction"].items()), "{:.2f}", 5),
                    "The posterior is mostly the prior there: more data, another design, or a fixed value.",
                    "contraction",
                    tuple(map(str, dull.index)),
                )
            )
        least = self.table["contraction"].min()
        told = "" if np.isnan(least) else f", contraction at least {least:.2f}"
        return Findings(found, [f"{len(self.table)} parameters in {len(self._truth)} data sets{told}"])


def simulate_recover(
    model: Model,
    method: Method | None = None,
    *,
    datasets: int = 100,
    draws: int = 200,
    warmup: int = 500,
    chains: int | None = None,
    thin: int | None = None,
    sites: Iterable[str] | None = None,
    at: Mapping[str, Any] | None = None,
    arguments: Mapping[str, str] | None = None,
    weighted: bool = True,
    seed: int | jax.Array = 0,
    progress: bool | None = None,
) -> Recovery:
    """Draw parameters and data from the model, fit every data set, and compare what comes out with what went in.

    Asked before data are taken: the model then has its covariates and sizes, but no observations. Where
    ``pg.check.sbc`` asks whether the fit is right, this asks whether it is of use.

    Args:
        model: The model; observations may be missing where it runs without them.
        method: How to fit. ``None`` chooses as ``pg.infer`` does.
        datasets: Number of data sets.
        draws: Draws kept per data set.
        warmup: Adaptation steps per chain.
        chains: As for ``pg.check.sbc``.
        thin: As for ``pg.check.sbc``.
        sites: Sites to look at. ``None``: all latent and deterministic ones.
        at: Values at which latent sites are held when data are drawn, by name (an effect of the size that matters,
            say). The fit does not know them. Sites that are not named are drawn from their priors.
        arguments: As for ``pg.check.sbc``.
        weighted: As for ``pg.check.sbc``.
        seed: An int or a typed JAX key.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        The result: ``.table``, ``.plot()``, ``.findings``, ``.tree``.

    Raises:
        ModelError, DataError, MethodError: As ``pg.check.sbc``; improper priors are allowed at sites named in ``at``.
    """
    import xarray

    if not isinstance(model, Model):
        raise MethodError(f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program).")
    held = {name: np.broadcast_to(value, model.sites[name].shape) for name, value in (at or {}).items()}
    simulator = model.do(**held) if held else None
    sites = sites if sites is None or isinstance(sites, str) else tuple(sites)
    settings = Settings(datasets, draws, warmup, chains, thin, sites, None, False, simulator, arguments, weighted)
    key_fits, key_prior = jax.random.split(as_key(seed))
    tree = refit(model, method, settings, seed=key_fits, progress=progress, caller="pg.check.simulate_recover")
    prior = None
    if all(site.proper for site in model.sites):
        drawn = simulate(model, _PRIOR_DRAWS, seed=key_prior, progress=False)
        groups = [drawn[name].to_dataset().isel(chain=0) for name in ("prior", "prior_predictive") if name in drawn]
        prior = xarray.merge(groups, compat="equals", join="exact")[list(truth_of(tree).data_vars)]
    return Recovery(tree, prior)


def _prior_columns(prior: xarray.Dataset) -> tuple[list[str], list[np.ndarray]]:
    labels, columns = scalars(prior.drop_vars("chain", errors="ignore"), "draw")
    return labels, list(columns.T)
