r"""DPM-Solver-v3: an exponential integrator whose linear part is fitted to the model.

In :math:`\lambda = \log(\alpha/\sigma)` the probability flow is :math:`d(x/\alpha)/d\lambda = m - x/\alpha`. For any
coefficients :math:`l_\lambda`, entry by entry, what is not linear in it is :math:`-f` with

.. math:: f = (1 - l)\, x/\alpha - m, \qquad
          x_t = \alpha_t A(t) \Bigl( \frac{x_s}{\alpha_s} - \int_{\lambda_s}^{\lambda_t} A(\lambda)^{-1} f\, d\lambda \Bigr),
          \quad A = e^{-\int_{\lambda_s} l},

(:math:`l = 1` is DPM-Solver++, :math:`l = 0` the first DPM-Solver), and for any :math:`s_\lambda, b_\lambda`

.. math:: g = e^{-\int_{\lambda_s} s} f - B, \quad B = \int_{\lambda_s} e^{-\int_{\lambda_s} s}\, b\, d\lambda, \qquad
          A^{-1} f = e^{\int_{\lambda_s} (l + s)} (g + B)

holds too, where :math:`g' = e^{-\int s}(f' - s f - b)`. A polynomial is put through the values of :math:`g`, so the
coefficients are taken such that it hardly changes: :math:`l` is the mean of the diagonal of
:math:`I - \alpha\, \partial m/\partial x`, so that :math:`f` depends on :math:`x` as little as possible, and :math:`(s, b)`
regress the derivative :math:`f'` along the flow on :math:`f`. They are computed once, from noisy data. On a Gaussian with
independent entries :math:`g` is constant, and a single step is exact.

Integrals over a step are taken at Gauss-Legendre points, to rounding; coefficients between the points of the table by
cubic interpolation.

Zheng, Lu, Chen and Zhu (2023), "DPM-Solver-v3: Improved diffusion ODE solver with empirical model statistics".
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path
from probgen.generative.sampler import Memory, Sampler, lagrange

__all__ = ["DPMSolverV3", "ModelStatistics", "model_statistics"]

_POINTS = 16


class ModelStatistics(eqx.Module):
    r"""The coefficients of DPM-Solver-v3 on an even grid of :math:`\lambda`, entry by entry.

    Attributes:
        places: Values of :math:`\lambda`, rising, shape ``(n,)``.
        linear: :math:`l`, shape ``(n, *shape)``.
        slope: :math:`s`, shape ``(n, *shape)``.
        offset: :math:`b`, shape ``(n, *shape)``.
    """

    places: Array
    linear: Array
    slope: Array
    offset: Array

    def at(self, table: Array, place: Array) -> Array:
        """A coefficient at one value of :math:`\\lambda`, by a cubic through the table with one derivative in common."""
        count = self.places.shape[0]
        z = (place - self.places[0]) / (self.places[1] - self.places[0])
        i = jnp.clip(jnp.floor(z).astype(int), 0, count - 2)
        w = z - i
        before, here, there, after = (table[jnp.clip(i + k, 0, count - 1)] for k in (-1, 0, 1, 2))
        rise_here = jnp.where(i > 0, (there - before) / 2, there - here)
        rise_there = jnp.where(i < count - 2, (after - here) / 2, there - here)
        bend = 3 * (there - here) - 2 * rise_here - rise_there
        twist = 2 * (here - there) + rise_here + rise_there
        return here + w * (rise_here + w * (bend + w * twist))


def _place(path: Path, t: Array) -> Array:
    return path.log_snr(t) / 2


def model_statistics(key: PRNGKey, denoiser: Denoiser, data: Array, points: int = 64) -> ModelStatistics:
    """The coefficients of DPM-Solver-v3 for a denoiser, from noisy data.

    Args:
        key: Randomness: the noise, which is the same at all levels, and probes of the Jacobian.
        denoiser: Posterior mean and path.
        data: Data or draws of the model, shape ``(n, *shape)``; some hundreds.
        points: Number of noise levels.

    Raises:
        MethodError: If the data do not have the shape of the denoiser's, or there are fewer than 2.
    """
    if data.ndim != len(denoiser.shape) + 1 or data.shape[1:] != denoiser.shape or data.shape[0] < 2:
        raise MethodError(f"data must have the shape (n, *{denoiser.shape}) with n > 1, got {data.shape}. Stack draws.")
    if not is_count(points, 4):
        raise MethodError(f"points must be an int of at least 4, got {points!r}. Use points=64.")
    path = denoiser.path
    key_noise, key_probe = jax.random.split(key)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)
    probe = jax.random.rademacher(key_probe, data.shape, data.dtype)
    places = jnp.linspace(_place(path, jnp.asarray(path.end)), _place(path, jnp.asarray(path.start)), points)
    times = path.time(2 * places).at[0].set(path.end).at[-1].set(path.start)

    def noisy(t: Array) -> Array:
        alpha, sigma = path(t)
        return alpha * data + sigma * noise

    def linear(t: Array) -> Array:
        def diagonal(x: Array, v: Array) -> Array:
            return v * jax.jvp(lambda x: denoiser.mean(x, t), (x,), (v,))[1]

        return 1 - path(t)[0] * jnp.mean(jax.vmap(diagonal)(noisy(t), probe), 0)

    table = jax.lax.map(linear, times)
    zero = jnp.zeros_like(table)
    statistics = ModelStatistics(places, table, zero, zero)

    def regression(t: Array) -> tuple[Array, Array]:
        rate = jax.grad(functools.partial(_place, path))(t)

        def both(x: Array) -> tuple[Array, Array]:
            f = functools.partial(_rest, denoiser, statistics)
            value, change = jax.jvp(f, (x, t), (denoiser.velocity(x, t), jnp.ones_like(t)))
            return value, change / rate

        x = noisy(t)
        value, change = jax.vmap(both)(x)
        mean, mean_change = value.mean(0), change.mean(0)
        variance = jnp.mean((value - mean) ** 2, 0)
        least = 100 * jnp.finfo(x.dtype).eps * jnp.mean((x / path(t)[0]) ** 2, 0)
        # Where f is constant there is nothing to regress on.
        varies = variance > least
        covariance = jnp.mean((value - mean) * (change - mean_change), 0)
        slope = jnp.where(varies, covariance / jnp.where(varies, variance, 1.0), 0.0)
        return slope, mean_change - slope * mean

    slope, offset = jax.lax.map(regression, times)
    return ModelStatistics(places, table, slope, offset)


def _rest(denoiser: Denoiser, statistics: ModelStatistics, x: Array, t: Array) -> Array:
    """What is not linear in the probability flow, f."""
    place = _place(denoiser.path, t)
    return (1 - statistics.at(statistics.linear, place)) * x / denoiser.path(t)[0] - denoiser.mean(x, t)


class _Rule(NamedTuple):
    """Gauss-Legendre points of the unit interval, their weights, and the matrix that integrates up to each of them."""

    points: np.ndarray
    weights: np.ndarray
    upto: np.ndarray


def _rule() -> _Rule:
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    # Integrals of the Legendre polynomials from -1, in terms of their values at the points.
    values = np.polynomial.legendre.legvander(points, _POINTS - 1)
    degrees = np.arange(_POINTS)
    analysis = (2 * degrees[:, None] + 1) / 2 * values.T * weights
    integrals = np.stack(
        [np.polynomial.legendre.legval(points, np.polynomial.legendre.legint(row, lbnd=-1)) for row in np.eye(_POINTS)],
        1,
    )
    return _Rule((points + 1) / 2, weights / 2, integrals @ analysis / 2)


_RULE = _rule()


class DPMSolverV3(Sampler):
    """DPM-Solver-v3 with its corrector, which costs no evaluation; order ``order``, or one more if corrected.

    One evaluation a step and one at the start. A sampler that holds arrays cannot be a setting of ``Diffusion``: use it
    with ``sample_path`` or ``DenoisedDistribution``.

    Attributes:
        statistics: From ``model_statistics`` for the same denoiser.
        order: Number of values that are remembered.
        corrected: Whether to correct.
    """

    statistics: ModelStatistics
    order: int = eqx.field(static=True, default=2)
    corrected: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        if not isinstance(self.statistics, ModelStatistics):
            raise MethodError(f"statistics must come from model_statistics(...), got {type(self.statistics).__name__}.")
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 1 <= self.order <= 6:
            raise MethodError(f"order must be an int from 1 to 6, got {self.order!r}. Use order=2.")

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Memory:
        empty = Memory(jnp.zeros((self.order, *x.shape), x.dtype), jnp.zeros(self.order), jnp.zeros((), int))
        return empty.joined(_rest(denoiser, self.statistics, x, t), _place(denoiser.path, t))

    def step(
        self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        path, table = denoiser.path, self.statistics
        first, last = _place(path, t), _place(path, s)
        h = last - first
        linear, slope, offset = (
            jax.vmap(lambda z, of=of: table.at(of, first + h * z))(jnp.asarray(_RULE.points))
            for of in (table.linear, table.slope, table.offset)
        )

        def upto(values: Array) -> Array:
            return h * jnp.tensordot(jnp.asarray(_RULE.upto), values, 1)

        def whole(values: Array) -> Array:
            return h * jnp.tensordot(jnp.asarray(_RULE.weights), values, 1)

        kept = upto(slope)
        factor = jnp.exp(upto(linear) + kept)
        added = upto(jnp.exp(-kept) * offset)
        shift, decay, gained = whole(factor * added), whole(slope), whole(jnp.exp(-kept) * offset)
        moments = jnp.stack([whole(factor * _column(_RULE.points**k, factor)) for k in range(self.order + 1)])

        def reached(nodes: Array, known: Array, values: Array) -> Array:
            rows = [jnp.tensordot(c, moments[: len(nodes)], 1) for c in lagrange(nodes, known)]
            total = shift + sum(row * value for row, value in zip(rows, values, strict=True))
            return path(s)[0] * jnp.exp(-whole(linear)) * (x / path(t)[0] - total)

        nodes, known = (memory.places - memory.places[0]) / h, jnp.arange(self.order) < memory.count
        ahead = reached(nodes, known, memory.means)
        rest = _rest(denoiser, table, ahead, s)
        if self.corrected:
            nodes, known = jnp.concatenate([jnp.ones(1), nodes]), jnp.concatenate([jnp.ones(1, bool), known])
            seen = jnp.exp(-decay) * rest - gained
            ahead = reached(nodes, known, jnp.concatenate([seen[None], memory.means]))
        # The values of g, from the beginning of this step, to the beginning of the next.
        moved = memory._replace(means=jnp.exp(decay) * (memory.means + gained))
        return ahead, moved.joined(rest, last)


def _column(values: np.ndarray, like: Array) -> Array:
    return jnp.asarray(values).reshape(-1, *[1] * (like.ndim - 1))
