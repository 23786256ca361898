"""Linear multivariate diffusions: moments, stationary laws, scores, bounds and samplers against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.linalg

import probgen as pg
from probgen.generative import (
    VP,
    Ancestral,
    CompleteRecipe,
    GaussianMixture,
    LinearDenoiser,
    LinearPath,
    MixtureMean,
    MultivariateDiffusion,
    ReverseSDE,
    Training,
    fit,
    load,
    phase_space,
    save,
    spatial,
)
from probgen.testing import assert_mean, assert_moments

TURN = spatial(((2.0, 0.3), (0.3, 0.5)), ((0.0, 2.0), (-2.0, 0.0)))
RECIPES = {"PSLD": phase_space(), "CLD": phase_space(0.0), "spatial": TURN}
named = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


def mixture(dim=2):
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, dim, dim)) * 0.3
    covariances = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(dim)
    return GaussianMixture([0.2, 0.3, 0.5], rng.normal(size=(3, dim)), covariances, VP())


def test_moments_are_those_of_any_linear_equation():
    """Against the equations of the mean and the covariance, integrated; no stationary law is needed."""
    drift, noise = np.array([[0.2, 1.0], [-1.5, -0.7]]), np.array([[0.3, 0.1], [0.1, 0.8]])
    path = LinearPath(jnp.asarray(drift), jnp.asarray(noise), jnp.array([0.5]), jnp.eye(2), (0.5, 3.0))

    def slope(t, y):
        phi, p = y.reshape(2, 2, 2)
        rate = 0.5 + 2.5 * t
        return rate * np.stack([drift @ phi, drift @ p + p @ drift.T + noise]).reshape(-1)

    begin = np.stack([np.eye(2), np.diag([0.0, 0.5])]).reshape(-1)
    for t in (1e-3, 0.1, 1.0):
        phi, p = scipy.integrate.solve_ivp(slope, (0, t), begin, rtol=1e-11, atol=1e-14).y[:, -1].reshape(2, 2, 2)
        found_phi, found_p = path.moments(t)
        np.testing.assert_allclose(found_phi, phi[:, :1], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found_p, p, rtol=1e-7, atol=1e-12)
    joined = path.transition(0.7, 0.2)[0] @ path.transition(0.2)[0]
    np.testing.assert_allclose(joined, path.transition(0.7)[0], rtol=1e-9)


@named
def test_the_recipe_keeps_its_stationary_law(recipe):
    path, s = recipe.path(), np.asarray(recipe.stationary)
    np.testing.assert_allclose(path.drift @ s + s @ path.drift.T + path.noise, 0, atol=1e-14)
    phi, covariance = path.transition(0.6, 0.1)
    np.testing.assert_allclose(phi @ s @ phi.T + covariance, s, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(path.moments(1.0)[1], s, rtol=1e-2, atol=1e-2)


def test_phase_space_is_critically_damped():
    drift = np.asarray(phase_space(0.02, mass=0.25).path().drift)
    np.testing.assert_allclose(drift, 0.5 * np.array([[-0.02, 4.0], [-1.0, -4.02]]), rtol=1e-12)
    first, second = np.linalg.eigvals(drift)
    assert abs(first - second) < 1e-6


def test_one_row_without_the_rest_is_the_usual_path():
    path, usual = spatial(((1.0,),), ((0.0,),)).path(), VP()
    for t in (0.01, 0.3, 1.0):
        (alpha, sigma), (phi, p) = usual(t), path.moments(t)
        np.testing.assert_allclose([phi[0, 0], p[0, 0]], [alpha, sigma**2], rtol=1e-10)
        np.testing.assert_allclose(path.log_level(t), -usual.log_snr(t) / 2, rtol=1e-9)


def state_density(law, path, z, t, columns):
    """Log density of the state at time t: each Gaussian of the data stays one."""
    phi, p = path.moments(t)
    lift = jnp.kron(phi, jnp.eye(columns))
    covariances = jnp.einsum("kij,kj,klj->kil", law.axes, law.variances, law.axes)
    total = lift @ covariances @ lift.T + jnp.kron(p, jnp.eye(columns))
    each = jax.vmap(lambda m, c: jax.scipy.stats.multivariate_normal.logpdf(z.reshape(-1), lift @ m, c))
    return jax.nn.logsumexp(law.log_weights + each(law.means, total))


@named
def test_the_score_is_that_of_the_whole_state(recipe):
    law, path = mixture(), recipe.path()
    denoiser = LinearDenoiser(path, MixtureMean(law), 2 // recipe.rows)
    x = law.means[2].reshape(recipe.rows, -1) + 0.1
    for t in (0.05, 0.5):
        z = denoiser.noisy(jax.random.key(0), x, t)
        exact = jax.grad(lambda z, t=t: state_density(law, path, z, t, denoiser.columns))(z)
        np.testing.assert_allclose(denoiser.score(z, t), exact, rtol=1e-6, atol=1e-8)


def test_with_one_row_the_denoiser_is_that_of_an_ordinary_path():
    law, recipe = mixture(), phase_space()
    denoiser = LinearDenoiser(recipe.path(), MixtureMean(law), 2)
    z, t = jnp.array([[0.3, -0.2], [0.1, 0.4]]), 0.3
    phi, p = denoiser.path.moments(t)
    level = jnp.exp(denoiser.path.log_level(t))
    y = level**2 * phi.T @ jnp.linalg.solve(p, z)
    usual = law.path.time(-2 * jnp.log(level))
    alpha, _ = law.path(usual)
    np.testing.assert_allclose(denoiser.mean(z, t)[0], law.mean(alpha * y[0], usual), rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "step"), [("PSLD", Ancestral()), ("spatial", Ancestral()), ("CLD", ReverseSDE())], ids=str
)
def test_the_law_of_the_draws_tends_to_that_of_the_data(name, step):
    """On a Gaussian a step is linear, so covariances go through it without drawing; the error has order 1."""
    covariance, recipe = np.array([[0.5, 0.2], [0.2, 0.3]]), RECIPES[name]
    rows = recipe.rows
    law = GaussianMixture([1.0], np.zeros((1, rows)), covariance[:rows, :rows], VP())
    denoiser = LinearDenoiser(recipe.path(), MixtureMean(law), 1)
    path, size = denoiser.path, len(recipe.root)
    keys = jax.random.split(jax.random.key(0), size)
    normals = jax.vmap(lambda key: jax.random.normal(key, (size, 1)))(keys)[..., 0].T

    def one(total, at):
        t, s = at
        zero = jax.vmap(lambda key: step(key, denoiser, jnp.zeros((size, 1)), t, s))(keys)[..., 0].T
        first = jax.vmap(lambda z: step(keys[0], denoiser, z[:, None], t, s))(jnp.eye(size))[..., 0].T
        moved, spread = first - zero[:, :1], jnp.linalg.solve(normals.T, zero.T).T
        return moved @ total @ moved.T + spread @ spread.T, None

    phi, p = path.moments(path.start)
    exact = phi @ covariance[:rows, :rows] @ phi.T + p
    errors = []
    for steps in (150, 600):
        times = path.times(steps)
        found = jax.jit(lambda times: jax.lax.scan(one, path.end_covariance, (times[:-1], times[1:]))[0])(times)
        errors.append(np.abs(found - exact)[:rows, :rows].max())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3


def test_draws_have_the_moments_of_the_data():
    mean, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
    law = GaussianMixture([1.0], [mean], covariance, VP())
    denoiser = LinearDenoiser(phase_space().path(), MixtureMean(law), 2)
    times = denoiser.path.times(200)
    draw = jax.jit(jax.vmap(lambda key: denoiser.sample(key, Ancestral(), times)[0]))
    draws = draw(jax.random.split(jax.random.key(1), 40 * 60)).reshape(40, 60, 2)
    assert_moments(draws, mean, covariance, detects=0.35, tolerance=0.06)


@named
def test_the_bound_is_that_of_the_data(recipe):
    """With the exact denoiser its gap is the divergence at the noise end, which is next to nothing here."""
    law = mixture()
    denoiser = LinearDenoiser(recipe.path(), MixtureMean(law), 2 // recipe.rows)
    x = jnp.array([0.2, 0.1])
    bound = jax.jit(jax.vmap(lambda key: denoiser.bound(key, x.reshape(recipe.rows, -1), 64)))
    found = bound(jax.random.split(jax.random.key(2), 40 * 100)).reshape(40, 100).mean(1)
    assert_mean(found, law.log_density(x, 0.0), detects=0.6, tolerance=0.01)


@pytest.mark.slow
def test_learned_matrices_improve_the_bound_of_a_short_path():
    """What they can improve with one row of data is the ends: here the data are not forgotten at t = 0.3."""
    law = mixture()
    recipe = CompleteRecipe(
        *(getattr(phase_space(), name) for name in ("root", "skew", "stationary", "initial")), end=0.3
    )
    x = jax.vmap(law.draw, (0, None))(jax.random.split(jax.random.key(3), 32), 0.0)

    def bound(matrices, key):
        denoiser = LinearDenoiser(recipe.path(*matrices), MixtureMean(law), 2)
        return jnp.mean(jax.vmap(lambda key, x: denoiser.bound(key, x[None], 16))(jax.random.split(key, 32), x))

    optimiser = optax.adam(0.05)
    matrices = jnp.asarray(recipe.root), jnp.asarray(recipe.skew)

    def step(carry, key):
        matrices, memory = carry
        value, slope = jax.value_and_grad(lambda m: -bound(m, key))(matrices)
        updates, memory = optimiser.update(slope, memory)
        return (optax.apply_updates(matrices, updates), memory), -value

    run = jax.jit(lambda m, keys: jax.lax.scan(step, (m, optimiser.init(m)), keys))
    (learned, _), _ = run(matrices, jax.random.split(jax.random.key(4), 60))
    judge = jax.jit(lambda m: jax.vmap(lambda key: bound(m, key))(jax.random.split(jax.random.key(5), 24)))
    before, after = judge(matrices), judge(learned)
    gain, error = float(jnp.mean(after - before)), float(jnp.std(after - before) / np.sqrt(24))
    assert gain > max(0.3, 5 * error)
    s = np.asarray(recipe.stationary)
    path = recipe.path(*learned)
    np.testing.assert_allclose(path.drift @ s + s @ path.drift.T + path.noise, 0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [phase_space(), TURN], ids=["PSLD", "spatial"])
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_a_fit_recovers_conditional_gaussians(recipe, learn, tmp_path):
    rng = np.random.default_rng(0)
    condition = rng.uniform(-1, 1, (4000, 1))
    x = 10 + 3 * np.concatenate([condition, -condition], 1) + rng.normal(size=(4000, 2)) * [0.5, 1.5]
    family = MultivariateDiffusion(recipe=recipe, learn=learn, width=32, depth=2)
    model = fit(family, x, condition, training=Training(steps=1500, batch=128, learning_rate=3e-3), seed=0)
    given = model.given(jnp.array([0.5]))
    draws = np.asarray(jax.jit(lambda key: given.sample(key, (4000,)))(jax.random.key(0)))
    np.testing.assert_allclose(draws.mean(0), [11.5, 8.5], atol=0.15)
    np.testing.assert_allclose(draws.std(0), [0.5, 1.5], rtol=0.12)
    at = jnp.array([11.5, 8.5])
    exact = -np.log(2 * np.pi * 0.5 * 1.5)
    found = jax.jit(jax.vmap(lambda key: given.bound(key, at)))(jax.random.split(jax.random.key(1), 400))
    assert exact - 1.0 < found.mean() < exact + 0.3
    assert given.bound(jax.random.key(1), jnp.zeros((3, 2))).shape == (3,)
    slope = jax.grad(lambda c: model.given(c).bound(jax.random.key(1), at))(jnp.array([0.5]))
    assert np.isfinite(slope).all()
    assert slope[0] != 0
    save(model, tmp_path / "model")
    again = load(tmp_path / "model").given(jnp.array([0.5]))
    np.testing.assert_array_equal(again.sample(jax.random.key(2)), given.sample(jax.random.key(2)))
    with pytest.raises(pg.MethodError, match="has no log_prob"):
        given.log_prob(at)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CompleteRecipe(((1.0,),), ((0.0, 0.0),), ((1.0,),), ()), "skew of shape"),
        (lambda: CompleteRecipe(((1.0,),), ((0.0,),), ((-1.0,),), ()), "not symmetric and positive definite"),
        (
            lambda: CompleteRecipe(((0.0, 0.0), (0.0, 1.0)), ((0.0,) * 2,) * 2, ((1.0, 0.0), (0.0, 1.0)), ()),
            "noise does not reach",
        ),
        (lambda: phase_space(-1.0), "position >= 0"),
        (lambda: spatial(((1.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (1.0, 0.0))), "antisymmetric form"),
        (lambda: phase_space().path().times(0), "steps must be an int of at least 1"),
        (lambda: ReverseSDE(kappa=-1.0), "kappa is a rate"),
        (lambda: fit(MultivariateDiffusion(recipe=TURN), np.zeros((50, 3))), "2 rows of data, and a datum has 3"),
        (lambda: fit(MultivariateDiffusion(width=0), np.zeros((50, 3))), "width=0"),
    ],
)
def test_wrong_settings_are_refused(make, words):
    with pytest.raises(pg.MethodError, match=words):
        make()
