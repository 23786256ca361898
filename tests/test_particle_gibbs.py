"""Particle Gibbs against the exact posterior of an autoregression, with few particles and several inner kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from autoregression import MODEL, R, exact, series
from numpyro.contrib.control_flow import scan
from scipy import stats

import probgen as pg
from probgen.feynman_kac.conditional import Ancestry
from probgen.infer.particle_gibbs import ParticleGibbs
from probgen.infer.pmmh import PMMH
from probgen.testing import assert_draws, assert_same_distribution


def parameters():
    mean, sd, _ = exact()
    return {"means": {name: mean[name] for name in ("phi", "q")}, "sds": {name: sd[name] for name in ("phi", "q")}}


@pytest.fixture(scope="module")
def tree():
    return pg.infer(MODEL, ParticleGibbs(particles=15), draws=4000, warmup=500, seed=0)


def test_parameters_and_states_have_the_exact_posterior(tree):
    mean, sd, _ = exact()
    assert_draws(tree, means=mean, sds=sd, detects=0.5)
    assert tree.attrs["ancestry"] == "sampled"
    assert tree.attrs["path_moved"] > 0.7


@pytest.mark.slow
def test_three_particles_and_a_random_walk_are_enough():
    method = ParticleGibbs(particles=3, parameters=pg.RandomWalk(), moves=3)
    tree = pg.infer(MODEL, method, draws=8000, warmup=1000, seed=1)
    assert_draws(tree, **parameters(), detects=0.8)


def noncentred(y):
    """The same model, its states made from standard normal noise: the carry is no site, but what came of them."""
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    q = numpyro.sample("q", dist.LogNormal(-0.5, 0.5))
    start = numpyro.sample("start", dist.Normal(0, 1))

    def step(x, y):
        x = numpyro.deterministic("x", phi * x + q * numpyro.sample("z", dist.Normal()))
        numpyro.sample("y", dist.Normal(x, R), obs=y)
        return x, None

    scan(step, start, y)


def test_a_carry_that_remembers_is_traced():
    """No transition density: paths keep their ancestors, and follow new parameters; the answer is the same."""
    model = pg.Model(noncentred, {"y": series()})
    tree = pg.infer(model, ParticleGibbs(particles=40), draws=4000, warmup=500, seed=2)
    assert tree.attrs["ancestry"].startswith("traced (the carry")
    mean, sd, _ = exact()
    assert_draws(tree, **parameters(), detects=0.8)
    names = ("start", "x")
    assert_draws(tree, means={n: mean[n] for n in names}, sds={n: sd[n] for n in names}, detects=0.9)
    with pytest.raises(pg.MethodError, match=r"ancestry is Ancestry.sampled, which needs a transition density"):
        pg.infer(model, ParticleGibbs(ancestry=Ancestry.sampled))


def weather(y):
    """Discrete states."""
    stay = numpyro.sample("stay", dist.Beta(4, 2))

    def step(state, y):
        wet = numpyro.sample("wet", dist.Bernoulli(stay * state + (1 - stay) * (1 - state)))
        numpyro.sample("y", dist.Normal(wet, 0.7), obs=y)
        return wet, None

    scan(step, 0, y)


def test_states_may_be_discrete():
    """A hidden Markov chain, against the forward-backward algorithm on a grid."""
    y = np.repeat([0.0, 1.0, 0.0], 4) + 0.7 * np.random.default_rng(3).normal(size=12)
    stay = np.linspace(0, 1, 402)[1:-1]
    change = np.stack([np.stack([stay, 1 - stay]), np.stack([1 - stay, stay])])  # (from, to, grid)
    likelihood = stats.norm.pdf(y[:, None], [0.0, 1.0], 0.7)
    forward, backward = [np.stack([np.ones_like(stay), np.zeros_like(stay)])], [np.ones((2, len(stay)))]
    for now in likelihood:
        forward.append(np.einsum("ig,ijg->jg", forward[-1], change) * now[:, None])
    for now in likelihood[::-1]:
        backward.append(np.einsum("jg,ijg->ig", backward[-1] * now[:, None], change))
    weight = forward[-1].sum(0) * stats.beta.pdf(stay, 4, 2)
    total = weight.sum()
    mean = (weight * stay).sum() / total
    sd = np.sqrt((weight * stay**2).sum() / total - mean**2)
    wet = [
        (f[1] * b[1] * stats.beta.pdf(stay, 4, 2)).sum() / total for f, b in zip(forward, backward[::-1], strict=True)
    ]

    tree = pg.infer(pg.Model(weather, {"y": y}), ParticleGibbs(particles=10), draws=3000, warmup=500, seed=1)
    assert_draws(tree, means={"stay": mean}, sds={"stay": sd}, detects=0.4)
    drawn = tree.posterior.dataset[["wet"]].astype(float)
    assert_draws(drawn, means={"wet": np.array(wet[1:])}, detects=0.4)


def test_the_path_and_the_parameters_follow_one_law():
    """A masked state is drawn from its distribution, and the parameters know of it; the half of a missing observation
    that was seen, drawn too, is nobody's."""

    def program(y, seen, there):
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))

        def step(x, now):
            y, seen, there = now
            numpyro.sample("y", dist.Normal(x + a, 0.3), obs=y, obs_mask=seen)
            with numpyro.handlers.mask(mask=there):
                x = numpyro.sample("x", dist.Normal(a * x, 0.5))
            return x, None

        scan(step, 0.0, (y, seen, there))

    y, seen = np.array([0.5, 1.3, 0.2, 0.7]), np.array([True, False, True, True])
    model = pg.Model(program, {"y": y, "seen": seen, "there": np.array([True, True, True, False])})
    density = ParticleGibbs(particles=3).density(model)
    x, missing = np.array([0.3, 0.9, -0.2, 0.4]), np.array([0.1, -0.6, 0.8, 0.2])
    path, before = {"x": jnp.asarray(x), "y_unobserved": jnp.asarray(missing)}, np.append(0.0, x[:-1])

    def log_density(a):
        laws = stats.norm.logpdf(x, a * before, 0.5) + stats.norm.logpdf(np.where(seen, y, missing), before + a, 0.3)
        return laws.sum()

    @jax.jit
    def moves(a):
        system = density.system(jnp.array([a]))
        along = system.path(path)
        one, two = (jax.tree.map(lambda leaf, s=s: leaf[s], along) for s in (slice(None, -1), slice(1, None)))
        return jnp.sum(jax.vmap(system.log_transition)(jnp.arange(1, 5), one, two))

    for a in (0.2, 1.1):
        assert float(moves(a)) == pytest.approx(log_density(a), rel=1e-9)
        told = density.given(path).log_density(jnp.array([a])) - stats.norm.logpdf(a, 0.0, 2.0)
        assert float(told) == pytest.approx(log_density(a), rel=1e-9)


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.slow
def test_a_stored_run_is_the_same_bit_for_bit(tmp_path):
    settings = {"draws": 60, "warmup": 60, "chains": 2, "seed": 3}
    whole = pg.infer(MODEL, ParticleGibbs(particles=15), **settings)
    kept = pg.infer(MODEL, ParticleGibbs(particles=15), store=tmp_path / "run.zarr", **settings)
    for name in whole.posterior.data_vars:
        np.testing.assert_array_equal(whole.posterior[name].values, kept.posterior[name].values)
    assert kept.attrs["ancestry"] == "sampled"


