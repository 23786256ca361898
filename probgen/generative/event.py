r"""Events of a diffusion model: how likely they are, and what the data look like given that they happen.

An event is :math:`C(x_0) \ge y` for a differentiable function :math:`C` of one datum: the largest value of a trajectory, its
mean, its distance to something. With the data given a noisy value taken as Gaussian, of Tweedie's mean :math:`m` and
covariance :math:`\Sigma`, and :math:`C` as linear about :math:`m` with gradient :math:`c`,

.. math:: P(E \mid x_t) \approx \Phi(z), \qquad z = \frac{C(m) - y}{\sqrt{c^\top \Sigma c}}, \qquad
          E[x_0 \mid x_t, E] \approx m + \frac{\Sigma c}{\sqrt{c^\top \Sigma c}}\, \frac{\phi(z)}{\Phi(z)}

(Finzi, Boral, Wilson, Sha and Zepeda-Núñez 2023, "User-defined event sampling and uncertainty quantification in diffusion
models for physical dynamical systems"). Both are exact for Gaussian data and linear :math:`C`, at every noise level;
otherwise they are approximations. ``EventDenoiser`` is the model given the event so far as they go.

``Event`` corrects them: the denoising chain is twisted by :math:`\Phi(z)`, the particles are weighted for what was foreseen
wrongly, and at the data end :math:`C` itself decides (``feynman_kac/twisted.py``). The mean weight is the probability of the
event, unbiased for the chain at hand whatever :math:`C` is, and the particles are draws given the event. So small
probabilities cost no more than large ones, so long as :math:`\Phi(z)` foresees the event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.smc import Settings, smc
from probgen.feynman_kac.twisted import Denoising, SecondOrder, Sight, Twisted
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path, Time, even_log_snr
from probgen.generative.standardisation import Standardisation

__all__ = ["Event", "EventDenoiser", "Happened"]

_LEAST = 1e-12
"""Least variance of C, as a share of that which noise of the level alone would give."""


class _Statistic(eqx.Module):
    """``C(x) - y`` of a value in the units of the denoiser."""

    function: Callable[[Array], Scalar] = eqx.field(static=True)
    level: Array
    units: Standardisation | None

    def __call__(self, x: Array) -> Scalar:
        return self.function(x if self.units is None else self.units.outward(x)) - self.level


class Foresight(NamedTuple):
    """What a noisy value says of the event.

    Attributes:
        log_probability: :math:`\\log \\Phi(z)`.
        mean: :math:`m`.
        shift: What the event adds to it.
        covariance: :math:`\\Sigma`, shape ``(dim, dim)``.
        given: The covariance given the event too.
    """

    log_probability: Scalar
    mean: Array
    shift: Array
    covariance: Array
    given: Array


def foresee(denoiser: Denoising, statistic: Callable[[Array], Scalar], x: Array, t: Array) -> Foresight:
    """What ``x`` at time ``t`` says of the event that the statistic is positive."""
    foreseen = denoiser(x, t)
    mean, covariance = foreseen.mean, foreseen.matrix()
    covariance = (covariance + covariance.T) / 2
    value, slope = jax.value_and_grad(statistic)(mean)
    slope = slope.reshape(-1)
    along = covariance @ slope
    scale = jnp.sqrt(jnp.maximum(slope @ along, _LEAST * (slope @ slope) * jnp.trace(covariance) + 1e-300))
    z = value / scale
    log_probability = jax.scipy.stats.norm.logcdf(z)
    rate = jnp.exp(jax.scipy.stats.norm.logpdf(z) - log_probability)
    direction = along / scale
    # The law of a normal variable that is cut off: its mean moves by the rate, its variance by this factor.
    narrowed = jnp.clip(rate * (rate + z), 0.0, 1.0 - 1e-9)
    given = covariance - narrowed * jnp.outer(direction, direction)
    return Foresight(log_probability, mean, (rate * direction).reshape(mean.shape), covariance, given)


class EventDenoiser(Denoiser):
    """A diffusion model given an event, as far as Gaussian moments go: an approximation, exact for Gaussian data and linear
    functions.

    Attributes:
        prior: The denoiser of the model.
        statistic: ``C(x) - y``, of a value in its units.
        path: From data to noise.
    """

    prior: Denoiser
    statistic: Callable[[Array], Scalar]
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.prior.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        foreseen = foresee(self.prior, self.statistic, x, jnp.asarray(t))
        return (foreseen.mean + foreseen.shift).astype(x.dtype)


class _EventTwist(SecondOrder):
    """The probability of the event as twist, and the data given the event as Gaussian proposal, which is drawn from as that
    of ``SecondOrder``."""

    def look(self, denoiser: Denoising, log_likelihood: Callable[[Array], Scalar], x: Array, t: Array) -> Sight:
        """See ``Twist.look``."""
        assert isinstance(log_likelihood, _Indicator)
        foreseen = foresee(denoiser, log_likelihood.statistic, x, t)
        return Sight(foreseen.log_probability, foreseen.mean, (foreseen.covariance, foreseen.shift, foreseen.given))


class _Indicator(eqx.Module):
    """The log likelihood of the event: 0 where it happens."""

    statistic: _Statistic

    def __call__(self, x: Array) -> Scalar:
        return jnp.where(self.statistic(x) >= 0, 0.0, -jnp.inf)


class Happened(NamedTuple):
    """Weighted particles given an event, and its probability.

    Attributes:
        x: Particles in the units of the data, shape ``(particles, *shape)``.
        log_w: Normalised log weights; ``-inf`` where the event does not happen.
        log_probability: Log of the estimated probability; the estimate itself is unbiased for the chain.
        log_variance: Estimated variance of ``log_probability``.
    """

    x: Array
    log_w: Array
    log_probability: Scalar
    log_variance: Scalar


class Event:
    r"""The event :math:`C(x) \ge y` of a diffusion model.

    Args:
        prior: The model: a denoiser, or its distribution, which may have standard units.
        function: :math:`C`, a differentiable function of one datum in the units of the data.
        level: :math:`y`.

    Raises:
        MethodError: If the prior is no diffusion model, or the function does not give one number.
    """

    def __init__(
        self, prior: DenoisedDistribution | Denoiser, function: Callable[[Array], Scalar], level: float
    ) -> None:
        denoiser = prior.denoiser if isinstance(prior, DenoisedDistribution) else prior
        if not isinstance(denoiser, Denoiser):
            raise MethodError(f"an event got prior={type(prior).__name__}, expected a denoiser or its distribution.")
        if not callable(function):
            raise MethodError(f"an event got function={function!r}, expected a function of one datum. Give one.")
        if not (isinstance(level, int | float) and math.isfinite(level)):
            raise MethodError(f"an event got level={level!r}, expected a finite number. Give level=1.0.")
        shape = jax.eval_shape(function, jax.ShapeDtypeStruct(denoiser.shape, jnp.zeros(()).dtype)).shape
        if shape != ():
            raise MethodError(f"the function of an event gives the shape {shape}, expected (). Return one number.")
        self.denoiser, self.units = denoiser, getattr(prior, "units", None)
        self.statistic = _Statistic(function, jnp.asarray(float(level)), self.units)

    @property
    def approximate(self) -> DenoisedDistribution:
        """The model given the event, without correction: one draw at a time, by any sampler."""
        denoiser = EventDenoiser(prior=self.denoiser, statistic=self.statistic, path=self.denoiser.path)
        return DenoisedDistribution(denoiser, units=self.units)

    def foreseen(self, key: PRNGKey, draws: int = 1000) -> Scalar:
        """Log of the probability that is foreseen from noise alone, without correction."""
        t = jnp.asarray(self.denoiser.path.end)

        def one(key: PRNGKey) -> Scalar:
            return foresee(self.denoiser, self.statistic, self.denoiser.draw_noise(key), t).log_probability

        each = jax.lax.map(one, jax.random.split(key, draws), batch_size=256)
        return jax.scipy.special.logsumexp(each) - math.log(draws)

    def run(self, key: PRNGKey, *, particles: int = 1000, steps: int = 60) -> Happened:
        """Weighted particles given the event, and its probability.

        Args:
            key: Randomness.
            particles: Number of particles.
            steps: Steps from noise to data, even in the log signal-to-noise ratio.

        Raises:
            MethodError: If the counts make no sense.
        """
        for name, value in (("particles", particles), ("steps", steps)):
            if not is_count(value, 2):
                raise MethodError(f"an event got {name}={value!r}, expected an int of at least 2. Change {name}.")
        return _run(key, self.denoiser, self.statistic, particles, steps)


@eqx.filter_jit
def _run(key: PRNGKey, denoiser: Denoiser, statistic: _Statistic, particles: int, steps: int) -> Happened:
    chain = Twisted(denoiser, _Indicator(statistic), even_log_snr(denoiser.path, steps), _EventTwist())
    result = smc(key, chain, Settings(particles))
    x = result.cloud.x.x
    x = x if statistic.units is None else jax.vmap(statistic.units.outward)(x)
    return Happened(x, result.cloud.log_w, result.log_z, result.log_z_variance)
