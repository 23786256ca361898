"""Learned likelihoods and ratios: what is independent, what is exact before training, and what is sampled."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal, norm

import probgen as pg
from probgen.amortized.learned_density import LearnedDensity
from probgen.amortized.learned_likelihood import parts_of
from probgen.amortized.nre import contrastive_loss
from probgen.amortized.reading import reading_of
from probgen.amortized.simulations import simulate_pairs
from probgen.amortized.task import exchangeable, observing
from probgen.feynman_kac.smc import smc as run
from probgen.generative import MixtureDensity, Training
from probgen.program.enumerated import density_of
from probgen.testing import assert_moments

ONE_STEP = Training(steps=1, batch=64, learning_rate=1e-9)
"""The linear prediction is made before the first step, and networks begin at zero: what is left is linear and Gaussian."""
SMALL = MixtureDensity(components=2, width=16, depth=1)
NOISE = 0.6
TIMES = np.linspace(-1.0, 1.5, 6)


def line(t, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("row", t.shape[0]):
        numpyro.sample("y", dist.Normal(level + slope * t, NOISE), obs=y)


def rows(count=6, y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("row", count if y is None else y.shape[0]):
        numpyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=y)


def vector(x=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, NOISE).to_event(1), obs=x)


def coin(y=None):
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    with numpyro.plate("row", 8):
        numpyro.sample("y", dist.Binomial(1, p), obs=y)  # a Bernoulli site has a law of its own


# -- what is independent -------------------------------------------------------------------------------------------------


def cut(program, data=None):
    model, names = observing(pg.Model(program, data), None, jax.random.key(0))
    density = density_of(model)
    made = simulate_pairs(jax.random.key(0), density, 64, names)
    return parts_of(density, reading_of(model, names, exchangeable(density, names, made), ()))


def chained(x=None, y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 4):
        x = numpyro.sample("x", dist.Normal(theta, 1.0), obs=x)
    total = numpyro.deterministic("total", x.sum())
    numpyro.sample("y", dist.Normal(total, 1.0), obs=y)


def switched(y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    side = numpyro.sample("side", dist.Bernoulli(0.5))
    with numpyro.plate("row", 4):
        numpyro.sample("y", dist.Normal(theta + 3.0 * side, 1.0), obs=y)


def two_plates(x=None, y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 4):
        numpyro.sample("x", dist.Normal(theta, 1.0), obs=x)
    with numpyro.plate("other", 3):
        numpyro.sample("y", dist.Normal(-theta, 1.0), obs=y)


def test_rows_are_parts_only_where_the_program_says_that_they_are_independent():
    assert cut(rows).factored == (True,)
    for program, size in ((chained, 5), (switched, 4)):  # tied by an observation, by a discrete site that is summed out
        assert not any(cut(program).factored), program
        assert cut(program).whole == size


@pytest.mark.slow
def test_plates_are_independent_of_one_another():
    assert cut(two_plates).factored == (True, True)
    assert cut(two_plates).whole == 0
    assert cut(line, {"t": TIMES}).factored == (True,)
    assert cut(vector).whole == 2


# -- exact before training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return pg.amortize(pg.Model(rows), ["y"], pg.NLE(family=SMALL, training=ONE_STEP), 2000, seed=1)


@pytest.mark.parametrize("count", [3, 6, 9])
def test_one_fit_serves_any_number_of_rows(fitted, count):
    """The log likelihood of rows, against that of the program. 12,000 pairs give the slope to 0.006 / sqrt(1), which
    counts once per row; two components lie a tenth of a deviation apart."""
    rng = np.random.default_rng(count)
    y = np.array([0.4, -0.8]) + NOISE * rng.normal(size=(count, 2))
    density = density_of(pg.Model(rows, {"y": y}))
    surrogate = fitted.surrogate(density)
    u = jnp.asarray(np.array([0.4, -0.8]) + 0.2 * rng.normal(size=(50, 2)))
    exact = jax.jit(jax.vmap(density.parts))(u)
    learned = jax.jit(jax.vmap(surrogate.parts))(u)
    np.testing.assert_allclose(learned[0], exact[0], rtol=1e-6)
    assert np.abs(np.asarray(learned[1] - exact[1])).max() < 0.1 * count


def test_the_posterior_is_the_conjugate_one(fitted):
    y = np.array([0.4, -0.8]) + NOISE * np.random.default_rng(0).normal(size=(6, 2))
    tree = pg.infer(pg.Model(rows, {"y": y}), fitted, draws=2000, chains=2, seed=0)
    precision = 1 + 6 / NOISE**2
    draws = tree.posterior.theta.values.reshape(-1, 2)
    z = (draws - y.sum(0) / NOISE**2 / precision) * math.sqrt(precision)
    # The slope of the mean is off by 0.01, so the mean by that times the data in deviations: 0.01 * 1 / 0.24.
    assert np.abs(z.mean(0)).max() < 0.15
    np.testing.assert_allclose(z.std(0), 1.0, atol=0.08)
    exact = multivariate_normal(np.zeros(6), NOISE**2 * np.eye(6) + 1.0)
    assert abs(tree.attrs["log_evidence"] - exact.logpdf(y.T).sum()) < 0.3
    assert tree.attrs["kind"] == "approximate"


def test_rows_that_are_missing_are_left_out(fitted):
    y = np.random.default_rng(0).normal(size=(6, 2))
    holes, law = y.copy(), fitted.law
    holes[4] = np.nan

    def at(y):
        reading = law.family.parts.reading
        return law.seen(law.family.parts, reading.unpack(reading.pack({"y": y}, {})))(jnp.array([0.3, 0.1]))

    np.testing.assert_allclose(at(holes), at(np.delete(y, 4, 0)), rtol=1e-5)
    assert abs(at(holes) - at(y)) > 0.1
    holes[4, 0] = 0.0
    with pytest.raises(pg.DataError, match="lack others"):
        at(holes)


@pytest.mark.slow
def test_arguments_of_a_row_stand_beside_the_parameters():
    """A slope that multiplies a time is not linear in both: it must be learned, from 6,000 rows."""

    def design(key):
        return {"t": jax.random.uniform(key, (6,), minval=-1.0, maxval=1.5)}

    how = pg.NLE(family=SMALL, training=Training(steps=300, batch=256, learning_rate=3e-3))
    designed = pg.amortize(pg.Model(line, {"t": TIMES}), ["y"], how, 1000, design=design)
    y = 0.2 + 1.3 * TIMES
    likelihood = designed.law.about(density_of(pg.Model(line, {"t": TIMES, "y": y})))
    centre, wrong = jax.jit(jax.vmap(lambda u: likelihood(u)))(jnp.array([[0.2, math.log(s)] for s in (1.3, 0.4)]))
    exact = [norm(0.2 + s * TIMES, NOISE).logpdf(y).sum() for s in (1.3, 0.4)]
    assert abs((centre - wrong) - (exact[0] - exact[1])) < 0.3 * (exact[0] - exact[1])


class Moon(dist.Distribution):
    """A thin half ring."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("centre",)

    def __init__(self, centre):
        self.centre = centre
        super().__init__(centre.shape[:-1], (2,))

    def sample(self, key, sample_shape=()):
        key_angle, key_radius = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        angle = jax.random.uniform(key_angle, shape, minval=-math.pi / 2, maxval=math.pi / 2)
        radius = 0.1 + 0.01 * jax.random.normal(key_radius, shape)
        return self.centre + radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    def log_prob(self, value):
        apart = value - self.centre
        radius = jnp.hypot(apart[..., 0], apart[..., 1])
        inside = jax.scipy.stats.norm.logpdf(radius, 0.1, 0.01) - jnp.log(radius) - math.log(math.pi)
        return jnp.where(apart[..., 0] > 0, inside, -jnp.inf)


