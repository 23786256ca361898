"""The posterior of a path: against the Kalman filter, whose answers are exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.stats import multivariate_normal

import probgen as pg
from probgen.amortized.task import observing
from probgen.program.density import Density
from probgen.testing import assert_moments, assert_unbiased_evidence

STEPS, DECAY, DRIVE, NOISE = 12, 0.9, 0.5, 0.6


def series(y=None):
    """An autoregression, seen through noise; stationary from the start."""

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(DECAY * x, DRIVE))
        numpyro.sample("y", dist.Normal(x, NOISE), obs=y)
        return x, None

    scan(step, 0.0, y, length=STEPS)


def drifting(y=None):
    """The same about an unknown level, in two dimensions, the second state positive."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(DECAY * x, DRIVE))
        scale = numpyro.sample("scale", dist.LogNormal(0.1 * x, 0.3))
        numpyro.sample("y", dist.Normal(level + x, scale), obs=y)
        return x, None

    scan(step, 0.0, y, length=5)


def prior_covariance():
    root = np.linalg.inv(np.eye(STEPS) - DECAY * np.eye(STEPS, k=-1)) * DRIVE
    return root @ root.T


def smoothed(y):
    """Mean and covariance of the states given a series, and the log evidence."""
    prior = prior_covariance()
    total = prior + NOISE**2 * np.eye(STEPS)
    gain = prior @ np.linalg.inv(total)
    return gain @ y, prior - gain @ prior, multivariate_normal(np.zeros(STEPS), total).logpdf(y)


ONE_STEP = pg.generative.Training(steps=1, batch=64, learning_rate=1e-9)


@pytest.fixture(scope="module")
def linear():
    """Before training: the ridge regression of each state on the one before and the data nearby."""
    return pg.amortize(pg.Model(series), ["y"], pg.PathPosterior(window=4, width=8, training=ONE_STEP), 3000, seed=0)


@pytest.fixture(scope="module")
def both():
    """With a parameter, a state of two numbers, and weights that are not those of the start."""
    training = pg.generative.Training(steps=20, batch=64, learning_rate=1e-2)
    how = pg.PathPosterior(window=2, lags=2, width=8, count=1, encoder_width=8, encoder_depth=1, training=training)
    return pg.amortize(pg.Model(drifting), ["y"], how, 400, seed=1)


def law_of(method, program, y):
    return method.given(Density(observing(pg.Model(program, {"y": y}), None, jax.random.key(0))[0]))


def test_the_density_is_that_of_the_draws(both):
    law = law_of(both, drifting, jnp.array([0.3, -0.5, 1.0, 0.2, 0.9]))
    z = jax.random.normal(jax.random.key(3), (4, 11))

    @jax.jit
    def look(law, z):
        u = jax.vmap(law.push)(z)
        return jax.vmap(jax.jacfwd(law.push))(z), jax.vmap(law.density)(u)

    jacobian, log_q = look(law, z)
    expected = multivariate_normal(np.zeros(11)).logpdf(z) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_q, expected, atol=2e-3)


def test_a_state_looks_at_the_states_before_and_the_data_nearby(both):
    """Noise of a step moves that step and later ones; data beyond the window of all steps from it on move nothing there."""
    y = jnp.array([0.3, -0.5, 1.0, 0.2, 0.9])
    law = law_of(both, drifting, y)
    family, local = law.family, law.net.local
    path = family.split(jnp.arange(11.0))[1]
    assert path.shape == (5, 2)
    np.testing.assert_array_equal(family.join(*family.split(jnp.arange(11.0))), jnp.arange(11.0))
    reading = family.encoder.reading

    def drawn(z, y):
        return family.path_from(local, jnp.ones(1), z, reading.pack({"y": y}, {}))

    z = jax.random.normal(jax.random.key(0), (5, 2))
    by_noise = np.abs(jax.jit(jax.jacfwd(drawn))(z, y)).reshape(10, 10)
    assert np.all(np.triu(by_noise, 1) == 0)
    assert np.all(np.diag(by_noise) > 0)
    by_data = np.abs(jax.jit(jax.jacfwd(drawn, 1))(z, y)).max(1)
    assert np.all(by_data[0, 3:] == 0)
    assert np.all(by_data[1, 4:] == 0)
    assert by_data[0, 2] > 0
    assert by_data[4, 0] > 0  # through the states between


