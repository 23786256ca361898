"""PMMH against the exact posterior of an autoregression; what it says of its own noise; what it cannot run."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from autoregression import MODEL, exact
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.infer.particle_gibbs import ParticleGibbs
from probgen.infer.pmmh import PMMH, log_likelihoods
from probgen.program.proposals import LocallyLinear
from probgen.testing import assert_draws


def parameters():
    mean, sd, _ = exact()
    return {"means": {name: mean[name] for name in ("phi", "q")}, "sds": {name: sd[name] for name in ("phi", "q")}}


@pytest.fixture(scope="module")
def tree():
    return pg.infer(MODEL, PMMH(particles=60), draws=5000, warmup=1000, seed=0)


def test_parameters_and_states_have_the_exact_posterior(tree):
    mean, sd, _ = exact()
    assert_draws(tree, means=mean, sds=sd, detects=0.5)
    assert_draws(tree, **parameters(), detects=0.35)


def test_names_and_shapes_are_those_of_nuts(tree):
    assert list(tree.posterior.data_vars) == ["phi", "q", "start", "x"]
    assert tree.posterior["x"].dims == ("chain", "draw", "time")


def test_a_path_belongs_to_its_draw(tree):
    """Where the parameters stay, so does the path; where they move, it is another."""
    same = np.diff(tree.posterior["phi"].values) == 0
    kept = np.diff(tree.posterior["x"].values, axis=1) == 0
    np.testing.assert_array_equal(kept.all(-1), same)
    np.testing.assert_array_equal(kept.any(-1), same)
    assert 0.1 < 1 - same.mean() < 0.7


def test_few_particles_cost_efficiency_not_truth():
    """Six particles: the estimate is poor, and the run says so; the posterior is the same."""
    with pytest.warns(pg.ProbgenWarning, match=r"standard deviation .* with particles=6, .* Use particles=\d+"):
        tree = pg.infer(MODEL, PMMH(particles=6), draws=15000, warmup=1500, seed=1)
    assert tree.attrs["log_likelihood_sd"] > 2
    assert_draws(tree, **parameters(), detects=0.5)


def test_the_noise_is_that_of_the_filter(tree):
    """The reported standard deviation, against filters run by hand at the mean; a better proposal has less."""
    mean, _, _ = exact()

    def noise(method):
        density = method.density(MODEL)
        u = density.unconstrain({"phi": jnp.asarray(mean["phi"]), "q": jnp.asarray(mean["q"])})
        return np.asarray(jax.jit(log_likelihoods)(jax.random.key(5), density, u)).std(ddof=1)

    plain = noise(PMMH(particles=60))
    assert tree.attrs["log_likelihood_sd"] == pytest.approx(plain, rel=0.4)
    assert noise(PMMH(particles=60, proposal=LocallyLinear())) < 0.7 * plain


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.slow
def test_a_stored_run_is_the_same_bit_for_bit(tmp_path):
    settings = {"draws": 60, "warmup": 60, "chains": 2, "seed": 3}
    whole = pg.infer(MODEL, PMMH(particles=60), **settings)
    kept = pg.infer(MODEL, PMMH(particles=60), store=tmp_path / "run.zarr", **settings)
    for name in whole.posterior.data_vars:
        np.testing.assert_array_equal(whole.posterior[name].values, kept.posterior[name].values)
    assert kept.attrs["log_likelihood_sd"] == whole.attrs["log_likelihood_sd"]


def program_without_parameters(y=np.zeros(5)):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def program_with_a_discrete_parameter(y=np.zeros(5)):
    k = numpyro.sample("k", dist.Bernoulli(0.5))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0 + k))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def program_without_scan():
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("y", dist.Normal(mu), obs=0.0)


@pytest.mark.parametrize(
    ("program", "method", "error", "message"),
    [
        (program_without_scan, PMMH(), pg.ModelError, "no numpyro.contrib.control_flow.scan"),
        (program_without_parameters, PMMH(), pg.MethodError, "no parameter"),
        (program_with_a_discrete_parameter, PMMH(), pg.MethodError, "'k' .* is a discrete parameter"),
        (program_without_parameters, PMMH(particles=1), pg.MethodError, "particles must be an int of at least 2"),
    ],
)
def test_what_cannot_be_run_is_said(program, method, error, message):
    with pytest.raises(error, match=message):
        pg.infer(pg.Model(program), method)


def test_data_that_no_particle_explains_are_said():
    def program(y):
        a = numpyro.sample("a", dist.Normal())

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(a * x, 1.0))
            numpyro.sample("y", dist.Uniform(x - 2.0, x + 2.0), obs=y)
            return x, None

        scan(step, 0.0, y)

    density = PMMH(particles=5).density(pg.Model(program, {"y": np.array([0.0, 900.0, 0.0])}))
    said = density.trouble(jnp.zeros(1))
    assert said == "the log density is not finite at: the particle filter of y (-inf from step 2 of the scan)"


def test_all_that_parameters_depend_on_are_parameters():
    """A scale above the scale of the steps enters no step itself; the prior of the parameters needs it."""

    def program(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        q = numpyro.sample("q", dist.HalfNormal(tau))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        start = numpyro.sample("start", dist.Normal(0.0, spread))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, q))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, start, y)

    density = PMMH().density(pg.Model(program, {"y": np.zeros(4)}))
    assert density.names == ("tau", "q")
    assert [site.name for site in density.states] == ["spread", "start", "x"]


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.parametrize(
    "method", [PMMH(particles=20), pytest.param(ParticleGibbs(particles=5), marks=pytest.mark.slow)]
)
def test_sites_behind_the_scan_are_drawn_with_the_rest(method):
    """A forecast: a latent site that follows the last state; nothing observed depends on it."""

    def program(y):
        q = numpyro.sample("q", dist.HalfNormal(1.0))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, q))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        last, _ = scan(step, 0.0, y)
        numpyro.sample("forecast", dist.Normal(last, 0.1))

    tree = pg.infer(pg.Model(program, {"y": np.arange(4.0)}), method, draws=300, warmup=100, chains=2)
    ahead = tree.posterior["forecast"].values - tree.posterior["x"].values[..., -1]
    moved = np.unique(ahead)
    assert 0.08 < moved.std() < 0.12
    assert abs(moved.mean()) < 0.03
