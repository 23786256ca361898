"""Observations that lie outside the simulations are found, and those inside raise no alarm."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.question import Question
from probgen.amortized.reading import Field, Reading, Rows
from probgen.amortized.reference import Reference, judged
from probgen.testing import assert_proportion

QUICK = pg.NPE(count=1, width=8, training=pg.generative.Training(steps=1, batch=64, learning_rate=1e-9))
ROWS = 12


# -- the test by itself ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[3, 40])
def correlated(request):
    """A reference of correlated numbers, and what draws more of them."""
    rng = np.random.default_rng(request.param)
    mix = rng.normal(size=(request.param, request.param)) * np.geomspace(1, 1e3, request.param)
    reference = Reference(request.param, 5000).adapted(rng.normal(size=(4500, request.param)) @ mix)
    return reference, mix, rng


def test_the_p_value_is_uniform_for_data_of_the_model(correlated):
    """In ranks among 2250 / 2000 others, exactly; draws share the reference, whose own luck is within what is detected."""
    reference, mix, rng = correlated
    assert reference.count == 2000
    p = np.array([reference.p_value(rng.normal(size=len(mix)) @ mix) for _ in range(1500)])
    for level in (0.05, 0.5):
        assert_proportion(np.sum(p <= level), len(p), level, detects=0.12)
    assert p.min() >= 1 / 2001


def test_what_lies_outside_is_found_in_any_units(correlated):
    """Twelve standard deviations in the direction that varies least, and signs at four in all directions."""
    reference, mix, rng = correlated
    values, vectors = np.linalg.eigh(mix.T @ mix)
    shifted = rng.normal(size=len(mix)) @ mix + 12 * np.sqrt(values[0]) * vectors[:, 0]
    assert reference.p_value(shifted) < 0.02
    assert reference.p_value(4 * np.sign(rng.normal(size=len(mix))) @ mix) <= 1e-3


def test_small_references_say_nothing():
    assert Reference(2, 300).adapted(np.zeros((150, 2))).count == 0
    reference = Reference(2, 300).adapted(np.random.default_rng(0).normal(size=(270, 2)))
    assert reference.count == 135
    far = reference.p_value(jnp.array([40.0, 0.0]))
    assert far == 1 / 136
    with pytest.warns(pg.ProbgenWarning, match="outside the simulations"):
        judged(far, reference.count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judged(2 / 136, reference.count) == {"observation_p": 2 / 136}
        judged(7 * far, reference.count, rows=7)  # one of seven usual rows is as far off as this in 5 % of all cases
    with pytest.warns(pg.ProbgenWarning, match="outside the simulations"):
        judged(3 * far, reference.count, rows=3)


def test_references_of_very_many_numbers_stay_small():
    reference = Reference(5000, 10_000)
    assert reference.root.value.shape == (5000,)
    assert reference.points.value.size <= 2**21
    rng = np.random.default_rng(0)
    adapted = Reference(600, 600).adapted(rng.normal(size=(500, 600)) * 7.0)
    assert adapted.p_value(21.0 * rng.normal(size=600)) == 1 / 251
    assert adapted.p_value(7.0 * rng.normal(size=600)) > 0.01


# -- sets of rows ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchangeable():
    """The encoder of a set of 4 to 12 rows, whose common mean varies; adapted to 4500 simulations."""
    reading = Reading((), (Rows("row", ROWS, False, (Field("y", ()),), ()),))
    encoder = ObservationEncoder(Question(reading, (), (), (), 0.0, (("row", 4),), 5000, 0), width=8, depth=1)
    pack = jax.jit(jax.vmap(lambda y: reading.pack({"y": y}, {})))
    rng = np.random.default_rng(0)

    def draws(count, sd=1.0, shift=0.0, outlier=0.0):
        y = rng.normal(size=(count, 1)) + shift + sd * rng.normal(size=(count, ROWS))
        y[:, 0] += outlier
        hidden = jax.vmap(encoder.hide)(jax.random.split(jax.random.key(rng.integers(2**31)), count), pack(y))
        return hidden, pack(y)

    packed = draws(4500)[1]

    @jax.jit
    def made(packed):
        net = encoder.build(jax.random.key(0)).adapted(packed)
        return encoder.referenced(jax.random.key(1), net, packed)

    net = made(packed)
    usual = jax.jit(jax.vmap(net.usual))

    def p_values(packed):
        return np.array([net.reference.p_value(s) for s in usual(packed)])

    return draws, p_values


def test_false_alarms_are_as_rare_as_they_should_be(exchangeable):
    draws, p_values = exchangeable
    p = p_values(draws(1200)[0])  # of any number of rows
    assert_proportion(np.sum(p <= 0.1), len(p), 0.1, detects=0.08)
    assert np.sum(p <= 1e-3) <= 8  # one is expected; more than eight have the probability 2e-6


@pytest.mark.parametrize("planted", [{"shift": 9.0}, {"sd": 4.0}, {"outlier": 40.0}, {"sd": 0.05}])
def test_planted_misspecification_of_rows_is_found(exchangeable, planted):
    """A mean that the prior never has, rows that are too wide, one bad row, rows that are too much alike."""
    draws, p_values = exchangeable
    found = p_values(draws(100, **planted)[1])
    assert np.mean(found <= 1e-3) > 0.8


# -- from end to end ---------------------------------------------------------------------------------------------------


def program(x=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, 0.5).to_event(1), obs=x)


@pytest.fixture(scope="module")
def fitted():
    return pg.amortize(pg.Model(program), ["x"], QUICK, 3000, seed=1)


def test_a_run_says_how_usual_its_observation_is(fitted, tmp_path):
    fitted.save(tmp_path / "posterior")
    kept = pg.amortized.load(tmp_path / "posterior")
    for method in (fitted, kept, pg.ImportanceSampling(kept)):
        for x, usual in (([0.5, -1.0], True), ([0.5, 9.0], False)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                tree = pg.infer(pg.Model(program, {"x": np.array(x)}), method, draws=50, chains=1)
            alarms = [w for w in caught if "outside the simulations" in str(w.message)]
            assert len(alarms) == (0 if usual else 1)
            assert 0.05 < tree.attrs["observation_p"] <= 1 if usual else tree.attrs["observation_p"] <= 1e-3
