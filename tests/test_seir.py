"""The epidemic that is surveyed on any days: its equations and its observation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import probgen as pg
from probgen.program.files import load_data, load_module

FOLDER = Path(__file__).resolve().parent.parent / "models" / "seir"
SEIR = load_module(FOLDER / "model.py")
RATES = ("alpha", "beta", "gamma")


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


@pytest.fixture(scope="module")
def epidemic():
    """Half of the training of the benchmark."""
    training = pg.generative.Training(steps=8000, batch=128, learning_rate=2e-3)
    return pg.amortize(
        pg.Model(SEIR.model, {"t": np.linspace(5.0, SEIR.DAYS, 8)}),
        ["y"],
        pg.FlowMatching(width=64, depth=2, encoder_width=16, encoder_depth=1, training=training),
        50_000,
        design=SEIR.design,
        fewest={"survey": 2},
    )


def matrix(tree):
    return np.stack([tree.posterior[name].values.reshape(-1) for name in RATES], 1)
