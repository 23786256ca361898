"""Bounds under sensitivity models with one strength: closed forms, brute force, estimators from data, programs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import xarray

import probgen as pg
from probgen.base.errors import DataError, MethodError, ModelError
from probgen.causal import (
    KL,
    AdjustedStudy,
    ChiSquare,
    FittedProgram,
    FSensitivity,
    Hellinger,
    LossBounds,
    MarginalSensitivity,
    TotalVariation,
    continuous_marginal_bounds,
    divergence_bounds,
    expectile_bounds,
    expectile_scores,
    extreme_means,
    marginal_bounds,
    marginal_effect_bounds,
    marginal_scores,
    quantile_balancing,
    scored_bounds,
    weighted_bounds,
    worst_expectiles,
)
from probgen.causal.quantile_regression import quantile_coefficients

STANDARD = dist.Normal(0.0, 1.0)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)
PLACES, WEIGHTS = np.r_[_NODES, 0.0], np.r_[_WEIGHTS, 0.0]
"""Nodes of a quadrature over (-1, 1), and zero beside them."""


@pytest.fixture(autouse=True)
def _in_64_bits():
    with jax.enable_x64(True):
        yield


# -- the marginal sensitivity model, closed forms --------------------------------------------------------------------


def benchmark_laws(x, strength=2.0):
    """Laws of the outcome and propensities of the benchmark of Frauen et al. (2024), whose confounder is at the bound."""
    pi = 0.25 + 0.5 / (1 + jnp.exp(-3 * x))
    p_u = ((strength - 1) * pi + 1) / (strength + 1)
    laws = []
    for arm in (1, 0):
        treated_given_u = pi / ((1 - 1 / strength) * pi + 1 / strength)
        given_u = treated_given_u if arm else 1 - treated_given_u
        share = given_u * p_u / (pi if arm else 1 - pi)
        s = 2 * arm - 1
        centre = s * x + s - 2 * jnp.sin(2 * s * x)
        located = jnp.stack([centre - 2 * (2 * u - 1) * (1 + 0.5 * x) for u in (0, 1)], -1)
        mixing = dist.Categorical(probs=jnp.stack([1 - share, share], -1))
        laws.append(dist.MixtureSameFamily(mixing, dist.Normal(located, 1.0)))
    return laws, pi


@pytest.mark.parametrize(
    ("gamma", "at_zero", "average"),
    [
        (2.0, (-0.3989, 2.0119), (-0.3993, 2.0263)),
        (4.0, (-1.2026, 3.1496), (-1.2027, 3.1529)),
        (10.0, (-1.9762, 4.1633), (-1.9763, 4.1640)),
    ],
)
def test_published_benchmark_of_sharp_bounds(gamma, at_zero, average):
    laws, pi = benchmark_laws(jnp.asarray(PLACES))
    np.testing.assert_allclose(marginal_effect_bounds(*laws, pi, gamma, WEIGHTS), average, atol=1e-4)
    low, high = marginal_effect_bounds(*laws, pi, gamma)
    np.testing.assert_allclose((low[-1], high[-1]), at_zero, atol=1e-4)


def test_the_truth_is_at_the_bound_of_its_own_strength():
    truth = 2 * PLACES + 2 - 4 * np.sin(2 * PLACES)
    laws, pi = benchmark_laws(jnp.asarray(PLACES))
    low, high = (np.asarray(end) for end in marginal_effect_bounds(*laws, pi, 2.0))
    assert (low <= truth).all()
    assert (truth <= high).all()
    assert (high - truth).min() < 0.001  # the bound is reached
    for gamma in (1.5, 1.8):
        assert not (np.asarray(marginal_effect_bounds(*laws, pi, gamma)[1]) >= truth).any()


@pytest.mark.parametrize("gamma", [1.5, 2.0, 3.0, 5.0])
def test_sharp_bounds_of_a_normal_law(gamma):
    want = 0.5 * (gamma - 1 / gamma) * scipy.stats.norm.pdf(scipy.stats.norm.ppf(gamma / (1 + gamma)))
    np.testing.assert_allclose(marginal_bounds(STANDARD, 0.5, gamma), (-want, want), atol=1e-9)
    listed = {1.5: 0.16098, 2.0: 0.27270, 3.0: 0.42370, 5.0: 0.59964}
    assert abs(want - listed[gamma]) < 1e-5
    # One component of a mixture, and a law whose quantile function is integrated.
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=jnp.ones(1)), dist.Normal(jnp.zeros(1), 1.0))
    np.testing.assert_allclose(marginal_bounds(mixture, 0.5, gamma), (-want, want), atol=1e-9)


def test_sharp_bounds_of_other_laws():
    # Lognormal: tail means in closed form.
    tau, z = 2 / 3, scipy.stats.norm.ppf(2 / 3)
    m = math.exp(0.5)
    upper = m * scipy.stats.norm.cdf(1 - z) / (1 - tau)
    lower = m * scipy.stats.norm.cdf(-z - 1) / (1 - tau)
    want = m + 0.6 * 0.5 * (np.array([lower, upper]) - m)
    np.testing.assert_allclose(marginal_bounds(dist.LogNormal(0.0, 1.0), 0.4, 2.0), want, atol=1e-6)
    # Zeros and ones: the odds are multiplied until a probability is used up.
    p = jnp.array([0.1, 0.5, 0.9])
    want = p + 0.6 * 0.5 * (jnp.minimum(1, 3 * p) - p)
    np.testing.assert_allclose(marginal_bounds(dist.Bernoulli(p), 0.4, 2.0)[1], want, atol=1e-12)


def test_bounds_of_draws_are_a_linear_program():
    rng = np.random.default_rng(0)
    y, e, gamma = rng.normal(size=11), 0.3, 2.5
    low, high = e + (1 - e) / gamma, e + (1 - e) * gamma
    for sign, found in zip((-1, 1), marginal_bounds(y, e, gamma), strict=True):
        best = scipy.optimize.linprog(-sign * y / 11, A_eq=[np.ones(11) / 11], b_eq=[1], bounds=[(low, high)] * 11)
        assert abs(-sign * best.fun - float(found)) < 1e-9
    batch = rng.normal(size=(50, 3))
    each = [float(marginal_bounds(column, e, gamma)[1]) for column in batch.T]
    np.testing.assert_allclose(marginal_bounds(batch, e, gamma)[1], each, atol=1e-12)


def test_no_confounding_gives_the_mean():
    y = np.random.default_rng(0).normal(size=20)
    assert float(marginal_bounds(STANDARD, 0.5, 1.0)[1]) == 0.0
    for bounds in (marginal_bounds(y, 0.3, 1.0), expectile_bounds(y, 0.3, 1.0), divergence_bounds(y, 0.3, KL(), 0.0)):
        np.testing.assert_allclose(bounds, (y.mean(), y.mean()), atol=1e-14)


def test_continuous_treatment_by_brute_force():
    """The density of the dose may change by a factor of gamma either way: a linear program over ratios."""
    y, gamma = np.random.default_rng(1).normal(size=9), 1.7
    best = scipy.optimize.linprog(-y / 9, A_eq=[np.ones(9) / 9], b_eq=[1], bounds=[(1 / gamma, gamma)] * 9)
    assert abs(-best.fun - float(continuous_marginal_bounds(y, gamma)[1])) < 1e-9
    # A mixture by quadrature over its density.
    p, loc = np.array([0.3, 0.7]), np.array([-1.0, 2.0])
    law = dist.MixtureSameFamily(dist.Categorical(probs=p), dist.Normal(loc, 1.0))
    grid = np.linspace(-9, 10, 200_001)
    density = (p * scipy.stats.norm.pdf(grid[:, None], loc)).sum(1)
    cdf = scipy.integrate.cumulative_trapezoid(density, grid, initial=0)
    ratio = np.where(cdf < gamma / (1 + gamma), 1 / gamma, gamma)
    want = np.trapezoid(ratio * grid * density, grid)
    assert abs(float(continuous_marginal_bounds(law, gamma)[1]) - want) < 1e-3


# -- expectiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "theta"), [(1.5, -0.16166), (2.0, -0.27603), (3.0, -0.43633), (5.0, -0.63603)])
def test_expectiles_of_a_normal_law(gamma, theta):
    low, high = worst_expectiles(STANDARD, gamma)
    assert abs(float(low) - theta) < 1e-5
    assert abs(float(high) + theta) < 1e-5
    np.testing.assert_allclose(expectile_bounds(STANDARD, 0.5, gamma), (theta / 2, -theta / 2), atol=5e-6)
    p = 0.3
    np.testing.assert_allclose(worst_expectiles(dist.Bernoulli(p), gamma)[0], p / (p + gamma * (1 - p)), atol=1e-12)


def test_expectiles_of_draws_solve_their_equation():
    y = np.random.default_rng(0).normal(size=(30, 4)) ** 3
    for theta, below, above in zip(worst_expectiles(y, 3.0), (3, 1), (1, 3), strict=True):
        balance = above * np.maximum(y - theta, 0).mean(0) - below * np.maximum(theta - y, 0).mean(0)
        np.testing.assert_allclose(balance, 0, atol=1e-12)


def test_the_model_between_units_is_narrower():
    """Odds that differ by at most gamma between two units differ by at most gamma from their average."""
    y = np.random.default_rng(0).normal(size=200)
    (low, high), (low_m, high_m) = expectile_bounds(y, 0.5, 2.0), marginal_bounds(y, 0.5, 2.0)
    assert float(low_m) < float(low) < y.mean() < float(high) < float(high_m)


# -- divergences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.02, 0.3, 1.2])
@pytest.mark.parametrize("divergence", [KL(), ChiSquare(), Hellinger(), TotalVariation()], ids=repr)
def test_divergence_balls_by_brute_force(divergence, rho):
    """The primal convex program over ratios of densities on eight points."""
    n = 8
    y = np.random.default_rng(0).normal(size=n)
    mean_one = {"type": "eq", "fun": lambda w: w.mean() - 1, "jac": lambda w: np.full(n, 1 / n)}
    for sign, found in zip((-1, 1), extreme_means(y, divergence, rho), strict=True):
        if isinstance(divergence, TotalVariation):
            eye, ones = np.eye(n), np.ones(n)
            limits = np.vstack([np.c_[eye, -eye], np.c_[-eye, -eye], np.r_[0 * ones, ones / (2 * n)]])
            equal = [np.r_[ones / n, 0 * ones]]
            cost = np.r_[-sign * y / n, 0 * ones]
            best = -scipy.optimize.linprog(cost, limits, np.r_[ones, -ones, rho], A_eq=equal, b_eq=[1]).fun
        else:
            functions = {
                KL: lambda w: w * np.log(w),
                ChiSquare: lambda w: (w - 1) ** 2,
                Hellinger: lambda w: 1 - np.sqrt(w),
            }
            f = functions[type(divergence)]
            ball = {"type": "ineq", "fun": lambda w, f=f: rho - np.mean(f(w))}
            best = -scipy.optimize.minimize(
                lambda w, sign=sign: -sign * np.mean(w * y),
                np.ones(n),
                constraints=[ball, mean_one],
                bounds=[(1e-12, None)] * n,
                method="SLSQP",
                options={"ftol": 1e-13, "maxiter": 500},
            ).fun
        assert abs(sign * best - float(found)) < 2e-5 * abs(best)


def test_divergence_balls_in_closed_form():
    for rho in (1e-4, 0.1, 2.0):
        reach = 2 * math.sqrt(2 * rho)
        np.testing.assert_allclose(extreme_means(dist.Normal(1.0, 2.0), KL(), rho), (1 - reach, 1 + reach), atol=1e-12)
    # The same by quadrature, of a law that is not seen to be normal.
    shifted = dist.TransformedDistribution(STANDARD, dist.transforms.AffineTransform(1.0, 2.0))
    np.testing.assert_allclose(extreme_means(shifted, KL(), 0.1)[1], 1 + 2 * math.sqrt(0.2), atol=1e-3)
    # Trimming: a share of the lowest goes to the largest.
    y = np.arange(8.0)
    assert abs(float(extreme_means(y, TotalVariation(), 0.25)[1]) - (y[2:].sum() + 2 * 7) / 8) < 1e-12
    # Chi-square, as long as no ratio becomes negative.
    assert abs(float(extreme_means(y, ChiSquare(), 0.1)[1]) - (3.5 + math.sqrt(0.1) * y.std())) < 1e-9
    # Larger balls than there are laws.
    for divergence in (KL(), ChiSquare(), Hellinger(), TotalVariation()):
        assert abs(float(extreme_means(y, divergence, 50.0)[1]) - 7) < 1e-6
    # Support: mass may go beyond what was seen.
    assert float(extreme_means(y, TotalVariation(), 0.1, support=(0.0, 20.0))[1]) == pytest.approx(3.5 + 2.0)
    assert float(extreme_means(dist.Bernoulli(0.3), TotalVariation(), 0.2)[1]) == pytest.approx(0.5)


# -- estimators ------------------------------------------------------------------------------------------------------


def confounded(n, seed=0, effect=1.0, binary=False):
    """A study without hidden confounding, whose outcome is linear with standard normal errors."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    e = 1 / (1 + np.exp(-(0.6 * a - 0.4 * b)))
    t = (rng.random(n) < e).astype(float)
    y = effect * t + a + rng.normal(size=n)
    y = (y > 0.5).astype(float) if binary else y
    return {"y": y, "t": t, "a": a, "b": b}, e


