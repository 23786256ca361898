"""Simulators that are not JAX, programs with random keys of their own, and simulations that are kept."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.amortized.estimator import Estimator
from probgen.program.implicit_density import ImplicitDensity
from probgen.testing import assert_mean, assert_moments

QUICK = pg.NPE(count=1, width=8, training=pg.generative.Training(steps=1, batch=64, learning_rate=1e-9))
"""The linear prediction is made before the first step, and networks begin at zero: what is left is linear and Gaussian."""


def prior():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.deterministic("sum", theta.sum())


def simulator(sites, rng):
    """Observes within two prior standard deviations, as a simulator that breaks down would."""
    if abs(sites["theta"][0]) > 2:
        raise ArithmeticError("did not converge")
    x = sites["theta"] + 0.7 * rng.normal(size=2)
    return {"x": x, "total": np.where(sites["theta"][1] > 2, np.nan, sites["sum"] + rng.normal())}


def gaussian(sites, rng):
    return {"x": sites["theta"] + 0.7 * rng.normal(size=2)}


@pytest.fixture(scope="module")
def simulations():
    return pg.amortized.simulate(pg.Model(prior), count=1100, simulator=simulator, seed=3)


# -- running -----------------------------------------------------------------------------------------------------------


def test_failures_are_counted_and_left_out(simulations):
    """By the truth of each simulation, which the simulator's own law gives."""
    everything = pg.amortized.simulate(pg.Model(prior), count=1100, simulator=gaussian, seed=3)
    bad = (np.abs(everything.u[:, 0]) > 2) | (everything.u[:, 1] > 2)
    assert 40 < bad.sum() < 120  # 7 % of 1100
    assert simulations.failed == bad.sum()
    np.testing.assert_array_equal(simulations.u, everything.u[~bad])
    np.testing.assert_array_equal(simulations.observed["x"], everything.observed["x"][~bad])


def test_draws_are_of_the_prior_and_the_simulator():
    found = pg.amortized.simulate(pg.Model(prior), count=4000, simulator=gaussian, seed=0)
    noise = (found.observed["x"] - found.u) / 0.7
    both = np.concatenate([found.u, noise], 1)
    assert_moments(both.reshape(40, 100, 4), np.zeros(4), np.eye(4), detects=0.3)
    lagged = (noise[1:] * noise[:-1]).reshape(-1)  # neighbours have seeds of their own
    assert_mean(lagged, 0.0, detects=0.1)


def test_results_do_not_depend_on_the_workers(simulations):
    model = pg.Model(prior)
    again = {"one": 1, "two": 2}
    with ThreadPoolExecutor(3) as pool:  # what takes tasks as a Dask client does
        found = {
            name: pg.amortized.simulate(model, count=1100, simulator=simulator, seed=3, workers=workers)
            for name, workers in {**again, "elsewhere": pool}.items()
        }
    for other in found.values():
        assert other.failed == simulations.failed
        np.testing.assert_array_equal(other.u, simulations.u)
        for name, values in simulations.observed.items():
            np.testing.assert_array_equal(other.observed[name], values)
    other = pg.amortized.simulate(model, count=1100, simulator=simulator, seed=4)
    assert not np.array_equal(other.u[:9], simulations.u[:9])


# -- inference ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return pg.amortize(pg.Model(prior), None, QUICK, 6000, simulator=gaussian, seed=1)


def assert_linear_posterior(draws, x):
    """Draws follow the posterior, which is linear and Gaussian and so known before training: within 0.1 sds, 4 sds of
    regression on 6000 simulations (0.02) and of 4000 draws (0.016); spread within 8 %, 5 sds."""
    sd = np.sqrt(0.49 / 1.49)
    assert np.abs(draws.mean(0) - x / 1.49).max() < 0.1 * sd
    assert np.abs(draws.std(0) / sd - 1).max() < 0.08


