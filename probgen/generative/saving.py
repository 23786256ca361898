"""Learned distributions on disk: a folder with a description in JSON and the arrays in a checked record.

The description names classes, and a class is only made if it is a ``Part`` that has been imported: a folder from
elsewhere is data. Nothing in it is executed, and an array is taken only if it has the shape and type that
the family's own network has there.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError, StoreError
from probgen.base.part import Part
from probgen.generative.family import Family, Spec
from probgen.generative.learned import Learned
from probgen.run.output import unwritable, write_whole
from probgen.run.record import pack, read_record, unpack, write_record

__all__ = ["load", "save"]

VERSION = 1
_JSON, _ARRAYS = "model.json", "arrays"
_LARGEST = 2**20


def save(model: Learned, folder: str | os.PathLike[str]) -> None:
    """Write a learned distribution.

    Args:
        model: From ``fit``. A condition that it was ``given``, ``in_data_space`` and the ``history`` are not kept; those
            of models that are parts of the family are, but for the history.
        folder: A new folder, or one that holds a learned distribution, which is replaced.

    Raises:
        StoreError: If the folder cannot be written or holds something else.
        MethodError: If the family has settings that a file cannot hold, such as functions.
    """
    if not isinstance(model, Learned):
        raise MethodError(f"save got a {type(model).__name__}, expected what fit(...) returns.")
    folder = Path(os.path.realpath(folder))  # what a link points to is replaced, not the link
    _check_replaceable(folder)
    arrays: list[np.ndarray] = []
    described = {
        "version": VERSION,
        "family": _described(model.family, arrays, type(model.family).__name__),
        "spec": _described(model.spec, arrays, "spec"),
        "settings": len(arrays),
    }
    arrays += pack(model.net)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            fresh, old = Path(scratch) / "new", _old(folder)
            fresh.mkdir()  # with the usual permissions, which the scratch folder has not
            write_whole(fresh / _JSON, [json.dumps(described, indent=1).encode() + b"\n"])
            write_record(fresh / _ARRAYS, {}, arrays)
            _replace(folder, fresh, old)
    except OSError as error:
        raise unwritable(folder, error) from error


def _check_replaceable(folder: Path) -> None:
    """Only what ``save`` wrote is ever removed."""
    if not os.path.lexists(folder):
        return
    inside = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if _JSON not in inside:
        raise StoreError(f"{folder} exists and holds no learned distribution. Choose another folder.")
    foreign = sorted(inside - {_JSON, _ARRAYS})
    if foreign:
        raise StoreError(
            f"{folder} would be replaced, and holds more than a learned distribution: {foreign[0]}. Choose another folder."
        )


def _old(folder: Path) -> Path:
    """Where a model is while its successor takes its place."""
    return folder.with_name(f".{folder.name}.old")


def _replace(folder: Path, fresh: Path, old: Path) -> None:
    """Put a new folder in the place of an old one, which is whole under one of two names until the new one is there."""
    if folder.exists():
        if old.exists():  # a process that was killed has left it, and the newer one is in place
            shutil.rmtree(old)
        folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(folder: str | os.PathLike[str]) -> Learned:
    """Read a learned distribution.

    Raises:
        StoreError: If the folder holds none, is damaged, or was written by a newer probgen.
    """
    folder = Path(os.path.realpath(folder))
    if not folder.exists() and _old(folder).exists():  # save() was killed between two names
        folder = _old(folder)
    file = folder / _JSON
    try:
        plain = stat.S_ISREG(file.stat().st_mode) and file.stat().st_size <= _LARGEST  # a pipe would be waited for
        described = json.loads(file.read_text()) if plain else None
    except OSError as error:
        raise StoreError(
            f"{folder} holds no learned distribution ({error.strerror}). Give the folder of save()."
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file) from error
    if not isinstance(described, dict) or not isinstance(described.get("version"), int):
        raise _damaged(file)
    if described["version"] > VERSION:
        raise StoreError(
            f"{folder} has version {described['version']}, and this probgen reads up to {VERSION}. Use a newer probgen."
        )
    arrays = read_record(folder / _ARRAYS).arrays
    try:
        family, spec = _made(described["family"], arrays), _made(described["spec"], arrays)
        template = _template(family, spec)
        own = arrays[described["settings"] :]
        return family.distribution(unpack(template, own, folder / _ARRAYS), spec)
    except Exception as error:  # whatever a class makes of settings that it would not have written
        raise _damaged(file) from error


def _template(family: Any, spec: Any) -> Any:
    """The network of a family, without its numbers."""
    if not (isinstance(family, Family) and isinstance(spec, Spec)):
        raise TypeError
    family.check(spec)
    return eqx.filter_eval_shape(family.build, jax.random.key(0), spec)


def _damaged(file: Path) -> StoreError:
    return StoreError(f"{file} does not hold what save() writes. Restore it, or save the model anew.")


def _described(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    """A setting as JSON; arrays go to ``arrays``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, tuple | list):
        return [_described(v, arrays, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Array | np.ndarray):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, Learned):
        inner = {"family": _described(value.family, arrays, where), "spec": _described(value.spec, arrays, where)}
        first = len(arrays)
        arrays += pack(value.net)
        described = {"learned": inner, "first": first, "count": len(arrays) - first, "noise_space": value.noise_space}
        return described | {"condition": _described(value.condition, arrays, where)}
    if isinstance(value, Part) and dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if _home(_classes()[type(value).__name__]) != _home(type(value)):
            raise MethodError(
                f"{where} is a {_home(type(value))}, and another class of that name is imported, so the name in a file would "
                f"not tell them apart. Rename it."
            )
        return {
            "class": type(value).__name__,
            "fields": {name: _described(v, arrays, f"{where}.{name}") for name, v in fields.items()},
        }
    raise MethodError(
        f"{where} is {value!r}, which a file of data cannot hold. Use numbers, arrays, and the objects of probgen."
    )


