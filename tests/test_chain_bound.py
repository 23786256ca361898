"""The variational bound of the denoising chain: against quadrature, against the law of the chain, and as steps grow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.generative import (
    VP,
    DenoisedDistribution,
    Ended,
    GaussianMixture,
    chain_bound,
    class_log_probs,
    even_log_snr,
)
from probgen.testing import assert_mean


def normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def totals(denoiser, x, times, count, key=0):
    """Replicates of the bound at one value, in groups that are nearly normal."""
    run = jax.jit(jax.vmap(lambda key: chain_bound(key, denoiser, x, times).total))
    return run(jax.random.split(jax.random.key(key), count)).reshape(40, -1).mean(1)


def test_two_steps_agree_with_quadrature():
    """E_q log p(x_2) p(x_1 | x_2) p(x | x_1) / q(x_2, x_1 | x), straight from the definition."""
    denoiser = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], np.array([[[0.1]], [[0.3]]]), VP(start=0.2))
    path, x = denoiser.path, np.array([0.3])
    # The middle lies near the data end, where the spreads of the two chains differ most.
    times = jnp.array([path.end, 0.25, path.start])
    (a0, s0), (a1, s1), (a2, s2) = (map(float, path(t)) for t in times[::-1])
    z, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    v1, r = s1**2 - (a1 / a0) ** 2 * s0**2, a2 / a1
    v21 = s2**2 - r**2 * s1**2
    x1 = a1 / a0 * x[0] + np.sqrt(v1) * z
    x2 = r * x1[:, None] + np.sqrt(v21) * z
    mean = jax.vmap(lambda x, t: denoiser.mean(x[None], t)[0], (0, None))

    def step(noisy, t, s):
        a, b, v = denoiser.ancestral(t, s)
        return a * noisy + b * np.asarray(mean(noisy.reshape(-1), t)).reshape(noisy.shape), float(v)

    end = np.asarray(jax.vmap(lambda x: denoiser.log_noise(x[None]))(x2.reshape(-1))).reshape(x2.shape)
    ratio = end + normal(x1[:, None], *step(x2, times[0], times[1])) + normal(x[0], *step(x1, *times[1:]))[:, None]
    ratio -= normal(x1, a1 / a0 * x[0], v1)[:, None] + normal(x2, r * x1[:, None], v21)
    assert_mean(totals(denoiser, x, times, 40 * 500), w @ ratio @ w, detects=0.1)


def test_it_bounds_the_law_of_the_ancestral_sampler():
    """On a Gaussian the chain is linear, so its density is known for any number of steps."""
    denoiser = GaussianMixture([1.0], [[0.5]], [[0.4]], VP())
    times = even_log_snr(denoiser.path, 20)
    alpha, sigma = denoiser.path(times[0])
    mean, variance = alpha * 0.5, alpha**2 * 0.4 + sigma**2
    for t, s in itertools.pairwise(times):
        a, b, v = denoiser.ancestral(t, s)
        offset = denoiser.mean(jnp.zeros(1), t)[0]
        slope = a + b * (denoiser.mean(jnp.ones(1), t)[0] - offset)
        mean, variance = slope * mean + b * offset, slope**2 * variance + v
    for x in (0.5, 1.5):
        found = totals(denoiser, jnp.array([x]), times, 40 * 50)
        gap = normal(x, mean, variance) - found.mean()
        assert 3 * found.std() / np.sqrt(40) < gap < 4


@pytest.mark.slow
def test_the_gap_closes_as_steps_are_added():
    denoiser = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], np.array([[[0.1]], [[0.3]]]), VP())
    x = jnp.array([0.3])
    exact = float(denoiser.log_density(x, denoiser.path.start))
    gaps = []
    for steps in (100, 400):
        found = totals(denoiser, x, even_log_snr(denoiser.path, steps), 40 * 50)
        gaps.append((exact - found.mean(), found.std() / np.sqrt(40)))
    (first, e1), (second, e2) = gaps
    assert second > 3 * e2
    assert abs(first / 4 - second) < 0.15 * second + 4 * np.hypot(e1 / 4, e2)


def test_a_short_path_needs_a_law_at_its_end():
    """The part of the end is minus the divergence, in closed form on a Gaussian; the rest of the bound is untouched, and
    with the right law at the end a third of the path gives the whole likelihood."""
    path = VP(end=0.3)
    alpha, sigma = (float(v) for v in path(path.end))
    prior = GaussianMixture([1.0], [[2.0]], [[0.25]], path)
    naive = Ended(prior, dist.Normal(jnp.zeros(1), sigma).to_event(1))
    fitted = Ended(prior, dist.Normal(jnp.full(1, 2.0 * alpha), np.sqrt(alpha**2 * 0.25 + sigma**2)).to_event(1))
    x, times = jnp.array([2.2]), even_log_snr(path, 200)
    a0, s0 = (float(v) for v in path(path.start))
    scale, variance = alpha / a0, sigma**2 - (alpha / a0 * s0) ** 2

    def parts(denoiser):
        run = jax.jit(jax.vmap(lambda key: chain_bound(key, denoiser, x, times)))
        return run(jax.random.split(jax.random.key(0), 40 * 50))

    lost, kept = parts(naive), parts(fitted)
    np.testing.assert_array_equal(lost.steps, kept.steps)
    np.testing.assert_array_equal(lost.data, kept.data)
    for found, (m, v) in ((lost, (0.0, sigma**2)), (kept, (2 * alpha, alpha**2 * 0.25 + sigma**2))):
        divergence = 0.5 * ((variance + (scale * 2.2 - m) ** 2) / v - 1 - np.log(variance / v))
        assert_mean(np.asarray(found.end).reshape(40, 50).mean(1), -divergence, detects=0.4)
    exact = normal(2.2, 2.0 * a0, a0**2 * 0.25 + s0**2)
    assert exact - 0.25 < kept.total.mean() < exact + 0.05
    assert lost.total.mean() < exact - 0.5
    np.testing.assert_allclose(naive.draw_noise(jax.random.key(1)), sigma * jax.random.normal(jax.random.key(1), (1,)))


def test_wrong_laws_at_the_end_are_refused():
    prior = GaussianMixture([1.0], [[2.0, 0.0]], np.eye(2), VP())
    with pytest.raises(pg.MethodError, match="expected a NumPyro distribution"):
        Ended(prior, 1.0)
    with pytest.raises(pg.MethodError, match=r"event shape \(\), expected \(\) and \(2,\)"):
        Ended(prior, dist.Normal(jnp.zeros(2), 1.0))


class TestClassifier:
    path = VP()
    classes = tuple(
        DenoisedDistribution(GaussianMixture([0.5, 0.5], [[c, 0.0], [c, 1.0]], 0.3 * np.eye(2), VP()), steps=100)
        for c in (-0.5, 0.5)
    )
    x = jnp.array([[0.1, 0.2], [-0.6, 1.0]])

    def exact(self, prior):
        logits = [jax.vmap(lambda x, d=d: d.denoiser.log_density(x, self.path.start))(self.x) for d in self.classes]
        return jax.nn.log_softmax(jnp.stack(logits, -1) + jnp.log(jnp.asarray(prior)))

    def test_it_is_bayes_rule(self):
        prior = (0.3, 0.7)
        keys = jax.random.split(jax.random.key(0), 40)
        found = jax.jit(jax.vmap(lambda key: class_log_probs(key, self.classes, self.x, prior=prior, draws=8)))(keys)
        assert found.shape == (40, 2, 2)
        np.testing.assert_allclose(jnp.sum(jnp.exp(found), -1), 1, rtol=1e-9)
        exact = self.exact(prior)
        # Of the log odds the bounds are unbiased, up to the difference of their gaps.
        assert_mean(found[..., 1] - found[..., 0], exact[:, 1] - exact[:, 0], detects=0.4, tolerance=0.05)

    @pytest.mark.slow
    def test_shared_noise_tells_classes_apart_with_fewer_draws(self):
        first, second = self.classes

        @jax.jit
        def spread(keys, others):
            each = jax.vmap(lambda k, o: second.bound(k, self.x) - first.bound(o, self.x))(keys, others)
            return each.std(0)

        keys, others = jax.random.split(jax.random.key(1), (2, 200))
        assert np.all(spread(keys, keys) < spread(keys, others) / 2)

    def test_wrong_settings_are_refused(self):
        with pytest.raises(pg.MethodError, match="at least two classes"):
            class_log_probs(jax.random.key(0), self.classes[:1], self.x)
        with pytest.raises(pg.MethodError, match="2 positive probabilities"):
            class_log_probs(jax.random.key(0), self.classes, self.x, prior=[0.5, 0.6])
        with pytest.raises(pg.MethodError, match="draws must be an int"):
            class_log_probs(jax.random.key(0), self.classes, self.x, draws=0)
