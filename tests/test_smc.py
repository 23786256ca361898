"""SMC samplers against closed forms: evidence, moments, weights of modes, and what they say of themselves."""

import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.feynman_kac.smc import Settings, advance, begin, smc
from probgen.infer.smc import SMC, DataTempering
from probgen.kernels.clouds import covariance_root, next_power
from probgen.kernels.moves import Hamiltonian, Langevin, Point, RandomStep, Target, Tuning
from probgen.kernels.tempering import FixedTempering
from probgen.program.enumerated import density_of
from probgen.testing import assert_mean, assert_moments, assert_unbiased_evidence, oracles

ORACLES = {oracle.name: oracle for oracle in oracles()}
MOVES = {"random": RandomStep(), "langevin": Langevin(), "hamiltonian": Hamiltonian()}


def replicates(method, model, count, seed=0):
    """Results of independent runs, one compiled program."""
    density = method.density(model)

    @jax.jit
    def run(keys, density):
        fk = method.feynman_kac(density)
        return jax.vmap(lambda key: smc(key, fk, method.settings()))(keys)

    return run(jax.random.split(jax.random.key(seed), count), density)


def values_of(result, model):
    """Draws of all sites, leading axes ``(runs, particles)``."""
    density = density_of(model)
    key = jax.random.key(0)  # no discrete sites
    return jax.vmap(jax.vmap(lambda u: density.values(key, u)))(result.cloud.x.point.u)


# -- moves leave the target invariant --------------------------------------------------------------------------------

COV = np.array([[2.0, 1.2], [1.2, 1.0]])


def quadratic(u):
    """A normal in two terms, one of which has power one half."""
    each = -0.5 * u @ np.linalg.inv(COV) @ u
    return Point(u, 0.5 * each, jnp.stack([each, jnp.full((), -jnp.inf)]))


@pytest.mark.parametrize("name", MOVES)
def test_a_move_leaves_its_target_invariant(name):
    """From exact draws, after badly tuned moves: a wrong acceptance rule shows in the second moments."""
    move, target = MOVES[name], Target(quadratic, jnp.array([0.5, 0.0]))
    tuning = Tuning(jnp.array([[1.5, 0.0], [-0.3, 0.4]]), jnp.asarray(0.9))

    def one(key):
        key_start, key_move = jax.random.split(key)
        u = jnp.linalg.cholesky(COV) @ jax.random.normal(key_start, (2,))
        state, total = move.begin(target, quadratic(u)), 0.0
        for i in range(3):
            state, acceptance = move(jax.random.fold_in(key_move, i), target, state, tuning)
            total += acceptance
        return move.point(state), total / 3

    points, acceptance = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 40_000))
    assert_moments(points.u.reshape(400, 100, 2), np.zeros(2), COV, detects=0.06)
    assert 0.1 < acceptance.mean() < 0.9
    np.testing.assert_allclose(points.terms[:, 0], jax.vmap(quadratic)(points.u).terms[:, 0])


@pytest.mark.parametrize("name", MOVES)
def test_the_scale_comes_to_the_rate_that_is_wanted(name):
    move, dim = MOVES[name], 20
    target = Target(lambda u: Point(u, -0.5 * u @ u, jnp.zeros(1)), jnp.ones(1))

    @jax.jit
    def rate(key, scale):
        def one(key):
            key_start, key_move = jax.random.split(key)
            u = jax.random.normal(key_start, (dim,))
            tuning = Tuning(jnp.eye(dim), scale)
            return move(key_move, target, move.begin(target, target.evaluate(u)), tuning)[1]

        return jax.vmap(one)(jax.random.split(key, 2000)).mean()

    scale = jnp.asarray(2 * move.first_scale(dim))
    for i in range(3):
        scale = move.rescaled(scale, rate(jax.random.key(i), scale))
    assert abs(rate(jax.random.key(9), scale) - move.target_accept) < 0.04


