"""Records: arrays and a little JSON in one file that is whole, checked, and only data.

A record is the line ``probgen record``, a line of JSON (format, meta, the dtype and shape of each array), the bytes of
the arrays, and the SHA-256 of all that. Nothing in it is executed; a reader allocates no more than the file holds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen.base.errors import StoreError
from probgen.run.output import write_whole

__all__ = ["FORMAT", "Record", "pack", "read_record", "unpack", "write_record"]

FORMAT = 1
_MAGIC = b"probgen record\n"
_DIGEST = 32
_KINDS = "biufc"


class Record(NamedTuple):
    """What a record holds: numbers and sentences, and arrays."""

    meta: dict[str, Any]
    arrays: list[np.ndarray]


def write_record(path: Path, meta: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Replace a record: whatever happens, the file is the old one or the new one."""
    arrays = [np.asarray(a, order="C") for a in arrays]
    arrays = [a.astype(a.dtype.newbyteorder("<"), copy=False) for a in arrays]
    header = {"format": FORMAT, "meta": meta, "arrays": [[a.dtype.str, list(a.shape)] for a in arrays]}
    parts = [_MAGIC, json.dumps(header).encode() + b"\n", *(a.tobytes() for a in arrays)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_whole(path, [*parts, digest.digest()])


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        StoreError: If the file is damaged, of a newer format, or no record.
    """
    try:
        content = path.read_bytes() if path.is_file() else b""  # a pipe would be waited for
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}). Restore it, or start a new store.") from error
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    end = body.find(b"\n", len(_MAGIC))
    if not body.startswith(_MAGIC) or end < 0 or hashlib.sha256(body).digest() != digest:
        raise StoreError(f"{path} is damaged (its checksum does not fit). Restore it, or start a new store.")
    try:
        header = json.loads(body[len(_MAGIC) : end])
        if header["format"] > FORMAT:
            raise StoreError(
                f"{path} has format {header['format']}, and this probgen reads up to {FORMAT}. Use a newer probgen."
            )
        arrays, at = [], end + 1
        for name, shape in header["arrays"]:
            dtype = np.dtype(name)
            if dtype.kind not in _KINDS or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError
            count = math.prod(shape)
            if at + count * dtype.itemsize > len(body):
                raise ValueError
            arrays.append(np.frombuffer(body, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
        if at != len(body) or not isinstance(header["meta"], dict):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path} does not hold what a record holds. Restore it, or start a new store.") from error
    return Record(header["meta"], arrays)


def pack(tree: Any) -> list[np.ndarray]:
    """The arrays of a pytree; typed keys as their bits."""
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [np.asarray(jax.random.key_data(a) if _is_key(a) else a) for a in arrays]


def unpack(template: Any, arrays: Sequence[np.ndarray], path: Path) -> Any:
    """A pytree with the structure of ``template`` (arrays as ``jax.ShapeDtypeStruct``) and the arrays of a record.

    Raises:
        StoreError: If number, shape or dtype of the arrays is another.
    """
    leaves, treedef = jax.tree.flatten(template)
    wanted = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    filled = [_restored(leaf, array, path) for leaf, array in zip(wanted, arrays, strict=False)]
    if len(arrays) != len(wanted):
        raise _misfit(path)
    arrived = iter(filled)
    return jax.tree.unflatten(
        treedef, [next(arrived) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in leaves]
    )


def _restored(leaf: jax.ShapeDtypeStruct, array: np.ndarray, path: Path) -> jax.Array:
    if _is_key(leaf):
        bits = jax.eval_shape(jax.random.key_data, leaf)
        if array.dtype == bits.dtype and array.shape == bits.shape:
            return jax.random.wrap_key_data(jnp.asarray(array), impl=_impl(leaf))
    elif array.dtype == leaf.dtype and array.shape == leaf.shape:
        return jnp.asarray(array)
    raise _misfit(path)


def _misfit(path: Path) -> StoreError:
    return StoreError(f"{path} holds the state of another sampler. Start a new store.")


def _impl(leaf: jax.ShapeDtypeStruct) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
