"""Sensitivity analysis: published numbers, identities of omitted-variable bias, linear programs by other means."""

import dataclasses
import importlib.resources
import importlib.util
import itertools
import math
import types
import warnings
import xml.etree.ElementTree

import numpy as np
import pandas
import pytest
import scipy.stats
import xarray
from matplotlib.figure import Figure
from typer.testing import CliRunner

import probgen as pg
from probgen.base.errors import DataError, MethodError, ModelError, ProbgenWarning
from probgen.causal import CinelliHazlett, MatchedPairs, PartialR2, Regression, RosenbaumBounds, Study, sensitivity
from probgen.causal.wording import figures, interval
from probgen.cli import app

PRINTED = Regression(
    0.09731582, 0.02325654, 783, "directlyharmed", "peacefactor", {"female": PartialR2(0.009081065, 0.109033916)}
)
"""The Darfur regression as it was printed."""


def ols(y, *columns):
    """Coefficients, classical standard errors and residual sum of squares, by the normal equations."""
    x = np.column_stack([np.ones(len(y)), *columns])
    inverse = np.linalg.inv(x.T @ x)
    b = inverse @ x.T @ y
    rss = float(np.sum((y - x @ b) ** 2))
    return b, np.sqrt(rss / (len(y) - x.shape[1]) * np.diag(inverse)), rss


def partial_r2(y, z, *given):
    """Share of the residual variance of y given some columns that z explains."""
    before, after = ols(y, *given)[2], ols(y, *given, z)[2]
    return (before - after) / before


