"""Denoisers: Tweedie's identities, and the exact mixture against automatic derivatives and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative.denoiser import Denoiser, GaussianMixture, Guidance
from probgen.generative.path import VE, VP, Cosine, Rectified, SubVP
from probgen.testing import assert_mean, assert_moments

PATHS = [VP(), SubVP(), VE(), Cosine(), Rectified()]
X, T = jnp.array([0.3, -0.5]), 0.4


def mixture(path, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(3, 2, 2)) * 0.4
    return GaussianMixture(
        [0.2, 0.3, 0.5], rng.normal(size=(3, 2)), roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2), path
    )


@jax.jit
def identities(denoiser):
    """Pairs that must agree."""
    score, velocity = denoiser.fields(X, T)
    again, carried = Denoiser.fields(denoiser, X, T)
    divergence = jnp.trace(jax.jacfwd(denoiser.velocity)(X, T))
    return {
        "score": (score, jax.grad(denoiser.log_density)(X, T)),
        "score alone": (denoiser.score(X, T), score),
        "score by Tweedie": (Denoiser.score(denoiser, X, T), score),
        "score from the mean": (again, score),
        "velocity from the mean": (carried, velocity),
        "continuity": (jax.grad(denoiser.log_density, 1)(X, T), -divergence - velocity @ score),
        "covariance": (denoiser(X, T).matrix(), Denoiser.__call__(denoiser, X, T).matrix()),
    }


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_score_velocity_and_covariance_agree_with_derivatives_of_the_density(path):
    pairs = identities(mixture(path))
    for name, (one, other) in pairs.items():
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12, err_msg=name)
    assert np.linalg.eigvalsh(pairs["covariance"][0]).min() > 0


def test_the_density_is_that_of_the_mixture():
    denoiser = mixture(VP())
    grid = jnp.linspace(-8, 8, 401)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    total = jnp.sum(jnp.exp(jax.jit(jax.vmap(denoiser.log_density, (0, None)))(points, T))) * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    np.testing.assert_allclose(denoiser.shares(X, T).sum(), 1)


def test_the_posterior_is_that_of_the_data_given_the_noisy_value():
    """By importance sampling: draw data, weigh by the density of the noise that leads to x."""
    denoiser = mixture(VP())
    alpha, sigma = denoiser.path(T)

    def estimate(key):
        data = jax.vmap(lambda key: clean(denoiser, key))(jax.random.split(key, 4000))
        w = jax.nn.softmax(jax.scipy.stats.norm.logpdf(X, alpha * data, sigma).sum(-1))
        return w @ data

    means = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 40))
    assert_mean(means, denoiser.mean(X, T), detects=0.05, tolerance=0.002)


def clean(denoiser, key):
    key_component, key_value = jax.random.split(key)
    k = jax.random.categorical(key_component, denoiser.log_weights)
    return denoiser.means[k] + denoiser.axes[k] @ (jnp.sqrt(denoiser.variances[k]) * jax.random.normal(key_value, (2,)))


def test_draws_have_the_moments_of_the_marginal():
    denoiser = mixture(VP())
    alpha, sigma = denoiser.path(T)
    weights, means = np.exp(denoiser.log_weights), np.asarray(denoiser.means)
    mean = weights @ means
    covariances = np.einsum("kij,kj,klj->kil", denoiser.axes, denoiser.variances, denoiser.axes)
    covariance = np.einsum("k,kij->ij", weights, covariances) + np.einsum(
        "k,ki,kj->ij", weights, means - mean, means - mean
    )
    draws = jax.jit(jax.vmap(denoiser.draw, (0, None)))(jax.random.split(jax.random.key(1), 40 * 500), T).reshape(
        40, 500, 2
    )
    assert_moments(draws, alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(2), detects=0.15)


def test_a_gaussian_has_the_linear_denoiser():
    mean, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
    denoiser = GaussianMixture([1.0], [mean], covariance, VP())
    alpha, sigma = denoiser.path(T)
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(2))
    np.testing.assert_allclose(denoiser.mean(X, T), mean + gain @ (X - alpha * mean), rtol=1e-10)
    np.testing.assert_allclose(denoiser(X, T).matrix(), covariance - alpha * gain @ covariance, rtol=1e-9)


def test_guidance_moves_the_score_along_the_difference():
    cond, uncond = mixture(VP(), 1), mixture(VP(), 2)
    guided = Guidance(cond, uncond, 2.5)
    expected = uncond.score(X, T) + 2.5 * (cond.score(X, T) - uncond.score(X, T))
    np.testing.assert_allclose(guided.score(X, T), expected, rtol=1e-9)
    np.testing.assert_allclose(Guidance(cond, uncond, 1.0).score(X, T), cond.score(X, T), rtol=1e-9)


def test_the_weight_of_guidance_and_the_means_of_a_mixture_can_be_differentiated():
    cond, uncond = mixture(VP(), 1), mixture(VP(), 2)
    slope = jax.grad(lambda w: Guidance(cond, uncond, w).mean(X, T).sum())(1.0)
    np.testing.assert_allclose(slope, (cond.mean(X, T) - uncond.mean(X, T)).sum(), rtol=1e-9)
    slopes = jax.grad(lambda denoiser: denoiser.log_density(X, T))(cond)
    assert np.abs(slopes.means).min() > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 0.6], np.zeros((2, 2)), np.eye(2)), "sum to one, got sum 1.1"),
        (([0.5, 0.5], np.zeros((3, 2)), np.eye(2)), r"weights of shape \(2,\) and means of shape \(3, 2\)"),
        (([1.0], np.zeros((1, 2)), np.eye(3)), r"covariances of shape \(3, 3\), expected \(1, 2, 2\) or \(2, 2\)"),
        (([1.0], np.zeros((1, 2)), -np.eye(2)), "positive definite, got the eigenvalue -1"),
        (([1.0], np.zeros((1, 2)), [[1.0, 0.5], [0.0, 1.0]]), "must be symmetric"),
    ],
)
def test_what_is_no_mixture_is_refused(arguments, words):
    with pytest.raises(pg.MethodError, match=words):
        GaussianMixture(*arguments, VP())


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(pg.MethodError, match=r"part 1 has data of shape \(3,\), part 0 of shape \(2,\)"):
        Guidance(mixture(VP()), GaussianMixture([1.0], np.zeros((1, 3)), np.eye(3), VP()), 2.0)
    with pytest.raises(pg.MethodError, match="Combine denoisers of one path"):
        Guidance(mixture(VP()), mixture(VE()), 2.0)