def test_sorting_finds_the_extreme_weights():
    rng = np.random.default_rng(0)
    y, e, gamma = rng.normal(size=7), rng.uniform(0.2, 0.8, 7), 2.0
    odds = (1 - e) / e
    corners = np.array(np.meshgrid(*[[1 / gamma, gamma]] * 7)).reshape(7, -1).T
    weights = 1 + corners * odds
    means = weights @ y / weights.sum(1)
    np.testing.assert_allclose(weighted_bounds(y, e, gamma), (means.min(), means.max()), atol=1e-12)


def test_balancing_a_quantile_is_sharp_and_weights_alone_are_not():
    data, e = confounded(40_000)
    inside, z = data["t"] == 1, scipy.stats.norm.ppf(2 / 3)
    y, e, mean = data["y"][inside], e[inside], 1 + data["a"][inside]
    low, high = quantile_balancing(y, e, 2.0, (mean - z, mean + z))
    excess = (2.0 - 0.5) * scipy.stats.norm.pdf(z)
    # E[1 - e] = 1/2, and the errors are independent of the covariates.
    assert abs(high - (1 + 0.5 * excess)) < 4 * 0.011
    assert abs(low - (1 - 0.5 * excess)) < 4 * 0.011
    wide = weighted_bounds(y, e, 2.0)
    assert wide[0] < low - 0.05
    assert wide[1] > high + 0.05
    hajek = (y / e).sum() / (1 / e).sum()
    for bounds in (weighted_bounds(y, e, 1.0), quantile_balancing(y, e, 1.0, (mean, mean))):
        np.testing.assert_allclose(bounds, (hajek, hajek), atol=1e-10)


