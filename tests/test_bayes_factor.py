"""Bayes factors from results that carry an evidence."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray

import probgen as pg
from probgen.check.bayes_factor import strength


def result(log_evidence, se=0.05, y=(1.0, 2.0), **attrs):
    observed = xarray.Dataset({"y": ("row", np.array(y))})
    tree = xarray.DataTree.from_dict({"observed_data": observed})
    tree.attrs = {"method": "smc", "log_evidence": log_evidence, "log_evidence_se": se, **attrs}
    return tree


def mean(width, y):
    mu = numpyro.sample("mu", dist.Normal(0, width))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_exact_evidences_give_the_closed_form():
    y = np.array([0.4, -0.1, 0.8])
    trees = {f"width {w}": pg.infer(pg.Model(mean, {"width": w, "y": y}), pg.Exact(), draws=10) for w in (1.0, 10.0)}

    def log_z(width):
        covariance = np.eye(3) + width**2
        return -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + y @ np.linalg.solve(covariance, y))

    factors = pg.check.bayes_factor(trees)
    value, se = factors.log_bayes_factor("width 1.0", "width 10.0")
    np.testing.assert_allclose(value, log_z(1.0) - log_z(10.0))
    assert se == 0
    assert factors.names[0] == "width 1.0"
    np.testing.assert_allclose(factors.probability[0], 1 / (1 + np.exp(-value)))
    assert not factors.findings.problems


def test_probabilities_and_their_errors():
    trees = {"a": result(-10.0, 0.1), "b": result(-9.0, 0.2), "c": result(-12.0, 0.05)}
    factors = pg.check.bayes_factor(trees, prior={"a": 2.0, "b": 1.0, "c": 1.0})
    assert factors.names == ("b", "a", "c")
    weight = np.array([1.0, 2 * np.exp(-1.0), np.exp(-3.0)])
    np.testing.assert_allclose(factors.probability, weight / weight.sum())
    np.testing.assert_allclose(factors.log_bayes_factor("b", "a"), (1.0, np.hypot(0.1, 0.2)))
    # First-order errors, against simulation.
    rng = np.random.default_rng(0)
    log_z = np.array([-9.0, -10, -12]) + rng.normal(size=(200_000, 3)) * [0.2, 0.1, 0.05]
    p = np.exp(log_z) * [1, 2, 1]
    np.testing.assert_allclose(factors.probability_se, (p / p.sum(1, keepdims=True)).std(0), rtol=0.05)
    table = factors.to_dataframe()
    assert list(table.index) == ["b", "a", "c"]
    assert table.loc["c", "log_bayes_factor"] == pytest.approx(-3.0)
    text = repr(factors)
    assert "-9.00 ± 0.20" in text
    assert "evidence for b against a" in text


def test_words():
    tens = np.log(10)
    said = [strength(x * tens) for x in (0.2, -0.7, 1.2, 1.7, 3.0)]
    assert said == ["barely worth mentioning", "substantial", "strong", "very strong", "decisive"]


def test_large_errors_are_found():
    findings = pg.check.bayes_factor({"a": result(-10.0, 0.6), "b": result(-14.0, 0.1)}).findings
    assert "standard error of 0.61" in findings[0].what
    findings = pg.check.bayes_factor({"a": result(-10.0, 0.2), "b": result(-10.1, 0.2)}).findings
    assert len(findings.problems) == 1
    findings = pg.check.bayes_factor({"a": result(-10.0, np.nan), "b": result(-20.0, 0.2)}).findings
    assert "no standard error" in findings[0].what
    findings = pg.check.bayes_factor({"a": result(-10.0, pareto_k=0.9), "b": result(-20.0)}).findings
    assert "Pareto k-hat 0.90" in findings[0].what


def test_what_cannot_be_compared_is_refused():
    good = result(-10.0)
    with pytest.raises(pg.DataError, match="at least two fits"):
        pg.check.bayes_factor({"a": good})
    none = result(-10.0)
    del none.attrs["log_evidence"]
    with pytest.raises(pg.MethodError, match=r"'b' \(smc\) has no log evidence.*improper"):
        pg.check.bayes_factor({"a": good, "b": none})
    with pytest.raises(pg.MethodError, match="log evidence of 'b' is -inf"):
        pg.check.bayes_factor({"a": good, "b": result(-np.inf)})
    with pytest.raises(pg.DataError, match="different observations of 'y'"):
        pg.check.bayes_factor({"a": good, "b": result(-10.0, y=(1.0, 3.0))})
    with pytest.raises(pg.DataError, match="different observations of 'y'"):
        pg.check.bayes_factor({"a": good, "b": result(-10.0, y=(1.0, 2.0, 3.0))})
    other = result(-10.0)
    other["observed_data"] = xarray.DataTree(xarray.Dataset({"z": ("row", np.ones(2))}))
    with pytest.raises(pg.DataError, match="observations of 'y' and 'b' has none"):
        pg.check.bayes_factor({"a": good, "b": other})
    with pytest.raises(pg.MethodError, match="do not name the same models"):
        pg.check.bayes_factor({"a": good, "b": good}, prior={"a": 1.0})
    with pytest.raises(pg.MethodError, match="must be positive"):
        pg.check.bayes_factor({"a": good, "b": good}, prior={"a": 1.0, "b": 0.0})
    with pytest.raises(pg.MethodError, match="there is no model 'd'"):
        pg.check.bayes_factor({"a": good, "b": good}).log_bayes_factor("a", "d")
