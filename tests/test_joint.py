"""Joint: one masked transformer for all conditionals of a program."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.amortized.site_charts import charts_of, floating
from probgen.amortized.token_attention import FromGraph, SiteTokens
from probgen.program.density import Density

ONE_STEP = pg.generative.Training(steps=1, batch=32, block=1)


def hierarchy(y=None):
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("group", 3):
        e = numpyro.sample("e", dist.Normal(0.0, 1.0))
        effect = numpyro.deterministic("effect", m + s * e)
        numpyro.sample("y", dist.Normal(effect, 0.5), obs=y)


def chain(y=None):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, 0.0, y, length=4)


def accumulated(y=None):
    """Rows of one plate that depend on other rows, which no graph of sites says."""
    with numpyro.plate("row", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.cumsum(z), 1.0), obs=y)


def apart():
    """Two programs that have nothing to do with one another; data are given by ``condition``."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 1.0).expand([2]).to_event(1))
    b = numpyro.sample("b", dist.LogNormal(0.0, 0.5))
    numpyro.sample("w", dist.Exponential(b))
    numpyro.sample("n", dist.Bernoulli(b / (1 + b)))


def joined(program, *sites):
    """The pairs of tokens that see one another, by name."""
    tokens = tuple(SiteTokens(name, shape, False) for name, shape in sites)
    seen = FromGraph().seen(pg.Model(program), tokens)
    names = [f"{t.name}{i}" if t.shape else t.name for t in tokens for i in range(t.size)]
    np.testing.assert_array_equal(seen, seen.T)
    assert seen.diagonal().all()
    return {f"{names[i]} {names[j]}" for i, j in np.argwhere(np.triu(seen, 1))}


def test_attention_is_the_moral_graph():
    # y_i has the parents m, s, e_i: these four are joined, and no row sees another.
    rows = [f"{a} {b}" for i in range(3) for a, b in (("m", f"e{i}"), ("s", f"e{i}"), ("m", f"y{i}"), ("s", f"y{i}"))]
    own = {f"e{i} y{i}" for i in range(3)}
    assert joined(hierarchy, ("m", ()), ("s", ()), ("e", (3,)), ("y", (3,))) == {"m s", *rows, *own}


def test_attention_along_time_and_between_rows():
    assert joined(chain, ("x", (4,)), ("y", (4,))) == {f"x{i} x{i + 1}" for i in range(3)} | {
        f"x{i} y{i}" for i in range(4)
    }
    found = joined(accumulated, ("z", (3,)), ("y", (3,)))
    assert found == {"z0 z1", "z0 z2", "z1 z2", "z0 y0", "z0 y1", "z1 y1", "z0 y2", "z1 y2", "z2 y2"}


@pytest.fixture(scope="module")
def untrained():
    """Of two programs side by side, with weights that are not at their start (where all velocities are zero)."""
    it = pg.amortize(
        pg.Model(apart),
        ["y", "w", "n"],
        pg.Joint(width=16, depth=2, heads=2, steps=3, training=ONE_STEP),
        64,
        seed=0,
        progress=False,
    )
    last = it.law.net.net.last
    noise = jax.random.normal(jax.random.key(0), last.weight.shape, jnp.float32)
    law = it.law.family.distribution(eqx.tree_at(lambda n: n.net.last.weight, it.law.net, noise), it.law.spec)
    return type(it)(law=law)


def test_tokens_without_a_path_have_no_influence(untrained):
    law = untrained.law
    places = untrained._places()
    z, t = jax.random.normal(jax.random.key(1), (law.family.tokens,)), jnp.asarray(0.4)
    for known in (jnp.zeros(law.family.tokens, bool), jnp.asarray(law.family.is_data)):
        before = law.family.velocity(law.net, z, t, known)
        after = law.family.velocity(law.net, z.at[places["w"]].add(3.0), t, known)
        here = np.concatenate([places["a"], places["y"]])
        np.testing.assert_array_equal(before[here], after[here])
        assert abs(before[places["b"]] - after[places["b"]]) > 1e-3
        moved = law.family.velocity(law.net, z.at[places["y"]].add(3.0), t, known)
        assert abs(before[places["a"]] - moved[places["a"]]) > 1e-3


def test_what_is_known_stays(untrained):
    known = {"y": [0.3, np.nan], "b": 0.7}
    drawn = untrained.conditional(0, pg.Model(apart), known, draws=50)
    assert set(drawn) == {"a", "y", "w", "n"}
    np.testing.assert_allclose(drawn["y"][:, 0], 0.3, rtol=1e-6)
    assert np.ptp(drawn["y"][:, 1]) > 1e-2
    assert drawn["a"].shape == (50,)
    # The rest lies in its support.
    assert (drawn["w"] > 0).all()
    assert set(drawn["n"]) <= {0.0, 1.0}


