"""Coverage, TARP, C2ST, predictive checks, comparison and recovery against closed forms."""

import builtins

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from scipy import stats

import probgen as pg
from probgen.check.check import check
from probgen.check.sbc import ranked


def posteriors(scale=1.0, shift=0.0, correlation=0.0, claimed=0.0, datasets=500, draws=99, seed=0):
    """Truths of known Gaussian posteriors, and draws of Gaussians that are off by a scale, a shift, a correlation."""
    rng = np.random.default_rng(seed)
    root, wrong = (np.linalg.cholesky([[1.0, r], [r, 1.0]]) for r in (correlation, claimed))
    center = 3 * rng.normal(size=(datasets, 2))
    truth = center + rng.normal(size=(datasets, 2)) @ root.T
    drawn = center[:, None] + shift + scale * rng.normal(size=(datasets, draws, 2)) @ wrong.T
    truths = xarray.Dataset({"x": (("dataset", "axis"), truth)}, {"axis": ["a", "b"]})
    found = xarray.Dataset({"x": (("dataset", "draw", "axis"), drawn)}, {"axis": ["a", "b"]})
    return xarray.DataTree.from_dict({"truth": truths, "posterior": found})


# -- coverage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "shape"), [(1.0, ""), (0.75, "too narrow"), (1.5, "too wide")])
def test_coverage_is_that_of_the_gaussian(scale, shape):
    """An interval of draws whose sd is c times the right one covers 2 Phi(c z) - 1."""
    result = check.coverage(posteriors(scale, datasets=1000))
    level = result.curve["ecdf_level"].values
    expected = 2 * stats.norm.cdf(scale * stats.norm.ppf((1 + level) / 2)) - 1
    # Largest deviation of 49 correlated binomials over two coordinates.
    z = (result.curve["x"].values - expected[:, None]) / np.sqrt(expected * (1 - expected) / 1000)[:, None]
    assert np.abs(z).max() < 4.5
    assert bool(result.findings) == bool(shape)
    assert all(shape in finding.what for finding in result.findings)
    inside = (result.band["lower"] <= result.curve["x"]) & (result.curve["x"] <= result.band["upper"])
    assert bool(inside.all()) == (not shape)
    assert set(result.to_dataframe().index) == {"x[a]", "x[b]"}


def test_coverage_reads_several_chains_and_sbc_results():
    tree = posteriors(draws=100)
    chains = tree.copy()
    draws = tree["posterior"].to_dataset()["x"].values.reshape(500, 4, 25, 2)
    chains["posterior"] = xarray.DataTree(xarray.Dataset({"x": (("dataset", "chain", "draw", "axis"), draws)}))
    assert check.coverage(chains).curve["x"].values == pytest.approx(check.coverage(tree).curve["x"].values)


# -- TARP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, False),
        ({"correlation": 0.9, "claimed": 0.9}, False),
        ({"scale": 0.7}, True),
        ({"scale": 1.5}, True),
        ({"shift": 0.7}, True),
        ({"correlation": 0.9, "claimed": -0.5}, True),
    ],
    ids=str,
)
def test_tarp_sees_the_joint_posterior(settings, found):
    tree = posteriors(**settings, datasets=800)
    assert bool(check.tarp(tree, seed=1).findings) == found
    if "claimed" in settings:  # each coordinate by itself is right
        assert not check.coverage(tree).findings


