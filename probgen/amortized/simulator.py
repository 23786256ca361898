"""Simulators that are not JAX: the program is the prior, and a Python function draws the observations.

The function takes the values of the sites of one draw from the prior and a NumPy generator of its own, and returns arrays
by name. It runs in this process, in a pool of processes, or wherever an executor carries it (a Dask client is one). The
seed of a simulation follows from the seed of the call and its index, so the result is the same however it was spread.
What raises an exception, returns other shapes than the first simulation that succeeded, or is not finite has failed: it
is counted and left out. The posterior is then one given that a simulation succeeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from probgen.amortized.simulations import Points, Simulations, finite_only
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Values
from probgen.program.density import Density
from probgen.program.fingerprint import fingerprint, stable
from probgen.program.implicit_density import ImplicitDensity
from probgen.run.compiled import TRACING, compile_all
from probgen.run.progress import Progress
from probgen.run.store import Pace, Store

__all__ = ["Executor", "Simulator", "run_simulator"]

_BLOCK = 1024
"""Simulations that are submitted at once, and kept in one record."""
_TASK = 64
"""Most simulations per task."""
_HOPELESS = 100
"""Failures without a single success after which no more are tried."""
_QUOTED = 300

type Simulator = Callable[[dict[str, np.ndarray], np.random.Generator], Mapping[str, ArrayLike]]
"""One simulation: values of the sites by name and a source of randomness, to observations by name."""

type Outputs = dict[str, np.ndarray]


class Executor(Protocol):
    """What carries tasks elsewhere: ``concurrent.futures.Executor``, ``dask.distributed.Client``."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Begin ``fn(*args)``; the answer's ``result()`` waits for its value."""


def check_simulator(simulator: Simulator, workers: int | Executor) -> None:
    """Refuse what cannot be run.

    Raises:
        MethodError: If the simulator is no function, the workers are none, or it cannot be sent to them.
    """
    if not callable(simulator):
        raise MethodError(
            f"simulator must be a function of the sites and a numpy Generator, got {simulator!r}. Write def f(sites, rng)."
        )
    if not isinstance(workers, int) or isinstance(workers, bool):
        if not callable(getattr(workers, "submit", None)):
            raise MethodError(
                f"workers must be an int of at least 1 or an executor with submit (a Dask client), got {workers!r}."
                f" Write workers=4, say."
            )
        return
    if not is_count(workers):
        raise MethodError(
            f"workers must be an int of at least 1 or an executor, got {workers!r}. Write workers=4, say."
        )
    if workers == 1:
        return
    name = getattr(simulator, "__qualname__", type(simulator).__name__)
    advice = "Define it at the top level of a module that can be imported, or write workers=1."
    try:
        pickle.dumps(simulator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise MethodError(f"the simulator {name} cannot be sent to other processes ({error}). {advice}") from error
    main = sys.modules["__main__"]
    if getattr(simulator, "__module__", "") == "__main__" and not hasattr(main, "__file__"):
        raise MethodError(
            f"the simulator {name} was defined in a notebook or at a prompt, where other processes do not find it. {advice}"
        )


def run_simulator(
    key: PRNGKey,
    density: Density,
    count: int,
    simulator: Simulator,
    workers: int | Executor = 1,
    *,
    points: Points | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Simulations:
    """Draw ``count`` times from a prior, and run a simulator at each draw.

    Args:
        key: The only source of randomness, unless the simulator has others.
        density: Of the program that is the prior.
        count: How many simulations are tried.
        simulator: See ``Simulator``.
        workers: How many processes (1: this one), or an executor.
        points: Where to run it in place of draws from the prior, ``count`` of them.
        store: A folder ``*.zarr`` in which simulations are kept as they are made: after a crash the same call goes on,
            and a call with a larger ``count`` adds to them.
        progress: Show a progress bar.

    Raises:
        DataError: If fewer than one in ten succeed, or all observations are equal.
        StoreError: If the store holds the simulations of another call.
    """
    key_prior, key_data = jax.random.split(key)
    entropy = tuple(int(word) for word in np.asarray(jax.random.key_data(key_data)).reshape(-1))
    found = _Found(frozenset(site.name for site in density.model.sites))
    with (
        _kept(store, key, density, simulator, points) as kept,
        _submitting(workers) as submit,
        Progress(["simulations"], count, progress, "simulations") as bar,
    ):
        for first in range(0, count, _BLOCK):
            last = min(first + _BLOCK, count)
            # A block is always drawn whole, so that its draws do not depend on how many are wanted.
            indices = np.arange(first, first + _BLOCK)
            here = None if points is None else points.u[indices % count]
            call = (key_prior, density, jnp.asarray(indices), here)
            (program,), _ = compile_all([(_draws, call)])
            u, sites = jax.device_get(program(*call))
            found.u.append(np.asarray(u)[: last - first])
            found.restore(kept, first, last)
            size = _task_size(workers, last - len(found.rows))
            tasks = []
            for begin in range(len(found.rows), last, size):
                rows = slice(begin - first, min(begin + size, last) - first)
                tasks.append(submit(_run, simulator, entropy, begin, {k: v[rows] for k, v in sites.items()}))
            pace = Pace()
            for task in tasks:
                found.add(_result(task))
                bar.update(0, len(found.rows), {"failed": found.failed})
                found.check_hope()
                if kept is not None and (pace.due or len(found.rows) == last):
                    with pace.saving():
                        found.save(kept, first)
    return found.simulations(density.names)


def _draws(key: PRNGKey, density: Density, indices: Array, points: Array | None) -> tuple[Array, Values]:
    def one(index: Array, point: Array | None) -> tuple[Array, Values]:
        key_prior, key_values = jax.random.split(jax.random.fold_in(key, index))
        u = density.draw_prior(key_prior) if point is None else point
        return u, density.values(key_values, u)

    return jax.vmap(one)(indices, points)


# -- in the workers ----------------------------------------------------------------------------------------------------


def _run(simulator: Simulator, entropy: tuple[int, ...], first: int, sites: Outputs) -> list[Outputs | str]:
    """Observations of some simulations in order, or in words what went wrong."""
    found: list[Outputs | str] = []
    for i in range(len(next(iter(sites.values())))):
        rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(first + i,)))
        try:
            found.append(_converted(simulator({name: np.array(v[i]) for name, v in sites.items()}, rng)))
        except Exception as error:  # whatever a simulator may raise
            found.append(f"{type(error).__name__}: {error}"[:_QUOTED])
    return found


