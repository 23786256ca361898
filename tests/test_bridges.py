"""Bridges between laws: phase space, entropic plans, conditional transport, sliced flows, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import probgen.generative as pg
from probgen.base.errors import DataError, MethodError
from probgen.generative import snapshot_bridge
from probgen.generative.family import Spec
from probgen.testing import assert_mean, assert_moments

# -- phase space -----------------------------------------------------------------------------------------------------


def test_a_step_in_phase_space_is_the_bridge_of_integrated_brownian_motion():
    """By conditioning the joint Gaussian of position, velocity and the position at the end."""
    g, t, s = 1.3, 0.7, 0.3
    h = t - s

    def noise(h):
        return g**2 * np.array([[h**3 / 3, h**2 / 2], [h**2 / 2, h]])

    moved, last = np.array([[1, h], [0, 1]]), np.array([1, s])
    across = noise(h) @ last
    whole = last @ noise(h) @ last + noise(s)[0, 0]
    keep, pull, covariance = pg.phase_step(g, jnp.asarray(t), jnp.asarray(s))
    np.testing.assert_allclose(whole, g**2 * t**3 / 3)
    np.testing.assert_allclose(pull, across / whole)
    np.testing.assert_allclose(keep, moved - np.outer(across, last @ moved) / whole)
    np.testing.assert_allclose(covariance, noise(h) - np.outer(across, across) / whole)
    # Two steps are one, and the end is the datum.
    first, then = pg.phase_step(g, jnp.asarray(t), jnp.asarray(0.5)), pg.phase_step(g, jnp.asarray(0.5), jnp.asarray(s))
    np.testing.assert_allclose(then[0] @ first[0], keep, atol=1e-12)
    np.testing.assert_allclose(then[0] @ first[1] + then[1], pull)
    np.testing.assert_allclose(then[0] @ first[2] @ then[0].T + then[2], covariance, atol=1e-12)
    keep, pull, covariance = pg.phase_step(g, jnp.asarray(t), jnp.asarray(0.0))
    np.testing.assert_allclose([*keep[0], pull[0], covariance[0, 0]], [0, 0, 1, 0], atol=1e-12)


def untrained(**settings):
    """For data N(2, 9) a network that says nothing is exact: the rest of the prediction is the best linear one."""
    family = pg.PhaseBridge(width=8, depth=1, **settings)
    spec = Spec((1,))
    data = jnp.asarray(norm.ppf((np.arange(1000) + 0.5) / 1000)[:, None])
    data = 2 + 3 * (data - data.mean()) / data.std()
    net = family.adapt(jax.random.key(0), family.build(jax.random.key(1), spec), data, None)
    return family.distribution(net, spec)


def test_the_end_is_predicted_early_and_few_steps_hit_the_data():
    """The exact predictions are linear in the noise, so the deviation of the end is the length of its slope."""
    noise = jnp.asarray([[[0.0], [0.0]], [[1.0], [0.0]], [[0.0], [1.0]]])

    def slopes(steps):
        """Of all predictions on the way, in standard units, shape ``(steps + 1, 2)``."""
        model = untrained(steps=steps, stop=0.01)
        ends = np.asarray(jax.jit(jax.vmap(lambda z: model.predictions(z)[1]))(noise))[..., 0]
        np.testing.assert_allclose(ends[0], 2.0, atol=1e-6)
        return (ends[1:] - ends[0]).T / 3

    few, many = slopes(5), slopes(80)
    assert abs(np.linalg.norm(few[-1]) - 1) < 0.1
    # What is left is the blur at the time at which it stops.
    assert abs(np.linalg.norm(many[-1]) - 1) < 0.005
    # Half way the prediction explains most of the end: the velocity shows where it goes.
    assert many[40] @ many[-1] / np.linalg.norm(many[40]) / np.linalg.norm(many[-1]) > 0.9


@pytest.mark.slow
def test_both_equations_have_the_same_end():
    model = untrained(stop=0.02).using(steps=60, stochastic=True)
    assert "noise_map" not in model.offers
    draws = jax.jit(lambda m, k: m.sample(k, (24, 300)))(model, jax.random.key(0))
    # Plugging in the mean of the datum loses variance: 3 % at 60 steps.
    assert_mean(draws.mean(1)[:, 0], 2.0, detects=0.4)
    assert_mean(draws.std(1)[:, 0] / 3, 1.0, detects=0.12, tolerance=0.05)


@pytest.mark.slow
def test_a_learned_phase_bridge_draws_two_modes():
    rng = np.random.default_rng(0)
    x = rng.choice([-2.0, 2.0], (6000, 1), p=[0.3, 0.7]) + 0.3 * rng.normal(size=(6000, 1))
    family = pg.PhaseBridge(width=32, depth=2, steps=20)
    model = pg.fit(family, x, training=pg.Training(steps=800, batch=256, learning_rate=5e-3, block=400))
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (24, 200)))(model, jax.random.key(0)))[..., 0]
    assert_mean((draws > 0).mean(1), 0.7, detects=0.12, tolerance=0.05)
    assert np.mean(np.abs(np.abs(draws) - 2) < 1.0) > 0.95


# -- entropic plans --------------------------------------------------------------------------------------------------


def test_the_plan_of_no_potential_is_noise_around_the_start():
    """The moves are exact for f = 0, whatever rho: y ~ N(x, epsilon) in standard units."""
    family = pg.EntropicTransport(epsilon=0.5, moves=3, rho=0.6, width=8)
    model = family.distribution(family.build(jax.random.key(0), Spec((2,))), Spec((2,)))
    start = jnp.full((24, 400, 2), 1.5)
    ends = jax.jit(lambda m, k, s: m.transport(k, s))(model, jax.random.key(1), start)
    assert_moments(ends, [1.5, 1.5], 0.5 * np.eye(2), detects=0.2)


@pytest.mark.slow
def test_the_learned_plan_between_gaussians_is_the_closed_form():
    """Energies trained with Langevin moves: the second marginal, and the covariance of start and end."""
    rng = np.random.default_rng(0)
    x, y, epsilon = rng.normal(2.0, 1.0, (5000, 1)), rng.normal(1.0, 0.7, (5000, 1)), 0.5
    family = pg.EntropicTransport(source=pg.Samples(y), epsilon=epsilon, moves=25, width=32)
    model = pg.fit(family, x, training=pg.Training(steps=700, batch=256, learning_rate=5e-3, ema=0.98, block=350))
    begin = jnp.asarray(rng.normal(1.0, 0.7, (24, 400, 1)))
    end = np.asarray(jax.jit(lambda m, k, b: m.transport(k, b))(model, jax.random.key(0), begin))
    assert_mean(end.mean(1), 2.0, detects=0.25, tolerance=0.12)
    assert_mean(end.std(1), 1.0, detects=0.25, tolerance=0.12)
    exact = np.sqrt(0.49 + epsilon**2 / 4) - epsilon / 2
    assert_mean(np.mean((end - end.mean()) * (begin - 1), 1), exact, detects=0.2, tolerance=0.08)
    assert 0.7 - exact > 0.2  # the plan without regularisation


# -- conditional transport -------------------------------------------------------------------------------------------


def test_the_cost_there_and_back_is_that_of_gaussian_conditional_laws():
    """x ~ N(0, 1), y ~ N(m, s^2), d = (x - y)^2 / 2r: Bayes' rule gives y | x and x | y."""
    m, s, r = 1.0, 1.5, 0.8
    points = norm.ppf((np.arange(1500) + 0.5) / 1500)
    x, y = points, m + s * points
    squared = jnp.asarray((x[:, None] - y) ** 2)

    def exact(m, s):
        """E (x - y)^2 for x ~ N(0, 1) and y | x by Bayes."""
        precision = 1 / s**2 + 1 / r
        slope, shift = 1 / r / precision, m / s**2 / precision
        return (1 - slope) ** 2 + shift**2 + 1 / precision

    there = float(pg.conditional_transport_cost(squared, squared / (2 * r), 1.0))
    np.testing.assert_allclose(there, exact(m, s), rtol=5e-3)
    # The other way: data N(m, s^2) are at 0 after a shift, with prior N(-m, 1).
    precision = 1 + 1 / r
    slope = 1 / r / precision
    back = (1 - slope) ** 2 * s**2 + (m * (1 - slope)) ** 2 + 1 / precision
    np.testing.assert_allclose(float(pg.conditional_transport_cost(squared, squared / (2 * r), 0.0)), back, rtol=5e-3)
    both = float(pg.conditional_transport_cost(squared, squared / (2 * r)))
    np.testing.assert_allclose(both, (exact(m, s) + back) / 2, rtol=5e-3)


