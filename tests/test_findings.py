"""Findings: planted faults are found and named, a healthy result says so."""

import json

import numpy as np
import pytest
import xarray

import probgen as pg
from probgen.check.check import check
from probgen.check.findings import Severity


def tree(posterior=None, stats=None, chains=4, draws=500, **attrs):
    """Independent normal draws, which every check must pass, with what a test puts in their place."""
    rng = np.random.default_rng(0)
    healthy = {
        "mu": rng.normal(size=(chains, draws)),
        "theta": rng.normal(size=(chains, draws, 3)),
        "one": np.ones((chains, draws, 2)),
    }
    dims = {"theta": ["school"]}
    numbers = {
        "diverging": np.zeros((chains, draws), bool),
        "tree_depth": np.full((chains, draws), 3),
        "energy": rng.normal(size=(chains, draws)),
    }
    values = {**healthy, **(posterior or {})}
    made = xarray.DataTree.from_dict(
        {
            "posterior": xarray.Dataset(
                {
                    k: (["chain", "draw", *dims.get(k, [f"{k}_{i}" for i in range(v.ndim - 2)])], v)
                    for k, v in values.items()
                },
                coords={"school": ["A", "B", "C"]},
            ),
            "sample_stats": xarray.Dataset(
                {k: (["chain", "draw"], v) for k, v in {**numbers, **(stats or {})}.items()}
            ),
        }
    )
    made.attrs = {"ended": "completed", "settings": json.dumps({"max_tree_depth": 10}), **attrs}
    return made


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def test_a_healthy_result_says_so():
    findings = check(tree())
    assert not findings
    text = repr(findings)
    assert text.startswith("No problems found: rank R-hat at most 1.0")
    for part in ("bulk ESS at least", "tail ESS at least", "no divergences", "tree depth never", "E-BFMI at least"):
        assert part in text
    assert findings.to_dataframe().empty


def test_the_numbers_are_those_of_arviz():
    import arviz

    result = tree()
    text = repr(check(result))
    varying = result["posterior"].to_dataset()[["mu", "theta"]]
    summary = arviz.summary(varying, round_to="none")
    # Tails as in Vehtari et al. (2021); the default of ArviZ looks at the 11 % and 89 % quantiles.
    tail = arviz.ess(varying, method="tail", prob=(0.05, 0.95))
    assert f"rank R-hat at most {summary['r_hat'].max():.3f}" in text
    assert f"bulk ESS at least {summary['ess_bulk'].min():.0f}" in text
    assert f"tail ESS at least {min(float(v.min()) for v in tail.values()):.0f}" in text


def test_a_constant_chain():
    mu = np.random.default_rng(1).normal(size=(4, 500))
    mu[2] = 0.3
    findings = check(tree({"mu": mu}))
    assert findings[0].severity is Severity.error
    assert findings[0].what == "chain 2 did not move"
    assert findings[0].where == "mu"
    every = check(tree({"mu": np.tile(np.arange(4.0)[:, None], 500)}))
    assert [f.what for f in every if "did not move" in f.what] == [f"chain {i} did not move" for i in range(4)]


def test_nothing_moves():
    frozen = {"mu": np.ones((4, 500)), "theta": np.ones((4, 500, 3))}
    assert check(tree(frozen))[0].what == "every draw of every variable is the same"


def test_discrete_variables_may_be_constant_in_a_chain():
    z = np.random.default_rng(2).integers(0, 2, (4, 500))
    assert not check(tree({"z": z}))
    quiet = np.zeros((4, 500), int)
    assert not check(tree({"z": quiet}))


def test_disagreeing_chains():
    theta = np.random.default_rng(1).normal(size=(4, 500, 3))
    theta[1, :, 2] += 5
    findings = check(tree({"theta": theta}))
    rhat = next(f for f in findings if "R-hat" in f.what)
    assert rhat.severity is Severity.error
    assert "in 1 of 4 values" in rhat.what
    assert rhat.where.startswith("theta[C] (")
    assert all("theta[C]" in f.where for f in findings)


def test_slow_mixing_is_found_in_ess_and_the_advice_is_enough():
    rng = np.random.default_rng(3)
    mu = np.zeros((4, 4000))
    for t in range(1, 4000):
        mu[:, t] = 0.98 * mu[:, t - 1] + rng.normal(size=4)
    findings = check(tree({"mu": mu, "theta": rng.normal(size=(4, 4000, 3)), "one": np.ones((4, 4000))}, draws=4000))
    bulk = next(f for f in findings if f.what.startswith("bulk"))
    assert "below 400 in 1 of 4 values" in bulk.what  # the constant is not counted
    # An AR(1) with coefficient 0.98 has n (1 - a) / (1 + a) = 162 effective draws of 16 000.
    ess = float(bulk.where.removeprefix("mu (").removesuffix(")"))
    assert 162 / 2 < ess < 162 * 2
    assert f"Draw about {np.ceil(400 / ess + 0.5):.0f} times as many" in bulk.advice


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values(bad):
    theta = np.random.default_rng(1).normal(size=(4, 500, 3))
    theta[0, :7, 1] = bad
    finding = only(check(tree({"theta": theta})))
    assert finding.severity is Severity.error
    assert finding.what == "NaN or infinite values in 1 of 3 variables"
    assert finding.where == "theta (7)"


