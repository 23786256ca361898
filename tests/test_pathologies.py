"""Planted pathologies: each is found, in the right words and with the right variables; healthy posteriors are quiet."""

import json
from pathlib import Path

import arviz
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray

import probgen as pg
from probgen.check.diagnose import CHECKS, diagnose
from probgen.check.findings import Severity
from probgen.program.files import load_program, match_arguments

pytestmark = pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")  # some of them pg.infer sees too

FOLDER = Path(__file__).resolve().parent.parent / "models" / "posteriordb"
INDEX = json.loads((FOLDER / "index.json").read_text())
HEALTHY = (
    "arK-arK",
    "earnings-earn_height",
    "garch-garch11",
    "kidiq-kidscore_interaction",
    "kidiq-kidscore_momhs",
    "kidiq-kidscore_momiq",
    "kidiq_with_mom_work-kidscore_mom_work",
    "mesquite-logmesquite",
    "nes1980-nes",
    "sblrc-blr",
)
QUICK = HEALTHY[:3]


def fit(program, data=None, method=None, **settings):
    model = pg.Model(program, data or {})
    settings = {"draws": 500, "warmup": 500, "seed": 0, "progress": False, **settings}
    return pg.infer(model, method or pg.NUTS(), **settings), model


def tree(posterior, stats=None, **attrs):
    """A tree of arrays of shape ``(chains, draws, ...)``."""
    groups = {
        group: xarray.Dataset(
            {k: (("chain", "draw", *(f"{k}_{i}" for i in range(v.ndim - 2))), v) for k, v in values.items()}
        )
        for group, values in (("posterior", posterior), ("sample_stats", stats))
        if values
    }
    made = xarray.DataTree.from_dict(groups)
    made.attrs = attrs
    return made


def the(findings, kind):
    found = findings.of_kind(kind)
    assert len(found) == 1, f"{kind!r} among\n{findings}"
    return found[0]


# -- geometry that defeats a sampler ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def funnel():
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])), obs=y)

    return fit(program, {"y": [28.0, 8, -3, 7, -1, 1, 18, 12]}, pg.NUTS(target_accept=0.8), draws=1000, warmup=1000)


def test_a_centred_funnel_diverges_where_the_scale_is_small(funnel):
    finding = the(diagnose(funnel[0]), "divergences")
    assert finding.severity is Severity.warning
    assert finding.variables[0] == "tau"
    assert "diverged, mostly where tau is small" in finding.what
    assert "funnel" in finding.advice
    assert "non-centred" in finding.advice
    assert finding.where.startswith("tau small (by ")
    # The other names are those of what tau scales, which hardly moves there.
    assert set(finding.variables[1:]) <= {"mu", *(f"theta[{i}]" for i in range(8))}


def test_divergences_without_a_place_name_none(funnel):
    rng = np.random.default_rng(0)
    scattered = funnel[0].copy()
    scattered["sample_stats"] = (
        scattered["sample_stats"].to_dataset().assign(diverging=(("chain", "draw"), rng.uniform(size=(4, 1000)) < 0.01))
    )
    finding = the(diagnose(scattered), "divergences")
    assert finding.variables == ()
    assert "mostly" not in finding.what


@pytest.fixture(scope="module")
def mixture():
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        parts = dist.Normal(mu, 1.0)
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), parts), obs=y)

    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(-4, 1, 40), rng.normal(4, 1, 40)])
    return fit(program, {"y": y}, draws=300, warmup=300, chains=6)


def test_label_switching_is_named_as_such(mixture):
    middle = mixture[0]["posterior/mu"].mean("draw").values[:, 0] > 0
    assert 0 < middle.sum() < 6, "the seed must put chains into both labellings"
    findings = diagnose(mixture[0])
    finding = the(findings, "label_switching")
    assert finding.severity is Severity.error
    assert finding.what.startswith("label switching")
    assert finding.variables == ("mu[0]", "mu[1]")
    assert "ordered" in finding.advice
    multimodal = the(findings, "multimodality")
    assert "2 separate places" in multimodal.what
    for group in (np.flatnonzero(middle), np.flatnonzero(~middle)):
        assert ", ".join(map(str, group)) in multimodal.what
    assert "log density is far lower" not in multimodal.what  # both labellings are equally good
    assert findings.of_kind("rhat")


