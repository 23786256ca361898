"""Consistency models and distillation, against closed forms and against the probability flow of a Gaussian mixture."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.generative.consistency import Consistency, level, place
from probgen.generative.consistency_trajectory import ConsistencyTrajectory, jump
from probgen.generative.denoiser import GaussianMixture, Guidance
from probgen.generative.diffusion import Diffusion
from probgen.generative.family import Now, Spec, Training
from probgen.generative.guided_distillation import GuidedDistillation
from probgen.generative.path import VE, VP, even_log_snr
from probgen.generative.progressive_distillation import ProgressiveDistillation, two_as_one
from probgen.generative.sampler import DDIM, UniPC, sample_path
from probgen.testing import assert_mean

LOW, HIGH = 0.002, 20.0
MEAN, SCALE = np.array([1.0, -2.0]), np.array([0.5, 2.0])
QUICK = Training(steps=2, batch=8, validation=0.0, block=2)


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.asarray(x) ** 2)))


def fitted(family, x, *, condition=None, steps=800, rate=2e-3, batch=128):
    training = Training(steps=steps, batch=batch, learning_rate=rate, validation=0.0, ema=0.99, block=steps)
    return pg.generative.fit(family, x, condition, training=training, seed=0)


@pytest.fixture(scope="module")
def normal():
    """A consistency model of a Gaussian, with two steps of sampling."""
    x = MEAN + SCALE * np.random.default_rng(0).normal(size=(4096, 2))
    family = Consistency(width=64, depth=2, levels=(LOW, HIGH), grid=(10, 320), refine=(0.8,))
    return fitted(family, x, steps=800)


@pytest.fixture(scope="module")
def pair():
    """An exact pair to be guided."""
    path = VP()
    cond = GaussianMixture([1.0], [[1.0, 0.5]], 0.2 * np.eye(2), path)
    uncond = GaussianMixture([0.5, 0.5], [[1.0, 0.5], [-1.0, -0.5]], 0.2 * np.eye(2), path)
    return cond, uncond


@pytest.fixture(scope="module")
def guided(pair):
    """The pair, its student, and what that was fitted to."""
    cond, uncond = pair
    keys = jax.random.split(jax.random.key(1), 2048)
    x = jax.vmap(lambda k: uncond.draw(k, uncond.path.start))(keys)
    weights = np.random.default_rng(0).uniform(1.0, 3.0, size=(len(x), 1))
    student = fitted(GuidedDistillation(cond, uncond, Diffusion(width=64, depth=2)), x, condition=weights)
    return cond, uncond, student, np.asarray(x), weights


# -- consistency training --------------------------------------------------------------------------------------------


def test_the_grid_of_levels_doubles_and_its_places_invert():
    family = Consistency(grid=(10, 1280))
    counts = [float(family.intervals(jnp.asarray(p))) for p in np.linspace(0, 1, 9)]
    assert counts == [10, 20, 40, 80, 160, 320, 640, 1280, 1280]
    share = jnp.linspace(0.0, 1.0, 11)
    at = level(family.levels, share)
    np.testing.assert_allclose(at[jnp.array([0, -1])], family.levels, rtol=1e-12)
    np.testing.assert_allclose(place(family.levels, at), share, atol=1e-12)


class OneWeight(Consistency):
    r"""Of the maps :math:`x\,((1 + \sigma_{\min}^2)/(1 + \sigma^2))^\theta` that with 1/2 is a standard normal's."""

    def origin(self, net, x, level, condition):
        return x * ((1 + self.levels[0] ** 2) / (1 + jnp.asarray(level) ** 2)) ** net


def test_the_loss_is_stationary_at_the_exact_map():
    """Its gradient there is zero on average; on either side it points back."""
    family = OneWeight(levels=(LOW, HIGH), grid=(320, 320))
    net = Consistency(width=4, depth=1).build(jax.random.key(0), Spec((1,)))

    def slope(theta, key):
        key_data, key_loss = jax.random.split(key)
        x = jax.random.normal(key_data, (4096, 1))
        now = Now(jnp.asarray(0.0), net)
        return jax.grad(lambda w: family.loss(key_loss, eqx.tree_at(lambda n: n.net, net, w), x, None, now))(theta)

    slopes = jax.jit(jax.vmap(jax.vmap(slope, (None, 0)), (0, None)))
    below, at, above = slopes(jnp.array([0.4, 0.5, 0.6]), jax.random.split(jax.random.key(1), 48))
    assert below.max() < 0 < above.min()
    assert_mean(at, 0.0, detects=float(above.mean()) / 2, tolerance=float(above.mean()) / 20)