def table_of(n=300, seed=0):
    """A confounded study with a hidden column z."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    group = rng.integers(0, 3, n)
    z = 0.5 * a + rng.normal(size=n)
    d = 0.7 * a - 0.3 * b + 0.4 * z + (group == 1) + rng.normal(size=n)
    y = 0.5 * d + a + 0.2 * b - 0.8 * z + 0.5 * (group == 2) + rng.normal(size=n)
    return {"y": y, "d": d, "a": a, "b": b, "z": z, "group": np.array(["u", "v", "w"])[group]}


# -- regression ------------------------------------------------------------------------------------------------------


def test_regression_is_least_squares():
    data = table_of()
    dummies = [(data["group"] == level).astype(float) for level in ("v", "w")]
    b, se, _ = ols(data["y"], data["d"], data["a"], data["b"], *dummies)
    fit = Regression.fit(data, "y", "d", ["a", "b", "group"])
    assert fit.estimate == pytest.approx(b[1], rel=1e-12)
    assert fit.se == pytest.approx(se[1], rel=1e-12)
    assert fit.dof == 300 - 6
    assert fit.partial_r2 == pytest.approx(partial_r2(data["y"], data["d"], data["a"], data["b"], *dummies), rel=1e-10)
    lower, upper = fit.interval(0.9)
    assert scipy.stats.t.cdf((upper - fit.estimate) / fit.se, fit.dof) == pytest.approx(0.95, abs=1e-12)
    assert lower + upper == pytest.approx(2 * fit.estimate)


def test_benchmarks_are_partial_r2_of_columns_and_of_groups():
    data = table_of()
    y, d, a, b = (data[name] for name in "ydab")
    dummies = [(data["group"] == level).astype(float) for level in ("v", "w")]
    fit = Regression.fit(pandas.DataFrame(data), "y", "d", ["a", "b", "group"])
    one = fit.benchmark("a")
    assert one.treatment == pytest.approx(partial_r2(d, a, b, *dummies), rel=1e-10)
    assert one.outcome == pytest.approx(partial_r2(y, a, d, b, *dummies), rel=1e-10)

    def joint(target, *given):
        before, after = ols(target, *given)[2], ols(target, *given, b, *dummies)[2]
        return (before - after) / before

    group = fit.benchmark("b", "group")
    assert group.treatment == pytest.approx(joint(d, a), rel=1e-10)
    assert group.outcome == pytest.approx(joint(y, a, d), rel=1e-10)


def test_robust_errors_are_sandwiches():
    data = table_of(60) | {"firm": np.arange(60) % 12}
    x = np.column_stack([np.ones(60), data["d"], data["a"]])
    inverse = np.linalg.inv(x.T @ x)
    u = data["y"] - x @ inverse @ x.T @ data["y"]
    hc1 = inverse @ (x.T * u**2) @ x @ inverse * 60 / 57
    assert Regression.fit(data, "y", "d", ["a"], robust=True).robust_se == pytest.approx(hc1[1, 1] ** 0.5, rel=1e-10)
    sums = np.array([(x * u[:, None])[data["firm"] == g].sum(0) for g in range(12)])
    cr1 = inverse @ sums.T @ sums @ inverse * 12 / 11 * 59 / 57
    fit = Regression.fit(data, "y", "d", ["a"], clusters="firm")
    assert fit.robust_se == pytest.approx(cr1[1, 1] ** 0.5, rel=1e-10)
    assert fit.reference_dof == 11
    assert np.ptp(fit.interval()) == pytest.approx(2 * scipy.stats.t.ppf(0.975, 11) * fit.robust_se)


def test_regression_of_the_training_experiment():
    """NSW, the Dehejia-Wahba sample: 1794.34 with the standard errors 632.9 and (HC1) 670.8."""
    source = pytest.importorskip("causaldata", reason="needs the data sets of causaldata")
    data = source.nsw_mixtape.load_pandas().data
    fit = Regression.fit(data, "re78", "treat", robust=True)
    assert fit.estimate == pytest.approx(1794.34, abs=0.01)
    assert fit.se == pytest.approx(632.9, abs=0.06)
    assert fit.robust_se == pytest.approx(670.8, abs=0.3)
    more = ["age", "educ", "black", "hisp", "marr", "nodegree", "re74", "re75"]
    assert Regression.fit(data, "re78", "treat", more).estimate == pytest.approx(1676.3, abs=0.1)


def test_aliased_covariates_are_left_out_with_a_warning():
    data = table_of()
    data["twice"] = 2 * data["a"] + 1
    with pytest.warns(ProbgenWarning, match=r"^twice: constant, or a linear function"):
        fit = Regression.fit(data, "y", "d", ["a", "twice", "b"])
    assert fit.estimate == pytest.approx(Regression.fit(data, "y", "d", ["a", "b"]).estimate, rel=1e-12)
    assert fit.covariates == ("a", "b")


def result_of(data, names, cov_type="nonrobust", bse=None, params=None):
    """What a result of statsmodels shows of itself."""
    x = np.column_stack([np.ones(len(data["y"])), *(data[name] for name in names)])
    b, se, _ = ols(data["y"], *(data[name] for name in names))
    model = types.SimpleNamespace(endog=data["y"], exog=x, exog_names=["const", *names], endog_names="y")
    return types.SimpleNamespace(model=model, params=b if params is None else params, bse=bse or se, cov_type=cov_type)


def test_results_of_other_packages_are_read():
    data = table_of()
    own = Regression.fit(data, "y", "d", ["a", "b"])
    read = Regression.from_result(result_of(data, ["d", "a", "b"]), "d")
    assert (read.estimate, read.se, read.dof) == pytest.approx((own.estimate, own.se, own.dof), rel=1e-12)
    assert read.benchmark("a").outcome == pytest.approx(own.benchmark("a").outcome, rel=1e-10)
    by_door = sensitivity(result_of(data, ["d", "a", "b"]), CinelliHazlett(), benchmarks="b", treatment="d")
    assert by_door.table.equals(sensitivity(read, CinelliHazlett(), benchmarks="b").table)
    robust = Regression.from_result(result_of(data, ["d", "a"], "HC1", [9.0, 0.3, 9.0]), "d")
    assert robust.robust_se == 0.3
    with pytest.raises(MethodError, match="it is weighted, or not linear"):
        Regression.from_result(result_of(data, ["d", "a"], params=np.ones(3)), "d")
    with pytest.raises(MethodError, match=r"which coefficient is the effect\? Give treatment=, one of const, d, a"):
        sensitivity(result_of(data, ["d", "a"]))
    with pytest.raises(DataError, match="the regression has no column 'D'"):
        Regression.from_result(result_of(data, ["d", "a"]), "D")


# -- Cinelli and Hazlett ---------------------------------------------------------------------------------------------


def check_darfur(regression, tolerance):
    """The published analysis."""
    found = sensitivity(regression, CinelliHazlett(), benchmarks="female")["Cinelli-Hazlett"]
    measures = [measure.value for measure in found.measures]
    assert measures == pytest.approx([0.1387764, 0.0762580, 0.0218731], abs=tolerance)
    row = found.table.loc["1 x female"]
    expected = [0.009164, 0.124641, 0.075220, 0.021873, 3.438904, 0.032283, 0.118158]
    assert row.tolist() == pytest.approx(expected, abs=tolerance)
    assert list(found.table.index) == ["1 x female", "2 x female", "3 x female"]


def test_darfur_from_what_was_printed():
    assert PRINTED.t == pytest.approx(4.184, abs=5e-4)
    assert PRINTED.partial_r2 == pytest.approx(0.02187, abs=5e-6)
    check_darfur(PRINTED, 1e-6)


def test_darfur_from_the_data():
    if importlib.util.find_spec("sensemakr") is None:
        pytest.skip("needs the data set of PySensemakr")
    data = pandas.read_csv(importlib.resources.files("sensemakr") / "data" / "darfur.csv")
    covariates = ["village", "female", "age", "farmer_dar", "herder_dar", "pastvoted", "hhsize_darfur"]
    fit = Regression.fit(data, "peacefactor", "directlyharmed", covariates)
    assert fit.dof == 783
    check_darfur(fit, 1e-6)
    assert fit.benchmark("female").treatment == pytest.approx(PRINTED.benchmarks["female"].treatment, abs=1e-9)
    assert fit.benchmark("female").outcome == pytest.approx(PRINTED.benchmarks["female"].outcome, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_omitted_variable_bias_is_an_identity(seed):
    """Short regression, strength of what was omitted: the long regression follows to the last digits."""
    data = table_of(80, seed)
    y, d, a, z = (data[name] for name in "ydaz")
    short, (long, se, _) = Regression.fit(data, "y", "d", ["a"]), ols(y, d, a, z)
    strength = partial_r2(d, z, a), partial_r2(y, z, d, a)
    assert CinelliHazlett().bias(short, *strength) == pytest.approx(abs(short.estimate - long[1]), rel=1e-10)
    harmful = abs(long[1]) < abs(short.estimate) and long[1] * short.estimate > 0
    model = CinelliHazlett(increases=not harmful and abs(long[1]) > abs(short.estimate))
    adjusted = model.adjusted(short, *strength)
    assert adjusted.estimate == pytest.approx(long[1], rel=1e-10)
    assert adjusted.se == pytest.approx(se[1], rel=1e-10)
    assert adjusted.t == pytest.approx(long[1] / se[1], rel=1e-10)
    reach = scipy.stats.t.ppf(0.975, 80 - 4) * se[1]
    assert adjusted.interval == pytest.approx((long[1] - reach, long[1] + reach), rel=1e-9)


def test_benchmark_bounds_hold_for_a_confounder_of_known_multiples():
    """A confounder unrelated to the covariates: its share of the treatment is exact, that of the outcome is a bound."""
    tight = []
    for seed in range(20):
        data = table_of(60, seed)
        y, d, a, b = (data[name] for name in "ydab")
        raw = np.random.default_rng(1000 + seed).normal(size=60)
        z = raw - np.column_stack([np.ones(60), a, b]) @ ols(raw, a, b)[0]
        d, y = d + 0.5 * z, y + 0.5 * z
        fit = Regression.fit({"y": y, "d": d, "a": a, "b": b}, "y", "d", ["a", "b"])
        kd = partial_r2(d, z, b) / partial_r2(d, a, b)
        ky = partial_r2(y, z, d, b) / partial_r2(y, a, d, b)
        bound = pg.causal.benchmark_bound(fit.benchmark("a"), kd, ky)
        assert bound.treatment == pytest.approx(partial_r2(d, z, a, b), rel=1e-9)
        actual = partial_r2(y, z, d, a, b)
        assert bound.outcome >= actual * (1 - 1e-9)
        tight.append(actual / bound.outcome)
    assert max(tight) > 0.9  # it is no empty bound


def test_robustness_values_are_where_the_conclusion_tips():
    for t, dof in ((4.2, 783), (2.5, 20), (6.0, 3), (30.0, 5)):
        model, short = CinelliHazlett(), Regression(t, 1.0, dof)
        r = pg.causal.robustness_value(t, dof)
        assert model.adjusted(short, r, r).estimate == pytest.approx(0, abs=1e-9)
        x = pg.causal.extreme_robustness_value(t, dof)
        assert x == pytest.approx(short.partial_r2)
        assert model.bias(short, x, 1.0) == pytest.approx(t)
        r = pg.causal.robustness_value(t, dof, alpha=0.05)
        critical = scipy.stats.t.ppf(0.975, dof - 1)
        # The worst confounder in the box [0, r]^2: its share of the outcome need not be the largest.
        box = [model.adjusted(short, r, share).t for share in np.linspace(0, r, 2001)]
        assert min(box) == pytest.approx(critical, rel=1e-6)
        assert min(model.adjusted(short, 0.99 * r, s).t for s in np.linspace(0, 0.99 * r, 501)) > critical
        half = pg.causal.robustness_value(t, dof, q=0.5)
        assert model.adjusted(short, half, half).estimate == pytest.approx(t / 2)
    assert pg.causal.robustness_value(1.5, 100, alpha=0.05) == 0
    assert pg.causal.robustness_value(1e-8, 100) == pytest.approx(1e-9, rel=1e-6)


def test_null_other_than_zero_and_effects_that_were_hidden():
    found = sensitivity(PRINTED, CinelliHazlett(), null=0.05)["Cinelli-Hazlett"]
    r = found.measures[0].value
    assert r == pytest.approx(pg.causal.robustness_value((0.09731582 - 0.05) / 0.02325654, 783))
    assert CinelliHazlett().adjusted(PRINTED, r, r, null=0.05).estimate == pytest.approx(0.05, abs=1e-12)
    assert CinelliHazlett(increases=True).adjusted(PRINTED, r, r).estimate == pytest.approx(2 * 0.09731582 - 0.05)
    negative = Regression(-PRINTED.estimate, PRINTED.se, 783)
    assert CinelliHazlett().adjusted(negative, 0.1, 0.1).estimate == pytest.approx(
        -CinelliHazlett().adjusted(PRINTED, 0.1, 0.1).estimate
    )


def test_robustness_of_the_interval_with_robust_errors():
    data = table_of() | {"firm": np.arange(300) % 15}
    for settings in ({"robust": True}, {"clusters": "firm"}):
        fit = Regression.fit(data, "y", "d", ["a"], **settings)
        found = sensitivity(fit, CinelliHazlett())["Cinelli-Hazlett"]
        r = found.measures[1].value
        if r == 0:
            assert fit.interval()[0] < 0
            continue
        limits = CinelliHazlett().adjusted(fit, r, r).interval
        assert min(map(abs, limits)) == pytest.approx(0, abs=1e-9)
        assert any("robust standard error" in note for note in found.notes)


def test_pictures_show_the_numbers():
    found = sensitivity(PRINTED, CinelliHazlett())["Cinelli-Hazlett"]
    estimate, t = found.contours
    assert estimate.values[0, 0] == pytest.approx(PRINTED.estimate)
    x, y = estimate.x[20], estimate.y[30]
    assert estimate.values[30, 20] == pytest.approx(CinelliHazlett().adjusted(PRINTED, x, y).estimate)
    assert t.values[30, 20] == pytest.approx(CinelliHazlett().adjusted(PRINTED, x, y).t)
    assert found.extreme is not None
    full = found.extreme.lines[0]
    assert full.y[40] == pytest.approx(CinelliHazlett().adjusted(PRINTED, full.x[40], 1.0).estimate)
    assert found.tipping is not None
    for line, value in zip(found.tipping.lines, (0.0, scipy.stats.t.ppf(0.975, 782)), strict=True):
        kept = np.flatnonzero(np.isfinite(line.y))
        assert len(kept) > 20
        for i in kept[:: len(kept) // 10]:
            adjusted = CinelliHazlett().adjusted(PRINTED, line.x[i], line.y[i])
            assert adjusted.t == pytest.approx(value, abs=1e-8)
    assert [mark.label for mark in estimate.marks] == ["1 x female", "2 x female", "3 x female"]


def test_impossible_benchmarks_are_errors_or_notes():
    strong = Regression(1.0, 0.1, 100, benchmarks={"age": PartialR2(0.4, 0.2)})
    with pytest.raises(MethodError, match=r"benchmark 'age': .* 2 times .* would explain 133 % .* Use kd below 1\.5"):
        sensitivity(strong, CinelliHazlett(kd=(1, 2)), benchmarks="age")
    found = sensitivity(strong, CinelliHazlett(), benchmarks="age")["Cinelli-Hazlett"]
    assert list(found.table.index) == ["1 x age"]
    assert sum("which cannot be" in note for note in found.notes) == 2
    assert pg.causal.benchmark_bound(PartialR2(0.3, 0.9), 2.0).outcome == 1.0
    whole = sensitivity(Regression(1.0, 0.1, 100, benchmarks={"age": PartialR2(0.1, 0.5)}), CinelliHazlett(), null=0.2)
    assert whole.table["ci_lower"].isna().tolist() == [True, True, True]
    assert "all of the outcome may be explained" in whole["Cinelli-Hazlett"].notes[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Regression(math.nan, 1, 10), "estimate must be finite"),
        (lambda: Regression(1, 0, 10), "se must be positive, got 0"),
        (lambda: Regression(1, 1, 1), "dof must be greater than 1, got 1"),
        (lambda: PartialR2(0.1, 12.5), "Give shares, not per cent"),
        (lambda: Regression.fit({"y": [1.0]}, "y", "d"), "the data have no column 'd'"),
        (lambda: Regression.fit(table_of() | {"d": np.ones(300)}, "y", "d"), "'d' is constant, 1 in all rows"),
        (lambda: Regression.fit(table_of() | {"a": np.full(300, np.nan)}, "y", "d", ["a"]), "has 300 missing values"),
        (lambda: Regression.fit(table_of() | {"e": np.ones(3)}, "y", "d", ["e"]), "different lengths"),
        (lambda: Regression.fit(table_of() | {"b": table_of()["d"] + 1}, "y", "d", ["b"]), "is a linear function of"),
        (lambda: Regression.fit(table_of() | {"b": table_of()["y"] + 1}, "y", "d", ["b"]), "without any residual"),
        (lambda: Regression.fit(table_of(), "y", "group"), "expected numbers"),
        (lambda: Regression.fit(table_of(), "y", "d", ["a", "a"]), "'a' is named more than once"),
        (lambda: Regression.fit(table_of(6), "y", "d", ["a", "b", "group"]), "6 rows are too few for 6 coefficients"),
        (lambda: PRINTED.benchmark("age"), "the partial R2 of age is not known from plain output"),
        (lambda: Regression.fit(table_of(), "y", "d", ["a"]).benchmark("A"), "there is no covariate 'A'"),
        (lambda: sensitivity(PRINTED, CinelliHazlett(), benchmarks="age"), "age is not known"),
        (lambda: sensitivity(PRINTED, level=95), "level must lie between 0 and 1, got 95"),
        (
            lambda: sensitivity(PRINTED, RosenbaumBounds()),
            "RosenbaumBounds cannot analyse this: it needs pg.causal.Mat",
        ),
        (lambda: sensitivity(PRINTED, "cinelli"), "models must be sensitivity models, got 'c'"),
        (lambda: sensitivity(PRINTED, []), "models is empty"),
        (lambda: sensitivity(3.0), "no sensitivity model fits float"),
        (lambda: sensitivity(PRINTED)["E value"], "there is no analysis 'E value'"),
        (lambda: sensitivity(PRINTED).plot_bounds(), "none of the models .* has bounds to draw"),
        (lambda: CinelliHazlett(kd=(1, 2), ky=(1,)), "Give one ky for each kd"),
        (lambda: CinelliHazlett().bias(PRINTED, 1.0, 0.5), r"must lie in \[0, 1\) with the treatment"),
        (lambda: pg.causal.robustness_value(2.0, 10, alpha=5), "alpha must lie between 0 and 1"),
    ],
)
def test_wrong_input_is_told(call, message):
    with pytest.raises((DataError, MethodError), match=message):
        call()


# -- omitted-variable bias of causal machine learning ----------------------------------------------------------------


def test_omitted_variable_bias_of_the_401k():
    """Numbers of the 401(k) example (cf_y 0.04, cf_d 0.03) follow from the estimate and the scale of its bias."""
    estimate, half = (13194.9 + 4721.5) / 2, (13194.9 - 4721.5) / 2
    model = pg.causal.OmittedVariableBias(0.04, 0.03)
    scale = half / model.share
    n = 1000
    one = np.resize([1.0, -1.0], n)
    subject = pg.causal.RieszEstimate(estimate, scale * one, one, np.ones(n), np.zeros(n))
    assert subject.scale == pytest.approx(scale)
    assert model.bounds(subject) == pytest.approx((4721.5, 13194.9))
    assert model.robustness_value(subject) == pytest.approx(0.0717, abs=5e-5)


def linear_study(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    a = rng.normal(size=n)
    d = x + a + rng.normal(size=n)
    return x, a, d, 2 * d + x + 1.5 * a + rng.normal(size=n)


def test_omitted_variable_bias_agrees_with_linear_regression():
    """In a linear model, the two formulas are the same: cf_y and cf_d are the partial R2."""
    x, a, d, y = linear_study(200, 0)
    short = Regression.fit({"x": x, "d": d, "y": y}, "y", "d", ["x"])
    v, u = d - ols(d, x)[0] @ [np.ones(200), x], y - ols(y, x)[0] @ [np.ones(200), x]
    subject = pg.causal.RieszEstimate.partially_linear(short.estimate, u, v)
    strength = partial_r2(d, a, x), partial_r2(y, a, d, x)
    lower, upper = pg.causal.OmittedVariableBias(strength[1], strength[0]).bounds(subject)
    truth = ols(y, d, x, a)[0][1]
    assert min(abs(lower - truth), abs(upper - truth)) == pytest.approx(0, abs=1e-10)
    # Without a correction for degrees of freedom, the influence gives HC0.
    robust = Regression.fit({"x": x, "d": d, "y": y}, "y", "d", ["x"], robust=True).robust_se
    assert subject.se_of(0.0) == pytest.approx([robust * math.sqrt(197 / 200)] * 2, rel=1e-10)
    found = sensitivity(subject)["Omitted-variable bias"]
    r = found.measures[1].value
    limit = pg.causal.OmittedVariableBias(r, r).interval(subject)[0]
    assert limit == pytest.approx(0, abs=1e-9)
    assert found.bounds is not None
    assert found.bounds.lower[0] == found.bounds.upper[0] == short.estimate


def test_influence_of_the_bounds_is_that_of_resampling():
    """Standard errors of the bounds, by the jackknife of the whole partially linear estimate and its bounds."""
    x, _, d, y = linear_study(400, 1)
    v, u = d - x, y - 3 * x  # residuals by known nuisances
    model = pg.causal.OmittedVariableBias(0.2, 0.1, rho=0.7)

    def bounds(kept):
        theta = np.sum(v[kept] * u[kept]) / np.sum(v[kept] ** 2)
        return model.bounds(pg.causal.RieszEstimate.partially_linear(theta, u[kept], v[kept]))

    everything = np.arange(400)
    leave = np.array([bounds(np.delete(everything, i)) for i in range(400)])
    jackknife = np.sqrt(399 / 400 * ((leave - leave.mean(0)) ** 2).sum(0))
    theta = np.sum(v * u) / np.sum(v**2)
    subject = pg.causal.RieszEstimate.partially_linear(theta, u, v)
    assert subject.se_of(model.share) == pytest.approx(jackknife, rel=0.02)


def test_benchmarks_of_causal_machine_learning_leave_covariates_out():
    """In a linear model: the strengths are ratios of residual variances, and the bound is where leaving out led."""
    x, a, d, y = linear_study(400, 3)
    y = y - 0.9 * a

    def riesz(*given):
        v, u = (w - ols(w, *given)[0] @ [np.ones(400), *given] for w in (d, y))
        names = {"x": x, "a": a}
        subject = pg.causal.RieszEstimate.partially_linear(float(u @ v / (v @ v)), u, v)
        left = [name for name, column in names.items() if any(column is one for one in given)]
        return dataclasses.replace(
            subject,
            covariates=tuple(left),
            refit=lambda gone: riesz(*(names[name] for name in left if name not in gone)),
        )

    long, short = riesz(x, a), riesz(x)
    cf_y, cf_d, rho = pg.causal.OmittedVariableBias().benchmark(long, "a")
    explained = partial_r2(y, a, d, x)
    assert cf_y == pytest.approx(explained / (1 - explained), rel=1e-9)
    explained = partial_r2(d, a, x)
    assert cf_d == pytest.approx(explained / (1 - explained), rel=1e-9)
    # As in the identity of omitted variables, the change is the product of both gains, and the correlation is one.
    assert rho == pytest.approx(1.0, abs=1e-9)
    moved = math.sqrt((short.sigma2 - long.sigma2) * (long.nu2 - short.nu2))
    assert moved == pytest.approx(short.estimate - long.estimate, rel=1e-9)
    found = sensitivity(long, benchmarks="a")["Omitted-variable bias"]
    row = found.table.loc["1 x a"]
    assert (row["cf_y"], row["cf_d"]) == pytest.approx((cf_y, cf_d))
    assert row["lower"] == pytest.approx(long.estimate - long.scale * math.sqrt(cf_y * cf_d / (1 - cf_d)))
    noisy = dataclasses.replace(short, residual=9 * short.residual)
    with pytest.raises(MethodError, match=r"as strong as a would explain .* which cannot be"):
        sensitivity(dataclasses.replace(long, refit=lambda gone: noisy), benchmarks="a")
    with pytest.raises(DataError, match="there is no covariate 'b'"):
        sensitivity(long, benchmarks="b")
    with pytest.raises(MethodError, match="Give refit= to RieszEstimate"):
        sensitivity(dataclasses.replace(long, refit=None), benchmarks="a")


def test_limits_of_the_bounds_cover_as_often_as_they_say():
    """The confounder's own strengths: its bound is the truth, 2, which one-sided limits of 90 % miss once in ten."""
    rng = np.random.default_rng(0)
    replicates, n, missed = 1500, 250, 0
    model = pg.causal.OmittedVariableBias(cf_y=1.125 / 2.125, cf_d=0.5)
    for _ in range(replicates):
        a, e, noise = rng.normal(size=(3, n))
        v = a + e  # what is left of d = x + a + e given x; y = 2 d + x + 1.5 a + noise
        u = 2 * v + 1.5 * a + noise
        subject = pg.causal.RieszEstimate.partially_linear(float(u @ v / (v @ v)), u, v)
        missed += model.interval(subject, 0.9)[0] > 2
    # Finite samples move the rate by about one in a hundred; a standard error that forgets S would move it by five.
    assert scipy.stats.binom.ppf(1e-6, replicates, 0.09) <= missed <= scipy.stats.binom.ppf(1 - 1e-6, replicates, 0.115)


