"""One network for any two to eight observations of an epidemic; and of a line, where the posterior is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.integrate import solve_ivp

import probgen as pg
from probgen.program.files import load_data, load_module

FOLDER = Path(__file__).resolve().parent.parent / "models" / "seir"
SEIR = load_module(FOLDER / "model.py")
RATES = ("alpha", "beta", "gamma")
SMALL = pg.generative.Training(steps=4000, batch=256, learning_rate=2e-3)


def solved(rates, days):
    """I and R by an adaptive method of order 8."""
    beta, alpha, gamma = rates

    def drift(_, z):
        s, e, i, _ = z
        return [-beta * s * i, beta * s * i - alpha * e, alpha * e - gamma * i, gamma * i]

    start = [1 - SEIR.EXPOSED, SEIR.EXPOSED, 0.0, 0.0]
    return solve_ivp(drift, (0, SEIR.DAYS), start, "DOP853", t_eval=days, rtol=1e-10, atol=1e-12).y[2:].T


def test_a_step_a_day_solves_the_equations_far_below_the_noise():
    """Extreme rates of the prior (three deviations), days on, between and at the ends of the steps."""
    corners = np.array(np.meshgrid(*[[-3.0, 0.0, 3.0]] * 3)).reshape(3, -1).T
    rates = np.array([0.5, 0.2, 0.15]) * np.exp(SEIR.SPREAD * corners)
    days = np.array([0.0, 0.5, 5.0, 17.3, 33.75, 59.9, 60.0])
    ours = jax.jit(jax.vmap(lambda r: SEIR.solve(*r, jnp.asarray(days))))(rates)
    exact = np.stack([solved(r, days) for r in rates])
    assert np.abs(ours - exact).max() < 0.02 * SEIR.NOISE


def test_the_observation_that_comes_with_it_is_one_of_the_program():
    data = load_data(FOLDER / "data.json")
    off = (np.asarray(data["y"]) - solved((0.5, 0.2, 0.15), np.asarray(data["t"]))) / SEIR.NOISE
    # Chi-squared with 16 degrees of freedom, two-sided at 1e-4.
    assert 3.0 < np.sum(off**2) < 45.0


# -- an epidemic -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epidemic():
    return pg.amortize(
        pg.Model(SEIR.model, {"t": np.linspace(5.0, SEIR.DAYS, 8)}),
        ["y"],
        pg.FlowMatching(width=128, depth=3, encoder_width=32, training=SMALL),
        20_000,
        design=SEIR.design,
        fewest={"survey": 2},
    )


def matrix(tree, names=RATES):
    return np.stack([tree.posterior[name].values.reshape(-1) for name in names], 1)


@pytest.mark.slow
@pytest.mark.parametrize("surveys", [3, 8])
def test_one_network_answers_for_few_and_many_surveys(epidemic, surveys):
    """Against NUTS on the same program; and corrected by the density it is that posterior."""
    t = SEIR.design(jax.random.key(surveys), surveys)["t"]
    rates = 1.05 * np.array([0.5, 0.2, 0.15])
    y = solved(rates, np.sort(t))[np.argsort(np.argsort(t))]
    y = y + SEIR.NOISE * np.random.default_rng(surveys).normal(size=y.shape)
    model = pg.Model(SEIR.model, {"t": t, "y": y})
    exact = matrix(pg.infer(model, pg.NUTS(), draws=1000, chains=2, warmup=500, seed=0))
    learned = matrix(pg.infer(model, epidemic, draws=2000, chains=1, seed=1))
    corrected = matrix(pg.infer(model, pg.ImportanceSampling(epidemic), draws=2000, chains=1, seed=1))
    assert pg.check.c2st(exact, learned) < 0.65
    assert pg.check.c2st(exact, corrected) < 0.55


@pytest.mark.slow
@pytest.mark.parametrize("surveys", [3, 8])
def test_ranks_of_the_truth_are_uniform_for_few_and_many_surveys(epidemic, surveys):
    t = SEIR.design(jax.random.key(surveys), surveys)["t"]
    found = pg.check.sbc(pg.Model(SEIR.model, {"t": t}), epidemic, datasets=100, draws=60, sites=RATES, seed=3)
    assert not [f for f in found.findings if f.severity.name == "error"]


# -- a line, where the posterior is known ------------------------------------------------------------------------------

NOISE = 0.5


def line(t, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", t.shape[0]):
        numpyro.sample("y", dist.Normal(level + slope * t, NOISE), obs=y)


@pytest.fixture(scope="module")
def lines():
    return pg.amortize(
        pg.Model(line, {"t": np.linspace(-2.0, 2.0, 8)}),
        ["y"],
        pg.FlowMatching(width=96, depth=2, encoder_width=32, training=SMALL),
        20_000,
        design=lambda key: {"t": jax.random.uniform(key, (8,), minval=-2.0, maxval=2.0)},
        fewest={"row": 2},
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 5, 8])
def test_any_number_of_points_of_a_line_has_its_conjugate_posterior(lines, rows):
    rng = np.random.default_rng(rows)
    t = rng.uniform(-2, 2, rows)
    y = 0.7 - 0.4 * t + NOISE * rng.normal(size=rows)
    design = np.stack([np.ones(rows), t], 1)
    covariance = np.linalg.inv(np.eye(2) + design.T @ design / NOISE**2)
    exact = rng.multivariate_normal(covariance @ design.T @ y / NOISE**2, covariance, 4000)
    tree = pg.infer(pg.Model(line, {"t": t, "y": y}), lines, draws=4000, chains=1, seed=rows)
    assert pg.check.c2st(exact, matrix(tree, ("level", "slope"))) <= 0.55


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform_for_a_line(lines):
    t = np.array([-1.5, -0.2, 0.4, 1.1])
    found = pg.check.sbc(pg.Model(line, {"t": t}), lines, datasets=200, draws=60, seed=4)
    assert not [f for f in found.findings if f.severity.name == "error"]
