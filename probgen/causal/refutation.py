r"""Refutations: what an estimator says where the answer is known.

Each changes the data and estimates again, many times: with a treatment that does nothing, or an outcome that nothing
moves, the effects must scatter around zero; with a further covariate of noise, on subsets, or on bootstrap samples,
around the estimate. What passes is not proved: hidden confounding passes all of them (see ``pg.causal.sensitivity``).
"""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from probgen.base.errors import MethodError, ProbgenWarning
from probgen.causal.estimate import Estimate
from probgen.causal.estimation import generator
from probgen.causal.matching import Matching

if TYPE_CHECKING:
    import pandas

    from probgen.causal.problem import Problem

__all__ = [
    "Bootstrap",
    "DummyOutcome",
    "PlaceboTreatment",
    "RandomCommonCause",
    "Refutation",
    "RefutationResult",
    "SubsetOfData",
    "refute",
]

_LEVEL = 0.01


@dataclasses.dataclass(frozen=True)
class RefutationResult:
    """What a refutation found.

    Attributes:
        name: Name of the refutation.
        expected: The effect that it should find.
        values: Effects that it found, shape (refits,).
        p_value: Of the hypothesis that they scatter around what is expected.
    """

    name: str
    expected: float
    values: np.ndarray = dataclasses.field(repr=False)
    p_value: float

    @property
    def sd(self) -> float:
        """Standard deviation of the effects."""
        return float(self.values.std(ddof=1))

    @property
    def passed(self) -> bool:
        """Whether the p-value is at least 0.01."""
        return self.p_value >= _LEVEL


