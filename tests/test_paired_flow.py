"""Flows of given pairs: pairs made ahead against exact assignments, and a map that one step of Euler's rule gets right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import probgen.generative as pg
from probgen.base.errors import DataError, MethodError
from probgen.generative.family import Spec
from probgen.testing import assert_mean


def draws(count=40):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 2)), [1.0, 3.0] * rng.normal(size=(count, 2)), rng.integers(0, 2, (count, 1))


def rows_of(pairs, start):
    """Which start each datum has."""
    found = np.argmin(np.abs(np.asarray(pairs[:, 0])[:, None] - start).sum(-1), 1)
    np.testing.assert_array_equal(pairs[:, 0], start[found].astype(np.float32))
    return found


def test_pairs_are_optimal_within_each_batch_and_data_stay_in_order():
    start, x, _ = draws()
    pairs = pg.couple(pg.OptimalTransport(), start, x, batch=16)
    np.testing.assert_array_equal(pairs[:, 1], x.astype(np.float32))
    found = rows_of(pairs, start)
    standard = [(a - x.mean(0)) / x.std(0) for a in (start, x)]
    for first, last in ((0, 16), (16, 32), (32, 40)):
        cost = np.sum((standard[1][first:last, None] - standard[0][first:last]) ** 2, -1)
        np.testing.assert_array_equal(found[first:last] - first, linear_sum_assignment(cost)[1])


def test_conditions_go_with_their_data():
    start, x, label = draws()
    found = rows_of(pg.couple(pg.ConditionalOT(0.0), start, x, label, batch=20), start)
    np.testing.assert_array_equal(label[found], label)
    assert len(set(found)) == len(found)
    assert not np.array_equal(found, np.arange(40))


@pytest.fixture(scope="module")
def turned():
    """Pairs of a start and the same turned by half a right angle about (3, 0), a map with crossing lines."""
    rng = np.random.default_rng(1)
    start = rng.normal(size=(4096, 2))
    x = start @ (np.array([[1, 1], [-1, 1]]) / np.sqrt(2)) + [3.0, 0.0]
    flow = pg.FlowMatching(source=pg.Samples(start), width=32, depth=1, solver=pg.EulerSteps(1))
    training = pg.Training(steps=300, batch=128, learning_rate=1e-2, ema=0.95, block=100)
    return pg.fit(pg.PairedFlow(flow), np.stack([start, x], 1), training=training)


def test_a_flow_of_given_pairs_carries_each_start_to_its_datum(turned):
    start = np.random.default_rng(2).normal(size=(2000, 2))
    x = start @ (np.array([[1, 1], [-1, 1]]) / np.sqrt(2)) + [3.0, 0.0]
    found = np.asarray(jax.jit(lambda m, s: m.transport(s))(turned, jnp.asarray(start)))
    # At the starts nothing crosses, and the first slope leads to the datum; independent pairs would lead to the mean of
    # all data, sqrt(2) away.
    assert np.sqrt(np.mean(np.sum((found - x) ** 2, -1))) < 0.2
    assert turned.event_shape == (2,)
    drawn = jax.jit(lambda m, k: m.sample(k, (4000,)))(turned, jax.random.key(0))
    assert_mean(drawn, np.array([3.0, 0.0]), detects=0.25, tolerance=0.05)


def test_it_has_no_score_and_is_saved(turned, tmp_path):
    assert "score" not in turned.offers
    noise = pg.PairedFlow(pg.FlowMatching(width=8, depth=1))
    spec = Spec((2, 2))
    built = noise.distribution(noise.build(jax.random.key(0), spec), spec)
    assert "log_prob" in built.offers
    assert "score" not in built.offers
    pg.save(turned, tmp_path / "flow")
    again, start = pg.load(tmp_path / "flow"), jnp.array([0.3, -0.4])
    np.testing.assert_array_equal(again.transport(start), turned.transport(start))


def test_what_does_not_match_is_refused():
    start, x, label = draws()
    with pytest.raises(DataError, match=r"one row has shape \(3,\)"):
        pg.fit(pg.PairedFlow(), np.zeros((40, 3)))
    with pytest.raises(MethodError, match="its pairs are given"):
        pg.fit(pg.PairedFlow(pg.FlowMatching(coupling=pg.OptimalTransport())), np.stack([start, x], 1))
    with pytest.raises(DataError, match="one start for each"):
        pg.couple(pg.OptimalTransport(), start[:3], x)
    with pytest.raises(DataError, match="3 rows"):
        pg.couple(pg.ConditionalOT(), start, x, label[:3])
    with pytest.raises(MethodError, match="needs conditions"):
        pg.couple(pg.ConditionalOT(), start, x)
    with pytest.raises(MethodError, match="batch=0"):
        pg.couple(pg.OptimalTransport(), start, x, batch=0)