# -- the next power --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "share"), [(1.0, 0.5), (1e6, 0.9), (1e-3, 0.5), (30.0, 0.1)])
def test_the_effective_sample_size_is_the_wanted_one(spread, share):
    rng = np.random.default_rng(0)
    term, log_w = jnp.asarray(spread * rng.normal(size=500)), jnp.full(500, -np.log(500.0))
    for before in (0.0, 0.3):
        power = next_power(log_w, term, jnp.asarray(before), share)
        w = np.exp((power - before) * (term - term.max()))
        ess = w.sum() ** 2 / (w**2).sum()
        if power == 1:
            assert ess >= share * 500
        else:
            np.testing.assert_allclose(ess, share * 500, rtol=1e-6 * max(1, spread * before))
            assert before < power < 1


def test_particles_without_likelihood_do_not_stop_the_temperature():
    term = jnp.where(jnp.arange(100) < 70, -jnp.inf, jnp.linspace(-50.0, 0.0, 100)).at[0].set(jnp.nan)
    power = next_power(jnp.full(100, -np.log(100.0)), term, jnp.zeros(()), 0.5)
    w = np.exp(power * (term[70:] + 0.0))
    np.testing.assert_allclose(w.sum() ** 2 / (w**2).sum(), 15, rtol=1e-6)
    nothing = next_power(jnp.full(100, -np.log(100.0)), jnp.full(100, -jnp.inf), jnp.zeros(()), 0.5)
    assert nothing == 1  # the evidence, zero, tells


def test_the_covariance_of_a_cloud():
    rng = np.random.default_rng(0)
    cov = np.array([[1.0, 0.999, 0.0], [0.999, 1.0, 0.0], [0.0, 0.0, 1e-6]])
    u, log_w = rng.multivariate_normal([5, 5, 0], cov, 4000), rng.normal(size=4000)
    root = np.asarray(covariance_root(jnp.asarray(u), jnp.asarray(log_w), jnp.eye(3)))
    whitened = np.linalg.inv(root) @ cov @ np.linalg.inv(root).T
    assert np.abs(np.log(np.linalg.eigvalsh(whitened))).max() < 0.3  # shrinkage leaves a correlation of 0.999 alone
    few = np.asarray(covariance_root(jnp.asarray(rng.normal(size=(10, 30))), jnp.zeros(10), jnp.eye(30)))
    assert np.linalg.cond(few) < 30  # where 10 particles have a covariance of rank 9
    np.testing.assert_array_equal(covariance_root(jnp.ones((10, 2)), jnp.zeros(10), 7 * jnp.eye(2)), 7 * np.eye(2))


# -- evidence ----------------------------------------------------------------------------------------------------------


def tuned_before(fk, settings, seed):
    """The model with the tuning that one run has found."""
    key = jax.random.key(seed)
    state, _ = begin(key, fk, settings)
    step = jax.jit(lambda state, t: advance(key, fk, settings, state, t, 1)[0])
    tunings = []
    for t in range(fk.steps):
        state = step(state, t)
        tunings.append(state.context.tuning)
    return dataclasses.replace(fk, tunings=jax.tree.map(lambda *leaves: jnp.stack(leaves), *tunings))


@pytest.mark.parametrize(
    ("move", "chain", "ess"),
    [
        (RandomStep(), 1, 1.0),
        pytest.param(RandomStep(), 1, 0.7, marks=pytest.mark.slow),
        pytest.param(RandomStep(), 8, 1.0, marks=pytest.mark.slow),
    ],
    ids=["every step", "now and then", "waste-free"],
)
def test_the_evidence_is_unbiased_where_powers_and_tuning_are_given(move, chain, ess):
    """An off-by-one in the powers, or potentials evaluated after the move, bias the mean of Z."""
    oracle = ORACLES["normal_gamma"]
    fk = FixedTempering(density_of(oracle.model), move, chain, None, 2, jnp.linspace(0, 1, 9)[1:] ** 2)
    settings = Settings(128, ess_threshold=ess)
    fk = tuned_before(fk, settings, 1)
    result = jax.jit(jax.vmap(lambda key: smc(key, fk, settings)))(jax.random.split(jax.random.key(0), 600))
    if ess < 1:
        assert 0 < np.asarray(result.steps.resampled).mean() < 1
    assert_unbiased_evidence(np.asarray(result.log_z), oracle.log_evidence, detects=0.1)


