r"""Monotone maps of one number with parameters, from which flows are built.

``inward`` goes from data to noise, :math:`z = g(x; p)`, and ``outward`` back. A network gives the parameters
:math:`p`; any real vector is allowed.

**Rational-quadratic spline** (Durkan et al. 2019). Knots :math:`(x_k, y_k)` with slopes :math:`\delta_k` in a square
:math:`[-B, B]^2`, the identity outside. With :math:`\theta = (x - x_k) / w`, :math:`s = h / w` for a bin of width
:math:`w` and height :math:`h`,

.. math:: g = y_k + \frac{h\,(s\theta^2 + \delta_k\theta(1-\theta))}{s + (\delta_{k+1} + \delta_k - 2s)\,\theta(1-\theta)},
          \qquad
          g' = \frac{s^2(\delta_{k+1}\theta^2 + 2s\theta(1-\theta) + \delta_k(1-\theta)^2)}
                    {(s + (\delta_{k+1} + \delta_k - 2s)\,\theta(1-\theta))^2},

and the inverse solves a quadratic equation.

**Affine** (Dinh, Sohl-Dickstein and Bengio 2017): :math:`g = (x - b)\,e^{-a}` with :math:`a` kept in
:math:`(-\text{limit}, \text{limit})` by a hyperbolic tangent.

**Logistic mixture** (Ho et al. 2019, Flow++): :math:`g = e^a\,\mathrm{logit}\,F(x) + b` with
:math:`F = \sum_i \pi_i\,\sigma((x - \mu_i)\,e^{-s_i})`. The inverse is found by bisection and Newton steps in a bracket
that holds it, :math:`\mu_i + e^{s_i}\,\mathrm{logit} F`, and is differentiated as an implicit function.
"""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part

__all__ = ["Affine", "LogisticMixture", "ScalarTransform", "Spline"]


class ScalarTransform(Part):
    """A monotone map of a number to a number; a configuration, whose parameters come from a network."""

    @property
    @abc.abstractmethod
    def parameters(self) -> int:
        """How many parameters it has."""

    @abc.abstractmethod
    def inward(self, x: Array, p: Array) -> tuple[Array, Array]:
        """From data to noise, entry by entry.

        Args:
            x: Shape ``(n,)``.
            p: Shape ``(n, parameters)``.

        Returns:
            ``z``, and the logs of the slopes dz/dx.
        """

    @abc.abstractmethod
    def outward(self, z: Array, p: Array) -> tuple[Array, Array]:
        """From noise to data: ``x``, and the logs of the slopes dx/dz."""


class Affine(ScalarTransform):
    """Shift and scale.

    Attributes:
        limit: Bound of the log of the scale.
    """

    limit: float = eqx.field(static=True, default=3.0)

    def __check_init__(self) -> None:
        if not self.limit > 0:
            raise MethodError(f"limit bounds the log of a scale, got {self.limit}, expected > 0. Use limit=3.")

    @property
    def parameters(self) -> int:
        return 2

    def inward(self, x: Array, p: Array) -> tuple[Array, Array]:
        log_scale = self.limit * jnp.tanh(p[:, 1] / self.limit)
        return (x - p[:, 0]) * jnp.exp(-log_scale), -log_scale

    def outward(self, z: Array, p: Array) -> tuple[Array, Array]:
        log_scale = self.limit * jnp.tanh(p[:, 1] / self.limit)
        return z * jnp.exp(log_scale) + p[:, 0], log_scale