def test_tarp_rings_at_its_nominal_rate():
    p = np.array([float(check.tarp(posteriors(seed=s, datasets=60), seed=s).p_values["distance"]) for s in range(200)])
    assert stats.kstest(p, "uniform").pvalue > 1e-4
    assert (p < 0.1).mean() < 0.1 + 4.5 * np.sqrt(0.09 / 200)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (xarray.DataTree(), "no group 'truth'"),
        (xarray.DataTree.from_dict({"truth": xarray.Dataset({"x": ("dataset", [1.0, 2.0])})}), "no group 'posterior'"),
        (
            xarray.DataTree.from_dict(
                {
                    "truth": xarray.Dataset({"x": ("dataset", [1.0, 2.0])}),
                    "posterior": xarray.Dataset({"y": (("dataset", "draw"), np.ones((2, 3)))}),
                }
            ),
            "no variable in common",
        ),
        (
            xarray.DataTree.from_dict(
                {
                    "truth": xarray.Dataset({"x": ("dataset", [1.0, 1.0])}),
                    "posterior": xarray.Dataset({"x": (("dataset", "draw"), np.ones((2, 3)))}),
                }
            ),
            "constant|same in every data set",
        ),
    ],
)
def test_errors_of_trees(tree, message):
    for function in (check.coverage, check.tarp):
        with pytest.raises(pg.DataError, match=message):
            function(tree)


def test_tarp_names_a_wrong_site():
    with pytest.raises(pg.DataError, match="sites names 'z'"):
        check.tarp(posteriors(datasets=10), sites=["z"])


def test_findings_ring_falsely_in_one_check_of_a_hundred():
    """Two quantities per check, whose p-values are multiplied by two."""
    checks, rng = 300, np.random.default_rng(0)
    alarms = sum(bool(ranked(posteriors(seed=1000 + s, datasets=80, draws=19), rng).findings) for s in range(checks))
    assert alarms <= stats.binom.isf(1e-6, checks, 0.01)