@pytest.mark.slow
def test_stochastic_volatility_agrees_with_pmmh():
    """No closed form: two methods that share only the program and the particles."""
    rng = np.random.default_rng(7)
    h, y = 0.0, []
    for _ in range(60):
        h = 0.9 * h + 0.4 * rng.normal()
        y.append(np.exp(h / 2) * rng.normal())

    def volatility(y):
        phi = numpyro.sample("phi", dist.Uniform(0, 1))
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.5))

        def step(h, y):
            h = numpyro.sample("h", dist.Normal(phi * h, sigma))
            numpyro.sample("y", dist.Normal(0.0, np.e ** (h / 2)), obs=y)
            return h, None

        scan(step, 0.0, y)

    model = pg.Model(volatility, {"y": np.array(y)})
    one = pg.infer(model, PMMH(particles=150), draws=6000, seed=0)
    other = pg.infer(model, ParticleGibbs(particles=30), draws=8000, seed=1)
    for site in ("phi", "sigma"):
        assert_same_distribution(one.posterior[site].values, other.posterior[site].values, detects=0.15)
    means = [tree.posterior["h"].mean(("chain", "draw")).values for tree in (one, other)]
    np.testing.assert_allclose(*means, atol=0.15)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ParticleGibbs(particles=1), "particles must be an int of at least 2"),
        (ParticleGibbs(moves=0), "moves must be an int of at least 1"),
        (
            ParticleGibbs(parameters=pg.NUTS(backend="numpyro")),
            r"NUTS\(backend='numpyro'\) cannot be told of a new path",
        ),
        (ParticleGibbs(ancestry="sampled"), "ancestry must be one of pg.Ancestry, got 'sampled'"),
        (ParticleGibbs(parameters=pg.SVI()), "parameters must be a method of a Markov chain"),
    ],
)
def test_bad_settings_are_said(method, message):
    with pytest.raises(pg.MethodError, match=message):
        pg.infer(MODEL, method)