def _converted(outputs: Any) -> Outputs:
    if not isinstance(outputs, Mapping) or not outputs or not all(isinstance(name, str) for name in outputs):
        raise TypeError(f"the simulator returned {type(outputs).__name__}, expected a dict of arrays by name")
    return {name: np.asarray(value, float) for name, value in outputs.items()}


# -- where the workers are ---------------------------------------------------------------------------------------------


class _Here:
    """A task that is done when it is asked for, in this process."""

    def __init__(self, fn: Callable[..., Any], *args: Any) -> None:
        self.fn, self.args = fn, args

    def result(self) -> Any:
        return self.fn(*self.args)


@contextlib.contextmanager
def _submitting(workers: int | Executor) -> Iterator[Callable[..., Any]]:
    if not isinstance(workers, int):
        yield workers.submit
    elif workers == 1:
        yield _Here
    else:
        # Processes are started afresh: a copy of one in which JAX has threads may hang.
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            yield pool.submit
        finally:
            pool.shutdown(cancel_futures=True)


def _task_size(workers: int | Executor, count: int) -> int:
    return int(np.clip(count // (8 * (workers if isinstance(workers, int) else 16)), 1, _TASK))


def _result(task: Any) -> list[Outputs | str]:
    try:
        return task.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died while it simulated: the system ended it (memory), compiled code crashed, or the script "
            "has no line `if __name__ == '__main__':` before it begins to work. Try workers=1, which shows the cause."
        ) from error


@contextlib.contextmanager
def _kept(
    store: str | os.PathLike[str] | None,
    key: PRNGKey,
    density: Density,
    simulator: Simulator,
    points: Points | None,
) -> Iterator[Store | None]:
    if store is None:
        yield None
        return
    if isinstance(density, ImplicitDensity):
        raise MethodError(
            "the prior calls numpyro.prng_key(), so a store could not tell whether it is the same program. Leave store out, "
            "or write what it draws as numpyro.sample sites."
        )
    with TRACING:
        program = fingerprint(density.model, density)
    identity = {
        **program,
        "simulator": stable(simulator),
        "seed": str(jax.random.key_data(key).tolist()),
        "precision": "64-bit" if jax.config.jax_enable_x64 else "32-bit",
    }
    if points is not None:
        identity["points"] = stable(points.u)
    with Store(store, identity) as kept:
        yield kept


# -- what they found ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Found:
    """Simulations so far, in the order of their indices.

    Attributes:
        taken: Names of the sites of the program, which no observation may have.
        u: Parameters, by block.
        rows: By simulation, its observations; ``None`` if it failed.
        shapes: Those of the first that succeeded.
        first_error: What went wrong first, in words.
        failed: How many went wrong.
    """

    taken: frozenset[str]
    u: list[np.ndarray] = dataclasses.field(default_factory=list)
    rows: list[Outputs | None] = dataclasses.field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] | None = None
    first_error: str = ""
    failed: int = 0

    def add(self, outcomes: list[Outputs | str]) -> None:
        """Take what was found, in the order of the simulations."""
        for outcome in outcomes:
            trouble = outcome if isinstance(outcome, str) else self._trouble(outcome)
            if trouble or isinstance(outcome, str):
                self.first_error = self.first_error or trouble
                self.failed += 1
                self.rows.append(None)
            else:
                self.rows.append(outcome)

    def _trouble(self, outputs: Outputs) -> str:
        """What is wrong with observations, in words; nothing if empty."""
        shapes = {name: value.shape for name, value in outputs.items()}
        if self.shapes is None:
            self._check_names(shapes)
            self.shapes = shapes
        if shapes != self.shapes:
            return f"it returned the shapes {shapes}, and {self.shapes} before"
        bad = [name for name, value in outputs.items() if not np.isfinite(value).all()]
        return f"it returned {bad[0]!r} with values that are not finite" if bad else ""

    def _check_names(self, names: Iterable[str]) -> None:
        both = self.taken.intersection(names)
        if both:
            raise MethodError(
                f"the simulator returned {min(both)!r}, which is a site of the prior and will not be observed. Return "
                f"observations alone, by other names."
            )

    def check_hope(self) -> None:
        """Give up where nothing succeeds."""
        if self.failed >= _HOPELESS and self.failed == len(self.rows):
            raise self._hopeless()

    def _hopeless(self) -> DataError:
        return DataError(
            f"{self.failed} of {len(self.rows)} simulations failed; the first time: {self.first_error}. Mend the simulator, "
            f"or narrow the priors to where it works."
        )

    def simulations(self, names: tuple[str, ...]) -> Simulations:
        """Those that succeeded."""
        good = np.array([row is not None for row in self.rows])
        if good.sum() < max(0.1 * len(good), 2):
            raise self._hopeless()
        observed = {name: np.stack([row[name] for row in self.rows if row is not None]) for name in self.shapes or ()}
        return finite_only(Simulations(np.concatenate(self.u)[good], observed, {}, names, self.failed))

    def save(self, kept: Store, first: int) -> None:
        """Keep the block that begins at ``first``, as far as it goes."""
        rows, shapes = self.rows[first:], self.shapes or {}
        arrays = [np.stack([np.full(s, np.nan) if row is None else row[n] for row in rows]) for n, s in shapes.items()]
        good = np.array([row is not None for row in rows])
        meta = {"outputs": list(shapes), "first_error": self.first_error}
        kept.save(f"simulations_{first}", meta, [self.u[-1][: len(rows)], good, *arrays])

    def restore(self, kept: Store | None, first: int, last: int) -> None:
        """Take what was kept of a block."""
        record = None if kept is None else kept.saved(f"simulations_{first}")
        if record is None:
            return
        u, good, *arrays = record.arrays
        number = min(len(u), last - first)
        self.u[-1] = np.concatenate([u[:number], self.u[-1][number:]])
        error = record.meta["first_error"]
        for i in range(number):
            self.add([dict(zip(record.meta["outputs"], (a[i] for a in arrays), strict=True)) if good[i] else error])