def test_the_posterior_is_that_of_the_simulator(fitted, tmp_path):
    x = np.array([0.6, -0.8])
    bound = fitted.condition(x=x)
    tree = pg.infer(pg.Model(prior), bound, draws=2000, chains=2)
    draws = tree.posterior.theta.values.reshape(-1, 2)
    assert_linear_posterior(draws, x)
    np.testing.assert_allclose(tree.posterior["sum"].values.reshape(-1), draws.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(tree.observed_data.x, x)
    assert "log_evidence" not in tree.attrs  # nobody knows the density of a simulator
    assert fitted.described()["failed_simulations"] == 0
    bound.save(tmp_path / "posterior")
    fitted.save(tmp_path / "unbound")
    for again in (pg.amortized.load(tmp_path / "posterior"), pg.amortized.load(tmp_path / "unbound").condition(x=x)):
        other = pg.infer(pg.Model(prior), again, draws=2000, chains=2)
        np.testing.assert_array_equal(other.posterior.theta, tree.posterior.theta)


class Show(Estimator):
    """Learns nothing, and shows what there is to learn."""

    training: None = None

    def fit(self, key, task, *, store=None, progress=False):
        return task


def test_simulations_serve_several_estimators(simulations):
    task = pg.amortize(pg.Model(prior), None, Show(), simulations)
    assert task.question.failed == simulations.failed
    assert (task.question.reading.observed, task.question.outside) == (("x", "total"), True)
    read = jax.vmap(task.question.reading.unpack)(task.packed)
    np.testing.assert_allclose(read.flat[:, :2], simulations.observed["x"], rtol=1e-6)
    np.testing.assert_allclose(read.flat[:, 2], simulations.observed["total"], rtol=1e-6)


def test_a_programs_simulations_are_those_that_amortize_makes():
    def program(x=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    def other(z=None, x=None):
        program(x)
        numpyro.sample("z", dist.Normal(0.0, 1.0), obs=z)

    kept = pg.amortized.simulate(pg.Model(program), count=300, seed=7)
    made, reused = (pg.amortize(pg.Model(program), None, Show(), s, seed=7) for s in (300, kept))
    for task in (made, reused):
        np.testing.assert_array_equal(task.simulations.u, kept.u)
        np.testing.assert_array_equal(task.packed[:, 0], kept.observed["x"].astype(np.float32))
    with pytest.raises(pg.DataError, match=r"\['x', 'z'\] will be observed"):
        pg.amortize(pg.Model(other), None, Show(), kept)


# -- programs with random keys of their own ----------------------------------------------------------------------------


def implicit(x=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    z = theta + 0.5 * jax.random.normal(numpyro.prng_key(), (2,))
    numpyro.deterministic("z", z)
    numpyro.sample("x", dist.Normal(z, np.sqrt(0.49 - 0.25)).to_event(1), obs=x)


def test_programs_with_keys_of_their_own_are_amortized():
    """The same law of theta and x as above, with half of the noise from the program's own key."""
    fitted = pg.amortize(pg.Model(implicit), ["x"], QUICK, 6000, seed=1)
    x = np.array([0.6, -0.8])
    model = pg.Model(implicit, {"x": x})
    tree = pg.infer(model, fitted, draws=2000, chains=2)
    draws = tree.posterior.theta.values.reshape(-1, 2)
    assert_linear_posterior(draws, x)
    # What follows from own keys is drawn anew for each draw, not given the data.
    z = (tree.posterior.z.values - tree.posterior.theta.values).reshape(40, 100, 2) / 0.5
    assert_moments(z, np.zeros(2), np.eye(2), detects=0.3)
    for method in (pg.ImportanceSampling(fitted), pg.NUTS()):
        with pytest.raises(pg.MethodError, match="calls numpyro"):
            pg.infer(model, method)
    density, u = ImplicitDensity(model), jnp.array([0.3, -0.4])
    np.testing.assert_allclose(density.unconstrain(density.constrain(u)), u, rtol=1e-6)
    for ask in (density.log_density, density.log_prior, density.log_likelihood):
        with pytest.raises(pg.MethodError, match="no density that could be evaluated"):
            ask(u)


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_a_file_of_simulations(simulations, tmp_path):
    file = tmp_path / "simulations"
    simulations.save(file)
    simulations.save(file)  # it is replaced
    again = pg.amortized.Simulations.load(file)
    assert (again.names, again.failed, list(again.observed)) == (simulations.names, simulations.failed, ["x", "total"])
    np.testing.assert_array_equal(again.u, simulations.u)
    np.testing.assert_array_equal(again.observed["x"], simulations.observed["x"])
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes(8) + content[-32:])
    with pytest.raises(pg.StoreError, match="damaged"):
        pg.amortized.Simulations.load(file)
    (tmp_path / "other").write_text(json.dumps({}))
    with pytest.raises(pg.StoreError, match="holds no simulations"):
        simulations.save(tmp_path / "other")
    with pytest.raises(pg.StoreError, match="does not exist"):
        pg.amortized.Simulations.load(tmp_path / "nothing")


def test_a_store_goes_on_where_it_was(tmp_path, monkeypatch):
    from probgen.amortized import simulator as module
    from probgen.run.store import Pace

    run, tasks = module._run, []

    def counting(f, entropy, first, sites):
        tasks.append(len(sites["theta"]))
        if first >= stop:
            raise KeyboardInterrupt
        return run(f, entropy, first, sites)

    monkeypatch.setattr(Pace, "due", property(lambda self: True))
    monkeypatch.setattr(module, "_run", counting)
    model, store = pg.Model(prior), tmp_path / "kept.zarr"
    stop = 1100
    with pytest.raises(KeyboardInterrupt):
        pg.amortized.simulate(model, count=1200, simulator=gaussian, store=store)
    stop, made = 2000, sum(tasks[:-1])
    assert made >= 1100
    tasks.clear()
    found = pg.amortized.simulate(model, count=1200, simulator=gaussian, store=store)
    assert sum(tasks) == 1200 - made
    whole = pg.amortized.simulate(model, count=1300, simulator=gaussian)
    np.testing.assert_array_equal(found.observed["x"], whole.observed["x"][:1200])
    np.testing.assert_array_equal(found.u, whole.u[:1200])
    tasks.clear()
    more = pg.amortized.simulate(model, count=1300, simulator=gaussian, store=store)
    assert sum(tasks) == 100
    np.testing.assert_array_equal(more.observed["x"], whole.observed["x"])
    tasks.clear()
    pg.amortized.simulate(model, count=500, simulator=gaussian, store=store)
    assert not tasks
    with pytest.raises(pg.StoreError, match="seed"):
        pg.amortized.simulate(model, count=1300, simulator=gaussian, store=store, seed=1)


# -- errors ------------------------------------------------------------------------------------------------------------


def always(sites, rng):
    raise OSError("the licence server is down")


def changing(sites, rng):
    return {"x": np.zeros(rng.integers(1, 1000))}


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (always, pg.DataError, "100 of 100 simulations failed; the first time: OSError: the licence server is down"),
        (changing, pg.DataError, "returned the shapes"),
        (lambda sites, rng: {"x": np.full(2, np.nan)}, pg.DataError, "'x' with values that are not finite"),
        (lambda sites, rng: sites["theta"], pg.DataError, "TypeError: the simulator returned ndarray"),
        (lambda sites, rng: {"x": 1.0}, pg.DataError, "same observations"),
        (lambda sites, rng: {"theta": rng.normal()}, pg.MethodError, "'theta', which is a site"),
        (3, pg.MethodError, "must be a function"),
    ],
)
def test_simulators_that_do_not_work(f, error, message):
    with pytest.raises(error, match=message):
        pg.amortized.simulate(pg.Model(prior), count=200, simulator=f)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workers": 0}, pg.MethodError, "workers must be"),
        ({"workers": "four"}, pg.MethodError, "workers must be"),
        ({"workers": 2, "simulator": lambda sites, rng: {"x": 1.0}}, pg.MethodError, "cannot be sent"),
        ({"observed": ["x"]}, pg.MethodError, "observed= is about a program"),
        ({"design": lambda key: {}}, pg.MethodError, "design= is about a program"),
        ({"count": 0}, pg.MethodError, "count must be"),
        ({"model": pg.Model(implicit)}, pg.ModelError, "draws the observation 'x' itself"),
        (
            {"model": pg.Model(lambda: numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3)))},
            pg.ModelError,
            "discrete",
        ),
        ({"model": pg.Model(lambda: None)}, pg.ModelError, "no continuous latent site"),
        ({"simulator": None, "workers": 2, "model": pg.Model(implicit)}, pg.MethodError, "workers= run a simulator"),
        ({"simulator": None, "store": "a.zarr", "model": pg.Model(implicit)}, pg.MethodError, "store="),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        pg.amortized.simulate(**{"model": pg.Model(prior), "count": 10, "simulator": gaussian, **arguments})


