"""The contract of sensitivity models: ways to let a hidden confounder act, with parameters for how strongly.

To add one, write a frozen configuration that derives from ``SensitivityModel``, say in ``refuses`` which subjects it
cannot treat, and fill an ``Analysis`` in ``analyse``: rows of a table, sentences, curves. The door
``probgen.causal.sensitivity`` does the rest: asks the models that fit, puts their tables side by side, draws, writes.

A result that can be looked at in several ways (an estimate that has weights, residuals and the data) offers them in a
method ``sensitivity_subjects()``, which returns a sequence of subjects; each model takes the first that it does not
refuse.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import MethodError
from probgen.causal.analysis import Analysis

__all__ = ["Question", "SensitivityModel", "benchmark_groups"]


@dataclass(frozen=True)
class Question:
    """What is asked of every sensitivity model alike.

    Attributes:
        null: The effect at which the conclusion changes, on the scale of the effect.
        level: Level of confidence intervals.
        benchmarks: Groups of names of observed covariates with which to compare a hidden confounder; None leaves the
            choice to the model.
    """

    null: float = 0.0
    level: float = 0.95
    benchmarks: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.null, int | float | np.number) and math.isfinite(self.null)):
            raise MethodError(f"null must be a finite number, got {self.null!r}. Use 0 for no effect.")
        if not (isinstance(self.level, int | float | np.number) and 0 < self.level < 1):
            raise MethodError(f"level must lie between 0 and 1, got {self.level!r}. Use 0.95, for example.")


class SensitivityModel(abc.ABC):
    """A way in which a hidden confounder may act, with parameters for its strength. Subclasses are frozen."""

    @abc.abstractmethod
    def refuses(self, subject: Any) -> str:
        """Why this model cannot treat the subject, in a sentence that says what it needs; empty if it can."""

    @abc.abstractmethod
    def analyse(self, subject: Any, question: Question) -> Analysis:
        """The analysis of a subject that is not refused.

        Args:
            subject: What was estimated, an ``Estimate``, a ``Regression``, ``MatchedPairs`` ...
            question: Null, level, benchmarks.

        Raises:
            MethodError: If the settings do not suit the subject.
            DataError: If a benchmark is not among the covariates of the subject.
        """


def benchmark_groups(benchmarks: str | Sequence[str | Sequence[str]] | None) -> tuple[tuple[str, ...], ...] | None:
    """Benchmarks as groups of names: ``"age"``, ``["age", "sex"]`` (two benchmarks), ``[("age", "sex")]`` (a group)."""
    if benchmarks is None:
        return None
    given = [benchmarks] if isinstance(benchmarks, str) or not isinstance(benchmarks, Iterable) else list(benchmarks)
    groups = [tuple(one) if isinstance(one, Iterable) and not isinstance(one, str) else (one,) for one in given]
    for group in groups:
        if not group or not all(isinstance(name, str) for name in group):
            raise MethodError(f"benchmarks must be names of covariates or groups of them, got {group!r}. Name columns.")
    return tuple(groups)