def moons(x=None):
    u = numpyro.sample("u", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("x", Moon(jnp.stack([0.25 - jnp.abs(u.sum()) / 2**0.5, (u[1] - u[0]) / 2**0.5])), obs=x)


@pytest.mark.slow
def test_a_thin_half_ring_is_learned():
    """Two moons, from 10,000 simulations: the divergence of the learned law from the true one, over the prior, is below 0.1
    nats (measured: 0.04), where one Gaussian that is linear in the parameters lacks 4."""
    fitted = pg.amortize(pg.Model(moons), ["x"], pg.NLE(), 10_000)
    rng = np.random.default_rng(0)
    u = rng.uniform(-1, 1, (3000, 2))
    centre = np.stack([0.25 - np.abs(u.sum(1)) / 2**0.5, (u[:, 1] - u[:, 0]) / 2**0.5], 1)
    law = Moon(jnp.asarray(centre))
    x = law.sample(jax.random.key(5))
    learned = jax.jit(fitted.law.laws[0].given(jnp.asarray(np.log((1 + u) / (1 - u)))).log_prob)(x)
    lost = np.asarray(law.log_prob(x) - learned)
    assert lost.mean() < 0.1 + 4 * lost.std() / math.sqrt(len(lost))
    assert lost.mean() > -4 * lost.std() / math.sqrt(len(lost))


# -- in programs of one's own ----------------------------------------------------------------------------------------------


def test_the_likelihood_is_a_distribution_of_constrained_parameters(fitted):
    law, y = fitted.likelihood(pg.Model(rows)), jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    theta = jnp.array([0.4, -0.8])
    found, slope = jax.jit(jax.value_and_grad(lambda theta: law(theta=theta).log_prob(y)))(theta)
    np.testing.assert_allclose(found, fitted.law.about(density_of(pg.Model(rows, {"y": y})))(theta), rtol=1e-5)
    # The law of a mean of known noise: the slope is the sum of the residuals over the variance.
    np.testing.assert_allclose(slope, (y - theta).sum(0) / NOISE**2, rtol=0.05, atol=0.3)
    assert law(theta=theta).event_shape == (6, 2)
    assert law(theta=theta).sample(jax.random.key(0), (3,)).shape == (3, 6, 2)
    with pytest.raises(pg.MethodError, match=r"the parameters are .*theta"):
        law(level=0.2)


@pytest.mark.slow
def test_nuts_runs_on_it_in_a_program_and_as_sampler(fitted):
    y = np.array([0.4, -0.8]) + NOISE * np.random.default_rng(0).normal(size=(6, 2))
    law = fitted.likelihood(pg.Model(rows))

    def program(y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", law(theta=theta), obs=y)

    precision = 1 + 6 / NOISE**2
    for model, method in (
        (pg.Model(program, {"y": y}), pg.NUTS()),
        (pg.Model(rows, {"y": y}), fitted.with_sampler(pg.NUTS())),
    ):
        tree = pg.infer(model, method, draws=300, warmup=200, chains=2, seed=1)
        z = (tree.posterior.theta.values.reshape(-1, 2) - y.sum(0) / NOISE**2 / precision) * math.sqrt(precision)
        # 0.15 for the regression, as above, and 600 draws.
        assert np.abs(z.mean(0)).max() < 0.15 + 4 / math.sqrt(300)


@pytest.mark.slow
def test_integers_have_a_likelihood_in_proportion_to_their_probability():
    """Of one coin after training: ratios of probabilities at three values of p, in nats."""
    how = pg.NLE(family=MixtureDensity(components=2, width=32, depth=2), training=Training(steps=800, batch=256))
    fitted = pg.amortize(pg.Model(coin), ["y"], how, 2000)
    assert fitted.law.family.parts.factored == (True,)
    likelihood = fitted.law.about(density_of(pg.Model(coin, {"y": np.array([1, 1, 1, 0, 1, 1, 0, 0])})))
    p = np.array([0.25, 0.5, 0.75])
    learned = np.asarray(jax.vmap(likelihood)(jnp.asarray(np.log(p / (1 - p)))[:, None]))
    exact = 5 * np.log(p) + 3 * np.log(1 - p)
    # Eight rows, each to about 0.05.
    assert np.abs((learned - learned[1]) - (exact - exact[1])).max() < 0.4


# -- ratios ----------------------------------------------------------------------------------------------------------------

VARIANCE = 4 * NOISE**2 / (4 + NOISE**2)


@pytest.mark.slow
def test_an_exact_ratio_gives_the_posterior():
    """Without training: the log ratio in closed form, in the place of the likelihood."""
    x = jnp.array([0.7, -1.5])

    def ratio(u):
        evidence = jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, math.sqrt(4 + NOISE**2)))
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, u, NOISE)) - evidence

    density = LearnedDensity(density_of(pg.Model(vector, {"x": np.asarray(x)})), jax.tree_util.Partial(ratio))
    smc = pg.SMC(particles=500, kernel=pg.DifferentialEvolution(), moves=8)
    result = jax.jit(jax.vmap(lambda key: run(key, smc.feynman_kac(density), smc.settings())))(
        jax.random.split(jax.random.key(0), 40)
    )
    mean = np.asarray(x) * 4 / (4 + NOISE**2)
    assert_moments(result.cloud.x.point.u, mean, VARIANCE * np.eye(2), detects=0.15)
    # A ratio to the evidence has the evidence one.
    assert abs(np.log(np.exp(result.log_z).mean())) < 0.05


