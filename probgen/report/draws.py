"""The draws of a result, entry by entry: labels, statistics, weights, and which entries are worst.

An *entry* is one number of the posterior, such as ``tau`` or ``theta[A]``. Weighted draws (``sample_stats/log_weight``)
are summarised with their weights; where an entry is drawn, they are resampled systematically.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Draws", "number", "printable"]

INTERVAL = 0.89
"""Probability of the intervals, as ArviZ has it."""
RHAT_STEP, ESS_PER_CHAIN = 0.01, 100
"""What check holds against a result; used here to put entries in order."""
GOOD_K = 0.7
_LEAST = 4
"""Draws of a chain without which ArviZ computes no diagnostics."""


class Draws:
    """What the posterior of a tree holds.

    Args:
        tree: What ``pg.infer`` returned, or any DataTree with a ``posterior``.
        name: What to call it where several are compared.

    Raises:
        DataError: If there is no posterior with the dims ``chain`` and ``draw``, or nothing in it is a number.
    """

    def __init__(self, tree: xarray.DataTree, name: str = "") -> None:
        groups = getattr(tree, "children", {})
        if "posterior" not in groups or not {"chain", "draw"} <= set(tree["posterior"].dims):
            raise DataError("the tree has no posterior with the dims 'chain' and 'draw'. Pass what pg.infer returned.")
        posterior = tree["posterior"].to_dataset()
        self.tree, self.name = tree, name
        self.attrs: Mapping[str, Any] = {str(k): v for k, v in (tree.attrs or posterior.attrs).items()}
        self.chains, self.draws = posterior.sizes["chain"], posterior.sizes["draw"]
        arrays: dict[str, np.ndarray] = {}
        self.labels: list[str] = []
        self.places: list[tuple[str, int]] = []
        """Variable and flat index of each entry."""
        for name_, variable in posterior.data_vars.items():
            if not {"chain", "draw"} <= set(variable.dims) or variable.dtype.kind not in "biuf":
                continue
            ordered = variable.transpose("chain", "draw", ...)
            key = str(name_)
            arrays[key] = ordered.values.reshape(self.chains, self.draws, -1)
            labels = _labels(key, ordered)
            self.labels += labels
            self.places += [(key, i) for i in range(len(labels))]
        if not self.labels or not self.draws:
            raise DataError("the posterior holds no draws of numbers. Pass what pg.infer returned.")
        self.arrays = arrays
        stats = tree["sample_stats"].to_dataset() if "sample_stats" in groups else None
        self.stats: Mapping[str, np.ndarray] = {
            str(k): v.transpose("chain", "draw", ...).values
            for k, v in ({} if stats is None else stats.data_vars).items()
            if {"chain", "draw"} <= set(v.dims)
        }

    # -- what kind of draws ------------------------------------------------------------------------------------------

    @property
    def independent(self) -> bool:
        """Whether these are independent draws from an approximation, so that chains say nothing."""
        return self.attrs.get("kind") == "approximate"

    @property
    def pareto_k(self) -> float | None:
        """How far the approximation is from the posterior, where it was measured."""
        return float(self.attrs["pareto_k"]) if "pareto_k" in self.attrs else None

    @cached_property
    def weights(self) -> np.ndarray | None:
        """Weights that sum to one, shape ``(chain * draw,)``; none where draws count alike or weights cannot help."""
        log_w = self.stats.get("log_weight")
        if log_w is None or log_w.shape != (self.chains, self.draws) or self.weights_fail:
            return None
        if np.isnan(log_w).any() or not np.isfinite(log_w.max(1)).all() or np.ptp(log_w) < 1e-12:
            return None
        # Approximations weigh all their draws together; runs of particles are one chain each, and count alike.
        weights = np.exp(log_w - log_w.max(None if self.independent else 1, keepdims=True))
        weights /= weights.sum(None if self.independent else 1, keepdims=True)
        return weights.reshape(-1) / weights.sum()

    @property
    def weights_fail(self) -> bool:
        """Whether the weights are so uneven that nothing can be computed with them."""
        return self.independent and self.pareto_k is not None and not self.pareto_k <= GOOD_K

    @property
    def weight_ess(self) -> float | None:
        """How many unweighted draws the weighted ones are worth (Kish)."""
        return None if self.weights is None else float(1 / np.sum(self.weights**2))

    @property
    def diverging(self) -> np.ndarray | None:
        """Which draws diverged, shape ``(chain, draw)``."""
        return self.stats["diverging"].astype(bool) if "diverging" in self.stats else None

    @property
    def note(self) -> str:
        """A sentence about what the numbers describe, where that is not simply the draws."""
        if self.weights_fail:
            return (
                f"The importance weights cannot be trusted (Pareto k-hat {number(self.pareto_k or 0.0, 1.0)}, limit "
                f"{GOOD_K}), so the "
                f"numbers describe the approximation itself, which may be far from the posterior."
            )
        if self.weights is not None:
            return (
                f"The draws are weighted, and the numbers take the weights into account: {self.weights.size} draws are "
                f"worth {self.weight_ess:.0f} unweighted ones."
            )
        if self.independent:
            return "The draws come from an approximation, and the numbers describe it as it is."
        return ""

    # -- entries -----------------------------------------------------------------------------------------------------

    def entry(self, index: int) -> np.ndarray:
        """The draws of one entry, shape ``(chain, draw)``."""
        name, flat = self.places[index]
        return self.arrays[name][..., flat]

    def kept(self, count: int) -> np.ndarray:
        """Flat indices of about ``count`` draws that stand for all: spread evenly, or resampled by weight."""
        total = self.chains * self.draws
        count = min(count, total)
        if self.weights is None:
            return np.unique(np.linspace(0, total - 1, count).round().astype(int))
        ladder = (np.arange(count) + 0.5) / count
        return np.minimum(np.searchsorted(np.cumsum(self.weights), ladder), total - 1)

    @cached_property
    def usable(self) -> np.ndarray:
        """Whether each entry is finite and moves: what a picture can show."""
        flags = []
        for values in self.arrays.values():
            flat = values.reshape(-1, values.shape[-1]).astype(float)
            with np.errstate(invalid="ignore"):
                flags.append(np.isfinite(flat).all(0) & (np.ptp(flat, axis=0) > 0))
        return np.concatenate(flags)

    def discrete(self, index: int) -> bool:
        """Whether an entry takes whole numbers."""
        return self.arrays[self.places[index][0]].dtype.kind in "biu"

    # -- statistics --------------------------------------------------------------------------------------------------

    @cached_property
    def summary(self) -> pandas.DataFrame:
        """Numbers, one row per entry: mean, sd, interval, and for chains the diagnostics of ArviZ."""
        return self._summaries[0]

    @cached_property
    def cells(self) -> list[list[str]]:
        """The same as text, each number with the digits that mean something."""
        return self._summaries[1]

    @cached_property
    def _summaries(self) -> tuple[pandas.DataFrame, list[list[str]]]:
        if self.weights is not None or self.independent or self.draws < _LEAST:
            return self._own_summary()
        import arviz
        import xarray

        # Keys of our own: labels need not be unique, nor harmless.
        data = xarray.Dataset(
            {f"v{i}": (("chain", "draw", f"e{i}"), v.astype(float)) for i, v in enumerate(self.arrays.values())}
        )
        # The ESS of the tails is that of the quantiles 0.05 and 0.95; left alone, ArviZ takes 0.11 and 0.89.
        tails = arviz.rc_context({"stats.ci_prob": 0.95})
        with warnings.catch_warnings(), np.errstate(all="ignore"), tails:  # constants, NaN
            warnings.simplefilter("ignore")
            frame = arviz.summary(data, kind="all", ci_kind="eti", ci_prob=INTERVAL)
            lines = frame.to_string(index=False).splitlines()
        frame = frame.set_axis(self.labels, axis="index").set_axis(_COLUMNS, axis="columns")
        return frame.astype(float), [line.split() for line in lines[1:]]

    def _own_summary(self) -> tuple[pandas.DataFrame, list[list[str]]]:
        """Mean, sd and interval, weighted where draws are: what makes sense without chains."""
        import pandas

        tail = (1 - INTERVAL) / 2
        rows = []
        for values in self.arrays.values():
            for flat in values.reshape(-1, values.shape[-1]).astype(float).T:
                rows.append(_moments(flat, self.weights, tail))
        frame = pandas.DataFrame(rows, index=self.labels, columns=_COLUMNS[:4])
        cells = [[number(value, row[1]) for value in row] for row in rows]
        return frame, cells

    @property
    def mixing(self) -> tuple[float, float] | None:
        """The largest R-hat and the smallest ESS of all entries; none where there are no chains, or too few draws."""
        if "r_hat" not in self.summary or not np.isfinite(self.summary["r_hat"]).any():
            return None
        r_hat, *ess = (self.summary[name].to_numpy() for name in ("r_hat", "ess_bulk", "ess_tail"))
        return float(np.nanmax(r_hat)), float(np.nanmin(ess))

    @cached_property
    def worst(self) -> list[int]:
        """Entries that can be drawn, by how badly their chains mixed; in the order of the posterior where that says
        nothing."""
        usable = np.flatnonzero(self.usable)
        if "r_hat" not in self.summary:
            return usable.tolist()
        table = self.summary.iloc[usable]
        ess = np.minimum(table["ess_bulk"], table["ess_tail"]).to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            badness = np.fmax((table["r_hat"].to_numpy() - 1) / RHAT_STEP, ESS_PER_CHAIN * self.chains / ess)
        return usable[np.argsort(-np.nan_to_num(badness, nan=np.inf), kind="stable")].tolist()

    def main(self, count: int) -> list[int]:
        """Entries to show where not all can be: the same number of each variable, as far as there are any."""
        per_variable: dict[str, list[int]] = {}
        for index in np.flatnonzero(self.usable):
            per_variable.setdefault(self.places[index][0], []).append(int(index))
        rounds = zip_longest(per_variable.values())
        return sorted([index for round_ in rounds for index in round_][:count])


_COLUMNS = ["mean", "sd", "lower", "upper", "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd"]


def zip_longest(lists: Any) -> list[list[int]]:
    """The first elements of all lists, the second ones, ..."""
    lists = list(lists)
    return [[one[i] for one in lists if i < len(one)] for i in range(max(map(len, lists), default=0))]


def number(value: float, scale: float = math.nan) -> str:
    """A number with about three digits of ``scale``, or three digits of its own."""
    if not math.isfinite(value):
        return {math.inf: "\N{INFINITY}", -math.inf: "\N{MINUS SIGN}\N{INFINITY}"}.get(value, "nan")
    size = scale if math.isfinite(scale) and scale > 0 else abs(value)
    if size == 0:
        return "0"
    places = 2 - math.floor(math.log10(size))
    text = f"{value:.3g}" if abs(places) > 6 else f"{value:.{max(places, 0)}f}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") else text


def _labels(name: str, variable: xarray.DataArray) -> list[str]:
    dims = [str(dim) for dim in variable.dims[2:]]
    if not dims:
        return [printable(name)]
    ticks: list[Sequence[Any]] = [
        list(variable[dim].values) if dim in variable.coords else range(variable.sizes[dim]) for dim in dims
    ]
    shape = [len(tick) for tick in ticks]
    return [
        printable(f"{name}[{', '.join(str(tick[i]) for tick, i in zip(ticks, index, strict=True))}]")
        for index in np.ndindex(*shape)
    ]


def _moments(values: np.ndarray, weights: np.ndarray | None, tail: float) -> tuple[float, float, float, float]:
    """Mean, sd and the ends of the interval of equal tails; sd and quantiles as ArviZ has them without weights."""
    if weights is None:
        lower, upper = np.quantile(values, [tail, 1 - tail])
        return float(values.mean()), float(values.std()), float(lower), float(upper)
    mean = float(weights @ values)
    sd = math.sqrt(max(float(weights @ (values - mean) ** 2), 0.0))
    order = np.argsort(values)
    steps = np.cumsum(weights[order])
    lower, upper = (float(values[order][min(np.searchsorted(steps, p), values.size - 1)]) for p in (tail, 1 - tail))
    return mean, sd, lower, upper


def printable(text: str) -> str:
    """Text without control characters and halves of characters, which neither HTML nor SVG can hold."""
    kept = "".join("\N{REPLACEMENT CHARACTER}" if ord(c) < 32 and c not in "\t\n\r" else c for c in text)
    return kept.encode("utf-8", errors="replace").decode()
