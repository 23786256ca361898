"""A DataTree on disk, as Zarr: how it is laid out, how it is trusted.

The layout is a small part of Zarr 3 that any reader of Zarr understands: plain arrays, each chunk followed by its
CRC-32C, no compression. So the size of a chunk file is known before it is opened, damage is found, and nothing can grow
when it is read. The root ``zarr.json`` describes all groups and arrays (consolidated metadata) and is replaced as one
file: what it says is there is whole on disk.

A folder from elsewhere is data. ``load`` reads the description with the standard library, refuses names, types, shapes
and codecs that are not of this layout, compares every chunk with its checksum, and only then gives it to xarray.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from probgen.base.errors import StoreError
from probgen.run.output import sync_folder, unwritable, write_whole

if TYPE_CHECKING:
    import xarray

__all__ = [
    "Growing",
    "array_metadata",
    "checksum",
    "harmless",
    "load",
    "read_root",
    "verify",
    "write_root",
    "write_static",
]

ROOT = "zarr.json"
_LARGEST_ROOT = 16 * 2**20
_MOST_GROUPS = 64
_LONGEST_NAME = 240
"""Bytes of a name; file systems take 255."""
_IN_MEMORY = 256 * 2**20
"""Trees up to this size (bytes) are loaded; larger ones stay on disk and are read when they are used."""
_NUMBERS = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
}
_BLOCK = 2**20
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CHECKSUM = {"name": "crc32c"}
_SEPARATORS = {"/", "."}


class Growing(NamedTuple):
    """An array that grows along its draws.

    Attributes:
        path: Group and name, for example ``posterior/theta``.
        dims: Names of its dimensions; the first two are ``chain`` and ``draw``.
        shape: Full shape.
        chunk: Draws per chunk; a chunk has one chain.
        dtype: Type of its values.
    """

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: int
    dtype: np.dtype


def array_metadata(array: Growing) -> dict[str, Any]:
    """What ``zarr.json`` says about an array."""
    chunk = [1, array.chunk, *array.shape[2:]] if len(array.shape) > 1 else [array.chunk]
    fill: Any = {"f": "NaN", "b": False, "c": ["NaN", "NaN"]}.get(array.dtype.kind, 0)
    return {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": [_BYTES if array.dtype.itemsize > 1 else {"name": "bytes"}, _CHECKSUM],
        "attributes": {},
        "dimension_names": list(array.dims),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def write_static(tree: xarray.DataTree, folder: Path) -> dict[str, Any]:
    """Write a tree in this layout to a new folder, and return its root description.

    Raises:
        StoreError: If it cannot be written.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    plain = _without_encoding(tree)

    def layout(variable: xarray.Variable) -> dict[str, Any]:
        chunks = {"chunks": tuple(max(1, n) for n in variable.shape)} if variable.ndim else {}
        return {"compressors": [Crc32cCodec()], **chunks}

    encoding = {
        node.path: {str(name): layout(v) for name, v in node.to_dataset(inherit=False).variables.items()}
        for node in plain.subtree
    }
    try:
        with warnings.catch_warnings(), zarr.config.set({"array.write_empty_chunks": True}):
            # Text of fixed length and consolidated metadata are not in the specification yet; both read well.
            warnings.simplefilter("ignore")
            plain.to_zarr(folder, zarr_format=3, encoding=encoding, consolidated=True, mode="w")
    except OSError as error:
        raise unwritable(folder, error) from error
    for place, _, files in os.walk(folder):
        for name in files:
            with open(Path(place) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
    return read_root(folder)


def _without_encoding(tree: xarray.DataTree) -> xarray.DataTree:
    """A copy without what another file format has left in ``encoding``."""
    import xarray

    groups = {node.path: node.to_dataset(inherit=False).drop_encoding() for node in tree.subtree}
    return xarray.DataTree.from_dict(groups)


def write_root(folder: Path, root: Mapping[str, Any]) -> None:
    """Replace the root description: the moment at which what it describes is there."""
    write_whole(folder / ROOT, [json.dumps(root).encode()])


def read_root(folder: Path) -> dict[str, Any]:
    """The root description, as it stands in the file.

    Raises:
        StoreError: If there is none, or it is no description of a tree.
    """
    path = folder / ROOT
    try:
        fit = not path.is_symlink() and (path.is_file() or not path.exists()) and path.stat().st_size <= _LARGEST_ROOT
        root: Any = json.loads(path.read_bytes()) if fit else None
    except FileNotFoundError:
        raise StoreError(
            f"{folder} holds no tree (it has no {ROOT}). Give a folder that probgen has written."
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}). Restore it.") from error
    except (ValueError, RecursionError) as error:
        raise _unlike(folder, f"{ROOT} is not JSON") from error
    if not fit:
        raise _unlike(folder, f"{ROOT} is a link, no file, or too large")
    try:
        nodes = root["consolidated_metadata"]["metadata"]
        good = root["zarr_format"] == 3 and root["node_type"] == "group" and isinstance(nodes, dict)
        good = good and isinstance(root["attributes"], dict)
    except (TypeError, KeyError):
        good = False
    if not good:
        raise _unlike(folder, f"{ROOT} does not describe its groups")
    return root


