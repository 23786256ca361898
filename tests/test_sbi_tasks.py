"""The tasks of the benchmark of simulation-based inference: programs against closed forms, simulators against densities.

The slow tests read the reference posteriors of ``sbibm``. Download its wheel (``pip download --no-deps sbibm``), unzip it,
and name that folder in the environment variable PROBGEN_SBIBM.
"""

import bz2
import itertools
import math
import os
from pathlib import Path
from statistics import NormalDist

import arviz_base
import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.special import logsumexp

import probgen as pg
from probgen.program.density import Density
from probgen.program.files import load_data, load_module

MODELS = Path(__file__).resolve().parent.parent / "models"
TASKS = (
    "bernoulli_glm",
    "bernoulli_glm_raw",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "lotka_volterra",
    "sir",
    "slcp",
    "two_moons",
)
MODULES = {task: load_module(MODELS / task / "model.py") for task in TASKS}
DATA = {task: load_data(MODELS / task / "data.json") for task in TASKS}
PARAMETERS = {"lotka_volterra": ("alpha", "beta", "gamma", "delta"), "sir": ("beta", "gamma")}
"""Names where there is more than the one site theta; in the order of the columns of the references."""
FALSE_ALARM = 1e-6
"""Probability that a right program fails one statistical test."""

REFERENCES = os.environ.get("PROBGEN_SBIBM")
needs_references = pytest.mark.skipif(
    REFERENCES is None, reason="PROBGEN_SBIBM does not name a folder with the unzipped wheel of sbibm"
)


def arguments(task, x=None):
    """Arguments of the program, with another observation or none."""
    return {name: value for name, value in DATA[task].items() if name != "x"} | ({} if x is None else {"x": x})


def named(task, theta):
    """A vector of parameters as values of sites."""
    names = PARAMETERS.get(task)
    return {"theta": theta} if names is None else {name: theta[i] for i, name in enumerate(names)}


def joint(task, theta, x):
    return log_density(MODULES[task].model, (), arguments(task, x), named(task, theta))[0]


def law_of_x(task, theta):
    """The distribution of the observed site."""
    program = handlers.seed(handlers.substitute(MODULES[task].model, data=named(task, theta)), 0)
    return handlers.trace(program).get_trace(**arguments(task))["x"]["fn"]


def simulated(task, theta, key):
    program = handlers.seed(handlers.substitute(MODULES[task].model, data=named(task, theta)), key)
    return handlers.trace(program).get_trace(**arguments(task))["x"]["value"]


def limit(count):
    """Bound on the largest of ``count`` z-scores."""
    return NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * count))


def scores(values):
    """z-scores of the means of the columns against zero."""
    values = np.asarray(values, float).reshape(len(values), -1)
    assert np.isfinite(values).all()
    return values.mean(0) / values.std(0, ddof=1) * math.sqrt(len(values))


# -- densities written a second time ---------------------------------------------------------------------------------


def uniform(theta, bound):
    return -len(theta) * np.log(2 * bound)


def two_moons(theta, x):
    angle = -np.pi / 4
    first = np.cos(angle) * theta[0] - np.sin(angle) * theta[1]
    second = np.sin(angle) * theta[0] + np.cos(angle) * theta[1]
    u, v = x[0] - 0.25 + abs(first), x[1] - second
    r = math.copysign(np.hypot(u, v), u)  # a point on the left has a negative radius, ten standard deviations off
    return uniform(theta, 1) + stats.norm.logpdf(r, 0.1, 0.01) - np.log(np.pi * abs(r))


def slcp(theta, x):
    s1, s2, rho = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
    covariance = np.array([[s1**2 + 1e-6, rho * s1 * s2], [rho * s1 * s2, s2**2 + 1e-6]])
    return uniform(theta, 3) + stats.multivariate_normal.logpdf(x, theta[:2], covariance).sum()


def gaussian_linear(theta, x):
    return stats.multivariate_normal.logpdf(theta, cov=0.1 * np.eye(10)) + stats.norm.logpdf(x, theta, 0.1**0.5).sum()


