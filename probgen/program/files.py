"""Programs and data on disk, and the gallery of models.

A program file is a Python file that defines ``model``; it may define ``COORDS``, labels by dimension. A model folder
holds ``model.py``, its data (``data.json``, ``data.csv``, ``data.npz`` or ``data.nc``) and a ``README.md``. A
collection holds many program files, their data in ``data/``, and an ``index.json`` that pairs them: ``{"NAME":
{"model": PROGRAM, "data": DATA}}``, both without suffix.

A program file is the user's own code and is executed; data files are only read (no pickle).
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from probgen.base.errors import DataError, ModelError, suggestion
from probgen.base.typing import Program

__all__ = ["Entry", "Matched", "find", "gallery", "load_data", "load_module", "load_program", "match_arguments"]


@dataclass(frozen=True)
class Entry:
    """A model on disk.

    Attributes:
        name: Its name; in the gallery, the path below ``models/``.
        program: The Python file.
        data: The data file that belongs to it, if there is one.
    """

    name: str
    program: Path
    data: Path | None = None

    @property
    def title(self) -> str:
        """First line of the docstring; the program is not executed."""
        try:
            text = ast.get_docstring(ast.parse(self.program.read_text(encoding="utf-8")))
        except (OSError, SyntaxError, ValueError):
            return ""
        return text.splitlines()[0] if text else ""


class Matched(NamedTuple):
    """Columns of a data set, sorted by whether the program takes them."""

    data: dict[str, Any]
    ignored: dict[str, Any]


# -- finding ---------------------------------------------------------------------------------------------------------


def gallery() -> list[Entry]:
    """The models that come with probgen, by name; collections last."""
    inside, beside = Path(__file__).parents[1] / "gallery", Path(__file__).parents[2] / "models"
    root = inside if inside.is_dir() else beside
    folders = root.iterdir() if root.is_dir() else ()
    folders = sorted(folders, key=lambda folder: ((folder / "index.json").is_file(), folder.name))
    return [entry for folder in folders for entry in _entries(folder)]


def find(model: str | Path) -> Entry:
    """The model that a path or a name means.

    Args:
        model: A program file, a model folder, a collection folder followed by a name in it, or a name of the gallery
            (``eight_schools``, also as ``models/eight_schools`` where there is no such folder).

    Raises:
        ModelError: If there is no such file or name, or the folder has no program.
    """
    path = Path(model)
    if path.is_file():
        if path.suffix != ".py":
            raise ModelError(
                f"{path} is not a Python file. Give a .py file that defines model(), or a folder with one."
            )
        return Entry(path.stem, path, _data_beside(path) if path.name == "model.py" else None)
    if path.is_dir():
        entries = _entries(path)
        if len(entries) == 1:
            return entries[0]
        if not entries:
            raise ModelError(
                f"the folder {path} has no model.py. Give a Python file that defines model(), or its folder."
            )
        first = path / Path(entries[0].name).name
        raise ModelError(f"the folder {path} holds {len(entries)} models. Name one of them, for example {first}.")
    if (path.parent / "index.json").is_file():
        entries, wanted = _entries(path.parent), path.name
    else:
        entries, wanted = gallery(), path.as_posix().removeprefix("models/")
    short = {entry.name.rpartition("/")[2]: entry for entry in entries}
    named = {entry.name: entry for entry in entries} | short
    if wanted in named:
        return named[wanted]
    raise ModelError(f"there is no file, folder or gallery model {str(model)!r}. {_nearest(path.name, short)}")


def _entries(folder: Path) -> list[Entry]:
    """The models of a folder: one, those of its index, or none."""
    if (folder / "model.py").is_file():
        return [Entry(folder.name, folder / "model.py", _data_beside(folder / "model.py"))]
    if (folder / "index.json").is_file():
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return [
            Entry(f"{folder.name}/{name}", folder / f"{pair['model']}.py", folder / "data" / f"{pair['data']}.json")
            for name, pair in index.items()
        ]
    return []


def _data_beside(program: Path) -> Path | None:
    return next((path for suffix in _READERS if (path := program.with_name(f"data{suffix}")).is_file()), None)


def _nearest(name: str, options: Iterable[str]) -> str:
    """A suggestion; too long a list is not spelled out."""
    options = list(options)
    if difflib.get_close_matches(name, options, n=1, cutoff=0.6) or len(options) <= 12:
        return suggestion(name, options)
    return "`probgen models` lists those that come with probgen."


# -- programs --------------------------------------------------------------------------------------------------------


def load_program(path: str | Path) -> Program:
    """The function ``model`` of a program file; the file is executed.

    Args:
        path: As for ``find``.

    Raises:
        ModelError: As ``find`` and ``load_module`` do.
    """
    return load_module(find(path).program).model


def load_module(path: Path) -> ModuleType:
    """Execute a program file and return its module, which has a callable ``model``.

    Files beside it can be imported, as when Python runs a script.

    Raises:
        ModelError: If the file raises (the line is shown) or does not define ``model``.
    """
    name = f"_probgen_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look the module of their class up
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{path} raised {type(error).__name__}{_where(path, error)}: {error}. "
            f"Correct the file; `python {path}` shows the whole traceback."
        ) from error
    finally:
        sys.path.pop(0)
    program = getattr(module, "model", None)
    if not callable(program):
        functions = [n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == name]
        has = f"it defines {', '.join(functions)}" if functions else "it defines no function"
        wrong = "is not callable" if hasattr(module, "model") else "is missing"
        raise ModelError(f"`model` {wrong} in {path}; {has}. Call the program `model`: def model(...): ...")
    return module


def _where(path: Path, error: BaseException) -> str:
    """The line of the file at which it raised."""
    if isinstance(error, SyntaxError):
        line, text = error.lineno, error.text
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        line, text = (frames[-1].lineno, frames[-1].line) if frames else (None, None)
    return "" if line is None else f" in line {line} ({(text or '').strip()})"


# -- data ------------------------------------------------------------------------------------------------------------


def load_data(path: str | Path) -> dict[str, Any]:
    """The columns of a data file, by name.

    Args:
        path: JSON (an object: name -> number, list or nested lists), CSV (with a header), npz (arrays by name), or
            netCDF (variables and coordinates); the suffix decides.

    Returns:
        NumPy arrays; single numbers, strings and booleans stay Python values, so that an integer is a size for the
        program. Missing entries are NaN.

    Raises:
        DataError: If the suffix is unknown, or the file is missing or cannot be read as what it claims to be.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} has the suffix {path.suffix!r}. Give a file in one of: {', '.join(_READERS)}.")
    if not path.is_file():
        raise DataError(f"the data file {path} does not exist. Check the path, seen from {Path.cwd()}.")
    try:
        columns = reader(path)
    except DataError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as {path.suffix[1:].lower()}: {reason}. Check the file.") from error
    if not columns:
        raise DataError(f"{path} has no columns. Give one per argument of the program.")
    return {str(name): _plain(path, str(name), value) for name, value in columns.items()}


