r"""Resampling: from weighted particles to equally weighted ones, without bias.

Given normalised weights :math:`W_i`, a scheme draws ancestors :math:`A_1 \dots A_n`; particle :math:`i` gets
:math:`N_i = \#\{m : A_m = i\}` offspring, with :math:`\mathbb{E} N_i = n W_i`. Most schemes lay :math:`n` teeth on
:math:`[0, n)` and give particle :math:`i` those that fall into :math:`[n C_{i-1}, n C_i)`, where :math:`C` is the
cumulative weight.

The *conditional* version is the law of the ancestors, put in random order, given that a chosen one is :math:`k`: what
conditional SMC needs. Since the order is random, it draws the offspring from their law weighted by :math:`N_k`, and
which of the :math:`N_k` is the chosen one does not matter.

References: Douc, Cappé and Moulines (2005), ISPA; Gerber, Chopin and Whiteley (2019), Annals of Statistics 47(4) (SSP);
Del Moral (2004) (killing); Andrieu, Doucet and Holenstein (2010), JRSS B 72(3) (conditional versions).
"""

from __future__ import annotations

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["SSP", "Killing", "Multinomial", "Resampling", "Residual", "Stratified", "Systematic"]


class Resampling(eqx.Module):
    """A resampling scheme. All act on log weights of any normalisation, shape ``(particles,)``, at least one finite."""

    ordered: ClassVar[bool] = True
    """Whether the ancestors come in increasing order."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """Draw ``count`` ancestors: indices of particles, int32, shape ``(count,)``. None has weight zero."""

    @abc.abstractmethod
    def count_variance(self, log_w: Array, count: int) -> Scalar:
        r"""Sum of the variances of the numbers of offspring, :math:`\sum_i \mathrm{Var}(N_i)`."""

    @abc.abstractmethod
    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        """As many ancestors as particles, from the law of the offspring weighted by that of ``pivot``; and the place of
        one that is ``pivot``."""

    def conditional(self, key: PRNGKey, log_w: Array, pivot: Array, slot: Array | int) -> Array:
        """As many ancestors as particles, in random order, given that the one at ``slot`` is ``pivot``."""
        key_draw, key_order = jax.random.split(key)
        ancestors, place = self._with(key_draw, log_w, jnp.asarray(pivot, jnp.int32))
        order = jax.random.permutation(key_order, ancestors.shape[0])
        # Whatever stood at the slot goes where the chosen one would have gone.
        there = jnp.argmax(order == place)
        order = order.at[there].set(order[slot]).at[slot].set(place)
        return ancestors[order]


def _weights(log_w: Array) -> Array:
    """Weights that sum to one."""
    w = jnp.exp(log_w - jnp.max(log_w))
    return w / jnp.sum(w)


def _edges(w: Array, count: int) -> Array:
    """Upper edges ``count * C_i`` of the particles' intervals; a particle without weight has an empty one."""
    # Sums in parallel are monotone only up to rounding, hence the running maximum.
    c = jax.lax.cummax(jnp.where(w > 0, jnp.cumsum(w), 0.0))
    return c / c[-1] * count


def _repeated(ends: Array, count: int) -> Array:
    """Ancestors where particle ``i`` gets the teeth from ``ends[i - 1]`` to ``ends[i]``."""
    return jnp.cumsum(jnp.zeros(count + 1, jnp.int32).at[ends].add(1))[:count]


def _interval(edges: Array, i: Array) -> tuple[Array, Array]:
    return jnp.where(i > 0, edges[i - 1], 0.0), edges[i]


def _inside(key: PRNGKey, edges: Array, i: Array, count: int) -> Array:
    """A uniform point of the interval of a particle, inside ``[0, count)``."""
    low, high = _interval(edges, i)
    point = low + (high - low) * jax.random.uniform(key, (), edges.dtype)
    return jnp.clip(point, 0.0, jnp.nextafter(jnp.asarray(count, edges.dtype), 0.0))


def _drawn(key: PRNGKey, w: Array, count: int) -> Array:
    """Independent draws."""
    edges = _edges(w, 1)
    u = jax.random.uniform(key, (count,), edges.dtype)
    return jnp.searchsorted(edges, u, side="right").astype(jnp.int32)


class Systematic(Resampling):
    """Teeth at ``m + u`` with one uniform ``u``: the fastest, and most often of the smallest variance."""

    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """See ``Resampling``."""
        edges = _edges(_weights(log_w), count)
        return _comb(edges, jax.random.uniform(key, (), edges.dtype), count)

    def count_variance(self, log_w: Array, count: int) -> Scalar:
        """See ``Resampling``."""
        return _rounding(count * _weights(log_w))

    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        count = log_w.shape[0]
        edges = _edges(_weights(log_w), count)
        point = _inside(key, edges, pivot, count)
        tooth = jnp.floor(point)
        ancestors = _comb(edges, point - tooth, count)
        place = tooth.astype(jnp.int32)
        return ancestors.at[place].set(pivot), place


