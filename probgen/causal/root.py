"""The root of a function of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["root"]


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a continuous function changes sign between ``low`` and ``high``, to about twelve digits."""
    from scipy.optimize import brentq

    found: Any = brentq(function, low, high, xtol=1e-14)
    return float(found)
