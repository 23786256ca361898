"""The epidemic that is surveyed on any days: its equations and its observation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from probgen.program.files import load_data, load_module

FOLDER = Path(__file__).resolve().parent.parent / "models" / "seir"
SEIR = load_module(FOLDER / "model.py")


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
