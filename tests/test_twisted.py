"""Twisted diffusion: evidence and posterior of programs with a diffusion model as prior, against closed forms."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.feynman_kac.smc import Settings, smc
from probgen.feynman_kac.twisted import AtMean, SecondOrder, Twisted
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import GaussianMixture
from probgen.generative.path import VP, even_log_snr
from probgen.generative.standardisation import Standardisation
from probgen.infer.feynman_kac import FeynmanKac
from probgen.testing import assert_unbiased_evidence

PATH = VP()
ALPHA, SIGMA = (float(scale) for scale in PATH(PATH.start))
ROW, NOISE, Y = np.array([1.0, 0.5]), 0.3, 0.6


def mixture():
    roots = np.random.default_rng(0).normal(size=(3, 2, 2)) * 0.25
    means = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.2]])
    return GaussianMixture([0.2, 0.3, 0.5], means, roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2), PATH)


def exact(denoiser, noise=NOISE):
    """Log evidence, posterior weights of the components, and posterior mean, with a linear observation."""
    covariances = np.einsum("kij,kj,klj->kil", denoiser.axes, denoiser.variances, denoiser.axes)
    covariances = ALPHA**2 * covariances + SIGMA**2 * np.eye(2)
    means = ALPHA * np.asarray(denoiser.means)
    spread = np.einsum("i,kij,j->k", ROW, covariances, ROW) + noise**2
    off = Y - means @ ROW
    logs = np.asarray(denoiser.log_weights) - 0.5 * (off**2 / spread + np.log(2 * np.pi * spread))
    log_z = np.logaddexp.reduce(logs)
    weights = np.exp(logs - log_z)
    each = means + (covariances @ ROW) * (off / spread)[:, None]
    return log_z, weights, weights @ each


def program_of(prior, noise=NOISE):
    def program(y=None):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(ROW @ x, noise), obs=y)

    return program


def log_likelihood(x):
    return dist.Normal(ROW @ x, NOISE).log_prob(Y)


PRIOR = DenoisedDistribution(mixture())
MODEL = pg.Model(program_of(PRIOR), {"y": Y})


def test_a_gaussian_prior_and_a_linear_observation_leave_nothing_to_weigh():
    """The chain has the right moments, the twist is the evidence ahead: all weights are equal, for any steps."""
    gaussian = GaussianMixture([1.0], [[0.5, -1.0]], [[0.5, 0.2], [0.2, 0.3]], PATH)
    system = Twisted(gaussian, log_likelihood, even_log_snr(PATH, 12))
    result = jax.jit(lambda key: smc(key, system, Settings(16)))(jax.random.key(0))
    log_z, _, _ = exact(gaussian)
    # What is left: the initial draw is not conditioned, which costs what the noise end remembers of the data; and the
    # likelihood takes the value at the data end, where the twist has integrated over a little noise.
    np.testing.assert_allclose(result.log_z, log_z, atol=2e-3)
    assert result.steps.ess.min() > 15.99


@pytest.mark.parametrize(
    "twist", [SecondOrder(), pytest.param(AtMean(), marks=pytest.mark.slow)], ids=lambda twist: type(twist).__name__
)
def test_the_evidence_is_unbiased_for_the_chain(twist):
    """With a Gaussian prior, the evidence of the discrete chain itself is known: a Kalman filter's prediction."""
    mean, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
    gaussian = GaussianMixture([1.0], [mean], covariance, PATH)
    times = even_log_snr(PATH, 10)
    noisy = 0.8
    alpha, sigma = PATH(times[0])
    m, v = alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(2)
    for t, s in itertools.pairwise(times):
        a, b, rest = gaussian.ancestral(t, s)
        slope = jax.jacfwd(gaussian.mean)(m, t)
        step = a * np.eye(2) + b * slope
        spread = rest * np.eye(2)
        if isinstance(twist, SecondOrder):
            spread = spread + b**2 * gaussian(m, t).matrix()
        m, v = a * m + b * gaussian.mean(m, t), step @ v @ step.T + spread
    log_z = dist.Normal(ROW @ m, jnp.sqrt(ROW @ v @ ROW + noisy**2)).log_prob(Y)

    system = Twisted(gaussian, lambda x: dist.Normal(ROW @ x, noisy).log_prob(Y), times, twist)
    run = jax.jit(jax.vmap(lambda key: smc(key, system, Settings(32)).log_z))
    assert_unbiased_evidence(run(jax.random.split(jax.random.key(0), 400)), float(log_z), detects=0.15)


@pytest.fixture(scope="module")
def tree():
    return pg.infer(MODEL, FeynmanKac(particles=2048, steps=100), draws=2048, chains=4, seed=0, progress=False)


def test_a_mixture_prior_with_a_linear_observation(tree):
    log_z, weights, mean = exact(mixture())
    assert abs(tree.attrs["log_evidence"] - log_z) < 3 * tree.attrs["log_evidence_se"] + 0.02
    assert tree.attrs["log_evidence_se"] < 0.01
    x = tree["posterior/x"].values.reshape(-1, 2)
    shares = np.asarray(jax.jit(jax.vmap(lambda x: mixture().shares(x, PATH.start)))(x)).mean(0)
    np.testing.assert_allclose(shares, weights, atol=0.03)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.05)


