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
from probgen.generative.path import VE, VP, Cosine, Rectified, SubVP, even_log_snr
from probgen.generative.sampler import (
    DDIM,
    DPM2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    UniPC,
    flow_log_density,
    sample_path,
    trajectory,
)
from probgen.testing import assert_moments

ORDERS = [
    (EulerMaruyama(kappa=0.0), 1),
    (DDIM(), 1),
    (Heun(), 2),
    (DPM2M(), 2),
    (UniPC(1), 2),
    (UniPC(), 3),
    (UniPC(3, corrected=False), 3),
    (UniPC(3), 4),
]


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
    return denoiser, noise, ends(UniPC(3), denoiser, noise, 1000)


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=str)
def test_the_error_falls_at_the_order_of_the_solver(fine, sampler, order):
    denoiser, noise, true = fine
    errors = [np.median(np.linalg.norm(ends(sampler, denoiser, noise, n) - true, axis=1)) for n in (60, 240)]
    slope = np.log(errors[1] / errors[0]) / np.log(4)
    assert slope == pytest.approx(-order, abs=0.1)


def test_the_line_through_two_values_is_the_second_predictor(fine):
    denoiser, noise, _ = fine
    np.testing.assert_allclose(
        ends(DPM2M(), denoiser, noise, 12), ends(UniPC(2, corrected=False), denoiser, noise, 12), rtol=1e-9
    )


@pytest.mark.parametrize(
    "path", [pytest.param(VE(), marks=pytest.mark.slow), Rectified()], ids=lambda path: type(path).__name__
)
def test_the_order_does_not_depend_on_the_path(path):
    denoiser = mixture(path)
    noise = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(1), 50))
    a, b, c = (ends(UniPC(), denoiser, noise, n) for n in (50, 150, 450))
    errors = [np.median(np.linalg.norm(x - c, axis=1)) for x in (a, b)]
    assert np.log(errors[1] / errors[0]) / np.log(3) == pytest.approx(-3, abs=0.25)


@pytest.mark.parametrize(
    "sampler", [pytest.param(EulerMaruyama(), marks=pytest.mark.slow), EulerMaruyama(3.0), DDIM(eta=1.0)], ids=repr
)
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


def coefficients(sampler, denoiser, t, s):
    """On a Gaussian of mean zero a step is x -> a x + c noise: (a, c)."""
    key = jax.random.key(0)
    at_zero, at_one = (sampler.step(key, denoiser, jnp.full(1, x), t, s, None)[0][0] for x in (0.0, 1.0))
    return at_one - at_zero, at_zero / jax.random.normal(key, (1,))[0]


def variances(sampler, denoiser, steps):
    """The variances of a sampler on a Gaussian at all times, without drawing, and those of the noising process."""
    times = even_log_snr(denoiser.path, steps)
    alpha, sigma = jax.vmap(denoiser.path)(times)
    forward = alpha**2 * denoiser.variances[0, 0] + sigma**2

    def one(variance, at):
        a, c = coefficients(sampler, denoiser, *at)
        variance = a**2 * variance + c**2
        return variance, variance

    sampled = jax.jit(lambda times: jax.lax.scan(one, forward[0], (times[:-1], times[1:]))[1])(times)
    return np.asarray(sampled), np.asarray(forward[1:])


@pytest.mark.parametrize(
    ("sampler", "path", "order"),
    [
        (EulerMaruyama(), VP(), 1),
        (EulerMaruyama(), SubVP(), 1),
        (EulerMaruyama(3.0), VE(), 1),
        (DDIM(eta=1.0), VP(), 1),
        (Heun(), VE(), 2),
        (20.0, VE(), 2),
        (20.0, VP(), 2),
    ],
    ids=repr,
)
def test_the_marginals_are_those_of_the_noising_process_at_every_level(sampler, path, order):
    """A number is the churn of all steps together, which is what stays the same as there are more."""
    denoiser = GaussianMixture([1.0], [[0.0]], [[0.5]], path)
    errors = []
    for steps in (200, 800):
        churned = Heun(churn=sampler / steps) if isinstance(sampler, float) else sampler
        sampled, forward = variances(churned, denoiser, steps)
        errors.append(np.abs(sampled / forward - 1).max())
    assert errors[1] < (0.05 if order == 1 else 1e-3)
    assert np.log(errors[1] / errors[0]) / np.log(4) == pytest.approx(-order, abs=0.15)