def test_a_trained_map_is_that_of_the_gaussian(normal):
    """The map of N(0, 1) is x sqrt((1 + low^2) / (1 + level^2)); an untrained one is off by 0.7 and more."""
    z = jax.random.normal(jax.random.key(1), (1000, 2))
    for s, bar in ((LOW, 1e-7), (1.0, 0.1), (HIGH, 0.25)):
        x = jnp.sqrt(1 + s**2) * z
        ends = jax.jit(jax.vmap(lambda x, s=s: normal.origin(x, s)))(x)
        assert rms(ends - jnp.sqrt(1 + LOW**2) * z) < bar


@pytest.mark.slow
def test_two_step_draws_have_the_moments_of_the_data(normal):
    draws = np.asarray(normal.sample(jax.random.key(2), (4000,)))
    np.testing.assert_allclose((draws.mean(0) - MEAN) / SCALE, 0, atol=0.15)
    np.testing.assert_allclose(draws.std(0) / SCALE, 1, atol=0.15)
    assert normal.noise_shape == (2, 2)
    again = normal.noise_map(jax.random.normal(jax.random.key(3), (4000, 2, 2)))
    np.testing.assert_allclose(again.std(0) / SCALE, 1, atol=0.15)


@pytest.mark.slow
def test_a_trained_map_is_that_of_the_flow_of_a_mixture():
    """Distance between the map of the network and the end of the exact probability flow, from the same noisy values."""
    means, weights, variance = np.array([[-1.2, 0.0], [1.2, 0.5]]), [0.4, 0.6], 0.1
    rng = np.random.default_rng(0)
    x = means[rng.choice(2, size=4096, p=weights)] + np.sqrt(variance) * rng.normal(size=(4096, 2))
    model = fitted(Consistency(width=64, depth=2, levels=(LOW, HIGH), grid=(10, 320)), x, steps=1500)
    loc, scale = (np.asarray(a, float) for a in (model.units.loc.value, model.units.scale.value))
    path = VE(LOW, HIGH, start=1e-6)
    exact = GaussianMixture(weights, (means - loc) / scale, np.diag(variance / scale**2), path)
    noisy = jax.vmap(lambda k: exact.draw(k, 0.8))(jax.random.split(jax.random.key(2), 500))
    times = jnp.linspace(0.8, path.start, 200)
    true = jax.jit(jax.vmap(lambda x: sample_path(jax.random.key(0), UniPC(), exact, x, times)))(noisy)
    found = jax.jit(jax.vmap(lambda x: model.origin(x, path(0.8)[1])))(noisy)
    apart = np.linalg.norm(found - true, axis=1)
    best = np.linalg.norm(true - true.mean(0), axis=1)  # of a map that forgets its argument
    assert np.median(apart) < 0.2
    assert np.mean(apart) < 0.35 * np.mean(best)


# -- trajectories ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory():
    x = MEAN + SCALE * np.random.default_rng(0).normal(size=(4096, 2))
    family = ConsistencyTrajectory(width=64, depth=2, levels=(LOW, HIGH), grid=16)
    return fitted(family, x, steps=1000)


def exact_jump(x, t, s):
    return x * jnp.sqrt((1 + s**2) / (1 + t**2))


@pytest.mark.slow
def test_jumps_are_those_of_the_gaussian(trajectory):
    z = jax.random.normal(jax.random.key(1), (500, 2))
    for t, s, bar in ((2.0, 2.0, 1e-9), (0.5, 0.1, 0.05), (2.0, 0.5, 0.15), (2.0, LOW, 0.15), (HIGH, LOW, 0.4)):
        x = jnp.sqrt(1 + t**2) * z
        found = jax.jit(jax.vmap(lambda x, t=t, s=s: trajectory.jump(x, t, s)))(x)
        assert rms(found - exact_jump(x, t, s)) < bar


