"""Chains at work: the jobs that take the steps.

A job is one chain, or all of them where they are one batch or an ensemble. What a job has done is one value that is
replaced at once, after its draws have been put away: an interruption at any moment leaves it consistent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from probgen.infer.programs import Programs
from probgen.infer.sink import Sink
from probgen.program.sites import variable_name
from probgen.run.devices import gathered
from probgen.run.record import pack, unpack
from probgen.run.store import Pace

__all__ = ["RESTART", "Job"]

RESTART = 1_000_003
"""Offset of the key of a chain that is started again."""


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