def gaussian_linear_uniform(theta, x):
    return uniform(theta, 1) + stats.norm.logpdf(x, theta, 0.1**0.5).sum()


def gaussian_mixture(theta, x):
    wide, narrow = (stats.norm.logpdf(x, theta, scale).sum() for scale in (1, 0.1))
    return uniform(theta, 10) + np.log(0.5) + logsumexp([wide, narrow])


def glm_prior():
    precision = np.zeros((10, 10))
    precision[0, 0] = 0.5
    first = np.diag(np.ones(9)) - np.diag(np.ones(8), -1)
    f = first @ first + np.diag((np.arange(9) / 9) ** 0.5)
    precision[1:, 1:] = f.T @ f
    return stats.multivariate_normal(np.zeros(10), np.linalg.inv(precision))


def glm_predictor(theta, stimulus):
    return theta[0] + np.convolve(stimulus, theta[1:])[: len(stimulus)]


def infected(theta, times):
    """Number of infected people, by another method in other variables."""
    beta, gamma = theta

    def drift(_, z):
        flow = beta * z[0] * z[1] / 1e6
        return [-flow, flow - gamma * z[1]]

    return solve_ivp(drift, (0, times[-1]), [1e6 - 1, 1], "LSODA", times, rtol=1e-10, atol=1e-12).y[1]


def populations(theta, times):
    alpha, beta, gamma, delta = theta

    def drift(_, z):
        return [alpha * z[0] - beta * z[0] * z[1], -gamma * z[1] + delta * z[0] * z[1]]

    return solve_ivp(drift, (0, times[-1]), [30, 1], "LSODA", times, rtol=1e-11, atol=1e-13).y


def sir(theta, x):
    prior = stats.lognorm.logpdf(theta, [0.5, 0.2], scale=[0.4, 0.125]).sum()
    return prior + stats.binom.logpmf(x, 1000, infected(theta, 17.0 * np.arange(10)) / 1e6).sum()


def lotka_volterra(theta, x):
    prior = stats.lognorm.logpdf(theta, 0.5, scale=np.exp([-0.125, -3, -0.125, -3])).sum()
    z = np.clip(populations(theta, 2.1 * np.arange(10)), 1e-10, 1e4)
    return prior + stats.lognorm.logpdf(x, 0.1, scale=z).sum()


CLOSED = {f.__name__: f for f in (two_moons, slcp, gaussian_linear, gaussian_linear_uniform, gaussian_mixture)}
CLOSED |= {f.__name__: f for f in (sir, lotka_volterra)}
TRUTH = {
    "bernoulli_glm": np.array([0.5, 1.5, 2.0, 1.0, 0.2, -0.8, -1.0, -0.7, -0.2, 0.1]),
    "bernoulli_glm_raw": np.array([0.5, 1.5, 2.0, 1.0, 0.2, -0.8, -1.0, -0.7, -0.2, 0.1]),
    "gaussian_linear": np.linspace(-0.5, 0.4, 10),
    "gaussian_linear_uniform": np.linspace(-0.9, 0.8, 10),
    "gaussian_mixture": np.array([3.0, -4.0]),
    "lotka_volterra": np.array([0.8, 0.06, 0.9, 0.04]),
    "sir": np.array([0.5, 0.15]),
    "slcp": np.array([0.7, -2.6, -1.4, 0.9, 0.6]),
    "two_moons": np.array([0.3, -0.5]),
}


@pytest.mark.parametrize("task", CLOSED)
def test_the_program_has_the_density_of_its_definition(task):
    rng = np.random.default_rng(0)
    x = np.asarray(simulated(task, TRUTH[task], jax.random.key(1)))
    density = jax.jit(lambda theta: joint(task, theta, x))
    for theta in TRUTH[task] * (1 + 0.05 * rng.uniform(-1, 1, (4, len(TRUTH[task])))):
        # The tolerance is the error of the solvers; elsewhere that of rounding.
        assert density(theta) == pytest.approx(CLOSED[task](theta, x), rel=1e-5 if task in PARAMETERS else 1e-10)