class Spline(ScalarTransform):
    """A rational-quadratic spline.

    Attributes:
        bins: Number of bins.
        bound: Half the side of the square, in standard deviations of the data; the identity is outside.
        least: Smallest slope at a knot, and smallest width and height of a bin as a share of an even one.
    """

    bins: int = eqx.field(static=True, default=8)
    bound: float = eqx.field(static=True, default=4.0)
    least: float = eqx.field(static=True, default=1e-3)

    def __check_init__(self) -> None:
        if self.bins < 2:
            raise MethodError(f"a spline has at least 2 bins, got bins={self.bins}. 8 are usual.")
        if not self.bound > 0:
            raise MethodError(f"bound is half the side of a square, got {self.bound}, expected > 0. Use bound=4.")
        if not 0 < self.least < 1:
            raise MethodError(f"least is a share, got {self.least}, expected between 0 and 1. Use least=1e-3.")

    @property
    def parameters(self) -> int:
        return 3 * self.bins - 1

    def _bin(self, at: Array, p: Array, *, outward: bool) -> tuple[Array, Array, Array, Array, Array, Array]:
        """Left end, width, lower end, height, and slopes at both ends, of the bin in which ``at`` is."""
        bins, side = self.bins, 2 * self.bound
        even = side / bins
        shares = jax.nn.softmax(jnp.stack([p[:, :bins], p[:, bins : 2 * bins]]))
        widths, heights = self.least * even + (1 - self.least) * side * shares
        offset = math.log(math.expm1(1 - self.least))  # parameters 0 make the slope 1
        inner = self.least + jax.nn.softplus(p[:, 2 * bins :] + offset)
        ones = jnp.ones_like(inner[:, :1])
        slopes = jnp.concatenate([ones, inner, ones], 1)
        # The bin as a product with zeros and one 1: faster than a search and a gather for so few.
        sizes = heights if outward else widths
        above = at[:, None] >= jnp.cumsum(sizes[:, :-1], 1) - self.bound
        true = jnp.ones_like(above[:, :1])
        reached, beyond = jnp.concatenate([true, above], 1), jnp.concatenate([above, ~true], 1)
        here = (reached & ~beyond).astype(p.dtype)
        left, low = jnp.sum(widths * beyond, 1) - self.bound, jnp.sum(heights * beyond, 1) - self.bound
        width, height = jnp.sum(widths * here, 1), jnp.sum(heights * here, 1)
        return left, width, low, height, jnp.sum(slopes[:, :-1] * here, 1), jnp.sum(slopes[:, 1:] * here, 1)

    def inward(self, x: Array, p: Array) -> tuple[Array, Array]:
        inside = jnp.abs(x) < self.bound
        at = jnp.where(inside, x, 0.0)
        left, width, low, height, first, last = self._bin(at, p, outward=False)
        share, steep = (at - left) / width, height / width
        cross = share * (1 - share)
        lower = steep + (first + last - 2 * steep) * cross
        z = low + height * (steep * share**2 + first * cross) / lower
        log_slope = _log_slope(share, cross, steep, first, last, lower)
        return jnp.where(inside, z, x), jnp.where(inside, log_slope, 0.0)

    def outward(self, z: Array, p: Array) -> tuple[Array, Array]:
        inside = jnp.abs(z) < self.bound
        at = jnp.where(inside, z, 0.0)
        left, width, low, height, first, last = self._bin(at, p, outward=True)
        rise, steep = at - low, height / width
        bend = first + last - 2 * steep
        a, b, c = height * (steep - first) + rise * bend, height * first - rise * bend, -steep * rise
        share = (
            2 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0)))
        )  # the discriminant is positive but for rounding
        cross = share * (1 - share)
        log_slope = _log_slope(share, cross, steep, first, last, steep + bend * cross)
        return jnp.where(inside, left + width * share, z), jnp.where(inside, -log_slope, 0.0)


def _log_slope(share: Array, cross: Array, steep: Array, first: Array, last: Array, lower: Array) -> Array:
    upper = last * share**2 + 2 * steep * cross + first * (1 - share) ** 2
    return 2 * jnp.log(steep) + jnp.log(upper) - 2 * jnp.log(lower)


