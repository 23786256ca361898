"""Worlds: abduction, action, prediction on programs with known answers; axioms on random programs; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from numpyro.contrib.control_flow import cond, scan

import probgen as pg
from probgen.base.errors import DataError, MethodError, ModelError
from probgen.run.compiled import compile_count
from probgen.testing import assert_mean, assert_same_distribution


@pytest.fixture(autouse=True)
def _in_64_bits():
    with jax.enable_x64(True):
        yield


def tree_of(model, draws=1, **values):
    """A posterior of known draws, shape ``(draws, ...)`` by site."""
    posterior = {
        name.replace("/", "."): (
            ("chain", "draw", *model.sites[name].dims),
            np.broadcast_to(value, (1, draws, *model.sites[name].shape)),
        )
        for name, value in values.items()
    }
    coords = {"chain": [0], "draw": np.arange(draws)}
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(posterior, coords)})


# -- A to F: closed forms --------------------------------------------------------------------------------------------


def primer(x=None, h=None, y=None):
    x = numpyro.sample("X", dist.Normal(0, 1), obs=x)
    h = numpyro.sample("H", dist.Normal(0.5 * x, 1), obs=h)
    numpyro.sample("Y", dist.Normal(0.7 * x + 0.4 * h, 1), obs=y)


def test_primer_of_pearl(tmp_path):
    model = pg.Model(primer, {"x": 0.5, "h": 1.0, "y": 1.5})
    worlds = pg.causal.worlds(model, tree_of(model), {"h2": pg.do(H=2.0), "h1": pg.do(H=1.0)})
    assert abs(worlds.value("Y", "h2").item() - 1.9) < 1e-12
    assert worlds.value("Y", "h1").item() == 1.5  # composition, to the last bit
    noise = worlds.tree["noise"]
    np.testing.assert_allclose([noise[n].item() for n in "XHY"], [0.5, 0.75, 0.75], atol=1e-12)
    assert abs(float(worlds.ite("Y", "h2", "factual")) - 0.4) < 1e-12
    assert worlds["Y"].dims == ("chain", "draw", "world")
    assert "location and scale" in repr(worlds)
    path = tmp_path / "worlds.nc"
    worlds.tree.to_netcdf(path)
    with xarray.open_datatree(path) as again:
        assert again.identical(worlds.tree)


def additive(x=None, y=None):
    u = numpyro.sample("U", dist.Normal(0, 1))
    x = numpyro.sample("X", dist.Normal(u, 1), obs=x)
    numpyro.sample("Y", dist.Normal(2 * x + 3 * u, 1), obs=y)


def test_hidden_confounder_of_an_additive_model():
    """U given X=1, Y=4 is normal with mean 7/11; the counterfactual does not depend on it."""
    model = pg.Model(additive, {"x": 1.0, "y": 4.0})
    u = np.random.default_rng(0).normal(7 / 11, np.sqrt(1 / 11), 500)
    worlds = pg.causal.worlds(model, tree_of(model, 500, U=u), {"x0": pg.do(X=0.0)})
    np.testing.assert_allclose(worlds.value("Y", "x0"), 2.0, rtol=0, atol=1e-12)
    # Seeing and doing differ for new people: E[Y | X=1] = 3.5, E[Y | do(X=1)] = 2.
    new = pg.causal.worlds(
        model, tree_of(model, 24_000, U=0.0), {"x1": pg.do(X=1.0)}, mode="interventional", resample=["U"]
    )
    y = new.value("Y", "x1").values.reshape(24, 1000).mean(1)
    assert_mean(y, 2.0, detects=0.4)


def product(x=None, y=None):
    u = numpyro.sample("U", dist.Normal(0, 1))
    x = numpyro.sample("X", dist.Normal(0, 1), obs=x)
    numpyro.sample("Y", dist.Normal(x * u, 1), obs=y)


def test_hidden_confounder_of_a_product():
    """U given X=1, Y=2 is N(1, 1/2), so Y_{X=3} = 2 + 2 U is N(4, 2); fresh noise would give N(3, 5.5)."""
    model = pg.Model(product, {"x": 1.0, "y": 2.0})
    u = np.random.default_rng(0).normal(1, np.sqrt(0.5), 20_000)
    worlds = pg.causal.worlds(model, tree_of(model, 20_000, U=u[None]), {"x3": pg.do(X=3.0)})
    y = worlds.value("Y", "x3").values.ravel()
    from scipy import stats

    assert_same_distribution(y, stats.norm(4, np.sqrt(2)).cdf, detects=0.04)


@pytest.mark.slow
def test_hidden_confounder_found_by_nuts():
    model = pg.Model(product, {"x": 1.0, "y": 2.0})
    tree = pg.infer(model, pg.NUTS(), draws=2000, warmup=500, chains=4, seed=0)
    worlds = pg.causal.worlds(model, tree, {"x3": pg.do(X=3.0)})
    pg.testing.assert_draws(worlds.value("Y", "x3").values, means=4.0, sds=np.sqrt(2), detects=0.2)


def mediated(n, t=None, m=None, y=None):
    with numpyro.plate("unit", n):
        t = numpyro.sample("T", dist.Bernoulli(0.5), obs=t)
        m = numpyro.sample("M", dist.Normal(1 + 0.5 * t, 1), obs=m)
        numpyro.sample("Y", dist.Normal(2 + t + 0.8 * m + 0.4 * t * m, 1), obs=y)


ARMS = {"t1": pg.do(T=1), "t0": pg.do(T=0)}


def test_mediation_with_interaction():
    model = pg.Model(mediated, {"n": 400})
    worlds = pg.causal.worlds(model, tree_of(model, 60), ARMS, mode="interventional", seed=1)
    total, direct = worlds.ate("Y", "t1", "t0"), worlds.nde("Y", "M", "t1", "t0")
    pure, rest = worlds.nie("Y", "M", "t1", "t0"), worlds.nie("Y", "M", "t1", "t0", total=True)
    controlled = worlds.cde("Y", "t1", "t0", at=pg.do(M=0.0))
    assert_mean(np.stack([e.draws.values[0] for e in (total, direct)], 1), [2.0, 1.4], detects=0.1)
    # Without interaction with what differs between units these are the same for everybody.
    for effect, expected in ((pure, 0.4), (rest, 0.6), (controlled, 1.0)):
        np.testing.assert_allclose(effect.draws, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(direct.draws + rest.draws, total.draws, rtol=0, atol=1e-12)
    assert total.interval().dims == ("bound",)
    assert "NDE of t1 against t0 on Y" in repr(direct)


def table(n, x=None, m=None, y=None):
    mean = jnp.array([[0.2, 0.3], [0.4, 0.8]])  # E[Y | x, m]
    with numpyro.plate("unit", n):
        x = numpyro.sample("X", dist.Bernoulli(0.5), obs=x)
        m = numpyro.sample("M", dist.Bernoulli(jnp.array([0.4, 0.75])[x]), obs=m)
        numpyro.sample("Y", dist.Bernoulli(mean[x, m]), obs=y)


@pytest.mark.slow
def test_mediation_formula_of_pearl():
    model = pg.Model(table, {"n": 2000})
    arms = {"x1": pg.do(X=1), "x0": pg.do(X=0)}
    worlds = pg.causal.worlds(model, tree_of(model, 40), arms, mode="interventional")
    effects = [worlds.ate("Y", "x1", "x0"), worlds.nde("Y", "M", "x1", "x0"), worlds.nie("Y", "M", "x1", "x0")]
    assert_mean(np.stack([e.draws.values[0] for e in effects], 1), [0.46, 0.32, 0.035], detects=0.05)
    fair = worlds.fairness("Y", "x1", "x0")
    parts = {name: effect.draws for name, effect in fair.items()}
    np.testing.assert_allclose(parts["total"], parts["direct"] - parts["indirect"] - parts["spurious"], atol=1e-12)
    assert_mean(parts["spurious"].values[0], 0.0, detects=0.1)  # X is randomised
    assert_mean(parts["direct"].values[0], 0.32, detects=0.1)


def binary(n, x=None, y=None):
    with numpyro.plate("unit", n):
        x = numpyro.sample("X", dist.Bernoulli(0.5), obs=x)
        numpyro.sample("Y", dist.Bernoulli(jnp.array([0.3, 0.8])[x]), obs=y)


def test_probability_of_necessity():
    """With p1 = .8, p0 = .3 and monotonicity: PN = (p1 - p0) / p1, PS = (p1 - p0) / (1 - p0), PNS = p1 - p0."""
    arms = {"x1": pg.do(X=1), "x0": pg.do(X=0)}
    x, y = np.repeat([1, 0], 250), np.tile([1, 1, 0, 0, 0], 100)
    model = pg.Model(binary, {"n": 500, "x": x, "y": y})
    worlds = pg.causal.worlds(model, tree_of(model, 60), arms)
    found = np.stack([getattr(worlds, name)("Y", "x1", "x0").draws.values[0] for name in ("pn", "ps")], 1)
    assert_mean(found, [0.625, 5 / 7], detects=0.1)
    assert "monotone" in worlds.assumptions["Y"]


def test_probability_of_necessity_of_new_units_and_under_independence():
    arms = {"x1": pg.do(X=1), "x0": pg.do(X=0)}
    x, y = np.repeat([1, 0], 250), np.tile([1, 1, 0, 0, 0], 100)
    model = pg.Model(binary, {"n": 500, "x": x, "y": y})
    # The law of all units: half treated, and P(Y = 1) as the program has it.
    new = pg.causal.worlds(model, tree_of(model, 60), arms, mode="interventional")
    found = np.stack([getattr(new, name)("Y", "x1", "x0").draws.values[0] for name in ("pn", "ps", "pns")], 1)
    assert_mean(found, [0.625, 5 / 7, 0.5], detects=0.1)
    # Under independence the noise says nothing: P(Y_{x0} = 0 | X=1, Y=1) = 1 - p0.
    other = pg.causal.worlds(model, tree_of(model, 60), arms, assume={"Y": pg.causal.Independent()})
    assert_mean(other.pn("Y", "x1", "x0").draws.values[0], 0.7, detects=0.1)
    assert "independent" in other.assumptions["Y"]


# -- G: axioms on random programs ------------------------------------------------------------------------------------


def random_program(seed, kinds, units):
    """A program of ``len(kinds)`` sites; every site depends on two earlier ones with random weights."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(len(kinds), len(kinds)))
    parents = [rng.choice(i, min(i, 2), replace=False) if i else [] for i in range(len(kinds))]

    def law(kind, eta):
        bounded = jnp.tanh(eta)
        if kind == "normal":
            return dist.Normal(eta, 0.5 + bounded**2)
        if kind == "log_normal":
            return dist.LogNormal(bounded, 0.3)
        if kind == "bernoulli":
            return dist.Bernoulli(logits=eta)
        if kind == "categorical":
            return dist.Categorical(logits=jnp.stack([eta, -eta, 0.5 * bounded], -1))
        return dist.Poisson(jnp.exp(bounded))

    def program(values):
        sites = []
        with numpyro.plate("unit", units):
            for i, kind in enumerate(kinds):
                eta = jnp.full(units, weights[i, i]) + sum(weights[i, j] * jnp.tanh(sites[j]) for j in parents[i])
                value = numpyro.sample(f"V{i}", law(kind, eta), obs=values.get(f"V{i}"))
                sites.append(numpyro.deterministic(f"D{i}", 0.5 * value + eta))

    return program


