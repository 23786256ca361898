r"""Paths from data to noise: :math:`x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon` with :math:`\varepsilon \sim N(0, I)`.

A path is a pure function :math:`t \mapsto (\alpha, \sigma)`; data stand at :math:`t = 0`, noise at :math:`t = 1`. Its
marginals :math:`q_t` are those of the stochastic equation

.. math:: dx = f(t)\, x\, dt + g(t)\, dW, \qquad f = \frac{\alpha'}{\alpha}, \quad g^2 = (\sigma^2)' - 2 f \sigma^2

and of the ordinary one :math:`dx/dt = f x - \tfrac12 g^2 \nabla \log q_t(x)`. Both rates are derived from the scales, so
a path cannot contradict itself. They are used between ``start`` and ``end`` only, where :math:`\alpha` and
:math:`\sigma` are positive: what a sampler returns follows :math:`q_{start}`, the data blurred by
:math:`\sigma(start)`.

References: Song et al. (2021), "Score-based generative modeling through stochastic differential equations" (VP, VE,
sub-VP); Nichol and Dhariwal (2021) (cosine); Liu, Gong and Liu (2023), Lipman et al. (2023) (rectified); Kingma et al.
(2021), "Variational diffusion models" (:math:`g^2` from the signal-to-noise ratio); Karras et al. (2022),
"Elucidating the design space of diffusion-based generative models" (``karras_times``).
"""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part

__all__ = ["VE", "VP", "Cosine", "Path", "Rectified", "SubVP", "even_log_snr", "even_times", "karras_times"]

type Time = Array | float


class Path(Part):
    """Signal and noise scales as functions of time, and what follows from them."""

    start: eqx.AbstractVar[float]
    """The data end, where sampling stops: close to 0."""
    end: eqx.AbstractVar[float]
    """The noise end, where sampling begins: 1, or close to it."""

    def __check_init__(self) -> None:
        if not 0.0 < self.start < self.end <= 1.0:
            raise MethodError(
                f"{type(self).__name__} runs from start={self.start} to end={self.end}, expected 0 < start < end <= 1. "
                f"Leave them out for the usual values."
            )

    @abc.abstractmethod
    def __call__(self, t: Time) -> tuple[Array, Array]:
        """The scales ``(alpha, sigma)`` at time ``t``, shape ``()`` each."""

    def rates(self, t: Time) -> tuple[Array, Array]:
        r"""The derivatives :math:`(\alpha', \sigma')`."""
        t = jnp.asarray(t, float)
        return jax.jvp(self.__call__, (t,), (jnp.ones_like(t),))[1]

    def log_snr(self, t: Time) -> Array:
        r""":math:`\log(\alpha^2 / \sigma^2)`, which falls with ``t``."""
        alpha, sigma = self(t)
        return 2.0 * (jnp.log(alpha) - jnp.log(sigma))

    def time(self, log_snr: Array | float) -> Array:
        """The time between ``start`` and ``end`` with this log signal-to-noise ratio, by bisection; the shape of
        ``log_snr``. Ratios that are not reached there give the end that is closest."""
        log_snr = jnp.asarray(log_snr, float)
        at = jnp.vectorize(self.log_snr)

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            later = at(middle) > log_snr
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        bounds = jnp.full(log_snr.shape, self.start), jnp.full(log_snr.shape, self.end)
        low, high = jax.lax.fori_loop(0, 60, halve, bounds)
        return (low + high) / 2

    def f(self, t: Time) -> Array:
        r"""Drift :math:`f(t) = \alpha' / \alpha` of the noising process."""
        return self.rates(t)[0] / self(t)[0]

    def g2(self, t: Time) -> Array:
        r"""Squared diffusion :math:`g^2(t) = 2 \sigma (\sigma' - \sigma \alpha' / \alpha)` of the noising process."""
        (alpha, sigma), (d_alpha, d_sigma) = self(t), self.rates(t)
        return 2.0 * sigma * (d_sigma - sigma * d_alpha / alpha)


def _positive(path: Path, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise MethodError(f"{type(path).__name__} got {name}={value}, expected a positive number. Change {name}.")


def _linear_rate(t: Time, low: float, high: float) -> Array:
    """Log signal scale of the process whose noise rate grows from ``low`` to ``high``."""
    t = jnp.asarray(t, float)
    return -0.5 * (low * t + 0.5 * (high - low) * t**2)


class VP(Path):
    r"""Variance preserving, :math:`\alpha^2 + \sigma^2 = 1`, with a noise rate that grows linearly.

    Attributes:
        beta_min: Noise rate at ``t = 0``, > 0.
        beta_max: Noise rate at ``t = 1``, >= ``beta_min``.
        start: Data end.
        end: Noise end.
    """

    beta_min: float = eqx.field(static=True, default=0.1)
    beta_max: float = eqx.field(static=True, default=20.0)
    start: float = eqx.field(static=True, default=1e-3, kw_only=True)
    end: float = eqx.field(static=True, default=1.0, kw_only=True)

    def __check_init__(self) -> None:
        _positive(self, beta_min=self.beta_min, beta_max=self.beta_max)

    def __call__(self, t: Time) -> tuple[Array, Array]:
        log_alpha = _linear_rate(t, self.beta_min, self.beta_max)
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))


