r"""Pareto :math:`\hat k`: how heavy the tail of draws, or of importance weights, is; many samples at once.

The largest values beyond a cutoff follow a generalised Pareto distribution with shape k: moments of order 1/k and
above do not exist. The fit is that of Zhang and Stephens (2009), Technometrics 51(3), with the prior of Vehtari,
Simpson, Gelman, Yao and Gabry (2024), JMLR 25(72), which pulls short tails towards 0.5. The numbers are those of ArviZ
(the tests compare them).
"""

from __future__ import annotations

import numpy as np

__all__ = ["pareto_k", "tail_length", "weights_k"]

LEAST = 5
"""Fewest values that make a tail."""
_BLOCK = 1 << 22
_PRIOR_WEIGHT, _PRIOR_SHAPE, _PRIOR_QUARTILE = 10, 0.5, 3


def tail_length(draws: int, efficiency: float = 1.0) -> int:
    """How many of ``draws`` values count as the tail, when an effective share ``efficiency`` of them is independent."""
    return int(min(draws / 5, 3 * np.sqrt(draws / efficiency)))


def pareto_k(x: np.ndarray, length: int) -> np.ndarray:
    """Shape of the heavier of the two tails of each sample, shape ``(samples,)``; NaN where a tail has no spread.

    Args:
        x: Draws, shape ``(samples, draws)``.
        length: Values in a tail, see ``tail_length``.
    """
    ordered = np.sort(x, axis=-1)
    right = ordered[:, -length:] - ordered[:, -length - 1, None]
    left = ordered[:, length, None] - ordered[:, length - 1 :: -1]
    return np.fmax(_fit(right), _fit(left))


def weights_k(log_w: np.ndarray, length: int | None = None) -> np.ndarray:
    """Shape of the right tail of importance weights, shape ``(samples,)``.

    Args:
        log_w: Log weights, up to a constant, shape ``(samples, draws)``.
        length: Values in the tail; as many as for independent draws by default.
    """
    length = tail_length(log_w.shape[-1]) if length is None else length
    if length < LEAST:
        return np.full(len(log_w), np.nan)
    largest = np.sort(np.partition(log_w, -length - 1, axis=-1)[:, -length - 1 :], axis=-1)
    w = np.exp(largest - largest[:, -1:])
    return _fit(w[:, 1:] - w[:, :1])


def _fit(tail: np.ndarray) -> np.ndarray:
    """Shape of exceedances over a cutoff, ascending, shape ``(samples, n)``."""
    n = tail.shape[-1]
    k = np.full(len(tail), np.nan)
    if n < LEAST:
        return k
    quartile = tail[:, int(n / 4 + 0.5) - 1]
    fit = np.flatnonzero((quartile > tail[:, 0]) & np.isfinite(tail[:, -1]))
    points = 30 + int(np.sqrt(n))
    for rows in np.array_split(fit, max(1, -(-fit.size * points * n // _BLOCK))):
        if rows.size:
            k[rows] = _shape(tail[rows], quartile[rows], points)
    return k


def _shape(tail: np.ndarray, quartile: np.ndarray, points: int) -> np.ndarray:
    from scipy.special import logsumexp

    n = tail.shape[-1]
    grid = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    # theta = -k / sigma, at which the likelihood is profiled over k.
    theta = grid / (_PRIOR_QUARTILE * quartile[:, None]) + 1 / tail[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.log1p(-theta[..., None] * tail[:, None, :]).mean(-1)
        profile = n * (np.log(-theta / shape) - shape - 1)
        profile = np.where(np.isfinite(profile), profile, -np.inf)
        weight = np.exp(profile - logsumexp(profile, axis=-1, keepdims=True))
        best = np.sum(weight * theta, axis=-1, keepdims=True)
        k = np.log1p(-best * tail).mean(-1)
    k = (n * k + _PRIOR_WEIGHT * _PRIOR_SHAPE) / (n + _PRIOR_WEIGHT)
    return np.where(np.isnan(k), np.inf, k)