def test_what_is_linear_and_gaussian_is_nearly_there_before_training(linear):
    """The divergence from the exact posterior, in nats for the whole path: its ends, where less is seen, are all that one
    regression for all steps gets wrong. A path of independent states with the exact means and deviations has more."""
    rng = np.random.default_rng(0)
    gaps, apart = [], []
    density = jax.jit(lambda law, x: law.log_prob(x))
    for _ in range(5):
        x = rng.multivariate_normal(np.zeros(STEPS), prior_covariance())
        y = x + NOISE * rng.normal(size=STEPS)
        mean, covariance, _ = smoothed(y)
        exact = rng.multivariate_normal(mean, covariance, 2000)
        log_q = np.asarray(density(law_of(linear, series, y), jnp.asarray(exact)))
        gaps.append(np.mean(multivariate_normal(mean, covariance).logpdf(exact) - log_q))
        apart.append(0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1]))
    assert np.mean(gaps) < 0.5 * np.mean(apart)
    assert np.mean(gaps) < 0.6


def test_importance_sampling_makes_it_the_kalman_smoother(linear):
    y = np.random.default_rng(2).multivariate_normal(np.zeros(STEPS), prior_covariance() + NOISE**2 * np.eye(STEPS))
    mean, covariance, evidence = smoothed(y)
    model = pg.Model(series, {"y": y})
    trees = [pg.infer(model, pg.ImportanceSampling(linear), draws=1500, chains=1, seed=i) for i in range(24)]
    assert all(tree.attrs["correction"].startswith("importance") for tree in trees)
    draws = np.stack([tree.posterior.x.values[0] for tree in trees])
    assert_moments(draws, mean, covariance, detects=0.25)
    assert_unbiased_evidence([tree.attrs["log_evidence"] for tree in trees], evidence, detects=0.2)


def test_it_is_saved_and_loaded(both, tmp_path):
    both.save(tmp_path / "path")
    again = pg.amortized.load(tmp_path / "path")
    assert "estimator=PathPosterior," in repr(again)
    model = pg.Model(drifting, {"y": np.array([0.3, -0.5, 1.0, 0.2, 0.9])})
    trees = [pg.infer(model, method, draws=20, chains=1, seed=5) for method in (both, again)]
    np.testing.assert_array_equal(trees[0].posterior.x, trees[1].posterior.x)
    assert (trees[0].posterior["scale"].values > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"window": 0}, "window=0"), ({"lags": 0}, "lags=0"), ({"width": 0}, "width=0")],
)
def test_settings_that_make_no_sense_are_named(change, message):
    method = dataclasses.replace(pg.PathPosterior(training=ONE_STEP), **change)
    with pytest.raises(pg.MethodError, match=message):
        pg.amortize(pg.Model(series), ["y"], method, 100)


def test_programs_without_a_path_are_refused():
    def apart(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0).expand([3]).to_event(1), obs=y)

    def still(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))

        def step(carry, y):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return carry, None

        scan(step, 0.0, y, length=4)

    with pytest.raises(pg.MethodError, match="one scan"):
        pg.amortize(pg.Model(apart), ["y"], pg.PathPosterior(training=ONE_STEP), 100)
    with pytest.raises(pg.MethodError, match="no continuous state"):
        pg.amortize(pg.Model(still), ["y"], pg.PathPosterior(training=ONE_STEP), 100)
    with pytest.raises(pg.MethodError, match="one length"):
        pg.amortize(pg.Model(series), ["y"], pg.PathPosterior(training=ONE_STEP), 100, fewest={"time": 4})
