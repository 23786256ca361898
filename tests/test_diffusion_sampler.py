"""Samplers on exact denoisers: the order of every solver, the law of the draws, the density by the probability flow."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import GaussianMixture
from probgen.generative.path import VE, VP, Cosine, Rectified, even_log_snr
from probgen.generative.sampler import DDIM, DPM2M, EulerMaruyama, Heun, UniPC, flow_log_density, sample_path
from probgen.testing import assert_moments

ORDERS = [(EulerMaruyama(kappa=0.0), 1), (DDIM(), 1), (Heun(), 2), (DPM2M(), 2), (UniPC(), 3)]


def mixture(path):
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(4, 2, 2)) * 0.3
    covariances = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2)
    return GaussianMixture([0.1, 0.2, 0.3, 0.4], rng.normal(size=(4, 2)) * 1.5, covariances, path)


def ends(sampler, denoiser, noise, steps):
    times = even_log_snr(denoiser.path, steps)
    run = jax.jit(jax.vmap(lambda z: sample_path(jax.random.key(0), sampler, denoiser, z, times)))
    return run(noise)


@pytest.fixture(scope="module")
def fine():
    denoiser = mixture(VP())
    noise = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(1), 100))
    return denoiser, noise, ends(UniPC(), denoiser, noise, 2000)


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=lambda value: type(value).__name__)
def test_the_error_falls_at_the_order_of_the_solver(fine, sampler, order):
    denoiser, noise, true = fine
    errors = [np.median(np.linalg.norm(ends(sampler, denoiser, noise, n) - true, axis=1)) for n in (60, 240)]
    slope = np.log(errors[1] / errors[0]) / np.log(4)
    assert slope == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize("path", [VE(), Rectified()], ids=lambda path: type(path).__name__)
def test_the_order_does_not_depend_on_the_path(path):
    denoiser = mixture(path)
    noise = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(1), 50))
    a, b, c = (ends(UniPC(), denoiser, noise, n) for n in (50, 150, 450))
    errors = [np.median(np.linalg.norm(x - c, axis=1)) for x in (a, b)]
    assert np.log(errors[1] / errors[0]) / np.log(3) == pytest.approx(-3, abs=0.25)


@pytest.mark.parametrize("sampler", [EulerMaruyama(), EulerMaruyama(3.0), DDIM(eta=1.0)], ids=repr)
def test_draws_of_stochastic_samplers_have_the_right_moments(sampler):
    """The probability flow and every Langevin rate have the same marginals."""
    mean, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
    denoiser = GaussianMixture([1.0], [mean], covariance, VP())
    alpha, sigma = denoiser.path(denoiser.path.start)
    times = even_log_snr(denoiser.path, 400)

    def draw(key):
        key_noise, key_path = jax.random.split(key)
        return sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 40 * 200)).reshape(40, 200, 2)
    assert_moments(draws, alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(2), detects=0.25, tolerance=0.05)


def test_the_variance_of_euler_maruyama_has_order_one():
    """On a Gaussian the step is affine, so the law of the draws is known without drawing."""
    denoiser = GaussianMixture([1.0], [[0.0]], [[0.5]], VP())
    alpha, sigma = denoiser.path(denoiser.path.start)

    def error(steps):
        times = even_log_snr(denoiser.path, steps)

        def one(variance, at):
            t, s = at

            def mean(x):
                return (
                    x + (s - t) * denoiser.velocity(x, t) + 0.5 * denoiser.path.g2(t) * (t - s) * denoiser.score(x, t)
                )

            def move(x, key):
                return EulerMaruyama().step(key, denoiser, x, t, s, None)[0]

            key = jax.random.key(0)
            x, other = jnp.zeros(1), jnp.ones(1)
            slope = move(other, key) - move(x, key)
            spread = (move(x, key) - mean(x)) / jax.random.normal(key, (1,))
            return slope[0] ** 2 * variance + spread[0] ** 2, None

        start = denoiser.path(times[0])
        first = start[0] ** 2 * 0.5 + start[1] ** 2
        return jax.lax.scan(one, first, (times[:-1], times[1:]))[0] - (alpha**2 * 0.5 + sigma**2)

    errors = [abs(float(error(n))) for n in (100, 400)]
    assert np.log(errors[1] / errors[0]) / np.log(4) == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize("path", [VP(), Cosine()], ids=lambda path: type(path).__name__)
def test_the_probability_flow_gives_the_density(path):
    denoiser = mixture(path)
    x = jax.vmap(denoiser.draw, (0, None))(jax.random.split(jax.random.key(3), 20), path.start)
    exact = jax.vmap(denoiser.log_density, (0, None))(x, path.start)
    by_flow = jax.jit(jax.vmap(lambda x: flow_log_density(denoiser, x)))(x)
    np.testing.assert_allclose(by_flow, exact, atol=1e-5)


class TestDistribution:
    prior = DenoisedDistribution(mixture(VP()))

    def test_it_is_a_distribution(self):
        draws = self.prior.sample(jax.random.key(0), (3, 2))
        assert draws.shape == (3, 2, 2)
        assert self.prior.log_prob(draws).shape == (3, 2)
        exact = jax.vmap(self.prior.denoiser.log_density, (0, None))(draws.reshape(-1, 2), 1e-3).reshape(3, 2)
        np.testing.assert_allclose(self.prior.log_prob(draws), exact, atol=1e-5)
        assert self.prior.sample(jax.random.PRNGKey(0)).shape == (2,)

    def test_it_goes_through_jit(self):
        x = jnp.array([0.1, 0.2])
        np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(x))(self.prior), self.prior.log_prob(x), rtol=1e-9)

    def test_it_stands_in_a_program(self):
        def program(y=None):
            x = numpyro.sample("x", self.prior)
            numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)

        model = pg.Model(program, {"y": 0.3})
        assert model.sites["x"].shape == (2,)
        tree = pg.simulate(pg.Model(program), draws=500, seed=0)
        weights, means = np.exp(self.prior.denoiser.log_weights), np.asarray(self.prior.denoiser.means)
        draws = tree["prior/x"].values.reshape(-1, 2)
        spread = draws.std(0) / np.sqrt(len(draws))
        assert np.all(np.abs(draws.mean(0) - weights @ means) < 4.5 * spread)

    def test_wrong_settings_are_refused(self):
        with pytest.raises(pg.MethodError, match="got a Normal, expected a denoiser"):
            DenoisedDistribution(dist.Normal(0, 1))
        with pytest.raises(pg.MethodError, match="steps must be an int of at least 1"):
            DenoisedDistribution(mixture(VP()), steps=0)
        with pytest.raises(pg.MethodError, match="tolerance must be between 0 and 1"):
            DenoisedDistribution(mixture(VP()), tolerance=-1.0)
        with pytest.raises(pg.MethodError, match="kappa is a rate"):
            EulerMaruyama(kappa=-1.0)
        with pytest.raises(pg.MethodError, match="eta is a share"):
            DDIM(eta=2.0)