def test_the_spikes_have_the_density_of_their_definition():
    """The law of the sums is that of the spikes; checked with spikes of my own, in both programs."""
    stimulus, prior = np.asarray(DATA["bernoulli_glm"]["stimulus"]), glm_prior()
    spikes = np.random.default_rng(0).integers(0, 2, len(stimulus))
    sums = np.array([spikes.sum(), *(spikes[lag:] @ stimulus[: len(stimulus) - lag] for lag in range(9))])
    for scale in (0.5, 1.0, -1.0):
        theta = scale * TRUTH["bernoulli_glm"]
        each = stats.bernoulli.logpmf(spikes, 1 / (1 + np.exp(-glm_predictor(theta, stimulus))))
        assert joint("bernoulli_glm", theta, sums) == pytest.approx(prior.logpdf(theta) + each.sum(), rel=1e-10)
        assert joint("bernoulli_glm_raw", theta, spikes) == pytest.approx(prior.logpdf(theta) + each.sum(), rel=1e-10)


def test_the_laws_of_the_models_are_normalised():
    module = MODULES["bernoulli_glm"]
    design = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))
    sums = jnp.array(list(itertools.product([0.0, 1.0], repeat=8))) @ design
    law = module.SpikeSums(design, jnp.array([0.3, -1.0, 0.5]))
    assert jnp.exp(law.log_prob(sums)).sum() == pytest.approx(1, rel=1e-12)
    # Midpoints in polar coordinates about the centre: over the right half the mass is that of r > 0, nearly all.
    r, a = (np.arange(1000) + 0.5) / 1000 * 0.2, np.pi * ((np.arange(50) + 0.5) / 50 - 0.5)
    center = jnp.array([0.4, -0.3])
    points = center + r[:, None, None] * np.stack([np.cos(a), np.sin(a)], -1)
    density = jnp.exp(MODULES["two_moons"].Crescent(center).log_prob(points))
    assert (density * r[:, None]).sum() * (0.2 / 1000) * (np.pi / 50) == pytest.approx(1, rel=1e-10)


# -- simulators against densities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [task for task in TASKS if task != "two_moons"])
def test_simulations_follow_the_density(task):
    """Under its own law a score has mean zero, and minus its derivative has the mean of its square."""
    truth, keys = jnp.asarray(TRUTH[task]), jax.random.split(jax.random.key(0), 2000)
    x = jax.jit(jax.vmap(lambda key: simulated(task, truth, key)))(keys)

    def likelihood(theta):
        each = law_of_x(task, theta).log_prob(x)
        return each.reshape(len(x), -1).sum(1)

    # Forward: the equations of a model are solved, and differentiated, once for all x.
    score, curvature = jax.jit(lambda theta: (jax.jacfwd(likelihood)(theta), jax.hessian(likelihood)(theta)))(truth)
    information = (score[:, :, None] * score[:, None] + curvature)[:, *np.triu_indices(len(truth))]
    found = scores(np.concatenate([score, information], 1))
    assert abs(found).max() < limit(len(found))


def test_simulated_crescents_follow_the_density():
    """Moments of the points against those of the density; its support moves with theta, so scores do not serve."""
    center = jnp.array([0.4, -0.3])
    law = MODULES["two_moons"].Crescent(center)
    u, v = (np.asarray(law.sample(jax.random.key(0), (20_000,))) - np.asarray(center)).T
    grid = (np.arange(800) + 0.5) / 800
    area = np.exp(np.asarray(law.log_prob(center + np.stack(np.meshgrid(0.2 * grid, 0.4 * grid - 0.2), -1))))
    weights = (area * 0.2 * 0.4 / 800**2).T
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    first, second = np.meshgrid(0.2 * grid, 0.4 * grid - 0.2, indexing="ij")
    statistics = {"u": lambda u, v: u, "v": lambda u, v: v, "uu": lambda u, v: u * u, "vv": lambda u, v: v * v}
    statistics |= {"uv": lambda u, v: u * v, "radius": np.hypot}
    centred = [f(u, v) - (weights * f(first, second)).sum() for f in statistics.values()]
    assert abs(scores(np.stack(centred, 1))).max() < limit(len(statistics))