def test_modes_that_are_no_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 500, 2))
    x[[1, 3], :, 0] += 12
    lp = -0.5 * (x[..., 0] - [[0], [12], [0], [12]]) ** 2
    findings = diagnose(tree({"x": x}, {"lp": lp}))
    finding = the(findings, "multimodality")
    assert "2 separate places (chains 0, 2 | chains 1, 3)" in finding.what
    assert finding.variables == ("x[0]",)
    assert not findings.of_kind("label_switching")
    lp[1] -= 80
    lp[3] -= 80
    lower = the(diagnose(tree({"x": x}, {"lp": lp})), "multimodality")
    assert "log density is far lower in chain 1 and chain 3" in lower.what


def test_slow_chains_are_not_called_modes():
    walk = np.cumsum(np.random.default_rng(0).normal(size=(4, 500, 3)), axis=1)
    findings = diagnose(tree({"x": walk}))
    assert findings.of_kind("rhat")
    assert "2 separate places" not in repr(findings)


def test_a_sum_that_is_known_while_its_parts_are_not():
    def program(y):
        a = numpyro.sample("a", dist.Normal(0, 30))
        b = numpyro.sample("b", dist.Normal(0, 30))
        c = numpyro.sample("c", dist.Normal(0, 30))
        numpyro.deterministic("total", a + b)
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(jnp.stack([a + b, c], -1), 1.0).to_event(1), obs=y)

    result, model = fit(program, {"y": np.random.default_rng(0).normal(3, 1, (20, 2))})
    finding = the(diagnose(result, model), "not_identified")
    assert finding.severity is Severity.warning
    assert set(finding.variables) == {"a", "b"}
    assert "only of their combination" in finding.what
    assert "a, b (correlation -0.99" in finding.where
    # Without a model nothing is known of the prior, so that the same draws may be those of a healthy regression.
    assert set(the(diagnose(result), "collinear").variables) == {"a", "b"}
    assert the(diagnose(result), "collinear").severity is Severity.note


def test_an_improper_posterior_wanders_off():
    def program(y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    result, model = fit(program, {"y": 3.0}, pg.NUTS(max_tree_depth=6), draws=400, warmup=400)
    for finding in (the(diagnose(result), "improper"), the(diagnose(result, model), "improper")):
        assert finding.severity is Severity.error
        assert set(finding.variables) == {"a", "b"}
        assert "wander off" in finding.what
        assert "improper posterior" in finding.what
    assert finding.what.endswith("; improper prior: a, b")
    assert "Give it a proper prior" in finding.advice


def test_separation_under_a_flat_prior_runs_away():
    """The likelihood stays level towards infinity, where each chain runs at its own pace: no modes."""

    def program(x, y):
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Bernoulli(logits=b * x).to_event(1), obs=y)

    data = {"x": np.array([-2.0, -1, 1, 2]), "y": np.array([0, 0, 1, 1])}
    result, model = fit(program, data, pg.NUTS(max_tree_depth=6), draws=300, warmup=300)
    findings = diagnose(result, model)
    assert the(findings, "improper").variables == ("b",)
    assert the(findings, "improper").what.endswith("improper prior: b")
    assert not findings.of_kind("multimodality")


def test_large_values_do_not_run_away():
    rng = np.random.default_rng(0)
    x = 1e12 * (1 + 0.01 * rng.normal(size=(4, 500)))
    x[1] += 1e11
    findings = diagnose(tree({"x": x}))
    assert findings.of_kind("multimodality")
    assert not findings.of_kind("improper")