def test_the_cost_bounds_the_wasserstein_distance_where_the_marginals_are_right_only():
    points = norm.ppf((np.arange(400) + 0.5) / 400)
    x, y = points, 1.0 + 1.5 * points
    squared, wasserstein = jnp.asarray((x[:, None] - y) ** 2), np.mean((x - y) ** 2)
    independent = float(pg.conditional_transport_cost(squared, 0 * squared))
    assert independent > wasserstein
    same = jnp.asarray((x[:, None] - x) ** 2)
    assert float(pg.conditional_transport_cost(same, 5 * same)) > 0
    # A sharp navigator goes to nearest neighbours, which is less.
    assert float(pg.conditional_transport_cost(squared, 100 * squared)) < wasserstein


@pytest.mark.slow
def test_a_generator_trained_by_conditional_transport_covers_the_modes():
    rng = np.random.default_rng(0)
    means = 2.0 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    x = means[rng.integers(0, 4, 4000)] + 0.3 * rng.normal(size=(4000, 2))
    family = pg.ConditionalTransport(width=48, depth=2)
    model = pg.fit(family, x, training=pg.Training(steps=700, batch=128, learning_rate=3e-3, ema=0.99, block=350))
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(model, jax.random.key(0)))
    distance = np.linalg.norm(draws[:, None] - means, axis=-1)
    shares = np.bincount(np.argmin(distance, 1), minlength=4) / 2000
    assert shares.min() > 0.05
    # Noise of the same spread would have a quarter of its draws as near.
    assert np.mean(distance.min(1) < 1.2) > 0.6
    z = jnp.array([0.3, -0.2])
    np.testing.assert_allclose(model.noise_map(z), model.push(z))