def test_the_loss_is_that_of_the_classifier():
    """Against the probabilities of the classes, written out."""
    h = np.random.default_rng(0).normal(size=(5, 4))
    gamma, count = 1.7, 3
    total = 0.0
    for row in h:
        away, with_it = gamma / count * np.exp(row[1:]), gamma / count * np.exp(row[:-1])
        total += -np.log(1 / (1 + away.sum())) / (1 + gamma)
        total += -gamma / (1 + gamma) * np.log(with_it[0] / (1 + with_it.sum()))
    np.testing.assert_allclose(contrastive_loss(jnp.asarray(h), gamma), total / 5, rtol=1e-6)


def test_the_exact_ratio_has_the_least_loss():
    """In one dimension, over scalings of the log ratio and a shift that a loss without class 0 would not see."""
    rng = np.random.default_rng(1)
    u = rng.normal(size=20_000)
    x = u + 0.5 * rng.normal(size=u.size)
    others = np.stack([np.roll(u, -i) for i in range(5)], 1)
    exact = norm(others, 0.5).logpdf(x[:, None]) - norm(0, math.sqrt(1.25)).logpdf(x)[:, None]
    losses = {
        (a, b): float(contrastive_loss(jnp.asarray(a * exact + b), 1.0))
        for a in (0.8, 1.0, 1.2)
        for b in (-0.3, 0.0, 0.3)
    }
    assert min(losses, key=losses.__getitem__) == (1.0, 0.0)