def test_a_cauchy_posterior_has_no_mean():
    def program():
        numpyro.sample("x", dist.Cauchy(0, 1))
        numpyro.sample("z", dist.Normal(0, 1))

    result, _ = fit(program, draws=8000, warmup=1000)
    finding = the(diagnose(result), "heavy_tails")
    assert finding.variables == ("x",)
    assert "heavy tails in 1 of 2 values" in finding.what
    assert "medians" in finding.advice


def test_independent_heavy_tails():
    rng = np.random.default_rng(0)
    draws = {
        "cauchy": rng.standard_cauchy((4, 1000)),
        "t": rng.standard_t(3, (4, 1000)),
        "n": rng.normal(size=(4, 1000)),
    }
    finding = the(diagnose(tree(draws)), "heavy_tails")
    assert finding.variables == ("cauchy",)
    assert "mean may not exist" in finding.what or "variance may be infinite" in finding.what
    rare = {"n": np.exp(rng.normal(size=(4, 1000)))}  # long, yet every moment exists
    assert not diagnose(tree(rare)).of_kind("heavy_tails")


# -- chains ----------------------------------------------------------------------------------------------------------


def test_a_constant_chain(funnel):
    result = funnel[0].copy()
    posterior = result["posterior"].to_dataset()
    for name in posterior.data_vars:
        posterior[name].values[2] = posterior[name].values[2, :1]
    result["posterior"] = posterior
    findings = diagnose(result)
    finding = the(findings, "stuck")
    assert finding is findings[0]
    assert finding.severity is Severity.error
    assert finding.what == "chain 2 did not move"
    assert set(finding.variables) == {"mu", "tau", "theta"}


def test_a_chain_that_stands_still_for_a_while():
    x = np.random.default_rng(0).normal(size=(4, 1000, 2))
    x[1, 400:520] = x[1, 400]
    finding = the(diagnose(tree({"x": x})), "standstill")
    assert finding.where == "chain 1 (120 draws)"
    assert "stood still" in finding.what


def test_rejections_are_no_standstill():
    rng = np.random.default_rng(0)
    moves = rng.uniform(size=(4, 2000)) < 0.2
    at = np.maximum.accumulate(np.where(moves, np.arange(2000), 0), axis=-1)
    x = np.take_along_axis(rng.normal(size=(4, 2000)), at, -1)
    assert not diagnose(tree({"x": x})).of_kind("stuck", "standstill")


# -- approximations and weights --------------------------------------------------------------------------------------


def banana(y):
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(b + a**2, 0.1), obs=y)


def test_variational_inference_on_a_banana():
    result, _ = fit(banana, {"y": 2.0}, pg.SVI(steps=4000))
    finding = the(diagnose(result), "pareto_k")
    assert finding.severity is Severity.error
    assert "far from the posterior: Pareto k-hat" in finding.what
    assert "richer approximation" in finding.advice


def test_an_objective_that_still_rises():
    result, _ = fit(banana, {"y": 2.0}, pg.SVI(steps=200, learning_rate=1e-3))
    finding = the(diagnose(result), "not_converged")
    assert finding.severity is Severity.error
    assert "before it had converged; the objective still rose by" in finding.what
    assert "steps" in finding.advice


def weighted(log_w):
    x = np.random.default_rng(1).normal(size=log_w.shape)
    return tree({"x": x}, {"log_weight": log_w})


def test_one_particle_that_carries_all_weight():
    log_w = np.random.default_rng(0).normal(size=(2, 1000))
    log_w[1, 17] = 40.0
    finding = the(diagnose(weighted(log_w)), "weights")
    assert finding.severity is Severity.error
    assert "collapsed: one draw carries 100 % of the weight" in finding.what
    assert finding.where == "chain 1 (100 %)"
    assert "proposal" in finding.advice
    plain = tree({"x": log_w}, {"weight": np.exp(log_w - log_w.max())})
    assert "collapsed" in the(diagnose(plain), "weights").what