def check_random_program(seed, kinds, draws=4, units=5):
    program = random_program(seed, kinds, units)
    prior = pg.simulate(pg.Model(program, {"values": {}}), draws=1, seed=seed)["prior"]
    names = [f"V{i}" for i in range(len(kinds))]
    data = {name: prior[name].values[0, 0] for name in names[:-1]}  # the last site stays latent
    model = pg.Model(program, {"values": data})
    last = names[-1]
    tree = tree_of(model, draws, **{last: prior[last].values[0, 0]})
    given = {"a": pg.do(V0=prior["V0"].values[0, 0]), "b": pg.do(V1=1.0), "c": pg.do(V2=pg.from_world("b"), V0=0.5)}
    worlds = pg.causal.worlds(model, tree, given, seed=seed)
    axioms = worlds.check_axioms()
    assert set(axioms.composition) == set(names), axioms
    assert axioms.compared > 0
    assert axioms.worst <= 1e-12, axioms
    for name in worlds.tree["worlds"].data_vars:  # the world in which V0 is what it was is the factual one
        gap = abs(worlds.value(str(name), "a") * 1.0 - worlds.value(str(name)))
        assert float(gap.max()) <= 1e-12
    changed = [float(abs(worlds.value(n, "c") * 1.0 - worlds.value(n)).max()) for n in names[1:]]
    assert max(changed) > 1e-3


