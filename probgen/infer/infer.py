"""The one door: ``pg.infer(model, method)``."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import os
import warnings
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax

from probgen.base.errors import DataError, Ended, MethodError, ModelError, ProbgenError, ProbgenWarning, StoreError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.infer.choose import choose
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.results import attributes, to_tree, versions
from probgen.program.density import Density
from probgen.program.fingerprint import fingerprint, stable
from probgen.program.model import Model
from probgen.program.sites import Kind, variable_name
from probgen.run.archive import harmless
from probgen.run.compiled import TRACING
from probgen.run.devices import CHAIN, DATA, Devices, mesh_of
from probgen.run.progress import show_by_default
from probgen.run.store import Store

if TYPE_CHECKING:
    import xarray

__all__ = ["RunFailed", "infer"]


class RunFailed(ProbgenError, RuntimeError):
    """A run ended badly, and ``throw=True`` asked to raise. ``.tree`` holds what was drawn."""

    def __init__(self, message: str, tree: xarray.DataTree) -> None:
        super().__init__(message)
        self.tree = tree


def infer(
    model: Model,
    method: Method | None = None,
    *,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    seed: int | jax.Array = 0,
    thin: int = 1,
    keep_warmup: bool = False,
    store: str | os.PathLike[str] | None = None,
    devices: Devices | None = None,
    progress: bool | None = None,
    throw: bool = False,
) -> xarray.DataTree:
    """Infer the latent sites of a model.

    Args:
        model: The model, with its data.
        method: What to run, for example ``pg.NUTS()``. ``None`` chooses, and says what and why in ``attrs``.
        draws: Draws per chain.
        warmup: Adaptation steps per chain, not kept.
        chains: Number of chains.
        seed: An int or a typed JAX key; the only source of randomness.
        thin: Keep every ``thin``-th draw (``draws`` counts kept ones).
        keep_warmup: Keep the warm-up as ``warmup_posterior`` and ``warmup_sample_stats``.
        store: A folder ``*.zarr`` in which the run is kept while it goes on. After a crash or Ctrl-C the same call goes
            on where it was, and ends with the same draws, bit for bit; of a run that has ended it returns the result.
            ``pg.load`` reads it at any moment. Results above 256 MiB are read from it as they are used.
        devices: Share the chains (of particle methods: the particles of each run) out over devices: how many, which, or
            a ``jax.sharding.Mesh`` with the axes ``chain`` and ``data`` (rows of the data are split over the latter). ``None``: threads on a CPU, one batch on an
            accelerator. Under ``jax.distributed`` every process makes the same call and gets the whole result.
        progress: Show progress bars. ``None``: at a terminal only.
        throw: Raise ``RunFailed`` when the run does not end well, instead of warning.

    Returns:
        A DataTree with the groups ``posterior`` (constrained space), ``sample_stats``, ``observed_data`` and
        ``constant_data``; ``attrs`` tell the method, backend, settings, seed, versions, seconds, and how the run
        ended.

    Raises:
        ModelError: If the model cannot be inferred as it is.
        MethodError: If the method cannot run this model, its settings make no sense, or no finite start exists.
        StoreError: If the store cannot be used, holds another run, or is damaged.
        RunFailed: With ``throw=True``, if the run did not end well.
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program, data=...)."
        )
    _check_counts(draws=draws, warmup=warmup, chains=chains, thin=thin)
    draws, warmup, chains, thin = int(draws), int(warmup), int(chains), int(thin)
    chosen = method
    if chosen is None:
        with TRACING:
            chosen, reason = choose(model)
    elif isinstance(chosen, type) or not isinstance(chosen, Method):
        shown = chosen.__name__ if isinstance(chosen, type) else repr(chosen)
        raise MethodError(f"method must be a method object, got {shown}. Write for example pg.NUTS().")
    else:
        reason = "given"
    chosen.check()
    key = as_key(seed)
    check_model(model, chosen)
    with TRACING:
        density = chosen.density(model)
    attrs = {
        "method": chosen.name,
        "method_reason": reason,
        "backend": chosen.engine,
        "settings": _settings(chosen),
        "seed": int(seed) if isinstance(seed, numbers.Integral) else str(jax.random.key_data(key).tolist()),
        "draws": draws,
        "warmup": warmup,
        "chains": chains,
        "thin": thin,
        "precision": "64-bit" if jax.config.jax_enable_x64 else "32-bit",
        "device": jax.devices()[0].device_kind,
    }
    parts = chosen.shared_out(chains)
    if devices is not None and parts is None:
        raise MethodError(
            f"devices share out chains or particles, and {type(chosen).__name__} has none. Leave devices out."
        )
    mesh = None if devices is None or parts is None else mesh_of(devices, *parts)
    if store is not None and jax.process_count() > 1:
        raise StoreError(
            f"store={os.fspath(store)!r} would be written by {jax.process_count()} processes at once. Leave store out "
            f"under jax.distributed, and write the result with one of them."
        )
    shown = show_by_default() if progress is None else progress
    plan = Plan(draws, warmup, chains, thin, keep_warmup, shown, mesh)
    if store is None:
        run = chosen.run(key, density, plan)
        with TRACING:
            tree = to_tree(model, density, run, attrs, warmup // thin if keep_warmup else 0)
    else:
        _check_names(model)
        with TRACING:
            identity = _identity(model, chosen, key, density, attrs, plan)
        with Store(store, identity) as kept:
            tree = kept.load() if kept.sealed else _run_stored(kept, model, chosen, key, density, plan, attrs)
    ended = Ended[tree.attrs["ended"]]
    if ended not in (Ended.completed, Ended.interrupted):
        message = f"{ended.value} {tree.attrs.get('chains_report', '')}".strip()
        if throw:
            raise RunFailed(message, tree)
        warnings.warn(message, ProbgenWarning, stacklevel=2)
    return tree


def _check_names(model: Model) -> None:
    """Refuse names that cannot be those of folders before anything is computed."""
    for name in dict.fromkeys(name for site in model.sites for name in (site.name, *site.dims)):
        if not harmless(variable_name(name)):
            raise StoreError(
                f"{name!r} cannot be the name of a folder, and a store keeps each site in a folder of its name. Rename "
                f"the site, plate or axis, or leave store out."
            )


def _run_stored(
    store: Store, model: Model, method: Method, key: PRNGKey, density: Density, plan: Plan, attrs: dict[str, Any]
) -> xarray.DataTree:
    """Begin a run in a store, or go on with it."""

    def describe(run: Run) -> xarray.DataTree:
        with TRACING:
            tree = to_tree(model, density, run, attrs)
        if plan.keep_warmup and plan.warmup >= plan.thin:
            for group in ("posterior", "sample_stats"):
                tree[f"warmup_{group}"] = tree[group].copy()
        return tree

    run = method.run(key, density, dataclasses.replace(plan, store=store, describe=describe))
    if run.stored is None:
        store.write(describe(run))
    else:
        store.commit(run.stored, attributes(attrs, run))
        store.add("sample_stats", run.stats)
    if run.ended is not Ended.interrupted:
        store.seal()
    return store.load()


def _identity(
    model: Model, method: Method, key: PRNGKey, density: Density, attrs: dict[str, Any], plan: Plan
) -> dict[str, str]:
    """What makes a run this run: all that decides on its draws."""
    fields = [field.name for field in dataclasses.fields(method) if field.name != "backend"]
    settings = {f"setting {name!r} of the method": stable(getattr(method, name)) for name in fields}
    counts = {name: attrs[name] for name in ("method", "backend", "draws", "warmup", "chains", "thin", "precision")}
    own = {**fingerprint(model, density), **counts, **settings, "keep_warmup": plan.keep_warmup}
    mesh = plan.mesh
    own |= {"seed": jax.random.key_data(key).tolist(), "platform": jax.default_backend()}
    # Another number of devices is another compiled program, which may round in another way.
    own["devices"] = "default" if mesh is None else f"{mesh.shape[CHAIN]} x {mesh.shape[DATA]}"
    own |= {name.replace("_", " of "): version for name, version in versions().items()}
    return {name: stable(value) for name, value in own.items()}


def check_model(model: Model, method: Method) -> None:
    """Raise unless the method can run the model; named sites, before anything is computed."""
    unfilled = _unfilled(model)
    if unfilled:
        raise DataError(
            f"site {unfilled!r} would be observed through the argument {unfilled!r}, which was not given, so there is "
            f"nothing to infer from. "
            f"Pass data={{{unfilled!r}: ...}}, or use pg.simulate to draw from the prior."
        )
    params = model.of_kind(Kind.param)
    if params and not method.optimises_params:
        raise MethodError(
            f"site {params[0].name!r} is a numpyro.param, which {type(method).__name__} would leave frozen at its "
            f"first value. "
            f"Give it a prior with numpyro.sample, or fit with pg.SVI."
        )
    latent = model.of_kind(Kind.continuous, Kind.discrete)
    if not latent:
        raise ModelError("the model has no latent site, so there is nothing to infer. Leave something unobserved.")
    wanted = next((need for need in (Need.gradient, Need.continuous) if need in method.needs), None)
    if wanted is not None:
        for site in model.of_kind(Kind.discrete):
            if not site.finite:
                raise MethodError(
                    f"site {site.name!r} ({site.distribution}) is discrete with infinite support, which "
                    f"{type(method).__name__} can neither "
                    f"sum out nor sample. Truncate it to a Categorical over 0 ... K, which pg.NUTS() sums out and "
                    f"pg.DiscreteHMCGibbs() samples, or sum it out by hand (a NegativeBinomial for a Gamma-Poisson, "
                    f"say)."
                )
        if not model.of_kind(Kind.continuous):
            raise MethodError(
                f"every latent site is discrete ({latent[0].name!r}), and {type(method).__name__} needs "
                f"{wanted.value}. "
                f"Use pg.Exact(), which sums over all values, or pg.DiscreteHMCGibbs()."
            )
    small = [plate for site in model.sites for plate in site.plates if plate.subsample < plate.size]
    if small and Need.subsampling not in method.needs and not method.takes_minibatches:
        raise MethodError(
            f"plate {small[0].name!r} sees {small[0].subsample} of {small[0].size} rows per execution, and "
            f"{type(method).__name__} needs all of them. "
            f"Drop subsample_size, or use a method for mini-batches (see pg.methods())."
        )
    if not small and Need.subsampling in method.needs:
        raise MethodError(
            f"no plate of the model has subsample_size below its size, and {type(method).__name__} is made for "
            f"{Need.subsampling.value}. Write numpyro.plate(name, N, subsample_size=m), or use pg.NUTS()."
        )
    if Need.prior_draws in method.needs:
        for site in latent:
            if not site.proper:
                raise MethodError(
                    f"site {site.name!r} has an improper prior, and {type(method).__name__} needs "
                    f"{Need.prior_draws.value}. "
                    f"Give it a proper prior."
                )
            if site.weighed and not site.auxiliary and Need.continuous in method.needs:
                raise MethodError(
                    f"the prior of site {site.name!r} is changed by handlers.scale or a mask, and draws from its "
                    f"distribution, which {type(method).__name__} starts from, do not follow that. Put the site outside "
                    f"of the handler."
                )


def _unfilled(model: Model) -> str | None:
    """The name of a latent site that an argument with default ``None`` was meant to observe."""
    try:
        parameters = inspect.signature(model.program).parameters
    except (TypeError, ValueError):
        return None
    settings = dict(model.settings)
    for site in model.of_kind(Kind.continuous, Kind.discrete):
        parameter = parameters.get(site.name)
        if parameter is None or site.name in model.leaves or site.name in model.given:
            continue
        if settings.get(site.name, parameter.default) is None:
            return site.name
    return None


def _check_counts(**counts: Any) -> None:
    least = {"warmup": 0}
    for name, value in counts.items():
        lowest = least.get(name, 1)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < lowest:
            raise MethodError(f"{name} must be an int of at least {lowest}, got {value!r}. Correct {name}.")


def _settings(method: Method) -> dict[str, Any]:
    return {
        k: v if isinstance(v, str | int | float | bool | None) else v.__qualname__ if inspect.isroutine(v) else repr(v)
        for k, v in method.described().items()
        if not eqx.is_array(v)
    }