def test_weights_that_leave_few_draws_and_those_that_do_not():
    rng = np.random.default_rng(0)
    log_w = 1.8 * rng.normal(size=(1, 1000))
    finding = the(diagnose(weighted(log_w)), "weights")
    assert finding.severity is Severity.warning
    assert finding.where == f"chain 0 ({np.exp(log_w).sum() ** 2 / np.exp(2 * log_w).sum():.0f})"
    healthy = diagnose(weighted(0.3 * rng.normal(size=(2, 1000))))
    assert not healthy
    assert "effective draws" in healthy.summary
    nothing = np.full((1, 1000), -np.inf)
    assert "NaN or all zero" in the(diagnose(weighted(nothing)), "weights").what


def test_particles_and_their_evidence():
    rng = np.random.default_rng(0)
    made = tree({"x": rng.normal(size=(2, 1000))}, {"ancestor": rng.integers(0, 7, (2, 1000))}, log_evidence_se=2.5)
    steps = xarray.Dataset({"ess": (("chain", "step"), np.array([[900.0, 500, 12], [900, 600, np.nan]]))})
    made["particles"] = steps
    findings = diagnose(made)
    few, ancestors = findings.of_kind("particles")
    assert "only 12 of 1000 particles were effective" in few.what
    assert few.where == "chain 0, step 2"
    assert "descend from 7 ancestors" in ancestors.what
    assert "hardly known: its standard error is 2.5 nats" in the(findings, "evidence").what
    made["particles"] = steps.assign(log_evidence_run=(("chain",), np.array([-10.0, -16.0])))
    assert "from the spread of the runs, is 3 nats" in the(diagnose(made), "evidence").what


def test_resampled_weights_are_judged_by_what_is_told_of_them():
    x = np.random.default_rng(0).normal(size=(4, 500))
    told = diagnose(tree({"x": x}, kind="approximate", pareto_k=0.3, importance_ess=31.0))
    assert "left 31 effective draws" in the(told, "weights").what


# -- prior, likelihood and data --------------------------------------------------------------------------------------


def test_data_against_the_prior():
    def program(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        s = numpyro.sample("s", dist.LogNormal(0, 0.3))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(m, s), obs=y)

    y = np.random.default_rng(0).normal(6, 1, 10)
    result, model = fit(program, {"y": y}, draws=1000)
    findings = diagnose(result, model)
    finding = the(findings, "prior_data_conflict")
    assert finding.severity is Severity.warning
    assert finding.variables[0] == "m"
    agree, model = fit(program, {"y": y - 6}, draws=1000)
    assert not diagnose(agree, model).problems


def test_a_prior_that_decides_alone():
    def program(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        b = numpyro.sample("b", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(b, 0.1), obs=y)
        numpyro.sample("w", dist.Normal(a, 50.0), obs=0.3)

    result, model = fit(program, {"y": 0.2}, draws=1000)
    findings = diagnose(result, model)
    finding = the(findings, "weak_likelihood")
    assert finding.severity is Severity.note
    assert finding.variables == ("a",)
    assert not findings.problems


def test_an_outlier_shows_in_leave_one_out():
    def program(y):
        m = numpyro.sample("m", dist.Normal(0, 10))
        s = numpyro.sample("s", dist.HalfNormal(10))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(m, s), obs=y)

    y = np.random.default_rng(0).normal(size=20)
    y[7] = 60.0
    result, model = fit(program, {"y": y}, draws=1000)
    finding = the(diagnose(result, model), "loo")
    assert finding.variables[0] == "y[7]"
    assert finding.severity is Severity.note  # nobody asked for it
    assert the(diagnose(pg.log_likelihood(model, result)), "loo").severity is Severity.warning


# -- what cannot be seen ---------------------------------------------------------------------------------------------


