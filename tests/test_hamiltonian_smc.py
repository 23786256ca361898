"""Hamiltonian moves in the particle step: the same evidence and moments, from more even weights."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import probgen as pg
from probgen.base.errors import MethodError
from probgen.feynman_kac.hamiltonian import HamiltonianFilter, HamiltonianMoves
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.feynman_kac.resampling import Systematic
from probgen.feynman_kac.smc import Settings, smc
from probgen.program.hamiltonian import Hamiltonian
from probgen.program.particles import ParticleSystem
from probgen.program.proposals import Bootstrap
from probgen.testing import assert_mean, assert_unbiased_evidence

MOVES = HamiltonianMoves()


class Squared(FeynmanKac):
    """A stationary autoregression whose square is observed: two modes, skewed, and no use for a Gaussian."""

    y: jax.Array

    @property
    def steps(self):
        return len(self.y) - 1

    def init(self, key):
        x = jax.random.normal(key, (1,))
        return x, self.log_potential(0, None, x, None)

    def step(self, key, t, x, context):
        x = 0.8 * x + 0.6 * jax.random.normal(key, x.shape)
        return x, self.log_potential(t, None, x, context)

    def log_potential(self, t, x_prev, x, context):
        return dist.Normal(x[0] ** 2, 0.5).log_prob(self.y[t])

    def log_transition(self, t, x_prev, x):
        return dist.Normal(0.8 * x_prev, 0.6).log_prob(x).sum() + self.log_potential(t, x_prev, x, None)


SQUARES = np.array([0.2, 1.4, 1.1, 0.6, 1.8])


def squared_truth():
    """Log evidence, and the last filtering mean of |x|, by quadrature."""
    grid = np.linspace(-7, 7, 1401)
    h = grid[1] - grid[0]
    law, log_z = stats.norm.pdf(grid), 0.0
    kernel = stats.norm(0.8 * grid[:, None], 0.6).pdf(grid)
    for t, y in enumerate(SQUARES):
        if t:
            law = law @ kernel * h
        law = law * stats.norm(grid**2, 0.5).pdf(y)
        log_z += np.log(law.sum() * h)
        law /= law.sum() * h
    return log_z, (np.abs(grid) * law).sum() * h


def replicates(fk, particles, count, threshold=0.5, seed=0):
    settings = Settings(particles, Systematic(), ess_threshold=threshold)

    @jax.jit
    @jax.vmap
    def run(key):
        result = smc(key, fk, settings)
        mean = jnp.exp(result.cloud.log_w) @ jnp.abs(jax.tree.leaves(result.cloud.x)[0].reshape(particles, -1)[:, 0])
        return result.log_z, jnp.exp(result.log_z) * mean, result.steps.ess.mean() / particles

    return run(jax.random.split(jax.random.key(seed), count))


@pytest.mark.parametrize(
    "moves",
    [
        MOVES,
        pytest.param(HamiltonianMoves(1, 2, 0.3), marks=pytest.mark.slow),
        pytest.param(HamiltonianMoves(3, 2, 2.5), marks=pytest.mark.slow),
        pytest.param(HamiltonianMoves(3, 2, 0.2, metric=False), marks=pytest.mark.slow),
    ],
    ids=["default", "one temperature", "steps too long", "no metric"],
)
def test_evidence_and_moments_are_unbiased_whatever_the_settings(moves):
    log_z, mean = squared_truth()
    found, weighted, _ = replicates(HamiltonianFilter(Squared(jnp.asarray(SQUARES)), moves), 200, 200)
    assert_unbiased_evidence(found, log_z, detects=0.15)
    assert_mean(weighted / np.exp(log_z), mean, detects=0.2)


def test_weights_are_more_even_and_the_evidence_varies_less_than_with_the_bootstrap():
    model = Squared(jnp.asarray(SQUARES))
    log_z, _, ess = replicates(model, 200, 200)
    moved_log_z, _, moved_ess = replicates(HamiltonianFilter(model, HamiltonianMoves(8)), 200, 200)
    assert np.mean(moved_ess) > 1.3 * np.mean(ess)
    assert np.std(moved_log_z) < 0.85 * np.std(log_z)


def test_one_step_is_annealed_importance_sampling():
    """Weighted moments of a single move against the exact local posterior, in two correlated dimensions."""
    precision = jnp.array([[3.0, 1.2], [1.2, 1.0]])
    y = jnp.array([1.0, -0.5])

    def log_density(u):
        return dist.MultivariateNormal(jnp.zeros(2), precision_matrix=precision).log_prob(u), dist.Normal(
            u, jnp.array([0.3, 0.5])
        ).log_prob(y).sum()

    H = jnp.diag(1 / jnp.array([0.3, 0.5]) ** 2)
    covariance = np.linalg.inv(precision + H)
    mean = covariance @ (H @ y)
    spread = np.linalg.inv(precision) + np.diag([0.09, 0.25])
    log_z = stats.multivariate_normal(np.zeros(2), spread).logpdf(y)

    def move(key):
        key_u, key_reference, key_move = jax.random.split(key, 3)
        law = dist.MultivariateNormal(jnp.zeros(2), precision_matrix=precision)
        return MOVES(key_move, law.sample(key_u), log_density, law.sample(key_reference))

    u, log_w = jax.jit(jax.vmap(jax.vmap(move)))(jax.random.split(jax.random.key(1), (60, 400)))
    w = np.exp(log_w - log_z)
    assert_mean(w.mean(1), 1.0, detects=0.1)
    assert_mean((w[..., None] * u).mean(1), mean, detects=0.1)
    deviation = u - mean
    second = (w[..., None, None] * deviation[..., :, None] * deviation[..., None, :]).mean(1)
    assert_mean(second, covariance, detects=0.04)
    # Cooling in one jump instead leaves the whole likelihood in the weight.
    assert w.var() < 0.5 * np.exp(2 * (np.asarray(jax.vmap(jax.vmap(log_density))(u)[1]) - log_z)).var()


def test_an_informative_metric_is_worth_its_price():
    """In a badly scaled step, moves without the metric hardly get anywhere."""

    def log_density(u):
        scale = jnp.array([10.0, 0.01])
        return dist.Normal(0, scale).log_prob(u).sum(), dist.Normal(u / scale, 0.2).log_prob(1.0).sum()

    def variance(moves):
        def move(key):
            key_u, key_reference, key_move = jax.random.split(key, 3)
            draw = dist.Normal(0, jnp.array([10.0, 0.01])).sample
            return moves(key_move, draw(key_u), log_density, draw(key_reference))[1]

        return np.var(jax.jit(jax.vmap(move))(jax.random.split(jax.random.key(0), 500)))

    assert variance(HamiltonianMoves(8)) < 0.1 * variance(HamiltonianMoves(8, metric=False))


# --- on programs ----------------------------------------------------------------------------------------------------

COUNTS = np.array([0.0, 2.0, 7.0, 4.0, 0.0, 1.0])


def counts(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.7))
        numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=y)
        return x, None

    scan(step, 0.0, y)


def counts_evidence():
    grid = np.linspace(-8, 8, 1601)
    h = grid[1] - grid[0]
    law, log_z = stats.norm(0.0, 0.7).pdf(grid), 0.0
    kernel = stats.norm(0.9 * grid[:, None], 0.7).pdf(grid)
    for t, y in enumerate(COUNTS):
        if t:
            law = law @ kernel * h
        law = law * stats.poisson(np.exp(grid)).pmf(y)
        log_z += np.log(law.sum() * h)
        law /= law.sum() * h
    return log_z


@pytest.mark.slow
def test_a_program_takes_it_as_a_proposal():
    model = pg.Model(counts, {"y": COUNTS})
    log_z, _, ess = replicates(ParticleSystem(model, {}, Hamiltonian()), 200, 200)
    assert_unbiased_evidence(log_z, counts_evidence(), detects=0.15)
    plain, _, plain_ess = replicates(ParticleSystem(model, {}, Bootstrap()), 200, 200)
    assert np.mean(ess) > 1.1 * np.mean(plain_ess)
    assert np.std(log_z) < 0.85 * np.std(plain)


def test_a_constrained_site_is_moved_in_unconstrained_coordinates():
    """A gamma-distributed state: the moves never leave the support, and the Jacobian is in the weight."""

    def program(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Gamma(2.0, 2.0 / (0.3 + 0.7 * x)))
            numpyro.sample("y", dist.Normal(x, 0.2), obs=y)
            return x, None

        scan(step, 1.0, y)

    y = np.array([0.5, 1.8, 0.1])
    grid = np.linspace(1e-4, 16, 2001)
    h = grid[1] - grid[0]
    law = stats.gamma(2.0, scale=0.5).pdf(grid) * stats.norm(grid, 0.2).pdf(y[0])
    for value in y[1:]:
        kernel = stats.gamma(2.0, scale=(0.3 + 0.7 * grid[:, None]) / 2).pdf(grid)
        law = (law @ kernel * h) * stats.norm(grid, 0.2).pdf(value)
    fk = ParticleSystem(pg.Model(program, {"y": y}), {}, Hamiltonian())
    log_z, _, _ = replicates(fk, 200, 200)
    assert_unbiased_evidence(log_z, np.log(law.sum() * h), detects=0.3)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HamiltonianMoves, Hamiltonian])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": 0}, "temperatures must be an int of at least 1, got 0"),
        ({"leapfrog": 1.5}, "leapfrog must be an int of at least 1, got 1.5"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
    ],
)
def test_settings_are_checked(kind, settings, message):
    with pytest.raises(MethodError, match=message):
        kind(**settings)


def test_what_cannot_be_moved_is_an_error():
    class Jumps(Squared):
        def init(self, key):
            return jax.random.bernoulli(key).astype(int), jnp.zeros(())

    with pytest.raises(MethodError, match="Hamiltonian moves need floats with a density"):
        HamiltonianFilter(Jumps(jnp.asarray(SQUARES)))
    model = pg.Model(counts, {"y": COUNTS})
    system = ParticleSystem(model, {}, Hamiltonian())
    x = system.init(jax.random.key(0))[0]
    with pytest.raises(MethodError, match="a given move has none"):
        system.log_potential(1, x, x, None)