def test_two_moons_are_centred_where_they_must_be():
    theta = np.array([0.3, -0.5])
    center = [0.25 - 0.2 / 2**0.5, -0.8 / 2**0.5]
    assert law_of_x("two_moons", jnp.asarray(theta)).center == pytest.approx(center, rel=1e-12)
    assert law_of_x("two_moons", jnp.asarray([0.5, -0.3])).center == pytest.approx(center, rel=1e-12)


# -- solvers ---------------------------------------------------------------------------------------------------------


def test_epidemics_are_solved_as_exactly_as_the_page_says():
    rng = np.random.default_rng(0)
    theta = np.array([0.4, 0.125]) * np.exp(np.array([0.5, 0.2]) * rng.normal(size=(20, 2)))
    found = np.asarray(jax.jit(jax.vmap(lambda t: MODULES["sir"].solve(*t)))(theta))
    exact = np.stack([np.log(infected(t, 17.0 * np.arange(10)) / 1e6) for t in theta])
    large = exact > np.log(1e-9)  # below, the error of the other solver counts
    assert abs(found - exact)[large].max() < 1e-5


def test_populations_are_solved_as_exactly_as_the_page_says():
    rng = np.random.default_rng(0)
    theta = np.exp(np.array([-0.125, -3, -0.125, -3]) + 0.5 * rng.normal(size=(20, 4)))
    found = np.asarray(jax.jit(jax.vmap(lambda t: MODULES["lotka_volterra"].solve(*t)))(theta))
    exact = np.stack([populations(t, 2.1 * np.arange(10)) for t in theta])
    error = abs(np.exp(found) / exact - 1)[exact > 1e-3]
    assert error.max() < 1.3e-3
    assert np.quantile(error, 0.9) < 1e-4


# -- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_program_takes_its_data_and_simulates_others(task):
    module, data = MODULES[task], DATA[task]
    model = pg.Model(module.model, data, getattr(module, "COORDS", None))
    assert [site.name for site in model.sites] == [*PARAMETERS.get(task, ("theta",)), "x"]
    free = pg.Model(module.model, arguments(task), getattr(module, "COORDS", None))
    assert free.sites["x"].shape == model.sites["x"].shape == np.shape(data["x"])
    x = simulated(task, jnp.asarray(TRUTH[task]), jax.random.key(0))
    assert x.shape == np.shape(data["x"])
    assert np.isfinite(x).all()


# -- the reference posteriors ----------------------------------------------------------------------------------------


def recorded(task, number):
    """An observation, and the 10 000 draws of its posterior, shape ``(draws, dim)``."""
    assert REFERENCES is not None
    folder = Path(REFERENCES) / "sbibm" / "tasks" / task.removesuffix("_raw") / "files" / f"num_observation_{number}"
    name = "observation_raw.csv" if task.endswith("_raw") else "observation.csv"
    x = np.loadtxt(folder / name, delimiter=",", skiprows=1).reshape(np.shape(DATA[task]["x"]))
    with bz2.open(folder / "reference_posterior_samples.csv.bz2", "rt") as file:
        draws = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    return (x.astype(int) if task in ("sir", "bernoulli_glm_raw") else x), draws


def edge(task, values, x):
    """A function that is 0 where the density jumps inside of the support of the prior."""
    if task != "two_moons":
        return jnp.ones(())
    return x[0] - law_of_x(task, values["theta"]).center[0]


@pytest.mark.slow
@needs_references
@pytest.mark.parametrize("task", TASKS)
def test_the_references_are_draws_of_the_density(task):
    """Stein's identity: under p, div f + f . grad log p has mean zero, here for f = e_i and f = u_i e_i, all ten data
    sets. What this does not see, the weights of separate modes, the runs below see."""
    sizes, terms = [], jax.jit(jax.vmap(_stein(task), (None, None, 0, None)))
    for number in range(1, 11):
        x, draws = recorded(task, number)
        draws = draws[::4] if task in PARAMETERS else draws
        density = Density(pg.Model(MODULES[task].model, arguments(task, x)))
        u = jax.vmap(density.unconstrain)(named(task, draws.T) if task in PARAMETERS else {"theta": draws})
        sizes.append(abs(scores(terms(density, jnp.asarray(x), u, u.mean(0)))).max())
    assert max(sizes) < limit(20 * draws.shape[1])


