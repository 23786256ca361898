"""Stochastic interpolants, Schroedinger bridges and the simplex, against Gaussian closed forms; training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from scipy.stats import norm

import probgen.generative as pg
from probgen.base.errors import DataError, MethodError
from probgen.generative.family import Spec
from probgen.testing import assert_mean, assert_moments

MEANS = np.array([[1.0, -2.0], [0.5, 1.0]])
A, B = np.array([[0.5, 0.2], [0.2, 1.0]]), np.array([[2.0, -0.7], [-0.7, 0.6]])
INDEPENDENT = np.stack([np.stack([A, 0 * A], 1), np.stack([0 * B, B], 1)])
X = jnp.array([0.3, -0.5])


def gaussian(interpolant):
    return pg.GaussianInterpolant(MEANS, INDEPENDENT, interpolant)


@pytest.mark.parametrize("interpolant", [pg.Straight(0.7), pg.Trigonometric()], ids=["straight", "trigonometric"])
def test_velocity_and_score_are_those_of_the_law_at_every_time(interpolant):
    field = gaussian(interpolant)

    def log_density(x, t):
        return multivariate_normal.logpdf(x, *field.moments(t))

    @jax.jit
    def at(t):
        velocity, push = jax.linearize(lambda x: field.velocity(x, t), X)
        divergence = jnp.trace(jax.vmap(push)(jnp.eye(2)))
        score, theta = field.score(X, t), jnp.arcsin(jnp.sqrt(t))
        slopes, passing = field.slopes(X, theta), jnp.sin(2 * theta)
        return (
            (score, jax.grad(log_density)(X, t)),
            (jax.grad(log_density, 1)(X, t), -divergence - velocity @ score),
            (slopes[0], velocity * passing),
            (slopes[1], score * passing),
        )

    for t in (0.02, 0.3, 0.5, 0.9):
        for found, expected in at(t):
            np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert all(np.isfinite(np.asarray(field.slopes(X, jnp.asarray(end)))).all() for end in (0.0, np.pi / 2))
    weights = [np.asarray(interpolant(t)) for t in (0.0, 1.0)]
    np.testing.assert_allclose(weights, [[1, 0, 0], [0, 1, 0]], atol=1e-15)


@pytest.fixture(scope="module")
def walk():
    """Paths of 24 x 600 particles from the exact source."""

    @jax.jit
    def paths(key, field, starts, epsilon):
        keys = jax.random.split(key, starts.shape[0])
        times, values = jax.vmap(lambda k, x: pg.interpolant_path(k, field, x, epsilon, 100))(keys, starts)
        return times[0], values

    def run(field, starts, epsilon):
        return paths(jax.random.key(1), field, starts, epsilon)

    return run


def starts(count):
    return jnp.asarray(np.random.default_rng(0).multivariate_normal(MEANS[1], B, count))


@pytest.mark.parametrize(
    "epsilon", [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.3, marks=pytest.mark.slow), 1.5]
)
def test_every_amount_of_noise_has_the_marginals_of_the_interpolant(walk, epsilon):
    field = gaussian(pg.Straight(0.7))
    times, values = walk(field, starts(24 * 600), epsilon)
    for i in (25, 50, 75, 100):
        mean, covariance = field.moments(times[i])
        # The error of 100 steps, by propagating the moments: at most 0.001 standard units.
        assert_moments(values[:, i].reshape(24, 600, 2), mean, covariance, detects=0.15, tolerance=0.002)
    if epsilon:
        # The paths do differ: noise makes the end forget the start.
        assert abs(np.corrcoef(values[:, 0, 0], values[:, -1, 0])[0, 1]) < 0.9


def test_a_schroedinger_bridge_has_the_entropic_plan(walk):
    """Between Gaussians the plan is known; the stochastic equation with half its noise has it as law of the ends."""
    epsilon = 0.8
    field = pg.GaussianInterpolant.bridge(MEANS, A, B, epsilon)
    across = field.covariances[0, :, 1]
    # It is the stationary point of the entropic problem: (A^-1 terms) P = S^-1 has off-diagonal block -1 / epsilon.
    whole = np.asarray(field.covariances).reshape(4, 4)
    np.testing.assert_allclose(np.linalg.inv(whole)[:2, 2:], -np.eye(2) / epsilon, atol=1e-10)
    np.testing.assert_allclose(whole[:2, :2], A)
    np.testing.assert_allclose(whole[2:, 2:], B)

    def covariances(noise):
        _, values = walk(field, starts(24 * 600), noise)
        ends = np.asarray(values)[:, [-1, 0]] - MEANS
        return np.einsum("rna,rnb->rab", *(ends[:, i].reshape(24, 600, 2) for i in (0, 1))) / 600

    assert_mean(covariances(epsilon / 2), across, detects=0.15, tolerance=0.01)
    other = covariances(0.0).mean(0)
    assert np.abs(other - across).max() > 0.15


# -- learned ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Two correlated numbers, from standard normal noise."""
    x = np.random.default_rng(0).multivariate_normal([1.0, -1.0], [[1.0, 0.8], [0.8, 1.0]], 8000)
    family = pg.StochasticInterpolant(width=32, depth=2, solver=pg.HeunSteps(16), steps=50)
    return pg.fit(family, x, training=pg.Training(steps=900, batch=256, learning_rate=5e-3, block=300))


