r"""Are numbers uniform? Simultaneous bands around an empirical distribution function, with the exact p-value.

Of :math:`N` independent values, :math:`K_i` lie at or below the point :math:`z_i`. If the values are uniform on (0, 1),
:math:`K_i` is binomial with probability :math:`z_i`, and with :math:`F_i` its distribution function

.. math:: \gamma = \min_i\; 2 \min\{F_i(K_i),\; 1 - F_i(K_i - 1)\}

is small when the worst point lies far out. The band of level :math:`1 - \alpha` holds all paths with :math:`\gamma`
above a quantile, so that the *whole* path leaves it with probability at most :math:`\alpha` (Säilynoja, Bürkner and
Vehtari 2022, Statistics and Computing 32:32). Both the band and the p-value are exact here, not simulated: the path is
a Poisson process given its total, whose probability of staying inside bounds is a sequence of convolutions.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import bdtr, bdtrc, gammaln

__all__ = ["Uniformity", "uniformity"]


class Uniformity:
    """The law of the path of ``count`` independent uniform values at some points.

    Args:
        count: Number of values, :math:`N`.
        points: Points :math:`z_i`, ascending, strictly between 0 and 1.
    """

    def __init__(self, count: int, points: np.ndarray) -> None:
        self.count = count
        self.points = np.asarray(points, float)
        k = np.arange(count + 1)[None, :]
        below = bdtr(k, count, self.points[:, None])
        above = np.where(k == 0, 1.0, bdtrc(np.maximum(k - 1, 0), count, self.points[:, None]))
        self._tails = 2 * np.minimum(below, above)
        self._bands: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def counts(self, values: np.ndarray) -> np.ndarray:
        """How many of the values lie at or below each point: shape ``(n, ...)`` to ``(points, ...)``."""
        flat = np.sort(np.reshape(values, (len(values), -1)), axis=0)
        found = [np.searchsorted(column, self.points, side="right") for column in flat.T]
        return np.reshape(np.stack(found, -1), (len(self.points), *np.shape(values)[1:]))

    def p_value(self, counts: np.ndarray) -> float:
        """Probability that uniform values give a path with a worst point at least as far out.

        Args:
            counts: :math:`K_i`, shape ``(points,)``.
        """
        gamma = float(self._tails[np.arange(len(self.points)), counts].min())
        inside = self._probability(*self._bounds(gamma * (1 + 1e-9)))
        # Between one tail and the sum of all of them: the difference cannot resolve what is smaller than rounding.
        least, most = max(gamma / 2, np.finfo(float).tiny), gamma * len(self.points)
        return float(min(1.0, max(least, min(1 - inside, most))))

    def band(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest :math:`K_i` of the narrowest band that holds at least ``level`` of all paths."""
        if level in self._bands:
            return self._bands[level]
        low, high = 0.0, 1.0
        for _ in range(40):  # the bounds are steps in gamma: the interval shrinks onto the last step that still holds
            gamma = (low + high) / 2
            if self._probability(*self._bounds(gamma)) >= level:
                low = gamma
            else:
                high = gamma
        self._bands[level] = self._bounds(low)
        return self._bands[level]

    def _bounds(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Counts whose tail probability exceeds ``gamma``, at each point; lower > upper where there are none."""
        inside = self._tails > gamma
        lower = np.argmax(inside, 1)
        upper = self.count - np.argmax(inside[:, ::-1], 1)
        none = ~inside.any(1)
        return np.where(none, 1, lower), np.where(none, 0, upper)

    def _probability(self, lower: np.ndarray, upper: np.ndarray) -> float:
        """Probability that the path stays between bounds, both included."""
        if (lower > upper).any():
            return 0.0
        state, first = np.ones(1), 0
        steps = np.diff(self.points, prepend=0.0, append=1.0)
        for low, high, step in zip([*lower, self.count], [*upper, self.count], steps, strict=True):
            arriving = np.convolve(state, _poisson(self.count * step, high - first))
            state, first = arriving[low - first : high - first + 1], low
        return float(state[0] / _poisson(self.count, self.count)[-1])


def _poisson(mean: float, largest: int) -> np.ndarray:
    """Probabilities of 0 ... ``largest``."""
    k = np.arange(largest + 1)
    return np.exp(k * np.log(mean) - mean - gammaln(k + 1.0))


@functools.lru_cache(maxsize=16)
def uniformity(count: int, points: tuple[float, ...]) -> Uniformity:
    """The law for so many values and these points; kept, since every quantity asks the same."""
    return Uniformity(count, np.asarray(points))