def _made(value: Any, arrays: list[np.ndarray]) -> Any:
    """What ``_described`` described."""
    if isinstance(value, list):
        return tuple(_made(v, arrays) for v in value)
    if not isinstance(value, dict):
        return value
    if "number" in value:
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[value["number"]]
    if "array" in value:
        return jnp.asarray(arrays[value["array"]])
    if "learned" in value:
        family, spec = _made(value["learned"]["family"], arrays), _made(value["learned"]["spec"], arrays)
        template = _template(family, spec)
        own = arrays[value["first"] : value["first"] + value["count"]]
        made = family.distribution(unpack(template, own, Path(_ARRAYS)), spec)
        if value["condition"] is not None:
            made = made.given(_made(value["condition"], arrays))
        return made if value["noise_space"] or not made.noise_space else made.in_data_space()
    cls = _classes()[value["class"]]
    made = object.__new__(cls)
    fields = {name: _made(v, arrays) for name, v in value["fields"].items()}
    if set(fields) != {f.name for f in dataclasses.fields(cls)}:
        raise ValueError
    return _checked(made, fields)


def _checked(made: Any, fields: dict[str, Any]) -> Any:
    """Fill in the fields, and let the class judge them."""
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    for cls in type(made).__mro__:
        if "__check_init__" in vars(cls):
            cls.__check_init__(made)
    return made


def _classes() -> dict[str, type]:
    """By name, those of probgen first; of classes that were defined anew (in a notebook) the last."""
    found: dict[str, type] = {}
    todo = Part.__subclasses__()
    for cls in todo:
        if inspect.isabstract(cls):  # no object is one, so it takes no name
            todo += cls.__subclasses__()
            continue
        there = found.get(cls.__name__)
        if there is None or not _home(there).startswith("probgen.") or _home(there) == _home(cls):
            found[cls.__name__] = cls
        todo += cls.__subclasses__()
    return found


def _home(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
