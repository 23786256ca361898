"""Progress of long work: one bar per chain at a terminal, silence elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

__all__ = ["Progress", "show_by_default"]


def show_by_default() -> bool:
    """Whether someone watches: standard error is a terminal."""
    return sys.stderr.isatty()


class Progress:
    """Bars for several workers. Safe to update from threads; as a context, the outermost one draws them.

    Args:
        labels: One per worker.
        total: Steps per worker.
        shown: Whether to draw anything.
        unit: What a step is called.
    """

    def __init__(self, labels: list[str], total: int, shown: bool, unit: str = "draws") -> None:
        self.labels, self.total, self.shown, self.unit = labels, total, shown, unit
        self._lock = threading.Lock()
        self._bars: Any = None
        self._depth = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Progress:
        self._depth += 1
        if self.shown and self._depth == 1:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            ]
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
            self._tasks = [self._bars.add_task(label, total=self.total, note="") for label in self.labels]
        if self._depth == 1:
            self._started = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._bars is not None and self._depth == 0:
            self._bars.stop()
            self._bars = None

    def update(self, worker: int, done: int, numbers: dict[str, float]) -> None:
        """Tell that a worker has finished ``done`` steps, with numbers to show beside the bar."""
        if self._bars is None:
            return
        rate = done / max(time.perf_counter() - self._started, 1e-9)
        shown = [f"{rate:.0f} {self.unit}/s", *(f"{name} {value:.3g}" for name, value in numbers.items())]
        with self._lock:
            self._bars.update(self._tasks[worker], completed=done, note="  ".join(shown))