@pytest.mark.slow
def test_axioms_on_a_random_program():
    check_random_program(0, ("log_normal", "categorical", "normal"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_axioms_on_random_programs(seed):
    kinds = ["normal", "log_normal", "bernoulli", "categorical", "poisson", "normal"]
    np.random.default_rng(seed).shuffle(kinds)
    check_random_program(seed, tuple(kinds))


# -- where sites may stand -------------------------------------------------------------------------------------------


def series(n, dose, y=None):
    drift = numpyro.sample("drift", dist.Normal(0, 1))

    def step(carry, row):
        given, seen = row
        with numpyro.plate("patient", n):
            d = numpyro.sample("dose", dist.Normal(0.5 * carry, 1), obs=given)
            numpyro.deterministic("load", d + carry)
            state = numpyro.sample("state", dist.Normal(0.8 * carry + drift + d, 0.5), obs=seen)
        return state, None

    scan(step, jnp.zeros(n), (dose, y))


def test_interventions_reach_into_a_scan():
    rng = np.random.default_rng(0)
    dose, y, drift = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=(1, 5))
    model = pg.Model(series, {"n": 3, "dose": dose, "y": y})
    late = dose.copy()
    late[2] += 1.0  # one more unit at the third step
    some = np.ma.masked_array(np.full((4, 3), 9.0), mask=np.ones((4, 3), bool))
    some[0, 1] = 9.0  # the first step of the second patient
    worlds = pg.causal.worlds(
        model,
        tree_of(model, 5, drift=drift),
        {
            "same": pg.do(dose=dose),
            "late": pg.do(dose=late),
            "some": pg.do(dose=some),
            "twice": pg.do(dose=lambda natural, drift: natural + drift),
            "back": pg.do(state=pg.from_world("factual")),
        },
    )
    state = worlds["state"].transpose("world", ...).values
    assert worlds.value("state", "late").dims == ("chain", "draw", "time", "patient")
    np.testing.assert_array_equal(state[0], np.broadcast_to(y, (1, 5, 4, 3)))
    np.testing.assert_array_equal(state[4], np.broadcast_to(y, (1, 5, 4, 3)))
    moved = state[1] - y
    np.testing.assert_allclose(moved, np.broadcast_to(np.array([0, 0, 1, 0.8])[:, None], moved.shape), atol=1e-12)
    natural = worlds.value("dose", "some").values
    assert np.all(natural[..., 0, 1] == 9.0)
    np.testing.assert_array_equal(
        natural[..., 0, [0, 2]], np.broadcast_to(dose[0, [0, 2]], natural[..., 0, [0, 2]].shape)
    )
    shifted = worlds.value("dose", "some").values[..., 1, 1] - dose[1, 1]
    np.testing.assert_allclose(shifted, 0.5 * (state[2][..., 0, 1] - y[0, 1]), atol=1e-12)
    # A function of the natural value and of another site, at every step; the natural dose follows the new state.
    raised = worlds.value("dose", "twice").values
    carried = np.concatenate([np.zeros((1, 5, 1, 3)), state[3][..., :-1, :]], 2) - np.concatenate(
        [np.zeros((1, 3)), y[:-1]]
    )
    np.testing.assert_allclose(raised, dose + 0.5 * carried + drift[..., None, None], atol=1e-12)


def backwards(y):
    start = numpyro.sample("start", dist.Normal(0, 1))

    def step(carry, seen):
        x = numpyro.sample("x", dist.Normal(0.5 * carry + start, 1))
        numpyro.sample("y", dist.Normal(x, 1), obs=seen)
        return x, None

    scan(step, 0.0, y, reverse=True)


def test_rows_of_a_backward_scan_are_rows():
    y, x = np.arange(4.0), np.array([0.3, -1.0, 0.5, 2.0])
    model = pg.Model(backwards, {"y": y})
    tree = tree_of(model, start=0.0, x=x)
    last = np.ma.masked_array(x + 1, mask=[True, True, True, False])
    worlds = pg.causal.worlds(model, tree, {"up": pg.do(start=1.0), "last": pg.do(x=last)}).also({"none": pg.do()})
    for world, moved in (("up", [1.875, 1.75, 1.5, 1]), ("last", [0.125, 0.25, 0.5, 1]), ("none", np.zeros(4))):
        np.testing.assert_allclose(worlds.value("x", world).values.ravel() - x, moved, atol=1e-12)
        np.testing.assert_allclose(worlds.value("y", world).values.ravel() - y, moved, atol=1e-12)


def branching(a, y):
    a = numpyro.sample("a", dist.Normal(0, 1), obs=a)
    b = numpyro.sample("b", dist.Normal(0, 1))
    c = cond(
        b > 0,
        lambda x: numpyro.sample("c", dist.Normal(x + 1, 2.0)),
        lambda x: numpyro.sample("c", dist.Normal(-x, 1.0)),
        a,
    )
    numpyro.sample("y", dist.Normal(c, 1), obs=y)


def test_branches_have_mechanisms_of_their_own():
    model = pg.Model(branching, {"a": 0.3, "y": 1.0})
    tree = tree_of(model, 2, b=[1.0, -1.0], c=[0.5, 0.7])
    worlds = pg.causal.worlds(model, tree, {"a": pg.do(a=1.3), "b": pg.do(b=-2.0)})
    # u = (0.5 - 1.3) / 2 in the first branch, 0.7 + 0.3 in the second
    np.testing.assert_allclose(worlds["c"].values[0], [[1.5, -0.7], [-0.3, 0.7]], atol=1e-12)
    np.testing.assert_allclose(worlds["y"].values[0], [[2.0, -0.2], [0.0, 1.0]], atol=1e-12)


def test_names_with_a_slash():
    def program(a, y):
        a = numpyro.sample("net/a", dist.Normal(0, 1), obs=a)
        b = numpyro.sample("net/b", dist.Normal(a, 1))
        numpyro.sample("y", dist.Normal(b, 1), obs=y)

    model = pg.Model(program, {"a": 0.3, "y": 1.0})
    worlds = pg.causal.worlds(model, tree_of(model, 2, **{"net/b": 0.5}), {"a": pg.do({"net/a": 1.3})})
    np.testing.assert_allclose(worlds.value("net/b", "a"), 1.5, atol=1e-12)
    assert {"net.a", "net.b", "y"} == set(worlds.tree["worlds"].data_vars)
    assert worlds.check_axioms().worst <= 1e-12


def subsampled(x, y):
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("row", len(x), subsample_size=3) as rows:
        mean = numpyro.deterministic("mean", b * x[rows])
        numpyro.sample("y", dist.Normal(mean, 1), obs=y[rows])


def test_subsampled_plates_run_whole_and_deterministic_sites_are_set():
    x, y = np.arange(8.0), np.arange(8.0) ** 2
    model = pg.Model(subsampled, {"x": x, "y": y})
    worlds = pg.causal.worlds(model, tree_of(model, 2, b=[0.5, 1.0]), {"set": pg.do(mean=x), "b0": pg.do(b=0.0)})
    assert worlds.value("y", "set").sizes["row"] == 8
    for draw, b in enumerate((0.5, 1.0)):
        np.testing.assert_allclose(worlds.value("y", "set").values[0, draw], y - b * x + x, atol=1e-12)
        np.testing.assert_allclose(worlds.value("y", "b0").values[0, draw], y - b * x, atol=1e-12)


def partly(y, seen):
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("row", 4):
        numpyro.sample("y", dist.Normal(b, 1).mask(jnp.array([True, True, True, False])), obs=y, obs_mask=seen)


def test_missing_and_masked_entries():
    y, seen = np.array([1.0, 2.0, 0.0, np.inf]), np.array([True, True, False, True])
    y[3] = 5.0
    model = pg.Model(partly, {"y": y, "seen": seen})
    imputed = np.array([1.0, 2.0, -3.0, 5.0])
    tree = tree_of(model, 1, b=1.0, y=imputed)
    worlds = pg.causal.worlds(model, tree, {"up": pg.do(b=3.0)})
    np.testing.assert_allclose(worlds.value("y", "up").values.ravel(), imputed + 2, atol=1e-12)


# -- kinds of interventions ------------------------------------------------------------------------------------------


def policy(age, t=None, y=None):
    with numpyro.plate("unit", len(age)):
        t = numpyro.sample("T", dist.Normal(0.1 * age, 1), obs=t)
        numpyro.sample("Y", dist.Normal(t * age, 2), obs=y)


def test_functions_distributions_and_new_mechanisms():
    rng = np.random.default_rng(0)
    age, t, y = rng.uniform(1, 3, 4), rng.normal(size=4), rng.normal(size=4)
    model = pg.Model(policy, {"age": age, "t": t, "y": y})
    worlds = pg.causal.worlds(
        model,
        tree_of(model, 3),
        {
            "half": pg.do(T=lambda natural: natural / 2),
            "drawn": pg.do(T=dist.Normal(0.0, 1.0)),
            "again": pg.do(T=dist.Normal(0.0, 1.0)),
            "shift": pg.do(T=pg.causal.NewMechanism(lambda d: dist.Normal(d.loc + 1, 2 * d.scale))),
            "noisy": pg.do(Y=pg.causal.NewMechanism(dist.Normal(np.zeros(4), 1.0))),
        },
    )
    np.testing.assert_allclose(worlds.value("T", "half")[0, 0], t / 2, atol=1e-12)
    np.testing.assert_allclose(worlds.value("Y", "half")[0, 0], y - t / 2 * age, atol=1e-12)
    drawn = worlds.value("T", "drawn").values
    assert len(np.unique(drawn)) == drawn.size
    np.testing.assert_array_equal(drawn, worlds.value("T", "again").values)
    np.testing.assert_allclose(worlds.value("Y", "drawn")[0], y + (drawn[0] - t) * age, atol=1e-12)
    np.testing.assert_allclose(worlds.value("T", "shift")[0, 0], 0.1 * age + 1 + 2 * (t - 0.1 * age), atol=1e-12)
    np.testing.assert_allclose(worlds.value("Y", "noisy")[0, 0], (y - t * age) / 2, atol=1e-12)
    assert worlds.check_axioms().worst <= 1e-12


def test_effects_by_group_and_on_the_treated():
    rng = np.random.default_rng(0)
    t, m = rng.integers(0, 2, 6), rng.normal(size=6)
    t[:2] = 0, 1
    model = pg.Model(mediated, {"n": 6, "t": t, "m": m, "y": rng.normal(size=6)}, coords={"unit": list("abcdef")})
    worlds = pg.causal.worlds(model, tree_of(model, 2), ARMS)
    # Y_1 - Y_0 = 1 + .8 * .5 + .4 (M_0 + .5), M_0 = M - .5 T
    each = 1 + 0.4 + 0.4 * (m - 0.5 * t + 0.5)
    np.testing.assert_allclose(worlds.ite("Y", "t1", "t0").draws[0, 0], each, atol=1e-12)
    np.testing.assert_allclose(worlds.att("Y", "t1", "t0").draws[0, 0], each[t == 1].mean(), atol=1e-12)
    by_t = worlds.cate("Y", "t1", "t0", by="T")
    np.testing.assert_allclose(by_t.mean, [each[t == 0].mean(), each[t == 1].mean()], atol=1e-12)
    by_unit = worlds.cate("Y", "t1", "t0", by="unit")
    np.testing.assert_allclose(by_unit.mean.sel(unit="c"), each[2], atol=1e-12)
    bins = worlds.cate("Y", "t1", "t0", by=m > 0)
    np.testing.assert_allclose(bins.mean, [each[m <= 0].mean(), each[m > 0].mean()], atol=1e-12)
    assert "CATE of t1 against t0 on Y by T" in repr(by_t)
    with pytest.raises(MethodError, match=r"by has shape \(2,\)"):
        worlds.cate("Y", "t1", "t0", by=[1, 2])
    with pytest.raises(MethodError, match="by names 'Z'"):
        worlds.cate("Y", "t1", "t0", by="Z")
    with pytest.raises(MethodError, match="outcome 'Y' is not 0 or 1 everywhere"):
        worlds.pns("Y", "t1", "t0")
    assert float(worlds.pns("Y", "t1", "t0", event=lambda y: y > -100)) == 0.0


def test_interventional_worlds_are_those_of_do_and_simulate():
    """Fresh units, and parameters at their draws, in distribution as ``model.do`` and ``pg.predict`` give them."""
    model = pg.Model(mediated, {"n": 200, "t": np.zeros(200, int), "m": np.zeros(200), "y": np.zeros(200)})
    worlds = pg.causal.worlds(model, tree_of(model, 50), ARMS, mode="interventional", seed=3)
    y = pg.simulate(model.do(T=1), draws=50, seed=4)["prior_predictive/Y"].values.ravel()
    assert_same_distribution(worlds.value("Y", "t1").values.ravel(), y, detects=0.06)


def test_other_people_and_other_values_need_no_new_program():
    model = pg.Model(mediated, {"n": 3, "t": np.array([0, 1, 1]), "m": np.zeros(3), "y": np.zeros(3)})
    tree = tree_of(model, 2)
    pg.causal.worlds(model, tree, {"t1": pg.do(T=1), "m": pg.do(M=0.5)})
    before = compile_count()
    other = model.with_data(t=np.array([1, 0, 0]), m=np.ones(3), y=np.ones(3))
    worlds = pg.causal.worlds(other, tree, {"all": pg.do(T=0), "more": pg.do(M=np.arange(3.0))})
    assert compile_count() == before
    np.testing.assert_allclose(worlds.value("M", "all")[0, 0], [0.5, 1, 1], atol=1e-12)


def rows(x, pre=None, t=None, y=None):
    numpyro.sample("pre", dist.Normal(x, 1), obs=pre)
    t = numpyro.sample("T", dist.Bernoulli(logits=x), obs=t)
    numpyro.sample("Y", dist.MultivariateNormal(jnp.stack([t * x, 5.0 * t], -1), jnp.eye(2)), obs=y)


def test_rows_without_a_plate():
    """The first axis counts units, the second does not; T, the outcome and labels go by the row."""
    x, t = np.arange(4.0), np.array([True, False, True, False])
    model = pg.Model(rows, {"x": x, "pre": x, "t": t, "y": np.zeros((4, 2))})
    worlds = pg.causal.worlds(model, tree_of(model, 2), {"t1": pg.do(T=True), "t0": pg.do(T=False)})
    np.testing.assert_allclose(worlds.ate("Y", "t1", "t0").mean, [x.mean(), 5.0], atol=1e-12)
    np.testing.assert_allclose(worlds.att("Y", "t1", "t0").mean, [1.0, 5.0], atol=1e-12)
    np.testing.assert_allclose(worlds.cate("Y", "t1", "t0", by="T").mean, [[2.0, 5.0], [1.0, 5.0]], atol=1e-12)
    assert worlds.check_axioms().worst <= 1e-12
    before = worlds.ate("pre", "t1", "t0")  # what no world can change
    assert before.draws.dims == ("chain", "draw")
    assert float(before) == 0.0
    assert "94% HDI [0, 0]" in repr(before)


def test_only_some_sites_are_kept():
    model = pg.Model(mediated, {"n": 2, "t": np.array([0, 1]), "m": np.zeros(2), "y": np.zeros(2)})
    worlds = pg.causal.worlds(model, tree_of(model), ARMS, sites=["Y"])
    np.testing.assert_array_equal(worlds.value("T"), [0, 1])
    for asked in (lambda: worlds.value("T", "t1"), lambda: worlds["M"], lambda: worlds.att("Y", "t1", "t0")):
        with pytest.raises(ModelError, match=r"the values of site '[TM]' were not kept"):
            asked()
    assert worlds.check_axioms().worst <= 1e-12
    # Interventions that look alike are not the same: Y_1 - Y_0 = 1 + .4 M.
    for m in (np.zeros(2), np.ones(2)):
        np.testing.assert_allclose(worlds.cde("Y", "t1", "t0", at=pg.do(M=m)).draws, 1 + 0.4 * m[0], atol=1e-12)
    with pytest.raises(ModelError, match=r"there is no world 't2'. Choose from: factual, t0, t1"):
        worlds.nde("Y", "M", "t2", "t0")


def selected(n, t=None, y=None):
    with numpyro.plate("unit", n):
        u = numpyro.sample("U", dist.Normal(0, 1))
        t = numpyro.sample("T", dist.Bernoulli(logits=u), obs=t)
        numpyro.sample("Y", dist.Normal(t * u, 1), obs=y)


def test_new_units_of_a_model_without_data():
    """E[Y_1 - Y_0] = E[U] = 0 for new units; those that were fitted have U = 3."""
    model = pg.Model(selected, {"n": 300})
    worlds = pg.causal.worlds(model, tree_of(model, 40, U=3.0), ARMS, mode="interventional")
    assert_mean(worlds.ate("Y", "t1", "t0").draws.values[0], 0.0, detects=0.2)
    assert worlds.tree["factual/U"].dims == ("chain", "draw", "unit")


# -- errors ----------------------------------------------------------------------------------------------------------


def hidden(n, x=None, y=None):
    with numpyro.plate("unit", n):
        u = numpyro.sample("U", dist.Normal(0, 1))
        x = numpyro.sample("X", dist.Bernoulli(logits=u), obs=x)
        w = numpyro.sample("W", dist.VonMises(x * 1.0, 1.0))
        numpyro.sample("Y", dist.Normal(x + u + w, 1), obs=y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": pg.do(Q=1)}, "the model has no site 'Q'"),
        ({"a": pg.do(H=np.zeros(3))}, r"to an array of shape \(3,\), but the site has shape \(\)"),
        ({"a": pg.do(H=pg.from_world("b")), "b": pg.do(H=pg.from_world("a"))}, "refer to one another in a circle"),
        ({"a": pg.do(H=pg.from_world("bb")), "b": pg.do(H=1)}, "refers to the world 'bb', .* Did you mean 'b'"),
        ({"factual": pg.do(H=1)}, "expected a string other than 'factual'"),
        ({"a": 1}, "world 'a' is int, expected pg.do"),
        ({}, "worlds must be a dict of interventions"),
        ({"a": pg.do(H=lambda natural, Y: Y)}, "a function of 'Y', which is not a site that runs before 'H'"),
        ({"a": pg.do(H=pg.causal.NewMechanism(dist.Laplace(0.0, 1.0).to_event(0).expand([2])))}, "of shape"),
        ({"a": pg.do(H=pg.causal.NewMechanism(dist.LogNormal(0.0, 1.0)))}, "whose noise is not that of the site"),
    ],
)
def test_interventions_that_cannot_be(given, message):
    model = pg.Model(primer, {"x": 0.5, "h": 1.0, "y": 1.5})
    with pytest.raises(ModelError, match=message):
        pg.causal.worlds(model, tree_of(model), given)