def test_linear_quantiles_are_those_of_linear_programming():
    rng = np.random.default_rng(0)
    n, level = 300, 0.7
    x = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    y = x @ [1.0, 2.0, -1.0] + (1 + np.abs(x[:, 1])) * rng.standard_t(3, n)
    cost = np.r_[np.zeros(3), np.full(n, level), np.full(n, 1 - level)]
    equal = np.hstack([x, np.eye(n), -np.eye(n)])
    limits = [(None, None)] * 3 + [(0, None)] * 2 * n
    best = scipy.optimize.linprog(cost, A_eq=equal, b_eq=y, bounds=limits)

    residual = y - x @ quantile_coefficients(x, y, level)
    assert np.sum(residual * (level - (residual < 0))) < best.fun * (1 + 1e-4)


@pytest.mark.parametrize("binary", [False, True])
def test_no_confounding_recovers_augmented_weighting(binary):
    data, _ = confounded(400, binary=binary)
    study = AdjustedStudy.of(data, "y", "t", ["a", "b"])
    y, t, e, (m0, m1) = study.y, study.t, study.propensity, study.means
    psi = m1 - m0 + t * (y - m1) / e - (1 - t) * (y - m0) / (1 - e)
    for score in (marginal_scores, expectile_scores):
        found = scored_bounds(study, 1.0, score)
        np.testing.assert_allclose(found.bounds, (psi.mean(), psi.mean()), atol=1e-12)
        np.testing.assert_allclose(found.ses, psi.std() / 20, atol=1e-12)
        wider = [scored_bounds(study, gamma, score).bounds for gamma in (1.0, 1.5, 2.0, 4.0)]
        assert np.all(np.diff([low for low, _ in wider]) < 0)
        assert np.all(np.diff([high for _, high in wider]) > 0)


