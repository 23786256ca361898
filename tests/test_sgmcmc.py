"""Stochastic gradients: the scaling of mini-batches, and the stationary laws of the chains on a Gaussian posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.infer.sgmcmc import SGHMC, SGLD, SGNHT
from probgen.program.batch import BatchDensity
from probgen.program.density import Density

ROWS, BATCH = 1000, 50
Y = np.random.default_rng(0).normal(1.5, 1.0, ROWS)
PRECISION = ROWS + 1.0
MEAN = float(Y.sum() / PRECISION)
SD = PRECISION**-0.5
# Variance of the mini-batch gradient: N/n times the sum over n of N rows without replacement.
NOISE = float(ROWS**2 / BATCH * Y.var(ddof=1) * (1 - BATCH / ROWS))


def program(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", ROWS, subsample_size=BATCH) as rows:
        numpyro.deterministic("residual", y[rows] - mu)
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def whole(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", ROWS):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.fixture(scope="module")
def model():
    return pg.Model(program, {"y": Y})


def test_the_mini_batch_density_and_gradient_are_unbiased(model):
    batches, full = BatchDensity(model, jax.random.key(0)), Density(pg.Model(whole, {"y": Y}))
    u, keys = jnp.array([1.3]), jax.random.split(jax.random.key(1), 4000)
    values, gradients = jax.jit(jax.vmap(lambda key: jax.value_and_grad(batches.of(key).log_density)(u)))(keys)
    value, gradient = jax.value_and_grad(full.log_density)(u)
    for estimates, exact in [(np.asarray(values), value), (np.asarray(gradients)[:, 0], gradient[0])]:
        error = estimates.std() / np.sqrt(len(keys))
        assert abs(estimates.mean() - exact) < 4.5 * error
        assert 4.5 * error < 0.02 * ROWS
    # Wrong scaling, or sampling with replacement, would show in the variance.
    ratio = np.asarray(gradients).var() / NOISE
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / len(keys))


def test_coordinates_of_values_do_not_depend_on_the_batch(model):
    density = BatchDensity(model, jax.random.key(0))
    u = density.unconstrain({"mu": jnp.array(1.3)})
    np.testing.assert_allclose(u, [1.3])
    np.testing.assert_allclose(density.constrain(u)["mu"], 1.3)


def moments(tree, weighted=False):
    """Mean and variance with their standard errors from independent chains."""
    mu = tree["posterior/mu"].values
    w = np.exp(tree["sample_stats/log_weight"].values) if weighted else np.ones_like(mu)
    w = w / w.sum(1, keepdims=True)
    mean = (w * mu).sum(1)
    second = (w * (mu - MEAN) ** 2).sum(1)
    root = np.sqrt(len(mean))
    return mean.mean(), mean.std(ddof=1) / root, second.mean(), second.std(ddof=1) / root


CHAINS = {"chains": 24, "draws": 1500, "warmup": 300}


def chain_draws(method, seed, **counts):
    """Draws of 24 chains in one program."""
    model = pg.Model(program, {"y": Y})
    density = method.density(model)
    drawn = jax.jit(lambda key: method.draw(key, density, **{**CHAINS, **counts}))(jax.random.key(seed))
    return np.asarray(drawn.values["mu"]), {name: np.asarray(v) for name, v in drawn.stats.items()}


def assert_moments(mu, variance):
    mean, second = mu.mean(1), ((mu - MEAN) ** 2).mean(1)
    root = np.sqrt(len(mean))
    assert abs(mean.mean() - MEAN) < 4.5 * mean.std(ddof=1) / root
    error = second.std(ddof=1) / root
    assert error < 0.1 * variance
    assert abs(second.mean() - variance) < 4.5 * error


def test_sgld_has_the_variance_that_theory_gives():
    step = 0.1 / PRECISION
    mu, stats = chain_draws(SGLD(step_size=step), 0)
    # u' = u + step (Lambda (m - u) + noise) + sqrt(2 step) xi: an autoregression, solved for its variance.
    inflated = (2 * step + step**2 * NOISE) / (1 - (1 - step * PRECISION) ** 2)
    assert inflated > 1.5 * SD**2
    assert_moments(mu, inflated)
    np.testing.assert_allclose(stats["step_size"], step)


def test_sghmc_without_and_with_the_estimate_of_the_noise():
    step = 0.05 * SD
    correct = SGHMC(step_size=step, steps=20, friction=10.0 / SD, gradient_noise=NOISE)
    assert_moments(chain_draws(correct, 1, draws=500, warmup=60)[0], stationary(step, correct.friction, NOISE, 20))
    plain = SGHMC(step_size=step, steps=20, friction=1.0 / SD)
    assert_moments(chain_draws(plain, 2, draws=500, warmup=60)[0], stationary(step, plain.friction, 0.0, 20))


def stationary(step, friction, estimate, steps):
    """Variance of the position: one draw is a linear map of (position, momentum) plus noise, momentum drawn anew."""
    one = np.array([[1.0, step], [-step * PRECISION, 1 - friction * step - step**2 * PRECISION]])
    noise = np.diag([0.0, step * (2 * friction - step * estimate) + step**2 * NOISE])
    matrix, covariance = np.eye(2), np.zeros((2, 2))
    for _ in range(steps):
        matrix, covariance = one @ matrix, one @ covariance @ one.T + noise
    drift, added = matrix[0, 0], matrix[0, 1] ** 2 + covariance[0, 0]
    return added / (1 - drift**2)


def test_sgnht_absorbs_the_noise():
    """The thermostat needs no estimate of the noise; a documented bias of the order of the step size is left."""
    step = 0.05 * SD
    mu, _ = chain_draws(SGNHT(step_size=step, scale=SD), 3, draws=6000, warmup=1000)
    mean, second = mu.mean(1), ((mu - MEAN) ** 2).mean(1)
    assert abs(mean.mean() - MEAN) < 4.5 * mean.std(ddof=1) / np.sqrt(len(mean))
    assert second.std(ddof=1) / np.sqrt(len(mean)) < 0.05 * SD**2
    assert abs(second.mean() / SD**2 - 1) < 0.15


def test_a_decaying_schedule_is_weighted(model):
    method = SGLD(step_size=0.5 / PRECISION, decay=0.6, delay=50.0)
    tree = pg.infer(model, method, seed=4, chains=6, draws=3000, warmup=100)
    step = tree["sample_stats/step_size"].values
    np.testing.assert_allclose(step[0], 0.5 / PRECISION * (1 + np.arange(3000) / 50) ** -0.6, rtol=1e-10)
    weight = np.exp(tree["sample_stats/log_weight"].values)
    np.testing.assert_allclose(weight, step / step.sum(), rtol=1e-10)
    mean, error, second, _ = moments(tree, weighted=True)
    assert abs(mean - MEAN) < 4.5 * error
    assert SD**2 < second < 6 * SD**2
    assert tree.attrs["approximate"].startswith("no acceptance test")
    assert "residual" not in tree["posterior"]
    assert tree["posterior/mu"].dims == ("chain", "draw")


def test_settings_and_programs_that_make_no_sense(model):
    with pytest.raises(pg.MethodError, match="step_size must be given: SGLD does not adapt it"):
        pg.infer(model, SGLD())
    with pytest.raises(pg.MethodError, match="step_size must be a positive number, got -1"):
        pg.infer(model, SGNHT(step_size=-1.0))
    with pytest.raises(pg.MethodError, match="decay must be 0"):
        pg.infer(model, SGLD(step_size=1e-3, decay=0.3))
    with pytest.raises(pg.MethodError, match=r"friction times step_size .* must stay below 1"):
        pg.infer(model, SGHMC(step_size=1.0, friction=2.0))
    with pytest.raises(pg.MethodError, match="gradient_noise times step_size"):
        pg.infer(model, SGHMC(step_size=0.1, gradient_noise=100.0))

    def local(y):
        with numpyro.plate("row", 10, subsample_size=5) as rows:
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    with pytest.raises(pg.MethodError, match="'z' is latent inside a plate with subsample_size"):
        pg.infer(pg.Model(local, {"y": np.zeros(10)}), SGLD(step_size=1e-3))
