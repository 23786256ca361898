"""Numbers in sentences: as many digits as the reader can use, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["figures", "interval", "joined", "p_value", "percent"]


def figures(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where that stays short."""
    if not math.isfinite(value):
        return {math.inf: "infinity", -math.inf: "minus infinity"}.get(value, "nan")
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -5 <= size <= 6:
        # Rounding may carry into a new digit: 0.09996 has three digits as 0.100.
        places = max(digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))), 0)
        return f"{value:,.{places}f}"
    return f"{value:.{digits - 1}e}"


def percent(share: float, digits: int = 3) -> str:
    """A share in per cent; what falls short of all of it is not rounded up to that."""
    shown = figures(100 * share, digits)
    return f"{'nearly ' if share < 1 and shown == '100' else ''}{shown} %"


def interval(limits: tuple[float, float], digits: int = 3) -> str:
    """Two limits with the same number of decimals, as ``-0.006 to 0.067``."""
    size = max(abs(limit) for limit in limits)
    if not math.isfinite(size) or size == 0 or not 1e-5 <= size < 1e7:
        return " to ".join(figures(limit, digits) for limit in limits)
    places = max(digits - 1 - math.floor(math.log10(size)), 0)
    return " to ".join(f"{round(limit, places) + 0.0:,.{places}f}" for limit in limits)


def p_value(p: float) -> str:
    """A p-value with its sign: ``p = 0.021``, ``p < 0.0001``."""
    if p < 1e-4:
        return "p < 0.0001"
    return f"p = {figures(p, 2)}"


def joined(words: Sequence[str]) -> str:
    """Words with commas and a last ``and``."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