def test_an_estimate_keeps_its_value():
    data, _ = confounded(300)
    question = pg.causal.Adjustment("t", "y", ("a", "b"))
    estimate = pg.causal.estimate(question, data, pg.causal.AIPW(), seed=1)
    study = AdjustedStudy.from_estimate(estimate)
    found = scored_bounds(study, 1.0, marginal_scores)
    np.testing.assert_allclose(found.bounds, estimate.value, atol=1e-12)
    np.testing.assert_allclose(found.ses, estimate.se, atol=1e-12)


def test_scores_find_the_bounds_of_their_model():
    """Limits in closed form: normal errors that do not depend on the covariates."""
    data, _ = confounded(20_000)
    study = AdjustedStudy.of(data, "y", "t", ["a", "b"])
    for score, excess in ((marginal_scores, 2 * 0.27270), (expectile_scores, 0.27603)):
        (low, high), ses, _ = scored_bounds(study, 2.0, score)
        assert abs(low - (1 - excess)) < 4 * ses[0]
        assert abs(high - (1 + excess)) < 4 * ses[1]
        assert 0.01 < max(ses) < 0.03


class Shifted:
    """A learner whose predictions are off by a constant."""

    def __init__(self, learner, by):
        self.learner, self.by = learner, by

    def fit(self, x, y):
        return Shifted(self.learner.fit(x, y), self.by)

    def predict(self, x):
        return self.learner.predict(x) + self.by


