"""What probgen raises, and how a run can end.

Every message has two sentences: what is wrong (the site or the argument, what was got, what was expected), and what to
do.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from typing import Any

__all__ = [
    "DataError",
    "Ended",
    "MethodError",
    "ModelError",
    "NotIdentified",
    "ProbgenError",
    "ProbgenWarning",
    "StoreError",
    "suggestion",
]


class ProbgenError(Exception):
    """Base of every error that probgen raises on purpose."""


class ModelError(ProbgenError, ValueError):
    """The program cannot be read as a model: a duplicate site, a support that moves, an unknown name."""


class DataError(ProbgenError, ValueError):
    """The data do not fit the program: a missing argument, NaN, a value outside the support, a wrong shape."""


class MethodError(ProbgenError, ValueError):
    """The method cannot run this model, or its settings are not valid."""


class StoreError(ProbgenError, OSError):
    """A file cannot be read or written safely."""


class NotIdentified(ProbgenError):
    """The causal query has no estimand in this graph.

    Attributes:
        hedge: The ``pg.causal.Hedge`` that proves so; ``None`` where the reason is another.
        recanting: The ``pg.causal.RecantingDistrict`` that proves so for a natural or path-specific effect, or ``None``.
        advice: Sentences that say what can be done instead.
    """

    def __init__(self, message: str, *, hedge: Any = None, recanting: Any = None, advice: tuple[str, ...] = ()):
        super().__init__(message)
        self.hedge = hedge
        self.recanting = recanting
        self.advice = advice


class ProbgenWarning(UserWarning):
    """Something that a careful reader would want to know, and that does not stop the run."""


class Ended(enum.Enum):
    """How a run ended; ``.value`` is a sentence for people."""

    completed = "The run completed."
    unfinished = "The run has not ended, or was killed; the draws made until then are there."
    interrupted = "The run was interrupted; the draws made until then are kept."
    no_start = "No starting point with a finite log density was found."
    diverged = "A value that must be finite became NaN or infinite during the run."
    impossible = "All particles had weight zero at some step: nothing that they became explains the data there."
    chains_disagree = "The chains do not agree with one another: none of them alone has seen the whole posterior."
    not_converged = "The optimisation stopped before it had converged."


def suggestion(name: str, options: Iterable[str]) -> str:
    """Return a sentence that names the nearest option, or lists them all when none is near."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Choose from: {', '.join(options)}." if options else "There are none to choose from."
