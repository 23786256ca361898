"""The runner of Feynman-Kac models and the smoothers, on a linear-Gaussian chain whose law is one dense Gaussian."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from probgen.base.errors import MethodError
from probgen.base.keys import spread
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.feynman_kac.resampling import SSP, Killing, Multinomial, Residual, Stratified, Systematic
from probgen.feynman_kac.smc import History, Settings, advance, begin, smc
from probgen.feynman_kac.smoothing import backward_mcmc, backward_sample, fixed_lag, genealogy, two_filter
from probgen.feynman_kac.variance import Lineage
from probgen.infer.method import Plan
from probgen.infer.particle_runs import particle_runs
from probgen.run.store import Store
from probgen.testing import assert_mean, assert_unbiased_evidence

SCHEMES = [Systematic(), Stratified(), Residual(), Multinomial(), Killing(), SSP()]
A, Q, R = 0.8, 0.36, 0.2
Y = np.array([0.3, -0.9, 0.2, 1.4, 1.9, 0.1])
TIMES = len(Y)


def dense(y, a=A):
    """Mean, covariance and log evidence of the path of a stationary chain given what is seen of it."""
    lags = np.abs(np.subtract.outer(np.arange(len(y)), np.arange(len(y))))
    prior = Q / (1 - a**2) * a**lags
    seen = prior + R * np.eye(len(y))
    gain = np.linalg.solve(seen, prior).T
    return gain @ y, prior - gain @ prior, stats.multivariate_normal(np.zeros(len(y)), seen).logpdf(y)


MEAN, COVARIANCE, LOG_Z = dense(Y)


class Chain(FeynmanKac):
    """The bootstrap filter."""

    y: jax.Array
    a: jax.Array

    @property
    def steps(self):
        return self.y.shape[0] - 1

    def potential(self, t, x):
        return jax.scipy.stats.norm.logpdf(self.y[t], x, math.sqrt(R))

    def init(self, key):
        x = jnp.sqrt(Q / (1 - self.a**2)) * jax.random.normal(key)
        return x, self.potential(0, x)

    def step(self, key, t, x, context):
        x = self.a * x + math.sqrt(Q) * jax.random.normal(key)
        return x, self.potential(t, x)

    def log_transition(self, t, x_prev, x):
        return jax.scipy.stats.norm.logpdf(x, self.a * x_prev, math.sqrt(Q)) + self.potential(t, x)


class Auxiliary(Chain):
    """Looks ahead at the next observation, with a guess that is wrong by design."""

    def guess(self, t, x):
        return jax.scipy.stats.norm.logpdf(self.y[t], 0.7 * self.a * x, 1.0)

    def look_ahead(self, t, x, context):
        return self.guess(t, x)

    def step(self, key, t, x, context):
        new, log_g = super().step(key, t, x, context)
        return new, log_g - self.guess(t, x)


class WasteFree(Chain):
    """Three successors of each parent."""

    @property
    def offspring(self):
        return 3

    def step(self, key, t, x, context):
        return jax.vmap(lambda key: super(WasteFree, self).step(key, t, x, context))(jax.random.split(key, 3))


class Halting(Chain):
    """Ends when the context says so."""

    adaptive = True

    @property
    def steps(self):
        return 50

    def potential(self, t, x):
        return -0.5 * x**2

    def start(self):
        return jnp.zeros(())

    def prepare(self, key, t, cloud, context):
        return context + 0.25

    def finished(self, t, context):
        return context >= 1.0

    def report(self, cloud, context):
        return {"share": context}


@pytest.fixture(autouse=True)
def precise():
    with jax.enable_x64(True):
        yield


def chain(kind=Chain, y=Y):
    return kind(jnp.asarray(y), jnp.asarray(A))


@functools.partial(jax.jit, static_argnums=(1, 2))
def replicates(fk, settings, count):
    return jax.vmap(lambda key: smc(key, fk, settings))(jax.random.split(jax.random.key(11), count))


@pytest.mark.parametrize(
    "scheme",
    [s if isinstance(s, (Systematic, Multinomial, SSP)) else pytest.param(s, marks=pytest.mark.slow) for s in SCHEMES],
    ids=lambda s: type(s).__name__,
)
def test_evidence_is_unbiased_and_moments_are_those_of_the_filter(scheme):
    result = replicates(chain(), Settings(60, scheme, 0.7), 2000)
    z = np.exp(np.asarray(result.log_z) - LOG_Z)
    assert_mean(z, 1.0, detects=0.1)
    # The ratio estimator is biased; weighting the runs by their evidence makes it exact.
    w, x = np.exp(np.asarray(result.cloud.log_w)), np.asarray(result.cloud.x)
    mean, second = MEAN[-1], COVARIANCE[-1, -1] + MEAN[-1] ** 2
    assert_mean(z * (np.sum(w * x, 1) - mean), 0.0, detects=0.1)
    assert_mean(z * (np.sum(w * x**2, 1) - second), 0.0, detects=0.1)


@pytest.mark.parametrize("kind", [Auxiliary, WasteFree])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_evidence_is_unbiased_with_look_ahead_and_offspring(kind, threshold):
    result = replicates(chain(kind), Settings(60, Multinomial(), threshold), 2000)
    assert_unbiased_evidence(np.asarray(result.log_z), LOG_Z, detects=0.2)


def test_without_resampling_it_is_importance_sampling():
    result = replicates(chain(), Settings(500, ess_threshold=0.0), 400)
    assert_unbiased_evidence(np.asarray(result.log_z), LOG_Z, detects=0.4)
    assert not np.asarray(result.steps.resampled).any()


LONG = 2.0 * np.sin(np.arange(150) / 5.0) + np.random.default_rng(0).normal(0, 0.5, 150)


@pytest.mark.parametrize(
    "scheme", [Systematic(), pytest.param(Multinomial(), marks=pytest.mark.slow)], ids=lambda s: type(s).__name__
)
def test_variance_of_the_evidence_is_known_within_a_factor_of_two(scheme):
    for threshold in (0.5, 1.0):
        result = replicates(chain(y=LONG), Settings(600, scheme, threshold), 120)
        told, there = float(np.mean(result.log_z_variance)), float(np.var(result.log_z, ddof=1))
        # The sample variance of 120 runs has a standard deviation of 13 %.
        assert 0.5 < told / there < 2.0, (threshold, told, there)
        assert np.std(result.log_z_variance) < told


def test_variance_vanishes_where_there_is_none():
    result = smc(jax.random.key(0), chain(Halting, np.zeros(1)), Settings(100, ess_threshold=0.0))
    assert float(result.log_z_variance) > 0
    flat = replicates(Flat(), Settings(100, Systematic(), 1.0), 1)
    np.testing.assert_allclose(flat.log_z_variance, 0.0, atol=1e-12)
    np.testing.assert_allclose(flat.log_z, 0.0, atol=1e-12)


def test_resampling_without_weights_adds_no_variance():
    """Families of equal particles drift apart; on average that is what the scale takes out, exactly."""
    count, scheme = 50, Multinomial()

    def told(key):
        def step(lineage, key):
            ancestors = scheme(key, jnp.zeros(count), count)
            return lineage.resampled(ancestors, scheme.count_variance(jnp.zeros(count), count), 1), None

        lineage, _ = jax.lax.scan(step, Lineage.begin(count, jnp.zeros(()).dtype), jax.random.split(key, 10))
        return lineage.variance(jnp.zeros(count))

    variances = jax.vmap(told)(jax.random.split(jax.random.key(3), 2000))
    assert_mean(np.exp(-np.asarray(variances)), 1.0, detects=0.02)


class Flat(FeynmanKac):
    """All potentials are one."""

    @property
    def steps(self):
        return 5

    def init(self, key):
        return jax.random.normal(key), jnp.zeros(())

    def step(self, key, t, x, context):
        return x + jax.random.normal(key), jnp.zeros(())


class Backward(Chain):
    """The same chain in reverse: it is reversible. Its potentials come a step later than its particles."""

    def init(self, key):
        return jnp.sqrt(Q / (1 - self.a**2)) * jax.random.normal(key), jnp.zeros(())

    def look_ahead(self, t, x, context):
        return self.potential(self.steps - t + 1, x)

    def step(self, key, t, x, context):
        return self.a * x + math.sqrt(Q) * jax.random.normal(key), jnp.zeros(())


PATHS = {
    "genealogy": lambda key, fk, history: genealogy(key, history, 200),
    "backward": lambda key, fk, history: backward_sample(key, fk, history, 200),
    "mcmc": lambda key, fk, history: backward_mcmc(key, fk, history, 200, 3),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_have_the_law_of_the_smoother(name):
    @jax.jit
    def runs(keys, fk):
        def one(key):
            key_run, key_smooth = jax.random.split(key)
            result = smc(key_run, fk, Settings(200, history=True))
            paths = PATHS[name](key_smooth, fk, result.history())
            return jnp.exp(result.log_z - LOG_Z), paths

        return jax.vmap(one)(keys)

    z, paths = map(np.asarray, runs(jax.random.split(jax.random.key(3), 300), chain()))
    assert paths.shape == (300, 200, TIMES)
    # Weighted by the evidence estimates every one of them is exact, at any number of particles.
    assert_mean(z[:, None] * (paths.mean(1) - MEAN), np.zeros(TIMES), detects=0.1)
    centred = paths - MEAN
    products = np.einsum("rdi,rdj->rij", centred, centred) / 200
    assert_mean(z[:, None, None] * (products - COVARIANCE), np.zeros((TIMES, TIMES)), detects=0.1)


def test_fixed_lag_is_exact_at_full_lag_and_filters_at_lag_zero():
    result = smc(jax.random.key(5), chain(), Settings(4000, history=True))
    history = result.history()
    whole, none = fixed_lag(history, TIMES), fixed_lag(history, 0)
    np.testing.assert_allclose(none.log_w, history.log_w)
    np.testing.assert_array_equal(none.x, history.x)
    # At full lag these are the genealogies, weighted.
    line = np.arange(4000)
    for t in range(TIMES - 1, -1, -1):
        np.testing.assert_array_equal(whole.x[t], np.asarray(history.x)[t][line])
        line = np.asarray(history.ancestors)[t][line]
    np.testing.assert_allclose(whole.log_w, np.broadcast_to(history.log_w[-1], whole.log_w.shape))


def test_two_filters_meet():
    fk = chain()

    @jax.jit
    def runs(keys):
        def one(key):
            key_forward, key_backward = jax.random.split(key)
            settings = Settings(300, history=True)
            forward = smc(key_forward, fk, settings).history()
            back = smc(key_backward, chain(Backward), settings).history()
            back = History(*jax.tree.map(lambda leaf: leaf[::-1], tuple(back)))
            sd = jnp.sqrt(Q / (1 - A**2))
            return two_filter(fk, forward, back, lambda t, x: jax.scipy.stats.norm.logpdf(x, 0.0, sd))

        return jax.vmap(one)(keys)

    cloud = runs(jax.random.split(jax.random.key(8), 100))
    w, x = np.exp(np.asarray(cloud.log_w)), np.asarray(cloud.x)
    np.testing.assert_allclose(w.sum(-1), 1.0)
    mean = np.sum(w * x, -1)
    variance = np.sum(w * x**2, -1) - mean**2
    assert_mean(mean, MEAN[1:], detects=0.1, tolerance=0.01)  # a ratio, biased by about one part in 300
    assert_mean(variance, np.diag(COVARIANCE)[1:], detects=0.1, tolerance=0.01)


def test_derivative_of_the_evidence_is_unbiased():
    def z(a, key):
        return jnp.exp(smc(key, Chain(jnp.asarray(Y), a), Settings(100, gradient=True)).log_z - LOG_Z)

    slopes = jax.jit(jax.vmap(jax.grad(z), (None, 0)))(jnp.asarray(A), jax.random.split(jax.random.key(2), 3000))
    above, below = (dense(Y, A + h)[2] for h in (1e-5, -1e-5))
    assert_mean(np.asarray(slopes), (above - below) / 2e-5, detects=0.4)


def test_pieces_make_the_same_run():
    fk, settings, key = chain(), Settings(50, history=True), jax.random.key(4)
    whole = jax.jit(smc, static_argnums=2)(key, fk, settings)
    state, _ = jax.jit(begin, static_argnums=2)(key, fk, settings)
    piece = jax.jit(advance, static_argnums=(2, 5))
    parts = []
    for first, count in ((0, 2), (2, 1), (3, 4)):  # the last one is longer than what is left
        state, steps, taken = piece(key, fk, settings, state, first, count)
        parts.append(jax.tree.map(lambda leaf, taken=taken: leaf[: int(taken)], steps))
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole.steps)
    np.testing.assert_array_equal(state.cloud.x, whole.cloud.x)


def test_adaptive_models_end_when_they_have_finished():
    result = smc(jax.random.key(0), chain(Halting, np.zeros(1)), Settings(64))
    assert int(result.taken) == 4
    np.testing.assert_allclose(result.steps.numbers["share"][:4], [0.25, 0.5, 0.75, 1.0])
    many = replicates(chain(Halting, np.zeros(1)), Settings(64), 3)
    np.testing.assert_array_equal(many.taken, 4)


def test_dead_and_undefined_weights_show_in_the_evidence():
    impossible = chain(y=np.array([0.0, np.inf, 0.0]))
    result = smc(jax.random.key(0), impossible, Settings(20))
    assert float(result.log_z) == -np.inf
    assert float(result.steps.ess[0]) == 0
    assert np.isfinite(result.cloud.log_w).all()
    undefined = smc(jax.random.key(0), chain(y=np.array([0.0, np.nan, 0.0])), Settings(20))
    assert np.isnan(undefined.log_z)


def test_single_precision():
    with jax.enable_x64(False):
        fk = Chain(jnp.asarray(Y, jnp.float32), jnp.asarray(A, jnp.float32))
        result = smc(jax.random.key(0), fk, Settings(20_000))
        assert result.log_z.dtype == jnp.float32
        assert abs(float(result.log_z) - LOG_Z) < 5 * math.sqrt(float(result.log_z_variance))


def test_keys_of_particles_differ():
    keys = spread(jax.random.key(0), 1000)
    bits = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (4,)))(keys))
    assert len(np.unique(bits)) > 3990
    noise = np.asarray(jax.vmap(jax.random.normal)(spread(jax.random.key(1), 20_000)))
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 5 / math.sqrt(20_000)
    other = spread(jax.random.key(0, impl="rbg"), 5)
    assert len(np.unique(np.asarray(jax.random.key_data(other)), axis=0)) == 5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(1), "particles must be an int of at least 2, got 1"),
        (Settings(10.0), "particles must be an int"),
        (Settings(10, "systematic"), "resampling must be a resampling scheme, got 'systematic'"),
        (Settings(10, ess_threshold=1.5), "ess_threshold is a share of the particles"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(MethodError, match=says):
        settings.check()


# -- on the driver ---------------------------------------------------------------------------------------------------


def plan(store=None, chains=3):
    return Plan(draws=10, warmup=0, chains=chains, store=store)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a), jax.tree.leaves(b))


@pytest.mark.parametrize("kind", [Chain, Halting])
def test_a_run_that_was_interrupted_goes_on_to_the_same_end(tmp_path, kind, monkeypatch):
    fk, settings, key = chain(kind), Settings(40, history=True), jax.random.key(9)
    straight = particle_runs(key, fk, settings, plan())
    assert len(straight.results) == 3
    assert not np.array_equal(straight.results[0].cloud.x, straight.results[1].cloud.x)

    from probgen.infer import particle_runs as module

    calls = []
    work = module._Run.work

    def stops(self, first, last):
        calls.append(first)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return work(self, first, last)

    monkeypatch.setattr(module._Run, "work", stops)
    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "run.zarr", {"a": "b"}) as store:
        particle_runs(key, fk, settings, plan(store))
    monkeypatch.undo()
    with Store(tmp_path / "run.zarr", {"a": "b"}) as store:
        assert store.saved("particles-0").meta["cuts"][-1] > 0
        resumed = particle_runs(key, fk, settings, plan(store))
        again = particle_runs(key, fk, settings, plan(store))
    for one, two, three in zip(straight.results, resumed.results, again.results, strict=True):
        same(one, two)
        same(one, three)


def test_records_and_evidence_of_several_runs():
    fk = chain()
    runs = particle_runs(jax.random.key(1), fk, Settings(2000), plan(chains=4))
    attrs, group = runs.attributes(), runs.group()
    assert abs(attrs["log_evidence"] - LOG_Z) < 5 * attrs["log_evidence_se"]
    assert attrs["log_evidence"] == pytest.approx(np.log(np.mean(np.exp(runs.log_z))))
    dims, ess = group["ess"]
    assert dims == ("chain", "step")
    assert ess.shape == (4, TIMES)
    assert (ess > 1).all()
    assert (ess <= 2000).all()
    np.testing.assert_array_equal(group["log_evidence"][1][:, -1], runs.log_z)
    blind = particle_runs(jax.random.key(1), fk, Settings(2000, variance=False), plan(chains=4))
    assert 0.2 < blind.attributes()["log_evidence_se"] / attrs["log_evidence_se"] < 5