# -- sliced flows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sliced():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(4000, 1))
    x = 1.0 + 2.0 * c + 0.7 * rng.normal(size=(4000, 1))
    return pg.fit(pg.SlicedFlow(steps=300, rate=0.3, levels=80), x, c, training=pg.Training(validation=0.0))


def test_a_sliced_flow_has_the_exact_conditional_of_a_gaussian(sliced):
    c = np.array([[-1.0], [0.0], [1.2]])
    draws = jax.jit(lambda m, k: m.sample(k, (24, 200)))(sliced.given(c), jax.random.key(0))
    for i, at in enumerate(c[:, 0]):
        # Partial moves: conditional means within 0.1, and deviations within 15 %, as measured.
        assert_mean(draws[:, :, i].mean(1), 1.0 + 2.0 * at, detects=0.3, tolerance=0.15)
        assert_mean(draws[:, :, i].std(1), 0.7, detects=0.3, tolerance=0.12)


def mmd(x, y):
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel of width 1."""

    def kernel(a, b):
        return np.exp(-np.sum((a[:, None] - b) ** 2, -1) / 2)

    def own(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return own(x) + own(y) - 2 * kernel(x, y).mean()


@pytest.mark.slow
def test_conditional_draws_are_close_to_the_conditional_in_mmd(sliced):
    """And far from the marginal, which is what a flow that ignores the condition would draw."""
    rng = np.random.default_rng(1)
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (800,)))(sliced.given([1.0]), jax.random.key(1)))
    exact = 3.0 + 0.7 * rng.normal(size=(800, 1))
    marginal = 1.0 + np.sqrt(4.49) * rng.normal(size=(800, 1))
    assert mmd(draws, exact) < 0.02 < 0.1 < mmd(draws, marginal)


def test_particles_and_new_points_are_moved_by_the_same_maps():
    """Without conditions, and in two dimensions: the moments of the data."""
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    x = rng.multivariate_normal([1.0, -1.0], covariance, 3000)
    model = pg.fit(pg.SlicedFlow(steps=60, rate=1.0, levels=60), x, training=pg.Training(validation=0.0))
    draws = jax.jit(lambda m, k: m.sample(k, (24, 200)))(model, jax.random.key(0))
    assert_moments(draws, [1.0, -1.0], covariance, detects=0.4, tolerance=0.08)


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_paths_between_pairs_are_those_of_the_reference_given_its_end():
    """For a linear drift: the exact conditional of Euler's chain, computed from its joint Gaussian law."""
    family = pg.SnapshotBridge(noise=0.6, times=(0.0, 1.0), steps=6)
    parameters = jnp.array([0.3, -0.8, 0.5, -0.2, 0.1, -0.4])
    shift, slope = np.array([0.3, -0.2]), np.array([[-0.8, 0.5], [0.1, -0.4]])
    begin, end, width = jnp.array([1.0, -0.5]), jnp.array([0.2, 0.9]), 1 / 6
    path = snapshot_bridge._reference(family, parameters, begin, jnp.asarray(1.0))
    means, covariances = [np.asarray(begin)], np.zeros((14, 14))
    for k in range(6):
        here, there = slice(2 * k, 2 * k + 2), slice(2 * k + 2, 2 * k + 4)
        move = np.eye(2) + width * slope
        means.append(means[-1] + width * (shift + slope @ means[-1]))
        covariances[there, : 2 * k + 2] = move @ covariances[here, : 2 * k + 2]
        covariances[: 2 * k + 2, there] = covariances[there, : 2 * k + 2].T
        covariances[there, there] = move @ covariances[here, here] @ move.T + 0.36 * width * np.eye(2)
    np.testing.assert_allclose(path.at, means)
    np.testing.assert_allclose(path.spread[0], covariances[12:, 12:])
    gain = covariances[6:8, 12:] @ np.linalg.inv(covariances[12:, 12:])
    mean = means[3] + gain @ (np.asarray(end) - means[6])
    covariance = covariances[6:8, 6:8] - gain @ covariances[12:, 6:8]

    @jax.jit
    def paths(keys):
        return jax.vmap(lambda k: snapshot_bridge._bridge(k, family, parameters, path, end, jnp.asarray(1.0)))(keys)

    states, increments = paths(jax.random.split(jax.random.key(0), 24 * 400))
    np.testing.assert_allclose(states[:, -1] + increments[:, -1], np.broadcast_to(end, (24 * 400, 2)))
    assert_moments(states[:, 3].reshape(24, 400, 2), mean, covariance, detects=0.2)