def test_both_equations_of_a_learned_interpolant_draw_the_data(trained):
    for epsilon in (0.0, 0.5):
        model = trained.with_noise(epsilon)
        draws = jax.jit(lambda m, k: m.sample(k, (24, 300)))(model, jax.random.key(0))
        assert_moments(draws, [1.0, -1.0], [[1.0, 0.8], [0.8, 1.0]], detects=0.35, tolerance=0.12)
        assert ("log_prob" in model.offers) == (epsilon == 0)
    with pytest.raises(MethodError, match="no log_prob"):
        trained.with_noise(0.5).log_prob(jnp.zeros(2))
    with pytest.raises(MethodError, match="epsilon"):
        trained.with_noise(-1.0)


def test_the_density_of_a_learned_interpolant_is_that_of_its_noise_map(trained):
    """The change of variables along the ordinary equation, whatever was learned."""
    model = pg.LearnedInterpolant(
        pg.StochasticInterpolant(width=32, depth=2, solver=pg.AdaptiveSteps(1e-8), tolerance=1e-8),
        trained.spec,
        trained.net,
    )
    z = jnp.array([0.4, -0.3])
    x, slope = jax.jit(lambda z: (model.noise_map(z), jax.jacrev(model.noise_map)(z)))(z)
    expected = -np.log(2 * np.pi) - 0.5 * float(z @ z) - np.linalg.slogdet(slope)[1]
    np.testing.assert_allclose(jax.jit(model.log_prob)(x), expected, atol=1e-5)


@pytest.mark.slow
def test_a_learned_bridge_carries_samples_to_samples():
    """In one dimension, with the variance and the correlation of the ends of the exact bridge."""
    rng = np.random.default_rng(0)
    x, y, epsilon = rng.normal(2.0, 1.0, (6000, 1)), rng.normal(-1.0, 0.5, (6000, 1)), 0.5
    family = pg.schroedinger_bridge(epsilon, pg.Samples(y), width=32, depth=2, steps=50, iterations=20)
    model = pg.fit(family, x, training=pg.Training(steps=800, batch=128, learning_rate=5e-3, block=400))
    begin = jnp.asarray(rng.normal(-1.0, 0.5, (24, 600, 1)))
    end = jax.jit(lambda m, k, b: m.transport(k, b))(model, jax.random.key(0), begin)
    assert_mean(end.mean(1), 2.0, detects=0.22, tolerance=0.1)
    assert_mean(end.std(1), 1.0, detects=0.22, tolerance=0.1)
    exact = math.sqrt(0.25 + epsilon**2 / 4) - epsilon / 2
    across = np.mean((np.asarray(end) - 2) * (np.asarray(begin) + 1), 1)
    assert_mean(across, exact, detects=0.15, tolerance=0.06)
    assert 0.5 - exact > 0.15  # what the ordinary equation, or a plan without noise, would have
    assert "log_prob" not in model.offers


# -- the simplex -----------------------------------------------------------------------------------------------------


MANY = np.array([[-1.5, 0.0], [1.5, 0.0], [0.0, 0.3]])
SPREAD = np.array([np.diag([0.5, 0.5]), np.diag([0.7, 0.4]), np.diag([2.0, 2.0])])


def marginals():
    covariances = np.zeros((3, 2, 3, 2))
    for k in range(3):
        covariances[k, :, k] = SPREAD[k]
    return pg.GaussianMarginals(MANY, covariances)


def test_any_path_through_the_simplex_carries_every_law_to_every_other():
    """The continuity equation along a bent path, and the moments at its end."""
    field = marginals()
    path = pg.SimplexPath((0, 1), 3, jnp.asarray(np.random.default_rng(0).normal(size=(2, 3))))
    np.testing.assert_allclose([path(jnp.asarray(s)) for s in (0.0, 1.0)], np.eye(3)[:2], atol=1e-12)
    assert float(path(jnp.asarray(0.5))[2]) > 0.1
    assert all(float(path(jnp.asarray(s)).min()) >= 0 for s in (0.1, 0.5, 0.9))

    def log_density(x, s):
        weights = path(s)
        covariance = jnp.einsum("k,kalb,l->ab", weights, field.covariances, weights)
        return multivariate_normal.logpdf(x, weights @ field.means, covariance)

    @jax.jit
    def residual(s):
        velocity, push = jax.linearize(lambda x: field.velocity(x, s, path), X)
        divergence = jnp.trace(jax.vmap(push)(jnp.eye(2)))
        return jax.grad(log_density, 1)(X, s) + divergence + velocity @ jax.grad(log_density)(X, s)

    np.testing.assert_allclose([residual(s) for s in (0.1, 0.5, 0.8)], 0, atol=1e-10)


