"""Implicit variational inference: exact for linear maps; recovers correlations and a curved posterior."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen import generative
from probgen.base.errors import MethodError
from probgen.program.density import Density
from probgen.testing import assert_mean, assert_moments

COVARIANCE = np.asarray([[1.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]])
MEAN = np.asarray([1.0, -2.0, 0.5])


def log_density(u):
    return jax.scipy.stats.multivariate_normal.logpdf(u, jnp.asarray(MEAN), jnp.asarray(COVARIANCE))


def test_the_entropy_of_a_linear_map_is_exact():
    """The mean objective is minus the Kullback-Leibler divergence, which is known for normals."""
    family = generative.Implicit(noise=0.3)
    net = family.build(jax.random.key(0), generative.Spec((3,)))
    linear = np.asarray([[0.7, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 0.4]])
    net = eqx.tree_at(lambda n: n.linear, net, jnp.asarray(linear))
    covariance = linear @ linear.T + 0.3**2 * np.eye(3)
    precision = np.linalg.inv(COVARIANCE)
    divergence = 0.5 * (
        np.trace(precision @ covariance)
        - 3
        + MEAN @ precision @ MEAN
        + np.linalg.slogdet(COVARIANCE)[1]
        - np.linalg.slogdet(covariance)[1]
    )
    one = jax.jit(jax.vmap(lambda key: family.objective(key, net, log_density)))
    values = one(jax.random.split(jax.random.key(1), 10_000))
    assert_mean(values.reshape(50, -1).mean(1), -divergence, detects=1.5)


@pytest.fixture(scope="module")
def fitted():
    training = generative.Training(steps=1200, batch=32, learning_rate=1e-2, weight_decay=0.0, ema=0.99)
    return generative.Implicit(width=8, depth=1).fit_density(log_density, 3, training=training)


def test_correlations_are_recovered(fitted):
    draws = fitted.sample(jax.random.key(0), (4000,))
    assert_moments(draws, MEAN, COVARIANCE, detects=0.3, tolerance=0.05)
    tail = fitted.history["objective"][-200:]
    assert abs(tail.mean()) < 0.1  # the density is normalised: at the best fit the objective is 0


def test_draws_are_a_map_of_noise_and_survive_files(fitted, tmp_path):
    generative.save(fitted, tmp_path / "m")
    z = np.random.default_rng(0).normal(size=(4, 6))
    np.testing.assert_array_equal(generative.load(tmp_path / "m").noise_map(z), fitted.noise_map(z))
    still = z.copy()
    still[:, 3:] = 0
    difference = np.asarray(fitted.noise_map(z) - fitted.noise_map(still))
    np.testing.assert_allclose(difference, 0.01 * z[:, 3:], rtol=1e-3, atol=1e-6)
    with pytest.raises(MethodError, match="no log_prob"):
        fitted.log_prob(z[0, :3])


@pytest.mark.slow
def test_a_curved_posterior_is_matched():
    """u1 ~ N(0, 1), u2 | u1 ~ N(u1^2, 0.3): the mean of u2 is 1 and its variance 2.09."""

    def banana(u):
        return jax.scipy.stats.norm.logpdf(u[0]) + jax.scipy.stats.norm.logpdf(u[1], u[0] ** 2, 0.3)

    draws = np.asarray(generative.Implicit().fit_density(banana, 2).sample(jax.random.key(0), (4000,)))
    standard = np.stack([draws[:, 0], (draws[:, 1] - draws[:, 0] ** 2) / 0.3], 1)
    assert_moments(standard, np.zeros(2), np.eye(2), detects=0.4, tolerance=0.15)


@pytest.mark.slow
def test_predictions_of_a_bayesian_network_are_those_of_nuts():
    """Six weights, whose posterior has the symmetries of hidden units; what the network predicts has none. The sampler
    takes one of the symmetric modes, and its predictive means are within a fifth of a standard deviation, standard
    deviations within 15 %."""
    x = np.linspace(-2, 2, 40)
    y = np.tanh(2 * x + 2) - np.tanh(2 * x - 2) + 0.2 * np.random.default_rng(0).normal(size=40)

    def network(x, w, b, v):
        return jnp.tanh(x[:, None] * w + b) @ v

    def program(x, y):
        w, b, v = (numpyro.sample(name, dist.Normal(jnp.zeros(2), 1.5).to_event(1)) for name in "wbv")
        numpyro.sample("y", dist.Normal(network(x, w, b, v), 0.2).to_event(1), obs=y)

    model = pg.Model(program, {"x": x, "y": y})
    tree = pg.infer(model, pg.NUTS(), draws=1000, warmup=1000, chains=2, seed=0, progress=False)
    density = Density(model)
    fitted = generative.Implicit().fit_density(density.log_density, density.dim, seed=0)
    values = jax.vmap(density.constrain)(fitted.sample(jax.random.key(0), (2000,)))
    points = jnp.asarray([-2.5, -1.0, 0.0, 1.0, 2.5])
    exact = {n: jnp.asarray(tree["posterior"][n].values).reshape(2000, 2) for n in "wbv"}
    truth, found = (jax.vmap(lambda w, b, v: network(points, w, b, v))(d["w"], d["b"], d["v"]) for d in (exact, values))
    assert np.all(np.abs(truth.mean(0) - found.mean(0)) < truth.std(0) / 5)
    assert np.all(np.abs(np.log(found.std(0) / truth.std(0))) < np.log(1.15))


def test_errors():
    with pytest.raises(MethodError, match="is fitted to a density, not to data"):
        generative.fit(generative.Implicit(), np.zeros((10, 2)))
    with pytest.raises(MethodError, match=r"gives an array of shape \(2,\)"):
        generative.Implicit().fit_density(lambda u: u, 2)
    with pytest.raises(MethodError, match="noise=0"):
        generative.Implicit(noise=0.0).fit_density(jnp.sum, 2)
    training = generative.Training(steps=2, batch=2)
    with pytest.raises(MethodError, match="no step had a finite objective"):
        generative.Implicit(width=2, depth=0).fit_density(lambda u: jnp.sum(u) * jnp.nan, 2, training=training)
