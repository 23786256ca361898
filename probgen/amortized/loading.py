"""Amortized posteriors on disk."""

from __future__ import annotations

import os

from probgen.amortized.amortized import Amortized
from probgen.amortized.amortized_family import AmortizedFamily
from probgen.base.errors import StoreError
from probgen.generative import saving

__all__ = ["load"]


def load(folder: str | os.PathLike[str]) -> Amortized:
    """Read an amortized posterior that ``save`` wrote. Files are data: nothing in them is executed.

    Raises:
        StoreError: If the folder holds none, is damaged, or was written by a newer probgen.
    """
    law = saving.load(folder)
    if not isinstance(law.family, AmortizedFamily):
        raise StoreError(
            f"{os.fspath(folder)} holds no amortized posterior, but a {type(law).__name__}. Use pg.generative.load."
        )
    return law.family.method(law)
