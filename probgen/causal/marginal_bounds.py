r"""Sharp bounds under Tan's marginal sensitivity model (Tan, 2006; Dorn and Guo, 2023; Frauen et al., 2023).

A hidden confounder :math:`U` may change the odds of treatment by a factor of at most :math:`\Gamma \ge 1` either way,

.. math:: \frac{1}{\Gamma} \le \frac{P(A = a | x, u)}{P(A \ne a | x, u)} \Big/ \frac{\pi_a(x)}{1 - \pi_a(x)} \le \Gamma .

With :math:`\tau = \Gamma / (1 + \Gamma)`, the mean :math:`m = E[Y | x, a]`, and the mean :math:`U_\tau` of the upper
share :math:`1 - \tau` of :math:`Y | x, a`, the largest mean of :math:`Y(a)` given :math:`x` is

.. math:: m + (1 - \pi_a) \Bigl(1 - \frac{1}{\Gamma}\Bigr) (U_\tau - m) ,

and no smaller bound holds; the smallest mean has the mean of the lower share in its place. Bounds of the two arms are
attained together, so that those of a difference are differences of bounds.

The *continuous* model (Jesson et al., 2022; Frauen et al., 2023) bounds the ratio of densities of a dose,
:math:`1 / \Gamma \le p(a | x, u) / p(a | x) \le \Gamma`; its sharp bounds are the same formula with :math:`\pi_a = 0`.

From data with propensity scores :math:`e_i` of the arm, two estimators of the bounds of :math:`E Y(a)`:
``weighted_bounds`` is the extreme of the normalised weighted mean of the arm with weights
:math:`1 + z_i (1 - e_i) / e_i`, :math:`z_i \in [1 / \Gamma, \Gamma]` (Zhao, Small and Bhattacharya, 2019): valid, not
sharp. ``quantile_balancing`` adds that the weights balance a quantile of the outcome given the covariates, and is sharp
if that quantile is right, valid if it is not (Dorn and Guo, 2023).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from probgen.base.errors import DataError, MethodError
from probgen.causal.outcome_law import Law, lower_tail_mean, mean, upper_tail_mean
from probgen.causal.quantile_regression import quantile_coefficients

__all__ = [
    "check_gamma",
    "check_probabilities",
    "continuous_marginal_bounds",
    "marginal_bounds",
    "marginal_effect_bounds",
    "quantile_balancing",
    "weighted_bounds",
]


def marginal_bounds(outcome: Law, propensity: ArrayLike, gamma: float) -> tuple[Array, Array]:
    """Smallest and largest mean of the outcome under one arm, given covariates.

    Args:
        outcome: Law of the outcome in that arm given covariates: a NumPyro distribution of batch shape B, or draws of
            shape ``(k, *B)``.
        propensity: Probability of that arm given covariates, in (0, 1), shape B.
        gamma: Bound of the odds ratio, at least 1; 1 gives the mean twice.

    Returns:
        Lower and upper bounds, each of shape B.

    Raises:
        MethodError: If ``gamma < 1``, or the law has no quantiles that could be computed.
        DataError: If a propensity does not lie in (0, 1).
    """
    return _bounds(outcome, check_probabilities(propensity), check_gamma(gamma))


def marginal_effect_bounds(
    treated: Law, control: Law, propensity: ArrayLike, gamma: float, weights: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Smallest and largest effect given covariates, or their average.

    Args:
        treated: Law of the outcome of the treated given covariates, as in ``marginal_bounds``.
        control: Law of the outcome of the controls.
        propensity: Probability of treatment, in (0, 1), shape B.
        gamma: Bound of the odds ratio, at least 1.
        weights: Weights of the values of the covariates, shape B, whose average is wanted; None gives every value.

    Returns:
        Lower and upper bounds, each of shape B, or numbers where there are ``weights``.
    """
    e = check_probabilities(propensity)
    low, high = _bounds(treated, e, check_gamma(gamma))
    low_control, high_control = _bounds(control, 1 - e, gamma)
    lower, upper = low - high_control, high - low_control
    if weights is None:
        return lower, upper
    return jnp.average(lower, weights=jnp.asarray(weights)), jnp.average(upper, weights=jnp.asarray(weights))


def continuous_marginal_bounds(outcome: Law, gamma: float) -> tuple[Array, Array]:
    """Smallest and largest mean of the outcome at one dose, given covariates.

    Args:
        outcome: Law of the outcome at that dose given covariates, as in ``marginal_bounds``.
        gamma: Bound of the ratio of densities of the dose, at least 1.

    Returns:
        Lower and upper bounds, each of the batch shape of the law.
    """
    return _bounds(outcome, jnp.zeros(()), check_gamma(gamma))