LOTKA_VOLTERRA = np.array([1.0, 0.4, 0.1, 0.4])


def snapshots(rng, count, times, noise):
    """Unpaired: each from runs of its own."""
    clouds = []
    for t in times:
        x = np.stack([rng.uniform(5, 5.5, count), rng.uniform(4, 4.5, count)], 1)
        for _ in range(round(t * 100)):
            u, v = x.T
            a, b, d, c = LOTKA_VOLTERRA
            x = x + 0.01 * np.stack([a * u - b * u * v, d * u * v - c * v], 1) + 0.1 * noise * rng.normal(size=x.shape)
        clouds.append(x)
    return np.stack(clouds, 1)


@pytest.fixture(scope="module")
def dynamics():
    times = tuple(0.7 * i for i in range(7))
    data = snapshots(np.random.default_rng(0), 100, times, 0.1)
    family = pg.SnapshotBridge(
        drift=pg.LotkaVolterra(), noise=0.1, times=times, particles=60, steps=12, refinements=6, iterations=20
    )
    return data, pg.fit(family, data, training=pg.Training(validation=0.0))


@pytest.mark.slow
def test_prey_and_predators_are_recovered_from_unpaired_snapshots(dynamics):
    data, model = dynamics
    # Of 60 samples per snapshot and steps of 0.06: within 12 %.
    np.testing.assert_allclose(model.parameters, LOTKA_VOLTERRA, rtol=0.12)
    # The first reference is Brownian motion, and refinement does better.
    first, last = (np.abs(model.trace[i] / LOTKA_VOLTERRA - 1).max() for i in (0, -1))
    assert last < 0.6 * first
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (300,)))(model, jax.random.key(0)))
    np.testing.assert_allclose(draws.mean(0), data.mean(0), rtol=0.1)


