"""Conditional SMC leaves the smoothing law as it is, whatever the number of particles: here two to five."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from probgen.base.errors import MethodError
from probgen.feynman_kac.conditional import Ancestry, conditional_smc
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.feynman_kac.resampling import SSP, Killing, Multinomial, Residual, Stratified, Systematic
from probgen.feynman_kac.smc import Settings
from probgen.testing import assert_moments

STEPS = 5
PHI, Q, R = 0.9, 0.6, 1.0
"""x_t = PHI x_{t-1} + Q noise, y_t = x_t + R noise; the first x is standard normal."""


class Bootstrap(FeynmanKac):
    """The potential is the likelihood."""

    y: jax.Array
    steps: int = eqx.field(static=True, default=STEPS)

    def init(self, key):
        x = jax.random.normal(key)
        return x, norm.logpdf(self.y[0], x, R)

    def step(self, key, t, x, context):
        new = PHI * x + Q * jax.random.normal(key)
        return new, norm.logpdf(self.y[t], new, R)

    def log_potential(self, t, x_prev, x, context):
        return norm.logpdf(self.y[t], x, R)

    def log_transition(self, t, x_prev, x):
        return norm.logpdf(x, PHI * x_prev, Q) + norm.logpdf(self.y[t], x, R)


class Guided(Bootstrap):
    """A proposal that is off in mean and in scale: the potential depends on both ends of a move."""

    def _law(self, t, x):
        return 0.5 * PHI * x + 0.4 * self.y[t], 0.8

    def init(self, key):
        x = 0.3 * self.y[0] + 1.2 * jax.random.normal(key)
        return x, self.log_potential(0, None, x, None)

    def step(self, key, t, x, context):
        mean, sd = self._law(t, x)
        new = mean + sd * jax.random.normal(key)
        return new, self.log_potential(t, x, new, context)

    def log_potential(self, t, x_prev, x, context):
        if x_prev is None:
            return norm.logpdf(self.y[0], x, R) + norm.logpdf(x) - norm.logpdf(x, 0.3 * self.y[0], 1.2)
        return self.log_transition(t, x_prev, x) - norm.logpdf(x, *self._law(t, x_prev))


class Auxiliary(Guided):
    """With a guess of the next potential, which the step takes back."""

    def look_ahead(self, t, x, context):
        return norm.logpdf(self.y[t], PHI * x, 0.9)

    def log_potential(self, t, x_prev, x, context):
        potential = super().log_potential(t, x_prev, x, context)
        return potential if x_prev is None else potential - self.look_ahead(t, x_prev, context)


def prior_covariance():
    """Of x_0 ... x_T."""
    length = STEPS + 1
    root = np.zeros((length, length))
    for t in range(length):
        for s in range(t + 1):
            root[t, s] = PHI ** (t - s) * (1.0 if s == 0 else Q)
    return root @ root.T


def smoothing_law(y):
    """Mean and covariance of the path given the data."""
    prior = prior_covariance()
    gain = prior @ np.linalg.inv(prior + R**2 * np.eye(len(y)))
    return gain @ y, prior - gain @ prior


Y = np.array([1.3, -0.4, 0.9, 2.2, -1.0, 0.3])
REPLICATES = 8000


def swept(fk, settings, ancestry, reference, sweeps=1):
    """Some sweeps of each reference, shape ``(replicates, steps + 1)``: the paths, and where the last sweep moved."""

    @jax.jit
    @jax.vmap
    def run(key, path):
        def sweep(path, key):
            path, _, stats = conditional_smc(key, fk, settings, path, ancestry)
            return path, stats.moved

        path, moved = jax.lax.scan(sweep, path, jax.random.split(key, sweeps))
        return path, moved[-1]

    return jax.device_get(run(jax.random.split(jax.random.key(0), len(reference)), reference))


def exact_paths(seed, count=REPLICATES):
    mean, covariance = smoothing_law(Y)
    noise = np.random.default_rng(seed).normal(size=(count, STEPS + 1))
    return jnp.asarray(mean + noise @ np.linalg.cholesky(covariance).T)


CASES = [
    (Bootstrap, Ancestry.traced, Settings(2, ess_threshold=1.0)),
    (Bootstrap, Ancestry.sampled, Settings(3)),
    (Bootstrap, Ancestry.backward, Settings(3)),
    pytest.param(Bootstrap, Ancestry.traced, Settings(4, ess_threshold=0.7), marks=pytest.mark.slow),
    pytest.param(Guided, Ancestry.traced, Settings(4, Multinomial(), ess_threshold=1.0), marks=pytest.mark.slow),
    (Guided, Ancestry.sampled, Settings(2, Multinomial())),
    pytest.param(Guided, Ancestry.backward, Settings(3, Stratified()), marks=pytest.mark.slow),
    pytest.param(Auxiliary, Ancestry.traced, Settings(3, Killing(), ess_threshold=0.6), marks=pytest.mark.slow),
    (Auxiliary, Ancestry.sampled, Settings(3, SSP())),
    pytest.param(Auxiliary, Ancestry.backward, Settings(4, Residual()), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "ancestry", "settings"), CASES)
def test_the_smoothing_law_is_invariant(kind, ancestry, settings):
    """References from the exact law; after ten sweeps, means and all second moments, across times too, are the same.

    Ten, since an error adds up; likelihoods are flat enough for the path to move.
    """
    paths, moved = swept(kind(jnp.asarray(Y)), settings, ancestry, exact_paths(1), sweeps=10)
    assert_moments(paths, *smoothing_law(Y), detects=0.15)
    assert moved[:, -1].mean() > 0.2  # else nothing was tested


@pytest.mark.parametrize(
    "ancestry",
    [Ancestry.sampled, *(pytest.param(a, marks=pytest.mark.slow) for a in (Ancestry.traced, Ancestry.backward))],
)
def test_path_and_data_together_keep_their_law(ancestry):
    """Data from the model, path from the prior: a sweep given these data gives a pair with the same joint law."""
    rng = np.random.default_rng(2)
    prior = prior_covariance()
    x = rng.normal(size=(REPLICATES, STEPS + 1)) @ np.linalg.cholesky(prior).T
    y = x + R * rng.normal(size=x.shape)
    keys = jax.random.split(jax.random.key(3), REPLICATES)

    @jax.jit
    @jax.vmap
    def sweep(key, y, path):
        return conditional_smc(key, Guided(y), Settings(4, Systematic()), path, ancestry)[0]

    new = np.asarray(sweep(keys, jnp.asarray(y), jnp.asarray(x)))
    covariance = np.block([[prior, prior], [prior, prior + R**2 * np.eye(STEPS + 1)]])
    assert_moments(np.concatenate([new, y], 1), np.zeros(2 * STEPS + 2), covariance, detects=0.15)


@pytest.mark.slow
def test_the_path_moves_at_all_times_with_few_particles():
    """Five particles, forty steps: a traced path keeps its past, drawn ancestors change it."""
    steps = 40
    y = jnp.asarray(np.random.default_rng(4).normal(size=steps + 1))
    fk = Bootstrap(y, steps)
    moved = {}
    for ancestry in Ancestry:
        moved[ancestry] = swept(fk, Settings(5, ess_threshold=1.0), ancestry, jnp.zeros((100, steps + 1)))[1].mean(0)
        assert moved[ancestry][-1] > 0.5
    assert moved[Ancestry.traced][0] < 0.1
    assert moved[Ancestry.sampled][0] > 0.4
    assert moved[Ancestry.backward][0] > 0.4


def test_chains_from_anywhere_reach_the_smoothing_law():
    """The kernel is ergodic: 30 sweeps from a far path, then many chains have the exact moments."""
    far = jnp.full((REPLICATES, STEPS + 1), 4.0)
    paths, _ = swept(Guided(jnp.asarray(Y)), Settings(5), Ancestry.sampled, far, sweeps=30)
    assert_moments(paths, *smoothing_law(Y), detects=0.15)


def test_particles_may_be_trees():
    class Pair(Bootstrap):
        def init(self, key):
            x, log_g = super().init(key)
            return {"x": x, "double": jnp.stack([x, 2 * x])}, log_g

        def step(self, key, t, x, context):
            new, log_g = super().step(key, t, x["x"], context)
            return {"x": new, "double": jnp.stack([new, 2 * new])}, log_g

        def log_potential(self, t, x_prev, x, context):
            return super().log_potential(t, None, x["x"], context)

        def log_transition(self, t, x_prev, x):
            return super().log_transition(t, x_prev["x"], x["x"])

    reference = jnp.zeros(STEPS + 1)
    y = jnp.asarray(Y)
    pair = {"x": reference, "double": jnp.zeros((STEPS + 1, 2))}
    run = jax.jit(lambda fk, path: conditional_smc(jax.random.key(0), fk, Settings(5), path)[0])
    path, plain = run(Pair(y), pair), run(Bootstrap(y), reference)
    np.testing.assert_array_equal(path["x"], plain)
    assert (path["double"][:, 1] == np.where(plain == 0, 0, 2 * plain)).all()


def test_what_cannot_be_done_is_said():
    y = jnp.asarray(Y)
    with pytest.raises(MethodError, match=r"at least 2 particles, got particles=1"):
        conditional_smc(jax.random.key(0), Bootstrap(y), Settings(1), jnp.zeros(STEPS + 1))

    class Several(Bootstrap):
        @property
        def offspring(self):
            return 2

    with pytest.raises(MethodError, match="several offspring"):
        conditional_smc(jax.random.key(0), Several(y), Settings(4), jnp.zeros(STEPS + 1))
