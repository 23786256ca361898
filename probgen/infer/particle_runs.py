"""Runs of a Feynman-Kac model on the driver: one per chain, in pieces, with progress, resumable.

Independent runs are chains. A piece is some steps; after it the state of the run and the records of its steps can be
kept in the store. Keys are folded from (seed, chain, step), so a run that went on equals one that never stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from probgen.base.typing import PRNGKey
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.feynman_kac.smc import Result, Settings, State, Steps, advance, begin, log_z_variance
from probgen.infer.method import Plan
from probgen.run.compiled import Executable, compile_all
from probgen.run.devices import CHAIN, DATA, placed
from probgen.run.driver import drive, to_host
from probgen.run.progress import Progress
from probgen.run.record import pack, unpack
from probgen.run.store import Pace, Store

__all__ = ["Runs", "log_mean_exp", "particle_runs"]

_LOOKS = 100
"""Pieces of a run of known length that is watched or kept."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """Finished runs.

    Attributes:
        results: One per chain, arrays of NumPy.
        seconds: Seconds by stage.
    """

    results: list[Result]
    seconds: dict[str, float]

    @property
    def log_z(self) -> np.ndarray:
        """Log evidence of each run, shape ``(chains,)``."""
        return np.array([float(result.log_z) for result in self.results])

    def attributes(self) -> dict[str, Any]:
        """The log evidence of all runs together, its standard error, and the number of particles of each.

        The mean of the runs' (unbiased) evidences. The error is the larger of that which the genealogies tell and that
        which the spread of the runs tells: a run cannot know of a mode that it has not seen.
        """
        log_z, count = self.log_z, len(self.results)
        top = log_mean_exp(log_z)
        within = float(np.mean([float(result.log_z_variance) for result in self.results])) / count
        errors = [math.sqrt(max(0.0, within))] if math.isfinite(within) else []
        if count > 1 and math.isfinite(top):
            errors.append(float(np.exp(log_z - top).std(ddof=1)) / math.sqrt(count))
        se = max(errors, default=math.nan)
        return {"log_evidence": top, "log_evidence_se": se, "particles": len(self.results[0].cloud.log_w)}

    def group(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """The records as variables with the dims ``(chain, step)``; shorter runs end in NaN."""
        records = [self._records(result) for result in self.results]
        length = max(len(record["ess"]) for record in records)

        def padded(values: np.ndarray) -> np.ndarray:
            more = np.full((length - len(values), *values.shape[1:]), np.nan)
            return np.concatenate([values, more])

        variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        for name in records[0]:
            rows = [record[name] for record in records]
            same = all(len(row) == length for row in rows)
            values = np.stack(rows if same else [padded(row.astype(float)) for row in rows])
            more = tuple(f"{name}_dim_{axis}" for axis in range(values.ndim - 2))
            variables[name] = (("chain", "step", *more), values)
        variables["log_evidence_run"] = (("chain",), self.log_z)
        variables["log_evidence_variance"] = (
            ("chain",),
            np.array([float(result.log_z_variance) for result in self.results]),
        )
        return variables

    @staticmethod
    def _records(result: Result) -> dict[str, np.ndarray]:
        first, steps = result.first, result.steps
        columns = {
            "ess": (first.ess, steps.ess),
            "log_evidence": (first.log_z, steps.log_z),
            "resampled": (first.resampled, steps.resampled),
            "unique_ancestors": (first.unique, steps.unique),
        }
        columns |= {name: (first.numbers[name], steps.numbers[name]) for name in first.numbers}
        return {name: np.concatenate([np.asarray(a)[None], np.asarray(b)]) for name, (a, b) in columns.items()}


def log_mean_exp(log_z: np.ndarray) -> float:
    """Log of the mean of what is given as logs; NaN where one is."""
    top = float(np.max(log_z))
    return top if not math.isfinite(top) else top + math.log(float(np.mean(np.exp(log_z - top))))


def start_run(key: PRNGKey, chain: Array, fk: FeynmanKac, settings: Settings) -> tuple[State, Steps]:
    """The first particles of one run."""
    return _laid_out(begin(jax.random.fold_in(key, chain), fk, settings), settings)


def go_on(
    key: PRNGKey, chain: Array, fk: FeynmanKac, settings: Settings, state: State, first: Array, count: int
) -> tuple[State, Steps, Array]:
    """A piece of one run."""
    state, steps, taken = advance(jax.random.fold_in(key, chain), fk, settings, state, first, count)
    return _laid_out(state, settings), steps, taken


def end_run(fk: FeynmanKac, state: State, taken: Array) -> tuple[Array, Array]:
    """Estimated variance of the log evidence, and whether there is nothing more to do."""
    return log_z_variance(state), jnp.asarray(fk.finished(taken, state.context))


def _laid_out(tree: Any, settings: Settings) -> Any:
    """Arrays with one row per particle over the devices, others on all of them; also for shapes."""
    sharding = settings.sharding
    if not isinstance(sharding, NamedSharding):
        return tree
    whole = NamedSharding(sharding.mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if not eqx.is_array(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        own = sharding if leaf.shape[:1] == (settings.particles,) else whole
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own)
        return jax.lax.with_sharding_constraint(leaf, own)

    return jax.tree.map(put, tree)


class _Run:
    """One run at work. Its steps are those of the model; pieces that come after its end do nothing."""

    def __init__(self, chain: int, runs: _Programs, store: Store | None) -> None:
        self.chain, self.runs, self.store = chain, runs, store
        self.name = f"particles-{chain}"
        self.state: Any = None
        self.first: Any = None
        self.taken, self.finished = 0, False
        self.records: list[Any] = []
        self.cuts, self.kept = [0], 0
        self.pace = Pace()
        self._restore()

    def _restore(self) -> None:
        record = self.store.saved(self.name) if self.store is not None else None
        if record is None or self.store is None:
            return
        path = self.store.path_of(self.name)
        self.state, self.first = unpack(self.runs.template, record.arrays, path)
        self.cuts = [int(cut) for cut in record.meta["cuts"]]
        self.taken, self.finished = self.cuts[-1], bool(record.meta["finished"])
        for first, last in itertools.pairwise(self.cuts):
            name = f"{self.name}-{first}"
            piece = self.store.saved(name)
            self.records.append(
                unpack(self.runs.records(last - first), [] if piece is None else piece.arrays, self.store.path_of(name))
            )
        self.kept = len(self.records)

    def save(self) -> None:
        """Keep the state and what it has recorded."""
        if self.store is None or self.state is None:
            return
        with self.pace.saving():
            for first, piece in zip(self.cuts[self.kept :], self.records[self.kept :], strict=False):
                self.store.save(f"{self.name}-{first}", {}, pack(piece))
            meta = {"cuts": self.cuts, "finished": self.finished}
            self.store.save(self.name, meta, pack((self.state, self.first)))
            self.kept = len(self.records)

    def work(self, first: int, last: int) -> dict[str, float]:
        runs, chain = self.runs, np.asarray(self.chain)
        if self.state is None:
            self.state, self.first = runs.start(runs.key, chain, runs.fk, runs.settings)
        if self.finished or last <= self.taken:
            return {}
        call = (runs.key, chain, runs.fk, runs.settings, self.state, np.asarray(self.taken, np.int32), runs.size)
        self.state, steps, taken = runs.go(*call)
        count = int(taken)
        steps = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], steps)
        self.records.append(steps)
        self.taken += count
        self.cuts.append(self.taken)
        _, finished = runs.end(runs.fk, self.state, np.asarray(self.taken, np.int32))
        self.finished = bool(finished)
        if self.pace.due or self.finished:
            self.save()
        if not count:
            return {}
        numbers = {name: values[-1] for name, values in steps.numbers.items() if np.ndim(values[-1]) == 0}
        return {"ess": float(steps.ess[-1]), **{name: float(value) for name, value in numbers.items()}}

    def result(self) -> Result:
        state, runs = self.state, self.runs
        variance, _ = runs.end(runs.fk, state, np.asarray(self.taken, np.int32))
        if self.records:
            steps = jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *self.records)
        else:
            steps = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), runs.records(0))
        result = Result(state.cloud, state.log_z, variance, jnp.asarray(self.taken), self.first, steps)
        return _to_host(result)


def _to_host(tree: Any) -> Any:
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(to_host(arrays), rest)


class _Programs:
    """The compiled programs that all runs share."""

    start: Executable
    go: Executable
    end: Executable

    def __init__(self, key: PRNGKey, fk: FeynmanKac, settings: Settings, size: int) -> None:
        self.key, self.fk, self.settings, self.size = key, fk, settings, size
        number, step = jax.ShapeDtypeStruct((), jnp.result_type(int)), jax.ShapeDtypeStruct((), np.int32)
        programs, self.compiling = compile_all(
            [
                (start_run, (key, number, fk, settings)),
                (go_on, lambda shapes: (key, number, fk, settings, _laid_out(shapes[0][0], settings), step, size)),
                (end_run, lambda shapes: (fk, _laid_out(shapes[0][0], settings), step)),
            ]
        )
        self.start, self.go, self.end = programs

    @property
    def template(self) -> Any:
        """State and first record, as shapes."""
        return self.start.shape

    def records(self, count: int) -> Any:
        """Records of ``count`` steps, as shapes."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), self.go.shape[1])


