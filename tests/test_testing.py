"""The assertions themselves: false alarms and power by simulation, and oracles against second implementations."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import probgen as pg
from probgen.program.density import Density
from probgen.program.enumerated import density_of
from probgen.program.sites import Kind
from probgen.testing import (
    Refuted,
    TooWeak,
    assert_draws,
    assert_mean,
    assert_moments,
    assert_proportion,
    assert_same_distribution,
    assert_unbiased_evidence,
    assert_variance,
    oracles,
)
from probgen.testing.judge import shift

SEES_ALL = 1e9
"""An error so large that every test sees it: what remains is the rate of false alarms."""


def verdicts(trial, count):
    """How often a test ends in which way."""
    found = {"passed": 0, "refuted": 0, "weak": 0}
    for _ in range(count):
        try:
            trial()
            found["passed"] += 1
        except Refuted:
            found["refuted"] += 1
        except TooWeak:
            found["weak"] += 1
    return found


def at_most(count, trials, rate):
    """Whether that many are in line with a rate of at most this (one-sided, at 1e-6)."""
    return count <= scipy.stats.binom.isf(1e-6, trials, rate)


# -- means -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [23, 200])
@pytest.mark.parametrize("level", [0.05, 1e-6])
@pytest.mark.parametrize("power", [0.5, 0.99])
def test_the_shift_is_that_of_the_noncentral_t(df, level, power):
    critical = scipy.stats.t.isf(level / 2, df)
    assert scipy.stats.nct.sf(critical, df, shift(df, level, power)) == pytest.approx(power, abs=1e-4)


def test_the_shift_of_a_known_error_is_that_of_the_normal_law():
    assert shift(np.inf, 0.05, 0.8) == pytest.approx(1.959964 + 0.841621, abs=1e-5)


def test_false_alarms_of_means():
    rng = np.random.default_rng(0)
    found = verdicts(lambda: assert_mean(rng.normal(3.0, 2.0, (24, 3)), 3.0, detects=SEES_ALL, false_fail=0.05), 4000)
    assert_proportion(found["refuted"], 4000, 1 - (1 - 0.05 / 3) ** 3, detects=0.03)


def test_false_alarms_of_means_far_in_the_tail():
    """20,000 entries at 2.5e-5 each: a level that is off by a factor of two would show."""
    rng = np.random.default_rng(1)
    found = verdicts(lambda: assert_mean(rng.normal(size=(24, 20_000)), 0.0, detects=SEES_ALL, false_fail=0.5), 200)
    assert_proportion(found["refuted"], 200, 1 - np.exp(-0.5), detects=0.28)


@pytest.mark.parametrize("spread", [0.5, 0.8, 1.0, 1.2, 2.0])
def test_an_error_of_the_stated_size_does_not_pass_whatever_the_spread(spread):
    """At ``spread`` 1 an error of ``detects`` is the smallest that is seen with the power; above, the test is weak."""
    rng, n, detects = np.random.default_rng(2), 24, 0.3
    sd = spread * detects * np.sqrt(n) / shift(n - 1, 0.01, 0.9)
    found = verdicts(
        lambda: assert_mean(rng.normal(detects, sd, n), 0.0, detects=detects, false_fail=0.01, power=0.9), 2000
    )
    assert at_most(found["passed"], 2000, 0.1)
    if spread == 1:
        assert_proportion(found["refuted"], 2000, 0.9, detects=0.06)
    if spread == 2:
        assert found["weak"] > 0


@pytest.mark.parametrize("df", [23, 500])
@pytest.mark.parametrize("level", [0.05, 1e-6])
@pytest.mark.parametrize("power", [0.5, 0.99])
def test_the_chance_that_an_error_passes_is_bounded_over_all_spreads(df, level, power):
    """By integration: it passes where the spread looks small enough, and the mean near enough."""
    enough, critical = shift(df, level, power), scipy.stats.t.isf(level / 2, df)
    ratio = np.sqrt(scipy.stats.chi2.ppf((np.arange(10_000) + 0.5) / 10_000, df) / df)
    delta = enough * np.linspace(0.3, 1.5, 61)[:, None]
    near = scipy.stats.norm.cdf(critical * ratio - delta) - scipy.stats.norm.cdf(-critical * ratio - delta)
    assert np.where(ratio <= delta / enough, near, 0.0).mean(1).max() < 1 - power


def test_a_known_bias_may_be_allowed():
    rng = np.random.default_rng(3)
    found = verdicts(
        lambda: assert_mean(rng.normal(0.5, 1.0, 32), 0.0, detects=SEES_ALL, false_fail=0.05, tolerance=0.5), 2000
    )
    assert at_most(found["refuted"], 2000, 0.05)
    with pytest.raises(Refuted, match=r"expected 0: .* beyond the tolerance of 0\.5"):
        assert_mean(rng.normal(1.0, 0.1, 32), 0.0, detects=2.0, tolerance=0.5)


def test_numbers_that_do_not_vary_are_compared_up_to_rounding():
    assert assert_mean(np.full(24, 0.1 + 0.2), 0.3, detects=1e-9).p_value > 0.5
    assert assert_mean(np.full(24, 0.1, np.float32), 0.1, detects=1e-3).p_value > 1e-3
    with pytest.raises(Refuted):
        assert_mean(np.full(24, 0.3), 0.3 + 1e-9, detects=1e-6)


# -- moments and variances -------------------------------------------------------------------------------------------


def autoregression(rng, coefficient, shape):
    """Stationary chains with standard normal margins; time is the second axis of ``shape``."""
    noise = rng.normal(size=shape)
    x = np.empty(shape)
    x[:, 0] = noise[:, 0]
    for t in range(1, shape[1]):
        x[:, t] = coefficient * x[:, t - 1] + np.sqrt(1 - coefficient**2) * noise[:, t]
    return x


MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 1.0], [1.0, 3.0]])
ROOT = np.linalg.cholesky(COVARIANCE)


def correlated(rng, n=32, length=100):
    return MEAN + autoregression(rng, 0.7, (n, length, 2)) @ ROOT.T


def test_false_alarms_of_moments():
    rng = np.random.default_rng(4)
    found = verdicts(
        lambda: assert_moments(correlated(rng, length=50), MEAN, COVARIANCE, detects=SEES_ALL, false_fail=0.1), 800
    )
    # Five numbers; second moments of 50 autocorrelated draws are a little skewed.
    assert_proportion(found["refuted"], 800, 0.1, detects=0.09)


def test_moments_that_are_off_are_named():
    rng = np.random.default_rng(5)
    x = correlated(rng)
    assert assert_moments(x, MEAN, COVARIANCE, detects=1.0).detectable.shape == (5,)
    assert_moments(x.reshape(32, 4, 25, 2), MEAN, COVARIANCE, detects=1.0)
    with pytest.raises(Refuted, match="standardised mean of coordinate 1"):
        assert_moments(x + np.array([0.0, 1.0]), MEAN, COVARIANCE, detects=1.0)
    with pytest.raises(Refuted, match="standardised covariance of coordinates 0, 1"):
        assert_moments(MEAN + (x - MEAN) * [1, -1], MEAN, COVARIANCE, detects=1.0)
    one = x[..., 0]
    assert_moments(one, 1.0, 2.0, detects=1.0)
    with pytest.raises(Refuted, match="standardised covariance of coordinates 0, 0"):
        assert_moments(one, 1.0, np.sqrt(2.0), detects=1.0)
    with pytest.raises(TooWeak, match="sees an error of"):
        assert_moments(x[:, :5], MEAN, COVARIANCE, detects=0.1)


def test_false_alarms_and_power_of_variances():
    rng, n = np.random.default_rng(6), 200
    found = verdicts(
        lambda: assert_variance(rng.normal(0, 2.0, n), 4.0, detects=SEES_ALL, false_fail=0.05, power=0.9), 4000
    )
    assert_proportion(found["refuted"], 4000, 0.05, detects=0.03)
    seen = float(assert_variance(rng.normal(size=n), 1.0, detects=0.9, false_fail=0.05, power=0.9).detectable)
    for factor in (1 + seen, 1 - seen):
        sd = np.sqrt(factor)
        found = verdicts(
            lambda sd=sd: assert_variance(rng.normal(0, sd, n), 1.0, detects=seen, false_fail=0.05, power=0.9), 2000
        )
        assert at_most(found["passed"], 2000, 0.1)
        assert found["weak"] == 0
    with pytest.raises(TooWeak, match="relative variance"):
        assert_variance(rng.normal(size=n), 1.0, detects=0.9 * seen, false_fail=0.05, power=0.9)
    assert_variance(rng.normal(size=210), 1.0, detects=1.0)  # as the docstring says
    with pytest.raises(Refuted, match="a ratio of"):
        assert_variance(rng.normal(0, 2.0, (n, 3)), 1.0, detects=1.0)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_rates_of_proportions_by_enumeration(p):
    """Over all counts that can occur, the chance of failure is what it should be: with and without an error."""
    trials, counts = 60, np.arange(61)

    def refuted(k):
        return verdicts(lambda: assert_proportion(k, trials, p, detects=0.999999, false_fail=0.02, power=0.9), 1)[
            "refuted"
        ]

    rejected = np.array([refuted(k) for k in counts], bool)
    assert rejected @ scipy.stats.binom.pmf(counts, trials, p) <= 0.02
    seen = float(assert_proportion(round(p * trials), trials, p, detects=0.5, false_fail=0.02, power=0.9).detectable)
    powers = [
        rejected @ scipy.stats.binom.pmf(counts, trials, other) for other in (p - seen, p + seen) if 0 <= other <= 1
    ]
    assert min(powers) == pytest.approx(0.9, abs=1e-6)


def test_proportions_of_several_entries():
    assert_proportion([480, 520], 1000, [0.5, 0.5], detects=0.2)
    with pytest.raises(Refuted, match="400 successes in 1000 trials"):
        assert_proportion([500, 400], 1000, 0.5, detects=0.2)
    with pytest.raises(TooWeak, match="the proportion"):
        assert_proportion([500, 500], 1000, 0.5, detects=0.05)


# -- evidence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "sd"), [(24, 0.7), (64, 0.3), (200, 0.05)])
def test_false_alarms_of_the_evidence(n, sd):
    rng = np.random.default_rng(7)
    found = verdicts(
        lambda: assert_unbiased_evidence(
            rng.normal(5.0 - sd**2 / 2, sd, n), 5.0, detects=SEES_ALL, false_fail=0.05, power=0.9
        ),
        3000,
    )
    assert at_most(found["refuted"] + found["weak"] * (sd < 0.6), 3000, 0.05)
    assert found["refuted"] > 3000 * 0.01


def test_a_t_test_of_the_evidence_would_cry_wolf():
    """Why there is an assertion of its own: a t test of the mean of 24 log-normal estimates is far off its level."""
    rng = np.random.default_rng(8)
    estimates = rng.normal(-(0.8**2) / 2, 0.8, (4000, 24))
    plain = sum(
        verdicts(lambda x=x: assert_mean(np.exp(x), 1.0, detects=SEES_ALL, false_fail=1e-3), 1)["refuted"]
        for x in estimates
    )
    ours = sum(
        verdicts(lambda x=x: assert_unbiased_evidence(x, 0.0, detects=SEES_ALL, false_fail=1e-3), 1)["refuted"]
        for x in estimates
    )
    assert plain > 4000 * 0.01
    assert at_most(ours, 4000, 1e-3)


def test_biased_evidence_is_found():
    """An off-by-one in tempering leaves means and variances right, and Z at 0.84 of its value."""
    rng, sd = np.random.default_rng(9), 0.1
    right = rng.normal(-(sd**2) / 2, sd, 100)
    assert assert_unbiased_evidence(right, 0.0, detects=0.15).detectable < 0.15
    with pytest.raises(Refuted, match="log E Z"):
        assert_unbiased_evidence(right + np.log(0.84), 0.0, detects=0.15)
    # The log itself is biased, and that is no error.
    wide = rng.normal(-0.5 * 0.6**2, 0.6, 1000)
    assert_unbiased_evidence(wide, 0.0, detects=0.3)
    with pytest.raises(Refuted):
        assert_mean(wide, 0.0, detects=0.3)
    found = verdicts(
        lambda: assert_unbiased_evidence(
            rng.normal(-0.3 - 0.045, 0.3, 40), 0.0, detects=0.3, false_fail=0.01, power=0.9
        ),
        1000,
    )
    assert at_most(found["passed"], 1000, 0.1)


def test_heavy_tails_of_the_evidence_are_not_judged():
    rng = np.random.default_rng(10)
    with pytest.raises(TooWeak, match="largest values decide"):
        assert_unbiased_evidence(rng.normal(-2.0, 2.0, 500), 0.0, detects=10.0)


# -- distributions ---------------------------------------------------------------------------------------------------

RATES = {"detects": 0.999, "false_fail": 0.05, "power": 0.9}


@pytest.mark.parametrize(
    ("draw", "reference"),
    [
        (lambda rng: rng.normal(size=200), lambda rng: scipy.stats.norm.cdf),
        (lambda rng: rng.poisson(3.0, 200), lambda rng: scipy.stats.poisson(3.0).cdf),
        (lambda rng: rng.normal(size=200), lambda rng: rng.normal(size=600)),
        (lambda rng: rng.poisson(3.0, 200), lambda rng: rng.poisson(3.0, 200)),
    ],
    ids=["continuous", "discrete", "two samples", "two discrete samples"],
)
def test_false_alarms_of_distributions(draw, reference, request):
    rng = np.random.default_rng(11)
    found = verdicts(lambda: assert_same_distribution(draw(rng), reference(rng), **RATES), 3000)
    assert at_most(found["refuted"], 3000, 0.05)
    if request.node.callspec.id == "continuous":
        assert found["refuted"] > 3000 * 0.02  # the bound is sharp


def test_false_alarms_of_distributions_of_chains():
    rng = np.random.default_rng(12)
    chains = [autoregression(rng, 0.7, (4, 400)) for _ in range(300)]
    found = [verdicts(lambda x=x: assert_same_distribution(x, scipy.stats.norm.cdf, **RATES), 1) for x in chains]
    assert at_most(sum(one["refuted"] for one in found), 300, 0.05)
    careless = [
        verdicts(lambda x=x: assert_same_distribution(x.ravel(), scipy.stats.norm.cdf, **RATES), 1) for x in chains
    ]
    assert sum(one["refuted"] for one in careless) > 300 * 0.15


@pytest.mark.parametrize("count", [200, 1000])
def test_power_of_distributions(count):
    rng = np.random.default_rng(13)
    for size, reference in ((count, scipy.stats.norm.cdf), (2 * count, rng.normal(size=2 * count))):
        outcome = assert_same_distribution(rng.normal(size=size), reference, **RATES)
        seen = float(outcome.detectable)
        moved = 2 * scipy.stats.norm.ppf(0.5 + seen / 2)  # the distance of N(0, 1) and N(moved, 1)
        rates = {**RATES, "detects": seen * (1 + 1e-9)}

        def trial(size=size, moved=moved, reference=reference, rates=rates):
            fresh = reference if callable(reference) else rng.normal(size=len(reference))
            assert_same_distribution(rng.normal(moved, 1.0, size), fresh, **rates)

        found = verdicts(trial, 500)
        assert at_most(found["passed"], 500, 0.1)
        assert found["weak"] == 0
    with pytest.raises(TooWeak, match="distribution function"):
        assert_same_distribution(rng.normal(size=100), scipy.stats.norm.cdf, detects=0.1)


# -- Markov chains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [-0.3, 0.5, 0.9])
def test_false_alarms_of_chains(coefficient):
    rng, count = np.random.default_rng(14), 250
    found = verdicts(
        lambda: assert_draws(
            autoregression(rng, coefficient, (4, 1200)), means=0.0, sds=1.0, detects=SEES_ALL, false_fail=0.05
        ),
        count,
    )
    assert found["weak"] == 0
    assert at_most(found["refuted"], count, 0.05)


def test_power_of_chains():
    rng, wanted = np.random.default_rng(15), {"detects": 0.35, "false_fail": 0.01, "power": 0.9}
    for offset, scale in ((0.35, 1.0), (0.0, 1.35), (0.0, 0.65)):
        found = verdicts(
            lambda offset=offset, scale=scale: assert_draws(
                offset + scale * autoregression(rng, 0.7, (4, 500)), means=0.0, sds=1.0, **wanted
            ),
            100,
        )
        assert at_most(found["passed"], 100, 0.1)
        assert found["weak"] < 20


def test_chains_are_judged_by_site():
    rng = np.random.default_rng(16)
    draws = {"a": rng.normal(5.0, 2.0, (4, 1000)), "b": rng.normal(0.0, 1.0, (4, 1000, 3))}
    assert_draws(draws, means={"a": 5.0}, sds={"a": 2.0, "b": 1.0}, detects=0.2)
    with pytest.raises(Refuted, match=r"the mean of 'b'\[2\] over its sd"):
        assert_draws(draws, means={"a": 5.0, "b": [0.0, 0.0, 0.3]}, detects=0.2)
    with pytest.raises(Refuted, match="the sd of 'a' over its sd"):
        assert_draws(draws, sds={"a": 1.5}, detects=0.2)
    with pytest.raises(TooWeak, match="sees an error of"):
        assert_draws(draws, means={"a": 5.0}, detects=0.05)
    with pytest.raises(TooWeak, match="effective draws, and needs 100"):
        assert_draws(autoregression(rng, 0.99, (2, 200)), means=0.0, detects=5.0)
    with pytest.raises(Refuted, match="do not vary"):
        assert_draws(np.zeros((4, 100)), means=0.0, detects=1.0)
    with pytest.raises(Refuted, match="not finite"):
        assert_draws(np.full((4, 100), np.nan), means=0.0, detects=1.0)


# -- oracles ---------------------------------------------------------------------------------------------------------

ORACLES = oracles()
BOTH = {"mixture"}
"""Continuous and discrete sites that depend on one another: beyond ``pg.Exact``."""


@pytest.mark.parametrize("oracle", [o for o in ORACLES if o.name not in BOTH], ids=lambda o: o.name)
def test_oracles_agree_with_exact_inference(oracle):
    tree = pg.infer(oracle.model, pg.Exact(), draws=2500, chains=2, seed=1)
    assert tree.attrs["log_evidence"] == pytest.approx(oracle.log_evidence, rel=1e-10)
    sites = {s.name for s in oracle.model.of_kind(Kind.continuous, Kind.discrete, Kind.deterministic)}
    assert set(oracle.marginals) == sites
    for site in sites:
        values = tree[f"posterior/{site}"].values.reshape(5000, -1)  # independent draws
        for index in range(values.shape[1]):
            cdf = oracle.cdf(site, index if oracle.means[site].shape else None)
            assert_same_distribution(values[:, index], cdf, detects=0.07)
    oracle.check(tree, detects=0.25)


def test_the_mixture_agrees_with_integration():
    oracle = next(o for o in ORACLES if o.name == "mixture")
    density = density_of(oracle.model)
    grid = np.linspace(-9, 9, 4001)
    weight = np.exp(jax.jit(jax.vmap(density.log_density))(grid[:, None])) * (grid[1] - grid[0])
    assert np.log(weight.sum()) == pytest.approx(oracle.log_evidence, rel=1e-10)
    p = weight / weight.sum()
    assert p @ grid == pytest.approx(oracle.means["mu"], rel=1e-8)
    assert np.sqrt(p @ (grid - p @ grid) ** 2) == pytest.approx(oracle.sds["mu"], rel=1e-8)
    middle = grid + (grid[1] - grid[0]) / 2
    np.testing.assert_allclose(np.cumsum(p), oracle.cdf("mu")(middle), atol=1e-5)
    joint = [
        np.sum(np.exp(jax.vmap(Density(oracle.model, {"z": jnp.asarray(z)}).log_density)(grid[:, None])))
        for z in np.ndindex((2,) * 5)
    ]
    share = np.asarray(joint) @ np.array(list(np.ndindex((2,) * 5))) / np.sum(joint)
    np.testing.assert_allclose(oracle.means["z"], share, rtol=1e-8)
    np.testing.assert_allclose(oracle.sds["z"], np.sqrt(share * (1 - share)), rtol=1e-8)
    np.testing.assert_allclose(oracle.cdf("z", 2)(np.array([-1.0, 0.0, 0.5, 1.0])), [0, *[1 - share[2]] * 2, 1])


def test_a_method_is_checked_against_the_oracles():
    found = {oracle.name: oracle for oracle in ORACLES}
    assert "mixture" not in {oracle.name for oracle in oracles(discrete=False)}
    for name in ("mixture", "normal_gamma"):
        oracle = found[name]
        tree = pg.infer(oracle.model, pg.NUTS(), draws=1000, warmup=500, chains=4, seed=2)
        oracle.check(tree, detects=0.4)
        site = next(iter(oracle.marginals))
        assert_same_distribution(tree[f"posterior/{site}"], oracle.cdf(site), detects=0.3)
        wrong = {name: tree["posterior"][name] for name in oracle.marginals}
        wrong[site] = oracle.means[site] + 1.5 * (wrong[site] - oracle.means[site])
        with pytest.raises(Refuted, match=f"the sd of '{site}'"):
            assert_draws(wrong, means=oracle.means, sds=oracle.sds, detects=0.6)


def test_other_data_have_other_answers_and_the_same_shapes():
    for one, two in zip(ORACLES, oracles(seed=1), strict=True):
        assert one.log_evidence != two.log_evidence
        assert jax.tree.structure(one.model) == jax.tree.structure(two.model)
        assert {k: v.shape for k, v in one.means.items()} == {k: v.shape for k, v in two.means.items()}


# -- bad input -------------------------------------------------------------------------------------------------------

X = np.random.default_rng(17).normal(size=(24, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: assert_mean(X[:23], 0.0, detects=1.0), pg.DataError, r"at least 24 .* shape \(23, 2\)"),
        (lambda: assert_mean(X, [0.0, 0.0, 0.0], detects=1.0), pg.DataError, r"expected has shape \(3,\)"),
        (lambda: assert_mean(X, np.nan, detects=1.0), pg.DataError, "expected must be finite"),
        (lambda: assert_mean(X, 0.0, detects=0.0), pg.MethodError, "detects must be positive"),
        (lambda: assert_mean(X, 0.0, detects=1.0, tolerance=-1.0), pg.MethodError, "tolerance"),
        (lambda: assert_mean(X, 0.0, detects=1.0, false_fail=0.0), pg.MethodError, "false_fail"),
        (lambda: assert_mean(X, 0.0, detects=1.0, power=1.0), pg.MethodError, "power"),
        (lambda: assert_mean(np.where(X > 2, np.inf, X) * np.nan, 0.0, detects=1.0), Refuted, "not finite"),
        (lambda: assert_moments(X, np.zeros(2), np.eye(3), detects=1.0), pg.DataError, "expected .dim,. and"),
        (lambda: assert_moments(X, np.zeros(3), np.eye(3), detects=1.0), pg.DataError, "3 coordinates"),
        (lambda: assert_moments(X, np.zeros(2), -np.eye(2), detects=1.0), pg.DataError, "positive definite"),
        (lambda: assert_variance(X, 0.0, detects=1.0), pg.DataError, "expected must be positive"),
        (lambda: assert_variance(X, 1.0, detects=-1.0), pg.MethodError, "detects must be positive"),
        (lambda: assert_proportion(5, 4, 0.5, detects=0.1), pg.DataError, "counts of at most trials"),
        (lambda: assert_proportion(5, 10, 1.5, detects=0.1), pg.DataError, "must be a probability"),
        (lambda: assert_proportion(5, 10, 0.5, detects=1.5), pg.MethodError, "detects must lie"),
        (lambda: assert_same_distribution(X[:, :, None], X[:, 0], detects=0.1), pg.DataError, "one scalar at a time"),
        (lambda: assert_same_distribution(X[:, 0], lambda x: 2 + x, detects=0.1), pg.DataError, "probabilities"),
        (lambda: assert_same_distribution(X[:, 0], X[:, 1], detects=2.0), pg.MethodError, "detects must lie"),
        (lambda: assert_draws(X, detects=1.0), pg.MethodError, "neither means nor sds"),
        (lambda: assert_draws(X.T, means=[0.0, 1.0], detects=1.0), pg.DataError, "means of 'draws' has shape"),
        (lambda: assert_draws({"a": X.T}, means=0.0, detects=1.0), pg.DataError, "must be too"),
        (lambda: assert_draws({"a": X.T}, means={"b": 0.0}, detects=1.0), pg.DataError, "no site 'b'"),
        (lambda: assert_draws(X, means=0.0, detects=1.0), pg.DataError, r"axes \(chain, draw"),
        (lambda: ORACLES[0].cdf("m"), pg.ModelError, "Did you mean 'mu'"),
        (lambda: ORACLES[0].cdf("mu", 1), pg.ModelError, "Name one of its entries"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_it_needs_no_pytest():
    code = "import sys; sys.modules['pytest'] = None; import probgen.testing; probgen.testing.oracles()"
    subprocess.run([sys.executable, "-c", code], check=True)
