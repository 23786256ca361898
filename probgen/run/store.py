"""The store: a run on disk that survives its process.

``run.zarr`` holds the answer as far as it goes (see ``archive.py``: readable as a DataTree at any moment), and in the
folder ``resume`` what is needed to go on: which run this is, the state of each worker after its last step, and a lock.
Keys are made from (seed, chain, step), so that a run which went on equals one that was never interrupted, bit for bit.

The order of writing makes that true at any moment: draws first, then the state that says how many there are, then the
root description that shows them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from filelock import FileLock, Timeout

from probgen.base.errors import StoreError
from probgen.run.archive import Growing, array_metadata, checksum, load, read_root, verify, write_root, write_static
from probgen.run.draws import OnDisk
from probgen.run.output import new_folder, unwritable, write_whole
from probgen.run.record import Record, read_record, write_record

if TYPE_CHECKING:
    import xarray

__all__ = ["Pace", "Store"]

_RESUME = "resume"
_CHUNK_BYTES = 4 * 2**20
"""Size of the chunks of one chain, all arrays together."""
_IDENTITY, _SEAL = "identity", "sealed"


class Pace:
    """When to save: after a second, and so seldom that saving takes a small share of the time."""

    SECONDS: ClassVar = 1.0
    SHARE: ClassVar = 0.05

    def __init__(self) -> None:
        self._due = time.perf_counter() + self.SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.perf_counter() > self._due

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around what saves."""
        began = time.perf_counter()
        yield
        ended = time.perf_counter()
        self._due = ended + max(self.SECONDS, (ended - began) / self.SHARE)


