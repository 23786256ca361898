"""Checks of settings that several methods share: one sentence what is wrong, one what to do."""

from __future__ import annotations

import numbers
from typing import Any

from probgen.base.errors import MethodError, suggestion
from probgen.infer.nuts import METRICS

__all__ = ["check_count", "check_fraction", "check_metric", "check_positive"]


def check_fraction(name: str, value: Any, usual: float) -> None:
    """Raise ``MethodError`` unless ``value`` lies strictly between 0 and 1."""
    if not _is_number(value) or not 0 < value < 1:
        raise MethodError(f"{name} must lie between 0 and 1, got {value!r}. {usual:g} is usual.")


def check_positive(name: str, value: Any, usual: float) -> None:
    """Raise ``MethodError`` unless ``value`` is a positive, finite number."""
    if not _is_number(value) or not 0 < value < float("inf"):
        raise MethodError(f"{name} must be a positive number, got {value!r}. {usual:g} is usual.")


def check_count(name: str, value: Any, least: int, usual: int) -> None:
    """Raise ``MethodError`` unless ``value`` is an int of at least ``least``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise MethodError(f"{name} must be an int of at least {least}, got {value!r}. {usual} is usual.")


def check_metric(metric: Any) -> None:
    """Raise ``MethodError`` for a metric that does not exist."""
    if metric not in METRICS:
        raise MethodError(f"metric is {metric!r}. {suggestion(str(metric), METRICS)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