def test_errors_of_nuisances_count_by_their_squares():
    data, _ = confounded(5000)
    for score, which in ((marginal_scores, "quantile"), (expectile_scores, "expectile")):
        makes = {"quantile": pg.causal.LinearQuantile, "expectile": pg.causal.Expectile}[which]
        found = []
        for by in (0.0, 0.1):
            learners = {which: lambda strength, by=by, makes=makes: Shifted(makes(strength), by)}
            study = AdjustedStudy.of(data, "y", "t", ["a", "b"], **learners)
            found.append(score(study, 1, 3.0, -1).mean())
        assert abs(found[1] - found[0]) < 0.01  # without orthogonality 0.05 and more


def test_scores_of_zeros_and_ones_find_the_bounds_of_their_model():
    rng = np.random.default_rng(0)
    n = 20_000
    g = rng.integers(0, 2, n)
    e, p = np.where(g == 1, 0.6, 0.3), np.array([[0.1, 0.4], [0.5, 0.8]])  # by arm and group
    t = (rng.random(n) < e).astype(int)
    y = (rng.random(n) < p[t, g]).astype(float)
    study = AdjustedStudy.of({"y": y, "t": t, "g": g}, "y", "t", ["g"])
    for score, law in ((marginal_scores, marginal_bounds), (expectile_scores, expectile_bounds)):
        treated = law(dist.Bernoulli(p[1]), np.array([0.3, 0.6]), 2.0)
        control = law(dist.Bernoulli(p[0]), np.array([0.7, 0.4]), 2.0)
        want = float(jnp.mean(treated[0] - control[1])), float(jnp.mean(treated[1] - control[0]))
        (low, high), ses, _ = scored_bounds(study, 2.0, score)
        assert abs(low - want[0]) < 4 * ses[0]
        assert abs(high - want[1]) < 4 * ses[1]