def _comb(edges: Array, u: Array, count: int) -> Array:
    return _repeated(jnp.clip(jnp.ceil(edges - u), 0, count).astype(jnp.int32), count)


def _rounding(expected: Array) -> Scalar:
    """Sum of the variances of numbers that are rounded up or down at random."""
    rest = expected - jnp.floor(expected)
    return jnp.sum(rest * (1 - rest))


class Stratified(Resampling):
    """Teeth at ``m + u_m`` with independent uniforms."""

    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """See ``Resampling``."""
        edges = _edges(_weights(log_w), count)
        return _strata(edges, jax.random.uniform(key, (count,), edges.dtype), count)

    def count_variance(self, log_w: Array, count: int) -> Scalar:
        """See ``Resampling``."""
        high = _edges(_weights(log_w), count)
        low = jnp.concatenate([jnp.zeros(1, high.dtype), high[:-1]])
        first, last = jnp.ceil(low) - low, high - jnp.floor(high)
        apart = first * (1 - first) + last * (1 - last)
        return jnp.sum(jnp.where(jnp.floor(low) == jnp.floor(high), (high - low) * (1 - high + low), apart))

    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        key_point, key_rest = jax.random.split(key)
        count = log_w.shape[0]
        edges = _edges(_weights(log_w), count)
        point = _inside(key_point, edges, pivot, count)
        place = jnp.floor(point).astype(jnp.int32)
        u = jax.random.uniform(key_rest, (count,), edges.dtype).at[place].set(point - place)
        return _strata(edges, u, count).at[place].set(pivot), place


def _strata(edges: Array, u: Array, count: int) -> Array:
    whole = jnp.floor(edges)
    part = (edges - whole > u[jnp.minimum(whole, count - 1).astype(jnp.int32)]).astype(jnp.int32)
    return _repeated(jnp.clip(whole.astype(jnp.int32) + part, 0, count), count)


class Multinomial(Resampling):
    """Independent ancestors."""

    ordered: ClassVar[bool] = False

    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """See ``Resampling``."""
        return _drawn(key, _weights(log_w), count)

    def count_variance(self, log_w: Array, count: int) -> Scalar:
        """See ``Resampling``."""
        w = _weights(log_w)
        return count * jnp.sum(w * (1 - w))

    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        ancestors = _drawn(key, _weights(log_w), log_w.shape[0])
        return ancestors.at[0].set(pivot), jnp.zeros((), jnp.int32)


class Residual(Resampling):
    r"""Particle :math:`i` gets :math:`\lfloor n W_i \rfloor` offspring, the rest is drawn independently."""

    ordered: ClassVar[bool] = False

    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """See ``Resampling``."""
        whole, rest = _whole_and_rest(log_w, count)
        return _completed(whole, _drawn(key, _some(rest), count), count)

    def count_variance(self, log_w: Array, count: int) -> Scalar:
        """See ``Resampling``."""
        _, rest = _whole_and_rest(log_w, count)
        total = jnp.sum(rest)
        return jnp.sum(rest * (1 - rest / jnp.where(total > 0, total, 1.0)))

    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        key_which, key_rest = jax.random.split(key)
        count = log_w.shape[0]
        whole, rest = _whole_and_rest(log_w, count)
        sure = jnp.sum(whole)
        ancestors = _completed(whole, _drawn(key_rest, _some(rest), count), count)
        expected = whole[pivot] + rest[pivot]
        is_whole = jax.random.uniform(key_which, (), rest.dtype) * expected < whole[pivot]
        place = jnp.where(is_whole, jnp.cumsum(whole)[pivot] - 1, jnp.minimum(sure, count - 1))
        return ancestors.at[place].set(pivot), place


def _whole_and_rest(log_w: Array, count: int) -> tuple[Array, Array]:
    expected = count * _weights(log_w)
    # Expected numbers that are whole up to rounding count as whole.
    whole = jnp.floor(expected * (1 + 8 * jnp.finfo(expected.dtype).eps))
    return whole.astype(jnp.int32), jnp.maximum(expected - whole, 0.0)


def _some(rest: Array) -> Array:
    """Weights to draw from; where nothing is left to be drawn, anything."""
    total = jnp.sum(rest)
    return jnp.where(total > 0, rest, 1.0) / jnp.where(total > 0, total, rest.shape[0])


def _completed(whole: Array, drawn: Array, count: int) -> Array:
    ends = jnp.cumsum(whole, dtype=jnp.int32)
    return jnp.where(jnp.arange(count) < ends[-1], _repeated(jnp.minimum(ends, count), count), drawn)


