"""Quarantine: lost chains are found, healthy ones are left alone."""

import numpy as np
import pytest

from probgen.infer.quarantine import compare

CHAINS, DRAWS, DIM = 4, 1000, 3


def healthy(seed, chains=CHAINS, draws=DRAWS):
    """Independent draws of a standard normal, with their log density."""
    u = np.random.default_rng(seed).normal(size=(chains, draws, DIM))
    lp = -0.5 * (u**2).sum(-1)
    return u, {"lp": lp, "acceptance_rate": np.full(lp.shape, 0.8), "diverging": np.zeros(lp.shape, bool)}


def autocorrelated(seed, coefficient, chains=CHAINS, draws=DRAWS):
    """An AR(1) chain with standard normal margins."""
    noise = np.random.default_rng(seed).normal(size=(chains, draws, DIM))
    u = np.empty_like(noise)
    u[:, 0] = noise[:, 0]
    for t in range(1, draws):
        u[:, t] = coefficient * u[:, t - 1] + np.sqrt(1 - coefficient**2) * noise[:, t]
    return u, {"lp": -0.5 * (u**2).sum(-1)}


@pytest.mark.parametrize("draws", [50, 200, 1000])
def test_healthy_chains_agree(draws):
    assert all(compare(*healthy(seed, draws=draws)).agree for seed in range(100))


@pytest.mark.parametrize("draws", [20, 49])
def test_few_draws_of_healthy_chains_agree(draws):
    assert all(compare(*autocorrelated(seed, 0.5, draws=draws)).agree for seed in range(100))


def test_slow_but_healthy_chains_agree():
    # 26 effective draws per chain, of 1000: slow mixing is the business of the checks, not of the quarantine.
    assert sum(compare(*autocorrelated(seed, 0.95)).agree for seed in range(50)) >= 49


def test_a_chain_in_a_place_of_low_density_is_lost():
    u, stats = healthy(0)
    u[2] += 10
    stats["lp"][2] -= 40
    verdict = compare(u, stats)
    assert verdict.lost == (2,)
    assert not verdict.agree


def test_half_of_the_chains_in_a_place_of_low_density_are_lost():
    u, stats = healthy(0)
    u[2:] += 10
    stats["lp"][2:] -= 40
    assert compare(u, stats).lost == (2, 3)


def test_a_chain_in_another_mode_is_reported_and_kept():
    u, stats = healthy(0)
    u[2] += 10
    verdict = compare(u, stats)
    assert not verdict.agree
    assert verdict.lost == ()
    assert "chains [2] stand apart" in verdict.describe(("a", "b", "c"))


def test_wild_draws_of_a_heavy_tail_are_never_replaced():
    # Replacing chains that have been far out would thin the tail.
    for seed in range(200):
        u = np.random.default_rng(seed).standard_cauchy((4, 100, 1))
        assert compare(u, {"lp": -np.log1p(u[..., 0] ** 2)}).lost == ()


def test_two_modes_with_half_of_the_chains_each_are_reported_without_blame():
    u, stats = healthy(0)
    u[2:] += 10
    verdict = compare(u, stats)
    assert not verdict.agree
    assert verdict.lost == ()
    assert "no chain can be singled out" in verdict.describe(("a", "b", "c"))


def test_many_scattered_chains_disagree():
    u, stats = healthy(0, chains=64, draws=200)
    u += np.random.default_rng(1).normal(0, 20, (64, 1, DIM))
    assert not compare(u, stats).agree


def test_a_stuck_chain_is_lost():
    u, stats = healthy(0)
    u[1] = u[1, :1]
    assert compare(u, stats).lost == (1,)


def test_a_chain_that_is_not_finite_is_lost():
    u, stats = healthy(0)
    u[3, 500, 0] = np.nan
    verdict = compare(u, stats)
    assert verdict.nonfinite
    assert verdict.lost == (3,)


def test_a_chain_that_began_far_in_the_tail_is_lost():
    # Rank R-hat does not see a few wild draws at the beginning: the rest of the chain is right.
    u, stats = healthy(0)
    u[0, :5] = 100.0
    stats["lp"] = -0.5 * (u**2).sum(-1)
    assert compare(u, stats).lost == (0,)


@pytest.mark.parametrize(("name", "value"), [("acceptance_rate", 0.05), ("diverging", True)])
def test_a_chain_tuned_for_another_place_is_lost(name, value):
    u, stats = healthy(0)
    stats[name][1, :800] = value
    assert compare(u, stats).lost == (1,)


def test_one_chain_alone_can_only_drift():
    u, stats = healthy(0, chains=1)
    assert compare(u, stats).agree
    u[0, 500:] += 10
    assert not compare(u, stats).agree
