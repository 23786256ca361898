"""Columns of numbers out of data frames and mappings, with the errors that a wrong table deserves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, suggestion

if TYPE_CHECKING:
    import pandas

    type Data = pandas.DataFrame | Mapping[str, Any]

__all__ = ["binary", "coded", "column", "labels", "names_of", "numbers"]

_LEVELS = 5000


def column(data: Data, name: str) -> np.ndarray:
    """One column as it stands, of shape (n,).

    Raises:
        DataError: If there is no such column, or it is not one value per row, or values are missing.
    """
    if not hasattr(data, "keys"):
        raise DataError(
            f"data must be a DataFrame or a mapping of arrays, got {type(data).__name__}. Name the columns."
        )
    keys = list(data.keys())
    found = [key for key in keys if key == name] or [key for key in keys if str(key) == str(name)]
    if not found:
        raise DataError(f"the data have no column {name!r}. {suggestion(str(name), [str(key) for key in keys])}")
    if len(found) > 1:
        raise DataError(f"the data have {len(found)} columns named {name!r}. Rename or drop all but one.")
    values = np.asarray(data[found[0]])
    if values.ndim != 1:
        raise DataError(f"the column {name!r} has the shape {values.shape}, expected one value per row. Split it up.")
    if not len(values):
        raise DataError(f"the column {name!r} has no rows. Is the table empty, or filtered too far?")
    if values.dtype.kind == "O" and all(isinstance(value, int | float | np.number | bool) for value in values):
        values = values.astype(float)
    if values.dtype.kind in "biu":  # whole numbers and booleans have no value for what is missing
        return values
    absent = np.isnan(values) if values.dtype.kind == "f" else np.array([_is_absent(value) for value in values])
    if absent.any():
        rows = ", ".join(map(str, np.flatnonzero(absent)[:3]))
        raise DataError(
            f"the column {name!r} has {int(absent.sum())} missing values (rows {rows}{', …' if absent.sum() > 3 else ''}). "
            f"Drop these rows, or impute them."
        )
    return values


def _is_absent(value: Any) -> bool:
    # The missing value of pandas has no truth value, so it is told by its name before it is compared.
    return value is None or str(value) in ("<NA>", "NaT") or bool(value != value)


def names_of(given: str | Iterable[Any]) -> list[str]:
    """Names of columns as text; one name is a list of one."""
    return [given] if isinstance(given, str) else [str(name) for name in given]


def labels(data: Data, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of a column of labels of any kind, and the place of each row among them.

    Raises:
        DataError: As ``column``.
    """
    values = column(data, name)
    if values.dtype.kind == "O":  # text and numbers side by side have no order
        values = values.astype(str)
    levels, which = np.unique(values, return_inverse=True)
    return levels, which


def _is_category(data: Data, name: str) -> bool:
    """Whether pandas was told that a column holds categories, be they written as numbers."""
    found = [key for key in data.keys() if key == name] or [key for key in data.keys() if str(key) == name]  # noqa: SIM118
    return hasattr(getattr(data[found[0]], "dtype", None), "categories")


def numbers(data: Data, name: str) -> np.ndarray:
    """One column of finite numbers, as floats of shape (n,).

    Raises:
        DataError: As ``column``; or if it does not hold finite numbers.
    """
    values = column(data, name)
    if values.dtype.kind not in "biuf":
        raise DataError(f"the column {name!r} holds {values[:1].tolist()}, expected numbers. Code it as numbers.")
    values = values.astype(float)
    if not np.isfinite(values).all():
        raise DataError(f"the column {name!r} has infinite values. Drop these rows, or cap them.")
    return values


def binary(data: Data, name: str) -> np.ndarray:
    """One column of zeros and ones.

    Raises:
        DataError: As ``numbers``; or if there are other values, or only one of the two.
    """
    values = numbers(data, name)
    found = np.unique(values)
    if not np.array_equal(found, [0.0, 1.0]):
        shown = ", ".join(f"{value:g}" for value in found[:4])
        raise DataError(f"the column {name!r} holds {shown}, expected both 0 and 1. Code it so.")
    return values


def coded(data: Data, names: Iterable[str] | Sequence[str]) -> tuple[np.ndarray, dict[str, list[int]], list[str]]:
    """Covariates as columns of numbers: text and pandas categories become indicators of all levels but the first.

    Args:
        data: The table.
        names: The covariates.

    Returns:
        The columns, shape (n, p); by covariate the places of its columns; and the names of the columns.

    Raises:
        DataError: As ``column``; or if a category has very many levels.
    """
    names = list(names)
    parts, places, own_names = [], {}, []
    for name in names:
        values = column(data, name)
        if values.dtype.kind in "biuf" and not _is_category(data, name):
            part, own = numbers(data, name)[:, None], [name]
        else:
            levels, which = np.unique(values.astype(str), return_inverse=True)
            if len(levels) > _LEVELS:
                raise DataError(
                    f"the column {name!r} has {len(levels):,} categories, more than {_LEVELS:,}. Subtract their means "
                    f"from all columns first, or use coarser categories."
                )
            part = (which[:, None] == np.arange(1, len(levels))).astype(float)
            own = [f"{name}={level}" for level in levels[1:]]
        places[name] = list(range(len(own_names), len(own_names) + len(own)))
        own_names += own
        parts.append(part)
    rows = {len(part) for part in parts}
    if len(rows) > 1:
        raise DataError(f"the covariates have different lengths {sorted(rows)}. Give one value per row of each.")
    return np.concatenate(parts, axis=1) if parts else np.zeros((0, 0)), places, own_names