def test_interactive_scores():
    rng = np.random.default_rng(0)
    e = rng.uniform(0.2, 0.8, 500)
    t = (rng.random(500) < e).astype(float)
    g0, g1 = rng.normal(size=(2, 500))
    y = np.where(t == 1, g1, g0) + rng.normal(size=500)
    aipw = g1 - g0 + t * (y - g1) / e - (1 - t) * (y - g0) / (1 - e)
    subject = pg.causal.RieszEstimate.interactive(aipw.mean(), y, t, g0, g1, e)
    assert subject.se_of(0.0)[0] == pytest.approx(aipw.std() / math.sqrt(500))
    alpha = t / e - (1 - t) / (1 - e)
    assert subject.nu2 == pytest.approx(np.mean(2 / (e * (1 - e)) - alpha**2))
    assert subject.scale == pytest.approx(math.sqrt(subject.nu2 * np.mean((y - np.where(t == 1, g1, g0)) ** 2)))
    with pytest.raises(DataError, match="Trim the units that have no counterpart"):
        pg.causal.RieszEstimate.interactive(1.0, y, t, g0, g1, t)
    with pytest.raises(MethodError, match="Give shares of variance, not per cent"):
        pg.causal.OmittedVariableBias(4, 3)


# -- E-values --------------------------------------------------------------------------------------------------------


