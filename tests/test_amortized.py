"""Amortized posteriors: how observations are read, what is learned, and how it is corrected."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.stats import multivariate_normal

import probgen as pg
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.mixture import fitted_mixture
from probgen.amortized.question import Question
from probgen.amortized.reading import Reading
from probgen.amortized.simulations import simulate_pairs
from probgen.amortized.task import exchangeable, observing, question_of, read
from probgen.program.bridged import BridgedDensity
from probgen.program.density import Density
from probgen.testing import assert_moments, assert_unbiased_evidence

ONE_STEP = pg.generative.Training(steps=1, batch=64, learning_rate=1e-9)
"""The linear prediction is made before the first step, and networks begin at zero: what is left is linear and Gaussian."""
TIMES = np.linspace(-1.0, 1.5, 6)


def gaussian(scale=1.0, x=None):
    """A Gaussian mean in three dimensions, of any scale."""
    theta = numpyro.sample("theta", dist.Normal(0.0, scale).expand([3]).to_event(1))
    numpyro.sample("x", dist.Normal(theta / scale, 0.7).to_event(1), obs=x)


def line(t, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", t.shape[0]):
        numpyro.sample("y", dist.Normal(level + slope * t, 0.5), obs=y)


def schools(y=None):
    with numpyro.plate("school", 5):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def trend(y=None):
    """Rows that differ by what the program knows of them, and no argument says."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(level * jnp.arange(5.0), 1.0), obs=y)


def walk(y=None):
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x + drift, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, 0.0, y, length=4)


def bounded(y=None):
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
    numpyro.sample("y", dist.Binomial(20, p), obs=y)


def structure(program, data=None):
    model, names = observing(pg.Model(program, data), None, jax.random.key(0))
    density = Density(model)
    from probgen.amortized.reading import reading_of

    made = simulate_pairs(jax.random.key(0), density, 64, names)
    return reading_of(model, names, exchangeable(density, names, made), ())


# -- reading -----------------------------------------------------------------------------------------------------------


def test_the_program_says_how_observations_are_read():
    rows = structure(line, {"t": TIMES}).rows
    assert [(g.name, g.count, g.ordered) for g in rows] == [("row", 6, False)]
    assert [f.name for f in rows[0].designs] == ["t"]
    assert [(g.name, g.ordered) for g in structure(walk).rows] == [("time", True)]
    for program in (schools, trend, gaussian):  # latent rows; rows of unlike laws; no rows
        assert structure(program).rows == ()


def running(t, y=None):
    """Rows that are alike only where no time differs from another."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(level * jnp.cumsum(t), 1.0), obs=y)


def ring(y=None, z=None):
    """Rows in a circle: each depends on the one before."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5):
        y = numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
        numpyro.sample("z", dist.Normal(jnp.roll(y, 1), 1.0), obs=z)


def test_what_is_alike_is_asked_of_simulations_and_not_of_the_data_at_hand():
    """Among equal numbers no order shows, and no design is made of zeros."""
    assert structure(trend, {"y": np.zeros(5)}).rows == ()
    assert structure(ring).rows == ()
    model, names = observing(pg.Model(running, {"t": np.zeros(5)}), None, jax.random.key(0))
    density = Density(model)
    made = simulate_pairs(jax.random.key(0), density, 64, names, lambda key: {"t": jax.random.normal(key, (5,))})
    assert exchangeable(density, names, made) == frozenset()


def crossed(y=None, z=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3):
        y = numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
    with numpyro.plate("row", 3, dim=-2), numpyro.plate("column", 5, dim=-1):
        numpyro.sample("z", dist.Normal(slope * y[:, None], 1.0), obs=z)


def test_rows_of_several_sites_stay_together():
    """As sets of their own, no one knew which value of one site belongs to which of the other."""
    reading = structure(crossed)
    assert [(g.name, [f.name for f in g.fields]) for g in reading.rows] == [("column", ["z"])]
    assert [f.name for f in reading.flat] == ["y"]


