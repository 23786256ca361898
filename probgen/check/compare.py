"""Which of several models predicts best: leave-one-out cross-validation and stacking, by ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.infer.predict import log_likelihood
from probgen.program.model import Model

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["compare"]


def compare(
    trees: Mapping[str, xarray.DataTree],
    models: Mapping[str, Model] | None = None,
    *,
    site: str | None = None,
) -> pandas.DataFrame:
    """Compare fits of the same data by their expected log predictive density, and weigh them by stacking.

    Pareto-smoothed importance sampling leave-one-out (Vehtari, Gelman and Gabry 2017), stacking of predictive
    distributions (Yao, Vehtari, Simpson and Gelman 2018), both as ``arviz_stats.compare`` computes them.

    Args:
        trees: What ``pg.infer`` returned, by the name of the model.
        models: The models, by the same names; needed for trees without the group ``log_likelihood``.
        site: Observed site whose observations are left out. ``None``: all observations of all sites, each by itself.

    Returns:
        A table, best first: ``rank``, ``elpd_diff`` with standard error ``dse``, ``p_worse``, ``diag_diff``,
        ``diag_elpd`` (Pareto k-hats above their limit: such numbers cannot be trusted), ``p``, ``elpd``, ``se`` and the
        stacking ``weight``.

    Raises:
        DataError: If there are fewer than two, or they were fitted to different data.
        MethodError: If a log likelihood is missing and cannot be computed.
    """
    import arviz_stats

    if not isinstance(trees, Mapping) or len(trees) < 2:
        raise DataError(
            "trees must hold at least two fits by name. Write for example {'linear': tree, 'spline': tree2}."
        )
    stacked = {name: _with_likelihood(name, tree, models, site) for name, tree in trees.items()}
    first, *others = stacked
    for name in others:
        mine, theirs = (stacked[n]["log_likelihood/all"].sizes["observation"] for n in (name, first))
        if mine != theirs:
            raise DataError(
                f"{name!r} has {mine} observations and {first!r} has {theirs}. Compare fits of the same data, or name "
                f"a site."
            )
        _check_same_data(name, trees[name], first, trees[first], site)
    return arviz_stats.compare(stacked, var_name="all", round_to="none")


def _with_likelihood(
    name: str, tree: xarray.DataTree, models: Mapping[str, Model] | None, site: str | None
) -> xarray.DataTree:
    """A tree with one variable of pointwise log likelihoods, all observations along one axis."""
    import xarray

    if "log_likelihood" not in getattr(tree, "children", {}):
        model = (models or {}).get(name)
        if model is None:
            raise MethodError(
                f"the tree {name!r} has no group 'log_likelihood'. Pass its model: models={{{name!r}: model}}, or add "
                f"the group with pg.log_likelihood."
            )
        tree = log_likelihood(model, tree, progress=False)
    group = tree["log_likelihood"].to_dataset()
    if site is not None and site not in group:
        known = map(str, group.data_vars)
        raise DataError(f"the tree {name!r} has no observed site {site!r}. {suggestion(site, known)}")
    names = sorted(map(str, group.data_vars)) if site is None else [site]
    arrays = [group[n].transpose("chain", "draw", ...).values for n in names]
    flat = np.concatenate([array.reshape(*array.shape[:2], -1) for array in arrays], -1)
    coords = {
        dim: group[dim].values if dim in group.coords else np.arange(group.sizes[dim]) for dim in ("chain", "draw")
    }
    every = xarray.Dataset({"all": (("chain", "draw", "observation"), flat)}, coords)
    return xarray.DataTree.from_dict({"posterior": tree["posterior"].to_dataset(), "log_likelihood": every})


def _check_same_data(
    name: str, tree: xarray.DataTree, other: str, reference: xarray.DataTree, site: str | None
) -> None:
    """Raise if a site that both observe has other observations."""
    if not all("observed_data" in one.children for one in (tree, reference)):
        return
    mine, theirs = (one["observed_data"].to_dataset() for one in (tree, reference))
    for variable in mine.data_vars:
        if variable in theirs and site in (None, variable):
            same = mine[variable].shape == theirs[variable].shape and np.array_equal(
                mine[variable].values, theirs[variable].values, equal_nan=mine[variable].dtype.kind == "f"
            )
            if not same:
                raise DataError(
                    f"{name!r} and {other!r} have different observations of {str(variable)!r}. Compare fits of the "
                    f"same data."
                )
