"""Simulation from the prior: moments against closed forms, and programs of every kind."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.infer.predict import simulate
from probgen.run.compiled import compile_count

DRAWS = 4000


def z_scores(draws, mean, variance):
    """Of the mean and of the second central moment of independent draws (leading axis), from their own Monte Carlo
    errors."""
    draws = np.asarray(draws).reshape(DRAWS, -1)
    squares = (draws - mean) ** 2
    first = (draws.mean(0) - mean) / (draws.std(0) / np.sqrt(DRAWS))
    second = (squares.mean(0) - variance) / (squares.std(0) / np.sqrt(DRAWS))
    return np.concatenate([first, second])


def normal(sd, y=None):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    with numpyro.plate("row", len(sd)):
        shifted = numpyro.deterministic("shifted", mu + 3)
        numpyro.sample("y", dist.Normal(shifted, sd), obs=y)


SD = np.array([0.5, 1.0, 3.0])


def test_moments_of_a_normal_model():
    tree = simulate(pg.Model(normal, {"sd": SD}, coords={"row": list("abc")}), draws=DRAWS, seed=1)
    assert tree["prior/mu"].dims == ("chain", "draw")
    assert tree["prior_predictive/y"].dims == ("chain", "draw", "row")
    assert tree["prior_predictive/y"].row.values.tolist() == ["a", "b", "c"]
    assert set(tree["prior"].data_vars) == {"mu", "shifted"}
    assert set(tree["prior_predictive"].data_vars) == {"y"}
    mu, y = tree["prior/mu"].values[0], tree["prior_predictive/y"].values[0]
    assert np.abs(z_scores(mu, 1.0, 4.0)).max() < 4.5
    assert np.abs(z_scores(y, 4.0, 4 + SD**2)).max() < 4.5
    # One value of mu per draw is shared by the rows; the noise of the rows is independent of it, and of each other.
    noise = y - mu[:, None] - 3
    assert np.abs(z_scores(noise / SD, 0.0, 1.0)).max() < 4.5
    correlations = np.corrcoef(np.column_stack([mu, noise]).T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() * np.sqrt(DRAWS) < 4.5


def test_observations_do_not_come_back():
    observed = pg.Model(normal, {"sd": SD, "y": np.zeros(3)})
    tree, free = simulate(observed, draws=50), simulate(pg.Model(normal, {"sd": SD}), draws=50)
    np.testing.assert_array_equal(tree["prior_predictive/y"], free["prior_predictive/y"])
    np.testing.assert_array_equal(tree["observed_data/y"], np.zeros(3))
    assert "observed_data" not in free
    np.testing.assert_array_equal(tree["constant_data/sd"], SD)
    conditioned = simulate(observed.condition(mu=100.0), draws=50)
    assert set(conditioned["prior_predictive"].data_vars) == {"mu", "y"}
    assert conditioned["prior_predictive/mu"].values.max() < 50
    held = simulate(observed.do(mu=100.0), draws=50)
    assert held["prior_predictive/y"].values.min() > 80


def test_seeds_batches_and_compilation(monkeypatch):
    model = pg.Model(normal, {"sd": SD})
    whole = simulate(model, draws=50, seed=3)
    before = compile_count()
    other = simulate(model.with_data(sd=2 * SD), draws=50, seed=4)
    assert compile_count() == before
    assert not np.array_equal(whole["prior/mu"], other["prior/mu"])
    monkeypatch.setattr(sys.modules["probgen.infer.batched"], "_BYTES", 700)
    cut = simulate(model, draws=50, seed=jax.random.key(3))
    assert compile_count() == before + 1
    np.testing.assert_array_equal(whole["prior_predictive/y"], cut["prior_predictive/y"])


def test_discrete_latents_and_scan():
    def program(y=None):
        p = numpyro.sample("p", dist.Beta(2.0, 2.0))

        def step(z, y_t):
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(z == 1, 0.9, 0.2)))
            numpyro.sample("y", dist.Normal(3.0 * z, 1.0), obs=y_t)
            return z, None

        scan(step, numpyro.sample("z0", dist.Bernoulli(p)), y, length=2)

    tree = simulate(pg.Model(program, {"y": np.zeros(2)}), draws=DRAWS)
    assert tree["prior_predictive/y"].dims == ("chain", "draw", "time")
    first = 0.5 * 0.9 + 0.5 * 0.2
    chance = np.array([first, first * 0.9 + (1 - first) * 0.2])
    assert np.abs(z_scores(tree["prior/z"].values[0], chance, chance * (1 - chance))).max() < 4.5
    assert np.abs(z_scores(tree["prior_predictive/y"].values[0], 3 * chance, 1 + 9 * chance * (1 - chance))).max() < 4.5
    # The scaffold of the condition reaches into the scan, and is left out again.
    conditioned = simulate(pg.Model(program, {"y": np.zeros(2)}).condition(z=np.ones(2, int)), draws=200)
    assert 0 < conditioned["prior_predictive/z"].values.mean() < 1


def test_missing_data_have_one_name():
    def program(x, mask):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("row", 4):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=mask)

    data = {"x": np.full(4, 50.0), "mask": np.array([True, False, True, True])}
    tree = simulate(pg.Model(program, data), draws=DRAWS)
    assert set(tree["prior"].data_vars) == {"mu"}
    assert set(tree["prior_predictive"].data_vars) == {"x"}
    assert np.abs(z_scores(tree["prior_predictive/x"].values[0], 0.0, 2.0)).max() < 4.5


def test_subsampled_plates_run_whole():
    def program(x, y=None):
        with numpyro.plate("row", len(x), subsample_size=2):
            rows = numpyro.subsample(x, event_dim=0)
            numpyro.sample("y", dist.Normal(rows, 1.0), obs=None if y is None else numpyro.subsample(y, event_dim=0))

    x = np.arange(5.0)
    tree = simulate(pg.Model(program, {"x": x, "y": x}, coords={"row": list("abcde")}), draws=DRAWS)
    assert tree["prior_predictive/y"].sizes["row"] == 5
    np.testing.assert_array_equal(tree["observed_data/y"], x)
    assert tree["prior_predictive/y"].row.values.tolist() == list("abcde")
    assert np.abs(z_scores(tree["prior_predictive/y"].values[0], x, 1.0)).max() < 4.5

    def fixed(x):
        with numpyro.plate("row", 5, subsample_size=2):
            numpyro.sample("y", dist.Normal(x, 1.0))

    with pytest.raises(pg.ModelError, match="plate 'row' is subsampled and must run over all its rows"):
        simulate(pg.Model(fixed, {"x": x[:2]}))


def test_what_cannot_be_drawn_is_named():
    def improper(y=None):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(pg.MethodError, match="site 'mu' has an improper prior"):
        simulate(pg.Model(improper, {"y": 1.0}))
    assert simulate(pg.Model(improper, {"y": 1.0}).do(mu=2.0), draws=5)["prior_predictive/y"].shape == (1, 5)

    def parameter():
        numpyro.sample("y", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    with pytest.raises(pg.MethodError, match=r"site 'loc' is a numpyro.param"):
        simulate(pg.Model(parameter))
    for draws in (0, -1, 2.0, True):
        with pytest.raises(pg.MethodError, match="draws must be an int"):
            simulate(pg.Model(normal, {"sd": SD}), draws=draws)
    with pytest.raises(pg.ModelError, match=r"model must be a pg.Model"):
        simulate(normal)