def test_what_is_packed_is_unpacked():
    reading = structure(line, {"t": TIMES})
    y = np.arange(6.0)
    y[2] = np.nan
    read = reading.unpack(reading.pack({"y": y[:4]}, {"t": TIMES[:4]}))
    np.testing.assert_array_equal(read.present[0], [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(read.rows_seen[0][:, 0], [1, 1, 0, 1, 0, 0])
    np.testing.assert_allclose(read.rows[0][:, 0], [0, 1, 0, 3, 0, 0])
    np.testing.assert_allclose(read.designs[0][:4, 0], TIMES[:4], rtol=1e-6)
    np.testing.assert_array_equal(reading.repack(read), reading.pack({"y": y[:4]}, {"t": TIMES[:4]}))


@pytest.fixture(scope="module")
def encoder():
    reading = structure(line, {"t": TIMES})
    encoder = ObservationEncoder(Question(reading, (), (), (), 0.3, (("row", 2),), 0, 0), width=16)
    rng = np.random.default_rng(0)
    packed = jnp.stack([reading.pack({"y": rng.normal(size=6)}, {"t": rng.normal(size=6)}) for _ in range(50)])
    return reading, encoder, encoder.build(jax.random.key(0)).adapted(packed)


def test_a_set_has_no_order_and_rows_that_are_missing_play_no_part(encoder):
    reading, config, net = encoder
    rng = np.random.default_rng(1)
    y, t, order = rng.normal(size=5), rng.normal(size=5), rng.permutation(5)
    embedded = net(reading.pack({"y": y}, {"t": t}))
    assert embedded.shape == (config.size,)
    np.testing.assert_allclose(net(reading.pack({"y": y[order]}, {"t": t[order]})), embedded, atol=2e-6)
    read = reading.unpack(reading.pack({"y": y}, {"t": t}))
    filled = jnp.where(read.present[0][:, None], read.rows[0], 7.0)
    from dataclasses import replace

    noisy = reading.repack(
        replace(read, rows=(filled,), designs=(jnp.where(read.present[0][:, None], read.designs[0], 9.0),))
    )
    np.testing.assert_allclose(net(noisy), embedded, atol=2e-6)
    assert np.abs(net(reading.pack({"y": y + 0.5}, {"t": t})) - embedded).max() > 1e-3


def test_hidden_rows_are_as_few_as_they_may_be(encoder):
    reading, config, _ = encoder
    packed = reading.pack({"y": jnp.arange(6.0)}, {"t": jnp.arange(6.0)})
    hidden = jax.vmap(lambda k: config.hide(k, packed))(jax.random.split(jax.random.key(0), 400))
    read = jax.vmap(reading.unpack)(hidden)
    counts = np.asarray(read.present[0].sum(1))
    assert set(counts) == {2, 3, 4, 5, 6}
    assert not np.asarray(read.rows_seen[0][..., 0] & ~read.present[0]).any()
    assert 0.02 < 1 - read.rows_seen[0][..., 0].sum() / counts.sum() < 0.3


# -- what is learned ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return pg.amortize(pg.Model(gaussian), ["x"], pg.NPE(count=2, width=16, training=ONE_STEP), 4000, seed=1)


OBSERVED = np.array([0.5, -1.0, 2.0])
MEAN, VARIANCE = OBSERVED / 1.49, 0.49 / 1.49


def test_what_is_linear_and_gaussian_is_there_before_training(fitted):
    """The conjugate posterior, but for the noise of a regression on 4,000 simulations and the arcsinh of the data."""
    tree = pg.infer(pg.Model(gaussian, {"x": OBSERVED}), fitted, draws=4000, chains=1, seed=0)
    draws = tree.posterior.theta.values[0]
    sd = np.sqrt(VARIANCE)
    assert np.abs(draws.mean(0) - MEAN).max() < 0.35 * sd
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.15)
    assert tree.attrs["pareto_k"] < 0.5


def test_the_density_is_that_of_the_draws(fitted):
    """Change of variables: the density along the map from noise, by its Jacobian."""
    model = pg.Model(gaussian, {"x": OBSERVED})
    law = fitted.given(Density(observing(model, None, jax.random.key(0))[0]))
    z = jax.random.normal(jax.random.key(3), (5, 3))
    jacobian = jax.vmap(jax.jacfwd(law.noise_map))(z)
    expected = multivariate_normal(np.zeros(3)).logpdf(z) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(law.log_prob(jax.vmap(law.noise_map)(z)), expected, atol=2e-4)


@pytest.mark.slow
def test_parameters_may_have_any_scale():
    """The same data and noise give the same draws in units of the prior."""
    how = pg.NPE(count=2, width=16, training=pg.generative.Training(steps=30, batch=64))
    found = []
    for scale in (1.0, 1e6):
        fitted = pg.amortize(pg.Model(gaussian, {"scale": scale}), ["x"], how, 1000, seed=2)
        tree = pg.infer(pg.Model(gaussian, {"scale": scale, "x": OBSERVED}), fitted, draws=50, chains=1)
        found.append(tree.posterior.theta.values / scale)
    np.testing.assert_allclose(found[0], found[1], rtol=2e-2, atol=2e-3)


@pytest.mark.filterwarnings("ignore")
def test_no_draw_leaves_the_support():
    fitted = pg.amortize(pg.Model(bounded), ["y"], pg.NPE(count=1, width=8, training=ONE_STEP), 500)
    p = pg.infer(pg.Model(bounded, {"y": 20}), fitted, draws=500, chains=2).posterior.p.values
    assert p.shape == (2, 500)
    assert np.all((p > 0) & (p < 1))


def test_a_saved_posterior_gives_the_same_draws(fitted, tmp_path):
    fitted.save(tmp_path / "posterior")
    model = pg.Model(gaussian, {"x": OBSERVED})
    again = pg.amortized.load(tmp_path / "posterior")
    assert repr(again) == repr(fitted)
    assert "estimator=NPE," in repr(fitted)
    trees = [pg.infer(model, method, draws=20, chains=1, seed=5) for method in (fitted, again)]
    np.testing.assert_array_equal(trees[0].posterior.theta, trees[1].posterior.theta)
    other = pg.generative.fit(pg.generative.Flow(count=1, width=8), np.eye(3), training=ONE_STEP)
    pg.generative.save(other, tmp_path / "flow")
    with pytest.raises(pg.StoreError, match="no amortized posterior"):
        pg.amortized.load(tmp_path / "flow")


# -- correction --------------------------------------------------------------------------------------------------------


def test_importance_sampling_corrects_draws_and_evidence(fitted):
    """Against the conjugate posterior and evidence, over repetitions."""
    model = pg.Model(gaussian, {"x": OBSERVED})
    trees = [pg.infer(model, pg.ImportanceSampling(fitted), draws=1500, chains=1, seed=i) for i in range(24)]
    draws = np.stack([tree.posterior.theta.values[0] for tree in trees])
    assert_moments(draws, MEAN, VARIANCE * np.eye(3), detects=0.12)
    exact = multivariate_normal(np.zeros(3), 1.49 * np.eye(3)).logpdf(OBSERVED)
    assert_unbiased_evidence([tree.attrs["log_evidence"] for tree in trees], exact, detects=0.05)
    assert all(tree.attrs["correction"].startswith("importance") for tree in trees)


@pytest.mark.filterwarnings("error:.*requested dtype")
def test_particles_correct_in_32_bits(fitted):
    """Nothing asks for 64-bit numbers that are not there."""
    with jax.enable_x64(False):
        method = pg.ImportanceSampling(fitted, always_move=True, correct=pg.SMC(particles=512, kernel=pg.RandomWalk()))
        tree = pg.infer(pg.Model(gaussian, {"x": OBSERVED}), method, draws=100, chains=1)
    exact = multivariate_normal(np.zeros(3), 1.49 * np.eye(3)).logpdf(OBSERVED)
    assert abs(tree.attrs["log_evidence"] - exact) < 0.5


def test_a_mixture_may_have_any_scale():
    """The same draws in other units give the same mixture in those units."""
    u = jax.random.normal(jax.random.key(0), (300, 2)) @ jnp.array([[1.0, 0.5], [0.0, 0.2]])
    tiny, one = (fitted_mixture(jax.random.key(1), scale * u, 4) for scale in (1e-6, 1.0))
    found, expected = tiny.log_prob(1e-6 * u[:20]) + 2 * np.log(1e-6), one.log_prob(u[:20])
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_bridge_ends_at_the_posterior_and_begins_at_the_proposal(fitted):
    model = observing(pg.Model(gaussian, {"x": OBSERVED}), None, jax.random.key(0))[0]
    density = Density(model)
    law = fitted.given(density)
    bridge, u = BridgedDensity(density, law), jnp.array([0.3, -0.2, 1.0])
    np.testing.assert_allclose(bridge.log_density(u), density.log_density(u), rtol=1e-6)
    np.testing.assert_allclose(bridge.log_density(u, 0.0), law.log_prob(u), rtol=1e-6)


def test_a_mixture_has_the_density_of_its_draws():
    """E_q[f / q] = 1 for a normalised f within its support, and the moments of what it was fitted to."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, 2000)
    u = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.normal(size=(2000, 2)))
    mixture = jax.jit(fitted_mixture, static_argnums=2)(jax.random.key(0), u, 10)
    keys = jax.random.split(jax.random.key(1), 32)
    drawn = jax.jit(jax.vmap(lambda k: mixture.sample(k, (2000,))))(keys)
    f = multivariate_normal([0.0, 0.6], 0.09 * np.eye(2))
    ratios = np.exp(f.logpdf(drawn) - np.asarray(jax.jit(lambda u: mixture.log_prob(u))(drawn))).mean(1)
    z = (ratios.mean() - 1) / (ratios.std(ddof=1) / np.sqrt(32))
    assert abs(z) < 5
    outside = np.abs(np.linalg.norm(drawn.reshape(-1, 2), axis=1) - 1) > 0.3
    assert outside.mean() < 0.25  # it follows the crescent


# -- errors ------------------------------------------------------------------------------------------------------------


def test_other_questions_are_refused(fitted):
    with pytest.raises(pg.MethodError, match="parameters level, slope"):
        pg.infer(pg.Model(line, {"t": TIMES, "y": TIMES}), fitted)
    with pytest.raises(pg.MethodError, match="argument 'scale'"):
        pg.infer(pg.Model(gaussian, {"scale": 2.0, "x": OBSERVED}), pg_with_scale())

    with pytest.raises(pg.MethodError, match="'scale' is given"):
        pg.infer(pg.Model(gaussian, {"scale": 2.0, "x": OBSERVED}), fitted)
    assert pg.infer(pg.Model(gaussian, {"scale": 1.0, "x": OBSERVED}), fitted, draws=2, chains=1).attrs["pareto_k"]


def asked(program, data, observed):
    """What is answered by a posterior of a program with data."""
    model, names = observing(pg.Model(program, data), observed, jax.random.key(0))
    density = Density(model)
    made = simulate_pairs(jax.random.key(0), density, 64, names)
    reading, _ = read(density, made, names, exchangeable(density, names, made))
    return question_of(density, reading, made, 0.0, {"row": 2} if reading.rows else {})


def of(program, data):
    return Density(pg.Model(program, data))


def test_rows_of_a_design_that_did_not_vary_are_those_of_the_simulations():
    question, y = asked(line, {"t": TIMES}, ["y"]), np.zeros(6)
    question.observation(of(line, {"t": TIMES[::-1].copy(), "y": y}))
    question.observation(of(line, {"t": TIMES[[4, 1]], "y": y[:2]}))
    for t in (3 * TIMES, TIMES[[1, 1]]):
        with pytest.raises(pg.MethodError, match="'t' along 'row' did not vary"):
            question.observation(of(line, {"t": t, "y": y[: len(t)]}))


def test_interventions_and_defaults_are_part_of_the_question():
    def program(offset=0.0, heavy=False, y=None):
        theta = numpyro.sample("theta", dist.Normal(offset, 1.0))
        cause = numpyro.sample("cause", dist.Normal(0.0, 1.0))
        numpyro.sample("y", (dist.Laplace if heavy else dist.Normal)(theta + cause, 1.0), obs=y)

    model, names = observing(pg.Model(program).do(cause=1.0), ["y"], jax.random.key(0))
    made = simulate_pairs(jax.random.key(0), Density(model), 8, names)
    question = question_of(Density(model), read(Density(model), made, names, frozenset())[0], made, 0.0, {})
    question.observation(Density(pg.Model(program, {"y": 0.0, "heavy": False}).do(cause=1.0)))
    for data, cause, message in (
        ({}, 2.0, "do.cause"),
        ({"offset": 3.0}, 1.0, "offset"),
        ({"heavy": True}, 1.0, "heavy"),
    ):
        with pytest.raises(pg.MethodError, match=message):
            question.observation(Density(pg.Model(program, {"y": 0.0, **data}).do(cause=cause)))


def test_what_simulations_do_not_follow_is_refused():
    def tempered(y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=0.5):
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    for data in ({}, {"y": 1.0}):
        with pytest.raises(pg.MethodError, match="the likelihood of site 'y'"):
            pg.amortize(pg.Model(tempered, data), ["y"], simulations=50)

    def far(x=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(2.46e6 + 0.01 * theta, 1e-3), obs=x)

    with jax.enable_x64(True), pytest.raises(pg.DataError, match="resolve"):
        pg.amortize(pg.Model(far), ["x"], simulations=50)


def test_a_correction_that_begins_at_the_prior_is_refused(fitted):
    method = pg.ImportanceSampling(fitted, correct=pg.SMC(path=pg.DataTempering(1)))
    with pytest.raises(pg.MethodError, match="Leave path out"):
        pg.infer(pg.Model(gaussian, {"x": OBSERVED}), method)


def pg_with_scale():
    return pg.amortize(pg.Model(gaussian, {"scale": 1.0}), ["x"], pg.NPE(count=1, width=8, training=ONE_STEP), 200)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"observed": ["z"]}, pg.ModelError, "'z'"),
        ({"observed": "x"}, pg.MethodError, r"\['x'\]"),
        ({"simulations": 0}, pg.MethodError, "simulations"),
        ({"method": pg.NPE}, pg.MethodError, "NPE"),
        ({"method": pg.NUTS()}, pg.MethodError, "estimator"),
        ({"missing": 1.5}, pg.MethodError, "missing"),
        ({"fewest": {"row": 2}}, pg.MethodError, "row"),
        ({"design": lambda key: {"tt": 1.0}}, pg.MethodError, "'tt'"),
    ],
)
def test_mistakes_are_named(change, error, message):
    arguments = {"observed": ["x"], "simulations": 50, **change}
    with pytest.raises(error, match=message):
        pg.amortize(pg.Model(gaussian), **arguments)


def test_simulations_that_say_nothing_are_refused():
    def constant(x=None):
        numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.ones(2), 1e-30).to_event(1), obs=x)

    with pytest.raises(pg.DataError, match="same observations"):
        pg.amortize(pg.Model(constant), ["x"], simulations=50)

    def broken(x=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.log(theta - 10.0), 1.0), obs=x)

    with pytest.raises(pg.DataError, match="not finite in"):
        pg.amortize(pg.Model(broken), ["x"], simulations=50)

    def improper(x=None):
        theta = numpyro.sample("theta", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    with pytest.raises(pg.MethodError, match="improper"):
        pg.amortize(pg.Model(improper), ["x"], simulations=50)


def test_a_reading_refuses_what_it_cannot_hold():
    reading: Reading = structure(line, {"t": TIMES})
    with pytest.raises(pg.DataError, match="7 rows"):
        reading.pack({"y": np.zeros(7)}, {"t": np.zeros(7)})
    with pytest.raises(pg.DataError, match="as many"):
        reading.pack({"y": np.zeros(4)}, {"t": np.zeros(3)})
