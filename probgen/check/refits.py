r"""Many data sets from one model, each fitted anew: what calibration and design studies are made of.

.. math:: \theta_i \sim p(\theta), \quad y_i \sim p(y \mid \theta_i), \quad
    \theta_i^{(1)}, \dots, \theta_i^{(L)} \sim \hat p(\theta \mid y_i), \qquad i = 1 \dots N

The observations are leaves of the model, so one compiled program serves all data sets. A kernel method runs as its pure
``draw``: on a CPU from threads, one data set after another in each (side by side, every fit would wait for the deepest
tree of all), on an accelerator as one batch. Any other method runs as it is, one data set at a time, with nothing
compiled twice.

Ranks and intervals want draws that are nearly independent: draws of a chain are thinned, by an amount that a pilot on
the first few data sets finds.
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError, ModelError, ProbgenWarning, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Values
from probgen.check.autocorrelation import autocorrelation_time
from probgen.check.design import Design, Settings, check_settings, simulated, with_observations
from probgen.infer.choose import choose
from probgen.infer.infer import check_model
from probgen.infer.method import KernelMethod, Method, Plan
from probgen.infer.replayed import reported
from probgen.infer.results import labelled
from probgen.program.model import Model
from probgen.program.simulate import halves, memory
from probgen.program.sites import Kind
from probgen.run.compiled import TRACING, compile_all
from probgen.run.driver import batched_by_default, drive
from probgen.run.progress import Progress, show_by_default

if TYPE_CHECKING:
    import xarray

__all__ = ["refit"]

_PILOT = 16
_INDEPENDENT = 1.3
"""Autocorrelation time, in kept draws, at which the pilot is content."""
_MOST_THIN = 512
_MOST_LOOKED_AT = 64
"""Data sets whose draws are looked at for autocorrelation."""
_ENSEMBLE = 16
_SPARE = 10
"""How many times as many draws are asked of a method that is no kernel: weighted ones must be chosen from."""
_BYTES = 1 << 30


class Size(NamedTuple):
    """The size of one fit by a kernel method."""

    draws: int
    warmup: int
    chains: int


class Outcome(NamedTuple):
    """What is kept of one fit: draws and quantities with a leading axis of draws, the quantities of the truth, and
    the number of divergences."""

    values: Values
    quantities: Values
    truth: Values
    diverging: Array


def fit_some(
    keys: Array,
    method: KernelMethod,
    design: Design,
    observed: Values,
    truth: Values,
    thin: Array,
    size: Size,
    names: tuple[str, ...] | None,
    side_by_side: bool,
) -> Outcome:
    """Fit several data sets, one per row of ``keys``, ``observed`` and ``truth``."""

    def one(row: tuple[Array, Values, Values]) -> Outcome:
        key, observed, truth = row
        drawn = method.draw(
            key, design.given(observed), draws=size.draws, warmup=size.warmup, chains=size.chains, thin=thin
        )
        values = {k: x.reshape(-1, *x.shape[2:]) for k, x in drawn.values.items() if _known(truth, k, x)}
        diverging = jnp.sum(drawn.stats.get("diverging", jnp.zeros((), int)), dtype=int)
        return look(design, observed, truth, values, names)._replace(diverging=diverging)

    rows = keys, observed, truth
    return jax.vmap(one)(rows) if side_by_side else jax.lax.map(one, rows)


def _known(truth: Values, name: str, draws: Any) -> bool:
    """Whether the truth of these draws, shape ``(chains, draws, ...)``, is known."""
    return name in truth and truth[name].shape == draws.shape[2:]


def look(design: Design, observed: Values, truth: Values, values: Values, names: tuple[str, ...] | None) -> Outcome:
    """The quantities of the draws of one data set and of the truth; only the sites ``names`` are kept."""
    quantities = jax.vmap(lambda here: design.quantify(observed, here))(values)
    kept = {name: x for name, x in values.items() if names is None or name in names}
    return Outcome(kept, quantities, design.quantify(observed, truth), jnp.zeros((), int))


def refit(
    model: Model, method: Method | None, settings: Settings, *, seed: int | Array, progress: bool | None, caller: str
) -> xarray.DataTree:
    """Draw data sets, fit each, and collect.

    Args:
        model: The model that is fitted.
        method: How; ``None`` chooses.
        settings: How much, and on what.
        seed: An int or a typed JAX key.
        progress: Show a progress bar. ``None``: at a terminal only.
        caller: Who asks, for messages.

    Returns:
        Groups ``truth`` (dims ``dataset, ...``), ``posterior`` (``dataset, draw, ...``), both with the quantities
        beside the sites; ``simulated_data``; and ``fits`` (``finite``, ``divergences`` by data set). ``attrs`` name
        the quantities, the latent sites, the method and the thinning.

    Raises:
        ModelError, DataError, MethodError: See ``pg.check.sbc``.
    """
    check_settings(model, method, settings, caller)
    key_data, key_fit, key_pilot = jax.random.split(as_key(seed), 3)
    truth, observed = simulated(model, settings, key_data, caller)
    _check_sites(model, settings, truth)
    fitted, sources = with_observations(model, settings, observed)
    if method is None:
        with TRACING:
            method, _ = choose(fitted)
    method.check()
    check_model(fitted, method)
    with TRACING:
        density = method.density(fitted)
    latent = [site.name for site in fitted.of_kind(Kind.continuous, Kind.discrete)]
    complete = all(halves(fitted).get(name, name) in truth for name in latent)
    quantities = tuple((settings.quantities or {}).items())
    data = {s.stem: jnp.asarray(observed[s.stem], s.leaf(fitted).dtype) for s in sources}
    design = Design(density, sources, quantities, settings.log_probs and complete)
    fits = _Fits(method, design, data, {k: jnp.asarray(v) for k, v in truth.items()}, settings, progress)
    # The draws of a decaying schedule have weights, which only a whole run knows.
    pure = isinstance(method, KernelMethod) and not getattr(method, "decay", 0)
    outcome, thin = fits.by_kernel(key_fit, key_pilot) if pure else (fits.by_run(key_fit), 1)
    return _collected(fitted, method, settings, outcome, fits, thin, seed)


def _check_sites(model: Model, settings: Settings, truth: Mapping[str, Any]) -> None:
    known = [name for name in reported(model) if name in truth]
    for name in settings.sites or ():
        if name not in known:
            raise ModelError(f"sites names {name!r}, which is not drawn from the prior. {suggestion(name, known)}")


# -- the fits ----------------------------------------------------------------------------------------------------------


class _Fits:
    """The fits of all data sets, by one way or the other."""

    def __init__(
        self, method: Method, design: Design, observed: Values, truth: Values, settings: Settings, progress: bool | None
    ) -> None:
        self.method, self.design, self.observed, self.truth = method, design, observed, truth
        self.settings = settings
        self.names = None if settings.sites is None else tuple(settings.sites)
        self.shown = show_by_default() if progress is None else progress
        self.failures: list[str] = []
        self.chains = 1
        self.serial = False
        """Whether the draws are chains, in order."""

    def by_kernel(self, key: PRNGKey, key_pilot: PRNGKey) -> tuple[Outcome, int]:
        """All fits by a kernel method, and the thinning."""
        method, settings = self.method, self.settings
        assert isinstance(method, KernelMethod)
        ensemble = method.kernel(settings.warmup).ensemble
        self.serial = True
        self.chains = settings.chains or (_ENSEMBLE if ensemble else 1)
        size = Size(-(-settings.draws // self.chains), settings.warmup, self.chains)
        thin = settings.thin or 1
        if settings.thin is None:
            thin = self._pilot(key_pilot, size)
        return self._run(key, size, thin, settings.datasets, self.shown), thin

    def _pilot(self, key: PRNGKey, size: Size) -> int:
        """The thinning with which draws are nearly independent, on the first data sets."""
        thin, count = 1, min(_PILOT, self.settings.datasets)
        while thin < _MOST_THIN:
            tau = self.autocorrelation(self._run(jax.random.fold_in(key, thin), size, thin, count, False))
            if tau <= _INDEPENDENT:
                break
            thin = min(_MOST_THIN, math.ceil(thin * tau))
        return thin

    def autocorrelation(self, outcome: Outcome) -> float:
        """Largest autocorrelation time of any quantity, over the data sets whose draws are finite."""
        rows = _finite(outcome)[:_MOST_LOOKED_AT]
        if not rows.size:
            raise self.hopeless()
        flat = [np.asarray(x)[rows] for x in (*outcome.values.values(), *outcome.quantities.values())]
        columns = np.concatenate([x.reshape(*x.shape[:2], -1).astype(float) for x in flat], -1)
        return autocorrelation_time(columns.reshape(len(rows), self.chains, -1, columns.shape[-1]))

    def hopeless(self) -> MethodError:
        """The error when no fit is of any use."""
        why = f" ({self.failures[0]})" if self.failures else ""
        return MethodError(
            f"no fit of {type(self.method).__name__} to simulated data came out finite{why}. Fit one data set with "
            f"pg.infer and look at how that ends."
        )

    def _run(self, key: PRNGKey, size: Size, thin: int, count: int, shown: bool) -> Outcome:
        side_by_side = batched_by_default()
        lanes = 1 if side_by_side else max(1, min(os.cpu_count() or 1, count))
        each = size.draws * size.chains * memory(self.design.density.model)
        # The same for pilot and study, so that one program serves both; small enough that a bar moves.
        room = max(1, _BYTES // each)
        chunk = min(room, self.settings.datasets if side_by_side else max(1, min(16, self.settings.datasets // 16)))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        steps = jnp.asarray(thin)  # here, since the precision may be that of this thread alone

        def arguments(first: int) -> tuple[Any, ...]:
            # The last chunk is filled up with copies of the last data set, which are dropped.
            rows = np.minimum(np.arange(first, first + chunk), count - 1)
            observed, truth = ({k: v[rows] for k, v in part.items()} for part in (self.observed, self.truth))
            return (
                keys[rows],
                self.method,
                self.design,
                observed,
                truth,
                steps,
                size,
                self.names,
                side_by_side,
            )

        (program,), _ = compile_all([(fit_some, arguments(0))])
        starts = list(range(0, count, chunk))
        parts: list[Any] = [None] * len(starts)
        bar, lock, done = Progress(["data sets"], count, shown, "fits"), threading.Lock(), [0]

        def lane(offset: int) -> Callable[[int, int], dict[str, float]]:
            def work(first: int, last: int) -> dict[str, float]:
                index = first * lanes + offset
                if index < len(starts):
                    parts[index] = jax.device_get(program(*arguments(starts[index])))
                    with lock:
                        done[0] = min(count, done[0] + chunk)
                        bar.update(0, done[0], {})
                return {}

            return work

        rounds = [(i, i + 1) for i in range(-(-len(starts) // lanes))]
        with bar:
            silent = Progress(["fits"] * lanes, len(rounds), False)
            if drive([lane(offset) for offset in range(lanes)], rounds, silent):
                raise KeyboardInterrupt
        return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)

    def by_run(self, key: PRNGKey) -> Outcome:
        """All fits by the method's own run, one after another."""
        settings, method = self.settings, self.method
        plan = Plan(settings.draws * _SPARE, settings.warmup, 1, 1)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, settings.datasets))))
        outcomes: list[Outcome] = []
        rows: list[int] = []
        with Progress(["data sets"], settings.datasets, self.shown, "fits") as bar:
            for i in range(settings.datasets):
                observed, truth = ({k: v[i] for k, v in part.items()} for part in (self.observed, self.truth))
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ProbgenWarning)  # the ranks will tell
                        run = method.run(jax.random.fold_in(key, i), self.design.given(observed), plan)
                except MethodError as error:
                    self.failures.append(str(error))
                    if not outcomes and len(self.failures) >= min(5, settings.datasets):
                        raise
                    bar.update(0, i + 1, {})
                    continue
                flat = {k: np.reshape(x, (-1, *x.shape[2:])) for k, x in run.values.items() if _known(truth, k, x)}
                log_w = run.stats.get("log_weight") if settings.weighted else None
                chosen = _chosen(rng, next(iter(flat.values())).shape[0], settings.draws, log_w, method)
                values = {name: jnp.asarray(x[chosen]) for name, x in flat.items()}
                call = self.design, observed, truth, values, self.names
                (program,), _ = compile_all([(look, call)])
                outcomes.append(jax.device_get(program(*call)))
                rows.append(i)
                bar.update(0, i + 1, {})
        return self._filled(outcomes, rows)

    def _filled(self, outcomes: list[Outcome], rows: list[int]) -> Outcome:
        """All outcomes, NaN where a fit failed."""

        def stacked(*xs: Any) -> np.ndarray:
            array = np.stack(xs)
            if len(rows) == self.settings.datasets:
                return array
            out = np.full((self.settings.datasets, *array.shape[1:]), np.nan)
            out[rows] = array
            return out

        return jax.tree.map(stacked, *outcomes)


