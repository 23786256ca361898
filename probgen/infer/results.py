"""Results: every answer becomes one ArviZ DataTree with labelled axes."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from probgen.infer.method import Run
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.simulate import observed_values
from probgen.program.sites import Kind, variable_name

if TYPE_CHECKING:
    import xarray

__all__ = ["attributes", "constant_data", "dataset", "labelled", "observed_data", "to_tree", "versions"]


def to_tree(model: Model, density: Density, run: Run, attrs: dict[str, Any], warmup: int = 0) -> xarray.DataTree:
    """The DataTree of a run: posterior, sample_stats, observed_data, constant_data and what else the method gave.

    Args:
        model: The model; gives dims and coords.
        density: Its density.
        run: What the method gave back.
        attrs: Method, settings, seed and the like.
        warmup: Leading draws that belong to ``warmup_posterior``.
    """
    import xarray

    stats = {name: (("chain", "draw"), value) for name, value in run.stats.items()}
    groups: dict[str, xarray.Dataset] = {}
    if warmup:
        groups["warmup_posterior"] = labelled(model, {k: v[:, :warmup] for k, v in run.values.items()})
        groups["warmup_sample_stats"] = xarray.Dataset({k: (d, v[:, :warmup]) for k, (d, v) in stats.items()})
    groups["posterior"] = labelled(model, {k: v[:, warmup:] for k, v in run.values.items()})
    groups["sample_stats"] = xarray.Dataset({k: (d, v[:, warmup:]) for k, (d, v) in stats.items()})
    for group, variables in run.groups.items():
        groups[group] = dataset(model, variables)
    own = {"observed_data": observed_data(model), "constant_data": constant_data(model)}
    # Observations that are no sites of the program are known to the method alone.
    groups |= {name: found for name, found in own.items() if found.data_vars or name not in groups}
    chains, draws = next(iter(run.values.values())).shape[:2] if run.values else (0, 0)
    for name in groups:
        if name.endswith(("posterior", "sample_stats")):
            length = warmup if name.startswith("warmup") else draws - warmup
            groups[name] = groups[name].assign_coords(chain=np.arange(chains), draw=np.arange(length))
    tree = xarray.DataTree.from_dict(
        {name: group for name, group in groups.items() if group.data_vars or name == "posterior"}
    )
    for group, values in attributes(attrs, run).items():
        (tree[group] if group else tree).attrs.update(values)
    return tree


def attributes(attrs: dict[str, Any], run: Run) -> dict[str, dict[str, Any]]:
    """What a tree says about its run, by group (the root is ``""``): people look there, ArviZ at the posterior."""
    ended = {"ended": run.ended.name, "ended_because": run.ended.value}
    seconds = {f"seconds_{stage}": seconds for stage, seconds in run.seconds.items()}
    root = {**_plain({**attrs, **run.attrs, **versions(), **ended}), **seconds}
    return {"": root, "posterior": {"inference_library": "probgen", **root}}


def dataset(model: Model, variables: dict[str, tuple[tuple[str, ...], np.ndarray]]) -> xarray.Dataset:
    """A labelled Dataset of ``(dims, array)`` pairs; dims known to the model get their labels.

    Names are those of ``variable_name``.
    """
    import xarray

    labels = {variable_name(dim): values for dim, values in model.labels.items()}
    variables = {
        variable_name(name): (tuple(map(variable_name, dims)), array) for name, (dims, array) in variables.items()
    }
    sizes = {dim: size for dims, array in variables.values() for dim, size in zip(dims, np.shape(array), strict=True)}
    coords = {
        dim: _label_array(labels[dim]) if dim in labels and len(labels[dim]) == size else np.arange(size)
        for dim, size in sizes.items()
        if dim not in ("chain", "draw")
    }
    return xarray.Dataset({name: (dims, np.asarray(array)) for name, (dims, array) in variables.items()}, coords=coords)


def _label_array(labels: tuple[Any, ...]) -> np.ndarray:
    """Labels as an array that files can hold: dates are times, other objects what they print."""
    array = np.asarray(labels)
    if array.dtype != object:
        return array
    dates = all(isinstance(label, datetime.date) and getattr(label, "tzinfo", None) is None for label in labels)
    return array.astype("datetime64[ns]") if dates else np.asarray([str(label) for label in labels])


def labelled(model: Model, values: dict[str, np.ndarray]) -> xarray.Dataset:
    """A labelled Dataset of draws: arrays by site, shape ``(chains, draws, ...)``."""
    named = {variable_name(site.name): site for site in model.sites}
    values = {variable_name(name): value for name, value in values.items()}
    order = [name for name in named if name in values]
    variables = {}
    for name in [*order, *(set(values) - set(order))]:
        array = values[name]
        dims = named[name].dims if name in named else ()
        if len(dims) != array.ndim - 2:
            dims = tuple(f"{name}_dim_{axis}" for axis in range(array.ndim - 2))
        variables[name] = (("chain", "draw", *dims), array)
    return dataset(model, variables)


def observed_data(model: Model) -> xarray.Dataset:
    """Values of the observed sites."""
    variables, sites = {}, model.of_kind(Kind.observed)
    computed = jax.jit(observed_values)(model) if any(site.source is None for site in sites) else {}
    for site in sites:
        if site.source is None:
            value = computed[site.name]
        else:
            part, name = site.source
            value = (model.leaves if part == "data" else model.given)[name]
        variables[site.name] = (site.dims, np.asarray(value))
    return dataset(model, variables)


def constant_data(model: Model) -> xarray.Dataset:
    """The arrays among the data that are not observations."""
    sources = {site.source for site in model.of_kind(Kind.observed)}
    dims, variables = dict(model.dims), {}
    for name, value in model.leaves.items():
        if ("data", name) not in sources and hasattr(value, "shape"):
            given = dims.get(name, ())
            names = (
                given if len(given) == np.ndim(value) else tuple(f"{name}_dim_{axis}" for axis in range(np.ndim(value)))
            )
            variables[name] = (names, np.asarray(value))
    return dataset(model, variables)


@functools.cache  # reading them takes longer than a small fit
def versions() -> dict[str, str]:
    """Versions of what decides on the numbers, as attributes."""
    packages = ("probgen", "numpyro", "jax", "blackjax")
    versions = {}
    for package in packages:
        try:
            versions[f"version_{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**versions, "version_python": platform.python_version()}


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes that netCDF and zarr can hold: numbers and strings, the rest as JSON."""
    return {
        k: v if isinstance(v, str | int | float) and not isinstance(v, bool) else json.dumps(v)
        for k, v in attrs.items()
    }
