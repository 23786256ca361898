"""SMC squared against the posterior and the evidence of an autoregression, by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from autoregression import MODEL, autoregression, exact, series
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.feynman_kac.smc import smc
from probgen.infer.smc2 import SMC2
from probgen.testing import assert_mean, assert_unbiased_evidence

RUNS = 40


@pytest.fixture(scope="module")
def runs():
    """Independent runs under ``vmap``."""
    method = SMC2(particles=64, filter_particles=24, moves=3, ess_threshold=0.8)
    density = method.density(MODEL)
    fk, settings = method.feynman_kac(density), method.settings()

    @jax.jit
    def several(fk, keys):
        def one(key):
            result = smc(key, fk, settings)
            w, values = jnp.exp(result.cloud.log_w), jax.vmap(density.constrain)(result.cloud.x.u)
            means = {name: jnp.sum(w * value) for name, value in values.items()}
            squares = {name: jnp.sum(w * value**2) for name, value in values.items()}
            x = jax.tree.map(lambda leaf: leaf[:4], result.cloud.x)
            again, _ = jax.vmap(lambda u, keys: fk.again(u, keys, key))(x.u, x.keys)
            filters = again, x.filter.log_z
            return result.log_z, means, squares, jnp.sum(result.steps.resampled), filters

        return jax.lax.map(one, keys)

    return jax.device_get(several(fk, jax.random.split(jax.random.key(0), RUNS)))


def test_the_evidence_is_that_of_quadrature(runs):
    log_z, _, _, resampled, _ = runs
    assert resampled.min() >= 1  # particles were moved
    assert resampled.mean() >= 2
    assert_unbiased_evidence(log_z, exact()[2], detects=0.3)


def test_the_posterior_is_that_of_quadrature(runs):
    mean, sd, _ = exact()
    for name in ("phi", "q"):
        assert_mean(runs[1][name], mean[name], detects=0.3 * sd[name])
        assert_mean(runs[2][name], mean[name] ** 2 + sd[name] ** 2, detects=0.6 * sd[name] * (mean[name] + sd[name]))


def test_the_filter_of_a_particle_can_be_run_again(runs):
    """Its keys have come along, through resampling and moves: paths are those of the very filter."""
    np.testing.assert_allclose(*runs[4], rtol=1e-9)


def test_a_run_is_reported(tmp_path):
    method = SMC2(particles=100, filter_particles=30)
    tree = pg.infer(MODEL, method, draws=100, chains=3, seed=1)
    assert list(tree.posterior.data_vars) == ["phi", "q", "start", "x"]
    assert tree.posterior.sizes == {"chain": 3, "draw": 100, "time": 20}
    mean, sd, _ = exact()
    assert np.abs((tree.posterior["x"].mean(("chain", "draw")).values - mean["x"]) / sd["x"]).max() < 0.35
    assert 0.7 < (tree.posterior["x"].std(("chain", "draw")).values / sd["x"]).mean() < 1.3
    assert abs(tree.attrs["log_evidence"] - exact()[2]) < 5 * tree.attrs["log_evidence_se"] + 0.05
    assert tree.particles["log_evidence"].sizes == {"chain": 3, "step": 21}
    assert 0.05 < tree.attrs["acceptance_rate"] < 0.6
    stored = pg.infer(MODEL, method, draws=100, chains=3, seed=1, store=tmp_path / "run.zarr")
    np.testing.assert_array_equal(stored.posterior["phi"].values, tree.posterior["phi"].values)


def test_too_few_filter_particles_are_told_of():
    model = pg.Model(autoregression, {"y": 4 * series(60)})
    with pytest.warns(pg.ProbgenWarning, match=r"of the moves were accepted with filter_particles=2: .*=8"):
        pg.infer(model, SMC2(particles=40, filter_particles=2), draws=40, chains=1)


def test_bad_settings_and_impossible_data_are_said():
    with pytest.raises(pg.MethodError, match="filter_particles must be an int of at least 2"):
        pg.infer(MODEL, SMC2(filter_particles=1))
    with pytest.raises(pg.MethodError, match="keep_warmup"):
        pg.infer(MODEL, SMC2(), keep_warmup=True)


def test_a_prior_that_draws_do_not_follow_is_refused():
    def program(y):
        with numpyro.handlers.scale(scale=3.0):
            phi = numpyro.sample("phi", dist.Normal(0.5, 0.5))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(phi * x, 0.7))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, 0.0, y)

    with pytest.raises(pg.MethodError, match="prior of site 'phi' is changed by handlers"):
        pg.infer(pg.Model(program, {"y": series(5)}), SMC2())
