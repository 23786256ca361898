r"""Statistics of matched pairs that are sums of scores over the pairs in which the treated unit did better.

For pairs with the absolute differences :math:`|d_i|` and scores :math:`q_i \ge 0`, the statistic is
:math:`T = \sum_i q_i \, 1\{d_i > 0\}`. If in each pair the probability that the treated one is the one with the larger
outcome is at most :math:`p`, the distribution of :math:`T` is stochastically largest when it equals :math:`p` in all
of them, independently (Rosenbaum, 1987). Scores are 1 for the sign test, which for binary outcomes is McNemar's, and
the ranks of :math:`|d_i|` for Wilcoxon's signed rank test.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["PairStatistic", "SignTest", "SignedRank"]


class PairStatistic(abc.ABC):
    """Scores of pairs, the law of their sum, and the effects that they are blind to."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What the test is called."""

    @abc.abstractmethod
    def scores(self, differences: np.ndarray) -> np.ndarray:
        """Scores of the pairs, shape (pairs,); multiples of one half."""

    @abc.abstractmethod
    def exact(self, differences: np.ndarray) -> bool:
        """Whether the law of the sum is computed exactly for these pairs; otherwise it is its normal limit."""

    @abc.abstractmethod
    def tail(self, scores: np.ndarray, p: float, exact: bool) -> Callable[[float], float]:
        """Probability that the sum is at least a value, when each score counts with probability ``p``."""

    @abc.abstractmethod
    def crossings(self, differences: np.ndarray) -> np.ndarray:
        """Effects at which the statistic of ``differences - effect`` drops by one unit, sorted."""

    def value(self, differences: np.ndarray) -> float:
        """The statistic."""
        return float(self.scores(differences)[differences > 0].sum())


@dataclass(frozen=True)
class SignTest(PairStatistic):
    """In how many pairs the treated unit did better; for a binary outcome McNemar's test. Always exact."""

    @property
    def name(self) -> str:
        return "sign test"

    def scores(self, differences: np.ndarray) -> np.ndarray:
        return np.ones(len(differences))

    def exact(self, differences: np.ndarray) -> bool:
        return True

    def tail(self, scores: np.ndarray, p: float, exact: bool) -> Callable[[float], float]:
        from scipy.stats import binom

        return lambda value: float(binom.sf(round(value) - 1, len(scores), p))

    def crossings(self, differences: np.ndarray) -> np.ndarray:
        return np.sort(differences)


@dataclass(frozen=True)
class SignedRank(PairStatistic):
    """Wilcoxon's signed rank test; average ranks for ties, pairs without difference left out.

    Attributes:
        exact_up_to: Number of pairs up to which p-values are exact; for more they use the normal limit.
    """

    exact_up_to: int = 200

    @property
    def name(self) -> str:
        return "Wilcoxon signed rank test"

    def scores(self, differences: np.ndarray) -> np.ndarray:
        from scipy.stats import rankdata

        return rankdata(np.abs(differences))

    def exact(self, differences: np.ndarray) -> bool:
        return len(differences) <= self.exact_up_to

    def tail(self, scores: np.ndarray, p: float, exact: bool) -> Callable[[float], float]:
        if exact:
            # Twice the scores are integers, also with ties: convolve one pair after the other.
            doubled = np.rint(2 * scores).astype(int)
            law = np.zeros(doubled.sum() + 1)
            law[0], top = 1.0, 0
            for step in doubled:
                top += step
                law[step : top + 1] = (1 - p) * law[step : top + 1] + p * law[: top + 1 - step]
                law[:step] *= 1 - p
            above = np.append(np.cumsum(law[::-1])[::-1], 0.0)
            return lambda value: float(min(above[min(round(2 * value), len(law))], 1.0))
        from scipy.stats import norm

        mean, sd = p * float(scores.sum()), math.sqrt(p * (1 - p) * float(scores @ scores))
        return lambda value: float(norm.sf((value - mean) / sd))

    def crossings(self, differences: np.ndarray) -> np.ndarray:
        # The statistic counts the averages of pairs of differences (with themselves as well) above zero.
        first, second = np.triu_indices(len(differences))
        return np.sort((differences[first] + differences[second]) / 2)
