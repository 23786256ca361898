"""Mixture density networks: the density is that of the mixture, and of the draws; before training it is linear-Gaussian."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import probgen as pg
from probgen import generative as gm
from probgen.generative import Exactness, Training
from probgen.testing import assert_mean

SLOPE = np.array([[1.0, -0.5], [0.0, 2.0]])
NOISE = np.array([[0.5, 0.0], [0.3, 0.2]])
ONE_STEP = Training(steps=1, batch=64, learning_rate=1e-9)


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(n, 2)) * [1.0, 3.0]
    return c @ SLOPE.T + 4.0 + rng.normal(size=(n, 2)) @ NOISE.T, c


@pytest.fixture(scope="module")
def untrained():
    return gm.fit(gm.MixtureDensity(components=3, width=16, depth=1), *pairs(4000), training=ONE_STEP)


@pytest.fixture(scope="module")
def shaken(untrained):
    """With weights that no training would find: every part of the formula takes part."""
    leaves, rest = eqx.partition(untrained.net.body, eqx.is_inexact_array)
    keys = iter(jax.random.split(jax.random.key(1), 10))
    leaves = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape, a.dtype), leaves)
    net = eqx.tree_at(lambda n: n.body, untrained.net, eqx.combine(leaves, rest))
    return untrained.family.distribution(net, untrained.spec)


def test_before_training_it_is_the_linear_gaussian_law(untrained):
    """In nats, over the law itself: estimation from 4,000 rows costs 9 parameters / (2 * 4000) = 0.001, the distances of
    the components (a hundredth of the variances) as much again."""
    x, c = pairs(2000, seed=1)
    exact = multivariate_normal(np.zeros(2), NOISE @ NOISE.T).logpdf(x - 4.0 - c @ SLOPE.T)
    learned = jax.vmap(lambda c, x: untrained.given(c).log_prob(x))(jnp.asarray(c), jnp.asarray(x))
    lost = exact - np.asarray(learned)
    assert abs(lost.mean()) < 0.004 + 4 * lost.std() / math.sqrt(len(lost))
    assert lost.std() < 0.1


def test_the_density_is_that_of_a_mixture(shaken):
    """Term by term, by an implementation that inverts and takes determinants."""
    c = jnp.array([0.7, -2.0])
    law, net = shaken.given(c), shaken.net
    parts = law.mixture()
    assert np.ptp(parts.log_shares) > 0.1
    assert np.abs(np.asarray(parts.lower)).max() > 0.1
    scale, loc, root = (np.asarray(a, float) for a in (net.units.scale.value, net.units.loc.value, net.root.value))
    total = 0.0
    x = np.array([4.5, -1.0])
    for k in range(3):
        precise = np.diag(np.exp(parts.stretch[k])) @ (np.eye(2) + np.asarray(parts.lower[k])) @ np.linalg.inv(root)
        cov = np.linalg.inv(precise.T @ precise)
        mean = loc + scale * (np.asarray(parts.predicted) + root @ np.asarray(parts.centres[k]))
        total += np.exp(parts.log_shares[k]) * multivariate_normal(mean, scale[:, None] * cov * scale).pdf(x)
    np.testing.assert_allclose(law.log_prob(x), np.log(total), rtol=1e-5)


def test_it_integrates_to_one_and_is_the_law_of_its_draws(shaken):
    """E_q[f / q] = 1 for normalised f inside of its support; E_f[q / f] = 1 for f with heavier tails."""
    law = shaken.given(jnp.array([0.3, 1.0]))
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(0)))
    mean, cov = draws.mean(0), np.cov(draws.T)
    f = multivariate_normal(mean, 0.3 * cov)
    inside = np.exp(f.logpdf(draws) - np.asarray(law.log_prob(draws)))
    assert_mean(inside, 1.0, detects=0.05)
    rng = np.random.default_rng(2)
    wide = multivariate_normal(mean, 2.5 * cov)
    points = wide.rvs(20_000, random_state=rng)
    assert_mean(np.exp(np.asarray(law.log_prob(points)) - wide.logpdf(points)), 1.0, detects=0.05)


def test_the_density_is_differentiable_in_the_condition(shaken):
    c, x, step = np.array([0.7, -2.0]), np.array([3.0, 0.5]), 1e-5
    slope = jax.jit(jax.grad(lambda c: shaken.given(c).log_prob(x)))(c)
    assert slope.dtype == float
    value = jax.jit(lambda c: shaken.given(c).log_prob(x))
    for i in range(2):
        d = step * np.eye(2)[i]
        np.testing.assert_allclose(slope[i], (value(c + d) - value(c - d)) / (2 * step), rtol=1e-4)


def test_a_condition_is_read_alone_or_in_a_batch(shaken):
    x, c = (jnp.asarray(a) for a in pairs(6, seed=3))
    batch = shaken.given(c).log_prob(x)
    np.testing.assert_allclose(batch, [shaken.given(a).log_prob(b) for a, b in zip(c, x, strict=True)], rtol=1e-5)
    assert shaken.given(c[0]).log_prob(x.reshape(3, 2, 2)).shape == (3, 2)
    assert shaken.offers["log_prob"] is Exactness.exact


def test_heavy_tails_have_a_density_of_their_own():
    """Data of a Cauchy law, whose deviations are those of their largest entry: units come from the quartiles, and the
    density, which integrates to one, follows the map beyond five units."""
    rng = np.random.default_rng(4)
    x = rng.standard_cauchy((4000, 1))
    law = gm.fit(gm.MixtureDensity(components=1, width=4, depth=1), x, training=ONE_STEP)
    assert 1.2 < law.net.units.scale.value[0] < 1.8  # 2 / 1.349
    edges = 1e5
    grid = np.sinh(np.linspace(-np.arcsinh(edges), np.arcsinh(edges), 20_001))
    density = np.exp(np.asarray(jax.jit(law.log_prob)(grid[:, None])))
    assert abs(np.trapezoid(density, grid) - 1) < 1e-3
    draws = np.asarray(law.sample(jax.random.key(0), (4000,)))[:, 0]
    edge = 5 * float(law.net.units.scale.value[0])
    assert_mean(np.abs(draws) > edge, np.trapezoid(density * (np.abs(grid) > edge), grid), detects=0.05)


@pytest.mark.slow
def test_it_learns_what_is_not_gaussian():
    """Two modes whose distance and width depend on the condition: to 0.03 nats of the truth, of about 1.2 that the
    linear-Gaussian law lacks."""
    rng = np.random.default_rng(5)

    def draw(n):
        c = rng.uniform(-1, 1, (n, 1))
        side = rng.choice([-1.0, 1.0], (n, 1))
        return side * (2 + c) + 0.2 * np.exp(c) * rng.normal(size=(n, 1)), c

    def exact(x, c):
        width = 0.2 * np.exp(c)
        each = [-0.5 * ((x - s * (2 + c)) / width) ** 2 for s in (-1, 1)]
        return (np.logaddexp(*each) - np.log(2 * width * math.sqrt(2 * math.pi)))[:, 0]

    law = gm.fit(gm.MixtureDensity(components=4, width=32, depth=2), *draw(8000), training=Training(steps=3000))
    x, c = draw(2000)
    learned = np.asarray(jax.jit(lambda x, c: law.given(c).log_prob(x))(x, c))
    assert (exact(x, c) - learned).mean() < 0.03


def test_mistakes_are_named():
    with pytest.raises(pg.MethodError, match="components"):
        gm.fit(gm.MixtureDensity(components=0), np.eye(3))
    with pytest.raises(pg.MethodError, match="no entries"):
        gm.fit(gm.MixtureDensity(), np.zeros((3, 0)))
