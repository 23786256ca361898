"""Simulation-based calibration: right methods pass, planted bugs are caught, and it says which.

Most fits here are closed forms in NumPy, one line each, so that hundreds of data sets cost nothing and every planted
bug is exactly what it says. All methods of the library are in ``test_sbc_methods.py``.
"""

import sys
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.check.coverage import coverage
from probgen.check.sbc import sbc
from probgen.infer.method import Method, Run
from probgen.run.compiled import compile_count

N = 4
FAST = {"datasets": 300, "draws": 99, "warmup": 0, "progress": False}


def pair(y=None, z=None):
    """Two independent normal means, each measured four times: posteriors are N(0.8 * mean of the data, 0.2)."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
        numpyro.sample("z", dist.Normal(b, 1.0), obs=z)


MODEL = pg.Model(pair)


class Closed(Method):
    """The exact posterior of ``pair``, with a bug."""

    bug: str = eqx.field(static=True, default="")
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "closed"
    summary: ClassVar = "closed form"
    backends: ClassVar = ("probgen",)

    def run(self, key, density, plan):
        data = [np.asarray(density.model.given[name]) for name in ("y", "z")]
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        noise = rng.normal(size=(2, plan.draws))
        mean, sd = [0.8 * y.mean() for y in data], np.sqrt(0.2)
        if self.bug == "narrow":
            sd = 0.75 * sd
        elif self.bug == "wide":
            sd = 1.5 * sd
        elif self.bug == "shifted":
            mean = [m + 0.4 * sd for m in mean]
        elif self.bug == "ignores the data":
            mean, sd = [0.0, 0.0], 1.0
        elif self.bug == "uses half of the data":
            mean, sd = [y[:2].mean() * 2 / 3 for y in data], np.sqrt(1 / 3)
        elif self.bug == "one key twice":
            noise[1] = noise[0]
        elif self.bug == "one draw":
            noise[:] = noise[:, :1]
        elif self.bug == "swaps the data":
            mean = mean[::-1]
        values = {name: (m + sd * e)[None] for name, m, e in zip("ab", mean, noise, strict=True)}
        if self.bug == "nan":
            values["a"] = np.where(data[0].mean() > 1.0, np.nan, values["a"])
        return Run(values, {})


def wrong(result):
    return {name for finding in result.findings.of_kind("calibration") for name in finding.variables}


def test_the_right_posterior_passes():
    result = sbc(MODEL, Closed(), seed=1, **FAST)
    assert not result.findings
    assert "4 quantities over 300 data sets" in repr(result)
    assert set(result.tree["ranks"].data_vars) == {"a", "b", "log_likelihood", "log_joint"}
    ranks = result.tree["ranks/a"]
    assert ranks.dims == ("dataset",)
    assert ranks.min() >= 0
    assert ranks.max() <= 99
    # The truth is what the data were made from, and the draws are those of its posterior.
    tree = result.tree
    posterior_mean = 0.8 * tree["simulated_data/y"].mean("row")
    error = (tree["truth/a"] - posterior_mean) / np.sqrt(0.2)
    assert abs(float(error.mean())) < 4.5 / np.sqrt(300)
    assert abs(float((tree["posterior/a"].mean("draw") - posterior_mean).mean())) < 4.5 * np.sqrt(0.2 / 300 / 99)


@pytest.mark.parametrize(
    ("bug", "guilty", "shape"),
    [
        ("narrow", {"a", "b"}, "too narrow"),
        ("wide", {"a", "b"}, "too wide"),
        ("shifted", {"a", "b"}, "too high"),
        ("one draw", {"a", "b"}, "too narrow"),
        ("swaps the data", {"log_likelihood"}, ""),
        # Ranks of a and b are uniform: only functions of the data, or of both sites, can see these.
        ("ignores the data", {"log_likelihood"}, "too low"),
        ("uses half of the data", {"log_likelihood"}, "too low"),
        ("one key twice", {"log_joint"}, ""),
    ],
)
def test_planted_bugs_are_caught(bug, guilty, shape):
    result = sbc(MODEL, Closed(bug=bug), seed=2, **FAST)
    assert guilty <= wrong(result)
    table = result.to_dataframe()
    assert (table.loc[list(guilty), "adjusted"] < 1e-4).all()
    assert all(shape in table.loc[name, "shape"] for name in guilty)
    assert any(finding.severity.name == "error" for finding in result.findings)
    if bug in ("ignores the data", "uses half of the data", "one key twice"):
        assert not {"a", "b"} & wrong(result)


def test_users_quantities_are_ranked_with_the_data_at_hand():
    quantities = {"distance": lambda s: jnp.mean((s["y"] - s["a"]) ** 2), "both": lambda s: jnp.stack([s["a"], s["b"]])}
    result = sbc(MODEL, Closed(bug="uses half of the data"), quantities=quantities, sites=["a"], seed=3, **FAST)
    assert set(result.tree["ranks"].data_vars) == {"a", "distance", "both", "log_likelihood", "log_joint"}
    assert result.tree["ranks/both"].shape == (300, 2)
    assert "distance" in wrong(result)
    assert "both[0]" in result.to_dataframe().index
    truth = result.tree["truth"]
    expected = ((result.tree["simulated_data/y"] - truth["a"]) ** 2).mean("row")
    np.testing.assert_allclose(truth["distance"], expected, rtol=1e-6)


def test_log_probabilities_are_those_of_the_program():
    result = sbc(MODEL, Closed(), datasets=20, draws=10, warmup=0, progress=False)
    t, d = result.tree["truth"], result.tree["simulated_data"]
    log_normal = lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi)  # noqa: E731
    likelihood = log_normal(d["y"] - t["a"]).sum("row") + log_normal(d["z"] - t["b"]).sum("row")
    np.testing.assert_allclose(t["log_likelihood"], likelihood, rtol=1e-6)
    np.testing.assert_allclose(t["log_joint"], likelihood + log_normal(t["a"]) + log_normal(t["b"]), rtol=1e-6)


def test_same_seed_same_ranks_and_nothing_to_hide():
    again = [sbc(MODEL, Closed(), datasets=30, draws=19, warmup=0, seed=s, progress=False) for s in (5, 5, 6)]
    assert again[0].tree["ranks"].to_dataset().identical(again[1].tree["ranks"].to_dataset())
    assert not again[0].tree["ranks"].to_dataset().equals(again[2].tree["ranks"].to_dataset())
    assert again[0].tree.attrs["method"] == "closed"
    assert again[0].tree.attrs["seed"] == 5


def test_failed_fits_are_told_and_left_out():
    result = sbc(MODEL, Closed(bug="nan"), seed=4, **FAST)
    (finding,) = result.findings.of_kind("failed_fits")
    failed = int((~result.tree["fits/finite"].values).sum())
    assert f"{failed} of 300" in finding.what
    assert result.tree["ranks"].sizes["dataset"] == 300 - failed
    assert finding.severity.name == "error"  # P(mean of y > 1) = 19 %


def test_the_result_can_be_kept_in_a_file(tmp_path):
    import xarray

    tree = sbc(MODEL, Closed(), datasets=20, draws=19, warmup=0, progress=False).tree
    tree.to_netcdf(tmp_path / "sbc.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "sbc.nc", engine="h5netcdf") as read:
        again = coverage(read.load())
    assert again.tree["ranks"].to_dataset().equals(tree["ranks"].to_dataset())


def test_the_plot_shows_the_worst_first():
    result = sbc(MODEL, Closed(bug="ignores the data"), seed=2, **FAST)
    figure = result.plot(most=2)
    shown = [axis.get_title() for axis in figure.axes]
    assert len(shown) == 2
    assert shown[0].startswith("log_likelihood")
    assert "worst 2 of 4" in figure.get_suptitle()


# -- the model that fits and the one that draws ------------------------------------------------------------------------


def scale(y=None):
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(0.0, sd), obs=y)


def by_hand(y=None, jacobian=True, width=1.0):
    """The same with a change of variables by hand; the log Jacobian is u."""
    u = numpyro.sample("u", dist.ImproperUniform(dist.constraints.real, (), ()))
    sd = numpyro.deterministic("sd", jnp.exp(u))
    numpyro.factor("prior", dist.HalfNormal(width).log_prob(sd) + (u if jacobian else 0.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(0.0, sd), obs=y)


@pytest.mark.parametrize(
    ("settings", "right"), [({}, True), ({"jacobian": False}, False), ({"width": 0.4}, False)], ids=str
)
def test_a_rewritten_program_is_held_against_the_plain_one(settings, right):
    """A missing Jacobian and a wrong prior scale, in a posterior that NUTS samples in perfect health."""
    model = pg.Model(by_hand, settings)
    result = sbc(model, pg.NUTS(), simulator=pg.Model(scale), datasets=300, warmup=200, seed=1, progress=False)
    assert set(result.tree["ranks"].data_vars) == {"sd"}
    assert wrong(result) == (set() if right else {"sd"})


def test_a_factor_needs_a_simulator():
    with pytest.raises(pg.MethodError, match=r"'u' has an improper prior.*pg.check.sbc cannot draw"):
        sbc(pg.Model(by_hand), pg.NUTS(), datasets=10)

    def program(y=None):
        a = numpyro.sample("a", dist.Normal())
        numpyro.factor("penalty", -(a**2))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)

    with pytest.raises(pg.ModelError, match=r"'penalty' is a numpyro.factor.*simulator="):
        sbc(pg.Model(program), pg.NUTS(), datasets=10)


# -- what observations can be ------------------------------------------------------------------------------------------


def test_discrete_and_deterministic_sites_are_ranked():
    """NUTS sums the component out and draws it back: its ranks are uniform, ties and all."""

    def program(y=None):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        centre = numpyro.deterministic("centre", mu + 2.0 * z)
        numpyro.deterministic("constant", jnp.arange(2.0) / 3)
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(centre, 1.0), obs=y)

    result = sbc(pg.Model(program), pg.NUTS(), datasets=150, draws=49, warmup=150, seed=0, progress=False)
    assert set(result.tree["ranks"].data_vars) == {"z", "mu", "centre", "log_likelihood", "log_joint"}
    assert not result.findings
    assert result.tree.attrs["thin"] >= 1


def test_observations_may_be_transformed_masked_scanned_or_counts():
    """Whatever the program does with its arguments, simulated data enter at the sites."""

    def program(x, y, seen):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3):
            numpyro.sample("log_y", dist.Normal(level + slope * x, 1.0), obs=jnp.log(y))  # a transformed argument
            numpyro.sample("part", dist.Normal(level, 1.0), obs=y, obs_mask=seen)

        def step(before, now):
            after = numpyro.sample("path", dist.Normal(0.5 * before + level, 1.0), obs=now)
            return after, None

        scan(step, 0.0, y)

    data = {"x": [-1.0, 0.0, 2.0], "y": [1.0, 2.0, 3.0], "seen": [True, True, False]}
    model = pg.Model(program, data)
    result = sbc(model, pg.Exact(), datasets=60, draws=49, warmup=0, seed=0, progress=False)
    assert not result.findings
    # Both halves of the masked site are one: what was observed is a constant of each data set, what was not is drawn.
    drawn = result.tree["posterior/part"]
    assert (drawn.isel(row=0).std("draw") < 1e-12).all()
    assert (drawn.isel(row=2).std("draw") > 0.1).all()
    np.testing.assert_allclose(result.tree["simulated_data/part"], result.tree["truth/part"])
    spread = result.tree["simulated_data"].to_dataset().std("dataset")
    assert (spread["log_y"] > 0.5).all()
    assert (spread["path"] > 0.5).all()


def rows(x, y, batch=10):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 40, subsample_size=batch) as i:
        numpyro.sample("obs", dist.Normal(slope * x[i], 1.0), obs=y[i])


def test_rows_of_a_subsampled_plate_enter_by_their_argument():
    rng = np.random.default_rng(0)
    model = pg.Model(rows, {"x": rng.normal(size=40), "y": np.zeros(40)})
    with pytest.raises(pg.ModelError, match=r"argument 'obs' of the program: there is no such argument.*arguments="):
        sbc(model, pg.SGLD(step_size=1e-3), datasets=10)
    with pytest.raises(pg.ModelError, match="'x' is not passed on unchanged to the site 'obs'"):
        sbc(model, pg.SGLD(step_size=1e-3), datasets=10, arguments={"obs": "x"})
    with pytest.raises(pg.ModelError, match=r"arguments names 'ob', .*Did you mean 'obs'"):
        sbc(model, pg.SGLD(step_size=1e-3), datasets=10, arguments={"ob": "y"})
    result = sbc(
        model,
        pg.SGLD(step_size=1e-2),
        datasets=20,
        draws=10,
        warmup=50,
        thin=2,
        arguments={"obs": "y"},
        progress=False,
    )
    truth, data = result.tree["truth"], result.tree["simulated_data/obs"]
    assert data.shape == (20, 40)
    # All rows count, once each, whatever a step sees.
    error = data.values - truth["slope"].values[:, None] * model.leaves["x"]
    expected = (-0.5 * error**2 - 0.5 * np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(truth["log_likelihood"], expected, rtol=1e-6)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"datasets": 1}, pg.MethodError, "datasets must be an int of at least 2"),
        ({"draws": 5}, pg.MethodError, "draws must be an int of at least 10"),
        ({"thin": 0}, pg.MethodError, "thin must be an int of at least 1"),
        ({"chains": 1.5}, pg.MethodError, "chains must be an int"),
        ({"method": pg.NUTS}, pg.MethodError, r"method must be a method object, got NUTS"),
        ({"model": pair}, pg.ModelError, "model must be a pg.Model"),
        ({"simulator": pair}, pg.ModelError, "simulator must be a pg.Model"),
        ({"sites": ["c"]}, pg.ModelError, "sites names 'c'"),
        ({"sites": "a"}, pg.MethodError, "sites must be a list"),
        ({"quantities": {"a": jnp.sum}}, pg.MethodError, r"quantities\['a'\] is the name of a site"),
        ({"quantities": {"c": 1}}, pg.MethodError, r"quantities\['c'\] is not a function"),
        ({"quantities": {"c": lambda s: jnp.nan}}, pg.DataError, "quantity 'c' is NaN"),
        ({"method": Closed(bug="nan"), "simulator": pg.Model(pair).do(a=50.0)}, pg.MethodError, "no fit of Closed"),
    ],
)
def test_errors(change, error, message):
    settings = {"model": MODEL, "method": Closed(), **FAST, "datasets": 20, **change}
    with pytest.raises(error, match=message):
        sbc(settings.pop("model"), settings.pop("method"), **settings)


def test_errors_of_models():
    def nothing():
        numpyro.sample("a", dist.Normal())

    def wild(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1e4))
        numpyro.sample("y", dist.LogNormal(a, 1.0), obs=y)

    def taken(y=None):
        with numpyro.plate("dataset", 2):
            a = numpyro.sample("a", dist.Normal())
        numpyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)

    for program, error, message in [
        (nothing, pg.ModelError, "no observed site"),
        (wild, pg.DataError, "'y' was drawn as NaN or infinite"),
        (taken, pg.ModelError, "'dataset', which pg.check.sbc gives to its own axis"),
    ]:
        with pytest.raises(error, match=message):
            sbc(pg.Model(program), pg.NUTS(), datasets=20, progress=False)


def test_the_method_s_own_demands_are_heard():
    with pytest.raises(pg.MethodError, match="ChEES is tuned during the warm-up"):
        sbc(MODEL, pg.ChEES(), datasets=10, warmup=10)
    with pytest.raises(pg.MethodError, match="SVGD gives 20 draws per data set"):
        sbc(MODEL, pg.SVGD(particles=20, steps=10), datasets=10, draws=50)
    with pytest.raises(pg.MethodError, match="step_size must be given"):
        sbc(MODEL, pg.SGLD(), datasets=10)


# -- how it runs -------------------------------------------------------------------------------------------------------


def line(x, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(level + slope * x, 1.0), obs=y)


@pytest.fixture(scope="module")
def walked():
    model = pg.Model(line, {"x": jnp.array([-1.0, 0.0, 1.0])})
    return lambda **more: sbc(
        model, pg.RandomWalk(), datasets=40, draws=20, warmup=100, **{"seed": 0, "progress": False, **more}
    )


def test_nothing_is_compiled_for_other_data_or_another_thinning(walked):
    walked(thin=2)
    before = compile_count()
    first, second = walked(thin=3, seed=1), walked(seed=2)
    assert compile_count() == before
    assert first.tree.attrs["thin"] == 3
    assert second.tree.attrs["thin"] > 3


def test_threads_and_one_batch_give_the_same_draws(walked, monkeypatch):
    """On an accelerator all data sets are one batched program; here both ways run on the CPU."""
    one = walked(thin=2).tree
    monkeypatch.setattr(sys.modules["probgen.check.refits"], "batched_by_default", lambda: True)
    other = walked(thin=2).tree
    np.testing.assert_array_equal(one["truth/slope"], other["truth/slope"])
    np.testing.assert_allclose(one["posterior/slope"], other["posterior/slope"], rtol=1e-6, atol=1e-9)


def test_several_chains_and_a_progress_bar(walked, capsys):
    result = walked(thin=2, chains=3, progress=True)
    assert result.tree["posterior"].sizes["draw"] == 21  # 20, rounded up to a multiple of the chains
    assert "40/40" in capsys.readouterr().err


def test_in_single_precision(walked):
    with jax.enable_x64(False):
        model = pg.Model(line, {"x": jnp.array([-1.0, 0.0, 1.0], "float32")})
        result = sbc(model, pg.NUTS(), datasets=40, draws=20, warmup=100, progress=False)
    assert result.tree["posterior/slope"].dtype == np.float32
    assert not result.findings.of_kind("calibration")