# -- C2ST --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0.0, 1.5])
def test_c2st_is_the_accuracy_of_the_best_classifier(distance):
    """Between N(0, 1) and N(d, 1) the best accuracy is Phi(d / 2); a small net on 1500 draws comes near to it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1500, 1)), rng.normal(distance, 1, (1500, 1))
    found, best = check.c2st(x, y), stats.norm.cdf(distance / 2)
    se = np.sqrt(best * (1 - best) / 3000)
    assert best - 0.02 - 3 * se < found < best + 4.5 * se


def test_c2st_compares_trees_by_site():
    rng = np.random.default_rng(1)

    def tree(shift):
        draws = {"a": rng.normal(size=(2, 300)), "b": rng.normal(shift, 1, (2, 300, 2))}
        group = xarray.Dataset({"a": (("chain", "draw"), draws["a"]), "b": (("chain", "draw", "i"), draws["b"])})
        return xarray.DataTree.from_dict({"posterior": group})

    first, second = tree(0.0), tree(6.0)
    assert check.c2st(first, second) > 0.99
    assert check.c2st(first, second, sites=["a"]) == pytest.approx(0.5, abs=4.5 * np.sqrt(0.25 / 1200) + 0.02)
    with pytest.raises(pg.DataError, match="sites names 'c'"):
        check.c2st(first, second, sites=["c"])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((5, 1)), np.zeros((5, 1)), "constant"),
        (np.ones((5, 1)), np.zeros((6, 1)), "5 draws and the approximation 6"),
        (np.ones((5, 1)), np.zeros((5, 2)), "one dim"),
        (np.arange(5.0)[:, None], np.full((5, 1), np.nan), "the approximation has values that are not finite"),
        (np.ones((5, 1)), xarray.DataTree(), "DataTree and the other an array"),
    ],
)
def test_errors_of_c2st(x, y, message):
    with pytest.raises(pg.DataError, match=message):
        check.c2st(x, y)


def test_c2st_says_what_it_needs(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(pg.MethodError, match="needs scikit-learn, which is not installed"):
        check.c2st(np.ones((5, 1)), np.ones((5, 1)))


# -- one normal mean, for which all is known ---------------------------------------------------------------------------

Y = np.array([1.2, -0.4, 0.8, 2.1, 0.3, 1.7, -0.9, 0.6, 1.1, 0.2, 0.9, 1.5])
N = len(Y)


def mean(y=None, sd=1.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(mu, sd), obs=y)


MODEL = pg.Model(mean, {"y": Y})
PRECISION = 1 / 4 + N
CENTER = Y.sum() / PRECISION


@pytest.fixture(scope="module")
def tree():
    return pg.infer(MODEL, pg.Exact(), draws=2500, seed=0)


def test_posterior_predictive_p_values_are_those_of_the_closed_form(tree):
    """The replicated mean is N(m, 1 / precision + 1 / n)."""
    statistics = {"mean": np.mean, "first": lambda y: y[0]}
    result = check.posterior_predictive(MODEL, tree, statistics, seed=1)
    expected = {
        "mean": stats.norm.sf(Y.mean(), CENTER, np.sqrt(1 / PRECISION + 1 / N)),
        "first": stats.norm.sf(Y[0], CENTER, np.sqrt(1 / PRECISION + 1)),
    }
    for name, p in expected.items():
        assert abs(float(result.p_values["y"].sel(statistic=name)) - p) < 4.5 * np.sqrt(p * (1 - p) / 10_000)
    assert not result.findings
    assert "posterior_predictive" not in tree.children
    # LOO-PIT: y_i given the others is N(m_-i, 1 / precision_-i + 1).
    others = PRECISION - 1
    exact = stats.norm.cdf(Y, (Y.sum() - Y) / others, np.sqrt(1 / others + 1))
    np.testing.assert_allclose(result.loo_pit["y"], exact, atol=4.5 * np.sqrt(0.25 / 5000))
    assert result.plot().axes


def test_data_that_the_model_does_not_make_are_found():
    y = np.concatenate([Y[:-1], [9.0]])
    model = pg.Model(mean, {"y": y})
    result = check.posterior_predictive(model, pg.infer(model, pg.Exact(), draws=500, seed=0), seed=0)
    (finding,) = result.findings.of_kind("predictive")
    assert "max of y" in finding.variables
    table = result.to_dataframe().set_index("statistic")
    assert table.loc["max", "observed"] == 9.0
    assert table.loc["max", "p_value"] < 0.005
    assert set(table.index) == {"mean", "sd", "min", "max"}


def test_ties_of_a_statistic_count_half(tree):
    result = check.posterior_predictive(MODEL, tree, {"size": len}, seed=0)
    assert float(result.p_values["y"].sel(statistic="size")) == 0.5


def test_errors_of_posterior_predictive(tree):
    with pytest.raises(pg.MethodError, match=r"statistics\['m'\] is 3"):
        check.posterior_predictive(MODEL, tree, {"m": 3})
    with pytest.raises(pg.DataError, match=r"statistic 'm' gave .* expected a number"):
        check.posterior_predictive(MODEL, tree, {"m": lambda y: y[:2]})
    with pytest.raises(pg.MethodError, match="statistics is empty"):
        check.posterior_predictive(MODEL, tree, {})


def test_comparison_is_leave_one_out(tree):
    """Exact leave-one-out densities of both models, and all the stacking weight on the right one."""

    def wide(y=None):
        mean(y, 5.0)

    other = pg.Model(wide, {"y": Y})
    trees = {"right": tree, "wide": pg.infer(other, pg.Exact(), draws=2500, seed=1)}
    table = check.compare(trees, {"right": MODEL, "wide": other})
    for name, sd in [("right", 1.0), ("wide", 5.0)]:
        others = 1 / 4 + (N - 1) / sd**2
        exact = stats.norm.logpdf(Y, (Y.sum() - Y) / sd**2 / others, np.sqrt(1 / others + sd**2)).sum()
        assert table.loc[name, "elpd"] == pytest.approx(exact, abs=0.05)
    assert table.index[0] == "right"
    assert table.loc["right", "weight"] > 0.99
    with pytest.raises(pg.MethodError, match=r"'wide' has no group 'log_likelihood'. Pass its model"):
        check.compare(trees, {"right": MODEL})
    with pytest.raises(pg.DataError, match="at least two fits"):
        check.compare({"right": tree})
    shifted = pg.Model(mean, {"y": Y + 1})
    with pytest.raises(pg.DataError, match="'b' and 'a' have different observations of 'y'"):
        check.compare({"a": tree, "b": pg.infer(shifted, pg.Exact(), draws=50)}, {"a": MODEL, "b": shifted})


# -- recovery ----------------------------------------------------------------------------------------------------------


def test_recovery_is_that_of_the_closed_form():
    """Posterior variance 1 / precision: rmse, contraction and correlation follow from it and the prior's."""
    count = 200
    method = pg.Laplace()  # exact here
    result = check.simulate_recover(
        pg.Model(mean), method, datasets=count, draws=400, weighted=False, seed=0, progress=False
    )
    row = result.table.loc["mu"]
    variance = 1 / PRECISION
    assert abs(row["bias"]) < 4.5 * row["bias_se"]
    assert row["bias_se"] == pytest.approx(np.sqrt(variance / count), rel=4.5 / np.sqrt(2 * count))
    # Posterior means of 400 draws add a 400th of the variance.
    assert row["rmse"] == pytest.approx(np.sqrt(variance * (1 + 1 / 400)), rel=4.5 / np.sqrt(2 * count))
    assert row["contraction"] == pytest.approx(1 - variance / 4, abs=0.01)
    assert row["prior_sd"] == pytest.approx(2.0, rel=4.5 / np.sqrt(2 * 2000))
    r = np.sqrt(1 - variance / 4)
    spearman = 6 / np.pi * np.arcsin(r / 2)
    assert row["correlation"] == pytest.approx(spearman, abs=4.5 * 1.1 * (1 - r**2) / np.sqrt(count) + 0.01)
    for level in (0.5, 0.9):
        assert abs(row[f"coverage_{level * 100:.0f}"] - level) < 4.5 * np.sqrt(level * (1 - level) / count)
    assert not result.findings
    assert result.plot().axes[0].get_title().startswith("mu")