class Store:
    """A run on disk. Use it as a context: it is locked while open.

    Args:
        path: The folder, ``*.zarr``.
        identity: What makes the run this run and no other: sentences by subject.

    Raises:
        StoreError: If the folder cannot be used, holds another run, is damaged, of a newer format, or in use.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        self._root: dict[str, Any] = {}
        self._growing: dict[str, Growing] = {}
        _check_path(self.path)
        try:
            (self.path / _RESUME).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / _RESUME / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"{self.path} is in use by another process. Wait for it, or give another store."
            ) from error
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def _open(self) -> None:
        record = self.saved(_IDENTITY)
        if record is None:
            write_root(self.path, _empty_root())
            self.save(_IDENTITY, {"identity": self.identity})
        elif record.meta.get("identity") != self.identity:
            raise StoreError(
                f"{self.path} holds another run: {_difference(record.meta.get('identity'), self.identity)}"
            )
        self._root = read_root(self.path)
        verify(self.path, self._root)

    # -- the answer ----------------------------------------------------------------------------------------------------

    @property
    def sealed(self) -> bool:
        """Whether the run has ended for good: there is nothing to resume."""
        return self._record(_SEAL).exists()

    def load(self) -> xarray.DataTree:
        """The answer, as far as it goes."""
        return load(self.path)

    def begin(self, tree: xarray.DataTree, counts: Mapping[str, int]) -> OnDisk:
        """Lay out the answer of a run that draws: all that is known of it now, and arrays that grow.

        Args:
            tree: The answer without draws: every variable with the dim ``draw`` (of length 0) will grow.
            counts: Draws per chain, by group.

        Returns:
            Where the draws go, by ``group/name``.
        """
        for group, count in counts.items():
            variables = tree[group].variables
            longer = {str(name): v for name, v in variables.items() if "draw" in v.dims}
            width = sum(math.prod(v.shape[2:]) * v.dtype.itemsize for v in longer.values())
            chunk = int(np.clip(_CHUNK_BYTES // max(width, 1), 1, max(count, 1)))
            for name, v in longer.items():
                shape = tuple(count if dim == "draw" else n for dim, n in zip(v.dims, v.shape, strict=True))
                length = chunk if v.ndim > 1 else max(count, 1)
                path = f"{group}/{name}"
                self._growing[path] = Growing(path, tuple(map(str, v.dims)), shape, length, np.dtype(v.dtype))
        if not self._nodes:
            self._lay_out(tree)
        added = [name for name in self._nodes if name.split("/")[0] in counts and self._has_other_draws(name)]
        if added:  # when a run was interrupted: they are added again when it ends
            for name in added:
                del self._nodes[name]
            self._describe({})
        return OnDisk(self.path, {name: array for name, array in self._growing.items() if len(array.dims) > 1})

    def _has_other_draws(self, name: str) -> bool:
        """Whether an array has draws, and is none of those that grow."""
        node = self._nodes[name]
        return node["node_type"] == "array" and "draw" in node["dimension_names"] and name not in self._growing

    def hidden(self, arrays: Mapping[str, Growing]) -> OnDisk:
        """Growing arrays that are needed to go on, and are no part of the answer."""
        return OnDisk(self.path / _RESUME, arrays)

    def commit(self, counts: Mapping[str, int], attrs: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the first draws of every chain: how many by group, and attributes by group (the root is ``""``)."""
        for name, array in self._growing.items():
            self._nodes[name]["shape"][array.dims.index("draw")] = counts[name.split("/")[0]]
        self._describe(attrs)

    def add(self, group: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Put further arrays, shape ``(chains, draws)``, beside those of a group that has grown."""
        for name, values in arrays.items():
            path = f"{group}/{name}"
            if path in self._growing:
                continue
            shutil.rmtree(self.path.joinpath(group, name), ignore_errors=True)  # of an interrupted run
            array = Growing(path, ("chain", "draw"), values.shape, max(1, values.shape[1]), values.dtype)
            disk = OnDisk(self.path, {name: array})
            for chain, row in enumerate(values):
                disk.append(chain, 0, {name: row})
                disk.flush(chain, len(row))
            self._nodes[path] = array_metadata(array)
        self._describe({})

    def write(self, tree: xarray.DataTree) -> None:
        """Replace the answer by a whole tree."""
        import xarray

        groups = {node.path: node.to_dataset(inherit=False).drop_attrs(deep=False) for node in tree.subtree}
        self._replace(xarray.DataTree.from_dict(groups))
        self._describe(_attrs(tree))

    def seal(self) -> None:
        """The run has ended for good: forget what was needed to go on."""
        write_record(self._record(_SEAL), {})
        for item in (self.path / _RESUME).iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.suffix == ".record" and item.name not in (f"{_SEAL}.record", f"{_IDENTITY}.record"):
                item.unlink()

    @property
    def _nodes(self) -> dict[str, Any]:
        return self._root["consolidated_metadata"]["metadata"]

    def _lay_out(self, tree: xarray.DataTree) -> None:
        import xarray

        def still(node: xarray.DataTree) -> xarray.Dataset:
            dataset = node.to_dataset(inherit=False).drop_attrs(deep=False)
            return dataset.drop_vars([name for name, v in dataset.variables.items() if "draw" in v.dims])

        self._replace(xarray.DataTree.from_dict({node.path: still(node) for node in tree.subtree}))
        for name, array in self._growing.items():
            self._nodes[name] = array_metadata(array)
            folder = self.path.joinpath(*name.split("/"))
            new_folder(folder)
            write_whole(folder / "zarr.json", [json.dumps(self._nodes[name]).encode()])
            if array.dims == ("draw",):
                numbers = np.arange(array.chunk, dtype=array.dtype).astype(array.dtype.newbyteorder("<")).tobytes()
                write_whole(folder / "c.0", [numbers, checksum(numbers)])
        nothing = dict.fromkeys({name.split("/")[0] for name in self._growing}, 0)
        self.commit(nothing, _attrs(tree))

    def _replace(self, tree: xarray.DataTree) -> None:
        """Put the groups of a tree in place; nothing of them is shown until the root describes them."""
        write_root(self.path, _empty_root())
        new = self.path / _RESUME / "new"
        shutil.rmtree(new, ignore_errors=True)
        self._root = write_static(tree, new)
        try:
            for group in tree.children:
                shutil.rmtree(self.path / group, ignore_errors=True)
                (new / group).replace(self.path / group)
            shutil.rmtree(new)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _describe(self, attrs: Mapping[str, Mapping[str, Any]]) -> None:
        for group, values in attrs.items():
            (self._nodes[group] if group else self._root)["attributes"] = dict(values)
        write_root(self.path, self._root)

    # -- what is needed to go on ---------------------------------------------------------------------------------------

    def _record(self, name: str) -> Path:
        return self.path / _RESUME / f"{name}.record"

    def save(self, name: str, meta: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        """Replace the record of that name."""
        write_record(self._record(name), dict(meta), arrays)

    def saved(self, name: str) -> Record | None:
        """The record of that name, if there is one.

        Raises:
            StoreError: If it is damaged.
        """
        path = self._record(name)
        return read_record(path) if path.exists() else None

    def path_of(self, name: str) -> Path:
        """The file of a record, for messages."""
        return self._record(name)


def _attrs(tree: xarray.DataTree) -> dict[str, dict[str, Any]]:
    """Attributes by group; the root is ``""``."""
    return {node.path.strip("/"): {str(name): value for name, value in node.attrs.items()} for node in tree.subtree}


def _empty_root() -> dict[str, Any]:
    consolidated = {"kind": "inline", "must_understand": False, "metadata": {}}
    return {"attributes": {}, "zarr_format": 3, "consolidated_metadata": consolidated, "node_type": "group"}


def _check_path(path: Path) -> None:
    if path.suffix != ".zarr":
        raise StoreError(f"the store {path} must be a folder *.zarr. Write {path.with_suffix('.zarr')}.")
    if path.exists() and not path.is_dir():
        raise StoreError(f"the store {path} is a file. Give the name of a folder, new or with a run to go on with.")
    if not path.absolute().parent.is_dir():
        raise StoreError(f"the folder {path.parent} of the store {path.name} does not exist. Make it first.")
    for place, folders, files in os.walk(path):
        link = next((name for name in (*folders, *files) if Path(place, name).is_symlink()), None)
        if link is not None:
            raise StoreError(
                f"{Path(place, link)} is a link, through which the store would leave its folder. Remove it."
            )
    if path.is_dir() and any(path.iterdir()) and not (path / _RESUME / f"{_IDENTITY}.record").exists():
        started = {_RESUME, "zarr.json", "zarr.json.partial"} >= {item.name for item in path.iterdir()}
        if not started or _nodes_of(path):
            raise StoreError(f"{path} holds something else than a resumable run. Give another store.")


def _nodes_of(path: Path) -> dict[str, Any]:
    return read_root(path)["consolidated_metadata"]["metadata"] if (path / "zarr.json").exists() else {}


def _difference(there: Any, here: Mapping[str, str]) -> str:
    """What makes a stored run another one than the one that was asked for, in words."""
    there = there if isinstance(there, dict) else {}
    different = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    shown = []
    for name in different[:3]:
        old, new = there.get(name), here.get(name)
        plain = all(
            isinstance(value, str) and len(value) <= 60 and not value.startswith("sha256:") for value in (old, new)
        )
        shown.append(f"{name} (there {old}, here {new})" if plain else f"the {name}")
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return f"it differs in {', '.join(shown)}{more}. Repeat the call that began it, or give another store."