# Numbers of moves are given where many runs go side by side: each would wait for the one with the most.
CASES = {
    "normal_mean": SMC(particles=256, kernel=pg.RandomWalk(), ess=0.7),
    "normal_gamma": SMC(particles=256, kernel=pg.MALA(), moves=6),
    "regression": SMC(particles=256, moves=4),
    "gamma_poisson": SMC(particles=512, waste_free=8, moves=2),
    "state_space": SMC(particles=256, moves=4),
    "mixture": SMC(particles=256, kernel=pg.RandomWalk(), schedule=np.linspace(0, 1, 6)[1:] ** 2),
}
FAST = {"normal_mean", "regression", "gamma_poisson", "mixture"}
EACH = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in CASES]
RUNS = 96


@functools.cache
def solved(name):
    return replicates(CASES[name], ORACLES[name].model, RUNS)


def variances(name, result):
    if CASES[name].waste_free is None:
        return np.asarray(result.log_z_variance)
    return np.asarray(result.steps.numbers["variance"]).max(1)


@pytest.mark.parametrize("name", EACH)
def test_the_evidence_is_that_of_the_closed_form(name):
    log_z = np.asarray(solved(name).log_z)
    top = log_z.max() + np.log(np.exp(log_z - log_z.max()).mean())
    se = np.sqrt(variances(name, solved(name)).mean() / RUNS)
    assert abs(top - ORACLES[name].log_evidence) < 3 * se
    assert se < 0.03


@pytest.mark.slow
def test_the_standard_error_of_the_evidence_is_what_runs_differ_by():
    ratio = {n: variances(n, solved(n)).mean() / np.asarray(solved(n).log_z).var(ddof=1) for n in CASES}
    assert all(0.4 < value < 2.5 for value in ratio.values()), ratio
    assert 0.7 < np.exp(np.mean(np.log(list(ratio.values())))) < 1.4, ratio  # seven times the replicates


@pytest.mark.parametrize("name", EACH)
def test_posterior_moments_are_those_of_the_closed_form(name):
    oracle = ORACLES[name]
    density = density_of(oracle.model)
    u = solved(name).cloud.x.point.u[:, ::2]
    keys = jax.random.split(jax.random.key(5), u.shape[:2])
    values = jax.jit(jax.vmap(jax.vmap(density.values)))(keys, u)
    for site, law in oracle.marginals.items():
        x, mean, sd = np.asarray(values[site]), np.asarray(law.mean()), np.asarray(law.std())
        assert_mean(x.mean(1), mean, detects=0.3 * np.maximum(sd, 0.1))
        if site not in oracle.discrete:
            assert_mean(((x - mean) ** 2 / sd**2).mean(1), 1.0, detects=0.5)


# -- several modes -----------------------------------------------------------------------------------------------------


def far_modes():
    """Two modes with the weights 0.2 and 0.8, and a valley of 200 nats between them."""
    x = numpyro.sample("x", dist.Uniform(-30, 30).expand([2]).to_event(1))
    weights = jnp.array([0.2, 0.8])
    parts = dist.Normal(jnp.array([[-10.0, -10.0], [10.0, 10.0]]), jnp.sqrt(0.5)).to_event(1)
    numpyro.factor("like", dist.MixtureSameFamily(dist.Categorical(weights), parts).log_prob(x))


def grid():
    """25 modes of equal weight."""
    x = numpyro.sample("x", dist.Uniform(-25, 25).expand([2]).to_event(1))
    sides = jnp.linspace(-20, 20, 5)
    at = jnp.stack(jnp.meshgrid(sides, sides), -1).reshape(-1, 2)
    parts = dist.Normal(at, 0.5).to_event(1)
    numpyro.factor("like", dist.MixtureSameFamily(dist.Categorical(jnp.ones(25) / 25), parts).log_prob(x))


def labels(y):
    """A mixture whose components can be exchanged."""
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
    with numpyro.plate("row", len(y)):
        half = dist.Categorical(jnp.ones(2) / 2)
        numpyro.sample("y", dist.MixtureSameFamily(half, dist.Normal(mu, 1.0)), obs=y)


