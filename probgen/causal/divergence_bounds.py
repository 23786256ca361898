r"""Bounds where the law of a potential outcome differs between the arms by a bounded divergence.

In the model of Jin, Ren and Zhou (2022), the law :math:`Q` of :math:`Y(a)` given :math:`x` among the units of the other
arm satisfies :math:`D_f(Q \| P) \le \rho`, where :math:`P` is the law of :math:`Y` given :math:`x` in the arm. The
largest mean of :math:`Y(a)` given :math:`x` is then

.. math:: \pi_a \, E_P Y + (1 - \pi_a) \max \{ E_Q Y : D_f(Q \| P) \le \rho \} .

For the divergence of Kullback and Leibler and a normal law the maximum is :math:`\mu + \sigma \sqrt{2 \rho}`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from probgen.base.errors import MethodError
from probgen.causal.divergence import KL, Divergence
from probgen.causal.marginal_bounds import check_probabilities
from probgen.causal.outcome_law import Law, Points, mean, points
from probgen.program.handlers import base_of

__all__ = ["check_rho", "divergence_bounds", "extreme_means"]


def divergence_bounds(
    outcome: Law,
    propensity: ArrayLike,
    divergence: Divergence,
    rho: float,
    *,
    support: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """Smallest and largest mean of the outcome under one arm, given covariates.

    Args:
        outcome: Law of the outcome in that arm given covariates: a NumPyro distribution of batch shape B, or draws of
            shape ``(k, *B)``, which are taken as the law itself.
        propensity: Probability of that arm given covariates, in (0, 1), shape B.
        divergence: ``KL()``, ``TotalVariation()``, ``ChiSquare()`` or ``Hellinger()``.
        rho: Largest divergence of the law in the other arm, at least 0; 0 gives the mean twice.
        support: Smallest and largest possible outcome; None takes those of the law, or of the draws.

    Returns:
        Lower and upper bounds, each of shape B.

    Raises:
        MethodError: If ``rho < 0``, or the bound is infinite because outcomes are unbounded.
        DataError: If a propensity does not lie in (0, 1).
    """
    e, centre = check_probabilities(propensity), mean(outcome)
    low, high = extreme_means(outcome, divergence, rho, support=support)
    return centre + (1 - e) * (low - centre), centre + (1 - e) * (high - centre)


def extreme_means(
    outcome: Law, divergence: Divergence, rho: float, *, support: tuple[float, float] | None = None
) -> tuple[Array, Array]:
    """Smallest and largest mean of the outcome within a ball around its law; arguments as above."""
    check_rho(rho)
    law = base_of(outcome) if isinstance(outcome, Distribution) else outcome
    if isinstance(law, dist.Normal) and isinstance(divergence, KL):
        own: Any = law
        reach = own.scale * jnp.sqrt(2 * jnp.asarray(rho, jnp.result_type(float)))
        return own.loc - reach, own.loc + reach
    if isinstance(law, Distribution) and divergence.needs_support and support is None and not _bounded(law):
        raise MethodError(
            f"a law within any {type(divergence).__name__} ball may have an arbitrarily large mean where outcomes are "
            f"unbounded. Give support=(smallest, largest), or use KL() or ChiSquare()."
        )
    return _extremes(points(law), divergence, jnp.asarray(rho, jnp.result_type(float)), support)


def check_rho(rho: Any) -> None:
    """Raise unless a radius is finite and not negative."""
    if not isinstance(rho, Tracer) and not (np.all(np.asarray(rho) >= 0) and np.isfinite(rho).all()):
        raise MethodError(f"rho must be finite and at least 0, got {rho}. Use 0 for no confounding.")


@partial(jax.jit, static_argnames=("divergence", "support"))
def _extremes(
    law: Points, divergence: Divergence, rho: Array, support: tuple[float, float] | None
) -> tuple[Array, Array]:
    values, weights = law
    if support is not None:
        values = jnp.clip(values, *support)
    centre = jnp.sum(weights * values, axis=0)
    ends = []
    for sign, end in ((-1, 0), (1, 1)):
        signed = sign * values
        top = signed.max(axis=0)
        if support is not None:
            top = jnp.maximum(top, sign * support[end])
        # A radius of zero has no dual solution; the search is kept away from it.
        found = divergence.largest_mean(Points(signed, weights), jnp.where(rho > 0, rho, 1.0), top)
        ends.append(sign * jnp.where(rho > 0, jnp.clip(found, sign * centre, top), sign * centre))
    return ends[0], ends[1]


def _bounded(law: Distribution) -> bool:
    support: Any = law.support
    ends = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    return "boolean" in type(support).__name__.lower() or all(
        end is not None and bool(np.isfinite(end).all()) for end in ends
    )
