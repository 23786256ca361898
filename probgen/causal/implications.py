"""What a graph says about data without any intervention: conditional independences, and whether data agree.

Two nodes are independent given some set in every model of a graph exactly when their ancestors separate them (Richardson
and Spirtes 2002). Where the law is a compositional graphoid (a Gaussian one, say), the statements

    a independent of b given an({a, b}) \\ {a, b},   for all pairs that can be separated,

together imply every independence of the graph (Sadeghi and Lauritzen 2014). Any smaller set that separates a pair says
the same of it with more power, and is what is tested here. Graphs with hidden causes can also imply equality constraints
of another kind (Verma and Pearl 1990), which these tests do not see.

Two columns of numbers are tested by their partial correlation r given k others in n rows: under independence in a linear
Gaussian model sqrt(n - k - 3) artanh(r) is close to standard normal (Fisher 1924). Columns of few categories are tested
by the likelihood ratio G = 2 sum O log(O / E) in each stratum of the others, which is close to chi-square with as many
degrees of freedom as the non-empty tables have (Agresti 2002). p values are made family-wise by Holm's (1979) step-down.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from probgen.base.errors import DataError, MethodError, ModelError
from probgen.causal.columns import coded, column
from probgen.causal.graph import CausalGraph, Names
from probgen.causal.separators import minimal_separators

if TYPE_CHECKING:
    import pandas

    from probgen.causal.columns import Data

__all__ = [
    "GTest",
    "ImplicationCheck",
    "Independence",
    "IndependenceTest",
    "PartialCorrelation",
    "TestResult",
    "check_implications",
    "implications",
]

_SETS = 200
"""Separating sets of a pair among which the smallest is looked for."""
_CATEGORIES = 10
"""Whole numbers with at most so many different values are taken for categories."""


@dataclasses.dataclass(frozen=True)
class Independence:
    """``a`` and ``b`` are independent given ``given``, in every model of the graph."""

    a: str
    b: str
    given: frozenset[str]

    def __str__(self) -> str:
        return f"{self.a} ⊥ {self.b}" + (f" | {', '.join(sorted(self.given))}" if self.given else "")


def implications(graph: CausalGraph, *, among: Names | None = None) -> list[Independence]:
    """The testable implications: one for each pair of nodes that a set of others separates.

    Args:
        graph: The graph.
        among: The nodes that were measured; by default all. Others neither are tested nor stand in sets.

    Returns:
        The independences in topological order. Each set is minimal, and small: the smallest of the first few hundred
        minimal ones. Empty where every two nodes are joined by an edge, or by a path whose inner nodes nothing can
        block (an inducing path).

    Raises:
        ModelError: If a name in ``among`` is not a node.
    """
    kept = frozenset(graph.nodes) if among is None else graph.require(among, "among=")
    marks, allowed = graph.marks, graph.mask(kept)
    found = []
    for a, b in itertools.combinations([name for name in graph.topological if name in kept], 2):
        if (a, b) in graph.directed or frozenset((a, b)) in graph.bidirected:
            continue
        masks = itertools.islice(minimal_separators(marks, graph.mask(a), graph.mask(b), allowed), _SETS)
        sets = sorted((graph.names(mask) for mask in masks), key=lambda names: (len(names), sorted(names)))
        found += [Independence(a, b, known) for known in sets[:1]]
    return found


@dataclasses.dataclass(frozen=True)
class TestResult:
    """What a test of one independence found.

    Attributes:
        statistic: The statistic, by its name in the test's docstring.
        effect: Size of the dependence: between -1 and 1 for a correlation, in nats per row for the G test.
        p: The p value; NaN where the data leave nothing to test.
    """

    __test__ = False  # no test for pytest

    statistic: float
    effect: float
    p: float


class IndependenceTest(Protocol):
    """A test of one conditional independence."""

    @property
    def name(self) -> str:
        """What the test is called in tables."""
        ...

    def __call__(self, data: Data, a: str, b: str, given: Sequence[str]) -> TestResult:
        """Test whether columns ``a`` and ``b`` are independent given others."""
        ...


@dataclasses.dataclass(frozen=True)
class PartialCorrelation:
    """Fisher's z of the partial correlation; exact for linear Gaussian columns as n grows.

    The statistic is z, the effect is the partial correlation. It sees linear dependence only. Categories among what is
    conditioned on become indicators; the two columns themselves must be numbers.
    """

    name: str = dataclasses.field(default="partial correlation", init=False)

    def __call__(self, data: Data, a: str, b: str, given: Sequence[str]) -> TestResult:
        """Test one independence.

        Raises:
            DataError: If a column is missing, has no spread or missing values, or there are too few rows.
        """
        ends, _, labels = coded(data, [a, b])
        if len(labels) > 2:
            raise DataError(
                f"{a!r} or {b!r} holds categories, which have no correlation given numbers. Code it as a number, or "
                f"test it with GTest() given categories."
            )
        others = coded(data, given)[0] if given else np.zeros((len(ends), 0))
        design = np.column_stack([np.ones(len(ends)), others])
        free = len(ends) - others.shape[1] - 3
        if free < 1:
            raise DataError(
                f"there are {len(ends)} rows to test {a!r} and {b!r} given {others.shape[1]} columns, and at least "
                f"{others.shape[1] + 4} are needed. Collect more rows."
            )
        # Scaling keeps the least-squares problem well posed whatever the units are.
        design[:, 1:] = (design[:, 1:] - design[:, 1:].mean(0)) / np.maximum(design[:, 1:].std(0), 1e-300)
        centred = ends - ends.mean(0)
        spread = np.linalg.norm(centred, axis=0)
        for name, size, values in zip((a, b), spread, ends.T, strict=True):
            if size <= 1e-12 * np.linalg.norm(values):
                raise DataError(f"the column {name!r} is constant, so that it tells nothing. Leave it out (among=).")
        rest = centred - design @ np.linalg.lstsq(design, centred, rcond=None)[0]
        left = np.linalg.norm(rest, axis=0)
        if (left <= 1e-10 * spread).any():
            return TestResult(math.nan, math.nan, math.nan)  # one of the two is a function of the others
        correlation = float(np.clip(rest[:, 0] @ rest[:, 1] / left[0] / left[1], -1, 1))
        z = math.inf if abs(correlation) >= 1 else math.sqrt(free) * math.atanh(correlation)
        return TestResult(z, correlation, math.erfc(abs(z) / math.sqrt(2)))


@dataclasses.dataclass(frozen=True)
class GTest:
    """The likelihood-ratio test of independence in each stratum; for columns of few categories.

    The statistic is G, the effect is G / 2n, the estimated conditional mutual information in nats.

    Attributes:
        smallest: The mean number of rows per cell that the chi-square law needs; with fewer the p value is NaN.
    """

    smallest: float = 5.0
    name: str = dataclasses.field(default="G test", init=False)

    def __post_init__(self) -> None:
        if not self.smallest >= 1:
            raise MethodError(f"smallest must be at least 1 row per cell, got {self.smallest}. The usual number is 5.")

    def __call__(self, data: Data, a: str, b: str, given: Sequence[str]) -> TestResult:
        """Test one independence.

        Raises:
            DataError: If a column is missing or has missing values.
        """
        from scipy.special import chdtrc, xlogy

        first, second = (np.unique(_sortable(column(data, name)), return_inverse=True)[1] for name in (a, b))
        stratum = np.zeros(len(first), int)
        for name in given:
            level = np.unique(_sortable(column(data, name)), return_inverse=True)[1]
            stratum = np.unique(stratum * (level.max() + 1) + level, return_inverse=True)[1]
        shape = (int(stratum.max()) + 1, int(first.max()) + 1, int(second.max()) + 1)
        flat = np.ravel_multi_index((stratum, first, second), shape)
        seen = np.bincount(flat, minlength=math.prod(shape)).reshape(shape).astype(float)
        rows, columns, sizes = seen.sum(2), seen.sum(1), seen.sum((1, 2))
        expected = rows[:, :, None] * columns[:, None, :] / sizes[:, None, None]
        statistic = 2 * float((xlogy(seen, seen) - xlogy(seen, expected)).sum())
        levels = (rows > 0).sum(1), (columns > 0).sum(1)
        free = int(((levels[0] - 1) * (levels[1] - 1)).sum())
        cells = (levels[0] * levels[1])[(levels[0] > 1) & (levels[1] > 1)].sum()
        used = sizes[(levels[0] > 1) & (levels[1] > 1)].sum()
        enough = free > 0 and used / cells >= self.smallest
        return TestResult(statistic, statistic / 2 / len(first), float(chdtrc(free, statistic)) if enough else math.nan)


@dataclasses.dataclass(frozen=True)
class ImplicationCheck:
    """The testable implications of a graph against data.

    Attributes:
        table: One row per independence: ``independence``, ``test``, ``statistic``, ``effect``, ``p``, ``p_holm`` and
            ``rejected``, smallest p first.
        findings: Sentences on what contradicts the graph, and on what could not be tested.
        level: The family-wise error rate.
        rows: How many rows the data have.
    """

    table: pandas.DataFrame
    findings: tuple[str, ...]
    level: float
    rows: int

    @property
    def rejected(self) -> bool:
        """Whether the data contradict the graph."""
        return bool(self.table["rejected"].any())

    def __str__(self) -> str:
        return "\n".join([self.table.to_string(index=False), "", *self.findings])


def check_implications(
    graph: CausalGraph,
    data: Data,
    test: IndependenceTest | None = None,
    *,
    level: float = 0.05,
) -> ImplicationCheck:
    """Test the conditional independences of a graph in data.

    Args:
        graph: The graph.
        data: A data frame, or columns by name; nodes without a column are taken as not measured.
        test: How to test; by default ``GTest`` where all columns of an independence hold categories (text, booleans,
            or whole numbers with at most ten values) and ``PartialCorrelation`` elsewhere.
        level: The probability of contradicting a true graph at least once.

    Returns:
        The table and what it means.

    Raises:
        ModelError: If fewer than two nodes have a column.
        DataError: If a column has missing values, is constant, or there are too few rows.
        MethodError: If ``level`` is not between 0 and 1.
    """
    import pandas

    if not 0 < level < 1:
        raise MethodError(f"level must be between 0 and 1, got {level}. The usual level is 0.05.")
    if not hasattr(data, "keys"):
        raise DataError(
            f"data must be a DataFrame or a mapping of arrays, got {type(data).__name__}. Name the columns."
        )
    names = {str(key) for key in data.keys()}  # noqa: SIM118
    measured = [name for name in graph.nodes if name in names]
    if len(measured) < 2:
        raise ModelError(
            f"the data have a column for {len(measured)} of the nodes {', '.join(graph.nodes)}. Name the columns after "
            f"the nodes."
        )
    columns = {name: column(data, name) for name in measured}
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"the columns have different lengths {sizes}. Give one value per row of each.")
    rows = sizes[measured[0]]
    for name, values in columns.items():
        if rows == 0 or (values == values[0]).all():
            raise DataError(f"the column {name!r} is constant, so that it tells nothing. Leave it out of the data.")
    statements = implications(graph, among=measured)
    discrete = {name: _is_discrete(values) for name, values in columns.items()}
    records = []
    for one in statements:
        used = test
        if used is None:
            used = GTest() if all(discrete[n] for n in (one.a, one.b, *one.given)) else PartialCorrelation()
        result = used(columns, one.a, one.b, sorted(one.given))
        records.append({"independence": str(one), "test": used.name, **dataclasses.asdict(result)})
    fields = ["independence", "test", "statistic", "effect", "p"]
    table = pandas.DataFrame.from_records(records, columns=fields).astype({f: float for f in fields[2:]})
    table["p_holm"] = holm(table["p"].to_numpy())
    table["rejected"] = table["p_holm"] < level
    table = table.sort_values("p", kind="stable", ignore_index=True)
    return ImplicationCheck(table, _findings(graph, measured, table, level), level, rows)


def holm(p: np.ndarray) -> np.ndarray:
    """Family-wise p values by Holm's step-down; NaN stays NaN and does not count.

    Args:
        p: p values, shape (m,).
    """
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    raised = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return adjusted


def _findings(graph: CausalGraph, measured: list[str], table: pandas.DataFrame, level: float) -> tuple[str, ...]:
    tested, rejected = table[table["p"].notna()], table[table["rejected"]]
    found = []
    for _, row in rejected.iterrows():
        found.append(
            f"The data contradict {row['independence']} (effect {row['effect']:.3g}, Holm p = {row['p_holm']:.2g}): an "
            f"edge or a hidden cause is missing, or the test's assumptions do not hold."
        )
    missing = [name for name in graph.nodes if name not in measured]
    if missing:
        found.append(f"Not measured, and left out of every test: {', '.join(missing)}.")
    for name in table[table["p"].isna()]["independence"]:
        found.append(f"{name} could not be tested: too few rows per cell, or a column is a function of the others.")
    if not len(table):
        found.append("The graph implies no conditional independence of what was measured, so no data contradict it.")
    elif len(tested) and not len(rejected):
        found.append(
            f"None of {len(tested)} conditional independences is rejected at family-wise level {level:g}. Graphs with "
            f"the same independences would have passed too."
        )
    return tuple(found)


def _is_discrete(values: np.ndarray) -> bool:
    if values.dtype.kind not in "biuf":
        return True
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        return False
    return len(np.unique(values)) <= _CATEGORIES


def _sortable(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "biuf" else values.astype(str)