def test_a_model_may_observe_less_or_more(untrained):
    fewer = pg.infer(pg.Model(apart).condition(y=np.zeros(2), n=1), untrained, draws=4, chains=1, seed=0)
    assert set(fewer.posterior.data_vars) == {"a", "b", "w"}
    assert (fewer.posterior["b"] > 0).all()
    more = pg.infer(pg.Model(apart).condition(y=np.zeros(2), n=1, b=0.5), untrained, draws=4, chains=1, seed=0)
    assert set(more.posterior.data_vars) == {"a", "w"}


def test_saved_and_loaded(untrained, tmp_path):
    untrained.save(tmp_path / "it")
    again = pg.amortized.load(tmp_path / "it")
    model = pg.Model(apart).condition(y=np.zeros(2), w=1.0, n=0)
    one, two = (pg.infer(model, it, draws=4, chains=1, seed=0).posterior for it in (untrained, again))
    np.testing.assert_array_equal(one["a"], two["a"])


def moving(y=None):
    top = numpyro.sample("top", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Uniform(0.0, top).expand([2]).to_event(1), obs=y)


def nested(y=None):
    top = numpyro.sample("top", dist.LogNormal(0.0, 1.0))
    part = numpyro.sample("part", dist.Uniform(0.0, top))
    numpyro.sample("y", dist.Normal(part, 1.0), obs=y)


def test_sites_whose_coordinates_depend_on_others_are_known():
    density = Density(pg.Model(nested, {"y": 0.3}))
    charts = charts_of(density.model, ("y",))
    u, y = np.random.default_rng(0).normal(size=(2, 20, 2))
    assert floating(density, charts, u, {"y": y[:, 0]}) == {"part"}


@pytest.mark.parametrize(
    ("known", "error", "word"),
    [
        ({"nothing": 1.0}, pg.MethodError, "no site"),
        ({"y": 1.0}, pg.DataError, "shape"),
        ({"y": [1.0, np.inf]}, pg.DataError, "infinite"),
        ({"w": -1.0}, pg.DataError, "outside of its support"),
        ({"y": [0.0, 0.0], "a": 0.0, "b": 1.0, "w": 1.0, "n": 1}, pg.MethodError, "nothing to draw"),
    ],
)
def test_clear_errors_of_what_is_known(untrained, known, error, word):
    with pytest.raises(error, match=word):
        untrained.conditional(0, pg.Model(apart), known)


def test_clear_errors():
    with pytest.raises(pg.MethodError, match="support of the observed site 'y'"):
        pg.amortize(pg.Model(moving), ["y"], pg.Joint(training=ONE_STEP), 100)
    with pytest.raises(pg.MethodError, match="multiple"):
        pg.amortize(pg.Model(apart), ["y", "w", "n"], pg.Joint(width=10, heads=4, training=ONE_STEP), 64)
    with pytest.raises(pg.MethodError, match="attention"):
        pg.amortize(pg.Model(apart), ["y", "w", "n"], pg.Joint(attention="full"), 64)


def test_what_does_not_vary_as_sites_do_is_refused():
    def design(key):
        return {"t": jax.random.normal(key, (3,))}

    def program(t, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(a * t, 1.0), obs=y)

    model = pg.Model(program, {"t": np.arange(3.0)})
    with pytest.raises(pg.MethodError, match=r"none for arguments such as 't'.*observed="):
        pg.amortize(model, ["y"], pg.Joint(training=ONE_STEP), 64, design=design, progress=False)
    with pytest.raises(pg.MethodError, match="rows that are not there are NaN"):
        pg.amortize(model, ["y"], pg.Joint(training=ONE_STEP), 64, fewest={"row": 1}, progress=False)


# -- a simulator outside of the program ----------------------------------------------------------------------------------


def prior():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.LogNormal(a, 0.5))


def simulator(sites, rng):
    return {"x": sites["a"] + 0.5 * rng.normal(size=2)}


def joint_with_simulator(training, count):
    method = pg.Joint(width=16, depth=2, heads=2, steps=10, training=training)
    return pg.amortize(pg.Model(prior), method=method, simulations=count, simulator=simulator, seed=0, progress=False)


def test_a_simulator_may_draw_the_data(tmp_path):
    it = joint_with_simulator(ONE_STEP, 64)
    # Nothing says what the simulator looks at.
    assert np.asarray(it.law.family.seen).all()
    model = pg.Model(prior)
    tree = pg.infer(model, it.condition(x=[0.3, 0.1]), draws=4, chains=1, seed=0, progress=False)
    assert set(tree.posterior.data_vars) == {"a", "b"}
    assert (tree.posterior["b"] > 0).all()
    np.testing.assert_allclose(tree["observed_data"]["x"], [0.3, 0.1], rtol=1e-6)
    drawn = it.conditional(0, model, {"x": [0.3, np.nan], "b": 0.7}, draws=20)
    assert set(drawn) == {"a", "x"}
    np.testing.assert_allclose(drawn["x"][:, 0], 0.3, rtol=1e-6)
    assert np.ptp(drawn["x"][:, 1]) > 1e-2
    with pytest.raises(pg.MethodError, match=r"amortized\.condition\(x=\.\.\.\)"):
        pg.infer(model, it, draws=4, chains=1, seed=0)
    it.condition(x=[0.3, 0.1]).save(tmp_path / "it")
    again = pg.infer(model, pg.amortized.load(tmp_path / "it"), draws=4, chains=1, seed=0, progress=False)
    np.testing.assert_array_equal(again.posterior["a"], tree.posterior["a"])


