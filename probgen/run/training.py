"""Training loops: blocks of steps that leave a trace, judged after each block, resumable."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, Protocol

import numpy as np

from probgen.run.driver import drive
from probgen.run.progress import Progress
from probgen.run.record import pack, unpack
from probgen.run.store import Pace, Store

__all__ = ["Trained", "Trainer", "train"]


class Trainer(Protocol):
    """What is trained. The state is a pytree of arrays, and all else follows from the trace."""

    @property
    def finished(self) -> bool:
        """Whether no more steps are needed."""
        ...

    def begin(self) -> Any:
        """The state before the first step."""
        ...

    def advance(self, state: Any, first: int, last: int) -> tuple[Any, np.ndarray]:
        """Take those steps: the state after them, and their trace, shape ``(last - first,)``."""
        ...

    def judge(self, trace: np.ndarray) -> dict[str, float]:
        """Look at the trace of a block (also of those that a resumed run has behind it); numbers to show."""
        ...


class Trained(NamedTuple):
    """The state after training, the trace of all steps, and whether Ctrl-C ended it."""

    state: Any
    trace: np.ndarray
    interrupted: bool


def train(
    trainer: Trainer, template: Any, steps: int, block: int, store: Store | None, progress: Progress, name: str = "fit"
) -> Trained:
    """Train until it has finished, or ``steps`` steps have been taken.

    Args:
        trainer: What is trained.
        template: The state, arrays as ``jax.ShapeDtypeStruct``.
        steps: Most steps.
        block: Steps per block.
        store: Where the state is kept, so that training can be resumed.
        progress: Told after each block; one bar.
        name: Name of the record in the store.

    Raises:
        KeyboardInterrupt: If it was interrupted before the first block had ended.
        StoreError: If the record is damaged.
    """
    state: Any = None
    blocks: list[np.ndarray] = []
    cuts = list(itertools.pairwise([*range(0, steps, block), steps]))
    record = store.saved(name) if store is not None else None
    if store is not None and record is not None:
        state = unpack(template, record.arrays[1:], store.path_of(name))
        blocks = [record.arrays[0][first:last] for first, last in cuts if last <= len(record.arrays[0])]
        for trace in blocks:
            trainer.judge(trace)
    pace = Pace()

    def save() -> None:
        if store is not None and blocks:
            with pace.saving():
                store.save(name, {}, [np.concatenate(blocks), *pack(state)])

    def work(first: int, last: int) -> dict[str, float]:
        nonlocal state
        if trainer.finished:
            return {"converged": 1}
        if state is None:
            state = trainer.begin()
        state, trace = trainer.advance(state, first, last)
        blocks.append(trace)
        shown = trainer.judge(trace)
        if pace.due:
            save()
        return shown

    try:
        interrupted = drive([work], cuts[len(blocks) :], progress, patient=store is not None)
    finally:
        save()
    if not blocks:
        raise KeyboardInterrupt
    return Trained(state, np.concatenate(blocks), interrupted)
