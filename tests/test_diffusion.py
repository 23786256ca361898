"""Learned diffusion models: what they recover, what they offer, in what units; Poisson flows; scores put right."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

import probgen as pg
from probgen.generative import (
    DDIM,
    VE,
    VP,
    Correction,
    DenoisedDistribution,
    Denoiser,
    Diffusion,
    Ended,
    EpsilonScaling,
    GaussianMixture,
    Heun,
    PoissonFlow,
    PoissonKernel,
    Product,
    Tempered,
    Tilted,
    Training,
    calibrated,
    even_log_snr,
    exposure_bias,
    fit,
    flow_log_density,
    load,
    save,
)

SMALL = Training(steps=1500, batch=128, learning_rate=3e-3)
SCALES = np.array([0.5, 1.5])


def conditional_data():
    """Two entries of other units, given one number: N((10 + 3c, -c), diag(0.25, 2.25))."""
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, (4000, 1))
    return np.concatenate([10 + 3 * c, -c], 1) + rng.normal(size=(4000, 2)) * SCALES, c


@pytest.fixture(scope="module")
def model():
    return fit(Diffusion(width=32, depth=2, sampling_steps=16, bound_steps=50), *conditional_data(), training=SMALL)


class TestLearned:
    c = jnp.array([0.5])
    mean = np.array([11.5, -0.5])

    def test_draws_are_those_of_the_data_given_the_condition(self, model):
        draws = np.asarray(model.given(self.c).sample(jax.random.key(0), (2000,)))
        # Errors of the fit, a tenth of a standard deviation, are larger than those of the draws.
        np.testing.assert_allclose((draws.mean(0) - self.mean) / SCALES, 0, atol=0.15)
        np.testing.assert_allclose(draws.std(0) / SCALES, 1, atol=0.12)

    def test_the_density_is_in_the_units_of_the_data(self, model):
        x = self.mean + np.array([[0.0, 0.0], [0.5, -1.0]])
        exact = scipy.stats.norm.logpdf(x, self.mean, SCALES).sum(1)
        given = model.given(self.c)
        np.testing.assert_allclose(given.log_prob(x), exact, atol=0.25)
        np.testing.assert_allclose(given.denoised.log_prob(x), given.log_prob(x), rtol=1e-6)

    def test_draws_move_with_the_condition(self, model):
        slope = jax.jacobian(lambda c: model.given(c).noise_map(jnp.zeros(2)))(self.c)
        np.testing.assert_allclose(slope[:, 0] / SCALES, [3 / 0.5, -1 / 1.5], atol=1.0)

    @pytest.mark.slow
    def test_gradients_of_the_density_pass_through_the_condition(self, model):
        x = jnp.asarray(self.mean) + jnp.array([0.3, 0.0])
        slope = jax.grad(lambda c: model.given(c).log_prob(x))(self.c)
        assert float(slope[0]) == pytest.approx(3 * 0.3 / 0.25, abs=1.2)

    @pytest.mark.slow
    def test_the_bound_lies_below_the_density(self, model):
        given, x = model.given(self.c), jnp.asarray(self.mean)
        found = jax.jit(lambda keys: jax.vmap(lambda key: given.bound(key, x))(keys))(
            jax.random.split(jax.random.key(1), 100)
        )
        exact = scipy.stats.norm.logpdf(x, self.mean, SCALES).sum()
        assert exact - 3.0 < found.mean() < exact + 0.25
        assert given.bound(jax.random.key(0), jnp.zeros((3, 2))).shape == (3,)
        both = given.denoised
        assert jnp.isfinite(both.bound(jax.random.key(0), x))

    def test_the_noise_map_is_the_sampler(self, model):
        given = model.given(self.c)
        key_noise, _ = jax.random.split(jax.random.key(3))
        z = jax.random.normal(key_noise, (2,))
        np.testing.assert_allclose(given.noise_map(z), given.draw(jax.random.key(3)), rtol=1e-6)

    def test_it_is_saved_and_read(self, model, tmp_path):
        save(model, tmp_path / "model")
        again = load(tmp_path / "model")
        key = jax.random.key(4)
        np.testing.assert_array_equal(again.given(self.c).sample(key), model.given(self.c).sample(key))

    def test_corrections_are_in_the_units_of_the_data(self, model):
        """A reward on the first entry moves a Gaussian by its variance; its evidence is E exp(x)."""
        prior = model.given(self.c).denoised
        tilted = Tilted(prior, lambda x: x[0], correction=Correction(particles=512, steps=60))
        found = tilted.run(jax.random.key(5))
        weights = np.exp(found.log_w)
        assert (weights @ np.asarray(found.x))[0] == pytest.approx(self.mean[0] + 0.25, abs=0.15)
        assert float(found.log_z) == pytest.approx(self.mean[0] + 0.125, abs=0.15)

    @pytest.mark.slow
    def test_tempering_is_in_the_units_of_the_data(self, model):
        prior = model.given(self.c).denoised
        cold = Tempered(prior, 2.0, correction=Correction(particles=512, steps=100)).run(jax.random.key(6))
        spread = np.sqrt(np.exp(cold.log_w) @ (np.asarray(cold.x) - self.mean) ** 2)
        np.testing.assert_allclose(spread, SCALES / np.sqrt(2), rtol=0.25)
        # The integral of the square of a normal density.
        assert float(cold.log_z) == pytest.approx(-np.log(4 * np.pi * SCALES.prod()), abs=0.3)

    def test_parts_of_other_units_are_refused(self, model):
        other = DenoisedDistribution(model.given(self.c).denoiser)
        with pytest.raises(pg.MethodError, match="part 1 has other standard units than part 0"):
            Product([model.given(self.c).denoised, other])
        Product([model.given(self.c).denoised, model.given(-self.c).denoised])

    def test_one_condition_at_a_time(self, model):
        with pytest.raises(pg.MethodError, match="was given none"):
            _ = model.denoised
        with pytest.raises(pg.MethodError, match=r"a batch of shape \(3,\)"):
            _ = model.given(jnp.zeros((3, 1))).denoised


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Diffusion(width=0), "width=0, expected an int"),
        (Diffusion(noise=(0.0, -1.0)), "the positive standard deviation"),
        (Diffusion(tolerance=2.0), "expected 0 < tolerance < 1"),
        (Diffusion(ending=3), "expected a family of real data"),
        (PoissonFlow(extra=-1.0), "extra=-1.0, expected a positive number"),
        (PoissonFlow(sampler=DDIM(eta=1.0)), "an ordinary equation only"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(family, words):
    with pytest.raises(pg.MethodError, match=words):
        fit(family, np.zeros((10, 2)))


@pytest.mark.slow
def test_a_short_path_with_a_learned_end_has_the_same_likelihood():
    """A third of the path: with noise at its end the density loses what it does with an exact denoiser, the divergence
    of noisy data from noise (0.078 nats in the mean); with an ending of its own it does not."""
    rng = np.random.default_rng(1)
    x = rng.choice([-1.0, 1.0], (4000, 1)) * 2 + 0.5 * rng.normal(size=(4000, 1)) + 5
    scale, short = np.sqrt(4.25), VP(end=0.3)
    at = x[:200]

    def exact(path):
        law = GaussianMixture([0.5, 0.5], [[-2 / scale], [2 / scale]], 0.25 / scale**2 * np.eye(1), path)
        denoiser = Ended(law, dist.Normal(jnp.zeros(1), path(path.end)[1]).to_event(1))
        return float(jnp.mean(jax.jit(jax.vmap(lambda z: flow_log_density(denoiser, z)))((at - 5) / scale)))

    right = exact(VP())
    lost = exact(short) - right
    assert abs(lost + 0.078) < 0.04
    missed = {}
    for name, family, truth in (
        ("long", Diffusion(width=32, depth=2), right),
        ("short", Diffusion(path=short, width=32, depth=2), right + lost),
        ("ended", Diffusion(path=short, width=32, depth=2, ending=Diffusion(width=32, depth=2)), right),
    ):
        model = fit(family, x, training=SMALL, seed=0)
        missed[name] = float(jnp.mean(jax.jit(model.log_prob)(at))) + np.log(scale) - truth
        if name == "ended":
            drawn = model.sample(jax.random.key(0), (1000,))
            np.testing.assert_allclose([drawn.mean(), drawn.std()], [5, scale], atol=0.3)
            assert model.noise_map(jnp.zeros(1)).shape == (1,)
    assert max(map(abs, missed.values())) < 0.04, missed  # half of what a wrong end costs


class Points(Denoiser):
    """The exact denoiser of a few points under the noise of a Poisson flow, or under Gaussian noise."""

    points: jax.Array
    extra: float
    path: VE

    @property
    def shape(self):
        return self.points.shape[1:]

    def kernel(self, t):
        _alpha, sigma = self.path(t)
        if np.isinf(self.extra):
            return lambda x: dist.Normal(0.0, sigma).log_prob(x).sum()
        return PoissonKernel(self.shape, self.extra, sigma).density

    def each(self, x, t):
        return jax.vmap(lambda p: self.kernel(t)(x - self.path(t)[0] * p))(self.points)

    def mean(self, x, t):
        return jax.nn.softmax(self.each(x, t)) @ self.points

    def log_noise(self, x):
        return jax.nn.logsumexp(self.each(x, self.path.end)) - jnp.log(len(self.points))


class TestPoisson:
    points = jnp.array([[-1.0, 0.3], [0.7, 1.2], [0.5, -0.8]])

    def test_the_kernel_is_that_of_the_field(self):
        """Up to a constant (|x|^2 + r^2)^(-(N + D)/2) with r = sigma sqrt(D), which is a multivariate t."""
        x = np.array([[0.1, 0.2], [3.0, -2.0], [0.0, 9.0]])
        found = PoissonKernel((2,), 5.0, 1.7).log_prob(x)
        np.testing.assert_allclose(
            found, scipy.stats.multivariate_t.logpdf(x, shape=1.7**2 * np.eye(2), df=5), rtol=1e-9
        )
        field = -(2 + 5) / 2 * np.log((x**2).sum(1) + 1.7**2 * 5)
        np.testing.assert_allclose(found - found[0], field - field[0], rtol=1e-9)

    def test_the_radius_is_drawn_as_in_the_paper(self):
        """R^2 = r^2 b / (1 - b) with b of the law Beta(N/2, D/2)."""
        draws = PoissonKernel((2,), 5.0, 1.7).sample(jax.random.key(0), (4000,))
        noise = 1.7 * PoissonFlow(extra=5.0).noise_for(jax.random.key(1), jnp.zeros((4000, 2)))
        for x in (draws, noise):
            ratio = jnp.sum(x**2, -1) / (1.7**2 * 5)
            assert scipy.stats.kstest(np.asarray(ratio / (1 + ratio)), scipy.stats.beta(1, 2.5).cdf).pvalue > 1e-4

    def test_many_dimensions_are_a_diffusion(self):
        x = jnp.array([0.4, -0.3])
        near, limit = (Points(points=self.points, extra=extra, path=VE(0.05, 20.0)) for extra in (1e7, np.inf))
        np.testing.assert_allclose(near.velocity(x, 0.5), limit.velocity(x, 0.5), rtol=1e-5)
        few = Points(points=self.points, extra=4.0, path=VE(0.05, 20.0))
        assert np.abs(few.velocity(x, 0.5) / limit.velocity(x, 0.5) - 1).max() > 1e-2

    def test_the_flow_carries_the_density(self):
        denoiser = Points(points=self.points, extra=4.0, path=VE(0.3, 20.0))
        x = self.points + 0.2
        exact = jax.vmap(lambda x: jax.nn.logsumexp(denoiser.each(x, denoiser.path.start)) - jnp.log(3.0))(x)
        found = jax.jit(jax.vmap(lambda x: flow_log_density(denoiser, x)))(x)
        np.testing.assert_allclose(found, exact, atol=1e-5)

    @pytest.mark.slow
    def test_a_fit_recovers_a_mixture(self, tmp_path):
        rng = np.random.default_rng(0)
        x = rng.choice([-2.0, 2.0], (4000, 1)) + 0.5 * rng.normal(size=(4000, 2))
        model = fit(PoissonFlow(extra=16.0, sampler=Heun(), width=32, depth=2), x, training=SMALL, seed=0)
        draws = np.asarray(model.sample(jax.random.key(0), (2000,)))
        assert abs((draws[:, 0] > 0).mean() - 0.5) < 0.06
        np.testing.assert_allclose(np.abs(draws).mean(0), 2.0, atol=0.1)
        exact = np.log(0.5) + scipy.stats.norm.logpdf(x[:50], np.sign(x[:50, :1].round()) * 2, 0.5).sum(1)
        found = jax.jit(model.log_prob)(x[:50])
        assert abs(float(jnp.median(found)) - np.median(exact)) < 0.15
        save(model, tmp_path / "model")
        np.testing.assert_array_equal(load(tmp_path / "model").log_prob(x[:3]), model.log_prob(x[:3]))
        with pytest.raises(pg.MethodError, match="has no score"):
            model.score(x[0], 0.5)
        with pytest.raises(pg.MethodError, match="has no score"):
            _ = model.denoised


class Wrong(Denoiser):
    """A denoiser with a mean error that depends on the noise level."""

    right: GaussianMixture
    path: VP

    @property
    def shape(self):
        return self.right.shape

    def mean(self, x, t):
        return self.right.mean(x, t) + jnp.sin(3 * t) * jnp.array([0.5, -0.2]) + 0.1 * jnp.tanh(x)


class TestPutRight:
    mixture = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [0.8, 0.0]], 0.2 * np.eye(2), VP())

    def test_the_loss_falls_by_the_squared_mean_of_the_score(self):
        """An identity, with noise in pairs of opposite signs."""
        denoiser = Wrong(right=self.mixture, path=self.mixture.path)
        data = jax.vmap(self.mixture.draw, (0, None))(jax.random.split(jax.random.key(0), 200), 0.0)
        better = calibrated(jax.random.key(1), denoiser, data, levels=9)
        noise = jax.random.normal(jax.random.key(1), data.shape)
        noise, data = jnp.concatenate([noise, -noise]), jnp.concatenate([data, data])
        for t in even_log_snr(denoiser.path, 8)[1:-1:3]:
            alpha, sigma = denoiser.path(t)

            def scores(denoiser, t=t, alpha=alpha, sigma=sigma):
                return jax.vmap(denoiser.score, (0, None))(alpha * data + sigma * noise, t)

            def loss(score, sigma=sigma):
                return jnp.mean(jnp.sum((score + noise / sigma) ** 2, 1))

            before, after = scores(denoiser), scores(better)
            np.testing.assert_allclose(after.mean(0), 0, atol=1e-9 / sigma**2)
            # At these levels the table is met exactly.
            np.testing.assert_allclose(loss(before) - loss(after), jnp.sum(before.mean(0) ** 2), rtol=1e-6)
            assert loss(after) < loss(before)

    def test_between_levels_the_mean_error_is_small(self):
        denoiser = Wrong(right=self.mixture, path=self.mixture.path)
        data = jax.vmap(self.mixture.draw, (0, None))(jax.random.split(jax.random.key(2), 4000), 0.0)
        better = calibrated(jax.random.key(1), denoiser, data)
        noisy = next(a * data + s * jax.random.normal(jax.random.key(3), data.shape) for a, s in [denoiser.path(0.4)])
        errors = [
            jax.vmap(d.mean, (0, None))(noisy, 0.4).mean(0) - jax.vmap(self.mixture.mean, (0, None))(noisy, 0.4).mean(0)
            for d in (denoiser, better)
        ]
        assert np.abs(errors[1]).max() < 0.2 * np.abs(errors[0]).max()

    def test_exposure_bias_is_what_the_sampler_makes(self):
        """DDIM on a Gaussian is linear, so the standard deviations of its values are known."""
        denoiser = GaussianMixture([1.0], [[0.0]], [[0.5]], VP())
        times = even_log_snr(denoiser.path, 10)
        found = exposure_bias(jax.random.key(0), DDIM(), denoiser, jnp.array([0.5]), times, draws=4000)
        sd = [float(found.forward[0, 0])]
        for t, s in itertools.pairwise(times):
            sd.append(sd[-1] * float(DDIM().step(jax.random.key(0), denoiser, jnp.ones(1), t, s, None)[0][0]))
        np.testing.assert_allclose(found.sampled[:, 0], sd, rtol=5 / np.sqrt(2 * 4000))
        assert np.abs(found.sampled[-1] / found.forward[-1] - 1) > 0.1
        np.testing.assert_allclose(found.metric, (found.sampled - found.forward)[:, 0] ** 2)

    def test_scaled_noise_lowers_the_metric_at_no_cost(self):
        weights, means = np.exp(self.mixture.log_weights), np.asarray(self.mixture.means)
        variances = jnp.asarray(0.2 + weights @ means**2 - (weights @ means) ** 2)
        times = even_log_snr(self.mixture.path, 10)

        @jax.jit
        def last(constant):
            scaled = EpsilonScaling(self.mixture, constant)
            return exposure_bias(jax.random.key(1), DDIM(), scaled, variances, times).metric[-1]

        plain, scaled = last(1.0), last(1.03)
        assert scaled < 0.5 * plain
        direct = exposure_bias(jax.random.key(1), DDIM(), self.mixture, variances, times).metric[-1]
        np.testing.assert_allclose(plain, direct, rtol=1e-6)
        x = jnp.array([0.3, 0.1])
        noise = [
            (x - self.mixture.path(0.3)[0] * d.mean(x, 0.3))
            for d in (self.mixture, EpsilonScaling(self.mixture, 1.1, 0.5))
        ]
        np.testing.assert_allclose(noise[0] / noise[1], 1.1 + 0.15, rtol=1e-9)

    def test_wrong_settings_are_refused(self):
        with pytest.raises(pg.MethodError, match="data must have the shape"):
            calibrated(jax.random.key(0), self.mixture, jnp.zeros((5, 3)))
        with pytest.raises(pg.MethodError, match="expected a denoiser"):
            EpsilonScaling(1.0, 1.0)
        with pytest.raises(pg.MethodError, match="one for each entry"):
            exposure_bias(jax.random.key(0), DDIM(), self.mixture, 1.0, even_log_snr(VP(), 3))
        with pytest.raises(pg.MethodError, match="expected a NumPyro distribution"):
            Ended(self.mixture, None)
