"""Paths: the rates that follow from the scales, against the equations they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative.path import VE, VP, Cosine, Rectified, SubVP, even_log_snr, even_times, karras_times

PATHS = [VP(), SubVP(), VE(), Cosine(), Rectified()]
named = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


@named
def test_the_rates_are_those_of_the_noising_process(path):
    """Signal and noise obey alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2."""
    for t in np.linspace(path.start, path.end, 7):
        alpha, sigma = path(t)
        d_alpha = jax.grad(lambda t: path(t)[0])(t)
        d_variance = jax.grad(lambda t: path(t)[1] ** 2)(t)
        np.testing.assert_allclose(path.f(t) * alpha, d_alpha, rtol=1e-10)
        np.testing.assert_allclose(2 * path.f(t) * sigma**2 + path.g2(t), d_variance, rtol=1e-9)
        assert path.g2(t) > 0


@named
def test_noise_grows(path):
    ratios = jax.vmap(path.log_snr)(jnp.linspace(path.start, path.end, 50))
    assert np.all(np.diff(ratios) < 0)


@pytest.mark.parametrize("path", [VP(), Cosine()], ids=["VP", "Cosine"])
def test_variance_is_preserved_where_the_name_says_so(path):
    for t in (0.01, 0.3, 0.9):
        alpha, sigma = path(t)
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_the_usual_process_has_its_closed_forms():
    path, t = VP(0.1, 20.0), 0.37
    np.testing.assert_allclose(path.g2(t), 0.1 + 19.9 * t, rtol=1e-10)
    np.testing.assert_allclose(path.f(t), -0.5 * (0.1 + 19.9 * t), rtol=1e-10)
    np.testing.assert_allclose(SubVP()(t)[1], path(t)[1] ** 2, rtol=1e-12)
    np.testing.assert_allclose(VE(0.01, 50.0)(0.5)[1], np.sqrt(0.01 * 50.0), rtol=1e-12)


@named
def test_grids_go_from_noise_to_data(path):
    for times in (even_times(path, 10), even_log_snr(path, 10), karras_times(path, 10)):
        assert times.shape == (11,)
        assert times[0] == path.end
        assert times[-1] == path.start
        assert np.all(np.diff(times) < 0)
    even = np.diff(jax.vmap(path.log_snr)(even_log_snr(path, 10)))
    np.testing.assert_allclose(even, even.mean(), rtol=1e-7)


@named
def test_a_time_is_found_by_its_ratio(path):
    times = jnp.linspace(path.start, path.end, 9)[1:-1]
    np.testing.assert_allclose(path.time(jax.vmap(path.log_snr)(times)), times, rtol=1e-9)
    np.testing.assert_allclose([path.time(1e6), path.time(-1e6)], [path.start, path.end], rtol=1e-9)


def test_the_grid_of_edm_is_that_of_the_paper():
    """Equation 5 of Karras et al.: sigma_i = (max^(1/7) + i / N (min^(1/7) - max^(1/7)))^7."""
    path = VE(0.002, 80.0)
    sigma = jax.vmap(lambda t: path(t)[1])(karras_times(path, 6))
    high, low = sigma[0] ** (1 / 7), sigma[-1] ** (1 / 7)
    np.testing.assert_allclose(sigma, (high + np.arange(7) / 6 * (low - high)) ** 7, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VP(beta_min=-1.0), "beta_min=-1.0, expected a positive number"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), "expected sigma_min < sigma_max"),
        (lambda: Rectified(start=0.5, end=0.2), "0 < start < end <= 1"),
        (lambda: even_times(VP(), 0), "steps must be an int of at least 1, got 0"),
        (lambda: even_log_snr(VP(), 2.5), "steps must be an int of at least 1, got 2.5"),
        (lambda: karras_times(VP(), 5, rho=0.0), "rho must be a positive number, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(make, words):
    with pytest.raises(pg.MethodError, match=words.replace("(", r"\(")):
        make()