class SubVP(Path):
    r"""As ``VP`` with less noise on the way: :math:`\sigma = 1 - \alpha^2`.

    Attributes:
        beta_min: Noise rate at ``t = 0``, > 0.
        beta_max: Noise rate at ``t = 1``, >= ``beta_min``.
        start: Data end.
        end: Noise end.
    """

    beta_min: float = eqx.field(static=True, default=0.1)
    beta_max: float = eqx.field(static=True, default=20.0)
    start: float = eqx.field(static=True, default=1e-2, kw_only=True)
    end: float = eqx.field(static=True, default=1.0, kw_only=True)

    def __check_init__(self) -> None:
        _positive(self, beta_min=self.beta_min, beta_max=self.beta_max)

    def __call__(self, t: Time) -> tuple[Array, Array]:
        log_alpha = _linear_rate(t, self.beta_min, self.beta_max)
        return jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha)


class VE(Path):
    r"""Variance exploding: :math:`\alpha = 1` and :math:`\sigma` grows geometrically.

    Attributes:
        sigma_min: Noise at ``t = 0``, > 0: well below the finest detail of the data.
        sigma_max: Noise at ``t = 1``: well above their extent.
        start: Data end.
        end: Noise end.
    """

    sigma_min: float = eqx.field(static=True, default=0.01)
    sigma_max: float = eqx.field(static=True, default=50.0)
    start: float = eqx.field(static=True, default=1e-3, kw_only=True)
    end: float = eqx.field(static=True, default=1.0, kw_only=True)

    def __check_init__(self) -> None:
        _positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if self.sigma_min >= self.sigma_max:
            raise MethodError(
                f"VE got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}, expected sigma_min < sigma_max. "
                f"Noise grows from data to noise: exchange them."
            )

    def __call__(self, t: Time) -> tuple[Array, Array]:
        t = jnp.asarray(t, float)
        span = math.log(self.sigma_max / self.sigma_min)
        return jnp.ones_like(t), self.sigma_min * jnp.exp(span * t)


class Cosine(Path):
    r"""Variance preserving on a quarter of a circle: :math:`\alpha = \cos(\pi t / 2)`, :math:`\sigma = \sin(\pi t / 2)`.

    Attributes:
        start: Data end.
        end: Noise end; below 1, where the signal vanishes.
    """

    start: float = eqx.field(static=True, default=1e-2, kw_only=True)
    end: float = eqx.field(static=True, default=1 - 1e-2, kw_only=True)

    def __call__(self, t: Time) -> tuple[Array, Array]:
        angle = jnp.pi / 2 * jnp.asarray(t, float)
        return jnp.cos(angle), jnp.sin(angle)


class Rectified(Path):
    r"""A straight line from data to noise, as in flow matching: :math:`\alpha = 1 - t`, :math:`\sigma = t`.

    Attributes:
        start: Data end.
        end: Noise end; below 1, where the signal vanishes.
    """

    start: float = eqx.field(static=True, default=1e-2, kw_only=True)
    end: float = eqx.field(static=True, default=1 - 1e-2, kw_only=True)

    def __call__(self, t: Time) -> tuple[Array, Array]:
        t = jnp.asarray(t, float)
        return 1 - t, t


def even_times(path: Path, steps: int) -> Array:
    """Times from the noise end to the data end, evenly spaced, shape ``(steps + 1,)``."""
    _check_steps(steps)
    return jnp.linspace(path.end, path.start, steps + 1)


def even_log_snr(path: Path, steps: int) -> Array:
    """Times from the noise end to the data end at which the log signal-to-noise ratio is evenly spaced, shape
    ``(steps + 1,)``: the grid on which solvers in that variable keep their order."""
    _check_steps(steps)
    wanted = jnp.linspace(path.log_snr(path.end), path.log_snr(path.start), steps + 1)
    return path.time(wanted).at[0].set(path.end).at[-1].set(path.start)


def karras_times(path: Path, steps: int, rho: float = 7.0) -> Array:
    r"""Times from the noise end to the data end at which :math:`(\sigma/\alpha)^{1/\rho}` is evenly spaced, shape
    ``(steps + 1,)``: the grid of EDM, finer towards the data. As ``rho`` grows it tends to ``even_log_snr``."""
    _check_steps(steps)
    if not (math.isfinite(rho) and rho > 0):
        raise MethodError(f"rho must be a positive number, got {rho!r}. Use 7.")
    high, low = (jnp.exp(-path.log_snr(t) / (2 * rho)) for t in (path.end, path.start))
    wanted = -2 * rho * jnp.log(jnp.linspace(high, low, steps + 1))
    return path.time(wanted).at[0].set(path.end).at[-1].set(path.start)


def _check_steps(steps: int) -> None:
    if not is_count(steps):
        raise MethodError(f"steps must be an int of at least 1, got {steps!r}. Use 50 or more.")