def test_divergences():
    diverging = np.zeros((4, 500), bool)
    diverging[3, :8] = diverging[0, :2] = True
    finding = only(check(tree(stats={"diverging": diverging})))
    assert finding.what.startswith("10 of 2000 draws (0.5 %) diverged")
    assert finding.where == "chain 3 (8), chain 0 (2)"
    assert "target_accept" in finding.advice


def test_tree_depth():
    depth = np.full((4, 500), 9)
    assert not check(tree(stats={"tree_depth": depth}))
    depth[1, :3] = 10
    assert "3 of 2000 draws reached the largest tree depth (10)" in only(check(tree(stats={"tree_depth": depth}))).what
    reached = np.zeros((4, 500), bool)
    reached[0, 0] = True
    foreign = tree(stats={"reached_max_treedepth": reached})
    foreign.attrs = {}
    assert "1 of 2000 draws reached the largest tree depth" in only(check(foreign)).what


def test_energy():
    energy = np.random.default_rng(1).normal(size=(4, 500))
    energy[2] = energy[2].cumsum()
    finding = only(check(tree(stats={"energy": energy})))
    assert finding.what.startswith("E-BFMI below 0.3")
    assert finding.where.startswith("chain 2 (")


@pytest.mark.parametrize(
    ("ended", "severity"),
    [(pg.Ended.chains_disagree, Severity.error), (pg.Ended.interrupted, Severity.warning)],
)
def test_a_run_that_did_not_end_well(ended, severity):
    finding = only(check(tree(ended=ended.name, ended_because=ended.value)))
    assert finding.severity is severity
    assert finding.what == ended.value.rstrip(".")


def test_an_approximation_is_judged_by_its_weights_and_named_as_one():
    sentence = "The draws are those of a Gaussian."
    finding = only(check(tree(approximate=sentence, pareto_k=1.28)))
    assert finding.severity is Severity.error
    assert "Pareto k-hat 1.28, above 0.7" in finding.what
    assert "too few draws to judge" in only(check(tree(approximate=sentence, pareto_k=np.nan))).what
    good = check(tree(approximate=sentence, pareto_k=0.2))
    assert not good
    assert "Pareto k-hat 0.20" in good.summary
    assert good.summary.endswith(f"The result is approximate: {sentence}")
    assert "approximate" not in check(tree()).summary


def test_arranged_particles_are_not_judged_as_draws():
    line = {"mu": np.linspace(-2, 2, 500)[None], "theta": np.zeros((1, 500, 3)), "one": np.ones((1, 500))}
    assert check(tree(line, chains=1)).of_kind("rhat", "ess_bulk")
    assert not check(tree(line, chains=1, method="svgd", kind="approximate"))


def test_weights_without_a_tail():
    assert "importance weights nearly equal" in check(tree(kind="approximate", pareto_k=-np.inf)).summary


def test_errors_come_first_and_all_can_be_tabulated():
    mu = np.random.default_rng(1).normal(size=(4, 500))
    mu[0] = 0.0
    diverging = np.ones((4, 500), bool)
    findings = check(tree({"mu": mu}, {"diverging": diverging}))
    severities = [f.severity for f in findings]
    assert severities == sorted(severities, key=list(Severity).index)
    frame = findings.to_dataframe()
    assert list(frame.columns) == ["severity", "kind", "what", "where", "variables", "advice"]
    assert len(frame) == len(findings)
    assert findings.summary.endswith("warnings.") or findings.summary.endswith("warning.")
    assert repr(findings).count("\n- ") == len(findings)


def test_few_draws():
    assert "only 3 draws per chain" in only(check(tree(draws=3))).what


def test_what_is_not_a_result():
    with pytest.raises(pg.DataError, match="no posterior with the dims"):
        check(xarray.DataTree())


def test_a_real_fit_is_healthy_and_survives_a_file(eight_schools, tmp_path):
    result = pg.infer(eight_schools, pg.NUTS(), draws=600, warmup=400, seed=1, progress=False)
    findings = check(result)
    result.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    assert repr(check(xarray.open_datatree(tmp_path / "run.nc"))) == repr(findings)
    assert not [f for f in findings if f.severity is Severity.error]
