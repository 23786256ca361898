"""Superposition: OR is the mixture, AND equalises log densities, on exact mixtures of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative.denoiser import GaussianMixture
from probgen.generative.path import VE, VP
from probgen.generative.superposition import Both, Either
from probgen.testing import assert_mean

PATH = VP()
A = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], 0.1 * np.eye(2), PATH)
B = GaussianMixture([0.3, 0.7], [[0.0, 1.0], [0.5, -1.2]], 0.15 * np.eye(2), PATH)


def log_densities(x):
    return jnp.stack([jax.vmap(part.log_density, (0, None))(x, PATH.start) for part in (A, B)], 1)


def test_either_is_the_mixture():
    superposed = Either([A, B], [0.3, 0.7], steps=400)
    draws = superposed.run(jax.random.key(0), 4000)
    everything = GaussianMixture(
        [0.15, 0.15, 0.21, 0.49],
        np.concatenate([A.means, B.means]),
        np.concatenate([np.tile(0.1 * np.eye(2), (2, 1, 1)), np.tile(0.15 * np.eye(2), (2, 1, 1))]),
        PATH,
    )
    shares = jax.vmap(lambda x: everything.shares(x, PATH.start))(draws.x).reshape(40, 100, 4).mean(1)
    assert_mean(shares, [0.15, 0.15, 0.21, 0.49], detects=0.1, tolerance=0.01)
    second = (draws.x**2).reshape(40, 100, 2).mean(1)
    assert_mean(second, 0.3 * _second(A) + 0.7 * _second(B), detects=0.3, tolerance=0.02)
    # The estimates that decide on the shares; the anchor at 400 steps is an error of about 0.6 nats.
    error = draws.log_q - log_densities(draws.x)
    assert np.sqrt(np.mean(error**2)) < 0.8
    x = draws.x[:5]
    exact = jax.vmap(lambda x: everything.log_density(x, PATH.start))(x)
    np.testing.assert_allclose(superposed.log_prob(x), exact, atol=1e-5)


def _second(part):
    alpha, sigma = PATH(PATH.start)
    within = alpha**2 * (jnp.einsum("kij,kj->ki", part.axes**2, part.variances) + part.means**2) + sigma**2
    return jnp.exp(part.log_weights) @ within


def test_both_makes_log_densities_equal():
    draws = Both([A, B], steps=400).run(jax.random.key(0), 1000)
    np.testing.assert_allclose(draws.log_q[:, 0], draws.log_q[:, 1], atol=1e-3)
    apart = np.abs(np.diff(log_densities(draws.x), axis=1))
    alone = jax.vmap(lambda key: A.draw(key, PATH.start))(jax.random.split(jax.random.key(1), 1000))
    assert np.median(apart) < 0.8
    assert np.median(apart) < 0.2 * np.median(np.abs(np.diff(log_densities(alone), axis=1)))


def test_a_model_with_itself_is_itself():
    draws = Both([A, A], steps=100).run(jax.random.key(0), 2000)
    shares = jax.vmap(lambda x: A.shares(x, PATH.start))(draws.x).reshape(40, 50, 2).mean(1)
    assert_mean(shares, [0.5, 0.5], detects=0.13, tolerance=0.01)


def test_draws_as_distributions():
    for superposed in (Either([A, B], steps=20), Both([A, B], steps=20)):
        assert superposed.sample(jax.random.key(0), (3, 2)).shape == (3, 2, 2)
    with pytest.raises(pg.MethodError, match="Both has no density"):
        Both([A, B]).log_prob(jnp.zeros(2))
    with pytest.raises(pg.MethodError, match="temperature=1 only"):
        Either([A, B], temperature=2.0).log_prob(jnp.zeros(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Either([A]), "expected at least two diffusion models"),
        (lambda: Either([A, B], [0.5, 0.6]), "positive numbers that sum to one"),
        (lambda: Either([A, B], temperature=-1.0), "temperature must be a finite number >= 0"),
        (lambda: Both([A, B], steps=0), "steps must be an int of at least 1"),
        (
            lambda: Both([A, GaussianMixture([1.0], [[0.0]], [[1.0]], PATH)]),
            "Combine distributions over the same space",
        ),
        (lambda: Either([A, GaussianMixture([1.0], [[0.0, 0.0]], np.eye(2), VE())]), "denoisers of one path"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(pg.MethodError, match=words):
        make()
