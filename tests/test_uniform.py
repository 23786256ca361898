"""Bands and p-values for uniformity: against enumeration, against simulation, and at their nominal rates."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from probgen.check.autocorrelation import autocorrelation_time
from probgen.check.ranks import rank
from probgen.check.uniform import Uniformity, uniformity


def paths(count, points):
    """Every way of placing ``count`` values between the points, as counts at or below each, with its probability."""
    cells = np.diff(points, prepend=0.0, append=1.0)
    for placed in itertools.product(range(count + 1), repeat=len(cells)):
        if sum(placed) == count:
            ways = math.factorial(count) / math.prod(math.factorial(k) for k in placed)
            yield np.cumsum(placed)[:-1], ways * math.prod(c**k for c, k in zip(cells, placed, strict=True))


@pytest.mark.parametrize("points", [[0.2, 0.5, 0.7], [0.05, 0.1, 0.9]])
def test_p_values_are_those_of_enumeration(points):
    points = np.asarray(points)
    count = 6
    law = Uniformity(count, points)

    def gamma(counts):
        lower, upper = stats.binom.cdf(counts, count, points), stats.binom.sf(counts - 1, count, points)
        return 2 * np.minimum(lower, upper).min()

    every = [(counts, gamma(counts), chance) for counts, chance in paths(count, points)]
    assert sum(chance for *_, chance in every) == pytest.approx(1)
    for counts, here, _ in every:
        exact = sum(chance for _, other, chance in every if other <= here * (1 + 1e-9))
        assert law.p_value(counts) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_a_band_holds_what_it_says():
    law = Uniformity(8, np.array([0.25, 0.5, 0.75]))
    every = list(paths(8, law.points))
    for level in (0.5, 0.9, 0.99):
        lower, upper = law.band(level)
        inside = sum(chance for counts, chance in every if ((lower <= counts) & (counts <= upper)).all())
        assert inside >= level - 1e-12
        # A path leaves the band if and only if its p-value says so.
        for counts, _ in every:
            out = ((counts < lower) | (counts > upper)).any()
            assert out == (law.p_value(counts) <= 1 - inside + 1e-12)


@pytest.mark.parametrize(("count", "length"), [(50, 19), (500, 100)])
def test_false_alarms_of_uniform_ranks(count, length):
    """The share of p-values at or below alpha is alpha, or a little less since counts are discrete."""
    law = uniformity(count, tuple(np.arange(1, length + 1) / (length + 1)))
    rng = np.random.default_rng(0)
    repeats = 2000
    ranks = rng.integers(0, length + 1, (count, repeats))
    counts = law.counts((ranks + 0.5) / (length + 1))
    p = np.array([law.p_value(column) for column in counts.T])
    lower, upper = law.band(0.95)
    outside = ((counts < lower[:, None]) | (counts > upper[:, None])).any(0).mean()
    for share, alpha in [(outside, 0.05), *(((p <= a).mean(), a) for a in (0.01, 0.05, 0.2))]:
        se = np.sqrt(alpha * (1 - alpha) / repeats)
        assert share < alpha + 4.5 * se
        assert share > 0.85 * alpha - 4.5 * se  # it is no use if it never rings


def test_p_values_of_gross_failure_are_small_and_not_zero():
    law = uniformity(500, tuple(np.arange(1, 100) / 100))
    for values in (np.full(500, 0.001), np.full(500, 0.5)):
        assert 0 < law.p_value(law.counts(values)) < 1e-20


def test_power_against_a_small_shift():
    """A shift of 0.15 standard deviations in 500 data sets: found in nearly all repetitions, by the normal test too."""
    law = uniformity(500, tuple(np.arange(1, 100) / 100))
    rng = np.random.default_rng(1)
    values = stats.norm.cdf(rng.normal(0.15, 1, (500, 200)))
    p = np.array([law.p_value(column) for column in law.counts(values).T])
    assert (p < 0.05).mean() > 0.75


def test_ranks_are_uniform_under_ties():
    """Poisson draws with few values: random ranks are uniform, the number of smaller draws is not."""
    rng = np.random.default_rng(2)
    draws, truth = rng.poisson(0.7, (4000, 9)), rng.poisson(0.7, 4000)
    found, ties = rank(draws, truth, rng)
    observed = np.bincount(found, minlength=10)
    assert stats.chisquare(observed).pvalue > 1e-4
    assert stats.chisquare(np.bincount((draws < truth[:, None]).sum(1), minlength=10)).pvalue < 1e-10
    assert (ties == (draws == truth[:, None]).sum(1)).all()


def test_constants_that_differ_by_rounding_are_ties():
    rng = np.random.default_rng(3)
    draws = np.full((50, 20), 0.1 + 0.2)
    found, ties = rank(draws, np.full(50, 0.3), rng)
    assert (ties == 20).all()
    assert found.std() > 3
    _, ties = rank(np.full((2, 5), -np.inf), np.array([-np.inf, 0.0]), rng)
    assert ties.tolist() == [5, 0]


def test_autocorrelation_time_of_an_autoregression():
    """Of x_t = r x_{t-1} + noise it is (1 + r) / (1 - r), whatever the mean and scale of each group."""
    rng = np.random.default_rng(4)
    for r in (0.0, 0.5, 0.8):
        noise = rng.normal(size=(40, 1, 400, 1)) * np.sqrt(1 - r**2)
        x = np.empty_like(noise)
        x[:, :, 0] = rng.normal(size=(40, 1, 1))
        for t in range(1, 400):
            x[:, :, t] = r * x[:, :, t - 1] + noise[:, :, t]
        x = x * rng.uniform(0.01, 100, (40, 1, 1, 1)) + rng.normal(0, 100, (40, 1, 1, 1))
        # The sum is cut where noise begins, which takes up to a tenth.
        assert autocorrelation_time(x) == pytest.approx((1 + r) / (1 - r), rel=0.2, abs=0.1)
    assert autocorrelation_time(np.ones((3, 2, 50, 1))) == 1.0


def test_a_chain_that_stands_still_hides_nothing():
    rng = np.random.default_rng(5)
    x = np.repeat(rng.normal(size=(20, 1, 25, 2)), 4, axis=2)  # every draw four times: 1 + 2 (3/4 + 2/4 + 1/4)
    x[3] = 1.0
    x[:, :, :, 1] = 0.3 + 1e-16
    assert autocorrelation_time(x) == pytest.approx(4, rel=0.2)
