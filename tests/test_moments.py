"""Estimators that balance, stream or solve moments."""

import itertools

import numpy as np
import pytest

import probgen as pg
from probgen.base.errors import DataError, MethodError
from probgen.causal.balancing import project_to_simplex, simplex_weights
from probgen.causal.problem import Problem
from probgen.testing import assert_mean, assert_proportion, assert_variance


def kang_schafer(seed, n=500):
    """Kang and Schafer (2007): the effect is nil; x0 to x3 are distorted covariates."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 4))
    y = 210 + 27.4 * z[:, 0] + 13.7 * z[:, 1:].sum(axis=1) + rng.normal(size=n)
    t = rng.random(n) < 1 / (1 + np.exp(z @ [1.0, -0.5, 0.25, 0.1]))
    x = [
        np.exp(z[:, 0] / 2),
        z[:, 1] / (1 + np.exp(z[:, 0])) + 10,
        (z[:, 0] * z[:, 2] / 25 + 0.6) ** 3,
        (z[:, 1] + z[:, 3] + 20) ** 2,
    ]
    return {"Y": y, "T": t.astype(float)} | {f"x{i}": column for i, column in enumerate(x)}


QUESTION = pg.causal.Adjustment("T", "Y", [f"x{i}" for i in range(4)])
METRICS = (pg.causal.MaximumMeanDiscrepancy(), pg.causal.EnergyDistance())
TARGETS = (pg.causal.ATE(), pg.causal.ATT())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_balancing_weights_are_optimal(metric, target):
    problem = Problem.of(QUESTION, kang_schafer(0, 160))
    weights = pg.causal.Balancing(metric, target).weights(problem)
    gram = metric.gram(problem.x / problem.x.std(axis=0))
    t = problem.t
    goal = np.full(160, 1 / 160) if target == pg.causal.ATE() else t / t.sum()
    for w, arm in zip(weights, (t == 1, t == 0), strict=True):
        assert abs(w.sum() - 1) < 1e-12
        assert w.min() >= 0
        assert not w[~arm].any()
        assert metric.squared(gram, w, goal) <= metric.squared(gram, arm / arm.sum(), goal) + 1e-15
        if target == pg.causal.ATT() and np.array_equal(arm, t == 1):
            np.testing.assert_allclose(w[arm], 1 / arm.sum(), rtol=1e-12)
            continue
        slope = (gram @ (w - goal))[arm]  # equal where there is weight, nowhere smaller
        level = slope[w[arm] > 0]
        assert np.ptp(level) < 1e-8
        assert slope.min() > level.min() - 1e-8


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_balancing_weights_equal_a_general_solver(metric):
    from scipy.optimize import minimize

    x = np.random.default_rng(1).normal(size=(30, 2)) + np.repeat([0.0, 0.8], [12, 18])[:, None]
    gram = metric.gram(x)
    q, c = gram[:12, :12], gram[:12].mean(axis=1)
    w = simplex_weights(q, c)
    found = minimize(
        lambda v: 0.5 * v @ q @ v - v @ c,
        np.full(12, 1 / 12),
        jac=lambda v: q @ v - c,
        bounds=[(0, 1)] * 12,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": lambda v: np.ones(12)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(w, found.x, atol=1e-6)
    assert 0.5 * w @ q @ w - w @ c <= found.fun + 1e-12


def test_balancing_two_points_in_closed_form():
    """Energy weights of points 0 and 1 for a target with the share p at 1 are 1 - p and p."""
    x = np.r_[0.0, 1.0, np.repeat([0.0, 1.0], [7, 3])][:, None]
    gram = pg.causal.EnergyDistance().gram(x)
    np.testing.assert_allclose(simplex_weights(gram[:2, :2], gram[:2, 2:].mean(axis=1)), [0.7, 0.3], atol=1e-9)
    np.testing.assert_allclose(project_to_simplex(np.array([0.5, 1.5, -3.0])), [0.0, 1.0, 0.0], atol=1e-15)


def test_balancing_removes_confounding_that_models_leave():
    """Distorted covariates: weights without any model come nearer than the difference and augmented weighting."""
    results = {"none": [], "alone": [], "both": []}
    for seed in range(2):
        data = kang_schafer(seed, 250)
        treated = data["T"] == 1
        results["none"].append(data["Y"][treated].mean() - data["Y"][~treated].mean())
        results["alone"].append(pg.causal.estimate(QUESTION, data, pg.causal.Balancing()).value)
        both = pg.causal.estimate(QUESTION, data, pg.causal.Balancing(outcome=pg.causal.Linear()))
        results["both"].append(both.value)
        assert both.interval()[0] < 0 < both.interval()[1]
        assert abs(both.influence.mean()) < 1e-9
    worst = {name: np.abs(values).max() for name, values in results.items()}
    assert worst["alone"] < 0.4 * min(np.abs(results["none"]))
    assert worst["both"] < 0.4 * min(np.abs(results["none"]))


def test_balancing_leaves_balanced_data_alone():
    """Both arms have the same covariates: even weights, and the difference of means."""
    x = np.tile(np.random.default_rng(0).normal(size=20), 2)
    data = {"T": np.repeat([1, 0], 20), "x": x, "Y": x + np.repeat([2.0, 0.0], 20)}
    question = pg.causal.Adjustment("T", "Y", "x")
    for target in TARGETS:
        result = pg.causal.estimate(question, data, pg.causal.Balancing(pg.causal.EnergyDistance(), target))
        assert abs(result.value - 2) < 1e-7
        assert result.effect == target.name
    shifted = pg.causal.estimate(question, data, pg.causal.Balancing(outcome=pg.causal.Linear(), target=TARGETS[1]))
    assert abs(shifted.value - 2) < 1e-9


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_balancing_of_strata_is_stratification(metric):
    rng = np.random.default_rng(0)
    x = (rng.random((200, 2)) < 0.5).astype(float)
    t = (rng.random(200) < 0.3 + 0.4 * x[:, 0]).astype(float)
    y = t * (1 + x[:, 1]) + 2 * x[:, 0] + rng.normal(size=200)
    cells = [(x == cell).all(axis=1) for cell in itertools.product((0, 1), repeat=2)]
    truth = sum(cell.mean() * (y[cell & (t == 1)].mean() - y[cell & (t == 0)].mean()) for cell in cells)
    question = pg.causal.Adjustment("T", "Y", ["A", "B"])
    result = pg.causal.estimate(question, {"T": t, "Y": y, "A": x[:, 0], "B": x[:, 1]}, pg.causal.Balancing(metric))
    assert abs(result.value - truth) < 1e-4


def test_balancing_says_what_is_wrong():
    data = kang_schafer(0, 60)
    with pytest.raises(MethodError, match="Use IPW"):
        pg.causal.estimate(QUESTION, data, pg.causal.Balancing(target=pg.causal.ATO()))
    with pytest.raises(MethodError, match="needs covariates"):
        pg.causal.estimate(pg.causal.Adjustment("T", "Y"), data, pg.causal.Balancing())
    with pytest.raises(MethodError, match="penalty must be"):
        pg.causal.Balancing(penalty=-1.0)
    with pytest.raises(MethodError, match="scale must be"):
        pg.causal.MaximumMeanDiscrepancy(0.0)
    with pytest.raises(DataError, match="expected 0 and 1"):
        pg.causal.estimate(pg.causal.Adjustment("x0", "Y", "x1"), data, pg.causal.Balancing())


def moments(seed, n, violation=0.0, confounding=1.0):
    """Three instruments, a constant and a covariate; the spread of the outcome depends on an instrument."""
    rng = np.random.default_rng(seed)
    z, w, u, e = rng.normal(size=(n, 3)), *rng.normal(size=(3, n))
    t = z @ [0.5, 0.3, 0.2] + 0.3 * w + u
    y = t - 0.5 * w + 0.2 + violation * z[:, 0] + (confounding * u + e) * (0.5 + np.abs(z[:, 0]))
    one = np.ones(n)
    return y, np.column_stack([t, one, w]), np.column_stack([z, one, w])


def offline(y, x, z, efficient):
    """Two-stage least squares, or efficient GMM iterated: coefficients, robust covariance, J."""
    zx, zy, weight = z.T @ x, z.T @ y, z.T @ z
    for _ in range(6 if efficient else 1):
        a = np.linalg.solve(weight, zx)
        beta = np.linalg.solve(a.T @ zx, a.T @ zy)
        moment = z * (y - x @ beta)[:, None]
        spread = moment.T @ moment
        weight = spread if efficient else weight
    gain = np.linalg.solve(a.T @ zx, a.T)
    total = moment.sum(axis=0)
    return beta, gain @ spread @ gain.T, total @ np.linalg.solve(spread, total)


@pytest.mark.parametrize("efficient", [True, False])
def test_streaming_equals_offline(efficient):
    data = moments(0, 100_000)
    gmm = pg.causal.StreamingGMM(efficient=efficient)
    found = gmm.summary(gmm.run([data]), endogenous=[0])
    beta, covariance, j = offline(*data, efficient)
    se = np.sqrt(np.diag(covariance))
    assert found.rows == 100_000
    assert np.abs((found.beta - beta) / se).max() < (0.02 if efficient else 1e-6)
    assert np.abs((found.average - beta) / se).max() < 0.4  # an error of the order n^(-1/4) of a standard error
    np.testing.assert_allclose(found.se, se, rtol=0.02)
    if efficient:
        assert found.j_dof == 2
        assert abs(found.j - j) < 0.15
        assert found.j_p > 0.01
    assert found.hausman_dof == 1
    assert found.hausman_p < 1e-10


def test_streaming_tests_find_what_is_wrong():
    gmm = pg.causal.StreamingGMM()
    invalid = gmm.summary(gmm.run([moments(1, 20_000, violation=0.2)]), endogenous=[0])
    assert invalid.j_p < 1e-6
    exogenous = gmm.summary(gmm.run([moments(2, 20_000, confounding=0.0)]), endogenous=[0])
    assert exogenous.hausman_p > 0.01
    assert exogenous.j_p > 0.01


def test_streaming_resumes_and_ignores_how_rows_are_cut(tmp_path):
    y, x, z = moments(3, 6007)
    gmm = pg.causal.StreamingGMM()
    whole = gmm.run([(y, x, z)])
    cuts = [0, 300, 999, 1003, 2500, 6007]
    pieces = [(y[a:b], x[a:b], z[a:b]) for a, b in itertools.pairwise(cuts)]
    first = gmm.run(iter(pieces[:3]))
    np.savez(tmp_path / "state.npz", **first._asdict())
    with np.load(tmp_path / "state.npz") as loaded:
        resumed = gmm.run(pieces[3:], pg.causal.MomentState(**loaded))
    for name, a in whole._asdict().items():
        np.testing.assert_array_equal(a, getattr(resumed, name), err_msg=name)
    assert whole.held.shape == (7, 9)


def test_random_scaling_quantiles():
    """Abadir and Paruolo (1997), table 1."""
    known = {0.8: 3.875, 0.9: 5.323, 0.95: 6.747, 0.98: 8.613}
    for level, value in known.items():
        assert abs(pg.causal.random_scaling_quantile(level) - value) < 1e-3


@pytest.mark.slow
def test_streaming_intervals_cover():
    gmm = pg.causal.StreamingGMM()
    normal, scaling = [], []
    for seed in range(200):
        found = gmm.summary(gmm.run([moments(100 + seed, 11_000)]), endogenous=[0])
        low, high = found.interval()[0]
        scaling.append(low < 1 < high)
        normal.append(abs(found.beta[0] - 1) < 1.959964 * found.se[0])
    assert_proportion([sum(scaling), sum(normal)], 200, 0.95, detects=0.18)


def test_streaming_is_an_estimator():
    y, x, z = moments(4, 5000)
    data = {"Y": y, "T": x[:, 0], "W": x[:, 2], "A": z[:, 0], "B": z[:, 1], "C": z[:, 2]}
    question = pg.causal.Adjustment("T", "Y", "W", ["A", "B", "C"])
    result = pg.causal.estimate(question, data, pg.causal.StreamingGMM(efficient=False))
    beta, covariance, _ = offline(y, x, z, efficient=False)
    assert abs(result.value - beta[0]) < 1e-9
    assert abs(result.se / covariance[0, 0] ** 0.5 - 1) < 0.02
    assert "Random scaling" in repr(result)


def test_streaming_says_what_is_wrong():
    y, x, z = moments(5, 2000)
    gmm = pg.causal.StreamingGMM()
    with pytest.raises(MethodError, match="2 instruments for 3 regressors"):
        gmm.run([(y, x, z[:, :2])])
    with pytest.raises(DataError, match="earlier ones had 3 and 5"):
        gmm.run([(y, x, z), (y, x[:, :2], z)])
    with pytest.raises(DataError, match="fewer than warm_up"):
        gmm.summary(gmm.run([(y[:50], x[:50], z[:50])]))
    with pytest.raises(DataError, match="not finite"):
        gmm.run([(y * np.nan, x, z)])
    with pytest.raises(DataError, match="no batches"):
        gmm.run([])
    with pytest.raises(MethodError, match="instruments are linearly dependent"):
        gmm.run([(y, x, np.column_stack([z, z[:, 0]]))])
    with pytest.raises(MethodError, match="decay"):
        pg.causal.StreamingGMM(decay=0.4)


def invalid(seed, n=10_000):
    """An instrument with its own effect on the outcome; the effect of the treatment is one."""
    rng = np.random.default_rng(seed)
    u, e, v = rng.normal(size=(3, n))
    z = (rng.random(n) < 0.5).astype(float)
    a = 0.5 * z + u + (1 + z) * e
    return {"Z": z, "A": a, "Y": a + 0.8 * z + 1.5 * u + v}


INVALID = pg.causal.Adjustment("A", "Y", (), "Z")


def test_invalid_instrument_without_covariates_is_one_moment():
    data = invalid(0)
    z, a, y = data["Z"], data["A"], data["Y"]
    r = a - np.where(z == 1, a[z == 1].mean(), a[z == 0].mean())
    moment = np.sum((z - z.mean()) * r * y) / np.sum((z - z.mean()) * r * a)
    result = pg.causal.estimate(INVALID, data, pg.causal.InvalidInstrument(crossfit=None))
    assert abs(result.value - moment) < 1e-10
    wald = (y[z == 1].mean() - y[z == 0].mean()) / (a[z == 1].mean() - a[z == 0].mean())
    assert abs(result.value - 1) < 4 * result.se
    assert wald > 2


@pytest.mark.slow
def test_invalid_instrument_is_unbiased_and_knows_its_error():
    results = [pg.causal.estimate(INVALID, invalid(seed), pg.causal.InvalidInstrument()) for seed in range(100)]
    values = np.array([result.value for result in results])
    assert_mean(values, 1.0, detects=0.03)
    assert_variance(values, np.mean([result.se for result in results]) ** 2, detects=2.5)
    covered = sum(result.interval()[0] < 1 < result.interval()[1] for result in results)
    assert_proportion(covered, 100, 0.95, detects=0.25)


class OnlyFirst:
    """A regression on the first column alone."""

    def fit(self, x, y):
        fitted = pg.causal.Linear().fit(x[:, :1], y)
        self.predict = lambda x: fitted.predict(x[:, :1])
        return self


def with_covariate(seed, n=20_000):
    """f, mu, m and omega depend on x; the spread does not."""
    rng = np.random.default_rng(seed)
    x, (u, e, v) = rng.uniform(-2, 2, size=n), rng.normal(size=(3, n))
    z = (rng.random(n) < 1 / (1 + np.exp(-1 - x))).astype(float)
    a = 0.5 * z + x + u + (1 + z) * e
    return {"Z": z, "A": a, "X": x, "Y": a + 0.8 * z + 3 * x + (1.5 + 0.8 * x) * u + v}


WITH_X = pg.causal.Adjustment("A", "Y", "X", "Z")
WRONG = {
    "instrument": pg.causal.Constant(),
    "treatment": OnlyFirst(),
    "outcome": OnlyFirst(),
    "confounding": pg.causal.Constant(),
}


@pytest.mark.parametrize("first", ["instrument", "confounding"])
@pytest.mark.parametrize("second", ["treatment", "outcome"])
def test_invalid_instrument_is_multiply_robust(first, second):
    wrong = {name: WRONG[name] for name in (first, second)}
    result = pg.causal.estimate(WITH_X, with_covariate(0), pg.causal.InvalidInstrument(**wrong))
    assert abs(result.value - 1) < 3.5 * result.se
    assert result.se < 0.1


@pytest.mark.parametrize("both", [("instrument", "confounding"), ("treatment", "outcome")])
def test_invalid_instrument_needs_one_of_each_pair(both):
    wrong = {name: WRONG[name] for name in both}
    result = pg.causal.estimate(WITH_X, with_covariate(0), pg.causal.InvalidInstrument(**wrong))
    assert abs(result.value - 1) > 4 * result.se


def test_invalid_instrument_selects_right_learners():
    grid = {
        "instrument": (pg.causal.Constant(), pg.causal.Logistic()),
        "treatment": (OnlyFirst(), pg.causal.Linear()),
        "outcome": (OnlyFirst(), pg.causal.Linear()),
        "confounding": (pg.causal.Constant(), pg.causal.Linear()),
    }
    result = pg.causal.estimate(WITH_X, with_covariate(1), pg.causal.InvalidInstrument(**grid))
    assert abs(result.value - 1) < 3.5 * result.se
    assert "Selected of 16" in repr(result)


def test_invalid_instrument_averages_an_effect_that_varies():
    """The effect 1 + x; with the constant form the score still gives its mean where f, mu and V are right."""
    data = with_covariate(2)
    data["Y"] = data["Y"] + data["X"] * data["A"]
    for modifiers in ("X", ()):
        result = pg.causal.estimate(WITH_X, data, pg.causal.InvalidInstrument(modifiers=modifiers))
        assert abs(result.value - 1) < 4 * result.se


def test_invalid_instrument_says_what_is_wrong():
    data = invalid(0, 500)
    with pytest.raises(MethodError, match="needs instruments"):
        pg.causal.estimate(pg.causal.Adjustment("A", "Y"), data, pg.causal.InvalidInstrument())
    with pytest.raises(MethodError, match="zeros and ones"):
        pg.causal.estimate(INVALID, data | {"Z": data["Z"] * 2}, pg.causal.InvalidInstrument())
    with pytest.raises(MethodError, match="outcome is an empty grid"):
        pg.causal.InvalidInstrument(outcome=())
    with pytest.raises(DataError, match="nothing to compare"):
        pg.causal.estimate(INVALID, data | {"A": data["Z"] * 2}, pg.causal.InvalidInstrument())
