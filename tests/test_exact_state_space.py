"""State-space programs in closed form: against the dense Gaussian, enumeration, and filters written by hand."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import probgen as pg
from probgen.feynman_kac import forward_backward, kalman
from probgen.infer.choose import choose
from probgen.infer.exact import Exact
from probgen.program.closed_form import Limits, recognise
from probgen.program.finite import Finite
from probgen.program.forward_backward import ForwardBackward
from probgen.program.joint import Joint
from probgen.program.kalman import Kalman
from probgen.program.linear_gaussian import LinearGaussian
from probgen.testing import assert_draws
from probgen.testing.oracles import oracles

RNG = np.random.default_rng(0)
MOVE = np.array([[0.9, 0.1, 0.0], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])
LIMITS = Limits(2**20, 4096)


# -- programs ----------------------------------------------------------------------------------------------------------


def trend(y, seen):
    """A slope that wanders, a level that is its sum (no noise of its own), an unknown start, noise that grows."""
    start = numpyro.sample("start", dist.Normal(0.0, 10.0))

    def step(carry, now):
        level, slope, t = carry
        y, seen = now
        slope = numpyro.sample("slope", dist.Normal(slope, 0.1))
        level = numpyro.deterministic("level", level + slope)
        numpyro.sample("y", dist.Normal(level, 0.5 + 0.1 * t), obs=y, obs_mask=seen)
        return (level, slope, t + 1), None

    scan(step, (start, jnp.zeros(()), 0), (y, seen))


def regression(x, y, decay):
    """Coefficients that the steps read, a covariate, a coefficient of the transition that changes with time."""
    beta = numpyro.sample("beta", dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.5], [0.5, 1.0]])))
    numpyro.sample("about_beta", dist.Normal(beta.sum(), 0.8), obs=1.5)

    def step(state, now):
        row, y, a = now
        state = numpyro.sample("state", dist.Normal(a * state + 0.1, 0.3))
        numpyro.sample("y", dist.Normal(state + row @ beta, 0.5), obs=y)
        return state, None

    scan(step, jnp.asarray(0.5), (x, y, decay))


def panel(y):
    """Two-dimensional states of three series, each with its own start; run from the last row to the first."""
    with numpyro.plate("series", 3):
        x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", dist.MultivariateNormal(0.9 * x, jnp.eye(2) + 0.3))
            numpyro.sample("y", dist.Normal(x[..., 0] - x[..., 1], 0.5), obs=y)
        return x, None

    scan(step, jnp.stack([x0, -x0], -1), y, reverse=True)


def shared(y):
    """Series that know of one another: each is drawn to the mean of all."""

    def step(x, y):
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", dist.Normal(0.5 * x + 0.3 * x.mean(), 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, jnp.zeros(3), y)


def memory(y, many):
    """Two lags, seven sensors of one state, of which a mask hides some; a likelihood that counts half."""

    def step(carry, now):
        y, seen = now
        one, two = carry
        x = numpyro.sample("x", dist.Normal(0.9 * one - 0.3 * two, 0.4))
        with numpyro.handlers.scale(scale=0.5):
            numpyro.sample("half", dist.Normal(x, 1.0), obs=1.0)
        with numpyro.plate("sensor", 7), numpyro.handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(2.0 * x + one, 0.7), obs=y)
        return (x, one), None

    scan(step, (0.3, -0.2), (y, many))


SEEN = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
GAUSSIAN = {
    "trend": (trend, {"y": RNG.normal(size=8) + 3, "seen": SEEN}, None),
    "regression": (
        regression,
        {"x": RNG.normal(size=(6, 2)), "y": RNG.normal(size=6), "decay": np.linspace(0.2, 1.1, 6)},
        None,
    ),
    "panel": (panel, {"y": RNG.normal(size=(5, 3))}, "series"),
    "memory": (memory, {"y": RNG.normal(size=(5, 7)), "many": RNG.random((5, 7)) < 0.7}, None),
}


@functools.cache
def solved(name):
    """The block of a Gaussian program, solved as a chain and as one dense Gaussian."""
    program, data, _ = GAUSSIAN[name]
    model = pg.Model(program, data)
    (block,) = recognise(model, LIMITS).blocks
    dense = LinearGaussian(block.sites, block.terms)
    got, expected = jax.jit(lambda model: (block.solve(Joint(model)), dense.solve(Joint(model))))(model)
    return model, block, dense, got, expected


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_chain_is_the_dense_gaussian(name):
    model, block, dense, got, expected = solved(name)
    assert isinstance(block, Kalman)
    assert block.lane == GAUSSIAN[name][2]
    assert float(got.residual) < 1e-12
    assert float(got.log_evidence) == pytest.approx(float(expected.log_evidence), rel=1e-11, abs=1e-11)
    found, wanted = block.summary(model, got.parameters), dense.summary(model, expected.parameters)
    for site in block.sites:
        _, covariance = wanted[f"{site}_covariance"]
        size = int(np.prod(model.sites[site].shape))
        sd = np.sqrt(np.diagonal(covariance.reshape(size, size)))
        np.testing.assert_allclose(found[f"{site}_mean"][1], wanted[f"{site}_mean"][1], atol=1e-10)
        np.testing.assert_allclose(found[f"{site}_sd"][1].reshape(-1), sd, rtol=1e-9)
        assert found[f"{site}_sd"][0] == model.sites[site].dims
    # The last step of a filter knows all.
    last = 0 if name == "panel" else -1
    scanned = next(site for site in block.sites if model.sites[site].scanned)
    for number in ("mean", "sd"):
        np.testing.assert_allclose(
            found[f"{scanned}_filtered_{number}"][1][last], found[f"{scanned}_{number}"][1][last], rtol=1e-10
        )


def test_what_is_filtered_does_not_know_the_future():
    data = GAUSSIAN["trend"][1]
    model = pg.Model(trend, data)
    (block,) = recognise(model, LIMITS).blocks
    solved = jax.jit(lambda model: block.solve(Joint(model)).parameters)
    whole = block.summary(model, solved(model))
    early = pg.Model(trend, {"y": data["y"], "seen": SEEN & (np.arange(8) < 4)})
    part = block.summary(early, solved(early))
    for number in ("mean", "sd"):
        np.testing.assert_allclose(whole[f"slope_filtered_{number}"][1][3], part[f"slope_{number}"][1][3], rtol=1e-10)
    assert abs(whole["slope_mean"][1][3] - part["slope_mean"][1][3]) > 1e-3


def test_series_that_know_of_one_another_are_one_chain():
    y = RNG.normal(size=(4, 3))
    solution = Exact().solve(pg.Model(shared, {"y": y}))
    (block,) = solution.recognised.blocks
    assert isinstance(block, Kalman)
    assert block.lane is None
    move = 0.5 * np.eye(3) + 0.1
    powers = [np.linalg.matrix_power(move, n) for n in range(4)]
    root = np.block([[powers[i - j] if j <= i else np.zeros((3, 3)) for j in range(4)] for i in range(4)])
    law = stats.multivariate_normal(np.zeros(12), root @ root.T + 0.25 * np.eye(12))
    assert float(solution.log_evidence) == pytest.approx(law.logpdf(y.reshape(-1)), abs=1e-10)


def test_draws_have_the_moments_of_the_smoother():
    tree = pg.infer(pg.Model(trend, GAUSSIAN["trend"][1]), Exact(), draws=2000, chains=2, seed=3)
    exact = tree["exact"]
    names = ["start", "slope"]
    means = {name: exact[f"{name}_mean"].values for name in names}
    sds = {name: exact[f"{name}_sd"].values for name in names}
    posterior = tree["posterior"].to_dataset()
    assert_draws(posterior, means=means, sds=sds, detects=0.2)
    # Levels are sums: the joint law of start and slopes is right only if those of each level are.
    level = posterior["start"] + posterior["slope"].cumsum("time")
    np.testing.assert_allclose(posterior["level"], level, atol=1e-12)
    covariance = np.asarray(solved("trend")[-1].parameters["factor"])
    covariance = np.linalg.inv(covariance @ covariance.T)[:9, :9]
    sums = np.tril(np.ones((9, 9)))[1:]
    sums[:, 1:] = np.tril(np.ones((8, 8)))
    sd = np.sqrt(np.diagonal(sums @ covariance @ sums.T))
    mean = means["start"] + np.cumsum(means["slope"])
    assert_draws({"level": posterior["level"].values}, means={"level": mean}, sds={"level": sd}, detects=0.2)


def test_the_oracle_of_a_state_space_model():
    (oracle,) = [o for o in oracles() if o.name == "state_space"]
    tree = pg.infer(oracle.model, draws=2000, chains=2, seed=1)
    assert "Kalman" in tree.attrs["method_reason"]
    assert tree.attrs["log_evidence"] == pytest.approx(oracle.log_evidence, abs=1e-10)
    for site in ("start", "x"):
        np.testing.assert_allclose(tree[f"exact/{site}_mean"], oracle.means[site], atol=1e-10)
        np.testing.assert_allclose(tree[f"exact/{site}_sd"], oracle.sds[site], atol=1e-10)
    oracle.check(tree, detects=0.2)


def test_numbers_far_from_zero_keep_their_digits():
    def walk(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 0.5))
            numpyro.sample("y", dist.Normal(x, 0.2), obs=y)
            return x, None

        scan(step, jnp.asarray(1e6), y)

    y = np.cumsum(RNG.normal(size=6))
    model = pg.Model(walk, {"y": 1e6 + y})
    solution = Exact().solve(model)
    steps = np.tril(np.ones((6, 6)))
    covariance = 0.25 * steps @ steps.T + 0.04 * np.eye(6)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (1e6 + y) - 1e6)
    expected = -0.5 * white @ white - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    assert float(solution.log_evidence) == pytest.approx(expected, abs=1e-8)


# -- finite chains -----------------------------------------------------------------------------------------------------


def hmm(y):
    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        numpyro.sample("y", dist.StudentT(3.0, 2.0 * z, 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def classes(y):
    """A class that every step reads, a first state, a switch in each step, a clock and the last observation; reversed."""
    c = numpyro.sample("c", dist.Bernoulli(0.3))
    z0 = numpyro.sample("z0", dist.Categorical(jnp.asarray(MOVE)[1]))
    numpyro.sample("w", dist.Normal(c, 1.0), obs=0.2)

    def step(carry, y):
        z, t, last = carry
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        b = numpyro.sample("b", dist.Bernoulli(0.2 + 0.3 * c))
        numpyro.sample("y", dist.Normal(z + b + 0.5 * last + 0.1 * t, 1.0), obs=y)
        return (z, t + 1, y), None

    scan(step, (z0, 0, 0.0), y, reverse=True)


def series(y):
    with numpyro.plate("series", 2):
        z0 = numpyro.sample("z0", dist.Categorical(jnp.asarray(MOVE)[1]))

    def step(z, y):
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Poisson(1.0 + z), obs=y)
        return z, None

    scan(step, z0, y)


def factorial(y):
    """Two chains, seen through their sum."""

    def step(z, y):
        with numpyro.plate("chains_", 2):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), y)


FINITE = {
    "hmm": (hmm, RNG.normal(size=5) + 1, None, (3,)),
    "classes": (classes, RNG.normal(size=4) + 1, None, (2, 3, 3, 2)),
    "series": (series, RNG.poisson(2.0, size=(3, 2)), "series", (3, 3)),
    "factorial": (factorial, RNG.normal(size=3) + 1, None, (3,)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("classes", "series") else [pytest.mark.slow]) for n in FINITE]
)
def test_the_chain_is_the_sum_over_all_paths(name):
    program, y, lane, counts = FINITE[name]
    model = pg.Model(program, {"y": y})
    (block,) = recognise(model, LIMITS).blocks
    assert isinstance(block, ForwardBackward)
    assert block.lane == lane
    entries = tuple(int(np.prod(model.sites[site].shape)) for site in block.sites)
    all_paths = Finite(block.sites, block.terms, counts, entries)
    got, expected = jax.jit(lambda model: (block.solve(Joint(model)), all_paths.solve(Joint(model))))(model)
    assert float(got.residual) < 1e-12
    assert float(got.log_evidence) == pytest.approx(float(expected.log_evidence), abs=1e-11)
    found, wanted = block.summary(model, got.parameters), all_paths.summary(model, expected.parameters)
    for site in block.sites:
        for part in ("value", "probability"):
            assert found[f"{site}_{part}"][0] == wanted[f"{site}_{part}"][0]
            np.testing.assert_allclose(found[f"{site}_{part}"][1], wanted[f"{site}_{part}"][1], atol=1e-12)
    # The most probable path has a higher density than any of many draws.
    best = {site: found[f"{site}_path"][1] for site in block.sites}
    draws = jax.jit(lambda parameters: block.draw(jax.random.key(0), model, parameters, 4000))(got.parameters)
    density = jax.jit(jax.vmap(lambda values: Joint(model)(values, block.terms)[0]))
    top = float(density({site: jnp.asarray(value)[None] for site, value in best.items()})[0])
    log_p = density(draws)
    assert float(log_p.max()) <= top + 1e-12
    # Draws have the probabilities of the paths: of each site, and of the whole path through its density.
    p = np.exp(np.asarray(log_p) - float(got.log_evidence))
    assert np.all((p > 0) & (p <= 1))
    for site in block.sites:
        values, probability = found[f"{site}_value"][1], found[f"{site}_probability"][1]
        seen = np.mean(draws[site][..., None] == values, 0)
        z = (seen - probability) / np.sqrt(probability * (1 - probability) / 4000 + 1e-12)
        assert np.abs(z).max() < 5.5


def test_the_oracle_of_a_hidden_markov_model():
    (oracle,) = [o for o in oracles() if o.name == "hidden_markov"]
    tree = pg.infer(oracle.model, draws=100, chains=1, seed=1)
    assert "forward-backward" in tree.attrs["method_reason"]
    assert tree.attrs["log_evidence"] == pytest.approx(oracle.log_evidence, abs=1e-11)
    np.testing.assert_allclose(tree["exact/z_probability"], oracle.marginals["z"].probabilities, atol=1e-12)


def test_draws_of_paths_have_the_probabilities_of_the_paths():
    program, y, _, _ = FINITE["hmm"]
    tree = pg.infer(pg.Model(program, {"y": y[:3]}), Exact(), draws=4000, chains=1, seed=5)
    z = tree["posterior/z"].values[0]
    counts = np.zeros((3, 3, 3))
    np.add.at(counts, tuple(z.T), 1)
    seen = stats.t.pdf(np.asarray(y[:3])[:, None], 3, 2.0 * np.arange(3), 1.0)
    p = (MOVE[0] * seen[0])[:, None, None] * (MOVE * seen[1])[:, :, None] * (MOVE * seen[2])
    p = p / p.sum()
    assert counts[p == 0].sum() == 0
    likely = p * 4000 > 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = 4000 * np.append(p[likely], p[~likely].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-5


# -- what is no chain --------------------------------------------------------------------------------------------------


def nonlinear(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(jnp.sin(x), 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def state_dependent_noise(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(x)), obs=y)
        return x, None

    scan(step, 0.0, y)


def switching(y):
    def step(carry, y):
        x, z = carry
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.6 * z))
        x = numpyro.sample("x", dist.Normal(0.5 * x + z, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return (x, z), None

    scan(step, (0.0, 0), y)


@pytest.mark.parametrize("program", [nonlinear, state_dependent_noise, switching])
def test_other_state_space_programs_are_refused(program):
    with pytest.raises(pg.MethodError, match="no closed form"):
        Exact().solve(pg.Model(program, {"y": RNG.normal(size=4)}))


def test_a_path_that_is_used_behind_the_scan_is_solved_densely_or_refused_with_the_reason():
    def program(y):
        def step(x, _):
            x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0))
            return x, x

        _, x = scan(step, 0.0, None, length=len(y))
        numpyro.sample("y", dist.Normal(x[::-1].cumsum(), 1.0).to_event(1), obs=y)

    model = pg.Model(program, {"y": RNG.normal(size=5)})
    (block,) = recognise(model, LIMITS).blocks
    assert isinstance(block, LinearGaussian)
    with pytest.raises(
        pg.MethodError, match=r"more than max_dim=3, and no Kalman filter solves it .*outside of the scan"
    ):
        recognise(model, Limits(2**20, 3))


@pytest.mark.parametrize("outside", [False, True])
def test_scaled_states_are_solved_densely(outside):
    """A power of the density of a state is no Gaussian with the same spread: no filter, but one dense normal."""
    y = np.array([0.5, -0.3, 0.9])

    def program(y):
        def step(x, y):
            with numpyro.handlers.scale(scale=1.0 if outside else 0.7):
                x = numpyro.sample("x", dist.Normal(0.8 * x, 0.7))
                numpyro.sample("y", dist.Normal(x, 0.6), obs=y)
            return x, None

        with numpyro.handlers.scale(scale=0.7 if outside else 1.0):
            scan(step, 0.0, y)

    solution = Exact().solve(pg.Model(program, {"y": y}))
    assert isinstance(solution.recognised.blocks[0], LinearGaussian)
    move = np.eye(3) - 0.8 * np.eye(3, k=-1)
    precision = 0.7 * (move.T @ move / 0.49 + np.eye(3) / 0.36)
    mean = np.linalg.solve(precision, 0.7 * y / 0.36)
    top = 0.7 * (stats.norm.logpdf(move @ mean, 0, 0.7) + stats.norm.logpdf(y, mean, 0.6)).sum()
    expected = top + 1.5 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    assert float(solution.log_evidence) == pytest.approx(expected, abs=1e-9)


def test_a_discrete_chain_with_a_long_memory_is_enumerated_or_refused_with_the_reason():
    def program(y):
        def step(count, y):
            z = numpyro.sample("z", dist.Bernoulli(1 / (2.0 + count)))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return count + z, None

        scan(step, 0, y)

    (block,) = recognise(pg.Model(program, {"y": RNG.normal(size=4)}), LIMITS).blocks
    assert isinstance(block, Finite)
    with pytest.raises(pg.MethodError, match=r"step by step .*remembers more"):
        Exact().solve(pg.Model(program, {"y": RNG.normal(size=40)}))


# -- long series -------------------------------------------------------------------------------------------------------


def test_ten_thousand_steps_take_a_second():
    def levels(y):
        def step(carry, y):
            level, slope = carry
            slope = numpyro.sample("slope", dist.Normal(slope, 0.05))
            level = numpyro.sample("level", dist.Normal(level + slope, 0.2))
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
            return (level, slope), None

        scan(step, (0.0, 0.0), y)

    for program in (levels, hmm):
        model = pg.Model(program, {"y": RNG.normal(size=10_000)})
        assert isinstance(choose(model)[0], Exact)
        spent = []
        for _ in range(3):
            model = pg.Model(program, {"y": RNG.normal(size=10_000)})
            began = time.perf_counter()
            jax.block_until_ready(Exact().solve(model).log_evidence)
            spent.append(time.perf_counter() - began)
        assert min(spent) < 1.0


# -- the numerics ------------------------------------------------------------------------------------------------------


def textbook(steps=40):
    transition, noise = np.array([[1.0, 1.0], [0.0, 0.95]]), np.array([[0.0], [0.3]])
    observation, scale = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.5, 0.0], [0.2, 0.4]])
    y, seen = RNG.normal(size=(steps, 2)).cumsum(0), RNG.random((steps, 2)) < 0.7
    mean, factor = np.array([1.0, 0.0]), np.diag([2.0, 0.0])
    return [jnp.asarray(a) for a in (mean, factor, transition, noise, observation, scale, y, seen)]


def by_hand(arguments):
    """The Kalman filter as it stands in books."""
    mean, factor, f, q, h, scale, y, seen = (np.asarray(a) for a in arguments)
    p, log_z, r = factor @ factor.T, 0.0, scale @ scale.T
    means = []
    for value, now in zip(y, seen, strict=True):
        mean, p = f @ mean, f @ p @ f.T + q @ q.T
        if now.any():
            rows = h[now]
            s = rows @ p @ rows.T + r[np.ix_(now, now)]
            gap = value[now] - rows @ mean
            gain = p @ rows.T @ np.linalg.inv(s)
            log_z += -0.5 * gap @ np.linalg.solve(s, gap) - 0.5 * np.linalg.slogdet(2 * np.pi * s)[1]
            mean, p = mean + gain @ gap, p - gain @ s @ gain.T
        means.append(mean)
    return np.array(means), p, log_z


def test_the_textbook_filter_with_missing_entries_and_singular_noise():
    arguments = textbook()
    chain = kalman.state_space(*arguments)
    means, last, log_z = by_hand(arguments)
    found = jax.jit(kalman.filtered)(chain)
    np.testing.assert_allclose(found.after.mean, means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.after.covariance[-1], last, rtol=1e-8)
    assert float(found.log_z[-1]) == pytest.approx(log_z, abs=1e-9)
    posterior = jax.jit(kalman.driven)(chain)
    assert float(kalman.log_evidence(chain, posterior)) == pytest.approx(log_z, abs=1e-9)


def test_in_parallel_over_time_is_the_same():
    chain = kalman.state_space(*textbook(4))
    view = kalman.View(chain.transition, chain.noise, chain.offset)

    def everything(parallel):
        posterior = kalman.driven(chain, parallel=parallel)
        xi = jnp.ones_like(posterior.start_shift), jnp.sin(jnp.arange(4.0))[:, None]
        return (
            kalman.filtered(chain, parallel=parallel),
            posterior,
            kalman.smoothed(chain, posterior, view, parallel=parallel),
            kalman.path(chain, posterior, *xi, parallel=parallel),
        )

    one, two = jax.jit(everything, static_argnums=0)(False), jax.jit(everything, static_argnums=0)(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), one, two)
    finite = finite_chain(5)
    messages = jax.jit(lambda chain, parallel: forward_backward.messages(chain, parallel=parallel), static_argnums=1)
    one, two = messages(finite, False), messages(finite, True)
    np.testing.assert_allclose(one.forward, two.forward, atol=1e-12)
    np.testing.assert_allclose(one.log_z, two.log_z, atol=1e-12)
    for a, b in ((one.backward, two.backward), (one.start, two.start)):
        # These are known up to a number per step.
        shift = np.asarray(a - b)
        np.testing.assert_allclose(shift, np.broadcast_to(shift[..., :1], shift.shape), atol=1e-12)


def finite_chain(steps):
    steps = np.log(RNG.random((steps - 1, 3, 3)))
    steps[:, 0, 2] = -np.inf
    return forward_backward.FiniteChain(jnp.log(jnp.array([0.4, 0.6])), jnp.log(RNG.random((2, 3))), jnp.asarray(steps))


def test_draws_of_the_textbook_chain_have_the_smoothed_covariances():
    chain = kalman.state_space(*textbook(6))
    posterior = jax.jit(kalman.driven)(chain)
    view = kalman.View(chain.transition, chain.noise, chain.offset)
    _, after, seen = jax.jit(kalman.smoothed)(chain, posterior, view)
    np.testing.assert_allclose(after.covariance, seen.covariance, atol=1e-13)
    # Draws are affine in their noise: the covariance is known from the map, without sampling.
    sizes = posterior.start_shift.size, posterior.shift.size

    def states(flat):
        return kalman.path(chain, posterior, flat[: sizes[0]], flat[sizes[0] :].reshape(posterior.shift.shape))[1][1:]

    slope = jax.jit(jax.jacobian(states))(jnp.zeros(sum(sizes)))
    np.testing.assert_allclose(jnp.einsum("tin,tjn->tij", slope, slope), after.covariance, atol=1e-12)
    np.testing.assert_allclose(states(jnp.zeros(sum(sizes))), after.mean, atol=1e-12)
    draws = jax.jit(jax.vmap(lambda key: kalman.draw(key, chain, posterior)[1]))
    path = draws(jax.random.split(jax.random.key(0), 4000))
    sd = np.sqrt(np.diagonal(after.covariance, axis1=1, axis2=2))
    z = (path[:, 1:].mean(0) - after.mean) / (sd / np.sqrt(4000))
    assert np.abs(z).max() < 5


@pytest.mark.parametrize("parallel", [pytest.param(False, marks=pytest.mark.slow), True], ids=["sequence", "parallel"])
def test_gradients_of_the_evidence(parallel):
    arguments = textbook(3)

    def log_z(theta):
        mean, factor, f, q, h, scale, y, seen = arguments
        chain = kalman.state_space(mean, factor, theta[0] * f, theta[1] * q, h, theta[2] * scale, y, seen)
        return kalman.filtered(chain, parallel=parallel).log_z[-1]

    theta = jnp.array([0.9, 1.3, 0.8])
    slope = jax.jit(jax.grad(log_z))(theta)
    steps = 1e-5 * jnp.eye(3)
    heights = jax.jit(log_z)
    differences = [(heights(theta + e) - heights(theta - e)) / 2e-5 for e in steps]
    np.testing.assert_allclose(slope, differences, rtol=1e-6)
    finite = finite_chain(5)
    slopes = jax.jit(jax.grad(lambda chain: forward_backward.messages(chain, parallel=parallel).log_z[-1]))(finite)
    # The derivative with respect to a log weight is the probability of the move.
    assert float(slopes.first.sum()) == pytest.approx(1.0)
    np.testing.assert_allclose(slopes.steps.sum((1, 2)), np.ones(4))
