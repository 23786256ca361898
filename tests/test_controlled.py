"""Conditional control by reinforcement learning: the chain, its price, the reward, and the tuned law."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.generative import (
    VP,
    Controlled,
    GaussianMixture,
    Spec,
    Training,
    fit,
    load,
    observed_mixture,
    save,
)
from probgen.testing import assert_moments

PATH = VP()
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
GAUSSIAN = GaussianMixture([1.0], [MEAN], COVARIANCE, PATH)
SPEC = Spec((2,), (1,))


def net_of(family, shift):
    net = family.build(jax.random.key(0), SPEC)
    return eqx.tree_at(lambda n: n.control.layers[-1].bias, net, jnp.asarray(shift, jnp.float32))


def test_before_tuning_it_is_the_given_chain():
    family = Controlled(GAUSSIAN, steps=200, width=8)
    net = net_of(family, [0.0, 0.0])
    x, paid = jax.jit(jax.vmap(lambda key: family.run(key, net, jnp.zeros(1))))(
        jax.random.split(jax.random.key(0), 8000)
    )
    assert float(jnp.abs(paid).max()) == 0.0
    alpha, sigma = PATH(PATH.start)
    exact = alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
    assert_moments(x.reshape(40, 200, 2), alpha * MEAN, exact, detects=0.25, tolerance=0.06)


def test_a_constant_shift_has_the_price_of_its_relative_entropy():
    """Between chains of Gaussians of one covariance: half the sum of squared shifts in units of the noise. And a shift
    in the direction of the data moves the end by what adding it to every step does."""
    shift = np.array([0.3, -0.2])
    family = Controlled(GAUSSIAN, steps=25, width=8)
    run = jax.jit(lambda net, key: family.run(key, net, jnp.zeros(1)))
    key = jax.random.key(0)
    (free, _), (moved, paid) = run(net_of(family, [0.0, 0.0]), key), run(net_of(family, shift), key)
    total = (PATH.log_snr(PATH.start) - PATH.log_snr(PATH.end)) / 2
    assert float(paid) == pytest.approx(0.5 * float(shift @ shift * total), rel=1e-5)
    times = pg.generative.even_log_snr(PATH, 25)
    off = np.zeros(2)
    for t, s in itertools.pairwise(times):
        a, b, v = GAUSSIAN.ancestral(t, s)
        jacobian = GAUSSIAN(jnp.zeros(2), t).matrix() * PATH(t)[0] / PATH(t)[1] ** 2
        root = jnp.sqrt((PATH.log_snr(s) - PATH.log_snr(t)) / 2)
        off = a * off + b * jacobian @ off + jnp.sqrt(v) * root * shift
    np.testing.assert_allclose(moved - free, off, atol=1e-5)


def test_the_reward_is_a_log_probability_of_the_label():
    x, y = jnp.array([0.2, -0.4]), jnp.array([1.7])
    family = Controlled(GAUSSIAN, width=8)
    net = family.adapt(
        jax.random.key(1), net_of(family, [0.0, 0.0]), jnp.zeros((3, 2)), jnp.array([[1.0], [2.0], [6.0]])
    )
    assert float(family.log_label(net, x, y)) == pytest.approx(float(dist.Normal(3.0, np.std([1, 2, 6])).log_prob(1.7)))
    classes = Controlled(GAUSSIAN, classes=4, width=8)
    net = classes.build(jax.random.key(0), Spec((2,), (4,)))
    assert float(classes.log_label(net, x, jnp.eye(4)[2])) == pytest.approx(np.log(0.25))


def test_it_is_saved_with_its_denoiser(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), rng.integers(0, 3, 40)
    short = Training(steps=2, batch=8, block=1)
    model = fit(Controlled(GAUSSIAN, classes=3, steps=4, width=8), x, np.eye(3)[y], training=short, progress=False)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    labels = np.eye(3)
    draws = [m.given(labels).sample(jax.random.key(0), (2,)) for m in (model, again)]
    assert draws[0].shape == (2, 3, 2)
    np.testing.assert_array_equal(*draws)
    assert model.given(labels[0]).log_label(x[:5]).shape == (5,)
    with pytest.raises(pg.MethodError, match="has no log_prob"):
        model.given(labels[0]).log_prob(x[0])


@pytest.mark.parametrize(
    ("family", "labels", "error", "message"),
    [
        (Controlled(GAUSSIAN), None, pg.MethodError, "needs labels"),
        (Controlled(GAUSSIAN, classes=3), np.zeros((10, 2)), pg.DataError, "labels of shape"),
        (Controlled(GAUSSIAN, power=0.0), np.zeros((10, 2)), pg.MethodError, "power=0.0"),
        (Controlled(GAUSSIAN, steps=0), np.zeros((10, 2)), pg.MethodError, "steps=0"),
        (Controlled(3.0), np.zeros((10, 2)), pg.MethodError, "got a float"),
    ],
)
def test_what_cannot_be_tuned_is_refused(family, labels, error, message):
    with pytest.raises(error, match=message):
        fit(family, np.zeros((10, 2)), labels)


@pytest.mark.slow
def test_the_tuned_sampler_draws_from_the_posterior():
    """p(x) p(y | x) for a mixture and a linear label, learned from pairs; against the exact posterior."""
    prior = GaussianMixture([0.5, 0.5], [[1.0, 0.5], [-1.0, -0.5]], 0.15 * np.eye(2), PATH)
    rng = np.random.default_rng(0)
    x = np.asarray(prior.means)[rng.integers(0, 2, 5000)] + np.sqrt(0.15) * rng.normal(size=(5000, 2))
    row, sd = np.array([0.5, 1.0]), 0.6
    y = x @ row + sd * rng.normal(size=5000)
    model = fit(Controlled(prior), x, y[:, None], progress=False)
    for label in (-0.8, 0.0, 0.9):
        exact = observed_mixture(prior, row[None], [label], [[sd**2]])
        weights = np.exp(exact.log_weights)
        draws = model.given(jnp.array([label])).sample(jax.random.key(0), (2000,))
        shares = np.asarray(jax.vmap(exact.shares, (0, None))(draws, PATH.start).mean(0))
        assert abs(shares[0] - weights[0]) < 0.08
        np.testing.assert_allclose(draws.mean(0), weights @ np.asarray(exact.means), atol=0.15)