def test_targets_that_cannot_be():
    with pytest.raises(ModelError, match=r"do\(T=...\) contains NaN"):
        pg.do(T=np.nan)
    with pytest.raises(ModelError, match=r"do\(T=...\) got str"):
        pg.do(T="high")
    with pytest.raises(ModelError, match="a function without a parameter"):
        pg.do(T=lambda: 1)


def test_the_program_must_use_the_site_that_is_set():
    def program(t, y):
        numpyro.sample("T", dist.Bernoulli(jnp.full(2, 0.5)), obs=t)
        numpyro.sample("Y", dist.Normal(t, 1.0), obs=y)

    model = pg.Model(program, {"t": np.array([0, 1]), "y": np.zeros(2)})
    with pytest.raises(ModelError, match="site 'Y' uses the argument 't' and not the value of the site 'T'"):
        pg.causal.worlds(model, tree_of(model), ARMS)


def test_the_tree_must_know_the_units():
    model = pg.Model(hidden, {"n": 2, "x": np.array([0, 1]), "y": np.zeros(2)})
    tree = tree_of(model, U=np.zeros(2), W=np.zeros(2))
    with pytest.raises(ModelError, match="site 'W' follows VonMises, for which no mechanism"):
        pg.causal.worlds(model, tree, {"x1": pg.do(X=1)})
    # W does not descend from Y, and needs none.
    assert pg.causal.worlds(model, tree, {"y": pg.do(Y=1.0)}).value("Y", "y").values.tolist() == [[[1.0, 1.0]]]
    with pytest.raises(MethodError, match=r"site 'U' has draws of shape \(2,\), but the model has shape \(3,\)"):
        pg.causal.worlds(model.with_data(n=3, x=np.ones(3, int), y=np.zeros(3)), tree, {"x1": pg.do(X=1)})
    tree["observed_data"] = xarray.Dataset({"X": ("unit", [0, 1]), "Y": ("unit", [0.0, 0.0])})
    with pytest.raises(MethodError, match="observes 'Y' with other values than the tree was fitted to, but site 'U'"):
        pg.causal.worlds(model.with_data(y=np.ones(2)), tree, {"y": pg.do(Y=1.0)})
    with pytest.raises(MethodError, match="mode must be one of 'counterfactual', 'interventional'"):
        pg.causal.worlds(model, tree, {"y": pg.do(Y=1.0)}, mode="both")
    with pytest.raises(MethodError, match="resample names 'U', but mode='counterfactual'"):
        pg.causal.worlds(model, tree, {"y": pg.do(Y=1.0)}, resample=["U"])


