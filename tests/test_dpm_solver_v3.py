"""DPM-Solver-v3: its coefficients in closed form, exactness on Gaussians, its order, and its error with few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative import (
    DPM2M,
    VE,
    VP,
    DenoisedDistribution,
    DPMSolverV3,
    GaussianMixture,
    UniPC,
    even_log_snr,
    model_statistics,
    sample_path,
)


def ends(sampler, denoiser, noise, steps):
    times = even_log_snr(denoiser.path, steps)
    return jax.jit(jax.vmap(lambda z: sample_path(jax.random.key(0), sampler, denoiser, z, times)))(noise)


def draws(denoiser, key, count, t):
    return jax.vmap(denoiser.draw, (0, None))(jax.random.split(jax.random.key(key), count), t)


@pytest.mark.parametrize("path", [VP(), pytest.param(VE(), marks=pytest.mark.slow)], ids=["VP", "VE"])
def test_on_a_gaussian_of_independent_entries_one_step_is_exact(path):
    mean, variance = np.array([0.7, -2.0]), np.array([0.3, 4.0])
    denoiser = GaussianMixture([1.0], [mean], np.diag(variance), path)
    statistics = model_statistics(jax.random.key(0), denoiser, draws(denoiser, 1, 50, 0.0), points=257)
    times = path.time(2 * statistics.places[::64])
    alpha, sigma = jax.vmap(path)(times)
    linear = sigma[:, None] ** 2 / (alpha[:, None] ** 2 * variance + sigma[:, None] ** 2)
    np.testing.assert_allclose(statistics.linear[::64], linear, rtol=1e-7)
    np.testing.assert_array_equal(statistics.slope, 0)
    noise = draws(denoiser, 2, 10, path.end)
    (a, s), (b, r) = path(path.end), path(path.start)
    true = b * mean + (noise - a * mean) * np.sqrt((b**2 * variance + r**2) / (a**2 * variance + s**2))
    # One evaluation at the start and one at the end; what is left is the interpolation of the table.
    np.testing.assert_allclose(ends(DPMSolverV3(statistics), denoiser, noise, 8), true, rtol=2e-5, atol=5e-5)
    assert np.abs(ends(UniPC(), denoiser, noise, 8) / true - 1).max() > 1e-3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(4, 2, 2)) * 0.3
    covariances = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2)
    denoiser = GaussianMixture([0.1, 0.2, 0.3, 0.4], rng.normal(size=(4, 2)) * 1.5, covariances, VP())
    statistics = jax.jit(lambda key, data: model_statistics(key, denoiser, data, 96))(
        jax.random.key(1), draws(denoiser, 2, 400, 0.0)
    )
    noise = draws(denoiser, 3, 100, 1.0)
    return denoiser, statistics, noise, ends(UniPC(3), denoiser, noise, 1000)


def error(case, sampler, steps):
    denoiser, _, noise, true = case
    return float(np.median(np.linalg.norm(ends(sampler, denoiser, noise, steps) - true, axis=1)))


def test_the_error_falls_at_the_order(case):
    sampler = DPMSolverV3(case[1])
    slope = np.log(error(case, sampler, 160) / error(case, sampler, 40)) / np.log(4)
    assert slope == pytest.approx(-3, abs=0.15)


def test_few_evaluations_are_better_spent_than_by_its_predecessor(case):
    """Both have five; DPM-Solver++ takes one a step, the new one another at the start."""
    assert error(case, DPMSolverV3(case[1]), 4) < error(case, DPM2M(), 5) / 2.5


def test_it_is_a_sampler_like_any(case):
    denoiser, statistics, _, _ = case
    prior = DenoisedDistribution(denoiser, sampler=DPMSolverV3(statistics), steps=4)
    assert jax.jit(lambda d, key: d.sample(key, (3,)))(prior, jax.random.key(0)).shape == (3, 2)


def test_wrong_settings_are_refused(case):
    denoiser, statistics, _, _ = case
    with pytest.raises(pg.MethodError, match="data must have the shape"):
        model_statistics(jax.random.key(0), denoiser, jnp.zeros((5, 3)))
    with pytest.raises(pg.MethodError, match="points must be an int"):
        model_statistics(jax.random.key(0), denoiser, jnp.zeros((5, 2)), points=2)
    with pytest.raises(pg.MethodError, match="order must be an int"):
        DPMSolverV3(statistics, order=9)
    with pytest.raises(pg.MethodError, match="statistics must come from"):
        DPMSolverV3(0.0)
