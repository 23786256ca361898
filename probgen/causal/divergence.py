r"""Divergences between laws, and the largest mean of an outcome within a ball of each.

For a convex :math:`f` with :math:`f(1) = 0`, :math:`D(Q \| P) = E_P f(w)`, :math:`w = dQ / dP`. The largest
:math:`E_Q Y` with :math:`D(Q \| P) \le \rho` is a minimum over one number, by convex duality (Duchi and Namkoong, 2021):

.. math::
   \text{KL}, \; f = w \log w: &\quad \min_{\eta > 0} \; \tfrac{1}{\eta} \bigl( \log E e^{\eta Y} + \rho \bigr) \\
   \chi^2, \; f = (w - 1)^2: &\quad \min_\eta \; \eta + \sqrt{1 + \rho} \, \sqrt{E (Y - \eta)_+^2} \\
   \text{Hellinger}, \; f = 1 - \sqrt w: &\quad \min_{\eta > \sup Y} \; \eta - \frac{(1 - \rho)^2}{E (\eta - Y)^{-1}} \\
   \text{total variation}, \; f = \tfrac12 |w - 1|: &\quad (1 - \rho) \, U_\rho + \rho \, \sup Y ,

where :math:`U_\rho` is the mean of the upper share :math:`1 - \rho`. The last two are infinite where the outcome has no
largest value.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import logsumexp

from probgen.causal.outcome_law import Points

__all__ = ["KL", "ChiSquare", "Divergence", "Hellinger", "TotalVariation"]

_BISECTIONS, _RANGE = 52, 30.0


class Divergence(abc.ABC):
    """A divergence of laws. Subclasses are frozen."""

    needs_support = False
    """Whether the largest mean is infinite where outcomes have no largest value."""

    @abc.abstractmethod
    def largest_mean(self, law: Points, rho: Array, top: Array) -> Array:
        """The largest mean within a ball.

        Args:
            law: Points and weights, shapes (k, ...).
            rho: Radius, positive.
            top: Largest possible value, at least that of the points, shape (...).

        Returns:
            Shape (...).
        """

    @abc.abstractmethod
    def radius(self, ratio: Array) -> Array:
        """The function f, of ratios of densities."""


@dataclass(frozen=True)
class KL(Divergence):
    """Kullback and Leibler's divergence of the shifted law from that of the data, in nats."""

    def largest_mean(self, law: Points, rho: Array, top: Array) -> Array:
        values, weights = law
        most = values.max(axis=0)
        below, spread = values - most, _spread(law)

        def log_moment(eta: Array) -> Array:
            return logsumexp(eta * below, axis=0, b=weights)

        def too_far(eta: Array) -> Array:
            tilted = weights * jnp.exp(eta * below)
            slope = jnp.sum(tilted * below, axis=0) / jnp.sum(tilted, axis=0)
            return eta * slope - log_moment(eta) > rho

        eta = 1 / _search(lambda s: too_far(1 / s), spread)
        return most + (log_moment(eta) + rho) / eta

    def radius(self, ratio: Array) -> Array:
        return jnp.where(ratio > 0, ratio * jnp.log(jnp.where(ratio > 0, ratio, 1.0)), 0.0)


@dataclass(frozen=True)
class ChiSquare(Divergence):
    """Pearson's divergence: the variance of the ratio of densities."""

    def largest_mean(self, law: Points, rho: Array, top: Array) -> Array:
        values, weights = law
        most = values.max(axis=0)
        below = values - most

        def moments(s: Array) -> tuple[Array, Array]:
            above = jnp.maximum(below + s, 0)
            return jnp.sum(weights * above, axis=0), jnp.sum(weights * above**2, axis=0)

        def too_far(s: Array) -> Array:
            first, second = moments(s)
            return second > (1 + rho) * first**2

        s = _search(too_far, _spread(law))
        return most - s + jnp.sqrt((1 + rho) * moments(s)[1])

    def radius(self, ratio: Array) -> Array:
        return (ratio - 1) ** 2


@dataclass(frozen=True)
class Hellinger(Divergence):
    """Hellinger's divergence, one less the expected root of the ratio of densities: from 0 to 1."""

    needs_support = True

    def largest_mean(self, law: Points, rho: Array, top: Array) -> Array:
        values, weights = law

        def moments(s: Array) -> tuple[Array, Array]:
            inverse = 1 / (top + s - values)
            return jnp.sum(weights * inverse, axis=0), jnp.sum(weights * inverse**2, axis=0)

        kept = jnp.maximum(1 - rho, 0.0) ** 2

        def too_far(s: Array) -> Array:
            first, second = moments(s)
            return first**2 < kept * second

        s = _search(too_far, _spread(law))
        return top + s - kept / moments(s)[0]

    def radius(self, ratio: Array) -> Array:
        return 1 - jnp.sqrt(ratio)


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Largest difference of probabilities: from 0 to 1."""

    needs_support = True

    def largest_mean(self, law: Points, rho: Array, top: Array) -> Array:
        values, weights = law
        order = jnp.argsort(values, axis=0)
        ordered = jnp.take_along_axis(values, order, axis=0)
        mass = jnp.take_along_axis(jnp.broadcast_to(weights, values.shape), order, axis=0)
        kept = jnp.clip(jnp.cumsum(mass, axis=0) - rho, 0.0, mass)
        return jnp.sum(kept * ordered, axis=0) + (1 - jnp.sum(kept, axis=0)) * top

    def radius(self, ratio: Array) -> Array:
        return 0.5 * jnp.abs(ratio - 1)


def _spread(law: Points) -> Array:
    centre = jnp.sum(law.weights * law.values, axis=0)
    spread = jnp.sqrt(jnp.sum(law.weights * (law.values - centre) ** 2, axis=0))
    return jnp.where(spread > 0, spread, 1.0)


def _search(too_far: Callable[[Array], Array], scale: Array) -> Array:
    """The number at which a condition, true for small numbers, ceases to hold: bisection of the logarithm.

    The dual is flat at its minimum, so that its value is known to twice as many digits.
    """

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        far = too_far(scale * jnp.exp(middle))
        return jnp.where(far, middle, low), jnp.where(far, high, middle)

    start = jnp.full(scale.shape, _RANGE, scale.dtype)
    low, high = lax.fori_loop(0, _BISECTIONS, halve, (-start, start))
    return scale * jnp.exp((low + high) / 2)
