"""The driver: runs compiled pieces of work, several chains side by side, with progress and interruption.

On a CPU the chains are calls of one single-chain program from as many threads as there are cores: XLA releases the
interpreter lock, so that many run at once, none waits for another's deeper tree, and only one small program is compiled.
On an accelerator all chains are one batched program.
"""

from __future__ import annotations

import collections
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax

from probgen.run.progress import Progress

__all__ = ["Worker", "batched_by_default", "drive", "pieces"]

type Worker = Callable[[int, int], dict[str, float]]
"""``worker(first, last)`` takes those steps and returns numbers to show; it keeps what it makes."""


def batched_by_default() -> bool:
    """Whether chains are one batched program (accelerators) rather than threads (CPU)."""
    return jax.default_backend() != "cpu"


def pieces(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """Cut the steps from ``first`` to ``last`` into pieces of ``size``; the remainder comes first."""
    return list(itertools.pairwise([first, *reversed(range(last, first, -size))]))


def drive(
    workers: Sequence[Worker],
    steps: list[tuple[int, int]],
    progress: Progress,
    bars: Sequence[int] | None = None,
    *,
    patient: bool = False,
) -> bool:
    """Run every worker through all pieces, side by side; where there are more workers than cores, they take turns.

    Args:
        workers: One per chain, or one for all of them.
        steps: The pieces, in order.
        progress: Told after each piece.
        bars: The progress bar of each worker; bar ``i`` for worker ``i`` if ``None``.
        patient: Whether further Ctrl-C wait, too, until no worker is at work: else they leave the pieces that are
            being worked on behind.

    Returns:
        Whether the work was interrupted (Ctrl-C); pieces that were finished stay.
    """
    go, stop = threading.Event(), threading.Event()
    bars = range(len(workers)) if bars is None else bars
    waiting = collections.deque((*job, steps) for job in zip(workers, bars, strict=True) if steps)

    precise = bool(jax.config.jax_enable_x64)

    def run() -> None:
        go.wait()  # Ctrl-C while threads are being started leaves none at work
        with jax.enable_x64(precise):  # a block of the caller's holds for the caller's thread only
            while waiting and not stop.is_set():
                try:
                    worker, bar, ((first, last), *rest) = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    progress.update(bar, last, worker(first, last))
                except BaseException:
                    stop.set()  # at once: the main thread may be waiting for another one
                    raise
                if rest:
                    waiting.append((worker, bar, rest))

    with progress:
        # Threads even for one worker: Ctrl-C reaches the main thread, so it never falls into the middle of a piece.
        threads = max(1, min(len(workers), os.cpu_count() or 1))
        pool = ThreadPoolExecutor(threads)
        futures: list[Future[None]] = []
        try:
            futures += [pool.submit(run) for _ in range(threads)]
            go.set()
            for future in futures:
                future.result()
        except KeyboardInterrupt:
            return True
        finally:
            stop.set()
            go.set()
            pool.shutdown(wait=False)
            _settle(futures, patient=patient)
    return False


def _settle(futures: list[Future[None]], *, patient: bool) -> None:
    """Wait until no worker is at work. (Joining a thread cannot be repeated once it was interrupted.)"""
    while True:
        try:
            wait(futures)
            return
        except KeyboardInterrupt:
            if not patient:
                raise


def to_host(tree: Any) -> Any:
    """Arrays of a pytree as NumPy arrays."""
    return jax.device_get(tree)
