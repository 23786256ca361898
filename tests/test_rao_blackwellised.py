"""Rao-Blackwellised particles: against enumeration of the regimes with a Kalman filter for each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.feynman_kac.smc import Settings, smc
from probgen.infer.exact import Exact, _solve
from probgen.infer.particle_filter import ParticleFilter
from probgen.program.closed_form import Limits, recognise
from probgen.program.linear_part import linear_layout, linear_sites, log_marginal
from probgen.program.particles import ParticleSystem
from probgen.program.rao_blackwellised import RaoBlackwellised, RaoBlackwellisedSystem
from probgen.testing import assert_mean, assert_unbiased_evidence

RNG = np.random.default_rng(0)
STEPS = 4


def switching(y, seen):
    """Two regimes with dynamics and noises of their own, a count that knows the regime only, a start seen once."""
    x0 = numpyro.sample("x0", dist.Normal(1.0, 1.0))
    numpyro.sample("early", dist.Normal(x0, 1.0), obs=0.3)

    def step(carry, now):
        x, z = carry
        y, seen = now
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.6 * z))
        x = numpyro.sample("x", dist.Normal(jnp.where(z == 1, 0.9, -0.5) * x + z, jnp.where(z == 1, 1.0, 0.3)))
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(x, 0.5 + z), obs=y)
        numpyro.sample("n", dist.Poisson(1.0 + z), obs=2)
        return (x, z), None

    scan(step, (x0, 0), (y, seen))


DATA = {"y": RNG.normal(size=STEPS), "seen": np.array([True, True, False, True])}
PATHS = np.array(list(itertools.product([0, 1], repeat=STEPS)))


@pytest.fixture(scope="module")
def model():
    return pg.Model(switching, DATA)


@pytest.fixture(scope="module")
def enumerated(model):
    """Log evidence, means and variances of the linear sites given each path of the regime."""
    first = model.condition(z=PATHS[0])
    recognised = recognise(first.unlabelled(), Limits(4, 100))
    (block,) = recognised.blocks
    solve = jax.jit(lambda model: _solve(model, recognised))
    log_z, found = [], []
    for path in PATHS:
        given = model.condition(z=path).unlabelled()
        (posterior,), evidence = solve(given)
        log_z.append(float(evidence))
        found.append(
            {name: np.asarray(value) for name, (_, value) in block.summary(given, posterior.parameters).items()}
        )
    return np.array(log_z), {name: np.stack([one[name] for one in found]) for name in found[0]}


def mixed(weights, means, sds):
    mean = np.tensordot(weights, means, 1)
    return mean, np.sqrt(np.tensordot(weights, sds**2 + (means - mean) ** 2, 1))


def test_the_evidence_is_unbiased_and_varies_less_than_with_particles_for_all(model, enumerated):
    exact = np.logaddexp.reduce(enumerated[0])
    keys = jax.random.split(jax.random.key(0), 400)
    found = {}
    for system in (RaoBlackwellisedSystem(model), ParticleSystem(model)):
        run = jax.jit(jax.vmap(lambda key, system=system: smc(key, system, Settings(64)).log_z))
        found[type(system)] = np.asarray(run(keys))
        assert_unbiased_evidence(found[type(system)], exact, detects=0.1)
    ours, bootstrap = (np.var(np.exp(found[kind] - exact)) for kind in (RaoBlackwellisedSystem, ParticleSystem))
    assert ours < 0.5 * bootstrap


def test_posterior_and_filtered_moments_are_those_of_the_mixture(model, enumerated):
    log_z, given = enumerated
    weights = np.exp(log_z - np.logaddexp.reduce(log_z))
    method = ParticleFilter(particles=400, proposal=RaoBlackwellised())
    tree = pg.infer(model, method, draws=200, chains=24, seed=2)
    posterior = tree["posterior"]
    for site in ("x0", "x"):
        mean, sd = mixed(weights, given[f"{site}_mean"], given[f"{site}_sd"])
        draws = posterior[site].values
        assert_mean(draws.mean(1), mean, detects=0.2)
        assert_mean(((draws - mean) ** 2).mean(1), sd**2, detects=0.4)
    assert_mean(posterior["z"].values.mean(1), weights @ PATHS, detects=0.15)
    # Filtered: the regimes up to a row, weighted by what is known there, is what a shorter series knows.
    filtered = tree["filtered"]
    last = {name: filtered[name].values[:, -1] for name in ("x_mean", "x_sd", "z_mean")}
    mean, sd = mixed(weights, given["x_filtered_mean"][:, -1], given["x_filtered_sd"][:, -1])
    assert_mean(last["x_mean"], mean, detects=0.1)
    assert_mean(last["x_sd"], sd, detects=0.1)
    assert_mean(last["z_mean"], (weights @ PATHS)[-1], detects=0.05)
    assert tree.attrs["log_evidence"] == pytest.approx(np.logaddexp.reduce(log_z), abs=0.1)


@pytest.mark.slow
def test_the_first_filtered_row_knows_the_first_observation_only(model, enumerated):
    short = pg.Model(switching, {"y": DATA["y"][:1], "seen": DATA["seen"][:1]})
    log_z, means, sds = [], [], []
    for z in (0, 1):
        solution = Exact().solve(short.condition(z=np.array([z])))
        (block,) = solution.recognised.blocks
        summary = block.summary(short, solution.posteriors[0].parameters)
        log_z.append(float(solution.log_evidence))
        means.append(float(summary["x_mean"][1][0]))
        sds.append(float(summary["x_sd"][1][0]))
    weights = np.exp(np.array(log_z) - np.logaddexp.reduce(log_z))
    mean, sd = mixed(weights, np.array(means), np.array(sds))
    tree = pg.infer(model, ParticleFilter(particles=400, proposal=RaoBlackwellised()), draws=50, chains=24, seed=5)
    assert_mean(tree["filtered/x_mean"].values[:, 0], mean, detects=0.1)
    assert_mean(tree["filtered/x_sd"].values[:, 0], sd, detects=0.1)


def all_linear(y, x, seen):
    """Coefficients that the steps read, a covariate, missing observations, a start of its own; from the last row."""
    beta = numpyro.sample("beta", dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.5], [0.5, 1.0]])))
    start = numpyro.sample("start", dist.Normal(beta[0], 0.5))
    numpyro.sample("early", dist.Normal(start + beta[1], 1.0), obs=0.3)

    def step(state, now):
        row, y, seen = now
        state = numpyro.sample("state", dist.Normal(0.7 * state + 0.1, 0.3))
        numpyro.sample("y", dist.Normal(state + row @ beta, 0.5), obs=y, obs_mask=seen)
        return state, None

    scan(step, start, (x, y, seen), reverse=True)


def test_where_all_is_linear_each_particle_is_the_kalman_filter():
    model = pg.Model(all_linear, {"y": RNG.normal(size=5), "x": RNG.normal(size=(5, 2)), "seen": RNG.random(5) < 0.7})
    exact = Exact().solve(model)
    system = RaoBlackwellisedSystem(model)
    assert set(system.layout.statics) == {"beta", "start"}
    result = jax.jit(lambda key: smc(key, system, Settings(2, history=True)))(jax.random.key(0))
    assert float(result.log_z) == pytest.approx(float(exact.log_evidence), abs=1e-10)
    (block,) = exact.recognised.blocks
    summary = block.summary(model, exact.posteriors[0].parameters)
    x = jax.tree.map(lambda leaf: leaf[:, 0], result.history().x)
    means = jax.vmap(system.latent)(x)["state"][1:][::-1]
    variances = jax.vmap(system.variances)(x)["state"][1:][::-1]
    np.testing.assert_allclose(means, summary["state_filtered_mean"][1], atol=1e-10)
    np.testing.assert_allclose(np.sqrt(variances), summary["state_filtered_sd"][1], rtol=1e-9)


def nonlinear(y):
    """The volatility is drawn; the level is linear given it."""

    def step(carry, y):
        level, log_sd = carry
        log_sd = numpyro.sample("log_sd", dist.Normal(0.9 * log_sd, 0.3))
        level = numpyro.sample("level", dist.Normal(level, 0.5))
        numpyro.sample("y", dist.Normal(level, jnp.exp(log_sd)), obs=y)
        return (level, log_sd), None

    scan(step, (0.0, 0.0), y)


def growth(y):
    """All that depends on x is nonlinear in it."""

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x / (1 + x**2), 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def autoregression(y):
    """A coefficient that multiplies the state, a scale, and a coefficient that is linear."""
    phi = numpyro.sample("phi", dist.Normal(0.5, 0.3))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))

    def step(x, now):
        t, y = now
        x = numpyro.sample("x", dist.Normal(phi * x, sd))
        with numpyro.plate("sensor", 5):
            numpyro.sample("y", dist.Normal(x + beta * t, 0.5), obs=y)
        return x, None

    scan(step, 0.0, (jnp.arange(len(y)), jnp.asarray(y)[:, None] + jnp.arange(5.0)))


def test_the_marginal_density_of_parameters_and_its_gradient():
    model = pg.Model(autoregression, {"y": RNG.normal(size=4)})
    layout = linear_layout(model, None)
    assert layout.direct == ("beta",)

    @jax.jit
    def log_p(theta):
        return log_marginal(model, layout, {"phi": theta[0], "sd": theta[1]})

    theta = jnp.array([0.7, 0.4])
    exact = Exact().solve(model.condition(phi=0.7, sd=0.4))
    assert float(log_p(theta)) == pytest.approx(float(exact.log_evidence), abs=1e-10)
    slope = jax.jit(jax.grad(log_p))(theta)
    differences = [(log_p(theta + e) - log_p(theta - e)) / 2e-5 for e in 1e-5 * jnp.eye(2)]
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def test_what_is_linear_is_found(model):
    assert linear_sites(model) == ("x0", "x")
    assert linear_sites(pg.Model(nonlinear, {"y": RNG.normal(size=3)})) == ("level",)
    assert linear_sites(pg.Model(growth, {"y": RNG.normal(size=3)})) == ()
    assert linear_sites(pg.Model(autoregression, {"y": RNG.normal(size=3)})) == ("beta", "x")


@pytest.mark.parametrize(
    ("program", "linear", "message"),
    [
        (growth, None, "no latent site of the scan is linear and Gaussian"),
        (growth, ("x",), r"site 'x' is not linear and Gaussian given the others: .*not affine"),
        (
            nonlinear,
            ("log_sd",),
            "'log_sd' is not linear and Gaussian given the others: the scale of 'y' depends on it",
        ),
        (nonlinear, ("lvel",), "linear names 'lvel', which is no latent site"),
    ],
)
def test_what_is_not_linear_is_refused_by_name(program, linear, message):
    with pytest.raises(pg.MethodError, match=message):
        RaoBlackwellisedSystem(pg.Model(program, {"y": RNG.normal(size=3)}), linear)


def test_smoothers_that_need_a_transition_density_are_refused(model):
    from probgen.infer.smoothing import FFBS

    with pytest.raises(pg.MethodError, match="Kalman filter of its whole past"):
        ParticleFilter(proposal=RaoBlackwellised(), smoothing=FFBS()).system(model)
    with pytest.raises(pg.MethodError, match="Leave lag out"):
        ParticleFilter(proposal=RaoBlackwellised(), lag=3).system(model)