def test_a_wrong_jacobian_is_invisible():
    """A posterior of its own, from which NUTS draws in perfect health: only calibration against a simulator tells."""

    def program():
        u = numpyro.sample("u", dist.ImproperUniform(dist.constraints.real, (), ()))
        x = numpyro.deterministic("x", jnp.exp(u))
        numpyro.factor("gamma", dist.Gamma(3.0, 1.0).log_prob(x))  # lacks + u, the log Jacobian of exp

    result, model = fit(program, draws=1000)
    assert not diagnose(result, model).problems
    draws = result["posterior/x"]
    error = draws.std() / arviz.ess(draws, method="mean").item() ** 0.5
    assert abs(draws.mean() - 3) > 10 * error  # what was meant
    assert abs(draws.mean() - 2) < 5 * error  # what was written: Gamma(2, 1)


# -- health, and trees from elsewhere --------------------------------------------------------------------------------


def posterior(name):
    entry = INDEX[name]
    columns = json.loads((FOLDER / "data" / f"{entry['data']}.json").read_text())
    program = load_program(FOLDER / f"{entry['model']}.py")
    return pg.Model(program, match_arguments(program, columns).data)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HEALTHY]
)
def test_healthy_posteriors_are_quiet(name, tmp_path):
    model = posterior(name)
    result = pg.infer(model, pg.NUTS(), seed=0, progress=False)
    findings = diagnose(result)
    assert not findings.problems, findings
    assert findings.summary.startswith("No problems found: rank R-hat at most")
    assert not diagnose(result, model).problems, diagnose(result, model)
    result.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "run.nc") as read:
        assert repr(diagnose(read)) == repr(findings)


def test_trees_of_other_libraries():
    centred, other = diagnose(arviz.load_arviz_data("centered_eight")), arviz.load_arviz_data("non_centered_eight")
    finding = the(centred, "divergences")
    assert finding.variables[0] == "tau"
    assert "mostly where tau is small" in finding.what
    assert not {f.kind for f in diagnose(other).problems} - {"divergences", "loo"}
    assert "leave-one-out" in repr(diagnose(other))
    assert all(f.variables for f in diagnose(other).of_kind("loo"))


def test_many_parameters_of_which_three_are_ill():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1000, 20, 25))
    x[2, :, 3, 4] += 3
    x[..., 7, 7] = rng.standard_cauchy((4, 1000))
    x[:, :, 19, 24] = np.cumsum(rng.normal(size=(4, 1000)), axis=-1)
    findings = diagnose(tree({"x": x}))
    assert set(the(findings, "rhat").variables) == {"x[3, 4]", "x[19, 24]"}
    assert the(findings, "multimodality").variables == ("x[3, 4]",)
    assert the(findings, "heavy_tails").variables == ("x[7, 7]",)
    assert the(findings, "improper").variables == ("x[19, 24]",)
    assert not diagnose(tree({"x": np.delete(x.reshape(4, 1000, -1), [79, 182, 499], -1)})), "chance is no finding"


def test_short_healthy_chains_of_many_parameters_raise_no_r_hat():
    """With 60 effective draws per half chain, R-hat exceeds 1.01 by chance in most of 500 quantities."""
    x = np.random.default_rng(0).normal(size=(4, 120, 500))
    findings = diagnose(tree({"x": x}))
    assert not findings.of_kind("rhat")
    x[0, :, 7] += 0.8
    assert the(diagnose(tree({"x": x})), "rhat").variables == ("x[7]",)


def test_what_is_no_model_and_what_is_another_model(funnel):
    with pytest.raises(pg.ModelError, match=r"must be a pg\.Model, got str"):
        diagnose(funnel[0], "model")
    other = pg.Model(lambda: numpyro.sample("nu", dist.Normal()), {})
    with pytest.raises(pg.MethodError, match="no draws of the site 'nu'"):
        diagnose(funnel[0], other)


def test_every_finding_has_its_words_and_every_check_is_listed(funnel):
    result, model = funnel
    findings = diagnose(result, model)
    for finding in findings:
        assert finding.kind
        assert finding.advice.endswith(".")
        assert not finding.what.endswith(".")
    assert len(set(CHECKS)) == len(CHECKS)
    frame = findings.to_dataframe()
    assert list(frame.kind) == [f.kind for f in findings]
    assert findings.problems == tuple(f for f in findings if f.severity is not Severity.note)
