"""How far apart draws of a chain must be to count as independent, from many short chains together."""

from __future__ import annotations

import numpy as np

__all__ = ["autocorrelation_time"]


def autocorrelation_time(draws: np.ndarray) -> float:
    r"""Largest autocorrelation time of any quantity, :math:`1 + 2 \sum_k \rho_k`, in draws.

    The autocorrelations are averaged over groups, so that short chains suffice; the sum ends where a pair of them is
    no longer above noise (after Geyer 1992). A rough estimate: it misses what is correlated over more than a chain.

    Args:
        draws: Shape ``(groups, chains, draws, quantities)``; the chains of a group have one mean and one variance,
            other groups may have others.
    """
    _, chains, length, _ = draws.shape
    if length < 4:
        return 1.0
    mean = draws.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.rfft(draws - mean, 2 * length, axis=2)) ** 2
    covariance = np.fft.irfft(power.mean(1), axis=1)[:, :length]
    variance = covariance[:, :1]
    # Constants that are computed anew differ by rounding. A discrete site can be constant in some groups.
    moving = np.sqrt(variance / length) > 1e-6 * np.abs(mean[:, 0])
    groups = moving.sum(0)[0]
    if not groups.any():
        return 1.0
    # Every group has the same weight, whatever its scale; each lag has fewer pairs than the one before.
    correlation = np.where(moving, covariance / np.where(moving, variance, 1.0), 0.0)
    correlation = correlation * (length / (length - np.arange(length)))[:, None]
    rho = correlation[..., groups > 0].sum(0) / groups[groups > 0]
    # Subtracting the group's own mean takes about 1 / n from every lag.
    rho = rho[: max(length // 2, min(length, 8))] + 1 / (chains * length)
    pairs = rho[1:-1:2] + rho[2::2]
    going = np.cumprod(pairs > 2 / np.sqrt(groups[groups > 0] * chains * length), axis=0)
    return float((1 + 2 * (pairs * going).sum(0)).max())
