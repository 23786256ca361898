"""The particle filter as a method: paths, filtered and smoothed moments, evidence, and what goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.infer.particle_filter import ParticleFilter
from probgen.infer.smoothing import FFBS, Genealogy
from probgen.program.proposals import LocallyLinear
from probgen.testing import oracles

ORACLES = {oracle.name: oracle for oracle in oracles()}
RUN = {"draws": 250, "chains": 8}


def z_scores(runs, expected):
    """z-scores of the mean of independent runs, leading axis ``runs``."""
    runs = np.asarray(runs)
    return (runs.mean(0) - expected) / (runs.std(0, ddof=1) / np.sqrt(len(runs)))


@pytest.fixture(scope="module")
def trees():
    smoothers = {"ffbs": FFBS(), "moves": None, "genealogy": Genealogy()}
    return {
        (name, kind): pg.infer(
            ORACLES[name].model, ParticleFilter(particles=1000, smoothing=smoother, lag=3), seed=1, **RUN
        )
        for name, kinds in {"state_space": smoothers, "hidden_markov": ("ffbs",)}.items()
        for kind in kinds
        for smoother in (smoothers[kind],)
    }


CASES = [("state_space", "ffbs"), ("state_space", "moves"), ("state_space", "genealogy"), ("hidden_markov", "ffbs")]


@pytest.mark.parametrize("case", CASES)
def test_paths_have_the_smoothing_moments(case, trees):
    """Means and variances by site; the runs are independent, and each has its own particles."""
    oracle, posterior = ORACLES[case[0]], trees[case].posterior
    for site, mean in oracle.means.items():
        draws = posterior[site].values
        assert np.abs(z_scores(draws.mean(1), mean)).max() < 6
        second = ((draws - mean) ** 2).mean(1)
        assert np.abs(z_scores(second, oracle.sds[site] ** 2)).max() < 6
        # The error of eight runs is small enough for this to mean something.
        assert (draws.mean(1).std(0) / np.sqrt(8) < 0.1 * oracle.sds[site] + 1e-9).all()


@pytest.mark.parametrize("case", CASES[::3])
def test_evidence_and_its_standard_error(case, trees):
    tree = trees[case]
    error = tree.attrs["log_evidence"] - ORACLES[case[0]].log_evidence
    assert 0.001 < tree.attrs["log_evidence_se"] < 0.1
    assert abs(error) < 5 * tree.attrs["log_evidence_se"]
    steps = tree["filtered"]["log_predictive"].sum("time").values
    np.testing.assert_allclose(steps, tree["particles"]["log_evidence_run"].values, rtol=1e-9)


def test_filtered_moments_are_those_of_the_kalman_filter(trees):
    filtered, y = trees["state_space", "ffbs"]["filtered"], np.asarray(ORACLES["state_space"].model.leaves["y"])
    mean, variance = 0.0, 1.0
    for t, now in enumerate(y):
        ahead, spread = 0.8 * mean, 0.64 * variance + 0.36
        gain = spread / (spread + 0.25)
        mean, variance = ahead + gain * (now - ahead), (1 - gain) * spread
        assert abs(z_scores(filtered["x_mean"].values[:, t], mean)) < 6
        assert abs(z_scores(filtered["x_sd"].values[:, t], np.sqrt(variance))) < 6
        assert filtered["x_mean"].values[:, t].std() < 0.1 * np.sqrt(variance)
    assert (filtered["ess"] <= 1000).all()
    assert (filtered["unique_ancestors"] <= 1000).all()


def test_fixed_lag_moments_are_exact_at_the_end_and_close_before(trees):
    oracle, smoothed = ORACLES["state_space"], trees["state_space", "ffbs"]["smoothed"]
    mean = oracle.means["x"]
    assert np.abs(z_scores(smoothed["x_mean"].values, mean))[-4:].max() < 6
    np.testing.assert_allclose(smoothed["x_mean"].mean("chain"), mean, atol=0.15 * oracle.sds["x"].max())
    np.testing.assert_allclose(smoothed["x_sd"].mean("chain"), oracle.sds["x"], rtol=0.1)


def test_results_look_like_those_of_nuts(trees):
    tree, oracle = trees["state_space", "moves"], ORACLES["state_space"]
    assert set(tree.posterior.data_vars) == {"start", "x", "change"}
    assert tree.posterior["x"].dims == ("chain", "draw", "time")
    np.testing.assert_allclose(tree.posterior["change"], tree.posterior["x"][..., -1] - tree.posterior["start"])
    assert tree.attrs["smoothing"] == "FFBS(moves=5)"
    assert tree.attrs["ended"] == "completed"
    predicted = pg.predict(oracle.model, tree, seed=0)
    drawn = predicted["posterior_predictive/y"] if "posterior_predictive" in predicted else predicted["predictions/y"]
    residual = (drawn - tree.posterior["x"]).values
    assert residual.std() == pytest.approx(0.5, rel=0.03)
    assert abs(residual.mean()) < 0.02


def test_draws_come_in_no_order(trees):
    x = trees["state_space", "genealogy"].posterior["x"].values[..., 0]
    lagged = [np.corrcoef(chain[1:], chain[:-1])[0, 1] for chain in x]
    assert np.abs(np.mean(lagged)) < 5 / np.sqrt(x.size)


def test_a_run_from_a_store_is_the_same_run(tmp_path):
    model, method = ORACLES["state_space"].model, ParticleFilter(particles=50)
    plain = pg.infer(model, method, draws=20, chains=2, seed=3)
    stored = pg.infer(model, method, draws=20, chains=2, seed=3, store=tmp_path / "run.zarr")
    again = pg.infer(model, method, draws=20, chains=2, seed=3, store=tmp_path / "run.zarr")
    for tree in (stored, again):
        np.testing.assert_array_equal(tree.posterior["x"], plain.posterior["x"])
        assert tree.attrs["log_evidence"] == plain.attrs["log_evidence"]


def volatility(y, phi, mu, sigma):
    """Stochastic volatility, rows labelled by day, the scan running backwards or not."""

    def step(h, now):
        h = numpyro.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=now)
        return h, None

    scan(step, numpyro.sample("h0", dist.Normal(mu, sigma / jnp.sqrt(1 - phi**2))), y)


@pytest.mark.slow
def test_stochastic_volatility_by_a_local_proposal_agrees_with_bootstrap():
    """Not Gaussian: the two agree on the evidence, and the local proposal needs fewer particles for it."""
    rng, h = np.random.default_rng(0), [0.0]
    for _ in range(40):
        h.append(0.95 * h[-1] + 0.3 * rng.normal())
    data = {"y": np.exp(np.array(h[1:]) / 2) * rng.normal(size=40), "phi": 0.95, "mu": 0.0, "sigma": 0.3}
    model = pg.Model(volatility, data, coords={"time": [f"day {i}" for i in range(40)]})
    settings = {"draws": 50, "chains": 8, "seed": 0}
    plain = pg.infer(model, ParticleFilter(particles=2000), **settings)
    local = pg.infer(model, ParticleFilter(particles=500, proposal=LocallyLinear(2)), **settings)
    se = np.hypot(plain.attrs["log_evidence_se"], local.attrs["log_evidence_se"])
    assert abs(plain.attrs["log_evidence"] - local.attrs["log_evidence"]) < 5 * se
    assert se < 0.1
    ess = {t.attrs["method"]: t["filtered"]["ess"].mean().item() for t in (plain,)}
    assert local["filtered"]["ess"].mean().item() / 500 > 1.02 * ess["particle_filter"] / 2000
    assert plain["filtered"]["h_mean"].coords["time"].values[3] == "day 3"


# -- what goes wrong --------------------------------------------------------------------------------------------------


def limited(y, width):
    """Observations with bounded noise: some are impossible."""

    def step(x, now):
        x = numpyro.sample("x", dist.Normal(0.5 * x, 0.1))
        numpyro.sample("y", dist.Uniform(x - width, x + width), obs=now)
        return x, None

    scan(step, 0.0, y)


def test_an_impossible_observation_is_named():
    model = pg.Model(limited, {"y": [0.1, 0.2, 50.0, 0.1], "width": 1.0})
    with pytest.warns(pg.ProbgenWarning, match=r"every particle has weight zero at step 3 \(time 2\), at 'y'"):
        tree = pg.infer(model, ParticleFilter(particles=100), draws=10, chains=2)
    assert tree.attrs["ended"] == "impossible"
    assert tree.attrs["log_evidence"] == -np.inf
    assert np.isnan(tree.posterior["x"]).all()
    with pytest.raises(pg.RunFailed, match="time 2"):
        pg.infer(model, ParticleFilter(particles=100), draws=10, chains=2, throw=True)


def test_a_potential_that_is_not_a_number_is_named():
    def program(y):
        def step(x, now):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
            numpyro.factor("odd", jnp.log(x + 2.0))
            return x, None

        scan(step, 0.0, y)

    with pytest.warns(pg.ProbgenWarning, match="NaN at step [1-9] .*at 'odd'"):
        tree = pg.infer(pg.Model(program, {"y": np.zeros(9)}), ParticleFilter(particles=200), draws=10, chains=2)
    assert tree.attrs["ended"] == "diverged"
    assert np.isnan(tree.attrs["log_evidence"])


def refused(program, match, method=None, error=pg.MethodError, **data):
    with pytest.raises(error, match=match):
        pg.infer(pg.Model(program, data), method or ParticleFilter(particles=10), draws=5, chains=1)


def test_programs_that_cannot_be_filtered_say_why():
    y = np.zeros(4)

    def plain(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), 1.0), obs=y)

    refused(plain, "no numpyro.contrib.control_flow.scan", error=pg.ModelError, y=0.0)

    def walk(y):
        s = numpyro.sample("s", dist.HalfNormal())

        def step(x, now):
            x = numpyro.sample("x", dist.Normal(x, s))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
            return x, None

        scan(step, 0.0, y)

    refused(walk, r"'s' is a parameter.*model.condition\(s=...\).*pg.PMMH", y=y)
    pg.infer(pg.Model(walk, {"y": y}).condition(s=0.5), ParticleFilter(particles=10), draws=5, chains=1)

    def noise_first(y):
        with numpyro.plate("row", len(y)):
            noise = numpyro.sample("noise", dist.Normal())

        def step(x, row):
            x = numpyro.deterministic("x", x + row[0])
            numpyro.sample("y", dist.Normal(x, 1.0), obs=row[1])
            return x, None

        scan(step, 0.0, (noise, y))

    refused(noise_first, "'noise' is drawn before the scan and passed to it as xs", y=y)

    def still(y):
        def step(x, now):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
            return 0.5 * x, None

        scan(step, numpyro.sample("start", dist.Normal()), y)

    refused(still, "no latent site", y=y)

    def summed(y):
        def step(total, now):
            total = total + numpyro.sample("d", dist.Normal())
            numpyro.sample("y", dist.Normal(total, 1.0), obs=now)
            return total, None

        scan(step, 0.0, y)

    refused(
        summed,
        "the carry of the scan is made from the carry before it",
        ParticleFilter(particles=10, smoothing=FFBS()),
        y=y,
    )
    tree = pg.infer(pg.Model(summed, {"y": y}), ParticleFilter(particles=10), draws=5, chains=1)
    assert tree.attrs["smoothing"] == "Genealogy()"


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (ParticleFilter(particles=1), "particles must be an int of at least 2"),
        (ParticleFilter(particles=10, ess_threshold=2.0), "ess_threshold is a share"),
        (ParticleFilter(particles=10, proposal="bootstrap"), "proposal must be a proposal"),
        (ParticleFilter(particles=10, smoothing="ffbs"), "smoothing must be a smoother"),
        (ParticleFilter(particles=10, smoothing=FFBS(moves=0)), "moves must be None or an int"),
        (ParticleFilter(particles=10, lag=-1), "lag must be None or an int"),
        (ParticleFilter(particles=10, backend="blackjax"), "does not serve ParticleFilter"),
    ],
)
def test_settings_that_make_no_sense_say_so(method, match):
    with pytest.raises(pg.MethodError, match=match):
        pg.infer(ORACLES["state_space"].model, method)


def test_improper_priors_are_refused():
    def program(y):
        def step(x, now):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
            return x, None

        scan(step, numpyro.sample("start", dist.ImproperUniform(dist.constraints.real, (), ())), y)

    refused(program, "'start' has an improper prior", y=np.zeros(3))


def test_new_data_of_the_same_shape_compile_nothing():
    from probgen.run.compiled import compile_count

    model = ORACLES["state_space"].model
    pg.infer(model, ParticleFilter(particles=50), draws=20, chains=2, seed=3)
    before = compile_count()
    pg.infer(model.with_data(y=np.zeros(7)), ParticleFilter(particles=50), draws=20, chains=2, seed=4)
    assert compile_count() == before


def test_discrete_and_missing_sites_in_float32():
    def program(y, seen):
        def step(z, row):
            now, there = row
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(z == 1, 0.9, 0.2)))
            numpyro.sample("y", dist.Normal(1.0 * z, 0.5), obs=now, obs_mask=there)
            return z, None

        scan(step, 0, (y, seen))

    y, seen = np.array([1.1, 0.0, 0.1, 0.9], np.float32), np.array([True, False, True, True])
    with jax.enable_x64(False):
        tree = pg.infer(pg.Model(program, {"y": y, "seen": seen}), ParticleFilter(particles=300), draws=50, chains=2)
    assert tree.posterior["z"].dtype.kind == "i"
    assert set(tree.posterior.data_vars) == {"z", "y"}
    filled = tree.posterior["y"].values
    assert (filled[..., [0, 2, 3]] == y[[0, 2, 3]]).all()
    assert filled[..., 1].std() > 0.3