# -- errors and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        pg.PhaseBridge(width=8, depth=1, steps=2, stochastic=True),
        pg.EntropicTransport(source=pg.Samples(np.ones((4, 2))), moves=2, width=8),
        pg.ConditionalTransport(width=8),
        pg.SlicedFlow(steps=2, levels=4),
        pg.SnapshotBridge(drift=pg.LinearDrift(), times=(0.0, 2.0), steps=2, particles=3, refinements=1),
    ],
    ids=lambda f: type(f).__name__,
)
def test_what_is_saved_is_what_is_loaded(family, tmp_path):
    spec = Spec((2, 2) if isinstance(family, pg.SnapshotBridge) else (2,))
    net = jax.tree.map(lambda a: a + 0.1, family.build(jax.random.key(0), spec))
    model = family.distribution(net, spec)
    pg.save(model, tmp_path / "model")
    key = jax.random.key(0)
    np.testing.assert_array_equal(model.sample(key), pg.load(tmp_path / "model").sample(key))
    with pytest.raises(MethodError, match="no log_prob"):
        model.log_prob(jnp.zeros(spec.shape))


def test_settings_that_make_no_sense_are_refused():
    x = np.random.default_rng(0).normal(size=(64, 2))
    for family, text in (
        (pg.PhaseBridge(noise=0.0), "noise=0.0"),
        (pg.PhaseBridge(stop=1.0), "stop=1.0"),
        (pg.PhaseBridge(steps=0), "steps=0"),
        (pg.EntropicTransport(epsilon=-1.0), "epsilon=-1.0"),
        (pg.EntropicTransport(rho=1.0), "rho=1.0"),
        (pg.ConditionalTransport(share=2.0), "share=2.0"),
        (pg.SlicedFlow(rate=0.0), "rate=0.0"),
        (pg.SlicedFlow(levels=1), "levels=1"),
    ):
        with pytest.raises(MethodError, match=text):
            pg.fit(family, x)
    with pytest.raises(DataError, match="with 2 times"):
        pg.fit(pg.SnapshotBridge(), x)
    with pytest.raises(MethodError, match="expected at least two that rise"):
        pg.fit(pg.SnapshotBridge(times=(1.0, 0.0)), x[:, :, None])
    with pytest.raises(DataError, match="prey and predators"):
        pg.fit(pg.SnapshotBridge(drift=pg.LotkaVolterra()), x[:, :, None])
    for family in (pg.ConditionalTransport(), pg.EntropicTransport()):
        with pytest.raises(DataError, match="condition"):
            pg.fit(family, x, x)
