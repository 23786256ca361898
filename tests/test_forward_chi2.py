"""The chi-square objective: its gradient in closed form, and a posterior with two modes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

import probgen as pg
from probgen.base.errors import MethodError
from probgen.infer.forward_chi2 import ForwardChi2
from probgen.testing import assert_mean, assert_unbiased_evidence


def normal_model():
    numpyro.sample("u", dist.Normal(0.0, 1.0))
    numpyro.factor("evidence", numpyro.param("theta", 0.5) - 1.0)


def normal_guide():
    scale = jnp.exp(numpyro.param("log_scale", 0.2))
    numpyro.sample("u", dist.Normal(numpyro.param("loc", 0.3), scale))


def test_the_gradient_is_that_of_the_log_second_moment_and_of_the_evidence():
    """For normals int p^2 / q is known."""

    def log_second(loc, log_scale):
        precision = 2 - jnp.exp(-2 * log_scale)
        pull = -loc * jnp.exp(-2 * log_scale)
        return log_scale - 0.5 * jnp.log(precision) + 0.5 * pull**2 / precision + 0.5 * loc**2 * jnp.exp(-2 * log_scale)

    truth = jax.grad(log_second, (0, 1))(0.3, 0.2)
    params = {"theta": jnp.asarray(0.5), "loc": jnp.asarray(0.3), "log_scale": jnp.asarray(0.2)}
    objective = ForwardChi2(samples=1000).build()
    gradient = jax.jit(
        jax.vmap(jax.grad(lambda key, p: objective.loss(key, p, normal_model, normal_guide), 1), (0, None))
    )
    found = gradient(jax.random.split(jax.random.key(0), 400), params)
    assert_mean(found["loc"], truth[0], detects=0.05, tolerance=0.005)
    assert_mean(found["log_scale"], truth[1], detects=0.05, tolerance=0.005)
    np.testing.assert_allclose(found["theta"], -1.0, rtol=1e-6)


def spikes(seen):
    """A hidden spike per bin, which depends on the one before and drives what is seen."""
    weight, before = numpyro.param("weight", 1.5), 0.0
    for t in range(3):
        before = numpyro.sample(f"h{t}", dist.Bernoulli(logits=2 * before - 1))
        numpyro.sample(f"v{t}", dist.Bernoulli(logits=weight * before - 0.5), obs=seen[t])


def independent_spikes(seen):
    for t, logit in enumerate(numpyro.param("logits", jnp.zeros(3))):
        numpyro.sample(f"h{t}", dist.Bernoulli(logits=logit))


@pytest.mark.slow
def test_discrete_latent_variables_need_no_reparameterisation():
    """Eight paths of hidden spikes are all there is: evidence, second moment of the weights, and their gradients."""
    seen = jnp.asarray([1, 0, 1])
    paths = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = {f"h{t}": jnp.asarray(paths[:, t]) for t in range(3)}
    params = {"weight": jnp.asarray(1.5), "logits": jnp.asarray([0.5, -0.5, 0.2])}

    def log_terms(program, params):
        return jax.vmap(lambda values: log_density(program, (seen,), {}, {**params, **values})[0])(values)

    def log_z(params):
        return jax.nn.logsumexp(log_terms(spikes, params))

    def log_second(params):
        held = jax.lax.stop_gradient(log_terms(spikes, params))
        return jax.nn.logsumexp(2 * held - log_terms(independent_spikes, params))

    few, many = ForwardChi2(samples=4).build(), ForwardChi2(samples=1000).build()
    keys = jax.random.split(jax.random.key(0), 4000)
    bounds = jax.jit(jax.vmap(lambda key: -few.loss(key, params, spikes, independent_spikes, seen)))(keys)
    assert_unbiased_evidence(bounds, log_z(params), detects=0.08)
    gradient = jax.jit(
        jax.vmap(jax.grad(lambda p, key: many.loss(key, p, spikes, independent_spikes, seen)), (None, 0))
    )
    found = gradient(params, keys[:200])
    assert_mean(found["weight"], -jax.grad(log_z)(params)["weight"], detects=0.03, tolerance=0.003)
    assert_mean(found["logits"], jax.grad(log_second)(params)["logits"], detects=0.05, tolerance=0.005)


def two_modes(y):
    u = numpyro.sample("u", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(jnp.abs(u), 0.5), obs=y)


def wide(y):
    """One normal, which begins wide: a mode that no draw has seen has no weight."""
    numpyro.sample("u", dist.Normal(numpyro.param("loc", 1.0), jnp.exp(numpyro.param("log_scale", 0.8))))


@pytest.mark.filterwarnings("ignore:Pareto k-hat")
def test_it_covers_both_modes_and_is_tighter_than_the_lower_bound():
    """Half of the evidence would be lost with one mode; weights of the guide that covers both give all of it."""
    model = pg.Model(two_modes, {"y": 2.0})
    grid = np.linspace(-12, 12, 200_001)
    log_joint = (
        -0.5 * (grid / 2) ** 2 - np.log(2) - 0.5 * ((2 - np.abs(grid)) / 0.5) ** 2 - np.log(0.5) - np.log(2 * np.pi)
    )
    truth = np.log(np.exp(log_joint).sum() * (grid[1] - grid[0]))
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pg.ProbgenWarning)
        for name, objective in (("elbo", pg.ELBO()), ("chi2", ForwardChi2())):
            found[name] = pg.infer(
                model, pg.SVI(guide=wide, objective=objective, steps=3000), draws=1000, chains=4, seed=0
            ).attrs
    here = found["chi2"]
    assert abs(here["log_evidence"] - truth) < 5 * here["log_evidence_se"]
    assert here["log_evidence_se"] < 0.05
    assert here["bound"] > found["elbo"]["elbo"] + 0.3


def test_few_draws_are_an_error():
    with pytest.raises(MethodError, match="samples must be an int of at least 2, got 1"):
        pg.infer(pg.Model(two_modes, {"y": 2.0}), pg.SVI(objective=ForwardChi2(samples=1)))