@pytest.mark.slow
def test_the_network_at_equal_levels_is_the_score(trajectory):
    """That of N(0, 1 + t^2) in standard units, and no jump at equal levels moves a point."""
    path, x = trajectory.denoiser.path, jax.random.normal(jax.random.key(1), (200, 2))
    for time in (0.5, 0.75):
        s = path(time)[1]
        wide = jnp.sqrt(1 + s**2) * x
        exact = -wide / (1 + s**2)
        assert rms(trajectory.score(wide, time) - exact) < 0.2 * rms(exact)


@pytest.mark.slow
def test_the_likelihood_is_that_of_the_gaussian(trajectory):
    x = jnp.asarray(MEAN + SCALE * np.random.default_rng(1).normal(size=(100, 2)))
    exact = dist.Normal(jnp.asarray(MEAN), SCALE).to_event(1).log_prob(x)
    apart = trajectory.log_prob(x) - exact
    assert abs(float(apart.mean())) < 0.05
    assert rms(apart) < 0.2


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_every_gamma_has_the_same_law_when_jumps_are_exact(gamma, monkeypatch):
    """With the exact jumps of a standard normal every marginal is exact, whatever is made anew on the way."""
    import probgen.generative.consistency_trajectory as module

    monkeypatch.setattr(module, "jump", lambda net, x, t, s, c: exact_jump(x, t, s))
    family = ConsistencyTrajectory(width=4, depth=1, levels=(LOW, HIGH), jumps=4, gamma=gamma)
    spec = Spec((1,))
    model = family.distribution(family.build(jax.random.key(0), spec), spec)
    assert model.noise_shape == ((1,) if gamma == 0 else (4, 1))
    draws = jax.jit(lambda k: model.sample(k, (30, 4000)))(jax.random.key(1))
    # The first noise has variance HIGH^2 rather than 1 + HIGH^2.
    expected = HIGH**2 / (1 + HIGH**2) if gamma == 0 else None
    second = jnp.mean(draws**2, (1, 2))
    assert_mean(second, 1.0 if expected is None else expected, detects=0.05, tolerance=0.003)


def test_a_jump_that_is_not_taken_leaves_a_point_where_it_is():
    family = ConsistencyTrajectory(width=8, depth=1)
    net = family.build(jax.random.key(0), Spec((3,)))
    x = jnp.arange(3.0)
    np.testing.assert_allclose(jump(net.net, x, 5.0, 5.0, None), x, rtol=1e-12)


def test_new_noise_after_every_jump_starts_from_the_data_end():
    """A network knows no level 0: with gamma = 1 jumps go to the least one."""
    family = ConsistencyTrajectory(width=8, depth=1, jumps=3, gamma=1.0)
    spec = Spec((2,))
    model = family.distribution(family.build(jax.random.key(0), spec), spec)
    draws = jax.jit(lambda k: model.sample(k, (50,)))(jax.random.key(1))
    assert np.all(np.isfinite(draws))


# -- distillation ----------------------------------------------------------------------------------------------------


def test_one_step_with_the_merged_mean_is_two_steps(pair):
    denoiser = Guidance(*pair, 2.0)
    x = jax.random.normal(jax.random.key(0), (2,))
    t, middle, s = 0.7, 0.6, 0.45
    mean = two_as_one(denoiser, x, t, middle, s)
    (a_t, s_t), (a_s, s_s) = denoiser.path(t), denoiser.path(s)
    half, _ = DDIM().step(None, denoiser, x, t, middle, None)
    two, _ = DDIM().step(None, denoiser, half, middle, s, None)
    np.testing.assert_allclose(a_s * mean + s_s / s_t * (x - a_t * mean), two, rtol=1e-12)


def exact_ends(guided, weight, z, steps):
    denoiser = Guidance(guided[0], guided[1], weight)
    times = even_log_snr(denoiser.path, steps)
    sigma = denoiser.path(denoiser.path.end)[1]
    return jax.vmap(lambda z: sample_path(jax.random.key(0), UniPC(), denoiser, sigma * z, times))(z)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 2.0, 3.0])