def _chosen(
    rng: np.random.Generator, available: int, wanted: int, log_weight: np.ndarray | None, method: Method
) -> np.ndarray:
    """Which draws are kept: by weight where there are weights, else evenly spaced."""
    if available < wanted:
        raise MethodError(
            f"{type(method).__name__} gives {available} draws per data set, fewer than draws={wanted}. "
            f"Ask for {available} at most, or change the settings of the method."
        )
    if log_weight is None or np.ptp(log_weight) < 1e-12:
        return np.linspace(0, available - 1, wanted).astype(int)
    weights = np.exp(log_weight.reshape(-1) - log_weight.max())
    if not np.isfinite(weights).all():
        return np.arange(wanted)  # the draws are as broken as the weights, and are found so
    return rng.choice(available, wanted, p=weights / weights.sum())


def _finite(outcome: Outcome) -> np.ndarray:
    """The data sets whose draws are finite throughout."""
    checks = [np.isfinite(np.asarray(x, float).reshape(len(x), -1)).all(1) for x in outcome.values.values()]
    return np.flatnonzero(np.logical_and.reduce(checks)) if checks else np.arange(len(outcome.diverging))


# -- the result --------------------------------------------------------------------------------------------------------


def _collected(
    model: Model, method: Method, settings: Settings, outcome: Outcome, fits: _Fits, thin: int, seed: int | Array
) -> xarray.DataTree:
    import xarray

    count = settings.datasets
    finite = np.zeros(count, bool)
    finite[_finite(outcome)] = True
    if not finite.any():
        raise fits.hopeless()
    names = [name for name in reported(model) if name in outcome.values]

    def group(values: Mapping[str, Any], *, draws: bool) -> xarray.Dataset:
        arrays = {name: np.asarray(x) if draws else np.asarray(x)[:, None] for name, x in values.items()}
        dataset = labelled(model, arrays).rename(chain="dataset")
        dataset = dataset if draws else dataset.isel(draw=0)
        return dataset.assign_coords(dataset=np.arange(count))

    truth = {name: fits.truth[name] for name in names} | outcome.truth
    posterior = {name: outcome.values[name] for name in names} | outcome.quantities
    fitted = {"finite": ("dataset", finite), "divergences": ("dataset", np.nan_to_num(outcome.diverging).astype(int))}
    tree = xarray.DataTree.from_dict(
        {
            "truth": group(truth, draws=False),
            "posterior": group(posterior, draws=True),
            "simulated_data": group(fits.observed, draws=False),
            "fits": xarray.Dataset(fitted, {"dataset": np.arange(count)}),
        }
    )
    latent = [name for name in names if name in {s.name for s in model.of_kind(Kind.continuous, Kind.discrete)}]
    tree.attrs.update(
        method=method.name,
        backend=method.engine,
        thin=thin,
        chains=fits.chains,
        warmup=settings.warmup,
        latent=json.dumps(latent),
        quantities=json.dumps(list(outcome.quantities)),
        seed=int(seed) if isinstance(seed, int | np.integer) else str(jax.random.key_data(seed).tolist()),
    )
    if fits.serial:
        tree.attrs["autocorrelation_time"] = fits.autocorrelation(outcome)
    if fits.failures:
        tree.attrs["first_failure"] = fits.failures[0]
    return tree
