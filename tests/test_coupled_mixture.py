"""Coupled mixture autoencoders: planted clusters, the consensus distance, the bound by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probgen import generative
from probgen.base.errors import MethodError
from probgen.generative.coupled_mixture import consensus_distance
from probgen.testing import assert_mean


def planted(count=1200, clusters=6):
    """Points about the corners of a hexagon, each cluster stretched along one direction; and their clusters."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, clusters, count)
    angle = 2 * np.pi * label / clusters
    centre = 4 * np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], 1)
    return centre + rng.normal(size=(count, 3)) * [0.3, 0.3, 1.0], label


def agreement(found, label):
    """Adjusted Rand index of two partitions."""
    table = np.zeros((found.max() + 1, label.max() + 1))
    np.add.at(table, (found, label), 1)

    def pairs(n):
        return (n * (n - 1) / 2).sum()

    rows, columns, total = pairs(table.sum(1)), pairs(table.sum(0)), pairs(np.asarray([len(label)]))
    expected = rows * columns / total
    return (pairs(table) - expected) / ((rows + columns) / 2 - expected)


@pytest.mark.slow
def test_planted_clusters_are_found_and_arms_agree():
    x, label = planted()
    family = generative.CoupledMixture(categories=6, state=1, width=32)
    model = generative.fit(family, x, seed=0, progress=False)
    best = np.asarray(jnp.argmax(model.shares(x), -1))
    assert agreement(best[:, 0], label) > 0.9
    assert model.agreement(x) > 0.95


def test_the_distance_is_aitchisons_in_units_of_the_spread():
    rng = np.random.default_rng(0)
    a, b = (np.log(rng.dirichlet(np.ones(4), 50)) for _ in range(2))

    def scaled(log_p):
        geometric = log_p - log_p.mean(1, keepdims=True)
        return geometric / np.sqrt(geometric.var(0) + 1e-3)

    assert consensus_distance(a, b) == pytest.approx(np.mean(np.sum((scaled(a) - scaled(b)) ** 2, 1)))
    assert consensus_distance(a, a) == 0
    # It does not depend on how sharp an arm is, up to the ridge.
    assert consensus_distance(a, 3 * a) < 1e-3


@pytest.fixture(scope="module")
def small():
    family = generative.CoupledMixture(categories=3, state=1, width=4, depth=1)
    spec = generative.Spec((2,))
    return family.distribution(family.build(jax.random.key(0), spec), spec)


def test_the_bound_is_below_the_log_density_by_the_divergence(small):
    """By quadrature: log p(x) - bound = KL(q(c, s | x), p(c, s | x))."""
    x, arm, grid = jnp.asarray([0.3, -1.0]), small.net.arms[0], jnp.linspace(-8, 8, 2001)
    step = grid[1] - grid[0]
    log_shares = arm.log_shares(x)

    def at(category):
        loc, log_scale = arm.state(x, category)
        law = jax.vmap(lambda s: jnp.sum(jax.scipy.stats.norm.logpdf(x, arm.outputs(category, s[None]))))(grid)
        joint = law + jax.scipy.stats.norm.logpdf(grid) - jnp.log(3)
        return joint, jax.scipy.stats.norm.logpdf(grid, loc[0], jnp.exp(log_scale[0]))

    joint, log_q = jax.vmap(at)(jnp.eye(3))
    log_q = log_q + log_shares[:, None]
    bound = jnp.sum(jnp.exp(log_q) * (joint - log_q)) * step
    evidence = jax.scipy.special.logsumexp(joint) + jnp.log(step)
    assert bound < evidence
    values = jax.jit(lambda key: small.bound(key, jnp.broadcast_to(x, (4000, 2))))(jax.random.key(0))
    assert_mean(values.reshape(40, 100).mean(1), bound, detects=0.1)


@pytest.mark.slow
def test_draws_and_files(small, tmp_path):
    mean = jnp.mean(
        jax.vmap(lambda c: jax.vmap(lambda s: small.net.arms[0].outputs(c, s))(jnp.linspace(-6, 6, 601)[:, None]))(
            jnp.eye(3)
        ),
        0,
    )
    weights = jax.scipy.stats.norm.pdf(jnp.linspace(-6, 6, 601)) * 0.02
    assert_mean(small.sample(jax.random.key(0), (2000,)).reshape(40, 50, 2).mean(1), weights @ mean, detects=0.4)
    generative.save(small, tmp_path / "m")
    key, x = jax.random.key(0), jnp.ones(2)
    assert generative.load(tmp_path / "m").bound_at(key, x) == small.bound_at(key, x)
    assert small.shares(jnp.ones((5, 2))).shape == (5, 2, 3)


def test_errors(small):
    x = jnp.ones(2)
    with pytest.raises(MethodError, match="categories=1, expected an int of at least 2"):
        generative.fit(generative.CoupledMixture(categories=1), np.zeros((9, 2)))
    with pytest.raises(MethodError, match="temperature=0"):
        generative.fit(generative.CoupledMixture(temperature=0.0), np.zeros((9, 2)))
    with pytest.raises(MethodError, match="no log_prob"):
        small.log_prob(x)


def test_the_coupling_weighs_the_distance(small):
    x, key = jax.random.normal(jax.random.key(0), (16, 2)), jax.random.key(1)
    alone, coupled = (generative.CoupledMixture(3, 1, coupling=c, width=4, depth=1) for c in (0.0, 2.0))
    without, with_it = (family.loss(key, small.net, x, None, None) for family in (alone, coupled))
    # The arms see their own copies of the data; the distance of those without noise is near enough to see the weight.
    still = generative.CoupledMixture(3, 1, coupling=2.0, augmentation=0.0, width=4, depth=1)
    none = generative.CoupledMixture(3, 1, coupling=0.0, augmentation=0.0, width=4, depth=1)
    distance = consensus_distance(*(jax.vmap(arm.log_shares)(x) for arm in small.net.arms))
    difference = still.loss(key, small.net, x, None, None) - none.loss(key, small.net, x, None, None)
    assert difference == pytest.approx(float(2 * distance), rel=1e-4)
    assert with_it > without