@pytest.mark.slow
@pytest.mark.parametrize(("score", "excess"), [(marginal_scores, 2 * 0.27270), (expectile_scores, 0.27603)])
def test_intervals_cover_the_bounds(score, excess):
    """The interval of the effect covers either bound with at least its level, and not always."""
    hits, n = [], 1000
    for seed in range(400):
        data, _ = confounded(n, seed)
        study = AdjustedStudy.of(data, "y", "t", ["a", "b"], seed=seed)
        ends, ses, _ = scored_bounds(study, 2.0, score)
        low, high = pg.causal.imbens_manski(ends, ses, 0.95)
        hits.append([low <= 1 - excess, 1 + excess <= high])
    shares = np.mean(hits, axis=0)
    # 400 replicates: the standard error of a share of 0.95 is 0.011.
    assert np.all(shares > 0.95 - 4 * 0.011)
    assert np.all(shares < 0.995)


# -- in the door -----------------------------------------------------------------------------------------------------


def test_a_study_in_the_door():
    data, _ = confounded(500)
    data["group"] = np.array(["u", "v", "w"])[np.random.default_rng(1).integers(0, 3, 500)]
    study = AdjustedStudy.of(data, "y", "t", ["a", "b", "group"])
    result = pg.causal.sensitivity(study, [MarginalSensitivity(), LossBounds()], benchmarks=["a", ("b", "group")])
    titles = [one.title for one in result.analyses]
    assert titles == ["Marginal sensitivity model", "Bounded odds between units"]
    one = result["Marginal sensitivity model"]
    table = one.table
    np.testing.assert_allclose(table.loc["gamma = 1", "lower"], table.loc["gamma = 1", "upper"], atol=1e-12)
    assert table.loc["omitting a", "gamma"] > table.loc["omitting b and group", "gamma"] > 1
    assert table.loc["omitting a", "gamma_95"] < table.loc["omitting a", "gamma"]
    # At the tipping point the bound is at the null, and the interval gets there before.
    tips, of_interval = (m.value for m in one.measures)
    assert 1 < of_interval < tips
    assert abs(scored_bounds(study, tips, marginal_scores).bounds[0]) < 2e-3
    assert f"gamma = {tips:.2f}" in one.text
    assert "a is the strongest" in one.text
    assert one.bounds is not None
    assert np.all(np.diff(one.bounds.upper) > 0)
    assert one.bounds.x[-1] > tips
    result.plot_bounds()
    # A group of all columns of a category is left out together.
    assert len(study.without(["group"]).places) == 2
    assert study.without(["group"]).x.shape[1] == 2
    assert set(result.to_datatree().children) == set(titles)


def test_f_sensitivity_of_a_study():
    data, _ = confounded(2000)
    study = AdjustedStudy.of(data, "y", "t", ["a", "b"])
    table = FSensitivity(KL(), (0.0, 0.02)).analyse(study, pg.causal.Question()).table
    plain = scored_bounds(study, 1.0, marginal_scores).bounds[0]
    assert abs(table.loc["rho = 0", "lower"] - plain) < 1e-12
    # Normal residuals with standard deviation 1; half of the units are in either arm.
    assert abs(table.loc["rho = 0.02", "upper"] - plain - 0.2) < 0.01
    data, _ = confounded(2000, binary=True)
    binary = AdjustedStudy.of(data, "y", "t", ["a", "b"])
    found = FSensitivity(TotalVariation(), (0.05,)).analyse(binary, pg.causal.Question()).scenarios[0]
    plain = scored_bounds(binary, 1.0, marginal_scores).bounds[0]
    assert abs(found.upper - plain - 0.05) < 0.005  # the probability of a one grows by rho in the other arm