def load(path: str | os.PathLike[str]) -> xarray.DataTree:
    """Read a tree: what ``pg.infer(..., store="run.zarr")`` writes (also while it runs), or a netCDF file.

    Nothing that is read is executed. Everything is compared with its checksum first (Zarr). Trees above 256 MiB stay on
    disk and are read when they are used.

    Args:
        path: A folder ``*.zarr``, or a file ``*.nc``.

    Raises:
        StoreError: If it is missing, damaged (the chunk is named), or not of the layout that probgen writes.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path} does not exist. Give a folder *.zarr or a file *.nc that probgen has written.")
    if not path.is_dir() and not path.is_file():  # a pipe would be waited for
        raise _unlike(path, "it is neither folder nor file")
    return _load_zarr(path) if path.is_dir() else _load_netcdf(path)


def _load_zarr(path: Path) -> xarray.DataTree:
    import xarray

    root = read_root(path)
    total = verify(path, root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = xarray.open_datatree(path, engine="zarr", consolidated=True, chunks=None)
            return tree.load() if total <= _IN_MEMORY else tree
    except Exception as error:  # whatever the reader of odd numbers and attributes stumbles over
        raise _unlike(path, str(error).splitlines()[0][:200] if str(error) else type(error).__name__) from error


def _load_netcdf(path: Path) -> xarray.DataTree:
    import h5py
    import xarray

    try:
        with h5py.File(path, "r") as file:
            _check_hdf5(path, file)
        tree = xarray.open_datatree(path, engine="h5netcdf")
        with tree:
            return tree.load()
    except StoreError:
        raise
    except Exception as error:  # whatever the reader of a damaged file stumbles over
        raise _unlike(path, str(error).splitlines()[0][:200] if str(error) else type(error).__name__) from error


def _check_hdf5(path: Path, file: Any) -> None:
    """Refuse links to other files, and arrays that declare far more than the file can hold."""
    import h5py

    size, declared = path.stat().st_size, 0
    pending, seen = [file], {file["/"]}
    while pending:
        group = pending.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _unlike(path, f"{name!r} is a link")
            item = group[name]
            if item in seen:  # a group may hold itself
                raise _unlike(path, f"{name!r} is there under two names")
            seen.add(item)
            if isinstance(item, h5py.Group):
                pending.append(item)
            else:
                if item.external or item.is_virtual:
                    raise _unlike(path, f"{name!r} lies in another file")
                declared += math.prod(item.shape) * item.dtype.itemsize
    if declared > max(1000 * size, 2**20):
        raise _unlike(path, f"its arrays declare {declared:.3g} bytes in a file of {size}")


def verify(path: Path, root: Mapping[str, Any]) -> int:
    """Compare a folder with its description: names, types, shapes, codecs, and every chunk with its checksum.

    Returns:
        Bytes of all arrays.

    Raises:
        StoreError: At the first thing that does not fit.
    """
    total = groups = 0
    arrays = []
    for name, node in root["consolidated_metadata"]["metadata"].items():
        parts = name.split("/")
        if not all(harmless(part) for part in parts):
            raise _unlike(path, f"the name {name!r} is not one of a group or an array")
        if not isinstance(node, dict) or node.get("node_type") != {1: "group", 2: "array"}.get(len(parts)):
            raise _unlike(path, f"{name!r} is neither a group nor an array in one")
        groups += len(parts) == 1
        if groups > _MOST_GROUPS:
            raise _unlike(path, f"it has more than {_MOST_GROUPS} groups")
        if len(parts) == 2:
            layout = _layout(path, name, node)
            arrays.append((name, layout))
            total += layout.size
    for name, layout in arrays:
        folder = path.joinpath(*name.split("/"))
        for place in (folder, *folder.parents):
            if place == path:
                break
            if place.is_symlink():
                raise _unlike(path, f"{name!r} lies behind a link")
        for key in layout.files():
            _check_chunk(path, folder / key, f"chunk {key} of {name}", layout.chunk_bytes)
    return total


class _Layout(NamedTuple):
    size: int
    chunk_bytes: int
    counts: tuple[int, ...]
    separator: str

    def files(self) -> Iterator[str]:
        """Names of the chunk files."""
        # Not itertools.product, which would first list what a hostile file declares.
        for number in range(math.prod(self.counts)):
            index = []
            for count in reversed(self.counts):
                number, place = divmod(number, count)  # noqa: PLW2901
                index.append(place)
            yield self.separator.join(map(str, ("c", *reversed(index))))


def _layout(path: Path, name: str, node: Mapping[str, Any]) -> _Layout:
    try:
        shape, chunk = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        separator = node["chunk_key_encoding"]["configuration"]["separator"]
        counted = all(type(n) is int and n >= 0 for n in shape) and all(type(n) is int and n > 0 for n in chunk)
        good = counted and len(shape) == len(chunk) and separator in _SEPARATORS
        good = good and node["chunk_grid"]["name"] == "regular" and node["chunk_key_encoding"]["name"] == "default"
        good = good and [codec["name"] for codec in node["codecs"]] == ["bytes", "crc32c"]
        good = good and not node.get("storage_transformers")
        itemsize = _itemsize(node["data_type"])
    except (TypeError, KeyError, AttributeError):
        good, itemsize = False, None
    if not good or itemsize is None:
        raise _unlike(path, f"the description of {name!r} is not of this layout")
    size = math.prod(shape) * itemsize
    counts = tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return _Layout(size, math.prod(chunk) * itemsize, counts, separator)


def _itemsize(data_type: Any) -> int | None:
    if isinstance(data_type, str):
        return np.dtype(data_type).itemsize if data_type in _NUMBERS else None
    if data_type["name"] == "fixed_length_utf32":
        length = data_type["configuration"]["length_bytes"]
        return length if type(length) is int and length >= 0 else None
    return None


def _check_chunk(path: Path, file: Path, label: str, size: int) -> None:
    try:
        if file.is_symlink():
            raise _unlike(path, f"{label} is a link")
        if file.stat().st_size != size + 4:
            raise _damaged(path, label, f"has {file.stat().st_size} bytes, expected {size + 4}")
        seen = google_crc32c.Checksum()
        with open(file, "rb") as chunk:
            for at in range(0, size, _BLOCK):
                seen.update(chunk.read(min(_BLOCK, size - at)))
            stored = chunk.read()
    except StoreError:
        raise
    except OSError as error:
        raise _damaged(path, label, f"cannot be read: {error.strerror}") from error
    if seen.digest()[::-1] != stored:
        raise _damaged(path, label, "does not fit its checksum")


def checksum(content: bytes) -> bytes:
    """CRC-32C, as it stands behind a chunk."""
    return google_crc32c.value(content).to_bytes(4, "little")


def harmless(part: str) -> bool:
    """Whether a name can be one of a folder, here and not elsewhere."""
    if not part or part in (".", "..", ROOT) or re.search(r"[\\\x00-\x1f]|:$|[\ud800-\udfff]", part):
        return False
    return len(part.encode()) <= _LONGEST_NAME and not (os.name == "nt" and ":" in part)


def _damaged(path: Path, label: str, how: str) -> StoreError:
    return StoreError(f"{path} is damaged: {label} {how}. Restore it from a copy, or start a new store.")


def _unlike(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is not what probgen writes: {why}. Give a file that probgen has written.")