def test_evidence_of_probability_zero():
    def certain(x=None, y=None):
        p = numpyro.sample("p", dist.Uniform(0, 1))
        x = numpyro.sample("X", dist.Bernoulli(p), obs=x)
        numpyro.sample("Y", dist.Bernoulli(jnp.where(x == 1, 1.0, p)), obs=y)

    model = pg.Model(certain, {"x": np.array(1), "y": np.array(1)})
    tree = tree_of(model, 4, p=0.5)
    assert float(pg.causal.worlds(model, tree, {"x0": pg.do(X=0)}, seed=1)["X"].sum()) == 0
    with pytest.raises(DataError, match=r"the evidence has probability zero: the factual value of site 'Y'.*4 of 4"):
        pg.causal.worlds(model.with_data(y=np.array(0)), tree, {"x0": pg.do(X=0)})


def test_what_is_not_known_upstream_of_the_evidence():
    model = pg.Model(primer, {"x": 0.5, "y": 1.5})
    with pytest.raises(MethodError, match="site 'H' has neither a value nor draws, but site 'Y'"):
        pg.causal.worlds(model, tree_of(model), {"x": pg.do(X=0.0)})
    # Downstream, what has not been seen is drawn.
    ahead = pg.Model(primer, {"x": 0.5, "h": 1.0})
    worlds = pg.causal.worlds(ahead, tree_of(ahead, 50), {"h2": pg.do(H=2.0)})
    np.testing.assert_allclose(worlds.ite("Y", "h2", "factual").draws, 0.4, atol=1e-12)
    assert worlds.value("Y", "h2").values.std() > 0.1


