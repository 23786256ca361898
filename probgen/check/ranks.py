r"""Ranks of a truth among draws, ties broken at random.

If a truth and :math:`L` draws are exchangeable, its rank is uniform on :math:`0 \dots L`; with ties (discrete sites) so
is the number of smaller draws plus a uniform number of the equal ones (Modrák et al. 2023, Bayesian Analysis).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError

if TYPE_CHECKING:
    import xarray

__all__ = ["draws_of", "finished", "rank", "ranks", "truth_of"]


def rank(draws: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ranks, and the number of ties of each.

    Args:
        draws: Shape ``(datasets, draws, ...)``.
        truth: Shape ``(datasets, ...)``.
        rng: Breaks ties.
    """
    draws, truth = np.asarray(draws, _wide(draws)), np.asarray(truth, _wide(draws))[:, None]
    with np.errstate(invalid="ignore"):  # infinite log probabilities
        # Constants that two programs compute may differ by rounding.
        close = 8 * np.finfo(draws.dtype).eps * np.maximum(np.abs(draws), np.abs(truth))
        equal = (draws == truth) | (np.abs(draws - truth) <= np.where(np.isfinite(close), close, 0))
    ties = equal.sum(1)
    below = ((draws < truth) & ~equal).sum(1)
    return below + rng.integers(0, ties + 1), ties


def _wide(draws: np.ndarray) -> np.dtype:
    kind = np.asarray(draws).dtype
    return kind if kind.kind == "f" else np.dtype(float)


def ranks(tree: xarray.DataTree, rng: np.random.Generator) -> xarray.Dataset:
    """Ranks of every variable of ``truth`` among the draws of ``posterior``, over the data sets whose fit ended well.

    Variables that are the same number in every draw and truth (functions of fixed data) are left out.

    Raises:
        DataError: If a quantity is NaN, or the tree lacks a group.
    """
    draws, truth = draws_of(tree), truth_of(tree)
    found = {}
    for name, variable in truth.items():
        dims = variable.dims[1:]
        x = draws[name].transpose("dataset", "draw", *dims)
        if np.isnan(variable.values).any() or np.isnan(x.values).any():
            raise DataError(
                f"quantity {name!r} is NaN for some draw or truth, so it has no rank. Make it a number for every value "
                f"that the prior can draw."
            )
        value, ties = rank(x.values, variable.values, rng)
        if (ties == x.sizes["draw"]).all():
            continue
        found[name] = variable.copy(data=value)
    if not found:
        raise DataError("every variable is a constant, so there is nothing to rank. Keep a latent site.")
    return truth.drop_vars(list(truth.data_vars)).assign(found)


def finished(tree: xarray.DataTree) -> np.ndarray:
    """Which data sets have a fit whose draws are finite."""
    count = tree["truth"].sizes["dataset"]
    return tree["fits"].to_dataset()["finite"].values if "fits" in tree.children else np.ones(count, bool)


def truth_of(tree: xarray.DataTree) -> xarray.Dataset:
    """The truths of the data sets that were fitted well, dims ``(dataset, ...)``, of variables that have draws."""
    _check(tree)
    dataset = tree["truth"].to_dataset().isel(dataset=np.flatnonzero(finished(tree)))
    common = [name for name in dataset.data_vars if name in tree["posterior"].data_vars]
    if not common:
        raise DataError("the groups 'truth' and 'posterior' have no variable in common. Give both the same names.")
    return dataset[common].transpose("dataset", ...)


def draws_of(tree: xarray.DataTree) -> xarray.Dataset:
    """The draws of the data sets that were fitted well, dims ``(dataset, draw, ...)``, all chains together."""
    _check(tree)
    dataset = tree["posterior"].to_dataset().isel(dataset=np.flatnonzero(finished(tree)))
    if "chain" in dataset.dims:
        dataset = dataset.drop_vars(["chain", "draw"], errors="ignore")
        dataset = dataset.stack(both=("chain", "draw"), create_index=False).rename(both="draw")
    return dataset.transpose("dataset", "draw", ...)


def _check(tree: xarray.DataTree) -> None:
    wanted = {"truth": {"dataset"}, "posterior": {"dataset", "draw"}}
    for name, dims in wanted.items():
        children = getattr(tree, "children", {})
        if name not in children or not dims <= set(tree[name].dims):
            raise DataError(
                f"the tree has no group {name!r} with the dims {', '.join(sorted(dims))}. Pass what pg.check.sbc "
                f"returned, or a DataTree with truths and draws by data set."
            )
