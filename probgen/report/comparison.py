"""The sections of a report on several results side by side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.palette import BORDER, PLATE
from probgen.report.draws import INTERVAL, Draws, number
from probgen.report.figures import short
from probgen.report.page import NONE, TIMES, Block, Item, Items, Legend, Note, Panels, Picture, Section, Table, Verdict
from probgen.report.predictive import loo, with_log_likelihood
from probgen.report.record import settings_table
from probgen.report.sections import Missing, guarded, verdict
from probgen.report.style import cut, drawing, series

if TYPE_CHECKING:
    from probgen.check.findings import Findings
    from probgen.program.model import Model

__all__ = ["compared", "overall"]

_SHARED = 24
_SAMPLE = 4000
_APART = 4.0
"""Standard errors beyond which two means differ by more than the error of the simulation."""


def overall(several: Sequence[Draws], found: Sequence[Findings]) -> Verdict:
    """The worst verdict of all, and whose it is."""
    levels = ("good", "look", "bad")
    single = [verdict(draws, findings) for draws, findings in zip(several, found, strict=True)]
    worst = max(single, key=lambda one: levels.index(one.level))
    reasons = [(f"{draws.name}: {one.title.lower()}", "") for draws, one in zip(several, single, strict=True)]
    return Verdict(worst.level, {"good": "All are good to use"}.get(worst.level, worst.title), reasons)


def compared(several: Sequence[Draws], found: Sequence[Findings], models: Sequence[Model | None]) -> list[Section]:
    """What can be said about several results that cannot be said about one."""
    return [
        _numbers(several, found),
        _forest(several),
        _elpd(several, models),
        _findings(several, found),
        _settings(several),
    ]


def _numbers(several: Sequence[Draws], found: Sequence[Findings]) -> Section:
    about = (
        "What each result is worth: the largest R-hat and the smallest ESS of its entries, divergences, the Pareto "
        "k-hat of "
        "an approximation, and what it cost."
    )

    def build() -> list[Block]:
        rows, flagged = [], set()
        for draws, findings in zip(several, found, strict=True):
            one = verdict(draws, findings)
            flagged |= {len(rows)} if one.level != "good" else set()
            seconds = sum(float(v) for k, v in draws.attrs.items() if k.startswith("seconds_"))
            rhat = ess = rate = NONE
            if draws.mixing is not None:
                largest, least = draws.mixing
                rhat, ess = f"{largest:.3f}", f"{least:,.0f}"
                rate = f"{least / seconds:,.0f}" if seconds else NONE
            diverging = NONE if draws.diverging is None else f"{int(draws.diverging.sum()):,}"
            k = NONE if draws.pareto_k is None else number(draws.pareto_k, 1.0)
            cost = f"{seconds:,.1f}" if seconds else NONE
            size = f"{draws.chains} {TIMES} {draws.draws:,}"
            rows.append((draws.name, one.title.lower(), size, rhat, ess, diverging, k, cost, rate))
        header = (
            "", "verdict", "draws", "R-hat", "ESS", "divergences", "k-hat", "seconds", "ESS / s",
        )  # fmt: skip
        return [Table(header, rows, "Results side by side", flagged=frozenset(flagged))]

    return guarded("numbers", "At a glance", about, build)


def _forest(several: Sequence[Draws]) -> Section:
    about = (
        f"The entries that all results have: median, 50 % (thick) and {100 * INTERVAL:.0f} % (thin). Results of one "
        "posterior must lie on top of one another. The table has means (and sds), and its last column says by how "
        "many Monte Carlo standard "
        f"errors the means differ at most, and more than {_APART:.0f} is no accident."
    )

    def build() -> list[Block]:
        places = [{label: i for i, label in reversed(list(enumerate(draws.labels)))} for draws in several]
        shared = [
            label
            for label in places[0]
            if all(label in p and d.usable[p[label]] for p, d in zip(places, several, strict=True))
        ]
        if not shared:
            raise Missing("No entry is in all results, finite, and moving, so there is nothing to put side by side.")
        first = several[0]
        main = [first.labels[i] for i in first.main(len(first.labels)) if first.labels[i] in set(shared)]
        kept = set(shared) if len(shared) <= _SHARED else set(_spread(first, shared))
        chosen = [label for label in main if label in kept]
        header = ("", *(draws.name for draws in several), "means differ by")
        rows, flagged = [], set()
        for label in shared:
            means, errors, cells = [], [], []
            for draws, place in zip(several, places, strict=True):
                row = draws.summary.iloc[place[label]]
                means.append(float(row["mean"]))
                errors.append(_error(draws, row))
                cells.append(f"{number(row['mean'], row['sd'])} ({number(row['sd'], row['sd'])})")
            apart = _apart(means, errors)
            flagged |= {len(rows)} if apart > _APART else set()
            rows.append((label, *cells, f"{apart:.1f}"))
        legend = Legend(list(zip(series(len(several)), (draws.name for draws in several), strict=True)))
        pictures = [_intervals(several, [place[label] for place in places], label) for label in chosen]
        more = (
            [Note(f"{len(chosen)} of {len(shared):,} shared entries are drawn.")] if len(chosen) < len(shared) else []
        )
        table = Table(header, rows[:2000], "Shared entries", sortable=True, flagged=frozenset(flagged))
        return [legend, Panels(pictures, 250), *more, table]

    return guarded("forest", "Shared entries", about, build)


def _spread(draws: Draws, shared: Sequence[str]) -> list[str]:
    wanted = set(shared)
    for count in range(_SHARED, len(draws.labels) + 1):
        chosen = [draws.labels[i] for i in draws.main(count) if draws.labels[i] in wanted]
        if len(chosen) >= _SHARED:
            return chosen
    return list(shared)[:_SHARED]


def _error(draws: Draws, row: Any) -> float:
    """Standard error of a mean: of the chains, of the weights, or of independent draws."""
    if "mcse_mean" in row:
        return float(row["mcse_mean"])
    return float(row["sd"]) / (draws.weight_ess or draws.chains * draws.draws) ** 0.5


def _apart(means: Sequence[float], errors: Sequence[float]) -> float:
    """Largest difference of two means in standard errors."""
    worst = 0.0
    for i in range(len(means)):
        for j in range(i):
            error = float(np.hypot(errors[i], errors[j]))
            worst = max(worst, abs(means[i] - means[j]) / error if error > 0 else 0.0)
    return worst


def _intervals(several: Sequence[Draws], places: Sequence[int], label: str) -> Picture:
    """One entry in all results."""
    import arviz
    import xarray

    trees: dict[str, Any] = {}
    count = min(_SAMPLE, *(draws.chains * draws.draws for draws in several))
    for i, (draws, place) in enumerate(zip(several, places, strict=True)):
        values = draws.entry(place).reshape(-1)[draws.kept(count)].astype(float)
        trees[f"m{i}"] = xarray.DataTree.from_dict(
            {"posterior": xarray.Dataset({"x": (("chain", "draw"), values[None])}, {"chain": [0]})}
        )
    height = 0.5 + 0.22 * len(several)
    with drawing():
        plots = arviz.plot_forest(
            trees,
            backend="matplotlib",
            combined=True,
            labels=[],
            point_estimate="median",
            ci_kind="eti",
            ci_probs=(0.5, INTERVAL),
            color=series(len(several)),
            visuals={
                "trunk": {"width": 4.5},
                "twig": {"width": 1.4},
                "point_estimate": {"size": 26},
                "ticklabels": False,
            },
            figure_kwargs={"figsize": (4.0, height)},
        )
        axes = plots.viz["figure"].item().axes[-1]
        low, high = axes.get_ylim()
        pad = 0.5 * (high - low) / max(len(several) - 1, 1)
        axes.set_ylim(low - pad, high + pad)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=BORDER, alpha=0.35, lw=0.6)
        axes.set_axisbelow(True)
        told = "; ".join(
            f"{d.name} {number(float(d.summary['mean'].iloc[p]), float(d.summary['sd'].iloc[p]))}"
            for d, p in zip(several, places, strict=True)
        )
        picture = cut(axes, (4.0, height), (0.12, 0.28, 0.12, 0.05), f"Intervals of {label}. Means: {told}.")
        return Picture(picture, label)


def _elpd(several: Sequence[Draws], models: Sequence[Model | None]) -> Section:
    about = (
        "Which result predicts observations best that it has not seen (PSIS-LOO). The best one is first; a difference "
        "of less than 4, or of less than a few of its standard errors, is no reason to prefer one. Weights are those "
        "of "
        "stacking: the mixture of the models that would predict best. All must be fits to the same observations."
    )

    def build() -> list[Block]:
        import arviz

        scores: dict[str, Any] = {}
        for draws, model in zip(several, models, strict=True):
            tree = with_log_likelihood(draws, model)
            names = [str(name) for name in tree["log_likelihood"].data_vars]
            if len(names) != 1:
                raise Missing(f"{draws.name} has {len(names)} observed variables, and scores are compared for one.")
            scores[draws.name] = loo(draws, tree, names[0])
        sizes = {name: score.n_data_points for name, score in scores.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise Missing(
                f"The results have different numbers of observations ({listed}), so scores cannot be compared."
            )
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            table = arviz.compare(scores, round_to="none")
        rows = [
            (
                str(name),
                number(row["elpd"], row["se"]),
                number(row["elpd_diff"], row["dse"] or 1.0),
                number(row["dse"]),
                f"{row['weight']:.2f}",
                str(row["diag_elpd"] or NONE),
            )
            for name, row in table.iterrows()
        ]
        header = ("", "elpd", "difference", "its standard error", "weight", "k-hat above limit")
        return [Table(header, rows, "Leave-one-out, best first"), Panels([_scores(table)], 340)]

    return guarded("elpd", "Prediction", about, build)


def _scores(table: Any) -> Picture:
    import arviz

    size = (4.8, 0.6 + 0.3 * len(table))
    with drawing():
        plots = arviz.plot_compare(
            table,
            backend="matplotlib",
            visuals={
                "title": False,
                "point_estimate": {"color": series(1)[0]},
                "error_bar": {"color": series(1)[0]},
                "ref_line": {"color": PLATE},
            },
            figure_kwargs={"figsize": size},
        )
        axes = plots.viz["plot"].item()
        names = [short(str(name), 22) for name in table.index]
        axes.set_yticks(range(len(names), 0, -1), names)
        axes.set_ylim(0.4, len(names) + 0.6)
        axes.set_xlabel("difference of elpd from the best, ± standard error")
        label = "Differences of the expected log predictive density from the best result, with standard errors."
        return Picture(cut(axes, size, (0.25 + 0.068 * max(map(len, names)), 0.42, 0.12, 0.08), label))


def _findings(several: Sequence[Draws], found: Sequence[Findings]) -> Section:
    about = "What the automatic checks found in each result, worst first."

    def build() -> list[Block]:
        blocks: list[Block] = []
        for draws, findings in zip(several, found, strict=True):
            items = [Item(f.severity.name, f.what[:1].upper() + f.what[1:], f.where, f.advice) for f in findings]
            blocks += [Note(findings.caveat, draws.name), Items(items, findings.checked)]
        return blocks

    return guarded("findings", "Findings", about, build)


def _settings(several: Sequence[Draws]) -> Section:
    about = "How each result was made. Rows in which they differ are marked."
    return guarded("settings", "Settings and versions", about, lambda: [settings_table(list(several))])