# -- learned mechanisms ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_counterfactuals_of_a_learned_bijection():
    """The ellipses of Nasr-Esfahany, Alizadeh and Shah (2023): a flow given treatment and confounder is the mechanism."""
    generative, rng, count, units = pg.generative, np.random.default_rng(0), 20_000, 500
    w, b = rng.uniform(1, 2, 3), rng.uniform(-1, 1, 3)
    z = rng.uniform(-0.5, 0.5, count)
    t = (w[0] * z + b[0] + rng.normal(size=count)) % (2 * np.pi)
    ratio = 1 + np.exp(w[1] * z + b[1]) * rng.exponential(1, count)
    size = np.exp(w[2] * z + b[2]) + rng.beta(1, 1, count)
    axes = np.stack([size * (2 + np.sin(t)), ratio * size * (2 + np.cos(t))], -1)

    def given(z, t):
        return jnp.stack([z, jnp.sin(t), jnp.cos(t)], -1)

    law = generative.fit(
        generative.Flow(layers=generative.AutoregressiveLayers(), count=2),
        np.log(axes),
        condition=np.asarray(given(z, t)),
        training=generative.Training(steps=1500, learning_rate=2e-3),
        seed=0,
    )

    def program(z, t=None, v=None):
        with numpyro.plate("unit", len(z)):
            t = numpyro.sample("t", dist.Uniform(jnp.zeros(len(z)), 2 * jnp.pi), obs=t)
            numpyro.sample("v", law.given(given(z, t)), obs=v)

    z, t, axes, other = z[:units], t[:units], axes[:units], rng.permutation(t)[:units]
    model = pg.Model(program, {"z": z, "t": t, "v": np.log(axes)})
    worlds = pg.causal.worlds(model, tree_of(model), {"other": pg.do(t=other), "same": pg.do(t=t)})
    truth = axes * np.stack([(2 + np.sin(other)) / (2 + np.sin(t)), (2 + np.cos(other)) / (2 + np.cos(t))], -1)
    found = np.exp(worlds.value("v", "other").values[0, 0])
    assert np.all(np.mean(np.abs(found / truth - 1), 0) < 0.05)  # 0.4% and 1.3%; doing nothing is 38% off
    assert np.all(np.mean(np.abs(axes / truth - 1), 0) > 0.2)
    assert np.abs(worlds.value("v", "same").values - np.log(axes)).max() < 1e-6
    assert worlds.assumptions["v"] == "the learned map from noise"