@pytest.mark.slow
def test_the_posterior_and_likelihood_of_a_simulator():
    it = joint_with_simulator(pg.generative.Training(steps=4000, batch=128, learning_rate=3e-3, block=500), 10_000)
    model = pg.Model(prior)
    # a | x is N(mean(x) / (1 + 0.25 / 2), 0.125 / 1.125); x | a is N(a, 0.25).
    a = it.conditional(0, model, {"x": [1.2, 0.6]}, draws=4000)["a"]
    x = it.conditional(1, model, {"a": -0.5}, draws=4000)["x"]
    for draws, mean, sd in ((a, 0.8, (0.125 / 1.125) ** 0.5), (x[:, 0], -0.5, 0.5), (x[:, 1], -0.5, 0.5)):
        # As for programs: a tenth of an sd, and Monte Carlo.
        assert abs(draws.mean() - mean) / sd < 0.1 + 3 * 0.016
        assert abs(draws.std() / sd - 1) < 0.1 + 3 * 0.012


# -- what is learned ---------------------------------------------------------------------------------------------------


def linear(y=None):
    """Five Gaussian tokens: a level, two effects, two data."""
    level = numpyro.sample("level", dist.Normal(1.0, 1.0))
    with numpyro.plate("group", 2):
        effect = numpyro.sample("effect", dist.Normal(level, 0.7))
        numpyro.sample("y", dist.Normal(effect, 0.5), obs=y)


NAMES = ("level", "effect", "y")
ROOT = np.array([[1.0, 0, 0, 0, 0], [1, 0.7, 0, 0, 0], [1, 0, 0.7, 0, 0], [1, 0.7, 0, 0.5, 0], [1, 0, 0.7, 0, 0.5]])


def conditioned(known):
    """Mean and covariance of the entries that are NaN, in closed form."""
    covariance, mean, missing = ROOT @ ROOT.T, np.ones(5), np.isnan(known)
    gain = covariance[np.ix_(missing, ~missing)] @ np.linalg.inv(covariance[np.ix_(~missing, ~missing)])
    rest = covariance[np.ix_(missing, missing)] - gain @ covariance[np.ix_(~missing, missing)]
    return mean[missing] + gain @ (known[~missing] - mean[~missing]), rest


@pytest.fixture(scope="module")
def gaussian():
    training = pg.generative.Training(steps=5000, batch=128, learning_rate=3e-3, block=500)
    method = pg.Joint(width=32, depth=3, training=training)
    return pg.amortize(pg.Model(linear), ["y"], method, 20_000, missing=0.5, seed=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "known",
    [
        [np.nan, np.nan, np.nan, 0.2, 1.5],  # posterior
        [0.5, 0.1, 1.4, np.nan, np.nan],  # likelihood
        [np.nan, 0.1, np.nan, np.nan, 2.0],  # any other
        [np.nan, np.nan, np.nan, 0.2, np.nan],  # missing data
        [np.nan] * 5,  # the joint law
    ],
    ids=["posterior", "likelihood", "subset", "missing", "joint"],
)
def test_conditionals_of_a_gaussian(gaussian, known):
    known = np.array(known)
    values = {"level": known[0], "effect": known[1:3], "y": known[3:]}
    drawn = gaussian.conditional(0, pg.Model(linear), values, draws=4000)
    rows = np.concatenate([np.reshape(drawn[name], (4000, -1)) for name in NAMES if name in drawn], 1)
    names = np.concatenate([np.repeat(name, np.size(values[name])) for name in NAMES])
    kept = np.isnan(known)[np.isin(names, list(drawn))]
    rows, (mean, covariance) = rows[:, kept], conditioned(known)
    sd = np.sqrt(np.diag(covariance))
    shift, ratio = np.abs(rows.mean(0) - mean) / sd, rows.std(0) / sd
    # Monte Carlo has 0.016 sds; what is learned is within a tenth of a posterior sd, and the sd within 10 %.
    assert shift.max() < 0.1 + 3 * 0.016
    assert np.abs(ratio - 1).max() < 0.1 + 3 * 0.012
    correlation = np.corrcoef(rows.T).reshape(len(sd), -1)
    assert np.abs(correlation - covariance / np.outer(sd, sd)).max() < 0.1 + 3 * 0.016


@pytest.mark.slow
def test_inferred_as_any_method(gaussian):
    known = np.array([np.nan, np.nan, np.nan, 0.2, 1.5])
    result = pg.infer(pg.Model(linear, {"y": known[3:]}), gaussian, draws=4000, chains=1, seed=0).posterior
    mean, covariance = conditioned(known)
    found = np.array([result["level"].mean(), *result["effect"].mean(("chain", "draw"))])
    assert (np.abs(found - mean) / np.sqrt(np.diag(covariance))).max() < 0.15
