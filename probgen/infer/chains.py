"""Chains at work: the compiled programs of a run, where its draws go, and the jobs that take the steps.

A job is one chain, or all of them where they are one batch or an ensemble. What a job has done is one value that is
replaced at once, after its draws have been put away: an interruption at any moment leaves it consistent.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from probgen.base.errors import Ended
from probgen.base.typing import PRNGKey
from probgen.infer.method import Plan, Run
from probgen.kernels.kernel import Kernel
from probgen.kernels.loop import advance, begin
from probgen.program.density import Density
from probgen.program.sites import variable_name
from probgen.run.archive import Growing
from probgen.run.compiled import TRACING, Executable, compile_all
from probgen.run.devices import CHAIN, gathered, placed, spread_rows
from probgen.run.draws import Draws, InMemory
from probgen.run.driver import batched_by_default, pieces
from probgen.run.record import pack, unpack
from probgen.run.store import Pace, Store

__all__ = ["RESTART", "SCOUT", "Job", "Programs", "Sink"]

_SHOWN_PIECES = 20
_STORED_PIECES = 50
RESTART = 1_000_003
"""Offset of the key of a chain that is started again."""
_PIECE_BYTES = 16 * 2**20
SCOUT = 100
"""Warm-up steps after which the chains' log densities are compared."""
COMPARED = 4096
"""At least so many draws per chain, if there are as many, are kept aside in unconstrained coordinates."""


def begin_batch(keys: Array, kernel: Kernel, density: Density, chains: int, given: Array) -> Any:
    """``begin`` for chains that are one batch."""
    return jax.vmap(lambda key, one: begin(key, kernel, density, chains, one))(keys, given)


def advance_batch(keys: Array, kernel: Kernel, density: Density, state: Any, *steps: Any) -> Any:
    """``advance`` for chains that are one batch."""
    return jax.vmap(lambda key, one: advance(key, kernel, density, one, *steps))(keys, state)


def begin_sharded(mesh: Mesh, count: Array, keys: Array, kernel: Kernel, density: Density, given: Array) -> Any:
    """``begin`` for chains that are shared out over devices, ``count`` for each."""

    def local(keys: Array, given: Array, density: Density, count: Array) -> Any:
        return _each(lambda key, one: begin(key, kernel, density, 1, one), mesh, count, keys, given)

    return _over_chains(local, mesh, 2, 2)(keys, given, density, count)


def advance_sharded(
    mesh: Mesh, count: Array, keys: Array, kernel: Kernel, density: Density, state: Any, *steps: Any
) -> Any:
    """``advance`` for chains that are shared out over devices, ``count`` for each."""
    first, last, record, size, thin = steps
    arrays, static = eqx.partition(state, eqx.is_array)

    def local(
        keys: Array, arrays: Any, density: Density, count: Array, first: Array, last: Array, record: Array
    ) -> Any:
        def one(key: Array, arrays: Any) -> Any:
            return advance(key, kernel, density, eqx.combine(arrays, static), first, last, record, size, thin)

        return _each(one, mesh, count, keys, arrays)

    return _over_chains(local, mesh, 2, 5)(keys, arrays, density, count, first, last, record)


def _over_chains(local: Callable[..., Any], mesh: Mesh, split: int, whole: int) -> Callable[..., Any]:
    """A function of the chains of one device, for all devices: its first arguments are split, the others are not."""
    specs = (*[P(CHAIN)] * split, *[P()] * whole)
    # Where data are split as well, that axis is left to the compiler.
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(CHAIN), axis_names={CHAIN}, check_vma=False)