def _stein(task):
    def terms(density, x, u, center):
        weight, slope = jax.value_and_grad(lambda u: edge(task, density.constrain(u), x))(u)
        first = weight * jax.grad(density.log_density)(u) + slope
        return jnp.concatenate([first, (u - center) * first + weight])

    return terms


def distances(draws, ours, error):
    """Means, and means of squares, in standard errors of both sides; ``ours`` and ``error`` by power."""
    found = []
    for power in (1, 2):
        spread = (draws**power).std(0, ddof=1) / math.sqrt(len(draws))
        found.append((ours[power] - (draws**power).mean(0)) / np.hypot(error[power], spread))
    return np.abs(found)


@pytest.mark.slow
@needs_references
@pytest.mark.parametrize("task", [task for task in TASKS if task not in PARAMETERS])
def test_a_fit_agrees_with_the_reference(task):
    """NUTS, and SMC where there are modes."""
    x, draws = recorded(task, 1)
    assert np.allclose(x, DATA[task]["x"])
    model = pg.Model(MODULES[task].model, arguments(task, x))
    method = pg.SMC() if task in ("slcp", "two_moons") else pg.NUTS()
    tree = pg.infer(model, method, draws=1000, chains=4, seed=1)
    assert tree.attrs["ended"] == "completed"
    theta = tree["posterior"]["theta"].values
    powers = {power: arviz_base.from_dict({"posterior": {"theta": theta**power}}) for power in (1, 2)}
    error = {power: arviz_stats.mcse(t["posterior"].to_dataset())["theta"].values for power, t in powers.items()}
    found = distances(draws, {power: (theta**power).mean((0, 1)) for power in powers}, error)
    assert found.max() < limit(found.size)


@pytest.mark.slow
@needs_references
@pytest.mark.parametrize("task", PARAMETERS)
def test_weighted_draws_agree_with_the_reference(task):
    """Importance sampling: a wide Student t law in place of a sampler that solves the equations a million times."""
    x, draws = recorded(task, 1)
    assert np.allclose(x, DATA[task]["x"])
    density = Density(pg.Model(MODULES[task].model, arguments(task, x)))
    log = np.log(draws)
    law = stats.multivariate_t(log.mean(0), 1.5 * np.cov(log.T), df=5, seed=np.random.default_rng(0))
    u = law.rvs(4000)
    log_w = np.asarray(jax.jit(jax.vmap(density.log_density))(jnp.asarray(u))) - law.logpdf(u)
    w = np.exp(log_w - logsumexp(log_w))
    assert 1 / (w**2).sum() > 1000
    ours = {power: w @ np.exp(u) ** power for power in (1, 2)}
    error = {power: np.sqrt((w**2) @ (np.exp(u) ** power - ours[power]) ** 2) for power in ours}
    found = distances(draws, ours, error)
    assert found.max() < limit(found.size)


@pytest.mark.slow
@needs_references
def test_crescents_cannot_be_told_from_the_reference():
    x, draws = recorded("two_moons", 1)
    model = pg.Model(MODULES["two_moons"].model, {"x": x})
    tree = pg.infer(model, pg.SMC(particles=2500), draws=2500, chains=4, seed=1)
    # Two samples of one law give 0.5 with a standard deviation of 0.004.
    assert pg.check.c2st(draws, tree["posterior"]["theta"].values.reshape(-1, 2)) < 0.52


@pytest.mark.slow
@needs_references
def test_the_sums_of_the_recorded_spikes_are_the_observations():
    design = law_of_x("bernoulli_glm", jnp.zeros(10)).design
    for number in range(1, 11):
        spikes, sums = (recorded(task, number)[0] for task in ("bernoulli_glm_raw", "bernoulli_glm"))
        assert spikes @ design == pytest.approx(sums, abs=1e-5)