@pytest.fixture(scope="module")
def ratio():
    return pg.amortize(pg.Model(vector), ["x"], pg.NRE(width=8, depth=1, encoder_width=16, training=ONE_STEP), 2000)


def test_a_ratio_is_linear_gaussian_before_training(ratio):
    """At data within a deviation of the prior, where units are nearly linear: to half a nat, of more than four between
    the places that are compared."""
    x = np.array([0.5, -1.0])
    likelihood = ratio.law.about(density_of(pg.Model(vector, {"x": x})))
    here, there = jax.jit(jax.vmap(lambda u: likelihood(u)))(jnp.asarray([x, x + 3 * NOISE]))
    exact = norm(0, NOISE).logpdf(0) * 2 - norm(0, math.sqrt(4 + NOISE**2)).logpdf(x).sum()
    assert abs(here - exact) < 0.5
    assert here - there > 4


@pytest.mark.slow
def test_a_trained_ratio_is_near_the_exact_one():
    """In nats, over the joint law, where the log ratio is 2.5 on average: the mean to 0.1 and the root mean square to 0.6
    (measured: 0.42)."""
    fitted = pg.amortize(pg.Model(vector), ["x"], pg.NRE(training=Training(steps=1500, batch=256)), 5000)
    rng = np.random.default_rng(0)
    u = 2 * rng.normal(size=(400, 2))
    x = u + NOISE * rng.normal(size=(400, 2))
    packed = jax.vmap(lambda a: fitted.question.reading.pack({"x": a}, {}))(jnp.asarray(x))
    net = fitted.law.net
    learned = jax.jit(jax.vmap(lambda u, c: net.log_ratio(u, net.read(c))))(jnp.asarray(u, jnp.float32), packed)
    exact = norm(u, NOISE).logpdf(x).sum(1) - norm(0, math.sqrt(4 + NOISE**2)).logpdf(x).sum(1)
    error = np.asarray(learned) - exact
    assert abs(error.mean()) < 0.1
    assert math.sqrt((error**2).mean()) < 0.6


# -- kept, and mistakes ------------------------------------------------------------------------------------------------------


def test_what_was_saved_gives_the_same_likelihood(fitted, ratio, tmp_path):
    for name, method, program, data in (
        ("likelihood", fitted, rows, {"y": np.ones((4, 2))}),
        ("ratio", ratio, vector, {"x": np.ones(2)}),
    ):
        method.save(tmp_path / name)
        again = pg.amortized.load(tmp_path / name)
        assert repr(again) == repr(method)
        density, u = density_of(pg.Model(program, data)), jnp.array([0.3, -0.2])
        assert again.law.about(density)(u) == method.law.about(density)(u)


def test_mistakes_are_named(fitted, ratio):
    for method, message in (
        (pg.NLE(family=pg.generative.Diffusion()), "no exact density"),
        (pg.NLE(family="flow"), "family"),
        (pg.NLE(sampler="nuts"), "sampler"),
        (pg.NRE(contrasts=1), "contrasts"),
        (pg.NRE(contrasts=300), "one batch"),
        (pg.NRE(gamma=0.0), "gamma"),
    ):
        with pytest.raises(pg.MethodError, match=message):
            pg.amortize(pg.Model(vector), ["x"], method, 50)
    with pytest.raises(pg.MethodError, match="ratio was learned"):
        ratio.likelihood(pg.Model(vector))
    with pytest.raises(pg.MethodError, match="parameters"):
        pg.infer(pg.Model(line, {"t": TIMES, "y": TIMES}), fitted)
