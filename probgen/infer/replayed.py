"""What each site does in a prediction: stand at the posterior draws, stand at its observations, or be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from probgen.base.errors import DataError, MethodError, ModelError
from probgen.program.model import Model
from probgen.program.simulate import full_shape, halves, outcomes
from probgen.program.sites import Kind, Site, variable_name

if TYPE_CHECKING:
    import xarray

__all__ = ["Posterior", "Replayed", "check_drawable", "reported", "unknown", "with_new_data"]


class Posterior:
    """The draws of a tree, flattened over chains, and what the tree says about the data."""

    def __init__(self, model: Model, tree: xarray.DataTree) -> None:
        if "posterior" not in getattr(tree, "children", {}):
            raise MethodError("the tree has no group 'posterior'. Pass what pg.infer returned.")
        self.tree = tree
        posterior = tree["posterior"].to_dataset()
        if not {"chain", "draw"} <= set(posterior.dims):
            raise MethodError(
                f"the posterior has the dims {sorted(map(str, posterior.dims))}, expected chain and draw. "
                f"Do not average or stack it before."
            )
        self.size = (posterior.sizes["chain"], posterior.sizes["draw"])
        self.coords = {
            dim: posterior[dim].values if dim in posterior.coords else np.arange(posterior.sizes[dim])
            for dim in ("chain", "draw")
        }
        self.draws: dict[str, np.ndarray] = {}
        self.dims: set[str] = set()
        names = {variable_name(site.name): site.name for site in model.sites}
        for name, variable in posterior.data_vars.items():
            if {"chain", "draw"} <= set(variable.dims):
                array = variable.transpose("chain", "draw", ...).values
                self.draws[names.get(str(name), str(name))] = array.reshape(-1, *array.shape[2:])
                self.dims |= {str(dim) for dim in variable.dims}
        self.observed: dict[str, np.ndarray] = {}
        if "observed_data" in tree.children:
            data = tree["observed_data"].data_vars
            self.observed = {names.get(str(name), str(name)): v.values for name, v in data.items()}
        scaffold = halves(model)
        seen = {scaffold.get(name, name) for name in self.observed}
        self.outcomes = outcomes(model) | {site.name for site in model.sites if site.name in seen}

    def rows(self, key: jax.Array) -> tuple[np.ndarray, np.ndarray | None]:
        """Which flattened draws to use, and their index within the chain where draws were weighted."""
        chains, draws = self.size
        every = np.arange(chains * draws)
        stats = self.tree["sample_stats"].data_vars if "sample_stats" in self.tree.children else {}
        if "log_weight" not in stats:
            return every, None
        log_w = stats["log_weight"].transpose("chain", "draw", ...).values
        if log_w.shape != self.size:
            raise MethodError(
                f"sample_stats/log_weight has shape {log_w.shape}, but the posterior has {self.size}. "
                f"Give one weight per draw."
            )
        if np.ptp(log_w, axis=1).max() < 1e-12:
            return every, None
        weights = np.exp(log_w - log_w.max(1, keepdims=True))
        if not np.isfinite(weights).all():
            raise MethodError("sample_stats/log_weight has values that are not finite. Look at how the run ended.")
        ladders = (np.asarray(jax.random.uniform(key, (chains, 1))) + np.arange(draws)) / draws
        steps = np.cumsum(weights, 1) / weights.sum(1, keepdims=True)
        chosen = np.stack([np.searchsorted(s, at, side="right") for s, at in zip(steps, ladders, strict=True)])
        chosen = np.minimum(chosen, draws - 1)
        return (chosen + draws * np.arange(chains)[:, None]).reshape(-1), chosen

    def extended(
        self, groups: Mapping[str, tuple[xarray.Dataset, dict[str, Any]]], ancestors: np.ndarray | None
    ) -> xarray.DataTree:
        """A copy of the tree with further groups."""
        import xarray

        tree = self.tree.copy()
        for name, (group, attrs) in groups.items():
            coords: dict[str, Any] = dict(self.coords) if "draw" in group.dims else {}
            if coords and ancestors is not None:
                coords["ancestor"] = (("chain", "draw"), ancestors)
            tree[name] = xarray.DataTree(group.assign_coords(coords).assign_attrs(attrs))
        return tree


class Replayed:
    """What happens to each site of a prediction: held at the draws, held at observations, kept, drawn."""

    def __init__(
        self, model: Model, posterior: Posterior, drawn: frozenset[str], redrawn: frozenset[str], *, new: bool
    ) -> None:
        self.model, self.new = model, new
        self.per_draw: dict[str, np.ndarray] = {}
        """Values by site with a leading axis of draws."""
        self.constant: dict[str, np.ndarray] = {}
        """Observed series to be continued."""
        self.continued: dict[str, int] = {}
        """Time dims that go on, with the steps that are known."""
        kept, shown = [], []
        scaffold = halves(model)
        self.names = reported(model)
        for site in model.sites:
            name = scaffold.get(site.name, site.name)
            if site.kind is Kind.deterministic:
                shown.append(site.name)
            elif name in drawn:
                self._continue(site, name, posterior)
                check_drawable(site, "pg.predict")
                shown.append(name)
            elif site.kind is Kind.observed:
                kept.append(site.name)
            elif site.kind is not Kind.factor:
                if site.name in redrawn:
                    check_drawable(site, "pg.predict")
                    shown.append(site.name)
                elif self._hold(site, name, posterior):
                    shown.append(site.name)
        self.kept = frozenset(kept)
        self.interesting = [name for name in self.names if name in shown]

    def _hold(self, site: Site, name: str, posterior: Posterior) -> bool:
        """Hold a latent site at its draws; whether it must be continued beyond them."""
        sources = (site.name, name, site.name.removesuffix("_natural"))
        source = next((s for s in sources if s in posterior.draws), None)
        if source is None:
            raise MethodError(
                f"the posterior has no draws of the latent site {site.name!r}. "
                f"Draw it from its prior with resample=[{site.name!r}], or fit a model that has it."
            )
        if site.kind is Kind.param:
            self.per_draw[site.name] = posterior.draws[source]
            return False
        draws, shape = posterior.draws[source], full_shape(site)
        known = draws.shape[1:]
        series = self.new and site.scanned and len(known) == len(shape) and known[1:] == shape[1:]
        if known != shape and not series:
            raise MethodError(
                f"site {site.name!r} has draws of shape {known}, but the model now gives it shape {shape}. "
                f"If its plate has new members, draw them from the prior with resample=[{site.name!r}]; "
                f"else keep the data of the fit."
            )
        self.per_draw[site.name] = draws.astype(site.dtype)
        if known != shape and known[0] < shape[0]:
            self.continued[site.dims[0]] = known[0]
            return True
        return False

    def _continue(self, site: Site, name: str, posterior: Posterior) -> None:
        """Hold an observed series for as long as it is known, when the scan now runs for more steps."""
        shape = full_shape(site)
        if not (self.new and site.scanned and shape):
            return
        observed = posterior.observed.get(site.name)
        imputed = posterior.draws.get(name) if site.name == f"{name}_unobserved" else None
        if observed is not None and observed.shape[1:] == shape[1:] and observed.shape[0] < shape[0]:
            self.constant[site.name] = observed.astype(site.dtype)
            self.continued[site.dims[0]] = observed.shape[0]
        elif imputed is not None and imputed.shape[2:] == shape[1:] and imputed.shape[1] < shape[0]:
            self.per_draw[site.name] = imputed.astype(site.dtype)
            self.continued[site.dims[0]] = imputed.shape[1]

    def cut(self, group: xarray.Dataset) -> xarray.Dataset:
        """The new steps of continued series."""
        for dim, known in self.continued.items():
            if dim in group.dims:
                group = group.isel({dim: slice(known, None)})
        return group


# -- new data --------------------------------------------------------------------------------------------------------


def unknown(model: Model, data: Mapping[str, Any]) -> frozenset[str]:
    """Observed sites whose observations are not among the new data."""
    scaffold = halves(model)
    sources = {scaffold.get(site.name, site.name): site.source for site in model.of_kind(Kind.observed)}
    return frozenset(name for name, at in sources.items() if at is not None and at[0] == "data" and at[1] not in data)


def with_new_data(
    model: Model, data: dict[str, Any], drawn: frozenset[str], held_dims: set[str], coords: dict[str, Any]
) -> Model:
    """The model with new data, without the observations that will be drawn."""
    sources = {site.source for site in model.of_kind(Kind.observed) if halves(model).get(site.name, site.name) in drawn}
    dropped: dict[str, Any] = {
        name: None for part, name in (s for s in sources if s) if part == "data" and name not in data
    }
    given = {name: value for name, value in model.given.items() if name not in drawn}
    whole = {**model.leaves, **dict(model.settings), **data}
    try:
        new = model._changed(data={**whole, **dropped}, given=given, coords={})
    except (ModelError, DataError) as error:
        # Programs that cannot run without their observations (plate of len(y)) keep those of the fit, for their shapes.
        try:
            new = model._changed(data=whole, given=given, coords={}) if dropped else None
        except (ModelError, DataError):
            new = None
        if new is None:
            also = (
                f" Where the program needs {', '.join(sorted(dropped))}, give any values of the new shape."
                if dropped
                else ""
            )
            raise type(error)(f"the program does not run with the new data: {error}{also}") from error
    sizes = {dim: size for site in new.sites for dim, size in zip(site.dims, full_shape(site), strict=True)}
    kept = {d: v for d, v in model.labels.items() if variable_name(d) in held_dims and sizes.get(d) == len(v)}
    return new.with_coords({**kept, **coords})


# -- checks and names --------------------------------------------------------------------------------------------------


def check_drawable(site: Site, caller: str) -> None:
    """Raise unless a site can be drawn from its distribution."""
    if site.kind is Kind.param:
        raise MethodError(
            f"site {site.name!r} is a numpyro.param and has no prior, so {caller} cannot draw it. "
            f"Give it a prior with numpyro.sample."
        )
    if not site.proper:
        raise MethodError(
            f"site {site.name!r} has an improper prior, so {caller} cannot draw it. "
            f"Give it a proper prior, or hold it with model.do."
        )


def reported(model: Model) -> list[str]:
    """Names of the sites that results can hold."""
    scaffold = halves(model)
    return [s.name for s in model.sites if s.kind is not Kind.factor and s.name not in scaffold and s.dtype != "pytree"]