def test_far_modes_have_their_weights():
    method, model = SMC(particles=512, moves=4), pg.Model(far_modes)
    result = replicates(method, model, 64)
    x = np.asarray(values_of(result, model)["x"])
    right = x[..., 0] > 0
    assert_mean(right.mean(1), 0.8, detects=0.08)
    centred = x - np.where(right, 10.0, -10.0)[..., None]
    assert_mean((centred**2).mean((1, 2)), 0.5, detects=0.1)
    assert_unbiased_evidence(np.asarray(result.log_z), -2 * np.log(60.0), detects=0.2)


def test_nuts_does_not_weigh_far_modes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = pg.infer(pg.Model(far_modes), pg.NUTS(), draws=100, warmup=200, chains=8, seed=0)
    right = (tree["posterior/x"].values[..., 0] > 0).mean(1)
    assert set(right) <= {0.0, 1.0}
    assert 0 < right.mean() < 1  # chains in both, as many as began there


@pytest.mark.slow
def test_a_grid_of_25_modes():
    method, model = SMC(particles=1024, kernel=pg.RandomWalk(), moves=10), pg.Model(grid)
    result = replicates(method, model, 32)
    x = np.asarray(values_of(result, model)["x"])
    index = np.round((x + 20) / 10).astype(int) @ [1, 5]
    share = np.stack([(index == k).mean(1) for k in range(25)], -1)
    assert_mean(share, 0.04, detects=0.04)
    assert (np.abs(share.mean(0) - 0.04).sum() / 2) < 0.05  # total variation of the mean over runs
    assert_unbiased_evidence(np.asarray(result.log_z), -2 * np.log(50.0), detects=0.25)


@pytest.mark.slow
def test_labels_are_exchanged():
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(-3, 1, 15), rng.normal(3, 1, 15)])
    model = pg.Model(labels, {"y": y})
    mu = np.asarray(values_of(replicates(SMC(particles=256, moves=4), model, 64), model)["mu"])
    assert_mean((mu[..., 0] < mu[..., 1]).mean(1), 0.5, detects=0.15)
    low = np.minimum(mu[..., 0], mu[..., 1])
    assert_mean(low.mean(1), y[:15].mean(), detects=0.2)