def test_the_student_draws_what_the_guided_pair_draws(guided, weight):
    """From the same noise, one network with the weight as its condition ends where the two teachers end."""
    z = jax.random.normal(jax.random.key(2), (300, 2))
    true = exact_ends(guided, weight, z, 64)
    found = guided[2].given(jnp.array([weight])).noise_map(z)
    assert rms(found - true) < 0.12
    other = exact_ends(guided, 4.0 - weight if weight != 2 else 1.0, z, 64)
    assert rms(found - true) < 0.6 * rms(other - true)


@pytest.mark.slow
def test_halved_students_still_draw_what_the_guided_pair_draws(guided):
    student, x, weights = guided[2], guided[3], guided[4]
    z = jax.random.normal(jax.random.key(2), (300, 2))
    true = exact_ends(guided, 2.0, z, 64)
    few = {}
    for steps in (8, 4):
        plain = Diffusion(width=64, depth=2, sampler=DDIM(), sampling_steps=steps)
        few[steps] = rms(plain.distribution(guided[2].net, guided[2].spec).given(jnp.array([2.0])).noise_map(z) - true)
        student = fitted(ProgressiveDistillation(student, steps), x, condition=weights, steps=300, rate=5e-4)
    halved = rms(student.given(jnp.array([2.0])).noise_map(z) - true)
    assert student.family.sampling_steps == 4
    assert halved < 0.5 * few[4]


@pytest.mark.slow
def test_distillation_says_what_does_not_fit(guided):
    cond, uncond, student, x, weights = guided
    with pytest.raises(pg.MethodError, match="the weight, then the condition"):
        pg.generative.fit(GuidedDistillation(cond, uncond), x, training=QUICK)
    with pytest.raises(pg.MethodError, match="with the path of the teachers"):
        pg.generative.fit(GuidedDistillation(cond, uncond, Diffusion(path=VE())), x, weights, training=QUICK)
    with pytest.raises(pg.MethodError, match="expected a denoiser"):
        pg.generative.fit(GuidedDistillation(3, uncond), x, weights, training=QUICK)
    with pytest.raises(pg.MethodError, match="steps must be an int"):
        pg.generative.fit(ProgressiveDistillation(student, 0), x, weights, training=QUICK)
    with pytest.raises(pg.MethodError, match="those of the teacher"):
        pg.generative.fit(ProgressiveDistillation(student, 2), x, training=QUICK)


# -- as any learned distribution -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        Consistency(width=8, depth=1),
        Consistency(width=8, depth=1, refine=(3.0, 0.8)),
        ConsistencyTrajectory(width=8, depth=1),
        ConsistencyTrajectory(width=8, depth=1, jumps=3, gamma=0.5),
    ],
    ids=lambda f: f"{type(f).__name__}",
)
def test_files_keep_a_model_and_conditions_pass_gradients(family, tmp_path):
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(32, 2)), rng.normal(size=(32, 1))
    model = pg.generative.fit(family, x, c, training=QUICK)
    pg.generative.save(model, tmp_path / "model")
    again = pg.generative.load(tmp_path / "model")
    c = jnp.ones((3, 1))
    z = jax.random.normal(jax.random.key(0), (3, *model.noise_shape))
    np.testing.assert_array_equal(model.given(c).noise_map(z), again.given(c).noise_map(z))
    assert again.given(c).sample(jax.random.key(1), (5,)).shape == (5, 3, 2)

    # The last layer begins at zero: two steps of training make a small slope, not none.
    slope = jax.grad(lambda c: jnp.sum(model.given(c).noise_map(z) ** 2))(c)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Consistency(levels=(1.0, 0.5)), "0 < least < largest"),
        (lambda: Consistency(grid=(20, 10)), "two ints that rise"),
        (lambda: Consistency(refine=(0.5, 0.8)), "levels that fall"),
        (lambda: Consistency(huber=0.0), "huber"),
        (lambda: ConsistencyTrajectory(gamma=2.0), "gamma"),
        (lambda: ConsistencyTrajectory(jumps=0), "jumps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(pg.MethodError, match=message):
        make()


def test_a_consistency_model_has_no_density(normal):
    with pytest.raises(pg.MethodError, match="has no log_prob"):
        normal.log_prob(jnp.zeros(2))
