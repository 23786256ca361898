"""The pictures of one result: ArviZ draws them, one small panel each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.palette import ACCENT, BORDER, INK, PLATE, SERIES
from probgen.report.draws import INTERVAL, Draws, number
from probgen.report.page import Picture
from probgen.report.style import cut, drawing, series

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

__all__ = ["energy", "khat", "learning", "pairs", "predictive", "priors", "ranks", "shown_chains", "traces"]

_REACH = 1.5
"""How far beyond the posterior a prior is shown, in widths of the posterior."""
PRIOR, POSTERIOR = PLATE, SERIES[0]
"""Colours of what was believed before, and after."""
SIZE, _SMALL, _SQUARE = (4.8, 1.9), (3.4, 1.55), (3.4, 2.6)
"""Sizes of panels in inches: two in a row, three in a row."""
_MARGINS, _BARE = (0.12, 0.42, 0.12, 0.08), (0.12, 0.24, 0.12, 0.08)
WITH_TICKS = (0.55, 0.42, 0.1, 0.08)
_CHAINS = 8
"""Chains of one panel; more cannot be told apart."""
_PER_CHAIN, _RANKED = 1000, 250
_SAMPLE = 4000
_POINTS = 2000
_CURVES, _FEW, _BINS = 40, 50, 300


def traces(draws: Draws, chosen: Sequence[int]) -> list[Picture]:
    """Each chosen entry along its chains; ticks at the bottom are divergences."""
    import arviz

    tree, stride = _chains(draws, chosen, _PER_CHAIN)
    count = tree["posterior"].sizes["chain"]
    with drawing():
        plots = arviz.plot_trace(
            tree,
            backend="matplotlib",
            col_wrap=1,
            color=series(count),
            visuals={
                "trace": {"width": 0.6, "alpha": 0.8},
                "divergence": {"color": ACCENT, "size": 40, "width": 1.2},
                "title": False,
                "xlabel": False,
                "ticklabels": False,
            },
            figure_kwargs={"figsize": (SIZE[0], SIZE[1] * len(chosen)), "sharex": False},
        )
        pictures = []
        for index, axes in zip(chosen, _axes(plots, len(chosen)), strict=True):
            axes.locator_params(axis="y", nbins=4)
            axes.set_xlabel("draw" if stride == 1 else f"draw (every {stride}th)")
            label = f"Trace of {draws.labels[index]}: its value along {count} chains."
            pictures.append(Picture(cut(axes, SIZE, WITH_TICKS, label), "trace"))
    return pictures


def ranks(draws: Draws, chosen: Sequence[int]) -> list[Picture]:
    """How the ranks of each chain, among all draws, differ from an even spread."""
    import arviz

    tree, _ = _chains(draws, chosen, _RANKED)
    data = tree["posterior"].to_dataset()
    count = tree["posterior"].sizes["chain"]
    with drawing():
        plots = arviz.plot_rank(
            tree,
            backend="matplotlib",
            col_wrap=1,
            color=series(count),
            visuals={
                "ecdf_lines": {"width": 1.3},
                "title": False,
                "xlabel": False,
            },
            figure_kwargs={"figsize": (SIZE[0], SIZE[1] * len(chosen)), "sharex": False},
        )
        pictures = []
        for i, (index, axes) in enumerate(zip(chosen, _axes(plots, len(chosen)), strict=True)):
            for text in list(axes.texts):  # a p-value, beside R-hat and ESS one number too many
                text.remove()
            for points in axes.collections:
                points.set(color=INK, sizes=[5])
            band = _band(data[f"p{i}"].to_numpy())
            high = max(axes.get_ylim()[1], 1.1 * band)
            axes.axhspan(-band, band, color=BORDER, alpha=0.18, lw=0, zorder=0)
            axes.set_ylim(-high, high)
            axes.set_xlabel("rank among all draws, from the smallest to the largest")
            label = f"Rank plot of {draws.labels[index]}: each chain's share of small and large values."
            pictures.append(Picture(cut(axes, SIZE, _MARGINS, label), "ranks"))
    return pictures


def pairs(draws: Draws, chosen: Sequence[int]) -> list[Picture]:
    """Chosen entries against one another; divergent draws are marked."""
    import arviz
    import xarray

    kept = draws.kept(_POINTS)
    diverging = draws.diverging
    marked = np.zeros(draws.chains * draws.draws, bool) if diverging is None else diverging.reshape(-1)
    kept = np.concatenate([kept, np.setdiff1d(np.flatnonzero(marked)[:_POINTS], kept)])
    data = _flat(draws, chosen, kept)
    stats = xarray.Dataset({"diverging": (("chain", "draw"), marked[kept][None])}, dict(data.coords))
    tree = xarray.DataTree.from_dict({"posterior": data, "sample_stats": stats})
    pictures = []
    with drawing():
        plots = arviz.plot_pair(
            tree,
            backend="matplotlib",
            marginal=False,
            triangle="lower",
            visuals={
                "scatter": {"color": SERIES[0], "alpha": 0.4, "size": 5},
                "divergence": {"color": ACCENT, "alpha": 0.9, "size": 14},
                "label": False,
            },
            figure_kwargs={"figsize": (8, 8), "sharex": False, "sharey": False},
        )
        panels: Any = plots.viz["plot"].to_numpy()
        for row in range(len(chosen)):
            for column in range(row):
                axes, across, up = panels[row, column], draws.labels[chosen[column]], draws.labels[chosen[row]]
                _ticked(axes)
                label = f"Scatter of {up} against {across}, {int(marked.sum())} divergent draws marked."
                axes.set_xlabel(short(across))
                axes.set_ylabel(short(up))
                pictures.append(Picture(cut(axes, _SQUARE, (0.62, 0.42, 0.1, 0.1), label)))
    return pictures


def priors(draws: Draws, prior: xarray.Dataset, chosen: Sequence[int]) -> list[Picture]:
    """The density of each chosen entry before and after seeing the data.

    ArviZ estimates the densities; the lines are ours, since a prior with long tails must be cut to a window without
    being scaled up.

    Args:
        draws: The posterior.
        prior: Draws from the prior, dims ``(chain, draw, ...)``.
        chosen: Entries that ``prior`` has.
    """
    import matplotlib.pyplot as plt

    kept, pictures = draws.kept(_SAMPLE), []
    with drawing():
        for index in chosen:
            name, flat = draws.places[index]
            old = prior[name].transpose("chain", "draw", ...).values
            old = old.reshape(old.shape[0] * old.shape[1], -1)[:, flat]
            old = old[np.isfinite(old)] if old.dtype.kind == "f" else old
            new = draws.entry(index).reshape(-1)[kept]
            figure, axes = plt.subplots(figsize=_SMALL)
            for values, colour in ((old, PRIOR), (new, POSTERIOR)):
                if draws.discrete(index):
                    _bars(axes, values, colour)
                else:
                    _density(axes, values, colour, _window(old, new))
            axes.set_ylim(bottom=0)
            axes.spines["left"].set_visible(False)
            axes.set_yticks([])
            before, after = _interval(old), _interval(new)
            axes.locator_params(axis="x", nbins=6)
            label = f"Prior and posterior density of {draws.labels[index]}: prior {before}, posterior {after}."
            note = f"{before}  →  {after}"
            pictures.append(Picture(cut(axes, _SMALL, _BARE, label), draws.labels[index], note))
            plt.close(figure)
    return pictures


def energy(draws: Draws) -> list[Picture]:
    """Energies met by the chains, and their changes from draw to draw."""
    import arviz

    with drawing():
        visuals: Any = {"title": False, "legend": False, "dist": {"width": 1.6}, "face": {"alpha": 0.18}}
        tree = draws.tree.filter(lambda node: node.name in (draws.tree.name, "sample_stats"))
        plots = arviz.plot_energy(
            tree,
            backend="matplotlib",
            show_bfmi=False,
            color=[SERIES[0], SERIES[1]],
            visuals=visuals,
            figure_kwargs={"figsize": SIZE},
        )
        figure = plots.viz["figure"].item()
        axes = figure.axes[0]
        axes.set_xlabel("energy, centred")
        label = "Density of the energy and of its changes from draw to draw."
        return [Picture(cut(axes, SIZE, _MARGINS, label))]


def khat(elpd: Any, name: str) -> Picture:
    """Pareto k-hat of each observation."""
    import arviz

    with drawing():
        plots = arviz.plot_khat(
            elpd,
            backend="matplotlib",
            color=SERIES[0],
            hline_values=[elpd.good_k],
            visuals={
                "hlines": {"color": ACCENT, "linestyle": "--", "width": 1},
                "khat": {"color": SERIES[0], "size": 14, "alpha": 0.8},
                "title": False,
                "xlabel": False,
                "ylabel": False,
            },
            figure_kwargs={"figsize": SIZE},
        )
        axes = plots.viz["figure"].item().axes[0]
        axes.set_xlabel(f"observation of {short(name)}, in order")
        axes.set_ylabel("Pareto k-hat")
        values = np.asarray(elpd.pareto_k.values)
        (points,) = axes.collections
        points.set_color([ACCENT if k > elpd.good_k else SERIES[0] for k in values.ravel()])
        points.set_sizes([14 if values.size < 200 else 5])
        label = f"Pareto k-hat of {values.size} observations of {name}; the largest is {np.nanmax(values):.2f}."
        return Picture(cut(axes, SIZE, WITH_TICKS, label), name)


def predictive(observed: np.ndarray, drawn: np.ndarray, name: str) -> Picture:
    """Data as the model would have them, beside the data.

    Args:
        observed: Observations, shape ``(observation,)``.
        drawn: Replications, shape ``(draw, observation)``.
        name: Name of the site.
    """
    import arviz
    import xarray

    # The density of few values, or of counts, would be that of the smoother.
    steps = observed.dtype.kind in "biu" or observed.size < _FEW
    dims = ("chain", "draw", "observation")
    tree = xarray.DataTree.from_dict(
        {
            "posterior_predictive": xarray.Dataset({"y": (dims, drawn[None] + 0)}),
            "observed_data": xarray.Dataset({"y": (("observation",), observed + 0)}),
        }
    )
    curves = min(_CURVES, len(drawn))
    with drawing():
        plots = arviz.plot_ppc_dist(
            tree,
            backend="matplotlib",
            kind="ecdf" if steps else "kde",
            num_samples=curves,
            visuals={
                "predictive_dist": {"color": SERIES[0], "alpha": 0.25, "width": 0.8},
                "observed_dist": {"color": ACCENT, "width": 2},
                "title": False,
                **({"remove_axis": False} if steps else {}),
            },
            figure_kwargs={"figsize": SIZE},
        )
        axes = plots.viz["figure"].item().axes[0]
        if steps:
            axes.set_yticks([0, 0.5, 1])
        else:
            low, high = np.quantile(drawn, [0.002, 0.998])
            axes.set_xlim(min(low, observed.min()), max(high, observed.max()))
        label = f"{curves} data sets drawn from the fitted model for {name}, and the data that were observed."
        margins = (*WITH_TICKS[:1], *_BARE[1:]) if steps else _BARE
        note = "The share of values up to each number." if steps else ""
        return Picture(cut(axes, SIZE, margins, label), name, note)


def learning(values: np.ndarray, label: str) -> Picture:
    """An objective along the steps of an optimisation, shape ``(run, step)``; NaN where a run has ended.

    Where there are very many steps, means of equal numbers of them are drawn: single ones are noise.
    """
    import matplotlib.pyplot as plt

    width = max(1, -(-values.shape[1] // _BINS))
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % width)), constant_values=np.nan)
    with drawing():
        means = np.nanmean(padded.reshape(len(values), -1, width), axis=-1)
        figure, axes = plt.subplots(figsize=SIZE)
        for colour, run in zip(series(len(means)), means, strict=True):
            axes.plot(width * (np.arange(run.size) + 0.5), run, color=colour, lw=1.2)
        finite = means[np.isfinite(means)]
        if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
            axes.set_yscale("log")
        elif finite.size:
            # The way up from a bad start would hide the end.
            low, high = np.quantile(finite, [0.1, 1])
            axes.set_ylim(low - 0.1 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
        axes.set_xlabel("step" if width == 1 else f"step (means of {width})")
        picture = cut(axes, SIZE, WITH_TICKS, f"{label} along the steps of the optimisation.")
        plt.close(figure)
    return Picture(picture, label)


# -- data for ArviZ --------------------------------------------------------------------------------------------------


def shown_chains(draws: Draws) -> int:
    """How many chains a picture shows."""
    return min(draws.chains, _CHAINS)


def _chains(draws: Draws, chosen: Sequence[int], per_chain: int) -> tuple[xarray.DataTree, int]:
    """A small tree of chosen entries, thinned; and by how much."""
    import xarray

    stride = max(1, -(-draws.draws // per_chain))
    rows = np.linspace(0, draws.chains - 1, shown_chains(draws)).round().astype(int)
    columns = np.arange(0, draws.draws, stride)
    coords = {"chain": rows, "draw": columns}
    data = {f"p{i}": (("chain", "draw"), draws.entry(index)[np.ix_(rows, columns)]) for i, index in enumerate(chosen)}
    groups = {"posterior": xarray.Dataset({k: (d, v.astype(float)) for k, (d, v) in data.items()}, coords)}
    if draws.diverging is not None:
        # A divergence between two kept draws is shown at the one before.
        padded = np.zeros((len(rows), len(columns) * stride), bool)
        padded[:, : draws.draws] = draws.diverging[rows]
        marks = padded.reshape(len(rows), len(columns), stride).any(-1)
        groups["sample_stats"] = xarray.Dataset({"diverging": (("chain", "draw"), marks)}, coords)
    return xarray.DataTree.from_dict(groups), stride


def _flat(draws: Draws, chosen: Sequence[int], kept: np.ndarray) -> xarray.Dataset:
    """Kept draws of chosen entries, as one chain."""
    import xarray

    columns = {f"p{i}": draws.entry(index).reshape(-1)[kept].astype(float) for i, index in enumerate(chosen)}
    return xarray.Dataset(
        {name: (("chain", "draw"), column[None]) for name, column in columns.items()},
        {"chain": [0], "draw": np.arange(kept.size)},
    )


def _axes(plots: Any, count: int) -> list[Axes]:
    return [plots.viz["plot"][f"p{i}"].item() for i in range(count)]


def _ticked(axes: Axes) -> None:
    """Few ticks, with labels also where ArviZ would leave them to a neighbour."""
    axes.tick_params(labelbottom=True, labelleft=True)
    axes.locator_params(nbins=4)


def short(label: str, most: int = 28) -> str:
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-most // 2 + 1 :]}"


# -- prior and posterior ---------------------------------------------------------------------------------------------


def _window(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """What to show of a prior whose tails may be very long: its bulk, as long as the posterior can still be seen."""
    low, high = np.quantile(new, [0.002, 0.998])
    width = high - low
    prior_low, prior_high = np.quantile(old, [0.01, 0.99])
    return float(max(min(low, prior_low), low - _REACH * width)), float(
        min(max(high, prior_high), high + _REACH * width)
    )


def _density(axes: Axes, values: np.ndarray, colour: str, window: tuple[float, float]) -> None:
    from arviz_stats.base import array_stats

    inside = values[(values >= window[0]) & (values <= window[1])]
    if inside.size < 2 or np.ptp(inside) == 0:
        return
    x, density, _ = array_stats.kde(inside.astype(float))
    density = density * inside.size / values.size
    axes.plot(x, density, color=colour, lw=1.6)
    axes.fill_between(x, 0, density, color=colour, alpha=0.22, lw=0)


def _bars(axes: Axes, values: np.ndarray, colour: str) -> None:
    levels, counts = np.unique(values.astype(int), return_counts=True)
    axes.bar(levels, counts / values.size, color=colour, alpha=0.45, width=0.8)


def _interval(values: np.ndarray) -> str:
    tail = (1 - INTERVAL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return f"{number(low, high - low)} to {number(high, high - low)}"


def _band(values: np.ndarray) -> float:
    """Half width of what a chain's line in a rank plot stays in if it agrees with the others.

    The inequality of Dvoretzky, Kiefer and Wolfowitz at 99 %, with the effective draws of each chain by itself: chains
    that sit apart must not widen it.
    """
    import arviz

    with np.errstate(all="ignore"):
        alone = [float(np.asarray(arviz.ess(chain[None], method="bulk"))) for chain in values]
    effective = max(float(np.nanmean(alone)) if np.isfinite(alone).any() else 1.0, 1.0)
    return float(np.sqrt(np.log(2 / 0.01) / (2 * effective)))