def _read_json(path: Path) -> Mapping[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise DataError(f'{path} holds a {type(content).__name__}, expected an object. Write {{"argument": [values]}}.')
    return content


def _read_csv(path: Path) -> Mapping[str, Any]:
    import pandas

    table = pandas.read_csv(path, skipinitialspace=True)
    return {name: table[name].to_numpy() for name in table.columns if not str(name).startswith("Unnamed:")}


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_netcdf(path: Path) -> Mapping[str, Any]:
    import xarray

    with xarray.open_dataset(path) as data:
        return {str(name): variable.to_numpy() for name, variable in data.variables.items()}


_READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".json": _read_json,
    ".csv": _read_csv,
    ".npz": _read_npz,
    ".nc": _read_netcdf,
}


def _plain(path: Path, name: str, value: Any) -> Any:
    """Arrays for lists, Python values for single ones, NaN for null."""
    if isinstance(value, dict):
        return {key: _plain(path, f"{name}.{key}", item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    try:
        array = np.asarray(value)
        if array.dtype == object and not any(isinstance(item, str) for item in array.ravel()):
            array = array.astype(float)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"column {name!r} of {path} is not a regular array ({str(error).splitlines()[0]}). "
            f"Give lists of equal lengths, or pad them and pass the lengths."
        ) from error
    return array.item() if array.ndim == 0 else array


def match_arguments(program: Program, columns: Mapping[str, Any]) -> Matched:
    """Give each argument of a program the column of its name.

    Args:
        program: The program.
        columns: Values by name, as ``load_data`` returns them.

    Returns:
        The data for ``pg.Model``, and the columns that the program does not take.

    Raises:
        DataError: If a required argument has no column.
    """
    parameters = inspect.signature(program).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return Matched(dict(columns), {})
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = {p.name for p in named}
    data = {name: value for name, value in columns.items() if name in names}
    ignored = {name: value for name, value in columns.items() if name not in names}
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in data:
            raise DataError(
                f"the program needs the argument {parameter.name!r}, and the data have no column of that name. "
                f"{_meant(parameter.name, ignored)}"
            )
    return Matched(data, ignored)


def _meant(name: str, columns: Iterable[str]) -> str:
    columns = list(columns)
    if not columns:
        return "Add it to the data."
    folded = {column.casefold(): column for column in columns}
    return f"Did you mean {folded[name.casefold()]!r}?" if name.casefold() in folded else suggestion(name, columns)