class Killing(Resampling):
    r"""Particle :math:`i` survives with probability :math:`W_i / \max_j W_j`, else it is replaced by an independent draw.

    With weights that hardly differ almost every particle stays where it is. As many ancestors as particles.
    """

    ordered: ClassVar[bool] = False

    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """See ``Resampling``."""
        if count != log_w.shape[0]:
            raise MethodError(
                f"killing replaces {log_w.shape[0]} particles by as many, got count={count}. Use Systematic()."
            )
        key_survive, key_replace = jax.random.split(key)
        survival = jnp.exp(log_w - jnp.max(log_w))
        survives = jax.random.uniform(key_survive, (count,), survival.dtype) < survival
        drawn = _drawn(key_replace, _weights(log_w), count)
        return jnp.where(survives, jnp.arange(count, dtype=jnp.int32), drawn)

    def count_variance(self, log_w: Array, count: int) -> Scalar:
        """See ``Resampling``."""
        survival, w = jnp.exp(log_w - jnp.max(log_w)), _weights(log_w)
        # Slot m goes to i with probability (m == i) survival_i + (1 - survival_m) w_i, slots being independent.
        others = jnp.sum(1 - survival)
        other = others * w - w**2 * jnp.sum((1 - survival) ** 2)
        own = survival + (1 - survival) * w
        own_as_other = (1 - survival) * w
        return jnp.sum(other - own_as_other * (1 - own_as_other) + own * (1 - own))

    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        key_rest, key_place = jax.random.split(key)
        count = log_w.shape[0]
        survival, w = jnp.exp(log_w - jnp.max(log_w)), _weights(log_w)
        chances = ((1 - survival) * w[pivot]).at[pivot].add(survival[pivot])
        place = _drawn(key_place, chances / jnp.sum(chances), 1)[0]
        return self(key_rest, log_w, count).at[place].set(pivot), place


class SSP(Resampling):
    r"""Srinivasan sampling: expected numbers are rounded in pairs. Negatively associated offspring, so consistent for any
    order of the particles; one particle after another, so slow for many."""

    def __call__(self, key: PRNGKey, log_w: Array, count: int) -> Array:
        """See ``Resampling``."""
        return _repeated(jnp.cumsum(_rounded_in_pairs(key, log_w, count, None)), count)

    def count_variance(self, log_w: Array, count: int) -> Scalar:
        """See ``Resampling``."""
        return _rounding(count * _weights(log_w))

    def _with(self, key: PRNGKey, log_w: Array, pivot: Array) -> tuple[Array, Array]:
        ends = jnp.cumsum(_rounded_in_pairs(key, log_w, log_w.shape[0], pivot))
        return _repeated(ends, log_w.shape[0]), ends[pivot] - 1


def _rounded_in_pairs(key: PRNGKey, log_w: Array, count: int, pivot: Array | None) -> Array:
    """Numbers of offspring, shape ``(particles,)``; with a pivot, from their law weighted by that of the pivot.

    In a pair, fractions :math:`a, b` move in opposite directions until one of them is whole, such that each is a
    martingale. So is the expected number of the pivot, and weighting a step by it weights the whole law.
    """
    expected = count * _weights(log_w)
    size = expected.shape[0]
    whole = jnp.floor(expected)
    rest = expected - whole

    def pair(carry: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        i, a = carry  # the particle whose fraction is open
        j, b, u = now
        up, down = jnp.minimum(1 - a, b), jnp.minimum(a, 1 - b)  # by which a grows, or shrinks
        still = up + down <= 0
        chance = jnp.where(still, 0.5, down / jnp.where(still, 1.0, up + down))
        if pivot is not None:
            kept = jnp.where(i == pivot, whole[pivot] + a, jnp.where(j == pivot, whole[pivot] + b, 1.0))
            grown = jnp.where(i == pivot, kept + up, jnp.where(j == pivot, kept - up, 1.0))
            chance = chance * grown / kept
        grows = u < chance
        a, b = jnp.where(grows, a + up, a - down), jnp.where(grows, b - up, b + down)
        # The one that has become whole is settled. Comparisons, not differences: rounding leaves neither exactly whole.
        first = jnp.where(grows, up == 1 - carry[1], down == carry[1])
        settled = jnp.where(first, i, j), jnp.round(jnp.where(first, a, b)).astype(jnp.int32)
        return (jnp.where(first, j, i), jnp.where(first, b, a)), jnp.stack([settled[0].astype(jnp.int32), settled[1]])

    if size == 1:
        return jnp.full(1, count, jnp.int32)
    u = jax.random.uniform(key, (size - 1,), expected.dtype)
    start = jnp.zeros((), jnp.int32), rest[0]
    (last, _), settled = jax.lax.scan(pair, start, (jnp.arange(1, size, dtype=jnp.int32), rest[1:], u))
    counts = whole.astype(jnp.int32).at[settled[:, 0]].add(settled[:, 1])
    return counts.at[last].add(
        count - jnp.sum(counts, dtype=jnp.int32)
    )  # what rounding leaves open is decided by the total
