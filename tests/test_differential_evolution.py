"""Differential evolution in sequential Monte Carlo, against a posterior of two modes in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import probgen as pg
from probgen.feynman_kac.smc import Settings, advance, begin, smc
from probgen.kernels.clouds import evenly
from probgen.kernels.moves import DifferentialEvolution, Point, Target, Tuning
from probgen.kernels.tempering import FixedTempering
from probgen.program.enumerated import density_of
from probgen.testing import assert_mean, assert_moments, assert_proportion, assert_unbiased_evidence

FIRST, SECOND, WIDTHS = np.array([-3.0, 0.0]), np.array([3.0, 2.0]), np.array([0.3, 0.6])
SHARE = 0.3


def two(u):
    """Two normals of unlike widths, the first with a share of 0.3."""
    each = [
        jnp.log(share) - 0.5 * jnp.sum(((u - centre) / width) ** 2) - 2 * jnp.log(width)
        for share, centre, width in zip((SHARE, 1 - SHARE), (FIRST, SECOND), WIDTHS, strict=True)
    ]
    return Point(u, jnp.logaddexp(*each), jnp.zeros(1))


def drawn(rng, count, share, wider=1.0):
    first = rng.random(count) < share
    centres, widths = np.where(first[:, None], FIRST, SECOND), wider * np.where(first, *WIDTHS)
    return centres + widths[:, None] * rng.normal(size=(count, 2)), first


@pytest.fixture(scope="module")
def moved():
    """From exact draws, five moves with a bank of other shares and widths."""
    rng = np.random.default_rng(0)
    start, first = drawn(rng, 40_000, SHARE)
    bank = drawn(rng, 300, 0.6, wider=1.4)[0]
    move, target = DifferentialEvolution(jumps=0.3), Target(two, jnp.ones(1))
    tuning = Tuning(jnp.array([[2.0, 0.0], [0.5, 0.7]]), jnp.asarray(0.4), jnp.asarray(bank))

    def one(key, u):
        state, total = move.begin(target, two(u)), 0.0
        for i in range(5):
            state, acceptance = move(jax.random.fold_in(key, i), target, state, tuning)
            total += acceptance
        return move.point(state), total / 5

    points, rate = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 40_000), start)
    return first, points, rate


def test_a_move_leaves_both_modes_as_they_are(moved):
    _, points, rate = moved
    u = np.asarray(points.u)
    left = u[:, 0] < 0
    assert_proportion(int(left.sum()), len(left), SHARE, detects=0.02)
    for here, centre, width in ((left, FIRST, WIDTHS[0]), (~left, SECOND, WIDTHS[1])):
        rows = u[here][: here.sum() // 100 * 100]
        assert_moments(rows.reshape(-1, 100, 2), centre, width**2 * np.eye(2), detects=0.15)
    assert 0.05 < rate.mean() < 0.9
    np.testing.assert_allclose(points.log_prior, jax.vmap(two)(points.u).log_prior)


def test_whole_differences_lead_from_one_mode_to_the_other(moved):
    """Modes ten deviations apart: a random walk of the cloud's covariance would nearly never arrive."""
    first, points, _ = moved
    changed = (np.asarray(points.u)[:, 0] < 0) != first
    assert changed.mean() > 0.05


def test_members_of_the_bank_stand_for_the_weights():
    u, w = jnp.arange(6.0)[:, None], jnp.array([0.5, 0.0, 0.25, 0.0, 0.25, 0.0])
    np.testing.assert_array_equal(evenly(u, jnp.log(w) + 7.0, 8)[:, 0], [0, 0, 0, 0, 2, 2, 4, 4])


# -- in SMC: prior N(m, I), likelihood w N(y; u, s^2) + (1 - w) N(y; -u, s^2) --------------------------------------------

MEAN, Y, S, W = np.array([0.2, 0.0]), np.array([1.2, 0.8]), 0.1, 0.7
EACH = np.log([W, 1 - W]) + [multivariate_normal(MEAN, (1 + S**2) * np.eye(2)).logpdf(y) for y in (Y, -Y)]
EVIDENCE = float(np.logaddexp(*EACH))
LARGER = float(np.exp(EACH[0] - EVIDENCE))


def either():
    u = numpyro.sample("u", dist.Normal(jnp.asarray(MEAN), 1.0).to_event(1))
    each = [dist.Normal(side * u, S).to_event(1).log_prob(jnp.asarray(Y)) for side in (1.0, -1.0)]
    numpyro.factor("seen", jnp.logaddexp(jnp.log(W) + each[0], jnp.log(1 - W) + each[1]))


def test_the_evidence_is_unbiased_where_powers_and_tuning_are_given():
    density = density_of(pg.Model(either))
    fk = FixedTempering(density, DifferentialEvolution(), 1, None, 3, jnp.linspace(0, 1, 8)[1:] ** 2)
    settings = Settings(128, ess_threshold=1.0)
    key = jax.random.key(1)
    state, _ = jax.jit(begin)(key, fk, settings)
    step = jax.jit(lambda state, t: advance(key, fk, settings, state, t, 1)[0])
    tunings = []
    for t in range(fk.steps):
        state = step(state, t)
        tunings.append(state.context.tuning)
    assert tunings[0].bank.shape == (DifferentialEvolution.bank, 2)
    fk = dataclasses.replace(fk, tunings=jax.tree.map(lambda *leaves: jnp.stack(leaves), *tunings))
    result = jax.jit(jax.vmap(lambda key: smc(key, fk, settings)))(jax.random.split(jax.random.key(0), 640))
    assert_unbiased_evidence(np.asarray(result.log_z), EVIDENCE, detects=0.1)


@pytest.mark.slow
def test_the_modes_have_their_shares():
    how = pg.SMC(particles=500, kernel=pg.DifferentialEvolution(), moves=10)
    tree = pg.infer(pg.Model(either), how, draws=500, chains=32)
    u = tree.posterior.u.values
    assert_mean((u.sum(-1) > 0).mean(1), LARGER, detects=0.1)
    z = (tree.attrs["log_evidence"] - EVIDENCE) / tree.attrs["log_evidence_se"]
    assert abs(z) < 4
    assert tree.attrs["log_evidence_se"] < 0.1


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (DifferentialEvolution(jumps=1.0), "jumps"),
        (DifferentialEvolution(target_accept=0.0), "target_accept"),
        (pg.NUTS(), "DifferentialEvolution"),
    ],
)
def test_mistakes_are_named(kernel, message):
    with pytest.raises(pg.MethodError, match=message):
        pg.infer(pg.Model(either), pg.SMC(kernel=kernel))
