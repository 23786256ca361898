"""Hard data consistency: the fit in closed form, the posterior mean of a linear-Gaussian latent, and the lost spread."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative import VP, GaussianMixture, HardConsistency, even_log_snr, observed_mixture, sample_path
from probgen.testing import assert_mean

PATH = VP()
DECODER = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4], [0.3, 0.3, 1.0], [-0.6, 0.1, 0.2]])
SEEN = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
Y, SD = np.array([0.8, -0.5]), 0.3
LATENT = GaussianMixture([1.0], [np.zeros(3)], np.eye(3), PATH)
EXACT = observed_mixture(LATENT, SEEN @ DECODER, Y, SD**2 * np.eye(2))


def log_likelihood(z):
    return -0.5 * jnp.sum((Y - SEEN @ (DECODER @ z)) ** 2) / SD**2


def draws(sampler, steps, count, seed=0):
    times = even_log_snr(PATH, steps)

    def draw(key):
        key_noise, key_path = jax.random.split(key)
        return sample_path(key_path, sampler, LATENT, LATENT.draw_noise(key_noise), times)

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), count))


def test_what_is_fitted_is_the_posterior_mean():
    """For latent values of variance 1: E[z | z_t, y], a Gaussian given two observations."""
    alpha, sigma = PATH(0.3)
    z_t = jnp.array([0.4, -1.1, 0.7])
    both = observed_mixture(
        LATENT,
        np.concatenate([SEEN @ DECODER, float(alpha) * np.eye(3)]),
        np.concatenate([Y, z_t]),
        np.diag([SD**2] * 2 + [float(sigma) ** 2] * 3),
    )
    sampler = HardConsistency(log_likelihood, variance=1.0, iterations=20)
    fitted = jax.jit(sampler.fitted)(LATENT.mean(z_t, 0.3), alpha, sigma)
    np.testing.assert_allclose(fitted, both.means[0], atol=1e-5)


def test_without_a_prior_it_is_the_nearest_point_that_explains_the_data():
    mean, matrix = jnp.array([0.4, -1.1, 0.7]), SEEN @ DECODER
    fitted = jax.jit(HardConsistency(log_likelihood, iterations=30).fitted)(mean, *PATH(0.3))
    nearest = mean + np.linalg.pinv(matrix) @ (Y - matrix @ mean)
    np.testing.assert_allclose(fitted, nearest, atol=1e-4)


@pytest.fixture(scope="module")
def latents():
    return draws(HardConsistency(log_likelihood, variance=1.0, gamma=math.inf, iterations=6), 12, 40 * 25)


def test_the_posterior_mean_of_a_linear_gaussian_latent(latents):
    """Exact with gamma infinite, in as few as 12 steps."""
    alpha = PATH(PATH.start)[0]
    assert_mean(latents.reshape(40, 25, 3).mean(1), alpha * EXACT.means[0], detects=0.25, tolerance=1e-3)


def test_its_spread_is_too_small(latents):
    """As the documentation says: of the variance that the observation leaves, 0.36 in 12 steps."""
    covariance = np.einsum("ij,j,lj->il", EXACT.axes[0], EXACT.variances[0], EXACT.axes[0])
    ratio = np.trace(np.cov(np.asarray(latents).T)) / np.trace(covariance)
    assert 0.3 < ratio < 0.42


def test_fewer_looks_at_the_data_still_end_with_one():
    """The last step fits, whatever its number; the noise at the data end is 0.01."""
    every = draws(HardConsistency(log_likelihood, every=5, gamma=math.inf, iterations=6), 12, 20)
    misfit = np.asarray(every) @ (SEEN @ DECODER).T - Y
    assert np.abs(misfit).max() < 0.1


def test_how_much_is_redrawn():
    """The mean and variance of one step are those of the published product of Gaussians."""
    gamma, t, s = 3.0, 0.5, 0.42
    (alpha_t, sigma_t), (alpha_s, sigma_s) = PATH(t), PATH(s)
    z = jnp.array([0.4, -1.1, 0.7])
    r = gamma * (1 - alpha_s**2) / alpha_t**2 * (1 - alpha_t**2 / alpha_s**2)
    sampler = HardConsistency(log_likelihood, gamma=gamma, iterations=4)
    fitted = jax.jit(sampler.fitted)(LATENT.mean(z, t), alpha_t, sigma_t)
    m = LATENT.mean(z, t)
    ddim = alpha_s * m + sigma_s * (z - alpha_t * m) / sigma_t
    mean = (r * alpha_s * fitted + sigma_s**2 * ddim) / (r + sigma_s**2)
    step = jax.jit(lambda key: sampler.step(key, LATENT, z, t, s, jnp.zeros((), int))[0])
    x = jax.vmap(step)(jax.random.split(jax.random.key(0), 4000))
    scale = jnp.sqrt(r * sigma_s**2 / (r + sigma_s**2))
    standard = (x - mean) / scale
    assert_mean(standard.reshape(40, 100, 3).mean(1), 0.0, detects=0.25)
    assert_mean((standard**2).reshape(40, 100, 3).mean(1), 1.0, detects=0.4)


@pytest.mark.parametrize("settings", [{"variance": 0.0}, {"gamma": -1.0}, {"every": 0}, {"iterations": True}], ids=str)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(pg.MethodError, match=next(iter(settings))):
        HardConsistency(log_likelihood, **settings)