def program(x, treatment=None, y=None):
    tau = numpyro.sample("tau", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("units", x.shape[0]):
        t = numpyro.sample("T", dist.Bernoulli(logits=slope * x), obs=treatment)
        numpyro.sample("Y", dist.Normal(tau * t + x, 1.0), obs=y)


def dosed(x, dose=None, y=None):
    tau = numpyro.sample("tau", dist.Normal(0.0, 2.0))
    with numpyro.plate("units", x.shape[0]):
        d = numpyro.sample("D", dist.Normal(x, 1.0), obs=dose)
        numpyro.sample("Y", dist.LogNormal(tau * d, 0.5), obs=y)


def tree_of(**draws):
    variables = {name: (("chain", "draw"), np.asarray(values, float)[None]) for name, values in draws.items()}
    count = len(next(iter(draws.values())))
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(variables, {"chain": [0], "draw": np.arange(count)})})


X = np.array([-1.0, 0.0, 0.5])


def test_bounds_of_every_posterior_draw():
    model = pg.Model(program, {"x": X, "treatment": np.array([0, 1, 1]), "y": np.zeros(3)})
    tau, slope = np.array([0.5, 1.0, 0.1]), np.array([0.0, 1.0, 2.0])
    subject = FittedProgram(model, tree_of(tau=tau, slope=slope), "T", "Y")
    gammas, excess = np.array([1.0, 2.0]), 2 * 0.272699831
    units = subject.bounds_of_means(MarginalSensitivity().arm, gammas, by_unit=True)
    e = 1 / (1 + np.exp(-slope[:, None] * X))
    np.testing.assert_allclose(units[:, 0, 1, 1], tau[:, None] + X + (1 - e) * excess, atol=1e-8)
    np.testing.assert_allclose(units[:, 1, 1, 0], X - e * excess, atol=1e-8)
    np.testing.assert_allclose(units[:, 0, 0, 0], tau[:, None] + X, atol=1e-12)
    # The two arms add up to one propensity, so that the excess of the effect does not depend on the units.
    table = pg.causal.sensitivity(subject, MarginalSensitivity())["Marginal sensitivity model"].table
    np.testing.assert_allclose(table.loc["gamma = 2", "upper"], tau.mean() + excess, atol=1e-8)
    assert table.loc["gamma = 1.5", "probability"] == pytest.approx(2 / 3)  # 0.5 and 1 survive 0.322, 0.1 does not
    assert table.loc["gamma = 2", "probability"] == pytest.approx(1 / 3)
    kl = FSensitivity(KL(), (0.02,)).analyse(subject, pg.causal.Question()).scenarios[0]
    assert kl.upper == pytest.approx(tau.mean() + 0.2, abs=1e-9)
    assert LossBounds((2.0,)).analyse(subject, pg.causal.Question()).scenarios[0].upper == pytest.approx(
        tau.mean() + 0.2760298, abs=1e-6
    )


def test_bounds_of_a_dose_response():
    model = pg.Model(dosed, {"x": X, "dose": np.zeros(3), "y": np.ones(3)})
    subject = FittedProgram(model, tree_of(tau=[0.3, 0.7]), "D", "Y", values=(1.0, 0.0, 2.0))
    gammas = [1.0, 2.0]
    found = subject.bounds_of_means(pg.causal.ContinuousMarginalSensitivity().arm, gammas)
    assert found.shape == (2, 3, 2, 2)
    mean = np.exp(np.array([0.3, 0.7])[:, None] * np.array([1.0, 0.0, 2.0]) + 0.125)
    np.testing.assert_allclose(found[:, :, 0, 0], mean, rtol=1e-6)
    z = scipy.stats.norm.ppf(2 / 3)
    tail = mean * scipy.stats.norm.cdf(0.5 - z) * 3
    np.testing.assert_allclose(found[:, :, 1, 1], mean + 0.5 * (tail - mean), rtol=1e-6)
    analyses = pg.causal.sensitivity(subject).analyses
    assert [one.title for one in analyses] == ["Continuous marginal sensitivity model"]
    assert "D = 1 against 0" in analyses[0].text


# -- errors ------------------------------------------------------------------------------------------------------------


