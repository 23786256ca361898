"""The compiled programs of a run, and how it is cut into pieces: one chain, a batch, or chains shared out over devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from probgen.base.typing import PRNGKey
from probgen.infer.method import Plan
from probgen.kernels.kernel import Kernel
from probgen.kernels.loop import advance, begin
from probgen.program.density import Density
from probgen.program.sites import variable_name
from probgen.run.compiled import TRACING, Executable, compile_all
from probgen.run.devices import CHAIN, placed, spread_rows
from probgen.run.driver import batched_by_default, pieces

__all__ = ["SCOUT", "Programs"]

_SHOWN_PIECES = 20
_STORED_PIECES = 50
_PIECE_BYTES = 16 * 2**20
SCOUT = 100
"""Warm-up steps after which the chains' log densities are compared."""


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
