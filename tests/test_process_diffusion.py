"""Diffusion of functions: exact Gaussian processes through coloured noise, and a fit against the exact posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import probgen as pg
from probgen.generative import (
    VP,
    DenoisedDistribution,
    GaussianMixture,
    OUNoise,
    ProcessDiffusion,
    ProcessUnits,
    SmoothNoise,
    Training,
    fit,
    load,
    save,
)
from probgen.generative.standardisation import Standardisation

TIMES = np.array([0.0, 0.13, 0.4, 1.1, 1.3])


def kernel(a, b):
    return np.exp(-0.5 * (a[..., :, None] - b[..., None, :]) ** 2 / 0.6**2) + 1e-3 * (
        a[..., :, None] == b[..., None, :]
    )


def exact(times, process):
    """The denoiser of a Gaussian process in white coordinates, and the way back."""
    units = ProcessUnits(Standardisation(times.shape), process.root(jnp.asarray(times)))
    white = np.linalg.inv(units.root)
    return DenoisedDistribution(
        GaussianMixture([1.0], np.zeros((1, len(times))), white @ kernel(times, times) @ white.T, VP()), units=units
    )


@pytest.mark.parametrize("process", [OUNoise(0.7), pytest.param(SmoothNoise(0.5), marks=pytest.mark.slow)], ids=repr)
def test_draws_at_some_times_are_those_of_the_whole_function(process):
    """The flow is linear on a Gaussian process: its covariance is that of the data, at all times or at some of them."""
    some = np.array([0, 2, 3])
    for times in (TIMES, TIMES[some]):
        prior = exact(times, process)
        columns = jax.vmap(functools.partial(prior_push, prior))(jnp.eye(len(times)))
        np.testing.assert_allclose(columns.T @ columns, kernel(times, times), atol=5e-3)
    # Half way: noisy values at some of the times are noisy functions seen at these.
    whole, part = (process.root(jnp.asarray(t)) for t in (TIMES, TIMES[some]))
    np.testing.assert_allclose((whole @ whole.T)[np.ix_(some, some)], part @ part.T, atol=1e-12)


def prior_push(prior, z):
    from probgen.generative import even_log_snr, sample_path

    path = prior.denoiser.path
    alpha, sigma = path(path.end)
    law = prior.denoiser
    start = law.axes[0] @ (jnp.sqrt(alpha**2 * law.variances[0] + sigma**2) * z)
    return prior.units.outward(sample_path(jax.random.key(0), prior.sampler, law, start, even_log_snr(path, 60)))


def test_the_density_is_that_of_the_process():
    prior = exact(TIMES, OUNoise(0.7))
    x = np.array([0.3, 0.2, -0.1, 0.5, 0.4])
    alpha, sigma = (float(v) for v in VP()(VP().start))
    root = np.asarray(prior.units.root)
    covariance = alpha**2 * kernel(TIMES, TIMES) + sigma**2 * root @ root.T
    found = prior.log_prob(jnp.asarray(x))
    assert float(found) == pytest.approx(scipy.stats.multivariate_normal.logpdf(x, cov=covariance), abs=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OUNoise(-1.0), "length=-1.0"),
        (lambda: SmoothNoise(1.0, white=0.0), "0 < white < 1"),
        (lambda: fit(ProcessDiffusion(), np.zeros((10, 3))), r"conditions of shape None, expected \(n,\)"),
    ],
)
def test_wrong_settings_are_refused(make, words):
    with pytest.raises(pg.MethodError, match=words):
        make()


@pytest.mark.slow
def test_a_fit_imputes_as_the_posterior_does(tmp_path):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 2, (20000, 4)) + 0.02 * np.arange(4), 1)
    x = 3 + np.einsum("kij,kj->ki", np.linalg.cholesky(kernel(times, times)), rng.normal(size=times.shape))
    training = Training(steps=4000, batch=256, learning_rate=3e-3)
    model = fit(ProcessDiffusion(process=OUNoise(0.7), width=64, depth=2), x, times, training=training, seed=0)
    at, seen = np.array([0.3, 0.8, 1.2, 1.7]), np.array([True, False, False, True])
    value = 3 + np.array([0.8, 0.0, 0.0, -0.6])
    given = model.given(jnp.asarray(at))
    draws = np.asarray(given.impute(jax.random.key(0), np.broadcast_to(value, (2000, 4)), seen))
    np.testing.assert_array_equal(draws[:, seen], np.broadcast_to(value[seen], (2000, 2)))
    k = kernel(at, at)
    gain = k[np.ix_(~seen, seen)] @ np.linalg.inv(k[np.ix_(seen, seen)])
    mean = 3 + gain @ (value[seen] - 3)
    sd = np.sqrt(np.diag(k[np.ix_(~seen, ~seen)] - gain @ k[np.ix_(seen, ~seen)]))
    np.testing.assert_allclose((draws[:, ~seen].mean(0) - mean) / sd, 0, atol=0.3)
    np.testing.assert_allclose(draws[:, ~seen].std(0), sd, rtol=0.25)
    whole = np.asarray(given.sample(jax.random.key(1), (2000,)))
    np.testing.assert_allclose(np.corrcoef(whole.T), k / 1.001, atol=0.12)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model").given(jnp.asarray(at))
    np.testing.assert_array_equal(again.sample(jax.random.key(2)), given.sample(jax.random.key(2)))