def test_errors_of_strengths_and_laws():
    for wrong in (
        lambda: marginal_bounds(STANDARD, 0.5, 0.9),
        lambda: MarginalSensitivity((0.5,)),
        lambda: LossBounds((1.0, float("nan"))),
        lambda: weighted_bounds([1.0], [0.5], 0.0),
    ):
        with pytest.raises(MethodError, match=r"gamma bounds an odds ratio.*at least 1"):
            wrong()
    with pytest.raises(DataError, match=r"propensities must lie between 0 and 1.*units 1\).*no overlap"):
        marginal_bounds(STANDARD, [0.5, 1.0], 2.0)
    with pytest.raises(MethodError, match="rho must be finite and at least 0, got -1"):
        extreme_means([1.0, 2.0], KL(), -1)
    with pytest.raises(MethodError, match=r"unbounded\. Give support"):
        extreme_means(STANDARD, Hellinger(), 0.1)
    with pytest.raises(MethodError, match=r"Poisson.*no quantile function.*Give draws"):
        marginal_bounds(dist.Poisson(3.0), 0.5, 2.0)


def test_errors_of_studies():
    data, _ = confounded(60)
    with pytest.raises(DataError, match="holds 0, 1, 2"):
        AdjustedStudy.of({**data, "t": np.arange(60) % 3}, "y", "t", ["a"])
    with pytest.raises(DataError, match="cannot be a covariate as well"):
        AdjustedStudy.of(data, "y", "t", ["a", "t"])
    extreme = AdjustedStudy.of(data, "y", "t", ["a"], propensity=np.r_[0.0, np.full(59, 0.5)])
    with pytest.raises(DataError, match=r"1 units have a probability of t outside .* 0 \(0\)"):
        _ = extreme.propensity
    known = AdjustedStudy.of(data, "y", "t", ["a"], propensity=np.full(60, 0.5))
    with pytest.raises(MethodError, match="probabilities of treatment were given"):
        MarginalSensitivity().analyse(known, pg.causal.Question(benchmarks=(("a",),)))
    with pytest.raises(DataError, match="no covariate 'c'"):
        MarginalSensitivity().analyse(AdjustedStudy.of(data, "y", "t", ["a"]), pg.causal.Question(benchmarks=(("c",),)))
    with pytest.raises(MethodError, match="takes no sample_weight"):
        pg.causal.Expectile(2.0, pg.causal.Logistic())


def test_errors_of_programs():
    data = {"x": X, "treatment": np.array([0, 1, 1]), "y": np.zeros(3)}
    model, tree = pg.Model(program, data), tree_of(tau=[1.0], slope=[1.0])
    with pytest.raises(ModelError, match=r"treatment 'x' is not a random site.*write the law"):
        FittedProgram(model, tree, "x", "Y")
    with pytest.raises(ModelError, match="'T' does not depend on 'Y'"):
        FittedProgram(model, tree, "Y", "T")

    def mediated(x, t=None, m=None, y=None):
        with numpyro.plate("units", 3):
            t = numpyro.sample("T", dist.Bernoulli(logits=x), obs=t)
            m = numpyro.sample("M", dist.Normal(t, 1.0), obs=m)
            numpyro.sample("Y", dist.Normal(m, 1.0), obs=y)

    with pytest.raises(ModelError, match="M stand between treatment and outcome"):
        FittedProgram(pg.Model(mediated, {"x": X, "t": [0, 1, 1], "m": X, "y": X}), tree, "T", "Y")

    def hidden(x, t=None, y=None):
        with numpyro.plate("units", 3):
            u = numpyro.sample("U", dist.Normal(0.0, 1.0))
            t = numpyro.sample("T", dist.Bernoulli(logits=x + u), obs=t)
            numpyro.sample("Y", dist.Normal(t + u, 1.0), obs=y)

    with pytest.raises(ModelError, match="U are latent for each unit"):
        FittedProgram(pg.Model(hidden, {"x": X, "t": [0, 1, 1], "y": X}), tree, "T", "Y")