# -- data tempering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_data_in_batches_have_the_same_evidence(batch):
    oracle = ORACLES["regression"]  # 12 rows
    method = SMC(particles=256, kernel=pg.RandomWalk(), path=DataTempering(batch=batch))
    result = replicates(method, oracle.model, 48)
    log_z = np.asarray(result.log_z)
    assert_unbiased_evidence(log_z, oracle.log_evidence, detects=0.25)
    assert 0.4 < np.asarray(result.log_z_variance).mean() / log_z.var(ddof=1) < 2.5
    b = np.asarray(values_of(result, oracle.model)["b"])
    assert_mean(
        np.einsum("rn,rnd->rd", np.exp(result.cloud.log_w), b), oracle.means["b"], detects=0.3 * oracle.sds["b"]
    )
    # After some batches, the evidence is that of those rows.
    taken = int(result.taken[0])
    beta, running = np.asarray(result.steps.numbers["beta"])[0, :taken], np.asarray(result.steps.log_z)[0, :taken]
    batches = -(-12 // batch)
    assert set(np.round(np.arange(1, batches + 1) / batches, 12)) <= set(np.round(beta, 12))
    x, y = (np.asarray(oracle.model.leaves[name]) for name in "xy")
    rows = batch * (batches // 2)
    from scipy import stats

    part = stats.multivariate_normal.logpdf(
        y[:rows], np.zeros(rows), x[:rows] @ np.diag([25.0, 4, 4]) @ x[:rows].T + 0.64 * np.eye(rows)
    )
    assert abs(running[np.argmin(np.abs(beta - (batches // 2) / batches))] - part) < 1.0
    if batch == 1:  # where an observation says little, particles stay where they are
        moved = np.asarray(result.steps.numbers["moves"])[0, :taken]
        assert (moved == 0).any()
        np.testing.assert_array_equal(moved > 0, np.asarray(result.steps.resampled)[0, :taken] | (beta == 1))


# -- through the door --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree():
    return pg.infer(ORACLES["regression"].model, SMC(kernel=pg.RandomWalk()), draws=600, chains=3, seed=0)


def test_a_result_has_the_evidence_and_the_powers(tree):
    oracle = ORACLES["regression"]
    assert tree.attrs["particles"] == 1024  # what the check of effective sample sizes is relative to
    assert abs(tree.attrs["log_evidence"] - oracle.log_evidence) < 4 * tree.attrs["log_evidence_se"] < 0.4
    assert tree["posterior/b"].shape == (3, 600, 3)
    oracle.check(tree, detects=0.6)
    group = tree["particles"]
    assert group["beta"].dims == ("chain", "step")
    for chain in range(3):
        beta = group["beta"].values[chain]
        beta = beta[np.isfinite(beta)]
        assert beta[0] == 0
        assert beta[-1] == 1
        assert (np.diff(beta) > 0).all()
        assert len(beta) == 1 + json.loads(tree.attrs["temperatures"])[chain]
    runs = group["log_evidence_run"].values
    np.testing.assert_allclose(tree.attrs["log_evidence"], np.log(np.exp(runs + 20).mean()) - 20)
    lp = jax.vmap(density_of(oracle.model).log_density)(tree["posterior/b"].values[0])
    np.testing.assert_allclose(tree["sample_stats/lp"].values[0], lp)
    assert tree.attrs["warmup"] == 0
    assert not pg.check(tree).problems


def test_the_same_seed_gives_the_same_result_and_new_data_compile_nothing(tree):
    from probgen.run.compiled import compile_count

    oracle, method = ORACLES["regression"], SMC(kernel=pg.RandomWalk())
    before = compile_count()
    again = pg.infer(oracle.model, method, draws=600, chains=3, seed=0)
    np.testing.assert_array_equal(again["posterior/b"], tree["posterior/b"])
    moved = oracle.model.with_data(y=np.asarray(oracle.model.leaves["y"]) + 1.0)
    other = pg.infer(moved, method, draws=600, chains=3, seed=1)
    assert compile_count() == before
    assert abs(other["posterior/b"].values[..., 0].mean() - tree["posterior/b"].values[..., 0].mean()) > 0.3


def test_a_store_gives_the_same_draws(tree, tmp_path):
    kept = pg.infer(
        ORACLES["regression"].model, SMC(kernel=pg.RandomWalk()), draws=600, chains=3, seed=0, store=tmp_path / "a.zarr"
    )
    np.testing.assert_array_equal(kept["posterior/b"], tree["posterior/b"])
    assert kept.attrs["log_evidence"] == tree.attrs["log_evidence"]
    np.testing.assert_array_equal(kept["particles/beta"], tree["particles/beta"])


@pytest.mark.slow
def test_more_draws_than_particles_stand_side_by_side():
    result = pg.infer(ORACLES["normal_mean"].model, SMC(particles=64, kernel=pg.RandomWalk()), draws=200, chains=1)
    mu = result["posterior/mu"].values[0]
    assert len(np.unique(mu)) <= 64
    assert (np.diff(mu) == 0).sum() >= 200 - 64  # so that effective sample sizes see it


def test_32_bits():
    with jax.enable_x64(False):
        oracle = ORACLES["normal_mean"]
        model = pg.Model(oracle.model.program, {"y": np.asarray(oracle.model.leaves["y"], np.float32)})
        result = pg.infer(model, SMC(particles=512, kernel=pg.RandomWalk()), draws=100, chains=2, seed=0)
        assert result["posterior/mu"].dtype == np.float32
        assert abs(result.attrs["log_evidence"] - oracle.log_evidence) < 5 * result.attrs["log_evidence_se"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def impossible(y):
    b = numpyro.sample("b", dist.Normal(0, 1))
    numpyro.sample("y", dist.Uniform(b, b + 1e-9), obs=y)


def half(y):
    """A likelihood that is zero for half of the prior, and not a number for a tenth."""
    b = numpyro.sample("b", dist.Uniform(0, 1))
    numpyro.factor("like", jnp.where(b < 0.5, -jnp.inf, jnp.where(b > 0.9, jnp.nan, dist.Normal(b, 1).log_prob(y))))


def test_a_likelihood_that_is_zero_everywhere_names_the_site():
    with pytest.raises(pg.MethodError, match=r"zero or not a number at all 64 particles of chain 0.*y \(-inf\)"):
        pg.infer(pg.Model(impossible, {"y": 0.3}), SMC(particles=64, kernel=pg.RandomWalk()), draws=10, chains=2)


def test_particles_without_likelihood_are_lost_and_told_of():
    from scipy import stats

    with pytest.warns(pg.ProbgenWarning, match="log likelihood was NaN at"):
        tree = pg.infer(pg.Model(half, {"y": 0.3}), SMC(kernel=pg.RandomWalk()), draws=500, chains=4, seed=0)
    exact = np.log(stats.norm.cdf(0.6) - stats.norm.cdf(0.2))  # b from 0.5 to 0.9
    assert abs(tree.attrs["log_evidence"] - exact) < 4 * tree.attrs["log_evidence_se"]
    assert 0.06 < tree.attrs["undefined_likelihood"] < 0.14
    b = tree["posterior/b"].values
    assert ((b > 0.5) & (b < 0.9)).all()


def flat(y):
    a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(a, 1), obs=y)


def test_an_improper_prior_is_refused():
    with pytest.raises(pg.MethodError, match="'a' has an improper prior, and SMC needs priors"):
        pg.infer(pg.Model(flat, {"y": 0.0}), SMC())


@pytest.mark.parametrize(
    "handler", [numpyro.handlers.scale(scale=2.0), numpyro.handlers.mask(mask=jnp.array(False))], ids=["scale", "mask"]
)
def test_a_prior_that_draws_do_not_follow_is_refused(handler):
    def program(y):
        with handler:
            a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)

    with pytest.raises(pg.MethodError, match="prior of site 'a' is changed by"):
        pg.infer(pg.Model(program, {"y": 0.0}), SMC())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SMC(particles=1), "particles must be an int of at least 2"),
        (SMC(ess=1.0), "ess must lie between 0 and 1"),
        (SMC(moves=0), "moves must be an int of at least 1"),
        (SMC(kernel=pg.NUTS()), "kernel must be pg.RandomWalk"),
        (SMC(kernel=pg.HMC(target_accept=2.0)), "target_accept must lie between"),
        (SMC(kernel=pg.HMC(backend="numpyro")), "backend='numpyro' of the kernel plays no part"),
        (SMC(kernel=pg.MALA(metric="diagonal")), "metric='diagonal' of the kernel plays no part"),
        (SMC(waste_free=2), "waste_free must be an int of at least 3"),
        (SMC(particles=100, waste_free=16), "particles must be a multiple of waste_free=16.*particles=96"),
        (SMC(schedule=[0.5, 0.2, 1.0]), "schedule must increase from above 0 to 1"),
        (SMC(schedule=[0.0, 1.0]), "schedule must increase from above 0 to 1"),
        (SMC(schedule=[0.5, 0.9]), "schedule must increase from above 0 to 1"),
        (SMC(schedule=[1.0], path=DataTempering()), "Leave one of them out"),
        (SMC(path="data"), "path must be a pg.DataTempering"),
        (SMC(resampling="systematic"), "resampling must be a resampling scheme"),
        (SMC(backend="numpyro"), "does not serve SMC"),
    ],
)
def test_settings_are_checked(method, message):
    with pytest.raises(pg.MethodError, match=message):
        pg.infer(ORACLES["normal_mean"].model, method)


def test_data_tempering_needs_observations_along_one_axis():
    with pytest.raises(pg.MethodError, match="batch must be an int of at least 1"):
        DataTempering(batch=0)
    method = SMC(path=DataTempering())
    with pytest.raises(pg.MethodError, match=r"'like' is a numpyro.factor"):
        pg.infer(pg.Model(half, {"y": 0.3}), method)
    with pytest.raises(pg.MethodError, match="'y' is one observation"):
        pg.infer(pg.Model(impossible, {"y": 0.3}), method)

    def uneven(y, z):
        b = numpyro.sample("b", dist.Normal())
        with numpyro.plate("short", 2):
            numpyro.sample("y", dist.Normal(b, 1), obs=y)
        with numpyro.plate("long", 3):
            numpyro.sample("z", dist.Normal(b, 1), obs=z)

    with pytest.raises(pg.MethodError, match="the same number of observations"):
        pg.infer(pg.Model(uneven, {"y": np.zeros(2), "z": np.zeros(3)}), method)
