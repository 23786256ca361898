r"""How well chains mix: rank-normalised split :math:`\hat R`, effective sample sizes, Monte Carlo errors; many
quantities at once.

Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Bayesian Analysis 16(2). The numbers are those of ArviZ (the
tests compare them); ArviZ takes one quantity at a time, which is too slow for thousands.

Arrays have the shape ``(quantities, chains, draws)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

__all__ = ["Mixing", "ess", "measure", "rank_normalised", "rhat", "split"]

TAILS = (0.05, 0.95)
"""The quantiles whose effective sample sizes are the tail's, as published; ArviZ takes 0.11 and 0.89 by default."""


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Numbers of each quantity, arrays of shape ``(quantities,)``.

    Attributes:
        rhat: Rank-normalised split R-hat, the larger of that of the values and of their distances from the median.
        ess_bulk: Effective sample size of the ranks.
        ess_tail: The smaller of the effective sample sizes of the 5 % and the 95 % quantile.
        ess_mean: Effective sample size of the mean.
        ess_within: Effective sample size of the ranks (of the values or of their distances, the smaller) as each chain
            alone would judge it: from correlations within chains, blind to differences between them.
        mean: Mean.
        sd: Standard deviation.
        drift: Mean square of how far the values move in half a run over that in a sixteenth: about 1 for chains that
            have forgotten their past by then, 8 for a random walk, 64 for a straight line.
    """

    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    ess_mean: np.ndarray
    ess_within: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    drift: np.ndarray

    @property
    def mcse_mean(self) -> np.ndarray:
        """Monte Carlo standard error of the mean."""
        return self.sd / np.sqrt(self.ess_mean)

    @staticmethod
    def joined(parts: Iterable[Mixing]) -> Mixing:
        """The numbers of several batches of quantities as one."""
        rows = list(zip(*(dataclasses.astuple(part) for part in parts), strict=True))
        return Mixing(*(np.concatenate(row) for row in rows)) if rows else Mixing(*[np.zeros(0)] * 8)


def measure(x: np.ndarray) -> Mixing:
    """All numbers of quantities that are finite and not constant.

    Args:
        x: Draws, shape ``(quantities, chains, draws)``, at least 4 draws.
    """
    flat = x.reshape(len(x), -1)
    halves = split(x)
    z = rank_normalised(halves)
    middle = np.median(halves, axis=(1, 2), keepdims=True)
    folded = rank_normalised(np.abs(halves - middle))
    tails = np.quantile(flat, TAILS, axis=-1)[..., None, None]
    bulk, within = _ess(z)
    within_folded = _ess(folded)[1]
    tail = np.minimum(*(_ess(split((x <= edge).astype(float)))[0] for edge in tails))
    return Mixing(
        rhat=np.fmax(_rhat(z), _rhat(folded)),  # distances may all be equal, as those of a fair coin are
        ess_bulk=bulk,
        ess_tail=tail,
        ess_mean=_ess(halves)[0],
        ess_within=np.minimum(within, within_folded),
        mean=flat.mean(-1),
        sd=flat.std(-1, ddof=1),
        drift=_drift(x),
    )


def rhat(x: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat, shape ``(quantities,)``."""
    halves = split(x)
    folded = np.abs(halves - np.median(halves, axis=(1, 2), keepdims=True))
    return np.fmax(_rhat(rank_normalised(halves)), _rhat(rank_normalised(folded)))


def ess(x: np.ndarray) -> np.ndarray:
    """Bulk effective sample size, shape ``(quantities,)``."""
    return _ess(rank_normalised(split(x)))[0]


def split(x: np.ndarray) -> np.ndarray:
    """Each chain cut in two: ``(quantities, 2 chains, draws // 2)``; a draw in the middle is left out."""
    half = x.shape[-1] // 2
    return np.concatenate([x[..., :half], x[..., -half:]], axis=1)


def rank_normalised(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks of all values of a quantity."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    ranks = rankdata(x.reshape(len(x), -1), axis=-1)
    return ndtri((ranks - 0.375) / (ranks.shape[-1] + 0.25)).reshape(x.shape)


def _rhat(y: np.ndarray) -> np.ndarray:
    draws = y.shape[-1]
    within = y.var(-1, ddof=1).mean(-1)
    between = draws * y.mean(-1).var(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((between / within + draws - 1) / draws)


def _ess(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Effective sample sizes of the mean of ``y``: from the correlations that all chains show together, and from those
    within chains alone."""
    from scipy.fft import irfft, next_fast_len, rfft

    _, chains, draws = y.shape
    size = next_fast_len(2 * draws, real=True)
    means = y.mean(-1, keepdims=True)
    spectrum = np.mean(np.abs(np.asarray(rfft(y - means, size, axis=-1))) ** 2, axis=1)
    covariance = np.asarray(irfft(spectrum, size, axis=-1))[:, :draws] / draws
    within = covariance[:, :1]
    between = means[..., 0].var(-1, ddof=1)[:, None] if chains > 1 else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        together = 1 - (within * draws / (draws - 1) - covariance) / (within + between)
        alone = covariance / within
    constant = np.ptp(y, axis=(1, 2)) < np.finfo(float).resolution
    total = chains * draws
    times = _time(together, total), _time(alone, total)
    return np.where(constant, total, total / times[0]), np.where(constant, total, total / times[1])


def _time(rho: np.ndarray, total: int) -> np.ndarray:
    """Integrated autocorrelation time by Geyer's initial monotone sequence of sums of adjacent pairs."""
    rho = rho.copy()
    rho[:, 0] = 1.0
    draws = rho.shape[-1]
    most = max(0, -(-(draws - 4) // 2))
    pairs = rho[:, 0 : 2 * most + 1 : 2] + rho[:, 1 : 2 * most + 2 : 2]
    positive = pairs[:, :most] > 0
    count = np.where(positive.all(-1), most, np.argmin(positive, axis=-1) if most else 0)
    monotone = np.minimum.accumulate(pairs, axis=-1)
    used = np.arange(pairs.shape[-1]) < count[:, None]
    rows = np.arange(len(rho))
    last = rho[rows, 2 * count]
    last = np.where((last > 0) | (pairs[rows, count] >= 0), last, 0.0)
    time = -1 + 2 * np.sum(np.where(used, monotone, 0.0), axis=-1) + last
    return np.maximum(time, 1 / np.log10(total))


def _drift(x: np.ndarray) -> np.ndarray:
    half, least = x.shape[-1] // 2, x.shape[-1] // 16
    if not least:
        return np.ones(len(x))
    far, near = (np.mean((x[..., lag:] - x[..., :-lag]) ** 2, axis=(1, 2)) for lag in (half, least))
    return np.divide(far, near, out=np.ones(len(x)), where=near > 0)