class LogisticMixture(ScalarTransform):
    """The logit of the distribution function of a mixture of logistic distributions, shifted and scaled.

    Attributes:
        components: Number of components.
        limit: Bound of the logs of all scales.
    """

    components: int = eqx.field(static=True, default=8)
    limit: float = eqx.field(static=True, default=5.0)

    def __check_init__(self) -> None:
        if self.components < 1:
            raise MethodError(f"components must be at least 1, got {self.components}. 4 to 32 are usual.")
        if not self.limit > 0:
            raise MethodError(f"limit bounds the logs of scales, got {self.limit}, expected > 0. Use limit=5.")

    @property
    def parameters(self) -> int:
        return 3 * self.components + 2

    def _split(self, p: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Log weights, locations, log scales of the components; shift and log scale of the whole."""
        count = self.components
        # Unequal at the start: components that are equal stay so under descent.
        spread = jnp.linspace(-2.0, 2.0, count, dtype=p.dtype) if count > 1 else jnp.zeros(1, p.dtype)
        log_scale = self.limit * jnp.tanh(p[:, 2 * count : 3 * count] / self.limit)
        outer = self.limit * jnp.tanh(p[:, -1] / self.limit)
        return jax.nn.log_softmax(p[:, :count]), p[:, count : 2 * count] + spread, log_scale, p[:, -2], outer

    def inward(self, x: Array, p: Array) -> tuple[Array, Array]:
        log_share, loc, log_scale, shift, outer = self._split(p)
        logit, log_slope = _mixture_logit(x, log_share, loc, log_scale)
        return jnp.exp(outer) * logit + shift, outer + log_slope

    def outward(self, z: Array, p: Array) -> tuple[Array, Array]:
        log_share, loc, log_scale, shift, outer = self._split(p)
        logit = (z - shift) * jnp.exp(-outer)
        ends = loc + jnp.exp(log_scale) * logit[:, None]

        def off(x: Array) -> Array:
            return _mixture_logit(x, log_share, loc, log_scale)[0] - logit

        def solve(off: object, start: Array) -> Array:
            fixed = jax.lax.stop_gradient((log_share, loc, log_scale, logit, ends))
            return _solved(*fixed)

        x = jax.lax.custom_root(off, jax.lax.stop_gradient(ends[:, 0]), solve, lambda g, y: y / g(jnp.ones_like(y)))
        return x, -outer - _mixture_logit(x, log_share, loc, log_scale)[1]


def _mixture_logit(x: Array, log_share: Array, loc: Array, log_scale: Array) -> tuple[Array, Array]:
    """logit F, and the log of its slope."""
    u = (x[:, None] - loc) * jnp.exp(-log_scale)
    below, above = jax.nn.log_sigmoid(u), jax.nn.log_sigmoid(-u)
    log_cdf = jax.nn.logsumexp(log_share + below, 1)
    log_rest = jax.nn.logsumexp(log_share + above, 1)
    log_density = jax.nn.logsumexp(log_share + below + above - log_scale, 1)
    return log_cdf - log_rest, log_density - log_cdf - log_rest


def _solved(log_share: Array, loc: Array, log_scale: Array, logit: Array, ends: Array) -> Array:
    """x with logit F(x) = logit: Newton steps where they stay in the bracket, else and every third time bisection."""
    margin = 1e-6 * (1 + jnp.abs(ends).max(1))  # of rounding, for components that are equal
    low, high = ends.min(1) - margin, ends.max(1) + margin

    def step(i: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, x = state
        value, log_slope = _mixture_logit(x, log_share, loc, log_scale)
        low, high = jnp.where(value < logit, x, low), jnp.where(value < logit, high, x)
        newton = x - (value - logit) * jnp.exp(-log_slope)
        good = (newton > low) & (newton < high) & (i % 3 > 0)
        return low, high, jnp.where(good, newton, 0.5 * (low + high))

    return jax.lax.fori_loop(0, 60, step, (low, high, 0.5 * (low + high)))[2]
