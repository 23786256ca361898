r"""Bounds where two units with equal covariates differ in their odds of treatment by a bounded factor.

In the model of Yadlowsky, Namkoong, Basu, Duchi and Tian (2022), which is that of Rosenbaum (2002) with covariates, the
odds of treatment given covariates and a hidden confounder differ between any two of its values by a factor of at most
:math:`\Gamma`. Among the units of the other arm the smallest mean of :math:`Y(a)` is the number :math:`\theta(x)` with

.. math:: E[(Y - \theta)_+ | x, a] = \Gamma \, E[(Y - \theta)_- | x, a] ,

which minimises :math:`E[(Y - \theta)_+^2 + \Gamma (Y - \theta)_-^2 | x, a]`, so that it can be learned by regression;
the smallest mean of :math:`Y(a)` is :math:`\pi_a m + (1 - \pi_a) \theta`. The largest has the signs exchanged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from probgen.causal.marginal_bounds import check_gamma, check_probabilities
from probgen.causal.outcome_law import Law, expected_excess, mean

__all__ = ["expectile_bounds", "worst_expectiles"]

_NEWTON = 40


def expectile_bounds(outcome: Law, propensity: ArrayLike, gamma: float) -> tuple[Array, Array]:
    """Smallest and largest mean of the outcome under one arm, given covariates.

    Args:
        outcome: Law of the outcome in that arm given covariates: a NumPyro distribution of batch shape B, or draws of
            shape ``(k, *B)``.
        propensity: Probability of that arm given covariates, in (0, 1), shape B.
        gamma: Bound of the odds ratio between two units, at least 1; 1 gives the mean twice.

    Returns:
        Lower and upper bounds, each of shape B.

    Raises:
        MethodError: If ``gamma < 1``.
        DataError: If a propensity does not lie in (0, 1).
    """
    e, centre = check_probabilities(propensity), mean(outcome)
    low, high = worst_expectiles(outcome, gamma)
    return centre + (1 - e) * (low - centre), centre + (1 - e) * (high - centre)


def worst_expectiles(outcome: Law, gamma: float) -> tuple[Array, Array]:
    """Smallest and largest mean of the outcome under an arm among the units of the other arm; shapes as above."""
    law = outcome if isinstance(outcome, Distribution) else jnp.asarray(outcome)
    return _compiled(law, jnp.asarray(check_gamma(gamma), jnp.result_type(float)))


@jax.jit
def _compiled(outcome: Law, ratio: Array) -> tuple[Array, Array]:
    centre = mean(outcome)

    def excess(c: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda c: expected_excess(outcome, c), (c,), (jnp.ones_like(c),))

    # Both equations are monotone, one concave and one convex, so that Newton's method from the mean cannot overshoot.
    def lower(_: int, c: Array) -> Array:
        value, slope = excess(c)
        return c + (ratio * (centre - c) - (ratio - 1) * value) / (ratio + (ratio - 1) * slope)

    def upper(_: int, c: Array) -> Array:
        value, slope = excess(c)
        return c + ((centre - c) + (ratio - 1) * value) / (1 - (ratio - 1) * slope)

    start = centre + jnp.zeros_like(expected_excess(outcome, centre))
    return lax.fori_loop(0, _NEWTON, lower, start), lax.fori_loop(0, _NEWTON, upper, start)