def test_a_design_that_cannot_tell_is_told():
    """Two effects of which only the sum is seen, and one that is held where it matters."""

    def program(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 10.0))
        numpyro.deterministic("total", a + b)
        with numpyro.plate("row", 20):
            numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    model = pg.Model(program)
    result = check.simulate_recover(model, pg.Laplace(), datasets=60, at={"a": 2.0}, seed=0, progress=False)
    (finding,) = result.findings.of_kind("contraction")
    assert finding.variables == ("a",)
    assert result.table.loc["total", "contraction"] > 0.95
    assert (result.tree["truth/a"] == 2.0).all()
    # Held at two prior sds, a is drawn back to its prior: the posterior does not know where it was held.
    assert result.table.loc["a", "bias"] == pytest.approx(-2.0, abs=0.2)
    assert np.isnan(result.table.loc["a", "correlation"])
    assert "a " in repr(result)


def test_recovery_without_a_prior_needs_values():
    def flat(y=None):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("row", 20):
            numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    with pytest.raises(pg.MethodError, match=r"'a' has an improper prior, so pg.check.simulate_recover cannot draw it"):
        check.simulate_recover(pg.Model(flat), datasets=10)
    result = check.simulate_recover(pg.Model(flat), pg.Laplace(), datasets=50, at={"a": 1.0}, seed=0, progress=False)
    row = result.table.loc["a"]
    assert row["rmse"] == pytest.approx(1 / np.sqrt(20), rel=0.5)
    assert np.isnan(row["contraction"])
    assert "50 data sets" in repr(result.findings)


def test_the_namespace():
    assert "sbc" in repr(check)
    posterior = xarray.Dataset({"a": (("chain", "draw"), np.random.default_rng(0).normal(size=(4, 500)))})
    assert not check(xarray.DataTree.from_dict({"posterior": posterior})).problems