@pytest.mark.slow
def test_units_of_the_data_are_those_of_the_program():
    """A denoiser in standard units of data is the same prior as one whose program changes the units itself."""
    units = eqx.tree_at(
        lambda u: (u.loc.value, u.scale.value), Standardisation((2,)), (jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5]))
    )

    def inside(y=None):
        x = numpyro.sample("x", DenoisedDistribution(mixture(), units=units))
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)

    def outside(y=None):
        z = numpyro.sample("z", DenoisedDistribution(mixture()))
        x = numpyro.deterministic("x", units.outward(z))
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)

    run = FeynmanKac(particles=64, steps=10, twist=AtMean())
    one, other = (pg.infer(pg.Model(p, {"y": 0.3}), run, draws=30, chains=1, progress=False) for p in (inside, outside))
    np.testing.assert_allclose(one["posterior"]["x"], other["posterior"]["x"], rtol=1e-10)
    np.testing.assert_allclose(one.attrs["log_evidence"], other.attrs["log_evidence"], rtol=1e-10)


def test_the_tree_tells_what_happened(tree):
    assert tree.attrs["log_evidence_by"] == "twisted diffusion"
    assert tree["particles/ess"].shape == (4, 101)
    assert tree["posterior/x"].shape == (4, 2048, 2)
    assert np.all(tree["particles/log_evidence"].values[:, -1] == tree["particles/log_evidence_run"].values)


def test_a_nonlinear_likelihood_agrees_with_quadrature():
    def ring(y=None):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.StudentT(4.0, jnp.sum(x**2), 0.5), obs=y)

    grid = jnp.linspace(-4, 4, 401)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    prior = jax.jit(jax.vmap(lambda x: mixture().log_density(x, PATH.start)))(points)
    joint = prior + dist.StudentT(4.0, jnp.sum(points**2, -1), 0.5).log_prob(2.0)
    log_z = jax.scipy.special.logsumexp(joint) + 2 * jnp.log(grid[1] - grid[0])
    run = FeynmanKac(particles=1024, steps=100)
    tree = pg.infer(pg.Model(ring, {"y": 2.0}), run, draws=512, chains=4, seed=1, progress=False)
    assert abs(tree.attrs["log_evidence"] - log_z) < 3 * tree.attrs["log_evidence_se"] + 0.02


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path):
    run = FeynmanKac(particles=64, steps=10, twist=AtMean())
    whole = pg.infer(MODEL, run, draws=32, chains=2, seed=3, progress=False)
    kept = pg.infer(MODEL, run, draws=32, chains=2, seed=3, progress=False, store=tmp_path / "run.zarr")
    np.testing.assert_array_equal(whole["posterior/x"].values, kept["posterior/x"].values)
    again = pg.infer(MODEL, run, draws=32, chains=2, seed=3, progress=False, store=tmp_path / "run.zarr")
    np.testing.assert_array_equal(kept["posterior/x"].values, again["posterior/x"].values)


class TestErrors:
    def test_no_diffusion_model(self):
        def program(y=None):
            x = numpyro.sample("x", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(x, 1), obs=y)

        with pytest.raises(pg.MethodError, match=r"no latent site has a diffusion model as prior, got 'x' \(Normal\)"):
            pg.infer(pg.Model(program, {"y": 0.0}), FeynmanKac(), seed=0)

    def test_other_latent_sites(self):
        def program(y=None):
            x = numpyro.sample("x", PRIOR)
            scale = numpyro.sample("scale", dist.HalfNormal(1))
            numpyro.sample("y", dist.Normal(x.sum(), scale), obs=y)

        with pytest.raises(
            pg.MethodError, match="one diffusion model, 'x', and the program has other latent sites: 'sc"
        ):
            pg.infer(pg.Model(program, {"y": 0.0}), FeynmanKac(), seed=0)

    def test_a_plate(self):
        def program(y=None):
            with numpyro.plate("row", 2):
                x = numpyro.sample("x", PRIOR)
                numpyro.sample("y", dist.Normal(x.sum(-1), 1), obs=y)

        with pytest.raises(pg.MethodError, match="site 'x' stands in a plate or scan"):
            pg.infer(pg.Model(program, {"y": np.zeros(2)}), FeynmanKac(), seed=0)

    def test_an_impossible_observation(self):
        def program(y=None):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(0 * x.sum(), 1), obs=y)
            numpyro.factor("never", -jnp.inf)

        with pytest.raises(pg.MethodError, match="the log likelihood is not finite at any"):
            pg.infer(pg.Model(program, {"y": 0.0}), FeynmanKac(particles=8, steps=3), seed=0, progress=False)

    @pytest.mark.parametrize(
        ("method", "words"),
        [
            (FeynmanKac(particles=1), "particles must be an int of at least 2"),
            (FeynmanKac(steps=0), "steps must be"),
            (FeynmanKac(twist=3), "twist must be SecondOrder"),
            (FeynmanKac(ess_threshold=2.0), "ess_threshold is a share"),
        ],
    )
    def test_settings(self, method, words):
        with pytest.raises(pg.MethodError, match=words):
            pg.infer(MODEL, method, seed=0)


@pytest.mark.slow
def test_the_weights_of_the_modes_are_within_two_percent():
    log_z, weights, _ = exact(mixture())
    tree = pg.infer(MODEL, FeynmanKac(particles=8192, steps=200), draws=8192, chains=4, seed=2, progress=False)
    assert abs(tree.attrs["log_evidence"] - log_z) < 3 * tree.attrs["log_evidence_se"]
    x = tree["posterior/x"].values.reshape(-1, 2)
    shares = np.asarray(jax.jit(jax.vmap(lambda x: mixture().shares(x, PATH.start)))(x)).mean(0)
    np.testing.assert_allclose(shares, weights, atol=0.02)