def test_e_values_of_the_literature():
    assert pg.causal.e_value(3.9) == pytest.approx(7.263, abs=5e-4)
    assert pg.causal.e_value(1.8) == pytest.approx(3.0, abs=1e-12)
    assert pg.causal.e_value(1 / 3.9) == pytest.approx(pg.causal.e_value(3.9))
    assert pg.causal.e_value(1.0) == 1.0
    hazard = sensitivity(pg.causal.HazardRatio(0.56, 0.46, 0.69))["E-value"]
    assert [m.value for m in hazard.measures] == pytest.approx([2.349, 1.908], abs=1e-3)
    smoking = sensitivity(pg.causal.RiskDifference(397, 78557, 51, 108778))["E-value"]
    assert [m.value for m in smoking.measures] == pytest.approx([20.947, 15.957], abs=1e-3)


def test_bounding_factor_is_reached_and_never_passed():
    """Confounders by enumeration: the observed risk ratio without any effect is at most the bounding factor."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        p1, p0, r1, r0 = rng.uniform(0.01, 0.99, 4)
        observed = (p1 * r1 + (1 - p1) * r0) / (p0 * r1 + (1 - p0) * r0)
        with_exposure = max(p1 / p0, (1 - p1) / (1 - p0))
        factor = pg.causal.bounding_factor(with_exposure, max(r1 / r0, r0 / r1))
        assert observed <= factor * (1 + 1e-12)
    # Everybody exposed has the confounder: the bound is reached.
    observed = 1.0 * 0.3 / (0.4 * 0.3 + 0.6 * 0.1)
    assert observed == pytest.approx(pg.causal.bounding_factor(1 / 0.4, 3.0))
    value = pg.causal.e_value(2.2)
    assert pg.causal.bounding_factor(value, value) == pytest.approx(2.2)


def test_e_values_on_other_scales():
    rare, common = (sensitivity(pg.causal.OddsRatio(4.0, 2.25, 6.0, rare=rare))["E-value"] for rare in (True, False))
    assert rare.measures[0].value == pytest.approx(pg.causal.e_value(4.0))
    assert [m.value for m in common.measures] == pytest.approx([pg.causal.e_value(2.0), pg.causal.e_value(1.5)])
    means = sensitivity(pg.causal.MeanDifference(0.5, 0.25))["E-value"]
    limit = math.exp(0.91 * 0.5 - 1.78 * 0.25)
    assert [m.value for m in means.measures] == pytest.approx(
        [pg.causal.e_value(math.exp(0.455)), pg.causal.e_value(limit)]
    )
    harmless = sensitivity(pg.causal.RiskRatio(1.3, 0.9, 2.0))["E-value"]
    assert harmless.measures[1].value == 1
    assert "includes the null without any confounding" in harmless.text
    assert len(sensitivity(pg.causal.RiskRatio(1.3))["E-value"].measures) == 1
    other = sensitivity(pg.causal.RiskRatio(3.9, 1.8, 8.7), null=1.5)["E-value"]
    assert [m.value for m in other.measures] == pytest.approx([pg.causal.e_value(2.6), pg.causal.e_value(1.2)])
    difference = pg.causal.RiskDifference(30, 70, 10, 90)
    left, se = difference.adjusted(1.0)
    assert left == pytest.approx(0.2)
    assert se == pytest.approx(math.sqrt(0.3 * 0.7 / 100 + 0.1 * 0.9 / 100))
    mirrored = pg.causal.RiskDifference(10, 90, 30, 70)
    assert sensitivity(mirrored)["E-value"].measures[1].value == pytest.approx(
        sensitivity(difference)["E-value"].measures[1].value
    )


def test_e_value_curves():
    found = sensitivity(pg.causal.RiskRatio(3.9, 1.8, 8.7), pg.causal.EValue(benchmarks=(("smoking", 2.0, 3.0),)))[
        "E-value"
    ]
    assert found.tipping is not None
    for line, ratio in zip(found.tipping.lines, (3.9, 1.8), strict=True):
        kept = np.isfinite(line.y)
        factors = [pg.causal.bounding_factor(x, y) for x, y in zip(line.x[kept], line.y[kept], strict=True)]
        assert factors == pytest.approx([ratio] * len(factors))
    assert found.table.loc["risk ratios 2, 2", ["lower", "upper", "ci_lower", "ci_upper"]].tolist() == pytest.approx(
        [3.9 * 3 / 4, 3.9 * 4 / 3, 1.8 * 3 / 4, 8.7 * 4 / 3]
    )
    for call, message in (
        (lambda: pg.causal.e_value(-1), "Not their logarithms"),
        (lambda: pg.causal.bounding_factor(0.5, 2), "Invert ratios below 1"),
        (lambda: pg.causal.RiskRatio(2, 3, 4), "do not hold the risk ratio 2"),
        (lambda: pg.causal.RiskDifference(0, 10, 1, 9), "a risk is zero"),
        (lambda: sensitivity(Regression(1, 1, 10), pg.causal.EValue()), "it needs outcome_sd"),
    ):
        with pytest.raises(MethodError, match=message):
            call()


# -- matched pairs ---------------------------------------------------------------------------------------------------


def test_sign_test_of_twenty_pairs():
    pairs, model = MatchedPairs.discordant(15, 5), RosenbaumBounds()
    upper = [model.p_values(pairs, gamma)[1] for gamma in (1, 1.5, 2, 3)]
    assert upper == pytest.approx([0.0207, 0.1256, 0.2972, 0.6172], abs=5e-5)
    assert model.p_values(pairs, 1) == pytest.approx([scipy.stats.binomtest(15, 20, alternative="greater").pvalue] * 2)
    largest = model.largest_gamma(pairs)
    assert model.p_values(pairs, largest)[1] == pytest.approx(0.05, abs=1e-10)
    assert model.largest_gamma(MatchedPairs.discordant(11, 9)) == 1.0
    harmful = RosenbaumBounds(harmful=True)
    assert harmful.p_values(MatchedPairs.discordant(5, 15), 2) == pytest.approx(model.p_values(pairs, 2))
    assert RosenbaumBounds(two_sided=True).p_values(pairs, 1)[1] == pytest.approx(2 * 0.020694732666015625)


def differences(n=12, ties=False, seed=0):
    d = np.random.default_rng(seed).normal(0.5, 1, n)
    return np.round(2 * d) / 2 + 0.25 if ties else d


def test_signed_rank_is_exact_by_enumeration_and_scipy():
    d = differences()
    pairs, model = MatchedPairs(d, np.zeros(12)), RosenbaumBounds()
    expected = scipy.stats.wilcoxon(d, alternative="greater", method="exact").pvalue
    assert model.p_values(pairs, 1.0) == pytest.approx([expected] * 2, rel=1e-12)
    for ties in (False, True):
        d = differences(ties=ties)
        pairs = MatchedPairs(d, np.zeros(12))
        ranks = scipy.stats.rankdata(np.abs(d))
        signs = np.array(list(itertools.product((0, 1), repeat=12)))
        for gamma in (1.0, 2.5):
            for p, found in zip((1 / (1 + gamma), gamma / (1 + gamma)), model.p_values(pairs, gamma), strict=True):
                weight = p ** signs.sum(1) * (1 - p) ** (12 - signs.sum(1))
                brute = weight[signs @ ranks >= ranks[d > 0].sum() - 1e-9].sum()
                assert found == pytest.approx(brute, rel=1e-11)


def test_normal_limit_is_near_the_exact_law():
    pairs = MatchedPairs(differences(150, seed=1) - 0.3, np.zeros(150))
    exact = RosenbaumBounds(statistic=pg.causal.SignedRank())
    limit = RosenbaumBounds(statistic=pg.causal.SignedRank(exact_up_to=10))
    for gamma in (1.0, 1.3):
        assert limit.p_values(pairs, gamma)[1] == pytest.approx(exact.p_values(pairs, gamma)[1], rel=0.05)
    assert any("normal limit" in note for note in sensitivity(pairs, limit)["Rosenbaum bounds"].notes)


@pytest.mark.parametrize("statistic", [pg.causal.SignedRank(), pg.causal.SignTest()])
def test_effects_invert_the_tests(statistic):
    d = differences(25, seed=3)
    pairs, model = MatchedPairs(d, np.zeros(25)), RosenbaumBounds(statistic=statistic)
    one = model.effects(pairs, 1.0)
    averages = [(d[i] + d[j]) / 2 for i in range(25) for j in range(i, 25)]
    center = np.median(averages) if isinstance(statistic, pg.causal.SignedRank) else np.median(d)
    assert one == pytest.approx([center] * 2)  # no bias: the point
    for gamma in (1.0, 1.4, 2.0):
        lower, upper = model.interval(pairs, gamma)
        for sign, limit in ((1, lower), (-1, upper)):
            for inside, step in ((True, sign * 1e-9), (False, -sign * 1e-9)):
                shifted = MatchedPairs(sign * (d - limit - step), np.zeros(25))
                assert (model.p_values(shifted, gamma)[1] > 0.025) is inside
        smallest, largest = model.effects(pairs, gamma)
        assert lower < smallest <= largest < upper
    mirrored = MatchedPairs(-d, np.zeros(25))
    assert model.effects(mirrored, 2.0) == pytest.approx([-end for end in reversed(model.effects(pairs, 2.0))])


def test_amplification_is_the_bias_of_two_odds_ratios():
    assert pg.causal.amplification(1.5, 2.0) == pytest.approx(4.0)
    assert pg.causal.gamma_of_amplification(2.0, 4.0) == pytest.approx(1.5)
    for gamma, with_treatment in ((1.2, 1.7), (3.0, 50.0)):
        delta = pg.causal.amplification(gamma, with_treatment)
        assert pg.causal.gamma_of_amplification(with_treatment, delta) == pytest.approx(gamma)


def test_hidden_bias_of_a_known_size_is_not_rejected_too_often():
    """Pairs treated with the odds that the bias allows, outcomes that follow: the upper p-value keeps its level."""
    model = RosenbaumBounds(statistic=pg.causal.SignedRank(exact_up_to=0))
    rng = np.random.default_rng(0)
    gamma, alpha, count = 2.0, 0.1, 400
    rejected = []
    for _ in range(count):
        size = np.abs(rng.normal(size=100))
        better = rng.random(100) < gamma / (1 + gamma)
        rejected.append(model.p_values(MatchedPairs(np.where(better, size, -size), np.zeros(100)), gamma)[1] <= alpha)
    total = int(np.sum(rejected))
    assert 1e-5 < scipy.stats.binom.cdf(total, count, alpha) < 1 - 1e-5


def test_pairs_of_a_table():
    table = {"y": [1.0, 5.0, 2.0, 3.0], "t": [0, 1, 1, 0], "who": ["b", "a", "b", "a"]}
    pairs = MatchedPairs.of(table, "y", "t", "who")
    assert (pairs.treated.tolist(), pairs.control.tolist()) == ([5.0, 2.0], [3.0, 1.0])
    with pytest.raises(DataError, match=r"2 pairs in 'who' are not one treated unit and one control \(a, b\)"):
        MatchedPairs.of({**table, "who": ["b", "b", "b", "a"]}, "y", "t", "who")


def test_analysis_of_pairs():
    found = sensitivity(MatchedPairs(differences(40), np.zeros(40), "drug", "pain"))["Rosenbaum bounds"]
    assert found.bounds is not None
    first = found.table.loc["gamma = 1"]
    assert first["lower"] == first["upper"]
    assert first["p_lower"] == pytest.approx(first["p_upper"], rel=1e-12)
    assert (np.diff(found.table["p_upper"]) > 0).all()
    assert (np.diff(found.table["upper"] - found.table["lower"]) > 0).all()
    assert "unless hidden bias makes one unit of a pair more than" in found.text
    binary = sensitivity(MatchedPairs.discordant(15, 5))["Rosenbaum bounds"]
    assert binary.bounds is None
    assert "sign test of 20 pairs" in binary.text
    for call, message in (
        (lambda: RosenbaumBounds(gammas=(0.5,)), r"gamma must be at least 1 \(no hidden bias\) and finite, got 0\.5"),
        (lambda: RosenbaumBounds().p_values(MatchedPairs.discordant(3, 1), 0.9), "gamma must be at least 1"),
        (lambda: pg.causal.amplification(2.0, 2.0), "must be greater than gamma = 2"),
        (lambda: MatchedPairs([1.0, 2.0], [1.0]), "2 treated units and 1 controls"),
        (lambda: MatchedPairs([1.0, 2.0], [1.0, 2.0]), "no pair differs"),
        (lambda: sensitivity(MatchedPairs.discordant(3, 1), null=1.0), "Subtract it from treated"),
    ):
        with pytest.raises((DataError, MethodError), match=message):
            call()


# -- bounds by linear programming ------------------------------------------------------------------------------------


def manski_study():
    """P(T) = 0.4, P(Y | T) = 0.7 and 0.5."""
    t = np.repeat([1, 0], [400, 600])
    y = np.concatenate([np.repeat([1, 0], [280, 120]), np.repeat([1, 0], [300, 300])])
    return {"y": y, "t": t}


def test_manski_bounds():
    study = Study.of(manski_study(), "y", "t")
    assert pg.causal.Manski().bounds(study)[0] == pytest.approx((-0.42, 0.58))
    assert pg.causal.Manski(monotone_response=True).bounds(study)[0] == pytest.approx((0, 0.58))
    assert pg.causal.Manski(monotone_selection=True).bounds(study)[0] == pytest.approx((-0.42, 0.2))
    both = {"monotone_response": True, "monotone_selection": True}
    assert pg.causal.Manski(**both).bounds(study)[0] == pytest.approx((0, 0.2))
    flipped = Study.of({**manski_study(), "y": 1 - manski_study()["y"]}, "y", "t")
    assert pg.causal.Manski(**both, decreasing=True).bounds(flipped)[0] == pytest.approx((-0.2, 0))
    with pytest.raises(DataError, match="contradict the two kinds of monotonicity"):
        pg.causal.Manski(**both).bounds(flipped)


def test_manski_bounds_are_those_of_the_linear_program():
    study = manski_study()
    program = pg.causal.ResponseProgram.of(pg.causal.graph("T -> Y; T <-> Y"), {"T": 2, "Y": 2})
    counts = np.zeros((2, 2))
    np.add.at(counts, (study["t"], study["y"]), 1)
    table = xarray.DataArray(counts, dims=("T", "Y"))
    assert program.bound(table, program.effect("Y", "T")) == pytest.approx((-0.42, 0.58))
    values = program.response({"T": 1})["Y"] < program.response({"T": 0})["Y"]
    assert program.bound(table, program.effect("Y", "T"), excluded=values[:, 0]) == pytest.approx((0, 0.58))


def test_standard_errors_of_manski_bounds_are_the_bootstraps():
    rng = np.random.default_rng(0)
    t = (rng.random(800) < 0.4).astype(float)
    y = np.clip(2 * t + rng.normal(3, 1, 800), 0, 10)
    model = pg.causal.Manski((0, 10), monotone_selection=True)
    _, ses = model.bounds(Study(y, t))
    draws = []
    for _ in range(1500):
        i = rng.integers(0, 800, 800)
        draws.append(model.bounds(Study(y[i], t[i]))[0])
    # 1500 draws know a standard deviation to 1.8 %.
    assert np.std(draws, axis=0) == pytest.approx(ses, rel=5 * 0.018)


def test_imbens_manski_interval():
    two_sided, one_sided = scipy.stats.norm.ppf([0.975, 0.95])
    assert pg.causal.imbens_manski((1.0, 1.0), (0.1, 0.1)) == pytest.approx((1 - 0.1 * two_sided, 1 + 0.1 * two_sided))
    wide = pg.causal.imbens_manski((0.0, 100.0), (0.1, 0.1))
    assert wide == pytest.approx((-0.1 * one_sided, 100 + 0.1 * one_sided))


LIPID = [[[0.919, 0.0], [0.081, 0.0]], [[0.315, 0.139], [0.073, 0.473]]]
"""P(y, x | z) of the lipid trial, by z, y, x."""


def instrument():
    return pg.causal.ResponseProgram.of(pg.causal.graph("Z -> X; X -> Y; X <-> Y"), {"Z": 2, "X": 2, "Y": 2})


def test_balke_pearl_bounds_of_the_lipid_trial():
    program = instrument()
    assert program.types == 16
    table = xarray.DataArray(LIPID, dims=("Z", "Y", "X"))
    assert program.bound(table, program.effect("Y", "X")) == pytest.approx((0.392, 0.780), abs=1e-9)


def balke_pearl(p):
    """The closed form of the bounds (Balke and Pearl, 1997), with p[y, x, z]."""
    lower = max(
        p[1, 1, 1] + p[0, 0, 0] - 1,
        p[1, 1, 0] + p[0, 0, 1] - 1,
        p[1, 1, 0] - p[1, 1, 1] - p[1, 0, 1] - p[0, 1, 0] - p[1, 0, 0],
        p[1, 1, 1] - p[1, 1, 0] - p[1, 0, 0] - p[0, 1, 1] - p[1, 0, 1],
        -p[0, 1, 1] - p[1, 0, 1],
        -p[0, 1, 0] - p[1, 0, 0],
        p[0, 0, 1] - p[0, 1, 1] - p[1, 0, 1] - p[0, 1, 0] - p[0, 0, 0],
        p[0, 0, 0] - p[0, 1, 0] - p[1, 0, 0] - p[0, 1, 1] - p[0, 0, 1],
    )
    upper = min(
        1 - p[0, 1, 1] - p[1, 0, 0],
        1 - p[0, 1, 0] - p[1, 0, 1],
        -p[0, 1, 0] + p[0, 1, 1] + p[0, 0, 1] + p[1, 1, 0] + p[0, 0, 0],
        -p[0, 1, 1] + p[1, 1, 1] + p[0, 0, 1] + p[0, 1, 0] + p[0, 0, 0],
        p[1, 1, 1] + p[0, 0, 1],
        p[1, 1, 0] + p[0, 0, 0],
        -p[1, 0, 1] + p[1, 1, 1] + p[0, 0, 1] + p[1, 1, 0] + p[1, 0, 0],
        -p[1, 0, 0] + p[1, 1, 0] + p[0, 0, 0] + p[1, 1, 1] + p[1, 0, 1],
    )
    return lower, upper


def test_linear_programs_agree_with_the_closed_form_and_hold_the_truth():
    program, rng = instrument(), np.random.default_rng(0)
    effect, event = program.effect("Y", "X"), program.event(({"Y": 1}, {"X": 1}), ({"Y": 0}, {"X": 0}))
    values = program.response()
    for _ in range(25):
        law = rng.dirichlet(np.full(16, 0.3))
        p = np.zeros((2, 2, 2))
        for z in (0, 1):
            np.add.at(p[:, :, z], (values["Y"][:, z], values["X"][:, z]), law)
        table = xarray.DataArray(p, dims=("Y", "X", "Z"))
        found = program.bound(table, effect)
        assert found == pytest.approx(balke_pearl(p), abs=1e-9)
        assert found[0] - 1e-9 <= law @ effect[:, 0] <= found[1] + 1e-9
        lower, upper = program.bound(table, event)
        assert lower - 1e-9 <= law @ event[:, 0] <= upper + 1e-9


def test_queries_that_depend_on_exogenous_variables_use_their_law():
    """Z also acts on Y: the effect of X on Y averages over Z."""
    graph = pg.causal.graph("Z -> X; Z -> Y; X -> Y; X <-> Y")
    program = pg.causal.ResponseProgram.of(graph, {"Z": 2, "X": 2, "Y": 2})
    conditional = np.array(LIPID)
    counts = conditional * np.array([3.0, 1.0])[:, None, None]
    table = xarray.DataArray(counts, dims=("Z", "Y", "X"))
    # Within each z nothing is known but Manski's bounds.
    ends = []
    for z in (0, 1):
        p = conditional[z]
        ends.append((-p[1, 0] - p[0, 1], p[1, 1] + p[0, 0]))
    expected = 0.75 * np.array(ends[0]) + 0.25 * np.array(ends[1])
    assert program.bound(table, program.effect("Y", "X")) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(DataError, match="whose law the table does not have"):
        program.bound(xarray.DataArray(conditional, dims=("Z", "Y", "X")), program.effect("Y", "X"))


def test_tables_that_contradict_the_graph_are_errors():
    program = instrument()
    broken = xarray.DataArray([[[0.9, 0.0], [0.1, 0.0]], [[0.1, 0.0], [0.9, 0.0]]], dims=("Z", "Y", "X"))
    with pytest.raises(DataError, match=r"violates what the graph implies .* probabilities of 0\.4 per row"):
        program.bound(broken, program.effect("Y", "X"))
    with pytest.raises(DataError, match="expected Z, X, Y"):
        program.bound(broken.rename(Y="W"), program.effect("Y", "X"))
    with pytest.raises(DataError, match="do not occur in the table"):
        program.bound(broken * xarray.DataArray([1, 0], dims="Z"), program.effect("Y", "X"))
    with pytest.raises(ModelError, match="'Y' has the values 0 to 1, got 2"):
        program.event(({"Y": 2}, {}))
    with pytest.raises(ModelError, match="the number of values of 'X' is missing"):
        pg.causal.ResponseProgram.of(pg.causal.graph("X -> Y"), {"Y": 2})
    with pytest.raises(ModelError, match="too many for a linear program"):
        pg.causal.ResponseProgram.of(pg.causal.graph("X -> Y; X <-> Y"), {"X": 9, "Y": 9})


def test_interval_of_a_linear_program_covers():
    """At least the level, on small samples; and around the bounds of the sample, to which it shrinks."""
    program, rng = instrument(), np.random.default_rng(1)
    query, values, law = program.effect("Y", "X"), program.response(), rng.dirichlet(np.ones(16))
    p = np.zeros((2, 2, 2))
    for z in (0, 1):
        np.add.at(p[z], (values["Y"][:, z], values["X"][:, z]), law)
    table = xarray.DataArray(p, dims=("Z", "Y", "X"))
    exact = program.bound(table, query)
    missed = 0
    for _ in range(60):
        counts = np.stack([rng.multinomial(40, p[z].ravel()).reshape(2, 2) for z in (0, 1)])
        lower, upper = program.interval(table.copy(data=counts), query, level=0.8)
        missed += not lower <= exact[0] <= exact[1] <= upper
    assert missed <= scipy.stats.binom.ppf(1 - 1e-6, 60, 0.2)
    counts = table.copy(data=np.rint(p * 10**8))
    assert program.interval(counts, query) == pytest.approx(exact, abs=1e-3)
    with pytest.raises(DataError, match="needs counts, not probabilities"):
        program.interval(table, query)
    broken = table.copy(data=[[[900, 0], [100, 0]], [[100, 0], [900, 0]]])
    with pytest.raises(DataError, match="contradict the graph at the level of 95 %"):
        program.interval(broken, query)


def encouraged(n=4000, defy=0.0):
    rng = np.random.default_rng(0)
    z, u = rng.integers(0, 2, n), rng.random(n)
    t = ((u < 0.2 + 0.6 * z) ^ (rng.random(n) < defy)).astype(int)
    y = (rng.random(n) < 0.2 + 0.4 * t + 0.3 * u).astype(int)
    return {"z": np.array(["no", "yes"])[z], "t": t, "y": y}


def test_instrument_of_a_study():
    study = Study.of(encouraged(), "y", "t", instrument="z")
    found = sensitivity(study)
    assert [one.title for one in found.analyses] == ["Balke-Pearl bounds", "Manski bounds"]
    table = found["Balke-Pearl bounds"].table
    assert table.loc["instrument", "lower"] < 0.4 < table.loc["instrument", "upper"]
    assert table.loc["no instrument", ["lower", "upper"]].tolist() == pytest.approx(
        found["Manski bounds"].table.iloc[0][["lower", "upper"]].tolist()
    )
    row = table.loc["instrument"]
    assert row["ci_lower"] < row["lower"] < row["upper"] < row["ci_upper"]
    counts = pandas.crosstab(study.z, [study.y, study.t]).to_numpy().reshape(2, 2, 2).astype(float)
    p = (counts / counts.sum((1, 2), keepdims=True)).transpose(1, 2, 0)
    assert pg.causal.BalkePearl().bounds(study) == pytest.approx(balke_pearl(p), abs=1e-9)
    assert pg.causal.BalkePearl(monotone=True).bounds(study) == pytest.approx(balke_pearl(p), abs=1e-9)
    with pytest.raises(DataError, match=r"holds 0, 1, 2, expected both 0 and 1"):
        Study.of({"y": [0, 1, 1], "t": [0, 1, 2]}, "y", "t")
    with pytest.raises(MethodError, match=r"the outcome y is not binary: give its range"):
        sensitivity(Study.of({"y": [0.0, 1.5, 1], "t": [0, 1, 1]}, "y", "t"), pg.causal.Manski())
    with pytest.raises(DataError, match="outside the support"):
        sensitivity(Study.of({"y": [0.0, 1.5, 1], "t": [0, 1, 1]}, "y", "t"), pg.causal.Manski((0, 1)))


# -- weights ---------------------------------------------------------------------------------------------------------


def weighted_population():
    """Strata of x and u: true weights by both, weights by x alone are their means; all in the sample itself."""
    rng = np.random.default_rng(0)
    x, u = rng.integers(0, 4, 600), rng.integers(0, 2, 600)
    true = rng.gamma(2, 1, (4, 2))[x, u]
    true /= true.mean()
    sums = np.bincount(x, weights=true) / np.bincount(x)
    y = x + 2 * u + rng.normal(size=600)
    return y, sums[x], true


def test_bias_of_weights_is_an_identity():
    y, weights, true = weighted_population()
    subject = pg.causal.Weighting(y, weights)
    error = weights - true
    r2, rho = error.var() / true.var(), np.corrcoef(error, y)[0, 1]
    model = pg.causal.WeightsR2()
    assert model.bias(subject, r2, rho) == pytest.approx(np.mean(weights * y) - np.mean(true * y), rel=1e-11)
    assert abs(rho) <= model.largest_rho(subject)
    r = model.robustness_value(subject)
    assert model.bias(subject, r, math.sqrt(r)) == pytest.approx(subject.estimate)


def test_benchmarks_of_weights_leave_a_covariate_out():
    y, weights, true = weighted_population()
    subject = pg.causal.Weighting(y, true, contrast=10.0, without={"u": weights})
    found = sensitivity(subject, pg.causal.WeightsR2(multiples=(1.0,)))["Weights-based R2"]
    row = found.table.loc["1 x u"]
    # One like u, omitted once more, moves the estimate as far as leaving out u did, but for the larger variance.
    moved = np.mean(weights * y) - np.mean(true * y)
    assert row["r2"] / (1 - row["r2"]) == pytest.approx((weights - true).var() / true.var())
    assert row["estimate"] - subject.estimate == pytest.approx(moved, rel=1e-9)
    with pytest.raises(DataError, match="the weights without 'v' are not known"):
        sensitivity(subject, benchmarks="v")


def test_weights_of_the_treated():
    data = table_of(500)
    data["t"] = (data["d"] > 0.5).astype(int)
    subject = pg.causal.Weighting.att(data, "y", "t", ["a", "group"])
    treated = data["t"] == 1
    # Weighted means of controls are those of the treated.
    balance = np.average(data["a"][~treated], weights=subject.weights)
    assert balance == pytest.approx(data["a"][treated].mean(), abs=1e-8)
    assert subject.estimate == pytest.approx(
        data["y"][treated].mean() - np.average(data["y"][~treated], weights=subject.weights)
    )
    assert set(subject.without) == {"a", "group"}
    assert "effect of t on y among the treated" in sensitivity(subject).text
    with pytest.raises(MethodError, match="there is no overlap"):
        pg.causal.Weighting.att(data, "y", "t", ["d"])
    with pytest.raises(DataError, match="all weights are equal"):
        pg.causal.Weighting(data["y"], np.ones(500))


# -- result ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    data = table_of()
    data["t"] = (data["d"] > 0).astype(int)
    data["cured"] = (data["y"] > 0).astype(int)
    return sensitivity(Regression.fit(data, "cured", "t", ["a", "b"]))


def test_results_may_offer_several_subjects():
    pairs = MatchedPairs.discordant(15, 5)
    result = types.SimpleNamespace(sensitivity_subjects=lambda: [pairs, PRINTED], name="many ways")
    both = sensitivity(result)
    assert [one.title for one in both.analyses] == ["Cinelli-Hazlett", "Rosenbaum bounds"]
    assert both.heading == "many ways"
    assert both["Cinelli-Hazlett"].table.equals(sensitivity(PRINTED)["Cinelli-Hazlett"].table)
    with pytest.raises(MethodError, match="Manski cannot analyse this"):
        sensitivity(result, pg.causal.Manski())


def test_estimates_are_subjects():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 800))
    t = (rng.random(800) < 1 / (1 + np.exp(-0.6 * a - 0.3 * b))).astype(int)
    data = {"a": a, "b": b, "t": t, "y": t + a + 0.5 * b + rng.normal(size=800)}
    one = pg.causal.estimate(pg.causal.Adjustment("t", "y", ["a", "b"]), data, pg.causal.AIPW(), seed=0)
    found = sensitivity(one, [pg.causal.OmittedVariableBias(), pg.causal.EValue()], benchmarks="b")
    assert [part.title for part in found.analyses] == ["Omitted-variable bias", "E-value"]
    bare = sensitivity(one.riesz(), pg.causal.OmittedVariableBias())["Omitted-variable bias"]
    assert bare.table.iloc[0].tolist() == found["Omitted-variable bias"].table.iloc[0].tolist()[: bare.table.shape[1]]
    row = found["Omitted-variable bias"].table.loc["1 x b"]
    assert 0 < row["cf_d"] < 0.1 < row["cf_y"] < 0.5
    assert row["rho_observed"] > 0.5
    bound = sensitivity(one, pg.causal.Manski((data["y"].min(), data["y"].max()))).table.iloc[0]
    assert bound["lower"] < one.value < bound["upper"]


def test_all_models_that_fit_are_asked(found):
    assert [one.title for one in found.analyses] == ["Cinelli-Hazlett", "Manski bounds", "E-value"]
    assert list(found.table.columns) == ["model", "scenario", "lower", "upper", "ci_lower", "ci_upper"]
    assert len(found.table) == sum(len(one.scenarios) for one in found.analyses)
    assert set(found.measures["model"]) == set(found.table["model"])
    assert found.text.count("\n\n") == 2
    shown = repr(found)
    for part in ("Sensitivity of the effect of t on cured", "robustness value", "1 x a", "no assumption", "E-value"):
        assert part in shown


def test_result_as_a_tree(found, tmp_path):
    tree = found.to_datatree()
    one = tree["Cinelli-Hazlett"]
    assert one["estimate"].sel(scenario="1 x a").item() == found["Cinelli-Hazlett"].table.loc["1 x a", "estimate"]
    assert one["robustness_value"].item() == found["Cinelli-Hazlett"].measures[0].value
    tree.to_netcdf(tmp_path / "s.nc", engine="h5netcdf")
    assert xarray.open_datatree(tmp_path / "s.nc")["E-value"].attrs["text"] == found["E-value"].text


def test_figures_are_made_without_pyplot(found):
    for figure in (found.plot_contour(), found.plot_extreme(), found.plot_tipping(), found.plot_bounds()):
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
    assert len(found.plot_contour().axes) == 2
    labels = {text.get_text() for text in found.plot_contour().axes[0].texts}
    assert labels & set(found["Cinelli-Hazlett"].table.index)
    with pytest.raises(MethodError, match="Manski bounds has no tipping curve to draw"):
        found["Manski bounds"].plot_tipping()


def test_report_of_a_sensitivity_analysis(found, tmp_path):
    page = pg.report(found, tmp_path / "s.html").read_text(encoding="utf-8")
    for part in ("Hidden confounding: Cinelli-Hazlett", "Hidden confounding: E-value", "1 x a", "In words"):
        assert part in page
    assert page.count("<svg") >= 6
    assert "could not be made" not in page
    for picture in page.split("<svg")[1:]:
        xml.etree.ElementTree.fromstring("<svg" + picture.partition("</svg>")[0] + "</svg>")
    with pytest.raises(DataError, match=r"sensitivity must be what pg\.causal\.sensitivity returned"):
        pg.report(found, tmp_path / "s.html", sensitivity=3)


def test_numbers_in_sentences():
    assert [figures(x) for x in (0.09731582, 1234.5, 12345678.0, 0.0999996, 2.0, 0, 1e-9)] == [
        "0.0973", "1,234", "1.23e+07", "0.100", "2.00", "0", "1.00e-09",
    ]  # fmt: skip
    assert interval((-0.00625, 0.06705)) == "-0.0063 to 0.0670"
    assert interval((-0.0000001, 5.0)) == "0.00 to 5.00"


# -- command line ----------------------------------------------------------------------------------------------------


def probgen(*args):
    return CliRunner().invoke(app, ["causal", *map(str, args)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.csv"
    pandas.DataFrame(table_of()).to_csv(path, index=False)
    return path


def test_command_line(file, tmp_path):
    names = ["--treatment", "d", "--outcome", "y", "--covariates", "a, b,group"]
    out = tmp_path / "out.html"
    result = probgen("sensitivity", file, *names, "--benchmarks", "a,b+group", "--report", out)
    assert result.exit_code == 0, result.output
    fit = Regression.fit(table_of(), "y", "d", ["a", "b", "group"])
    value = pg.causal.robustness_value(fit.estimate / fit.se, fit.dof)
    for part in (f"{100 * value:.4g} %", "1 x b + group", f"Report: {out}"):
        assert part in result.stdout
    assert "Hidden confounding" in out.read_text(encoding="utf-8")


def test_command_line_identifies():
    result = probgen("identify", "W->X; W->Y; X->Y", "P(Y | do(X))")
    assert result.exit_code == 0, result.output
    assert "Σ_w P(w) P(y | x, w)" in result.stdout
    refused = probgen("identify", "X->Y; X<->Y", "P(Y | do(X))")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--treatment", "x", "--outcome", "y"], 1, "the data have no column 'x'"),
        (["--outcome", "y"], 2, "--treatment"),
        (["--treatment", "d", "--outcome", "y", "--level", "95"], 2, "95.0 is not between 0 and 1"),
        (["--treatment", "d", "--outcome", "y", "--report", "out.txt"], 1, "expected '.html'"),
    ],
)
def test_command_line_tells_what_is_wrong(file, args, code, message):
    result = probgen("sensitivity", file, *args)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensitivity(PRINTED).plot_contour()


# -- awkward data and edge cases -------------------------------------------------------------------------------------


def awkward():
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    d = (a + rng.normal(size=60) > 0).astype(int)
    return pandas.DataFrame({"y": d + a + rng.normal(size=60), "d": d, "a": a})


def test_columns_of_pandas_kinds():
    data = awkward()
    codes = np.arange(60) % 3 + 1
    text = pandas.Series(codes).map({1: "u", 2: "v", 3: "w"})
    whole = Regression.fit(data.assign(g=text), "y", "d", ["a", "g"])
    for kind in (pandas.Categorical(codes), text.astype("string"), text.astype("category")):
        found = Regression.fit(data.assign(g=kind), "y", "d", ["a", "g"])
        assert found.estimate == pytest.approx(whole.estimate, rel=1e-12)
        assert found.benchmark("g").outcome == pytest.approx(whole.benchmark("g").outcome, rel=1e-9)
    number = Regression.fit(data.assign(g=pandas.array(codes, dtype="Int64")), "y", "d", ["a", "g"])
    assert number.dof == whole.dof + 1
    mixed = data.assign(g=pandas.Series([1, "b"] * 30, dtype=object))
    assert Regression.fit(mixed, "y", "d", "a", clusters="g").clusters == 2
    assert set(map(str, np.asarray(Study.of(mixed, "y", "d", instrument="g").z))) == {"1", "b"}
    by_number = Regression.fit(data.set_axis([0, 1, 2], axis=1), 0, 1, [2])  # pyright: ignore
    assert by_number.estimate == Regression.fit(data, "y", "d", "a").estimate
    assert by_number.covariates == ("2",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: Regression.fit(t.assign(g=pandas.array(["u", None] * 30, dtype="string")), "y", "d", ["g"]),
            "30 mis",
        ),
        (lambda t: Regression.fit(t.iloc[:0], "y", "d", ["a"]), "no rows"),
        (lambda t: Regression.fit(pandas.concat([t, t[["a"]]], axis=1), "y", "d", ["a"]), "2 columns named 'a'"),
        (lambda t: Regression.fit({**t, "c": np.arange(5)}, "y", "d", ["a"], clusters="c"), "has 5 rows"),
        (lambda t: pg.causal.Weighting.att(t, "y", "d", ["a", "d"]), "named more than once"),
        (lambda t: pg.causal.Weighting.att({**t, "a": np.arange(50.0)}, "y", "d", ["a"]), "different lengths"),
        (lambda t: sensitivity(PRINTED, null=math.nan), "null must be"),
        (lambda t: sensitivity(PRINTED, level="0.9"), "level must"),  # pyright: ignore
        (lambda t: sensitivity(PRINTED, benchmarks=[1]), "benchmarks must be"),  # pyright: ignore
        (lambda t: sensitivity(PRINTED, CinelliHazlett), "must be sensitivity models"),  # pyright: ignore
        (lambda t: CinelliHazlett(kd=2), "kd must be several"),  # pyright: ignore
        (lambda t: RosenbaumBounds(gammas=2.0), "gammas must be several"),  # pyright: ignore
        (lambda t: pg.causal.WeightsR2(multiples=2.0), "multiples must be several"),  # pyright: ignore
        (lambda t: pg.causal.EValue(strengths=(2.0, 2.0)), "pairs of risk ratios"),  # pyright: ignore
        (lambda t: pg.causal.Manski(support=(0.0,)), "support must be"),  # pyright: ignore
        (lambda t: sensitivity(pg.causal.OddsRatio(2.0), null=-1.0), "must be positive"),
        (lambda t: sensitivity(pg.causal.HazardRatio(2.0), null=-1.0), "must be positive"),
        (lambda t: pg.causal.MeanDifference(1000.0), "standard deviations"),
    ],
)
def test_awkward_input_is_told(call, message):
    with pytest.raises((DataError, MethodError), match=message):
        call(awkward())


def test_effects_too_large_for_a_risk_ratio_leave_the_e_value_out():
    found = sensitivity(Regression(-1000.0, 20.0, 100, outcome_sd=1.0))
    assert [one.title for one in found.analyses] == ["Cinelli-Hazlett"]
    with pytest.raises(MethodError, match="smaller units"):
        sensitivity(Regression(-1000.0, 20.0, 100, outcome_sd=1.0), pg.causal.EValue())


def test_an_estimate_at_the_null_has_nothing_to_explain():
    regression = Regression(0.0, 0.05, 200, "d", "y", {"a": PartialR2(0.02, 0.03)}, outcome_sd=1.0)
    text = sensitivity(regression).text
    assert "account for" not in text
    assert "explained away" not in text
    assert "or beyond" not in text
    assert sensitivity(regression)["E-value"].tipping is None
    noise = np.random.default_rng(0).normal(size=(2, 100))
    assert "is 0 already" in sensitivity(pg.causal.RieszEstimate.partially_linear(0.0, *noise)).text


def test_few_degrees_of_freedom_do_not_contradict_the_interval():
    found = sensitivity(Regression(2.8, 1.0, 5, outcome_sd=5.0))
    assert found["Cinelli-Hazlett"].measures[1].value == 0
    assert "interval excludes 0, but" in found.text
    # t of 2.2 with 5 degrees of freedom is not significant, on no scale.
    assert sensitivity(Regression(2.2, 1.0, 5, outcome_sd=5.0))["E-value"].measures[1].value == 1


def test_two_sided_tests_of_pairs_see_both_directions():
    down, up = MatchedPairs.discordant(5, 15), MatchedPairs.discordant(15, 5)
    model = RosenbaumBounds(two_sided=True)
    assert model.p_values(down, 1.5) == pytest.approx(model.p_values(up, 1.5))
    assert model.p_values(down, 1.0)[1] == pytest.approx(scipy.stats.binomtest(5, 20).pvalue)
    assert "of a smaller outcome" in sensitivity(down, model).text
    assert "not significant at the level of 5 % even without hidden bias" in sensitivity(down).text


def test_weights_are_found_where_there_is_little_to_balance():
    for seed in (5, 10, 15, 17):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, 200))
        t = (0.3 * a + rng.normal(size=200) > 0).astype(float)
        found = pg.causal.Weighting.att({"y": a + b, "t": t, "a": a, "b": b}, "y", "t", ["a", "b"])
        assert np.mean(found.without["a"] * b[t == 0]) == pytest.approx(b[t == 1].mean(), abs=1e-9)


def test_weights_that_cannot_explain_so_much_are_told():
    a, u = np.random.default_rng(1).normal(size=(2, 200))
    found = pg.causal.Weighting(3 + a + u, np.exp(0.4 * a))
    model, one = pg.causal.WeightsR2(), sensitivity(found)
    rho = model.largest_rho(found)
    assert model.robustness_value(found) > rho**2
    needed = float(one.text.partition("less than ")[2].partition(" %")[0]) / 100
    assert model.bias(found, needed, rho) == pytest.approx(found.estimate, rel=0.02)


def test_one_model_with_several_settings_keeps_all():
    found = sensitivity(PRINTED, [CinelliHazlett(), CinelliHazlett(increases=True)])
    assert len(found.to_datatree().children) == 2
    assert found["Cinelli-Hazlett (2)"].scenarios[0].lower > found["Cinelli-Hazlett"].scenarios[0].lower


def test_names_of_benchmarks_do_not_cover_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    marks = {f"covariate {i}": PartialR2(0.1 + 0.01 * i, 0.12 + 0.01 * i) for i in range(3)}
    figure = sensitivity(Regression(0.3, 0.05, 200, benchmarks=marks)).plot_tipping()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) >= 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
