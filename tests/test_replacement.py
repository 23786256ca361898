"""Replacement: what is known comes out as it is, and the rest follows its conditional law as rounds and steps grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative import (
    VP,
    GaussianMixture,
    Replacement,
    block_mean,
    even_log_snr,
    kept,
    observed_mixture,
    sample_path,
)
from probgen.testing import assert_moments

PATH = VP()
MASK = [True, False]


def draws(sampler, denoiser, steps, count, seed=0):
    times = even_log_snr(PATH, steps)

    def draw(key):
        key_noise, key_path = jax.random.split(key)
        return sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), count))


def test_what_is_known_is_kept_exactly():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8)) * 0.3
    gaussian = GaussianMixture([1.0], [rng.normal(size=8)], root @ root.T + 0.2 * np.eye(8), PATH)
    reference = rng.normal(size=8)
    for projection in (block_mean(4), kept(np.arange(8) < 3)):
        x = draws(Replacement(reference, projection), gaussian, 20, 10)
        np.testing.assert_allclose(jax.vmap(projection)(x) - projection(reference), 0.0, atol=1e-12)
        free = x - jax.vmap(projection)(x)
        assert free.std(0).max() > 0.1


@pytest.mark.parametrize(
    "settings", [{"repeats": 2, "jump": 2}, pytest.param({"repeats": 3}, marks=pytest.mark.slow)], ids=str
)
def test_jumps_leave_the_law_alone_where_nothing_is_known(settings):
    mean, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
    gaussian = GaussianMixture([1.0], [mean], covariance, PATH)
    nothing = Replacement(np.zeros(2), kept([False, False]), **settings)
    x = draws(nothing, gaussian, 150, 40 * 200).reshape(40, 200, 2)
    alpha, sigma = PATH(PATH.start)
    assert_moments(x, alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(2), detects=0.25, tolerance=0.06)


def mixture():
    means = np.array([[0.6, 1.0], [-0.3, -1.0]])
    return GaussianMixture([0.5, 0.5], means, np.array([[0.2, 0.1], [0.1, 0.2]]), PATH)


@pytest.mark.slow
def test_rounds_lead_to_the_conditional_law():
    """The shares of the modes and the mean, against the exact conditional of a mixture."""
    y, count = 0.6, 1500
    exact = observed_mixture(mixture(), [[1.0, 0.0]], [y], [[1e-8]])
    share, mean = float(jnp.exp(exact.log_weights[0])), float(jnp.exp(exact.log_weights) @ exact.means[:, 1])
    assert 0.8 < share < 0.9

    def errors(repeats):
        x = draws(Replacement([y, 0.0], kept(MASK), repeats=repeats), mixture(), 50, count)
        found = jax.vmap(lambda x: exact.shares(x, PATH.start)[0])(x).mean()
        return abs(float(found) - share), abs(float(x[:, 1].mean()) - mean)

    one, many = errors(1), errors(16)
    noise = 4 * np.sqrt(share * (1 - share) / count)
    assert one[0] > 0.1 + noise
    assert many[0] < 0.03 + noise
    assert many[1] < 0.06 + 2 * noise  # the modes are 2 apart


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Replacement(np.zeros(4), lambda x: 2 * x), "linear and the same when applied twice"),
        (lambda: Replacement(np.zeros(4), lambda x: x**0), "linear and the same when applied twice"),
        (lambda: Replacement(np.zeros(4), block_mean(2), repeats=0), "repeats=0"),
        (lambda: draws(Replacement(np.zeros(3), kept([True] * 3)), mixture(), 5, 1), "reference of Replacement"),
    ],
)
def test_what_cannot_be_replaced_is_refused(make, message):
    with pytest.raises(pg.MethodError, match=message):
        make()
