"""Self-guided forecasts and refinement: against the exact conditional of an autoregressive process."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.generative import VP, GaussianMixture, TrainingFree, even_log_snr, refine, sample_path
from probgen.testing import assert_mean

PATH = VP()
LENGTH, SEEN, NOISE = 12, 8, 0.4
PHI = 0.9
COVARIANCE = PHI ** np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
AR = GaussianMixture([1.0], [np.zeros(LENGTH)], COVARIANCE, PATH)
GAIN = COVARIANCE[SEEN:, :SEEN] @ np.linalg.inv(COVARIANCE[:SEEN, :SEEN] + NOISE**2 * np.eye(SEEN))
SPREAD = np.sqrt(np.diag(COVARIANCE[SEEN:, SEEN:] - GAIN @ COVARIANCE[:SEEN, SEEN:]))


def crps(draws, truth):
    """Of an ensemble, shape (members, ...), without bias."""
    count = len(draws)
    ordered = np.sort(draws, 0)
    rank = 2 * np.arange(1, count + 1).reshape(-1, *[1] * truth.ndim) - count - 1
    return np.abs(draws - truth).mean(0) - (rank * ordered).sum(0) / (count * (count - 1))


@pytest.fixture(scope="module")
def forecasts():
    """60 series, and 50 forecasts of each by observation self-guidance."""
    rng = np.random.default_rng(0)
    series = rng.multivariate_normal(np.zeros(LENGTH), COVARIANCE, 60)
    seen = series[:, :SEEN] + NOISE * rng.normal(size=(60, SEEN))
    times = even_log_snr(PATH, 60)

    def draw(key, y):
        guided = TrainingFree(lambda x: dist.Normal(x[:SEEN], NOISE).log_prob(y).sum(), rho=0.5)
        key_noise, key_path = jax.random.split(key)
        return sample_path(key_path, guided, AR, AR.draw_noise(key_noise), times)

    keys = jax.random.split(jax.random.key(0), (50, 60))
    drawn = jax.jit(jax.vmap(jax.vmap(draw), (0, None)))(keys, seen)
    return series, seen, np.asarray(drawn)


def test_self_guided_forecasts_come_close_to_the_exact_ones(forecasts):
    series, seen, drawn = forecasts
    future = series[:, SEEN:]
    exact = seen @ GAIN.T + SPREAD * np.random.default_rng(1).normal(size=(50, 60, LENGTH - SEEN))
    climate = np.random.default_rng(2).normal(size=(50, 60, LENGTH - SEEN))
    best, ours, worst = (crps(draws, future).mean() for draws in (exact, drawn[..., SEEN:], climate))
    # The expected score of the exact forecast is its standard deviation over the root of pi.
    scores = crps(exact, future).mean(1).reshape(30, 2).mean(1)
    assert_mean(scores, SPREAD.mean() / np.sqrt(np.pi), detects=0.4)
    assert ours < best + 0.3 * (worst - best)
    assert best < worst


def test_refinement_samples_the_model_times_the_reward():
    """On a Gaussian, Langevin steps of length h leave the variance v / (1 - h / 4 v), which is what it says."""
    v, h, t = 0.5, 0.2, 0.01
    gaussian = GaussianMixture([1.0], [[0.0]], [[1.0]], PATH)
    alpha, sigma = PATH(t)
    implicit = (alpha**2 + sigma**2) / alpha**2  # the model at t, in the units of the data
    width = 1 / (1 / v - 1 / implicit)

    def draw(key):
        def reward(x):
            return -0.5 * jnp.sum((x - 1.0) ** 2) / width

        return refine(key, gaussian, jnp.zeros(1), reward, t=t, steps=60, length=h)[0]

    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 40 * 100)).reshape(40, 100)
    mean = v / width
    assert_mean(draws.mean(1), mean, detects=0.15)
    assert_mean(((draws - mean) ** 2).mean(1), v / (1 - h / (4 * v)), detects=0.15)


@pytest.mark.slow
def test_refinement_improves_a_forecast(forecasts):
    """A persistence forecast with too much noise, drawn towards the process and held by its distance."""
    series, seen, _ = forecasts
    rng = np.random.default_rng(3)
    base = np.concatenate(
        [
            np.broadcast_to(seen, (20, 60, SEEN)),
            seen[:, -1:] + 1.0 * rng.normal(size=(20, 60, LENGTH - SEEN)),
        ],
        -1,
    )

    def better(key, x):
        near = jnp.where(jnp.arange(LENGTH) < SEEN, NOISE, 2.0)
        return refine(key, AR, x, lambda z: dist.Normal(x, near).log_prob(z).sum(), t=0.05, steps=60, length=0.02)

    refined = np.asarray(jax.jit(jax.vmap(jax.vmap(better)))(jax.random.split(jax.random.key(1), (20, 60)), base))
    gain = (crps(base[..., SEEN:], series[:, SEEN:]) - crps(refined[..., SEEN:], series[:, SEEN:])).mean(1)
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))


@pytest.mark.parametrize(
    ("settings", "message"), [({"steps": 0}, "steps=0"), ({"length": -1.0}, "length"), ({"temperature": -1.0}, "temp")]
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(pg.MethodError, match=message):
        refine(jax.random.key(0), AR, jnp.zeros(LENGTH), lambda x: 0.0, t=0.1, **settings)
