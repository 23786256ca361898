"""Training-free guidance: each setting against the published algorithm that it is, and the one case that is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative import (
    DDIM,
    VP,
    DenoisedDistribution,
    GaussianMixture,
    TrainingFree,
    even_log_snr,
    published_strength,
    sample_path,
)
from probgen.testing import assert_same_distribution

PATH = VP()
A, Y, SD = jnp.array([1.0, 0.5]), 0.4, 0.5
T, S = 0.4, 0.34


def mixture():
    roots = np.random.default_rng(0).normal(size=(3, 2, 2)) * 0.25
    means = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.2]])
    return GaussianMixture([0.2, 0.3, 0.5], means, roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2), PATH)


PRIOR = mixture()
X = jnp.array([0.3, -0.6])
KEY = jax.random.key(0)


def log_likelihood(x):
    return -0.5 * ((Y - A @ x) / SD) ** 2


def scales(t):
    return (float(v) for v in PATH(t))


def posterior_step(key, x, t, s, eta):
    """The step of DDPM (eta = 1) or DDIM (0) in its textbook form, variance preserving."""
    a_t, a_s = PATH(t)[0] ** 2, PATH(s)[0] ** 2
    mean = PRIOR.mean(x, t)
    noise = (x - jnp.sqrt(a_t) * mean) / jnp.sqrt(1 - a_t)
    spread = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    z = jax.random.normal(key, x.shape)
    return jnp.sqrt(a_s) * mean + jnp.sqrt(1 - a_s - spread) * noise + jnp.sqrt(spread) * z


def ours(sampler, key=KEY, x=X):
    return sampler.step(key, PRIOR, x, T, S, None)[0]


def test_dps():
    """x_s = DDPM - zeta grad |y - A m(x_t)|."""
    zeta = 0.3

    def distance(x):
        return jnp.abs(Y - A @ PRIOR.mean(x, T))

    theirs = posterior_step(KEY, X, T, S, 0.0) - zeta * jax.grad(distance)(X)
    rate = published_strength(lambda t: zeta * PATH(T)[0] / PATH(S)[0], eta=0.0)
    np.testing.assert_allclose(ours(TrainingFree(lambda x: -jnp.abs(Y - A @ x), rho=rate, eta=0.0)), theirs, atol=1e-12)


def test_mpgd():
    """m <- m - c grad |y - A m|^2 / 2, and the step goes on from there with the noise that it had."""
    rate, (alpha_t, sigma_t), (alpha_s, sigma_s) = 0.2, scales(T), scales(S)
    mean = PRIOR.mean(X, T)
    noise = (X - alpha_t * mean) / sigma_t
    theirs = alpha_s * (mean + rate * A * (Y - A @ mean)) + sigma_s * noise
    sampler = TrainingFree(lambda x: -0.5 * (Y - A @ x) ** 2, rho=0.0, mu=rate, eta=0.0)
    np.testing.assert_allclose(ours(sampler), theirs, atol=1e-12)


def test_the_whole_step_of_tfg():
    """Both strengths, in the published units: x_s + rho grad / sqrt(alpha) + sqrt(alpha bar) Delta_0, n iterations."""
    rho, mu, (alpha_t, _), (alpha_s, _) = 0.05, 0.03, scales(T), scales(S)
    mean = PRIOR.mean(X, T)
    variance = rho * jax.grad(lambda x: log_likelihood(PRIOR.mean(x, T)))(X)
    shift = jnp.zeros(2)
    for _ in range(3):
        shift = shift + mu * jax.grad(log_likelihood)(mean + shift)
    theirs = posterior_step(KEY, X, T, S, 0.0) + variance / (alpha_t / alpha_s) + alpha_s * shift
    sampler = TrainingFree(log_likelihood, rho=published_strength(rho, eta=0.0), mu=mu, iterations=3, eta=0.0)
    np.testing.assert_allclose(ours(sampler), theirs, atol=1e-12)
    changing = published_strength(lambda t: rho * t / T, eta=0.0)
    np.testing.assert_allclose(
        ours(TrainingFree(log_likelihood, rho=changing, mu=lambda p, t, s: mu, iterations=3, eta=0.0)),
        theirs,
        atol=1e-12,
    )


def many(step, count=6000):
    return jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(7), count))


def test_freedom_and_universal_guidance():
    """Time travel: denoise with guidance, add noise, three times; with steps in the denoised value it is UGD."""
    rho, mu, (alpha_t, _), (alpha_s, _) = 0.3, 0.1, scales(T), scales(S)

    def theirs(key):
        x = X
        for i in range(3):
            key_step, key_back = jax.random.split(jax.random.fold_in(key, i))
            gain = jax.grad(lambda x: log_likelihood(PRIOR.mean(x, T)))(x)
            shift = jnp.zeros(2)
            for _ in range(2):
                shift = shift + mu * jax.grad(log_likelihood)(PRIOR.mean(x, T) + shift)
            moved = posterior_step(key_step, x, T, S, 1.0) + rho * gain * alpha_s / alpha_t + alpha_s * shift
            share = alpha_t / alpha_s
            x = share * moved + jnp.sqrt(1 - share**2) * jax.random.normal(key_back, (2,))
        return moved

    sampler = TrainingFree(log_likelihood, rho=published_strength(rho), mu=mu, iterations=2, repeats=3)
    a, b = many(lambda key: ours(sampler, jax.random.fold_in(key, 99))), many(theirs)
    for i in range(2):
        assert_same_distribution(a[:, i], b[:, i], detects=0.1)


@pytest.mark.slow
def test_lgd():
    """The likelihood averaged over noise around the denoised value, on the log scale."""
    width, probes, (_, sigma_t) = 1.5, 3, scales(T)

    def theirs(key):
        key_step, key_probe = jax.random.split(key)
        noise = width * sigma_t * jax.random.normal(key_probe, (probes, 2))

        def averaged(x):
            return jnp.log(jnp.mean(jnp.exp(jax.vmap(log_likelihood)(PRIOR.mean(x, T) + noise))))

        gain = jax.grad(averaged)(X)
        return posterior_step(key_step, X, T, S, 0.0) + 0.5 * gain

    rho = published_strength(lambda t: 0.5 * PATH(T)[0] / PATH(S)[0], eta=0.0)
    sampler = TrainingFree(log_likelihood, rho=rho, smoothing=width, probes=probes, eta=0.0)
    a, b = many(lambda key: ours(sampler, jax.random.fold_in(key, 99))), many(theirs)
    for i in range(2):
        assert_same_distribution(a[:, i], b[:, i], detects=0.1)


def test_a_gaussian_with_a_linear_log_likelihood_is_exact():
    """E[exp(b x_0) | x_t] = exp(b m(x_t) + const): Bayes' rule holds with rho = 1, and the posterior is N(mu + C b, C),
    at every step."""
    mean, covariance, b = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]]), np.array([0.7, -0.4])
    prior, posterior = (GaussianMixture([1.0], [m], covariance, PATH) for m in (mean, mean + covariance @ b))
    times = even_log_snr(PATH, 20)

    def end(sampler, denoiser):
        return jax.jit(lambda z: sample_path(KEY, sampler, denoiser, z, times))(jnp.array([0.4, 1.3]))

    for eta in (0.0, 1.0):
        guided = TrainingFree(lambda x: b @ x, eta=eta)
        free = TrainingFree(lambda x: 0.0 * x[0], eta=eta)  # the same keys
        np.testing.assert_allclose(end(guided, prior), end(free, posterior), atol=1e-12)


def test_no_strength_is_no_guidance():
    sampler = TrainingFree(log_likelihood, rho=0.0, eta=0.0)
    np.testing.assert_allclose(ours(sampler), DDIM().step(KEY, PRIOR, X, T, S, None)[0], atol=1e-12)


def test_gradients_pass_through_what_was_observed():
    """A number that the likelihood closes over, differentiated through a draw."""

    def drawn(y):
        law = DenoisedDistribution(PRIOR, sampler=TrainingFree(lambda x: -2 * (y - A @ x) ** 2, eta=0.0), steps=8)
        return law.sample(KEY)[0]

    gradient, step = jax.jit(jax.grad(drawn))(Y), 1e-5
    drawn = jax.jit(drawn)
    assert float(gradient) == pytest.approx(float(drawn(Y + step) - drawn(Y - step)) / (2 * step), rel=1e-5)
    assert abs(gradient) > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -1.0}, "rho=-1.0"),
        ({"mu": float("nan")}, "mu=nan"),
        ({"repeats": 0}, "repeats=0"),
        ({"iterations": 1.5}, "iterations=1.5"),
        ({"eta": 2.0}, "eta"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(pg.MethodError, match=message):
        TrainingFree(log_likelihood, **settings)
    with pytest.raises(pg.MethodError, match="expected a function"):
        TrainingFree(3.0)
