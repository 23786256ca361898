r"""What sensitivity bounds need of the law of an outcome: its mean, the mean of its tail, and expected excesses.

For a law of :math:`Y`, a level :math:`\tau \in [0, 1)` with quantile :math:`q`, and a number :math:`c`,

.. math::
   U_\tau = \min_q \Bigl\{ q + \frac{E (Y - q)_+}{1 - \tau} \Bigr\}, \qquad
   L_\tau = \frac{E Y - \tau \, U_{1 - \tau}}{1 - \tau}, \qquad e(c) = E (Y - c)_+ ,

are the mean of the upper share :math:`1 - \tau`, that of the lower share, and the expected excess (Rockafellar and
Uryasev, 2000; atoms are split). A law is a NumPyro distribution, whose batch shape is that of every result, or an array
of draws along its first axis. Normal laws, mixtures of normal laws, and laws on 0 and 1 are treated exactly; a sample is
taken as the law itself; other laws by quadrature over their quantile function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.scipy.special as special
import jax.scipy.stats as stats
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from probgen.base.errors import MethodError
from probgen.program.handlers import base_of

__all__ = ["Law", "Points", "expected_excess", "has_quantiles", "lower_tail_mean", "mean", "points", "upper_tail_mean"]

type Law = Distribution | ArrayLike

_NODES = 200
"""Points of the quadrature over a quantile function."""
_BISECTIONS = 80
_EDGE = 3
"""Power by which nodes crowd at both ends, where quantile functions are steep."""


class Points(NamedTuple):
    """A law of finitely many points.

    Attributes:
        values: Shape (k, ...).
        weights: Probabilities, shape (k, ...) or (k, 1, ...); they add up to one along the first axis.
    """

    values: Array
    weights: Array


def mean(law: Law) -> Array:
    """Mean of a law, of its batch shape."""
    if isinstance(law, Distribution):
        return jnp.asarray(base_of(law).mean, jnp.result_type(float))
    return jnp.mean(_sample(law), axis=0)


def upper_tail_mean(law: Law, level: ArrayLike) -> Array:
    """Mean of the upper share ``1 - level`` of a law.

    Args:
        law: A distribution of batch shape B, or draws of shape ``(k, *B)``.
        level: Number in [0, 1).

    Returns:
        Shape B.
    """
    share = 1 - jnp.asarray(level)
    if not isinstance(law, Distribution):
        return _sample_tail(_sample(law), share)
    law = base_of(law)
    if isinstance(law, dist.Normal):
        (loc,), (scale,) = _normal(law)
        return loc + scale * stats.norm.pdf(special.ndtri(share)) / share
    if _is_bernoulli(law):
        return jnp.minimum(1.0, law.mean / share)
    parts = _normal_parts(law)
    if parts is not None:
        # Bisection leaves an error of its own square: the quantile is where the formula is flat.
        q = _mixture_quantile(*parts, 1 - share)
        return q + _mixture_excess(*parts, q) / share
    nodes, weights = _nodes()
    u = jnp.asarray(nodes.reshape(-1, *(1,) * len(law.batch_shape)))
    return jnp.tensordot(jnp.asarray(weights), _quantile(law)(1 - share * (1 - u)), axes=1)


def lower_tail_mean(law: Law, level: ArrayLike) -> Array:
    """Mean of the lower share ``1 - level`` of a law; arguments as for the upper one, with ``level > 0``."""
    level = jnp.asarray(level)
    return (mean(law) - level * upper_tail_mean(law, 1 - level)) / (1 - level)


def expected_excess(law: Law, c: ArrayLike) -> Array:
    """Expectation of the positive part of ``Y - c``; ``c`` and the result have the batch shape of the law."""
    c = jnp.asarray(c)
    if not isinstance(law, Distribution):
        return jnp.mean(jnp.maximum(_sample(law) - c, 0.0), axis=0)
    law = base_of(law)
    if isinstance(law, dist.Normal):
        (loc,), (scale,) = _normal(law)
        return _mixture_excess(jnp.ones(1), loc[..., None], scale[..., None], c)
    parts = _normal_parts(law)
    if parts is not None:
        return _mixture_excess(*parts, c)
    values, weights = points(law)
    return jnp.sum(weights * jnp.maximum(values - c, 0.0), axis=0)


def points(law: Law) -> Points:
    """A law of finitely many points: exact for samples and for laws on 0 and 1, otherwise a quadrature."""
    if not isinstance(law, Distribution):
        sample = _sample(law)
        return Points(sample, jnp.full((len(sample), *(1,) * (sample.ndim - 1)), 1 / len(sample), sample.dtype))
    law = base_of(law)
    if _is_bernoulli(law):
        p = law.mean
        return Points(jnp.stack([jnp.zeros_like(p), jnp.ones_like(p)]), jnp.stack([1 - p, p]))
    nodes, weights = _nodes()
    column = (-1, *(1,) * len(law.batch_shape))
    return Points(_quantile(law)(jnp.asarray(nodes.reshape(column))), jnp.asarray(weights.reshape(column)))


def has_quantiles(law: Distribution) -> bool:
    """Whether a distribution can be treated without draws."""
    law = base_of(law)
    if isinstance(law, dist.Normal) or _is_bernoulli(law) or _normal_parts(law) is not None:
        return True
    try:
        law.icdf(jnp.full(law.batch_shape, 0.5))
    except (NotImplementedError, AttributeError):
        return False
    return not law.event_shape


# -- kinds of laws ---------------------------------------------------------------------------------------------------


def _sample(law: ArrayLike) -> Array:
    sample = jnp.asarray(law, jnp.result_type(float))
    if sample.ndim == 0 or len(sample) == 0:
        raise MethodError(f"draws of the outcome have the shape {sample.shape}, expected draws along the first axis.")
    return sample


def _sample_tail(sample: Array, share: Array) -> Array:
    """The mean of the largest, where the last one may count in part."""
    ordered = jnp.sort(sample, axis=0)[::-1]
    count = share * len(sample)
    part = jnp.clip(count - jnp.arange(len(sample)), 0.0, 1.0)
    return jnp.tensordot(part, ordered, axes=1) / count


def _is_bernoulli(law: Distribution) -> bool:
    return isinstance(law, dist.BernoulliProbs | dist.BernoulliLogits)


def _normal_parts(law: Distribution) -> tuple[Array, Array, Array] | None:
    """Weights, means and scales of a mixture of normal laws, components last."""
    whole: Any = law
    if isinstance(law, dist.MixtureSameFamily):
        component = base_of(whole.component_distribution)
        if isinstance(component, dist.Normal):
            (loc,), (scale,) = _normal(component)
            return whole.mixing_distribution.probs, loc, scale
    if isinstance(law, dist.MixtureGeneral):
        every = [base_of(one) for one in whole.component_distributions]
        if all(isinstance(one, dist.Normal) for one in every):
            located, scales = _normal(*every)
            return whole.mixing_distribution.probs, jnp.stack(located, -1), jnp.stack(scales, -1)
    return None


def _normal(*laws: Any) -> tuple[list[Array], list[Array]]:
    """Means and scales of normal laws."""
    kind = jnp.result_type(float)
    return [jnp.asarray(one.loc, kind) for one in laws], [jnp.asarray(one.scale, kind) for one in laws]


def _mixture_excess(p: Array, loc: Array, scale: Array, c: Array) -> Array:
    z = (loc - c[..., None]) / scale
    return jnp.sum(p * ((loc - c[..., None]) * special.ndtr(z) + scale * stats.norm.pdf(z)), axis=-1)


def _mixture_quantile(p: Array, loc: Array, scale: Array, level: ArrayLike) -> Array:
    ends = loc + scale * special.ndtri(jnp.asarray(level))[..., None]
    low, high = ends.min(-1), ends.max(-1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = jnp.sum(p * special.ndtr((middle[..., None] - loc) / scale), axis=-1) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    shape = jnp.broadcast_shapes(p.shape[:-1], loc.shape[:-1], jnp.shape(level))
    low, high = lax.fori_loop(0, _BISECTIONS, halve, (jnp.broadcast_to(low, shape), jnp.broadcast_to(high, shape)))
    return (low + high) / 2


def _quantile(law: Distribution) -> Callable[[Array], Array]:
    parts = _normal_parts(law)
    if parts is not None:
        p, loc, scale = parts
        return lambda u: _mixture_quantile(p, loc, scale, u)
    if not has_quantiles(law):
        raise MethodError(
            f"the law {type(law).__name__} of the outcome has no quantile function in NumPyro. Give draws of it, along "
            f"the first axis."
        )
    return law.icdf


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Gauss's rule on (0, 1) after a change of variables that flattens both ends."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    u = (x + 1) / 2
    # u -> u^k / (u^k + (1 - u)^k) is smooth, and flat of order k - 1 at both ends.
    up, down = u**_EDGE, (1 - u) ** _EDGE
    slope = _EDGE * (u * (1 - u)) ** (_EDGE - 1) / (up + down) ** 2
    weights = slope * w / 2
    return up / (up + down), weights / weights.sum()