@dataclasses.dataclass(frozen=True)
class Refutation(abc.ABC):
    """A way to change the data such that the answer is known.

    Attributes:
        refits: How often, at least 20.
    """

    refits: int = 100

    def __post_init__(self) -> None:
        if self.refits < 20:
            raise MethodError(f"refits must be at least 20, got {self.refits}. Use 100.")

    @abc.abstractmethod
    def changed(self, rng: np.random.Generator, problem: Problem) -> Problem:
        """The problem with changed data."""

    @abc.abstractmethod
    def judged(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        """What the effects on changed data say."""

    def refuses(self, estimate: Estimate) -> str:
        """Why this refutation cannot treat the estimate; empty if it can."""
        del estimate
        return ""

    def run(self, rng: np.random.Generator, estimate: Estimate) -> RefutationResult:
        """Estimate again with changed data."""
        problem = estimate.problem
        assert problem is not None
        estimator = estimate.estimator
        if getattr(estimator, "trim", None) is not None:  # the units that were left out are left out already
            estimator = dataclasses.replace(estimator, trim=None)  # pyright: ignore[reportArgumentType]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbgenWarning)  # of weak instruments and little overlap: said already
            values = [estimator.fit(rng, self.changed(rng, problem)).value for _ in range(self.refits)]
        return self.judged(estimate, np.array(values))

    def _around_zero(self, values: np.ndarray) -> RefutationResult:
        """The mean effect is zero: a t test."""
        from scipy.stats import t

        statistic = float(values.mean()) / (float(values.std(ddof=1)) / math.sqrt(len(values)))
        return RefutationResult(type(self).__name__, 0.0, values, float(2 * t.sf(abs(statistic), len(values) - 1)))

    def _around(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        """The estimate is not far out among the effects: a normal test."""
        from scipy.stats import norm

        spread = max(float(values.std(ddof=1)), 1e-12 * (1 + abs(estimate.value)))
        statistic = (float(values.mean()) - estimate.value) / spread
        return RefutationResult(type(self).__name__, estimate.value, values, float(2 * norm.sf(abs(statistic))))


@dataclasses.dataclass(frozen=True)
class PlaceboTreatment(Refutation):
    """Treatment, with its instruments, is that of another unit: the effect is zero."""

    def changed(self, rng: np.random.Generator, problem: Problem) -> Problem:
        order = rng.permutation(len(problem))
        return dataclasses.replace(problem, t=problem.t[order], z=problem.z[order])

    def judged(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        return self._around_zero(values)


@dataclasses.dataclass(frozen=True)
class DummyOutcome(Refutation):
    """The outcome is noise with the mean and the spread of the true one (zeros and ones stay so): the effect is zero."""

    def changed(self, rng: np.random.Generator, problem: Problem) -> Problem:
        y = problem.y
        if np.isin(y, (0.0, 1.0)).all():
            return dataclasses.replace(problem, y=rng.permutation(y))
        return dataclasses.replace(problem, y=rng.normal(y.mean(), y.std(), len(y)))

    def judged(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        return self._around_zero(values)


@dataclasses.dataclass(frozen=True)
class RandomCommonCause(Refutation):
    """A further covariate of noise: the effect stays what it is."""

    def changed(self, rng: np.random.Generator, problem: Problem) -> Problem:
        name = "noise"
        while name in problem.places:
            name += "_"
        x = np.column_stack([problem.x, rng.normal(size=len(problem))])
        places = {**problem.places, name: [problem.x.shape[1]]}
        return dataclasses.replace(problem, x=x, columns=(*problem.columns, name), places=places)

    def judged(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        return self._around(estimate, values)


@dataclasses.dataclass(frozen=True)
class SubsetOfData(Refutation):
    """A random part of the units (of the clusters, where there are any): the effect stays what it is, with more scatter.

    Attributes:
        share: Share of the units, between 0 and 1.
    """

    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise MethodError(f"share must lie between 0 and 1, got {self.share}. Use 0.8.")

    def changed(self, rng: np.random.Generator, problem: Problem) -> Problem:
        clusters = np.arange(len(problem)) if problem.clusters is None else problem.clusters
        names = np.unique(clusters)
        kept = rng.permutation(names)[: max(round(self.share * len(names)), 2)]
        return problem.take(np.isin(clusters, kept))

    def judged(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        return self._around(estimate, values)


@dataclasses.dataclass(frozen=True)
class Bootstrap(Refutation):
    """Units (clusters, where there are any) drawn with replacement: effects scatter around the estimate.

    Their standard deviation is a standard error. It is not valid for matching. Copies of a unit stay in one fold.
    """

    def refuses(self, estimate: Estimate) -> str:
        return "the bootstrap is not valid for matching" if isinstance(estimate.estimator, Matching) else ""

    def changed(self, rng: np.random.Generator, problem: Problem) -> Problem:
        if problem.clusters is None:
            rows = rng.integers(len(problem), size=len(problem))
            return dataclasses.replace(problem.take(rows), clusters=rows)
        order = np.argsort(problem.clusters, kind="stable")
        names, starts, sizes = np.unique(problem.clusters[order], return_index=True, return_counts=True)
        drawn = rng.integers(len(names), size=len(names))
        rows = np.concatenate([order[starts[c] : starts[c] + sizes[c]] for c in drawn])
        return problem.take(rows)

    def judged(self, estimate: Estimate, values: np.ndarray) -> RefutationResult:
        return self._around(estimate, values)


def refute(
    estimate: Estimate,
    refutations: Refutation | Sequence[Refutation] | None = None,
    *,
    seed: int | jax.Array = 0,
) -> pandas.DataFrame:
    """Estimate again where the answer is known.

    Args:
        estimate: What ``pg.causal.estimate`` returned.
        refutations: One or several; None takes all that suit the estimator.
        seed: An int or a typed JAX key.

    Returns:
        A row per refutation: what was expected, the mean and the standard deviation of the effects, a p-value, and
        whether it passed (p at least 0.01).

    Raises:
        MethodError: If the estimate does not come from data, or a refutation does not suit it.
    """
    import pandas

    if not isinstance(estimate, Estimate) or estimate.problem is None:
        raise MethodError(
            "refutations need an estimate from data. Give what pg.causal.estimate returned for an estimator of data."
        )
    given: list[Refutation]
    if refutations is None:
        every = [PlaceboTreatment(), DummyOutcome(), RandomCommonCause(), SubsetOfData(), Bootstrap()]
        given = [one for one in every if not one.refuses(estimate)]
    else:
        given = [refutations] if isinstance(refutations, Refutation) else list(refutations)
        for one in given:
            reason = one.refuses(estimate) if isinstance(one, Refutation) else f"{one!r} is no refutation"
            if reason:
                raise MethodError(f"this refutation cannot be run: {reason}. Choose another.")
    rng = generator(seed)
    found = [one.run(rng, estimate) for one in given]
    rows = {
        one.name: (one.expected, float(one.values.mean()), one.sd, one.p_value, one.passed, len(one.values))
        for one in found
    }
    names = ["expected", "found", "sd", "p_value", "passed", "refits"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("refutation")
