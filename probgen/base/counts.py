"""Whether a setting is a count."""

from __future__ import annotations

from typing import Any

__all__ = ["is_count"]


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an int of at least ``least``; ``True`` and ``False`` are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