def weighted_bounds(y: ArrayLike, propensity: ArrayLike, gamma: float) -> tuple[float, float]:
    """Extremes of the normalised weighted mean of one arm, by sorting (Zhao, Small and Bhattacharya, 2019).

    Args:
        y: Outcomes of the units in the arm, shape (n,).
        propensity: Their probabilities of being in it, shape (n,).
        gamma: Bound of the odds ratio, at least 1.

    Returns:
        Lower and upper bounds of the mean of the outcome under the arm.
    """
    check_gamma(gamma)
    y, odds = _arm(y, propensity)
    return -_extreme(-y, odds, gamma), _extreme(y, odds, gamma)


def quantile_balancing(
    y: ArrayLike, propensity: ArrayLike, gamma: float, quantiles: tuple[ArrayLike, ArrayLike]
) -> tuple[float, float]:
    """Extremes of the weighted mean of one arm among weights that balance a quantile (Dorn and Guo, 2023).

    Args:
        y: Outcomes of the units in the arm, shape (n,).
        propensity: Their probabilities of being in it, shape (n,).
        gamma: Bound of the odds ratio, at least 1.
        quantiles: Estimates for each of them of the quantiles of the outcome in the arm given covariates at the levels
            1 / (1 + gamma) and gamma / (1 + gamma), shapes (n,).

    Returns:
        Lower and upper bounds of the mean of the outcome under the arm.
    """
    check_gamma(gamma)
    y, odds = _arm(y, propensity)
    ends = []
    for sign, quantile in zip((-1, 1), quantiles, strict=True):
        q = sign * np.asarray(quantile, float)
        if q.shape != y.shape:
            raise DataError(f"quantiles have the shape {q.shape}, expected {y.shape}. Give one per unit of the arm.")
        balanced = np.column_stack([np.ones_like(q), q] if np.ptp(q) > 0 else [np.ones_like(q)])
        line = balanced @ quantile_coefficients(balanced, sign * y, gamma / (1 + gamma), odds)
        above = sign * y - line
        score = line * (1 + odds) + above * (1 + odds * np.where(above > 0, gamma, 1 / gamma))
        ends.append(sign * float(score.sum() / (1 + odds).sum()))
    return ends[0], ends[1]


def check_gamma(gamma: Any) -> Any:
    """The number itself, if it bounds an odds ratio.

    Raises:
        MethodError: If it is less than 1, or not finite.
    """
    if isinstance(gamma, Tracer):
        return gamma
    if not (np.all(np.asarray(gamma) >= 1) and np.isfinite(gamma).all()):
        raise MethodError(
            f"gamma bounds an odds ratio and its inverse, so it must be at least 1, got {gamma}. Use 1 for no "
            f"confounding, 1 / gamma for a ratio below one."
        )
    return gamma


def _bounds(law: Law, propensity: Array, gamma: ArrayLike) -> tuple[Array, Array]:
    return _compiled(law if isinstance(law, Distribution) else jnp.asarray(law), propensity, gamma)


@jax.jit
def _compiled(law: Law, propensity: Array, gamma: ArrayLike) -> tuple[Array, Array]:
    gamma = jnp.asarray(gamma, jnp.result_type(float))
    level, centre = gamma / (1 + gamma), mean(law)
    moved = (1 - propensity) * (1 - 1 / gamma)
    return (
        centre + moved * (lower_tail_mean(law, level) - centre),
        centre + moved * (upper_tail_mean(law, level) - centre),
    )


def check_probabilities(propensity: ArrayLike) -> Array:
    """The array itself, if its numbers lie between 0 and 1.

    Raises:
        DataError: If one does not; the message names it.
    """
    array = jnp.asarray(propensity, jnp.result_type(float))
    if not isinstance(array, Tracer) and not bool(((array > 0) & (array < 1)).all()):
        where = np.flatnonzero(~((np.asarray(array) > 0) & (np.asarray(array) < 1)).ravel())
        raise DataError(
            f"propensities must lie between 0 and 1, got {np.asarray(array).ravel()[where[:3]].tolist()} (units "
            f"{', '.join(map(str, where[:3]))}). There is no overlap there: leave these units out."
        )
    return array


def _arm(y: ArrayLike, propensity: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes, and the odds of being in the other arm."""
    outcome, e = np.asarray(y, float), np.asarray(check_probabilities(propensity), float)
    if outcome.ndim != 1 or len(outcome) == 0 or e.shape != outcome.shape:
        raise DataError(
            f"outcomes and propensities have the shapes {outcome.shape} and {e.shape}, expected one of each per unit."
        )
    if not np.isfinite(outcome).all():
        raise DataError("there are outcomes that are not finite. Leave these units out, or impute them.")
    return outcome, (1 - e) / e


def _extreme(y: np.ndarray, odds: np.ndarray, gamma: float) -> float:
    """The largest weighted mean: large weights belong to the largest outcomes, from some place on."""
    order = np.argsort(y)
    y, odds = y[order], odds[order]
    small, large = 1 + odds / gamma, 1 + odds * gamma

    def both(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Sums of the first so many of one, and the rest of the other."""
        return np.r_[0.0, np.cumsum(first)] + np.r_[np.cumsum(last[::-1])[::-1], 0.0]

    return float(np.max(both(y * small, y * large) / both(small, large)))
