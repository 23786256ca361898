"""The graph of a program: edges of known programs, and drawings in which plates hold their members and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan

import probgen as pg
from probgen.program.graph import draw_graph, graph_of
from probgen.program.layout import arrange
from probgen.program.provenance import Source, provenance

RNG = np.random.default_rng(0)


def edges(model, lagged=False):
    return {(a, b) for a, b, late in graph_of(model).edges(data="lagged") if late == lagged}


def radon(x, county, y=None):
    mu_a, sigma_a = numpyro.sample("mu_a", dist.Normal()), numpyro.sample("sigma_a", dist.HalfNormal())
    with numpyro.plate("county", 5):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal())
    sigma = numpyro.sample("sigma", dist.HalfCauchy())
    with numpyro.plate("home", len(x)):
        mean = numpyro.deterministic("mean", a[county] + b[county] * x)
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)
    numpyro.deterministic("contrast", a[0] - a[1])


def hmm(y=None):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    with numpyro.plate("state", 3):
        loc = numpyro.sample("loc", dist.Normal())
    scale = numpyro.sample("scale", dist.HalfNormal())

    def step(z, y_t):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Normal(loc[z], scale), obs=y_t)
        return z, None

    last, _ = scan(step, numpyro.sample("z0", dist.Categorical(jnp.ones(3) / 3)), y, length=10)
    numpyro.deterministic("last_loc", loc[last])


def trend(y=None):
    phi, q = numpyro.sample("phi", dist.Uniform(-1, 1)), numpyro.sample("q", dist.HalfNormal())

    def step(carry, y_t):
        level, slope = carry
        slope = numpyro.sample("slope", dist.Normal(phi * slope, 1.0))
        level = numpyro.sample("level", dist.Normal(level + slope, q))
        signal = numpyro.deterministic("signal", 2 * level)
        numpyro.sample("y", dist.Normal(signal, 1.0), obs=y_t)
        return (level, slope), None

    scan(step, (0.0, 0.0), y, length=8)


def crossed(y=None):
    noise = numpyro.sample("noise", dist.HalfNormal())
    subjects, items = numpyro.plate("subject", 4, dim=-2), numpyro.plate("item", 5, dim=-1)
    with subjects:
        ability = numpyro.sample("ability", dist.Normal())
    with items:
        difficulty = numpyro.sample("difficulty", dist.Normal())
    with subjects, items:
        numpyro.sample("y", dist.Normal(ability - difficulty, noise), obs=y)


def nested(y=None):
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("district", 3, dim=-2):
        effect = numpyro.sample("effect", dist.Normal(mu, 1.0))
        with numpyro.plate("school", 4, dim=-1):
            numpyro.sample("y", dist.Normal(effect, 1.0), obs=y)


MODELS = {
    "radon": lambda: pg.Model(
        radon, {"x": RNG.normal(size=9), "county": RNG.integers(0, 5, 9), "y": RNG.normal(size=9)}
    ),
    "hmm": lambda: pg.Model(hmm, {"y": RNG.normal(size=10)}),
    "trend": lambda: pg.Model(trend, {"y": RNG.normal(size=8)}),
    "crossed": lambda: pg.Model(crossed, {"y": RNG.normal(size=(4, 5))}),
    "nested": lambda: pg.Model(nested, {"y": RNG.normal(size=(3, 4))}),
}


def test_eight_schools(eight_schools):
    graph = eight_schools.graph()
    assert set(graph.edges) == {("mu", "theta"), ("tau", "theta"), ("z", "theta"), ("theta", "y")}
    assert graph.graph["plates"] == {"school": 8}
    assert graph.nodes["y"]["kind"] == "observed"
    assert graph.nodes["theta"]["kind"] == "deterministic"
    assert graph.nodes["tau"]["distribution"] == "HalfCauchy"
    assert graph.nodes["z"]["plates"] == ("school",)
    assert graph.nodes["z"]["dims"] == ("school",)
    assert graph.nodes["z"]["shape"] == (8,)


def test_edges_are_direct_and_skip_data():
    model = MODELS["radon"]()
    expected = {("mu_a", "a"), ("sigma_a", "a"), ("a", "mean"), ("b", "mean"), ("a", "contrast")}
    assert edges(model) == expected | {("mean", "y"), ("sigma", "y")}
    assert not edges(model, lagged=True)
    assert set(graph_of(model)) == {"mu_a", "sigma_a", "a", "b", "sigma", "mean", "y", "contrast"}


def test_do_cuts_and_condition_observes():
    model = MODELS["radon"]()
    cut = graph_of(model.do(a=1.0))
    assert set(cut.predecessors("a")) == set()
    assert ("a", "mean") in cut.edges
    assert cut.nodes["a"]["intervened"]
    shifted = model.do(mean=lambda mean: mean + 1)
    assert {("a", "mean_natural")} & edges(shifted) or {("a", "mean"), ("b", "mean")} <= edges(shifted)
    given = graph_of(model.condition(a=0.0))
    assert given.nodes["a"]["kind"] == "observed"
    assert set(given.edges) == set(graph_of(model).edges)


def test_scan_keeps_steps_apart():
    model = MODELS["hmm"]()
    now = {
        ("transition", "z"),
        ("z0", "z"),
        ("z", "y"),
        ("loc", "y"),
        ("scale", "y"),
        ("z", "last_loc"),
        ("loc", "last_loc"),
    }
    assert edges(model) == now
    assert edges(model, lagged=True) == {("z", "z")}
    assert graph_of(model).nodes["z"]["scan"] == "time"
    assert graph_of(model).graph["scans"] == {"time": 10}
    conditioned = model.condition(z=np.zeros(10, int))
    assert edges(conditioned) == now


def test_scan_with_two_states_and_a_deterministic():
    model = MODELS["trend"]()
    assert edges(model) == {("phi", "slope"), ("slope", "level"), ("q", "level"), ("level", "signal"), ("signal", "y")}
    assert edges(model, lagged=True) == {("slope", "slope"), ("level", "level")}
    held = model.do(level=0.0)
    assert edges(held) == {("phi", "slope"), ("level", "signal"), ("signal", "y")}
    assert edges(held, lagged=True) == {("slope", "slope")}


def test_cond_factor_mask_and_network_of_helpers():
    def program(x, mask, y=None):
        a, b, c = (numpyro.sample(name, dist.Normal()) for name in "abc")
        numpyro.factor("penalty", -jnp.abs(a))
        chosen = cond(c > 0, lambda ab: ab[0], lambda ab: 2 * ab[0], (a, b))
        x = numpyro.sample("x", dist.Normal(b, 1.0).expand([4]), obs=x, obs_mask=mask)
        numpyro.sample("y", dist.Normal(jax.jit(jax.checkpoint(jnp.sin))(chosen) + x, 1.0), obs=y)

    data = {"x": np.zeros(4), "mask": np.array([True, True, False, True]), "y": np.zeros(4)}
    graph = graph_of(pg.Model(program, data))
    assert set(graph.edges) == {("a", "penalty"), ("b", "x"), ("a", "y"), ("c", "y"), ("x", "y")}
    assert graph.nodes["penalty"]["kind"] == "factor"
    assert graph.nodes["x"]["kind"] == "observed"
    assert graph.nodes["x"]["partly_observed"]


def test_provenance_through_loops():
    def function(inputs):
        def body(carry, row):
            return (carry[0] + row, carry[1] * 2), carry[0]

        (total, doubled), history = jax.lax.scan(body, (inputs["a"], inputs["b"]), inputs["rows"])
        count = jax.lax.while_loop(lambda c: c[0] < inputs["limit"], lambda c: (c[0] + 1, c[1]), (0.0, inputs["kept"]))
        shape = jnp.zeros_like(inputs["a"])
        return {"total": total, "doubled": doubled, "history": history, "steps": count[0], "shape": shape}

    found = provenance(function, {"a": 1.0, "b": 1.0, "rows": jnp.ones(3), "limit": 2.0, "kept": 1.0})
    names = {name: {source.name for source in sources} for name, sources in found.items()}
    assert names == {
        "total": {"a", "rows"},
        "doubled": {"b"},
        "history": {"a", "rows"},
        "steps": {"limit"},
        "shape": set(),
    }
    assert Source("rows", lagged=True) in found["history"]
    assert Source("rows", lagged=False) not in found["history"]


@pytest.mark.parametrize("name", MODELS)
def test_plates_hold_their_members_and_nothing_else(name):
    graph = graph_of(MODELS[name]())
    plates = {}
    for node, data in graph.nodes(data=True):
        for plate in (*data["plates"], *filter(None, [data["scan"]])):
            plates.setdefault(plate, set()).add(node)
    straight = [(a, b) for a, b, lagged in graph.edges(data="lagged") if not lagged]
    layout = arrange(straight, plates, dict.fromkeys(graph, (1.0, 0.6)))
    for a, b in straight:
        assert layout.centers[a][1] > layout.centers[b][1]
    for node, (x, y) in layout.centers.items():
        assert 0 <= x <= layout.size[0]
        assert 0 <= y <= layout.size[1]
        for plate, (left, bottom, right, top) in layout.boxes.items():
            inside = left < x + 0.5 and x - 0.5 < right and bottom < y + 0.3 and y - 0.3 < top
            assert inside == (node in plates[plate]), (node, plate)
        for other, (x2, y2) in layout.centers.items():
            assert node == other or abs(x - x2) >= 1.0 or abs(y - y2) >= 0.6


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_drawing_is_written(tmp_path, suffix):
    path = tmp_path / f"graph.{suffix}"
    figure = draw_graph(MODELS["hmm"](), path)
    assert path.stat().st_size > 5000
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {"transition", "z", "y", "loc", "time  (10)", "state  (3)"} <= words
