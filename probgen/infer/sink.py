"""Where the draws of a run go: to memory, or to the answer in its store."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from probgen.base.errors import Ended
from probgen.infer.method import Run
from probgen.infer.programs import Programs
from probgen.run.archive import Growing
from probgen.run.draws import Draws, InMemory
from probgen.run.store import Store

__all__ = ["Sink"]

COMPARED = 4096
"""At least so many draws per chain, if there are as many, are kept aside in unconstrained coordinates."""


class Sink:
    """Where the draws of a run go: all of them as they are reported, and some in unconstrained coordinates.

    Args:
        programs: The programs that make them.
        chains: How many chains.
        again: Which further run this is, beside a first one that stays as it is; 0 for the first one.
    """

    def __init__(self, programs: Programs, chains: int, *, again: int = 0) -> None:
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
        u = Growing(
            f"again{again}/u" if again else "u", ("chain", "draw", "dim"), (chains, looks, dim), chunk, np.dtype(float)
        )
        self._looks = self.store.hidden({"u": u})
        self._draws = self._hidden() if again else self.store.begin(self._blank(), self._counts(programs.kept))

    def _hidden(self) -> Draws:
        assert self.store is not None
        arrays = {}
        for name, (shape, dtype) in self.programs.shapes.items():
            full = (self.chains, self.programs.kept, *shape)
            dims = ("chain", "draw", *(f"dim_{axis}" for axis in range(len(shape))))
            arrays[name] = Growing(f"again{self.again}/{name}", dims, full, self.programs.size, dtype)
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
        self._append(chain, slot, arrays)
        if slot >= skip:
            first = -(-(slot - skip) // self.stride)
            self._looks.append(chain, first, {"u": u[first * self.stride - (slot - skip) :: self.stride]})

    def _append(self, chain: int, slot: int, arrays: dict[str, np.ndarray]) -> None:
        """Draws all of the warm-up, or all after it, where they belong."""
        skip = self.programs.skip
        at = slot if self.store is None or self.again or slot < skip else slot - skip
        self._draws.append(chain, at, {self._name(name, slot): values for name, values in arrays.items()})

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
                    self._append(chain, first, arrays)
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
