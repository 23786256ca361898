r"""Linear regression by asymmetric losses: quantiles and expectiles.

The coefficients of the quantile :math:`\tau` minimise :math:`\sum_i w_i \rho_\tau(y_i - x_i b)`,
:math:`\rho_\tau(r) = (\tau - 1_{r < 0}) r`. The kink is smoothed by a normal kernel whose width shrinks from step to step
to a thousandth of the spread of the residuals (Fernandes, Guerre and Horta, 2021), so that Newton's method serves.
"""

from __future__ import annotations

import numpy as np

from probgen.base.errors import MethodError

__all__ = ["quantile_coefficients"]

_WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_STEPS, _HALVINGS, _MANY = 15, 25, 20_000


def quantile_coefficients(x: np.ndarray, y: np.ndarray, level: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Coefficients of a linear quantile.

    Args:
        x: Columns, with a constant among them, shape (n, p).
        y: Outcomes, shape (n,).
        level: Level of the quantile, in (0, 1).
        weights: Positive weights of rows, shape (n,).

    Returns:
        Shape (p,).
    """
    if not 0 < level < 1:
        raise MethodError(f"the level of a quantile must lie between 0 and 1, got {level}.")
    from scipy.special import ndtr

    if len(y) > 2 * _MANY:
        # A part of the rows says almost where: the rest takes a few steps.
        part = slice(None, None, len(y) // _MANY)
        b = quantile_coefficients(x[part], y[part], level, None if weights is None else weights[part])
        widths, steps = _WIDTHS[-3:-2], 2
    else:
        b, widths, steps = None, _WIDTHS, _STEPS
    w = np.ones_like(y) if weights is None else weights / weights.mean()
    root = np.sqrt(w)
    start = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0] if b is None else b
    residual = y - x @ start
    spread = float(np.sqrt(np.mean(w * residual**2)))
    if spread == 0:
        return start
    # Start at the quantile of the residuals: the first column that is constant takes it up.
    if b is None:
        constant = np.linalg.lstsq(x, np.ones(len(y)), rcond=None)[0]
        b = start + constant * np.quantile(residual, level)

    def loss(b: np.ndarray, width: float) -> float:
        z = (y - x @ b) / width
        return float(np.mean(w * width * (z * (level - ndtr(-z)) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))))

    for width in spread * np.array(widths):
        value = loss(b, width)
        for _ in range(steps):
            z = (y - x @ b) / width
            slope = x.T @ (w * (ndtr(-z) - level)) / len(y)
            density = w * np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi))
            curvature = (x * density[:, None]).T @ x / len(y)
            curvature += 1e-8 * (np.trace(curvature) / len(b) + 1e-12) * np.eye(len(b))
            step = np.linalg.solve(curvature, slope)
            moved = False
            for halving in range(_HALVINGS):
                new = b - step * 0.5**halving
                found = loss(new, width)
                if found <= value - 1e-4 * 0.5**halving * float(slope @ step):
                    moved, b, gain, value = True, new, value - found, found
                    break
            if not moved or gain < 1e-12 * spread:
                break
    return b
