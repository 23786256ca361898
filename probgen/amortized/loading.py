"""Amortized posteriors on disk."""

from __future__ import annotations

import os

from probgen.amortized.amortized import Amortized, AmortizedPosterior
from probgen.amortized.amortized_likelihood import AmortizedLikelihood
from probgen.amortized.composed_score import ComposedPosterior, RowEncoded
from probgen.amortized.encoded import LearnedEncoded
from probgen.amortized.gnpe import PosedEncoded, PosedPosterior
from probgen.amortized.joint import AmortizedJoint
from probgen.amortized.joint_flow import LearnedJoint
from probgen.amortized.learned_likelihood import LearnedLikelihood
from probgen.base.errors import StoreError
from probgen.generative import saving

__all__ = ["load"]


def load(folder: str | os.PathLike[str]) -> Amortized:
    """Read an amortized posterior that ``save`` wrote. Files are data: nothing in them is executed.

    Raises:
        StoreError: If the folder holds none, is damaged, or was written by a newer probgen.
    """
    law = saving.load(folder)
    if isinstance(law, LearnedEncoded) and isinstance(law.family, RowEncoded):
        return ComposedPosterior(law=law)
    if isinstance(law, LearnedEncoded) and isinstance(law.family, PosedEncoded):
        return PosedPosterior(law=law)
    if isinstance(law, LearnedEncoded):
        return AmortizedPosterior(law=law)
    if isinstance(law, LearnedJoint):
        return AmortizedJoint(law=law)
    if isinstance(law, LearnedLikelihood):
        return AmortizedLikelihood(law=law)
    raise StoreError(
        f"{os.fspath(folder)} holds no amortized posterior, but a {type(law).__name__}. Use pg.generative.load."
    )