@pytest.mark.slow
def test_a_learned_path_lowers_the_cost_and_not_below_the_wasserstein_distance():
    """Two laws that meet half way are narrow there; a wide third one makes up for it."""
    deviations, covariances = np.sqrt([0.5, 0.5, 2.0]), np.zeros((3, 1, 3, 1))
    covariances[range(3), 0, range(3), 0] = deviations**2
    means = np.array([[-1.5], [1.5], [0.0]])
    field = pg.GaussianMarginals(means, covariances)
    normal = jnp.asarray(norm.ppf((np.arange(200) + 0.5) / 200))
    normal = (normal - normal.mean()) / normal.std()
    normal = jnp.stack([jax.random.permutation(jax.random.key(i), normal) for i in range(3)], 1)[..., None]
    draws = means + deviations[:, None] * normal
    found = jax.jit(lambda k, d: pg.shorter_path(k, field, d, (0, 1), steps=100))(jax.random.key(0), draws)
    edge, bent = (float(jax.jit(pg.path_cost)(field, draws, p)) for p in (pg.SimplexPath((0, 1), 3), found))
    assert 9 < bent < edge - 0.03
    with pytest.raises(MethodError, match="ends"):
        pg.shorter_path(jax.random.key(0), field, draws, (0, 3))


@pytest.fixture(scope="module")
def laws():
    rng = np.random.default_rng(1)
    data = np.stack([rng.multivariate_normal(m, s, 6000) for m, s in zip(MANY[:2], SPREAD[:2], strict=True)], 1)
    family = pg.Multimarginal(width=48, depth=2, solver=pg.HeunSteps(12))
    return data, pg.fit(family, data, training=pg.Training(steps=900, batch=256, learning_rate=5e-3, block=300))


@pytest.mark.slow
def test_every_law_is_recovered_from_noise_and_from_one_another(laws):
    data, model = laws
    key = jax.random.key(0)
    draws = jax.jit(lambda m, k: m.sample(k, (24, 300)))(model, key)
    moved = jax.jit(lambda m, x: m.transport(x, (0, 1)))(model, jnp.asarray(data[: 24 * 200, 0])).reshape(24, 200, 2)
    for found, k in ((draws[:, :, 0], 0), (draws[:, :, 1], 1), (moved, 1)):
        assert_moments(found, MANY[k], SPREAD[k], detects=0.45, tolerance=0.18)
    np.testing.assert_array_equal(model.noise_map(jnp.ones(2)).shape, (2, 2))
    costs = [float(model.cost(key, data[:500], p)) for p in ((0, 1), (1, 0))]
    np.testing.assert_allclose(*costs, rtol=1e-4)


# -- errors and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        pg.StochasticInterpolant(interpolant=pg.Trigonometric(0.5), width=8, solver=pg.EulerSteps(2)),
        pg.schroedinger_bridge(0.5, pg.Samples(np.ones((4, 2, 3))), width=8, steps=2),
        pg.Multimarginal(width=8, depth=1, solver=pg.EulerSteps(2)),
    ],
    ids=["interpolant", "bridge", "multimarginal"],
)
def test_what_is_saved_is_what_is_loaded(family, tmp_path):
    spec = Spec((2, 3))
    net = jax.tree.map(lambda a: a + 0.1, family.build(jax.random.key(0), spec))
    model = family.distribution(net, spec)
    pg.save(model, tmp_path / "model")
    key = jax.random.key(0)
    np.testing.assert_array_equal(model.sample(key), pg.load(tmp_path / "model").sample(key))


def test_settings_that_make_no_sense_are_refused():
    x = np.random.default_rng(0).normal(size=(64, 2))
    with pytest.raises(MethodError, match="noise=0"):
        pg.Straight(0.0)
    with pytest.raises(MethodError, match="epsilon"):
        pg.fit(pg.StochasticInterpolant(epsilon=-1.0), x)
    with pytest.raises(DataError, match="at least two laws"):
        pg.fit(pg.Multimarginal(), x)
    with pytest.raises(MethodError, match="symmetric"):
        pg.GaussianInterpolant(MEANS, -INDEPENDENT, pg.Straight())
    with pytest.raises(MethodError, match="expected"):
        pg.GaussianMarginals(MANY, SPREAD)
