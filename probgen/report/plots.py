"""Plots of a result, by ArviZ on matplotlib. They draw into files and need no display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base import palette
from probgen.base.errors import DataError, suggestion

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["forest", "traces"]

_INK, _ACCENT, _CHAINS = palette.INK, palette.ACCENT, palette.SERIES
_STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.facecolor": palette.PAPER,
}


def forest(
    tree: xarray.DataTree, variables: Sequence[str], *, observed: tuple[str, str] | None = None, title: str = ""
) -> Figure:
    """Median, 50 % and 89 % intervals of each entry, all chains together.

    Args:
        tree: A result.
        variables: Names of variables of the posterior.
        observed: A variable of those shown, and the variable of ``observed_data`` with the same dims whose values are
            marked beside it.
        title: Text above the plot.

    Raises:
        DataError: If the posterior has no such variable.
    """
    import arviz
    import matplotlib.pyplot as plt

    _check(tree, variables)
    rows = sum(int(np.prod(tree["posterior"][name].shape[2:])) for name in variables)
    with plt.rc_context(_STYLE):
        plots: Any = arviz.plot_forest(
            tree,
            var_names=list(variables),
            combined=True,
            ci_probs=(0.5, 0.89),
            ci_kind="eti",
            point_estimate="median",
            backend="matplotlib",
            visuals={
                "trunk": {"color": _CHAINS[0], "width": 5},
                "twig": {"color": _CHAINS[0], "width": 1.5},
                "point_estimate": {"color": _INK, "facecolor": "white", "size": 36},
            },
            figure_kwargs={"figsize": (9, 1.4 + 0.42 * rows), "width_ratios": (1, 3.2)},
        )
        figure: Figure = plots.viz["figure"].item()
        axes = figure.axes[-1]
        handles = [
            axes.plot([], [], color=_CHAINS[0], lw=3, marker="o", mfc="white", mec=_INK, label="median, 50 % and 89 %")[
                0
            ]
        ]
        if observed is not None:
            points = plots.viz["point_estimate"][observed[0]].values.ravel()
            heights = [float(point.get_offsets()[0][1]) for point in points]
            values = tree["observed_data"].to_dataset()[observed[1]].to_numpy().ravel()
            handles += axes.plot(values, heights, "x", color=_ACCENT, ms=7, mew=1.8, label=f"observed {observed[1]}")
        axes.grid(axis="x", color=palette.BORDER, alpha=0.35, lw=0.8)
        axes.set_axisbelow(True)
        figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def traces(tree: xarray.DataTree, variables: Sequence[str], *, title: str = "") -> Figure:
    """Density and trace of each variable, one colour per chain.

    Args:
        tree: A result.
        variables: Names of variables of the posterior.
        title: Text above the plot.

    Raises:
        DataError: If the posterior has no such variable.
    """
    import arviz
    import matplotlib.pyplot as plt

    _check(tree, variables)
    with plt.rc_context(_STYLE):
        plots: Any = arviz.plot_trace_dist(
            tree,
            var_names=list(variables),
            compact=True,
            backend="matplotlib",
            aes={"color": ["chain"]},
            color=list(_CHAINS),
            linestyle=["-"] * len(_CHAINS),
            visuals={"dist": {"width": 1.6}, "trace": {"width": 0.6, "alpha": 0.8}, "divergence": {"color": _ACCENT}},
            figure_kwargs={"figsize": (10, 0.9 + 2.1 * len(variables))},
        )
        figure: Figure = plots.viz["figure"].item()
        chains = tree["posterior"].sizes["chain"]
        lines = [plt.Line2D([], [], color=_CHAINS[chain % len(_CHAINS)]) for chain in range(chains)]
        figure.legend(
            lines,
            [f"chain {chain}" for chain in range(chains)],
            loc="outside lower center",
            ncols=min(chains, 8),
            frameon=False,
        )
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def _check(tree: xarray.DataTree, variables: Sequence[str]) -> None:
    known = [str(name) for name in tree["posterior"].data_vars]
    for name in variables:
        if name not in known:
            raise DataError(f"the posterior has no variable {name!r}. {suggestion(name, known)}")