def test_churn_adds_the_noise_that_it_says():
    """From level 1 up to 1.2, and with inflated noise more."""
    denoiser = GaussianMixture([1.0], [[0.0]], [[1e-12]], VE(0.01, 50.0))  # data at zero: every level has its own scale
    t, s = denoiser.path.time(0.0), denoiser.path.time(-2 * np.log(0.5))
    a, c = coefficients(Heun(churn=0.2, inflation=1.1), denoiser, t, s)
    np.testing.assert_allclose([a, c], [0.5 / 1.2, 1.1 * 0.5 / 1.2 * np.sqrt(1.2**2 - 1)], rtol=1e-6)
    assert coefficients(Heun(churn=0.2, between=(2.0, 50.0)), denoiser, t, s)[1] == 0


def test_the_corrector_is_a_langevin_move():
    """It leaves the Gaussian where it is up to its own discretisation: variance v + delta^2 / v after one move."""
    denoiser = GaussianMixture([1.0], [[0.0]], [[0.5]], VP())
    t, s = jnp.asarray(0.5), jnp.asarray(0.4)
    alpha, sigma = denoiser.path(s)
    v, delta = alpha**2 * 0.5 + sigma**2, 2 * 0.16**2 * sigma**2
    sampler = PredictorCorrector(DDIM(), snr=0.16)
    predicted = DDIM().step(jax.random.key(0), denoiser, jnp.ones(1), t, s, None)[0]
    starts = predicted * jax.random.normal(jax.random.key(1), (40, 500, 1)) * jnp.sqrt(v) / predicted

    def move(x, key):
        back = x / predicted  # the predictor is linear, so this is what it leads to x from
        return sampler.step(key, denoiser, back, t, s, None)[0]

    keys = jax.random.split(jax.random.key(2), (40, 500))
    moved = jax.jit(jax.vmap(jax.vmap(move)))(starts, keys)
    assert_moments(moved, jnp.zeros(1), (v + delta**2 / v).reshape(1, 1), detects=0.1)
    joint = np.mean(np.asarray(moved * starts), (1, 2))
    assert abs(joint.mean() - (v - delta)) < 5 * joint.std() / np.sqrt(40)
    assert delta > 20 * joint.std() / np.sqrt(40) * 0.05


def test_a_trajectory_ends_where_the_path_does(fine):
    denoiser, noise, _ = fine
    times = even_log_snr(denoiser.path, 7)
    walk = trajectory(jax.random.key(0), DDIM(eta=1.0), denoiser, noise[0], times)
    assert walk.shape == (8, 2)
    np.testing.assert_array_equal(walk[0], noise[0])
    np.testing.assert_array_equal(walk[-1], sample_path(jax.random.key(0), DDIM(eta=1.0), denoiser, noise[0], times))


@pytest.mark.parametrize(
    "path", [VP(), pytest.param(Cosine(), marks=pytest.mark.slow)], ids=lambda path: type(path).__name__
)
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
        found = jax.jit(lambda x: self.prior.log_prob(x))(draws)
        assert found.shape == (3, 2)
        density = jax.jit(jax.vmap(lambda x: self.prior.denoiser.log_density(x, 1e-3)))
        exact = density(draws.reshape(-1, 2)).reshape(3, 2)
        np.testing.assert_allclose(found, exact, atol=1e-5)
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
        with pytest.raises(pg.MethodError, match="churn is the share"):
            Heun(churn=0.5)
        with pytest.raises(pg.MethodError, match="snr must lie between 0 and 1"):
            PredictorCorrector(snr=2.0)
        with pytest.raises(pg.MethodError, match="order must be an int from 1 to 6"):
            UniPC(order=0)
