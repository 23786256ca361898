r"""Orthogonal scores of sensitivity bounds: averages over units, robust to slow learning of nuisance functions.

For one arm with probability :math:`e`, membership :math:`A`, and :math:`\rho(x)` what the law of the arm says of the
largest mean of :math:`Y(a)` among the units of the other arm, the average of

.. math:: \varphi = A Y + (1 - A) \rho(x) + A \, \frac{1 - e}{e} \, \bigl( h(Y, x) - \rho(x) \bigr) / \nu(x)

is the bound of :math:`E Y(a)`. In the *marginal sensitivity model* (Dorn, Guo and Kallus, 2021), with the quantile
:math:`q(x)` of level :math:`\tau = \Gamma / (1 + \Gamma)`, :math:`\nu = 1` and

.. math::
   h = \frac{Y}{\Gamma} + \Bigl(1 - \frac{1}{\Gamma}\Bigr) \Bigl( q + \frac{(Y - q)_+}{1 - \tau} \Bigr), \qquad
   \rho = E[h | x, a] .

It stays a valid bound if :math:`q` is wrong, provided that :math:`e` or :math:`\rho` is right. In the *model of
Yadlowsky et al.* (2022), :math:`\rho` is the expectile, with :math:`E[(Y - \rho)_+ | x, a] = \Gamma E[(Y - \rho)_- |
x, a]` for the lower bound, :math:`h - \rho = (Y - \rho)_+ - \Gamma (Y - \rho)_-` and :math:`\nu = P(Y > \rho | x, a) +
\Gamma P(Y \le \rho | x, a)`. For :math:`\Gamma = 1` both are augmented inverse probability weighting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.estimate import standard_error
from probgen.causal.marginal_bounds import check_gamma

__all__ = ["ScoredBounds", "expectile_scores", "marginal_scores", "scored_bounds"]

type Score = Callable[[AdjustedStudy, int, float, int], np.ndarray]


class ScoredBounds(NamedTuple):
    """Estimates of two bounds of an average effect.

    Attributes:
        bounds: Lower and upper bound.
        ses: Their standard errors.
        scores: Values of units whose averages are the bounds, shape (2, n).
    """

    bounds: tuple[float, float]
    ses: tuple[float, float]
    scores: np.ndarray


def scored_bounds(study: AdjustedStudy, gamma: float, score: Score) -> ScoredBounds:
    """Bounds of the average effect by scores.

    Args:
        study: The data.
        gamma: Strength of confounding, at least 1.
        score: ``marginal_scores`` or ``expectile_scores``.
    """
    check_gamma(gamma)
    arms = [[score(study, arm, gamma, sign) for sign in (-1, 1)] for arm in (0, 1)]
    scores = np.stack([arms[1][0] - arms[0][1], arms[1][1] - arms[0][0]])
    low, high = scores.mean(axis=1).tolist()
    ses = (standard_error(scores[0] - low, study.clusters), standard_error(scores[1] - high, study.clusters))
    return ScoredBounds((low, high), ses, scores)


def marginal_scores(study: AdjustedStudy, arm: int, gamma: float, sign: int) -> np.ndarray:
    """Scores of the upper (``sign = 1``) or lower bound of the mean under an arm, marginal sensitivity model."""
    e, inside, y = study.chance(arm), study.t == arm, sign * study.y
    if gamma == 1:  # no quantile is needed
        h, rho = y, sign * study.means[arm]
    elif study.binary_outcome:
        # The law on {0, 1} is known from its mean: so are its quantile and the mean of its tail.
        share, p = 1 / (1 + gamma), study.means[arm]
        q = (p > share).astype(float) if sign > 0 else -(p >= 1 - share).astype(float)
        tail = np.minimum(1.0, p / share) if sign > 0 else -np.maximum(0.0, (p - 1 + share) / share)
        h = y / gamma + (1 - 1 / gamma) * (q + np.maximum(y - q, 0) / share)
        rho = sign * p / gamma + (1 - 1 / gamma) * tail
    else:
        share = 1 / (1 + gamma)
        level = 1 - share if sign > 0 else share
        q = sign * study.learn(study.quantile(level), study.y, arm)
        own = y / gamma + (1 - 1 / gamma) * (q + np.maximum(y - q, 0) / share)
        h, rho = own, study.learn(study.mean, own, arm)
    return sign * np.where(inside, y + (1 - e) / e * (h - rho), rho)


def expectile_scores(study: AdjustedStudy, arm: int, gamma: float, sign: int) -> np.ndarray:
    """Scores of the upper (``sign = 1``) or lower bound of the mean under an arm, bounded odds between two units."""
    e, inside, y = study.chance(arm), study.t == arm, -sign * study.y  # the lower bound of the negated outcome
    if gamma == 1:
        rho = -sign * study.means[arm]
        h, nu = y - rho, 1.0
    elif study.binary_outcome:
        p = study.means[arm]
        high = p if sign < 0 else 1 - p  # probability of the larger of the two values of y
        rho = high / (high + gamma * (1 - high)) - (sign > 0)
        h = np.maximum(y - rho, 0) - gamma * np.maximum(rho - y, 0)
        nu = high + gamma * (1 - high)
    else:
        rho = study.learn(study.expectile(gamma), y, arm)
        h = np.maximum(y - rho, 0) - gamma * np.maximum(rho - y, 0)
        below = np.clip(study.learn(study.mean, (y <= rho).astype(float), arm), 0, 1)
        nu = 1 + (gamma - 1) * below
    return -sign * np.where(inside, y + (1 - e) / e * h / nu, rho)