def particle_runs(
    key: PRNGKey, fk: FeynmanKac, settings: Settings, plan: Plan, *, unit: str = "steps", label: str = "run"
) -> Runs:
    """Run a model once per chain.

    Args:
        key: Randomness; chain ``c`` uses ``fold_in(key, c)``.
        fk: The model. Its arrays are arguments of the compiled programs: new data of the same shape compile nothing.
        settings: How to run it.
        plan: Chains, progress and store are taken from it.
        unit: What a step is called beside the progress bar.
        label: What a run is called.

    Raises:
        KeyboardInterrupt: If it was interrupted; with a store, the same call goes on.
        StoreError: If a record is damaged.
    """
    if plan.mesh is not None:
        spread_out = NamedSharding(plan.mesh, PartitionSpec((CHAIN, DATA)))
        settings = dataclasses.replace(settings, sharding=spread_out)
        key, fk = placed((key, fk), plan.mesh)
    watched = plan.progress or plan.store is not None
    size = fk.steps if not watched else 1 if fk.adaptive else max(1, math.ceil(fk.steps / _LOOKS))
    programs = _Programs(key, fk, settings, max(1, size))
    began = time.perf_counter()
    runs = [_Run(chain, programs, plan.store) for chain in range(plan.chains)]
    bounds = list(itertools.pairwise([*range(0, fk.steps, programs.size), fk.steps])) or [(0, 0)]
    progress = Progress([f"{label} {run.chain}" for run in runs], fk.steps, plan.progress, unit)
    todo = [run for run in runs if not run.finished]
    first = min((run.taken for run in todo), default=0)
    cuts = [cut for cut in bounds if cut[1] > first or cut[1] == 0]
    # Programs that span the devices take turns: side by side, they would wait for one another's parts.
    teams = [todo] if plan.mesh is None else [[run] for run in todo]
    interrupted = False
    try:
        with progress:
            for team in teams if todo else ():
                workers, bars = [run.work for run in team], [run.chain for run in team]
                interrupted = interrupted or drive(workers, cuts, progress, bars, patient=plan.store is not None)
    finally:
        for run in runs:
            run.save()
    if interrupted:
        raise KeyboardInterrupt
    results = [run.result() for run in runs]
    return Runs(results, {"compile": programs.compiling, "sampling": time.perf_counter() - began})
