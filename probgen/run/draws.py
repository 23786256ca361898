"""Where draws go: arrays that are filled chain by chain, in memory or on disk."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from probgen.base.errors import StoreError
from probgen.run.archive import Growing, checksum
from probgen.run.output import new_folder, write_whole

__all__ = ["Draws", "InMemory", "OnDisk"]


class Draws(abc.ABC):
    """Arrays of shape ``(chains, count, ...)``, each chain filled from the front."""

    @abc.abstractmethod
    def append(self, chain: int, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put further draws of a chain, shape ``(n, ...)`` by name, at position ``first``; names with fewer draws than
        that position allows are cut."""

    @abc.abstractmethod
    def read(self, name: str, chain: int, first: int, last: int, step: int = 1) -> np.ndarray:
        """Every ``step``-th draw of a chain, from ``first`` to ``last`` (exclusive)."""

    def flush(self, chain: int, done: int) -> None:  # noqa: B027
        """Make the first ``done`` draws of a chain durable."""


class InMemory(Draws):
    """Draws in memory.

    Args:
        shapes: By name, the shape and dtype of all draws, ``(chains, count, ...)``.
    """

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        # Untouched pages cost nothing, so that a run which is interrupted has not paid for the whole.
        self.arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def append(self, chain: int, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """See ``Draws.append``."""
        for name, values in arrays.items():
            self.arrays[name][chain, first : first + len(values)] = values

    def read(self, name: str, chain: int, first: int, last: int, step: int = 1) -> np.ndarray:
        """See ``Draws.read``."""
        return self.arrays[name][chain, first:last:step]


class OnDisk(Draws):
    """Draws in the chunk files of growing arrays; the chunk that is being filled is kept in memory as well.

    Args:
        folder: Where the arrays are.
        arrays: The arrays, by name.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, Growing]) -> None:
        self._series = {name: _Series(folder, array) for name, array in arrays.items()}

    def append(self, chain: int, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """See ``Draws.append``."""
        for name, values in arrays.items():
            self._series[name].append(chain, first, values)

    def read(self, name: str, chain: int, first: int, last: int, step: int = 1) -> np.ndarray:
        """See ``Draws.read``."""
        return self._series[name].read(chain, first, last, step)

    def flush(self, chain: int, done: int) -> None:
        """See ``Draws.flush``."""
        for series in self._series.values():
            series.flush(chain, done)


class _Series:
    """One growing array."""

    def __init__(self, folder: Path, array: Growing) -> None:
        self.array = array
        self.folder = folder.joinpath(*array.path.split("/"))
        if not self.folder.is_dir():
            new_folder(self.folder)
        self.chunk_shape = (array.chunk, *array.shape[2:])
        self.dtype = array.dtype.newbyteorder("<")
        self.filling: dict[int, tuple[int, np.ndarray]] = {}
        """By chain: number and content of the chunk that is being filled."""

    def append(self, chain: int, first: int, values: np.ndarray) -> None:
        length = self.array.chunk
        while len(values):
            number, slot = divmod(first, length)
            buffer = self._buffer(chain, number)
            taken = min(length - slot, len(values))
            buffer[slot : slot + taken] = values[:taken]
            if slot + taken == length:
                self._write(chain, number, buffer)
                del self.filling[chain]
            first, values = first + taken, values[taken:]

    def flush(self, chain: int, done: int) -> None:
        if chain in self.filling:
            self._write(chain, *self.filling[chain])

    def read(self, chain: int, first: int, last: int, step: int) -> np.ndarray:
        length = self.array.chunk
        picked = np.arange(first, last, step)
        parts = [
            self._chunk(chain, number)[picked[picked // length == number] - number * length]
            for number in np.unique(picked // length).tolist()
        ]
        return np.concatenate(parts) if parts else np.empty((0, *self.chunk_shape[1:]), self.dtype)

    def _buffer(self, chain: int, number: int) -> np.ndarray:
        """The chunk to be filled; after an interruption, as far as it had been filled."""
        held = self.filling.get(chain)
        if held is None or held[0] != number:
            known = self._file(chain, number).exists()
            buffer = self._chunk(chain, number).copy() if known else np.zeros(self.chunk_shape, self.dtype)
            self.filling[chain] = held = (number, buffer)
        return held[1]

    def _chunk(self, chain: int, number: int) -> np.ndarray:
        held = self.filling.get(chain)
        if held is not None and held[0] == number:
            return held[1]
        file = self._file(chain, number)
        size = math.prod(self.chunk_shape) * self.dtype.itemsize
        if not size:
            return np.empty(self.chunk_shape, self.dtype)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StoreError(f"{file} cannot be read ({error.strerror}). Restore it, or start a new store.") from error
        if len(content) != size + 4 or checksum(content[:-4]) != content[-4:]:
            raise StoreError(
                f"chunk {file.name} of {self.array.path} is damaged. Restore {file} from a copy, or start a new store."
            )
        return np.frombuffer(content, self.dtype, math.prod(self.chunk_shape)).reshape(self.chunk_shape)

    def _write(self, chain: int, number: int, buffer: np.ndarray) -> None:
        if buffer.size:
            content = buffer.tobytes()
            write_whole(self._file(chain, number), [content, checksum(content)])

    def _file(self, chain: int, number: int) -> Path:
        return self.folder / ".".join(map(str, ("c", chain, number, *[0] * (len(self.array.shape) - 2))))
