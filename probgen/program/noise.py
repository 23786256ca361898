r"""Structural mechanisms: every site a function of its parents and of a noise of its own.

A program says that site :math:`V` follows :math:`p(v \mid \mathrm{pa})`. A structural model says more: :math:`v =
F(\mathrm{pa}, u)` with a noise :math:`u` whose law does not depend on the parents. Many :math:`F` give the same
:math:`p`; they agree about what happens, and about what would happen to *others* under an intervention, but not about
what would have happened to the *same* unit. So the choice is an assumption, named for each site.

- Continuous sites: location and scale, :math:`v = \mu + \sigma u`; else the quantile function, :math:`v =
  Q(u; \mathrm{pa})`; transforms are followed inwards. One-dimensional :math:`F` are then the increasing ones, the only
  increasing ones there are (a unit keeps its rank). Vectors go through the Cholesky factor, in the order of their
  coordinates. The noise of a value is unique: :math:`u = F^{-1}(\mathrm{pa}, v)`.
- Ordered discrete sites (Bernoulli, counts): the quantile function, :math:`F` increasing in :math:`u \sim U(0, 1)`. For
  a Bernoulli site this is Pearl's monotonicity. A value only tells :math:`P(V < v) < u \le P(V \le v)`; the noise is
  drawn from that interval.
- Categorical sites: Gumbel-max, :math:`v = \arg\max_i (\log p_i + \gamma_i)` (Oberst and Sontag, 2019); the
  :math:`\gamma` are drawn given that :math:`v` won. No value leaves unless another one has gained more.
- ``Independent()``: a value is kept while its distribution is, and is drawn independently of it as soon as that changes.

A noise near 1 is kept as its distance to 1, so that far tails are resolved on both sides.

References:
    Pearl (2009), Causality, 2nd edition, chapters 7 and 9. Oberst and Sontag (2019), Counterfactual off-policy
    evaluation with Gumbel-max structural causal models.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from numpyro.distributions.transforms import biject_to

from probgen.base.typing import PRNGKey

__all__ = [
    "Cholesky",
    "LearnedNoise",
    "LocationScale",
    "NoNoise",
    "NoiseMap",
    "Quantile",
    "Through",
    "Walk",
    "over_event",
    "quantile",
]

_TOLERANCE = 8
"""Units of rounding by which two executions of the same formula may differ."""
_STEPS = 128
"""Widenings, and steps of Newton or halvings, that invert a distribution function."""


class NoiseMap(abc.ABC):
    """How the value of a site and its noise belong together. Values have shape ``batch + event``."""

    assumption: str

    @abc.abstractmethod
    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """The noise that gave a value; a draw of it, where several could have. NaN where none could."""

    @abc.abstractmethod
    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """The value that a noise gives under a distribution, of the shape of ``value``.

        Where the noise gives the factual ``value`` up to rounding, that very value comes back: a mechanism whose
        parents did not change then gives what it gave, to the last bit.
        """


@dataclasses.dataclass(frozen=True)
class NoNoise(NoiseMap):
    """A value that is computed (``Delta``)."""

    assumption: str = "computed, without noise"

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        return jnp.where(value == fn.v, 0.0, jnp.nan)

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""
        return jnp.broadcast_to(fn.v, value.shape)


class _Invertible(NoiseMap):
    """Noise that a value determines."""

    @abc.abstractmethod
    def invert(self, fn: Any, value: Array) -> Array:
        """The noise of a value, ``batch`` axes first."""

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        return self.invert(fn, value)

    @abc.abstractmethod
    def predict(self, fn: Any, noise: Any) -> Array:
        """The value of a noise."""

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""
        gap = jnp.abs(self.invert(fn, value) - noise)
        same = gap <= _TOLERANCE * jnp.finfo(noise.dtype).eps * (1 + jnp.abs(noise))
        return jnp.where(_by_event(same, value, fn.event_dim), value, self.predict(fn, noise))


@dataclasses.dataclass(frozen=True)
class LocationScale(_Invertible):
    """A base noise that is shifted, stretched, or raised to a power.

    Attributes:
        inverse: From the distribution and a value to its noise.
        forward: From the distribution and a noise to the value.
        low: No noise lies below.
        high: No noise lies above.
    """

    inverse: Callable[[Any, Array], Array]
    forward: Callable[[Any, Array], Array]
    low: float = -jnp.inf
    high: float = jnp.inf
    assumption: str = "location and scale"

    def invert(self, fn: Any, value: Array) -> Array:
        """See ``_Invertible``."""
        noise = self.inverse(fn, value)
        return jnp.where((noise >= self.low) & (noise <= self.high), noise, jnp.nan)

    def predict(self, fn: Any, noise: Any) -> Array:
        """See ``_Invertible``."""
        return self.forward(fn, noise)


@dataclasses.dataclass(frozen=True)
class Quantile(_Invertible):
    """A continuous site by its distribution function and the inverse of that; the noise is uniform."""

    assumption: str = "increasing in the noise (quantile function)"

    def invert(self, fn: Any, value: Array) -> Array:
        """See ``_Invertible``."""
        u = fn.cdf(value)
        return jnp.where((u > 0) & (u < 1), u, jnp.nan)

    def predict(self, fn: Any, noise: Any) -> Array:
        """See ``_Invertible``."""
        try:
            return fn.icdf(noise)
        except (ImportError, NotImplementedError):  # some inverses need a package that is not there
            return quantile(fn, noise)


@dataclasses.dataclass(frozen=True)
class Cholesky(_Invertible):
    """A vector by the Cholesky factor of its scale."""

    assumption: str = "location and Cholesky factor, in the order of the coordinates"

    def invert(self, fn: Any, value: Array) -> Array:
        """See ``_Invertible``."""
        factor, rest = self._factor(fn), value - fn.loc
        solve = jnp.vectorize(lambda a, b: solve_triangular(a, b, lower=True), signature="(d,d),(d)->(d)")
        return solve(factor, rest)

    def predict(self, fn: Any, noise: Any) -> Array:
        """See ``_Invertible``."""
        return fn.loc + jnp.einsum("...ij,...j->...i", self._factor(fn), noise)

    @staticmethod
    def _factor(fn: Any) -> Array:
        if isinstance(fn, dist.LowRankMultivariateNormal):
            return jnp.linalg.cholesky(fn.covariance_matrix)
        return fn.scale_tril


@dataclasses.dataclass(frozen=True)
class Walk(_Invertible):
    """A Gaussian random walk by its increments."""

    assumption: str = "scaled increments"

    def invert(self, fn: Any, value: Array) -> Array:
        """See ``_Invertible``."""
        return jnp.diff(value, axis=-1, prepend=0.0) / jnp.asarray(fn.scale)[..., None]

    def predict(self, fn: Any, noise: Any) -> Array:
        """See ``_Invertible``."""
        return jnp.cumsum(noise, -1) * jnp.asarray(fn.scale)[..., None]


@dataclasses.dataclass(frozen=True)
class LearnedNoise(_Invertible):
    """A learned distribution by its own map from noise."""

    assumption: str = "the learned map from noise"

    def invert(self, fn: Any, value: Array) -> Array:
        """See ``_Invertible``."""
        return fn.noise_of(value)

    def predict(self, fn: Any, noise: Any) -> Array:
        """See ``_Invertible``."""
        return fn.noise_map(noise)


@dataclasses.dataclass(frozen=True)
class Through(NoiseMap):
    """A transformed site: the noise of what was transformed.

    Attributes:
        base: How the base of the distribution and its noise belong together.
        unwrap: Takes masks, expansion and reinterpreted axes off the base.
    """

    base: NoiseMap
    unwrap: Callable[[Any], Any]
    assumption: str

    def abduct(self, key: PRNGKey, fn: Any, value: Array) -> Any:
        """See ``NoiseMap``."""
        return self.base.abduct(key, self.unwrap(fn.base_dist), self._back(fn, value))

    def again(self, fn: Any, noise: Any, value: Array) -> Array:
        """See ``NoiseMap``."""
        before = self._back(fn, value)
        inner = self.base.again(self.unwrap(fn.base_dist), noise, before)
        new = inner
        for transform in fn.transforms:
            new = transform(new)
        return jnp.where(_by_event(inner == before, value, fn.event_dim), value, new)

    @staticmethod
    def _back(fn: Any, value: Array) -> Array:
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
        return value


def quantile(fn: Any, u: Array) -> Array:
    """Invert a distribution function: Newton steps in unconstrained coordinates, halvings where these leave the bracket.

    Args:
        fn: A continuous distribution over numbers, with ``cdf``.
        u: Where, in (0, 1), of a shape that broadcasts with the parameters.
    """
    chart = biject_to(fn.support)
    u = jnp.broadcast_to(u, jnp.broadcast_shapes(jnp.shape(u), tuple(fn.shape())))
    sign = jnp.where(chart(1.0) >= chart(-1.0), 1.0, -1.0)  # some charts run backwards
    tolerance = 4 * jnp.finfo(u.dtype).eps

    def gap(s: Array) -> tuple[Array, Array]:
        x = chart(sign * s)
        slope = jnp.exp(fn.log_prob(x) + chart.log_abs_det_jacobian(sign * s, x))
        return fn.cdf(x) - u, slope

    def apart(state: tuple[Array, ...]) -> Array:
        step, _, _, s, before = state
        return (step < _STEPS) & jnp.any(jnp.abs(s - before) > tolerance * (1 + jnp.abs(s)))

    def improve(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, low, high, s, _ = state
        value, slope = gap(s)
        low, high = jnp.where(value < 0, s, low), jnp.where(value < 0, high, s)
        newton = s - value / slope
        # An end that is not known yet is looked for at twice the distance.
        reach = 1 + jnp.abs(s)
        bottom = jnp.where(jnp.isfinite(low), low, s - reach)
        top = jnp.where(jnp.isfinite(high), high, s + reach)
        halved = jnp.where(jnp.isfinite(low) & jnp.isfinite(high), (low + high) / 2, jnp.where(value < 0, top, bottom))
        new = jnp.where((newton > bottom) & (newton < top), newton, halved)
        return step + 1, low, high, jnp.where(value == 0, s, new), s

    far = jnp.full_like(u, jnp.inf)
    *_, s, _ = lax.while_loop(apart, improve, (jnp.asarray(0), -far, far, jnp.zeros_like(u), far))
    return chart(sign * s)


def _by_event(mask: Array, value: Array, event_dim: int) -> Array:
    """All over the event, with axes of length 1 in place of those of the event of ``value``."""
    mask = over_event(mask, mask.ndim - (jnp.ndim(value) - event_dim))
    return mask.reshape(*mask.shape, *(1,) * event_dim)


def over_event(mask: Array, ndim: int) -> Array:
    """All over the last axes."""
    return jnp.all(mask, axis=tuple(range(-ndim, 0))) if ndim > 0 else mask