def test_observations_that_do_not_fit_are_refused(fitted):
    model = pg.Model(prior)
    with pytest.raises(pg.MethodError, match=r"condition\(x=...\)"):
        pg.infer(model, fitted)
    with pytest.raises(pg.MethodError, match=r"\['y'\]"):
        fitted.condition(y=1.0)
    with pytest.raises(pg.DataError, match=r"shape \(3,\)"):
        fitted.condition(x=np.zeros(3))
    with pytest.raises(pg.DataError, match="not finite"):
        fitted.condition(x=[np.nan, 0.0])
    with pytest.raises(pg.MethodError, match="those of a simulator"):
        pg.infer(model, pg.ImportanceSampling(fitted.condition(x=np.zeros(2))))
    with pytest.raises(pg.MethodError, match="Give one of them"):
        pg.amortize(model, None, QUICK, pg.amortized.simulate(model, count=50, simulator=gaussian), simulator=gaussian)


DYING = """
import os, sys
sys.path.insert(0, {folder!r})
import probgen as pg
from test_simulators import prior

def dying(sites, rng):
    os._exit(1)

if __name__ == "__main__":
    try:
        pg.amortized.simulate(pg.Model(prior), count=20, simulator=dying, workers=2)
    except pg.DataError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_worker_that_dies_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DYING.format(folder=str(Path(__file__).parent)))
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300, check=True
    )
    assert "a worker process died" in done.stdout
