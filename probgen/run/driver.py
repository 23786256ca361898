"""The driver: runs compiled pieces of work, several chains side by side, with progress and interruption.

On a CPU each chain is one call of a single-chain program in a thread of its own: XLA releases the interpreter lock, so
as many chains run at once as there are cores, none waits for another's deeper tree, and only one small program is
compiled. On an accelerator all chains are one batched program.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from probgen.run.progress import Progress

__all__ = ["Worker", "batched_by_default", "drive", "pieces"]

type Worker = Callable[[int, int], dict[str, float]]
"""``worker(first, last)`` takes those steps and returns numbers to show; it keeps what it makes."""


def batched_by_default() -> bool:
    """Whether chains are one batched program (accelerators) rather than threads (CPU)."""
    return jax.default_backend() != "cpu"


def pieces(total: int, warmup: int, size: int) -> list[tuple[int, int]]:
    """Cut ``total`` steps into pieces of at most ``size`` that do not cross the end of the warm-up."""
    cuts = [*range(0, warmup, max(size, 1)), *range(warmup, total, max(size, 1)), total]
    return list(itertools.pairwise(cuts))


def drive(
    workers: Sequence[Worker], steps: list[tuple[int, int]], progress: Progress, bars: Sequence[int] | None = None
) -> bool:
    """Run every worker through all pieces, side by side.

    Args:
        workers: One per chain, or one for all of them.
        steps: The pieces, in order.
        progress: Told after each piece.
        bars: The progress bar of each worker; bar ``i`` for worker ``i`` if ``None``.

    Returns:
        Whether the work was interrupted (Ctrl-C); pieces that were finished stay.
    """
    stop = threading.Event()

    def run(worker: Worker, bar: int) -> None:
        for first, last in steps:
            if stop.is_set():
                return
            progress.update(bar, last, worker(first, last))

    bars = range(len(workers)) if bars is None else bars
    with progress:
        if len(workers) == 1:
            try:
                run(workers[0], bars[0])
            except KeyboardInterrupt:
                return True
            return False
        with ThreadPoolExecutor(max(1, min(len(workers), os.cpu_count() or 1))) as pool:
            futures = [pool.submit(run, *job) for job in zip(workers, bars, strict=True)]
            try:
                for future in futures:
                    future.result()
            except KeyboardInterrupt:
                stop.set()
                return True
            except BaseException:
                stop.set()
                raise
    return False


def to_host(tree: Any) -> Any:
    """Arrays of a pytree as NumPy arrays."""
    return jax.device_get(tree)
