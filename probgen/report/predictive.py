"""The sections about data: replications beside observations, and leave-one-out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.palette import ACCENT, SERIES
from probgen.infer.predict import log_likelihood, predict
from probgen.program.sites import Kind
from probgen.report import figures
from probgen.report.draws import INTERVAL, Draws, number
from probgen.report.page import Block, Legend, Note, Panels, Picture, Section, Table
from probgen.report.sections import Missing, guarded

if TYPE_CHECKING:
    import xarray

    from probgen.program.model import Model

__all__ = ["leave_one_out", "predictions", "with_log_likelihood"]

_DRAWS = 400
"""Replicated data sets."""
_CELLS = 20_000_000
"""Numbers of a pointwise log likelihood that are computed for a report; draws are thinned beyond."""
_SURPRISING = 0.01
_SITES = 8
"""Observed sites that are drawn."""


def predictions(draws: Draws, model: Model | None, seed: int) -> Section:
    """Data drawn from the fitted model beside the data."""
    about = (
        "Data sets drawn from the fitted model, beside the data. Where the observed line leaves the bundle, the model "
        "misses something about the data. The table does the same for four numbers: p is the share of replications "
        "whose value is larger, and p near 0 or 1 means that the model does not produce data like these."
    )

    def build() -> list[Block]:
        tree = draws.tree
        if "posterior_predictive" not in tree.children:
            if model is None:
                raise Missing("The result holds no posterior predictive draws, and no model was passed to make them.")
            if not model.of_kind(Kind.observed):
                raise Missing("The model has no observed site, so there are no data to compare with.")
            tree = predict(model, _thinned(draws, _DRAWS), seed=seed, progress=False)
        if "observed_data" not in tree.children:
            raise Missing("The result holds no observed data to compare the predictions with.")
        pictures, rows, surprising = [], [], set()
        for name, observed, drawn in _paired(tree):
            pictures.append(figures.predictive(observed, drawn, name))
            for what, statistic in _STATISTICS.items():
                row, odd = _compared(f"{what} of {name}", statistic(observed), statistic(drawn))
                surprising |= {len(rows)} if odd else set()
                rows.append(row)
        if not pictures:
            raise Missing("No observed variable has predictions of the same name and shape.")
        header = ("", "observed", f"{100 * INTERVAL:.0f} % of replications from", "to", "p")
        legend = Legend([(SERIES[0], "replications"), (ACCENT, "observed")])
        table = Table(header, rows, "Observed and replicated data", flagged=frozenset(surprising))
        return [legend, Panels(pictures[:_SITES], 340), *_unseen(pictures), table]

    return guarded("predictive", "Predictions and data", about, build)


_STATISTICS = {
    "mean": lambda y: y.mean(-1),
    "sd": lambda y: y.std(-1),
    "smallest": lambda y: y.min(-1),
    "largest": lambda y: y.max(-1),
}


def _compared(what: str, observed: Any, drawn: Any) -> tuple[tuple[str, ...], bool]:
    tail = (1 - INTERVAL) / 2
    low, high = np.quantile(np.asarray(drawn, float), [tail, 1 - tail])
    p = float(np.mean(drawn > observed) + 0.5 * np.mean(drawn == observed))
    scale = float(high - low)
    numbers = [number(float(value), scale) for value in (observed, low, high)]
    return (what, *numbers, f"{p:.2f}"), not _SURPRISING <= p <= 1 - _SURPRISING


def _paired(tree: xarray.DataTree) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, observations and replications of each variable; values that were not observed are left out."""
    drawn, observed = tree["posterior_predictive"].to_dataset(), tree["observed_data"].to_dataset()
    found = []
    for name, data in observed.data_vars.items():
        if name not in drawn or data.dtype.kind not in "biuf" or not {"chain", "draw"} <= set(drawn[name].dims):
            continue
        replicated = drawn[name].transpose("chain", "draw", ...)
        if replicated.shape[2:] != data.shape:
            continue
        stride = max(1, replicated.shape[0] * replicated.shape[1] // _DRAWS)
        values = replicated.isel(draw=slice(None, None, stride)).values.reshape(-1, data.size)
        flat = data.values.reshape(-1)
        known = np.isfinite(flat) & np.isfinite(values).all(0)
        if known.any():
            found.append((str(name), flat[known], values[:, known]))
    return found


def _unseen(pictures: Sequence[Picture]) -> list[Block]:
    return [Note(f"{_SITES} of {len(pictures)} sites are drawn.")] if len(pictures) > _SITES else []


def _thinned(draws: Draws, count: int) -> xarray.DataTree:
    """The tree with about ``count`` of its draws, and what prediction needs besides."""
    import xarray

    stride = max(1, draws.chains * draws.draws // count)
    groups = {}
    for name in ("posterior", "sample_stats", "observed_data", "constant_data"):
        if name in draws.tree.children:
            group = draws.tree[name].to_dataset()
            groups[name] = group.isel(draw=slice(None, None, stride)) if "draw" in group.dims else group
    return xarray.DataTree.from_dict(groups)


# -- leave-one-out ---------------------------------------------------------------------------------------------------


def leave_one_out(draws: Draws, model: Model | None) -> Section:
    """Expected log predictive density by PSIS-LOO, and the k-hat that say whether to trust it."""
    about = (
        "How well the model predicts each observation when that one is left out (PSIS-LOO). The elpd is a log score: "
        "it is compared between models of the same data, and means little alone. An observation whose Pareto k-hat is "
        "above the line is so influential that its part of the score cannot be trusted: look at it."
    )

    def build() -> list[Block]:
        tree = with_log_likelihood(draws, model)
        pictures, rows, flagged = [], [], set()
        for name in map(str, tree["log_likelihood"].data_vars):
            elpd = loo(draws, tree, name)
            pictures.append(figures.khat(elpd, name))
            k = np.asarray(elpd.pareto_k.values)
            bad = int((k > elpd.good_k).sum())
            flagged |= {len(rows)} if bad else set()
            estimates = (number(float(value), float(elpd.se)) for value in (elpd.elpd, elpd.se, elpd.p))
            rows.append((name, *estimates, f"{k.size:,}", f"{np.nanmax(k):.2f}", f"{bad:,}"))
        header = ("", "elpd", "standard error", "effective parameters", "observations", "largest k-hat", "above limit")
        table = Table(header, rows, "Leave-one-out", flagged=frozenset(flagged))
        return [table, Panels(pictures[:_SITES], 340), *_unseen(pictures)]

    return guarded("loo", "Leave-one-out", about, build)


def with_log_likelihood(draws: Draws, model: Model | None) -> xarray.DataTree:
    """The tree with the log likelihood of each observation, computed from the model where it is not there.

    Raises:
        Missing: If there is neither.
    """
    if "log_likelihood" in draws.tree.children:
        return draws.tree
    if model is None:
        raise Missing("The result holds no pointwise log likelihood, and no model was passed to compute it.")
    size = sum(int(np.prod(site.shape)) for site in model.of_kind(Kind.observed))
    if not size:
        raise Missing("The model has no observed site, so there is nothing to leave out.")
    return log_likelihood(model, _thinned(draws, max(_CELLS // size, 1)), progress=False)


def loo(draws: Draws, tree: xarray.DataTree, name: str) -> Any:
    """PSIS-LOO of one variable, pointwise.

    Weighted draws were resampled when their log likelihood was computed, which the coordinate ``ancestor`` tells; else
    the ratio of the densities corrects them (``loo_approximate_posterior``).
    """
    import arviz

    values = tree["log_likelihood"].to_dataset()[name]
    if (values.max(("chain", "draw")) == values.min(("chain", "draw"))).any():
        raise Missing(f"An observation of {name} is as likely at every draw, so it tells nothing to be left out.")
    corrected = draws.independent and {"lp", "log_q"} <= set(draws.stats) and "ancestor" not in values.coords
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # that k-hat is large, which the report says
        if corrected:
            shape = values.transpose("chain", "draw", ...).shape[:2]
            log_p, log_q = (draws.stats[key] for key in ("lp", "log_q"))
            if shape != log_p.shape:
                raise Missing("The log likelihood has other draws than the posterior, so it cannot be corrected.")
            return arviz.loo_approximate_posterior(tree, log_p.reshape(-1), log_q.reshape(-1), True, name)
        if draws.stats.get("log_weight") is not None and "ancestor" not in values.coords and draws.weights is not None:
            raise Missing("The draws are weighted and their log likelihood is not, so leave-one-out would be wrong.")
        return arviz.loo(tree, pointwise=True, var_name=name, reff=_efficiency(draws))


def _efficiency(draws: Draws) -> float:
    """Effective draws per draw, over the entries that move; 1 for independent ones."""
    if "ess_bulk" not in draws.summary:
        return 1.0
    share = draws.summary["ess_bulk"].to_numpy()[draws.usable] / (draws.chains * draws.draws)
    mean = float(np.nanmean(share)) if np.isfinite(share).any() else 1.0
    return min(max(mean, 1e-3), 1.0)
