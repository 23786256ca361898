"""Events of diffusion models: their probabilities, and draws given them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import probgen as pg
from probgen import generative as gm
from probgen.generative.event import Event
from probgen.generative.standardisation import Standardisation
from probgen.testing import assert_mean

PATH = gm.VP()
TIMES = np.arange(6) / 2
OU = gm.GaussianMixture([1.0], np.zeros((1, 6)), np.exp(-np.abs(TIMES[:, None] - TIMES)), PATH)
"""An Ornstein-Uhlenbeck process at six times."""


def scale():
    """Standard deviation of the mean of a trajectory, as the model has it at the data end of its path."""
    alpha, sigma = map(float, PATH(PATH.start))
    return np.sqrt(alpha**2 * np.mean(np.exp(-np.abs(TIMES[:, None] - TIMES))) + sigma**2 / 6)


@pytest.fixture(scope="module")
def replicates():
    """Probabilities by 24 runs, for each of four levels, relative to the exact ones."""
    keys = jax.random.split(jax.random.key(0), 24)

    def ratio(tail, level):
        event = Event(OU, jnp.mean, 0.0)
        event.statistic = type(event.statistic)(jnp.mean, level, None)
        found = jax.vmap(lambda key: event.run(key, particles=100, steps=20))(keys)
        return jnp.exp(found.log_probability) / tail

    tails = np.array([1e-1, 1e-2, 1e-3, 1e-4])
    return np.asarray(jax.jit(jax.vmap(ratio))(tails, scale() * norm.isf(tails)))


def test_probabilities_of_linear_events_are_exact_up_to_noise(replicates):
    """From one in ten to one in ten thousand, with 100 particles each: replicates of the ratio have a mean of one."""
    assert replicates.shape == (4, 24)
    assert_mean(replicates.T, 1.0, detects=0.35)


def test_the_approximation_is_exact_for_gaussian_data_and_a_linear_event():
    """The denoised value given the event, against the mean of a normal law that is cut off."""
    x, t, level = jnp.linspace(-1.0, 1.0, 6), 0.4, 0.5
    foreseen = OU(x, t)
    covariance, slope = np.asarray(foreseen.matrix()), np.full(6, 1 / 6)
    sd = np.sqrt(slope @ covariance @ slope)
    z = (float(foreseen.mean.mean()) - level) / sd
    exact = foreseen.mean + covariance @ slope / sd * norm.pdf(z) / norm.cdf(z)
    given = Event(OU, jnp.mean, level).approximate.denoiser
    np.testing.assert_allclose(given.mean(x, t), exact, atol=1e-10)
    # The score that Finzi et al. differentiate is the same.
    score = OU.score(x, t) + jax.grad(lambda x: jax.scipy.stats.norm.logcdf((OU.mean(x, t).mean() - level) / sd))(x)
    np.testing.assert_allclose(given.score(x, t), score, atol=1e-8)


def test_given_the_event_it_happens_and_units_are_kept():
    units = Standardisation((6,)).adapted(5.0 + 2.0 * jax.random.normal(jax.random.key(1), (50, 6)))
    prior = gm.DenoisedDistribution(OU, units=units)
    found = Event(prior, jnp.max, 9.0).run(jax.random.key(0), particles=100, steps=20)
    x = np.asarray(found.x)[np.isfinite(np.asarray(found.log_w))]
    assert len(x) > 20
    assert x.max(1).min() >= 9.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((OU, lambda x: x, 1.0), "shape"),
        ((OU, 3.0, 1.0), "function"),
        ((OU, jnp.mean, np.inf), "level"),
        ((None, jnp.mean, 1.0), "prior"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(pg.MethodError, match=message):
        Event(*arguments)
    with pytest.raises(pg.MethodError, match="particles"):
        Event(OU, jnp.mean, 1.0).run(jax.random.key(0), particles=1)


@pytest.mark.slow
def test_a_nonlinear_event_has_the_frequency_of_brute_force():
    """The largest value of a trajectory, which is no linear function, above 3.2."""
    draws = jax.vmap(lambda key: OU.draw(key, PATH.start))(jax.random.split(jax.random.key(2), 400_000))
    frequency = float(jnp.mean(draws.max(1) >= 3.2))
    event = Event(OU, jnp.max, 3.2)
    found = jax.jit(jax.vmap(lambda key: event.run(key, particles=500, steps=60).log_probability))(
        jax.random.split(jax.random.key(3), 32)
    )
    # The frequency has a relative error of 1 / sqrt(400_000 * 0.004) = 0.025, three times.
    assert_mean(np.exp(found) / frequency, 1.0, detects=0.4, tolerance=0.08)