def _each(function: Callable[..., Any], mesh: Mesh, count: Array, *batched: Any) -> Any:
    """A function of one chain for the ``count`` chains of a device.

    On a CPU they follow one another in a loop whose length the compiler does not know: what it makes of one chain, and
    so every bit of its draws, is the same for any number of devices and processes above one, as long as each has more
    than one chain: the compiler sees through a loop over one.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return jax.vmap(function)(*batched)

    def at(index: Array) -> Any:
        return function(*jax.tree.map(lambda x: x[index], batched))

    blank = jax.tree.map(
        lambda x: jnp.zeros((len(batched[0]), *x.shape), x.dtype), eqx.filter_eval_shape(at, jnp.zeros((), int))
    )
    return jax.lax.fori_loop(
        0, count, lambda i, kept: jax.tree.map(lambda k, new: k.at[i].set(new), kept, at(i)), blank
    )


class Programs:
    """The compiled programs of one run, and how it is cut into pieces."""

    def __init__(self, key: PRNGKey, kernel: Kernel, density: Density, plan: Plan) -> None:
        self.kernel, self.density, self.plan, self.mesh = kernel, density, plan, plan.mesh
        if self.mesh is not None:
            self.density = spread_rows(density, self.mesh)
        self.batched = (self.mesh is not None or batched_by_default()) and not kernel.ensemble
        self.shared = self.mesh is not None and self.batched
        """Whether each device runs chains of its own."""
        self.together = self.batched or kernel.ensemble
        """Whether one job holds all chains."""
        self.total = plan.warmup + plan.draws * plan.thin
        # A warm-up that is kept is thinned too. The steps that fill no draw come first, so that its end is a cut.
        spare = plan.warmup % plan.thin
        self.record = spare if plan.keep_warmup else plan.warmup
        self.kept = (self.total - self.record) // plan.thin
        self.skip = self.kept - plan.draws
        """Draws that belong to the warm-up."""
        self.size = self._size()
        scout = min(SCOUT, plan.warmup // 4) // plan.thin * plan.thin
        self.scouting, self.pieces = self._cut(spare + scout if scout else 0)
        self.begin, self.advance, self.compile_seconds = self._compile(key)

    def _size(self) -> int:
        """Draws per piece. A store fixes it, whether progress is shown or not: it is compiled in."""
        if self.plan.store is None:
            return -(-self.kept // _SHOWN_PIECES) if self.plan.progress else self.kept
        with TRACING:
            values = jax.eval_shape(self.density.constrain, jnp.zeros(self.density.dim))
        width = sum(math.prod(x.shape) * x.dtype.itemsize for x in values.values()) + 8 * self.density.dim
        width *= self.plan.chains if self.together else 1
        return max(1, min(-(-self.kept // _STORED_PIECES), _PIECE_BYTES // max(width, 1)))

    def _cut(self, scout: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The pieces before the chains are compared for the first time, after ``scout`` steps, and those after."""
        plan, size = self.plan, self.size * self.plan.thin
        if not plan.progress and plan.store is None:
            return [(0, scout)] if scout else [], [(scout, self.total)]
        # No buffer limits a warm-up that is not kept.
        shown = _SHOWN_PIECES if plan.store is None else _STORED_PIECES
        coarse = size if plan.keep_warmup else max(size, -(-plan.warmup // shown))
        rest = pieces(scout, plan.warmup, coarse) + pieces(plan.warmup, self.total, size)
        return pieces(0, scout, coarse), rest

    def _compile(self, key: PRNGKey) -> tuple[Executable, Executable, float]:
        index = jnp.zeros((), int)
        keys = self.over_chains(jnp.stack([key] * self.plan.chains) if self.batched else key)
        start, begun = self._start(keys, self.anywhere())

        def gone(shapes: list[Any]) -> tuple[Any, ...]:
            return self._go(keys, self.over_chains(shapes[0][0]), index, index, index)[1]

        (start_program, go_program), seconds = compile_all([(start, begun), (self._go(keys, None)[0], gone)])
        return start_program, go_program, seconds

    def _start(self, keys: Array, given: Array) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.shared:
            return begin_sharded, (self.mesh, self._count(), keys, self.kernel, self.density, given)
        return begin_batch if self.batched else begin, (keys, self.kernel, self.density, self.plan.chains, given)

    def _go(self, keys: Array, state: Any, *steps: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        rest = (keys, self.kernel, self.density, state, *steps, self.size, self.plan.thin)
        if self.shared:
            return advance_sharded, (self.mesh, self._count(), *rest)
        return advance_batch if self.batched else advance, rest

    def _count(self) -> np.ndarray:
        assert self.mesh is not None
        return _int(self.plan.chains // self.mesh.shape[CHAIN])

    def start(self, keys: Array, given: Array) -> tuple[Any, Any]:
        """States at starting points, and whether these are finite."""
        state, found = self.begin(*self._start(self.over_chains(keys), self.over_chains(given))[1])
        return self.over_chains(state), found

    def go(self, keys: Array, state: Any, first: int, last: int) -> tuple[Any, Any]:
        """States after those steps, and what was drawn."""
        steps = _int(first), _int(last), _int(self.record)
        state, drawn = self.advance(*self._go(self.over_chains(keys), state, *steps)[1])
        return self.over_chains(state), drawn

    def over_chains(self, tree: Any) -> Any:
        """Arrays with a leading axis of chains, where these are; other arrays on every device."""
        mesh, chains = self.mesh, self.plan.chains
        if mesh is None:
            return tree

        def put(leaf: Any) -> Any:
            return placed(leaf, mesh, *([CHAIN] if jnp.ndim(leaf) and leaf.shape[0] == chains else []))

        return jax.tree.map(lambda leaf: put(leaf) if hasattr(leaf, "shape") else leaf, tree)

    def anywhere(self) -> Array:
        """Starting points of one job, to be found."""
        shape = (self.plan.chains, self.density.dim) if self.together else (self.density.dim,)
        return self.over_chains(jnp.full(shape, jnp.nan, float))

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of one draw of one chain, by ``group/name``."""
        drawn = self.advance.shape[1]
        leading = 2 if self.together else 1
        named = {f"posterior/{variable_name(k)}": v for k, v in drawn.values.items()}
        named |= {f"sample_stats/{k}": v for k, v in drawn.stats.items()}
        return {name: (tuple(v.shape[leading:]), np.dtype(v.dtype)) for name, v in named.items()}

    def slots(self, step: int) -> int:
        """Draws that are kept of the first ``step`` steps."""
        return max(0, -(-(step - self.record) // self.plan.thin))


def _int(number: int) -> np.ndarray:
    return np.asarray(number, jax.dtypes.canonicalize_dtype(int))


class Sink:
    """Where the draws of a run go: all of them as they are reported, and some in unconstrained coordinates.

    Args:
        programs: The programs that make them.
        chains: How many chains.
        again: Whether the chains are started again beside a run that stays as it is.
    """

    def __init__(self, programs: Programs, chains: int, *, again: bool = False) -> None:
        self.programs, self.chains, self.again = programs, chains, again
        self.stride = max(1, programs.plan.draws // COMPARED)
        self.store: Store | None = programs.plan.store
        self.saved = np.zeros(chains, int)
        """Draws of each chain that are safe."""
        self._lock = threading.Lock()
        self._shown = 0
        looks = -(-programs.plan.draws // self.stride)
        dim = programs.density.dim
        if self.store is None:
            full = {name: ((chains, programs.kept, *shape), dtype) for name, (shape, dtype) in programs.shapes.items()}
            self._draws: Draws = InMemory(full)
            self._looks: Draws = InMemory({"u": ((chains, looks, dim), np.dtype(float))})
            return
        chunk = max(1, min(looks, programs.size // self.stride))
        u = Growing(f"{'again-' * again}u", ("chain", "draw", "dim"), (chains, looks, dim), chunk, np.dtype(float))
        self._looks = self.store.hidden({"u": u})
        self._draws = self._hidden() if again else self.store.begin(self._blank(), self._counts(programs.kept))

    def _hidden(self) -> Draws:
        assert self.store is not None
        arrays = {}
        for name, (shape, dtype) in self.programs.shapes.items():
            full = (self.chains, self.programs.kept, *shape)
            dims = ("chain", "draw", *(f"dim_{axis}" for axis in range(len(shape))))
            arrays[name] = Growing(f"again/{name}", dims, full, self.programs.size, dtype)
        return self.store.hidden(arrays)

    def _blank(self) -> Any:
        """The answer before the first draw."""
        plan = self.programs.plan
        empty: dict[str, dict[str, np.ndarray]] = {"posterior": {}, "sample_stats": {}}
        for name, (shape, dtype) in self.programs.shapes.items():
            group, _, variable = name.partition("/")
            empty[group][variable] = np.empty((self.chains, 0, *shape), dtype)
        assert plan.describe is not None
        return plan.describe(Run(empty["posterior"], empty["sample_stats"], ended=Ended.unfinished))

    def _counts(self, slots: int) -> dict[str, int]:
        """Draws by group, of the first ``slots`` that are kept."""
        skip = self.programs.skip
        after = {"posterior": max(0, slots - skip), "sample_stats": max(0, slots - skip)}
        if not skip:
            return after
        return {"warmup_posterior": min(slots, skip), "warmup_sample_stats": min(slots, skip), **after}

    def _name(self, name: str, slot: int) -> str:
        """A kept warm-up has groups of its own on disk."""
        warm = self.store is not None and not self.again and slot < self.programs.skip
        return f"warmup_{name}" if warm else name

    def put(self, chain: int, slot: int, u: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Put draws of a chain away; the first of them is draw ``slot`` of those kept."""
        skip = self.programs.skip
        warm = skip - slot
        if 0 < warm < len(u):  # the piece goes on after the warm-up
            self.put(chain, slot, u[:warm], {name: values[:warm] for name, values in arrays.items()})
            self.put(chain, skip, u[warm:], {name: values[warm:] for name, values in arrays.items()})
            return
        at = slot if self.store is None or self.again or slot < skip else slot - skip
        self._draws.append(chain, at, {self._name(name, slot): values for name, values in arrays.items()})
        if slot >= skip:
            first = -(-(slot - skip) // self.stride)
            self._looks.append(chain, first, {"u": u[first * self.stride - (slot - skip) :: self.stride]})

    def flush(self, chain: int, slots: int) -> None:
        """Make the first draws of a chain durable."""
        self._draws.flush(chain, slots)
        self._looks.flush(chain, slots)

    def show(self, chains: range, slots: int) -> None:
        """The first ``slots`` draws of these chains are safe: show in the store what all chains have."""
        with self._lock:
            self.saved[chains.start : chains.stop] = slots
            least = int(self.saved.min())
            if self.store is not None and not self.again and least > self._shown:
                self._shown = least
                self.store.commit(self._counts(least), {})

    def u(self, chain: int, slots: int) -> np.ndarray:
        """Draws in unconstrained coordinates after the warm-up, every ``stride``-th of the first ``slots``."""
        return self._looks.read("u", chain, 0, -(-max(0, slots - self.programs.skip) // self.stride))

    def read(self, name: str, chain: int, slots: int, step: int = 1) -> np.ndarray:
        """Draws after the warm-up, every ``step``-th of the first ``slots``."""
        skip = self.programs.skip
        shift = skip if self.store is None or self.again else 0
        return self._draws.read(name, chain, shift, max(shift, slots - skip + shift), step)

    def replace(self, chains: list[int], other: Sink, slots: int) -> None:
        """Take the draws of these chains from another sink, whose chains are theirs in order."""
        programs = self.programs
        block = max(1, programs.size)
        for place, chain in enumerate(chains):
            cuts = [(0, min(programs.skip, slots))] if programs.skip else []
            for low, high in [*cuts, (programs.skip, slots)]:
                for first in range(low, high, block):
                    last = min(high, first + block)
                    arrays = {name: other._draws.read(name, place, first, last) for name in programs.shapes}
                    at = first if self.store is None or first < programs.skip else first - programs.skip
                    self._draws.append(chain, at, {self._name(name, first): v for name, v in arrays.items()})
            looks = other.u(place, slots)
            self._looks.append(chain, 0, {"u": looks})
            self.flush(chain, slots)

    def values(self, slots: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Values and statistics in memory, a kept warm-up included, of the first ``slots`` draws.

        With a store the values stay there, and statistics are those after the warm-up.
        """
        groups: dict[str, dict[str, np.ndarray]] = {"posterior": {}, "sample_stats": {}}
        for name in self.programs.shapes:
            group, _, variable = name.partition("/")
            if isinstance(self._draws, InMemory):
                groups[group][variable] = self._draws.arrays[name][:, :slots]
            elif group == "sample_stats":
                groups[group][variable] = np.stack([self.read(name, chain, slots) for chain in range(self.chains)])
        return groups["posterior"], groups["sample_stats"]

    def stored(self, slots: int) -> dict[str, int] | None:
        """Draws by group of the store, if there is one."""
        return None if self.store is None else self._counts(slots)


class _Position(NamedTuple):
    """What a job has done: ``step`` steps, after which it has this state, and its last draw is ``u``."""

    step: int
    state: Any
    u: np.ndarray
    lp: float


class Job:
    """One chain (or all of them, where they are one batch or an ensemble) at work.

    Args:
        programs: The compiled programs.
        sink: Where its draws go.
        chains: Numbers of its chains in the sink.
        name: Name of its record in the store.
        key: Its key, or the keys of its chains.
        given: Where to start, shape ``(dim,)`` or ``(chains, dim)``; NaN to find a start.
    """

    def __init__(self, programs: Programs, sink: Sink, chains: range, name: str, key: Array, given: Array) -> None:
        self.programs, self.sink, self.chains, self.name, self.given = programs, sink, chains, name, given
        self._first_key = key
        self.begin(0)
        self._resume()

    def begin(self, attempt: int, position: _Position | None = None) -> None:
        """Forget everything, and start with the key of that attempt; or go on from where it had got to."""
        key = self._first_key
        self.key, self.attempt = jax.random.fold_in(key, RESTART + attempt - 1) if attempt else key, attempt
        self.position = position
        self.started = True
        self.pace = Pace()

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.position.step if self.position else 0

    @property
    def slots(self) -> int:
        """Draws put away, a kept warm-up included."""
        return self.programs.slots(self.step)

    @property
    def lp(self) -> float:
        """Log density after the last step; NaN where one job holds all chains."""
        return self.position.lp if self.position else np.nan

    def work(self, first: int, last: int) -> dict[str, float]:
        """Take steps; the numbers to show beside the progress bar."""
        p = self.programs
        if last <= self.step:  # taken before the run was interrupted
            return {}
        if self.position is None:
            state, found = p.start(self.key, self.given)
            self.started = bool(np.all(gathered(found)))
        else:
            state = self.position.state
        if not self.started:
            return {}
        state, drawn = p.go(self.key, state, first, last)
        slot = p.slots(first)
        made = p.slots(last) - slot
        drawn = gathered(drawn)
        if not p.together:
            drawn = jax.tree.map(lambda x: x[None], drawn)
        elif not p.batched:  # an ensemble has the chains second
            drawn = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), drawn)
        end = max(made - 1, 0)  # warm-up leaves its last step in slot 0
        lp = float(drawn.stats["lp"][0, end]) if "lp" in drawn.stats and not p.together else np.nan
        for place, chain in enumerate(self.chains if made else ()):
            arrays = {f"posterior/{variable_name(name)}": x[place, :made] for name, x in drawn.values.items()}
            arrays |= {f"sample_stats/{name}": x[place, :made] for name, x in drawn.stats.items()}
            self.sink.put(chain, slot, drawn.u[place, :made], arrays)
        self.position = _Position(last, state, drawn.u[:, end], lp)
        if self.pace.due:
            self.save()
        return _numbers(drawn.stats, made) if made else {"warm-up %": 100 * last / max(p.plan.warmup, 1)}

    def save(self) -> None:
        """Make durable what has been done: draws, then the state that counts them, then the answer that shows them."""
        store, position = self.sink.store, self.position
        if store is None or position is None:
            self.sink.show(self.chains, self.slots)
            return
        with self.pace.saving():
            for chain in self.chains:
                self.sink.flush(chain, self.slots)
            meta = {"attempt": self.attempt, "step": position.step, "lp": position.lp}
            store.save(self.name, meta, [position.u, *pack(position.state)])
            self.sink.show(self.chains, self.slots)

    def _resume(self) -> None:
        store = self.sink.store
        record = store.saved(self.name) if store is not None else None
        if store is None or record is None:
            return
        template = self.programs.begin.shape[0]
        state = self.programs.over_chains(unpack(template, record.arrays[1:], store.path_of(self.name)))
        position = _Position(int(record.meta["step"]), state, record.arrays[0], float(record.meta["lp"]))
        self.begin(int(record.meta["attempt"]), position)
        self.sink.show(self.chains, self.slots)


def _numbers(stats: dict[str, np.ndarray], made: int) -> dict[str, float]:
    numbers = {}
    if "diverging" in stats:
        numbers["diverging"] = float(np.sum(stats["diverging"][:, :made]))
    if "step_size" in stats:
        numbers["step size"] = float(np.mean(stats["step_size"][:, :made]))
    return numbers
