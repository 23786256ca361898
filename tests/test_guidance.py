"""Guidance in the denoiser: the exact posterior of a mixture, classifier guidance, classifier-free guidance and CFG++."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative import (
    DDIM,
    VP,
    CFGPlusPlus,
    ClassifierGuidance,
    DenoisedDistribution,
    GaussianMixture,
    Guidance,
    UniPC,
    block_mean,
    even_log_snr,
    kept,
    observed_mixture,
    sample_path,
)
from probgen.generative.guidance import renoise
from probgen.testing import assert_moments

PATH = VP()
A, Y, R = np.array([[1.0, 0.5]]), np.array([0.4]), np.array([[0.09]])


def mixture(path=PATH):
    roots = np.random.default_rng(0).normal(size=(3, 2, 2)) * 0.25
    means = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.2]])
    return GaussianMixture([0.2, 0.3, 0.5], means, roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2), path)


PRIOR = mixture()
POINTS = np.random.default_rng(1).normal(size=(20, 2))


def test_the_observed_mixture_is_prior_times_likelihood():
    clean = VP(start=1e-10)
    prior = mixture(clean)
    posterior = observed_mixture(prior, A, Y, R)

    def log_ratio(x):
        likelihood = -0.5 * (Y[0] - A[0] @ x) ** 2 / R[0, 0]
        return posterior.log_density(x, clean.start) - prior.log_density(x, clean.start) - likelihood

    ratios = jax.vmap(log_ratio)(POINTS)
    np.testing.assert_allclose(ratios, ratios[0], atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "covariance", "message"),
    [(np.ones((2, 2)), R, "expected .n, 2., .n,. and .n, n."), (A, np.zeros((1, 1)), "positive definite")],
)
def test_an_observation_that_does_not_fit_is_refused(matrix, covariance, message):
    with pytest.raises(pg.MethodError, match=message):
        observed_mixture(PRIOR, matrix, Y, covariance)


def test_projections():
    x = jnp.arange(16.0).reshape(4, 4)
    low = block_mean(2)(x)
    np.testing.assert_array_equal(low[:2, :2], 2.5)
    np.testing.assert_array_equal(low[2:, 2:], 12.5)
    np.testing.assert_array_equal(kept([True, False])(jnp.array([3.0, 4.0])), [3.0, 0.0])
    with pytest.raises(pg.MethodError, match="lengths that 3 divides"):
        block_mean(3)(x)


def test_noise_that_is_added_leads_to_the_law_of_the_later_time():
    s, t = 0.2, 0.5
    gaussian = GaussianMixture([1.0], [[1.0, -1.0]], [[0.5, 0.2], [0.2, 0.3]], PATH)

    def draw(key):
        key_value, key_noise = jax.random.split(key)
        return renoise(key_noise, PATH, gaussian.draw(key_value, s), s, t)

    draws = jax.vmap(draw)(jax.random.split(jax.random.key(0), 40 * 200)).reshape(40, 200, 2)
    alpha, sigma = PATH(t)
    covariance = alpha**2 * np.array([[0.5, 0.2], [0.2, 0.3]]) + sigma**2 * np.eye(2)
    assert_moments(draws, alpha * np.array([1.0, -1.0]), covariance, detects=0.2)


# -- classifier guidance ---------------------------------------------------------------------------------------------


def test_the_exact_noisy_classifier_gives_the_conditional_denoiser():
    """For a likelihood, and for the labels of the components; at all times, and with its covariance."""
    posterior = observed_mixture(PRIOR, A, Y, R)
    by_likelihood = ClassifierGuidance(PRIOR, lambda x, t: posterior.log_density(x, t) - PRIOR.log_density(x, t))
    by_label = ClassifierGuidance(PRIOR, lambda x, t: jnp.log(PRIOR.shares(x, t)[1]))
    covariances = np.einsum("kij,kj,klj->kil", PRIOR.axes, PRIOR.variances, PRIOR.axes)
    labelled = GaussianMixture([1.0], PRIOR.means[1:2], covariances[1:2], PATH)
    for guided, exact in ((by_likelihood, posterior), (by_label, labelled)):
        at = jnp.linspace(0.05, 0.9, len(POINTS))
        means = [jax.jit(jax.vmap(denoiser.mean))(POINTS, at) for denoiser in (guided, exact)]
        np.testing.assert_allclose(*means, atol=1e-7)
    matrices = [jax.jit(lambda d=d: d(POINTS[0], 0.3).matrix())() for d in (by_likelihood, posterior)]
    np.testing.assert_allclose(*matrices, atol=1e-6)


@pytest.mark.slow
def test_its_draws_are_those_of_conditional_sampling():
    posterior = observed_mixture(PRIOR, A, Y, R)
    guided = ClassifierGuidance(PRIOR, lambda x, t: posterior.log_density(x, t) - PRIOR.log_density(x, t))
    times = even_log_snr(PATH, 20)
    noise = jax.vmap(PRIOR.draw_noise)(jax.random.split(jax.random.key(0), 50))

    def ends(denoiser):
        return jax.jit(jax.vmap(lambda z: sample_path(jax.random.key(1), UniPC(), denoiser, z, times)))(noise)

    np.testing.assert_allclose(ends(guided), ends(posterior), atol=1e-6)


def test_the_scale_multiplies_the_gradient_of_the_classifier():
    guided = ClassifierGuidance(PRIOR, lambda x, t: jnp.sum(x * t), 3.0)
    np.testing.assert_allclose(guided.score(POINTS[0], 0.4), PRIOR.score(POINTS[0], 0.4) + 3 * 0.4, atol=1e-10)


def test_a_classifier_must_be_a_function():
    with pytest.raises(pg.MethodError, match="expected a denoiser and a function"):
        ClassifierGuidance(PRIOR, 3.0)


# -- classifier-free guidance and autoguidance -----------------------------------------------------------------------


def test_guidance_of_gaussian_classes_in_closed_form():
    """On centred Gaussians the flow is a scaling, x(0) = x(1) prod_i (V_i(0) / V_i(1))^(w_i / 2): the variance is the
    geometric mean of powers, not the harmonic one that the geometric average of the two laws has."""
    w, wide, narrow = 2.0, 1.5, 0.6
    guided = Guidance(
        GaussianMixture([1.0], [[0.0]], [[narrow]], PATH), GaussianMixture([1.0], [[0.0]], [[wide]], PATH), w
    )
    times = even_log_snr(PATH, 500)
    end = jax.jit(lambda z: sample_path(jax.random.key(0), UniPC(), guided, z, times)[0])
    scale = end(jnp.ones(1))  # the flow is linear

    def log_variance(v, t):
        alpha, sigma = PATH(t)
        return jnp.log(alpha**2 * v + sigma**2)

    ends = [w * log_variance(narrow, t) + (1 - w) * log_variance(wide, t) for t in (PATH.start, PATH.end)]
    assert 2 * jnp.log(scale) == pytest.approx(float(ends[0] - ends[1]), abs=1e-5)
    average = 1 / (w / narrow + (1 - w) / wide)
    assert abs(np.log(scale**2 / average)) > 0.1


def test_guidance_of_classes_of_one_covariance_is_the_geometric_average():
    """Gaussians that differ in the mean alone: the mean is exaggerated, and that is all."""
    w, covariance = 3.0, np.array([[0.5, 0.2], [0.2, 0.4]])
    cond, uncond = (GaussianMixture([1.0], [mean], covariance, PATH) for mean in ([1.0, -0.5], [0.2, 0.3]))
    exact = GaussianMixture([1.0], [w * cond.means[0] + (1 - w) * uncond.means[0]], covariance, PATH)
    means = [jax.vmap(lambda x, d=d: d.mean(x, 0.4))(POINTS) for d in (Guidance(cond, uncond, w), exact)]
    np.testing.assert_allclose(*means, atol=1e-9)


@pytest.mark.slow
def test_autoguidance_removes_outliers_and_keeps_the_modes():
    """A model that is too wide, guided by one that is wider still; the truth is narrow."""
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    means = 2.0 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    truth, model, bad = (GaussianMixture(weights, means, v * np.eye(2), PATH) for v in (0.05, 0.09, 0.2))
    noise = jax.vmap(model.draw_noise)(jax.random.split(jax.random.key(0), 4000))
    times = even_log_snr(PATH, 32)

    @jax.jit
    def ends(weight):
        guided = Guidance(model, bad, weight)
        return jax.vmap(lambda z: sample_path(jax.random.key(1), UniPC(), guided, z, times))(noise)

    plain = jax.jit(jax.vmap(lambda z: sample_path(jax.random.key(1), UniPC(), model, z, times)))(noise)
    np.testing.assert_allclose(ends(1.0), plain, atol=1e-8)

    def outliers(x):
        nearest = jnp.min(jnp.sum((x[:, None] - PATH(PATH.start)[0] * means) ** 2, -1), -1)
        return float(jnp.mean(nearest > 9.21 * 0.05))  # outside of 99% of the truth

    def shares(x):
        return np.asarray(jax.vmap(lambda x: truth.shares(x, PATH.start))(x).mean(0))

    guided = ends(1.7)
    assert outliers(plain) > 0.05  # exp(-9.21 * 0.05 / (2 * 0.09)) = 0.077
    assert outliers(guided) < 0.3 * outliers(plain)
    # Five standard errors: the noise is the same, so what moves is what guidance moves.
    np.testing.assert_allclose(shares(guided), weights, atol=5 * np.sqrt(0.25 / 4000))


# -- CFG++ -----------------------------------------------------------------------------------------------------------

COND = observed_mixture(PRIOR, A, Y, R)


def test_a_step_of_cfg_plus_plus_is_one_of_ddim_with_a_larger_weight():
    t, s, share = 0.5, 0.42, 0.6
    (alpha_t, sigma_t), (alpha_s, sigma_s) = PATH(t), PATH(s)
    weight = share / (1 - sigma_s * alpha_t / (alpha_s * sigma_t))
    x, key = jnp.array([0.3, -0.8]), jax.random.key(0)
    ours = CFGPlusPlus().step(key, Guidance(COND, PRIOR, share), x, t, s, None)[0]
    np.testing.assert_allclose(ours, DDIM().step(key, Guidance(COND, PRIOR, weight), x, t, s, None)[0], atol=1e-12)
    nothing = CFGPlusPlus().step(key, Guidance(COND, PRIOR, 0.0), x, t, s, None)[0]
    np.testing.assert_allclose(nothing, DDIM().step(key, PRIOR, x, t, s, None)[0], atol=1e-12)


def test_inversion_comes_back_closer_than_with_classifier_free_guidance():
    times = even_log_snr(PATH, 30)
    x = jax.vmap(lambda key: COND.draw(key, PATH.start))(jax.random.split(jax.random.key(0), 200))

    def round_trip(sampler, weight):
        def there_and_back(x):
            denoiser = Guidance(COND, PRIOR, weight)
            noise = sample_path(jax.random.key(0), sampler, denoiser, x, times[::-1])
            return sample_path(jax.random.key(0), sampler, denoiser, noise, times)

        return float(jnp.sqrt(jnp.mean((jax.jit(jax.vmap(there_and_back))(x) - x) ** 2)))

    # The pair of weights that the authors take as alike.
    assert round_trip(CFGPlusPlus(), 0.6) < 0.5 * round_trip(DDIM(), 7.5)


def test_cfg_plus_plus_wants_a_guidance_of_at_most_one():
    with pytest.raises(pg.MethodError, match="got a GaussianMixture"):
        DenoisedDistribution(PRIOR, sampler=CFGPlusPlus()).sample(jax.random.key(0))
    with pytest.raises(pg.MethodError, match="between 0 and 1"):
        DenoisedDistribution(Guidance(COND, PRIOR, 2.0), sampler=CFGPlusPlus()).sample(jax.random.key(0))
