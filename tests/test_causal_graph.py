"""Causal graphs: notations, programs, separation, adjustment sets, front doors, instruments, implications.

What a graph says is compared with truths that do not know the graph's rules: networkx for separation, exact
interventions in random discrete models for adjustment and front doors, exact covariances of random linear models for
instruments and efficiency.
"""

import itertools

import jax.numpy as jnp
import networkx as nx
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import probgen as pg
from probgen.causal import (
    CausalGraph,
    DiscreteSCM,
    GTest,
    PartialCorrelation,
    adjustment_sets,
    check_implications,
    conditional_front_doors,
    conditional_instruments,
    efficient_adjustment_set,
    front_door_sets,
    graph,
    implications,
    instruments,
    is_adjustment_set,
    is_front_door,
    is_instrument,
)
from probgen.causal.adjustment import without_effect
from probgen.causal.implications import holm
from probgen.testing import assert_proportion

NAPKIN = "W->R->X->Y; W<->X; W<->Y"
M_BIAS = "X->Y; X<->Z; Z<->Y"
FRONT = "X->M->Y; X<->Y"
CONDITIONAL_FRONT = "W->X; W->M; W->Y; X->M->Y; X<->Y"


def subsets(names):
    names = sorted(names)
    return [frozenset(some) for size in range(len(names) + 1) for some in itertools.combinations(names, size)]


def random_graph(rng, size, hidden=True):
    """An acyclic directed mixed graph; what it is like differs from draw to draw."""
    names = [chr(65 + i) for i in range(size)]
    order = list(rng.permutation(names))
    directed, bidirected = rng.uniform(0.2, 0.7), rng.uniform(0, 0.4) * hidden
    return CausalGraph(
        tuple(names),
        frozenset((a, b) for i, a in enumerate(order) for b in order[i + 1 :] if rng.random() < directed),
        frozenset(frozenset(pair) for pair in itertools.combinations(names, 2) if rng.random() < bidirected),
    )


def canonical(mixed):
    """The graph with a hidden node for each bidirected edge."""
    whole = nx.DiGraph(list(mixed.directed))
    whole.add_nodes_from(mixed.nodes)
    for pair in mixed.bidirected:
        whole.add_edges_from(("hidden " + "".join(sorted(pair)), end) for end in pair)
    return whole


def linear_model(mixed, rng):
    """Covariance and total effects of a random linear model: matrices over ``mixed.nodes``."""
    place = {name: i for i, name in enumerate(mixed.nodes)}
    size = len(place)
    weights, noise = np.zeros((size, size)), np.zeros((size, size))
    for a, b in mixed.directed:
        weights[place[b], place[a]] = rng.uniform(0.5, 1.5) * rng.choice([-1, 1])
    for pair in mixed.bidirected:
        loads = np.zeros(size)
        loads[[place[name] for name in pair]] = rng.uniform(0.5, 1.5, 2) * rng.choice([-1, 1], 2)
        noise += np.outer(loads, loads)
    noise += np.diag(rng.uniform(0.5, 1.5, size))
    effects = np.linalg.inv(np.eye(size) - weights)
    return effects @ noise @ effects.T, effects, place


def conditional_covariance(covariance, places, given):
    inner = covariance[np.ix_(places, places)]
    if not given:
        return inner
    across = covariance[np.ix_(places, given)]
    return inner - across @ np.linalg.solve(covariance[np.ix_(given, given)], across.T)


# -- notations -------------------------------------------------------------------------------------------------------

TEXTS = {
    "W->X; X->Y; X<->Y": "W->X; X->Y; X<->Y",
    "A->B->C<-D\nE, B<->D": "A->B; B->C; D->C; B<->D; E",
    "A→B ↔ C; B ← D": "A->B; D->B; B<->C",
    '"my node"->"b;c"; net/layers[0].weight -> "b;c"': '"net/layers[0].weight" -> "b;c"; "my node"->"b;c"',
    "digraph { A -> B; B -> C [dir=both, style=dashed]; A -> C [dir=back] }": "A->B; B<->C; C->A",
    'strict digraph g { rankdir=LR; node [shape=box] // text\n U [observed="no"]; U -> {A B}; A -> B }': "A->B; A<->B",
    "digraph { A -> B; A -> B [style=dashed]; B -> A [style=dashed]; B -> C [style=dashed] }": "A->B; A<->B; B->C",
    "digraph { subgraph cluster_0 { label=units; A -> B } B -> C }": "A->B->C",
    'dag { bb="0,0,1,1"\n X [exposure,pos="0.1,0.2"]\n Y [outcome]\n U [latent]\n X -> Y\n U -> {X Y}\n Z <-> X }': (
        "X->Y; X<->Y; Z<->X"
    ),
    "y ~ a*x + m + 1\n m ~ x +\n w  # text\n x ~~ y; x ~~ x; x ~~ 0*m\n ab := a*b": "x->y; m->y; x->m; w->m; x<->y",
    "f =~ 1*m1 + m2; y ~ f": "m1<->m2; m1<->y; m2<->y",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_notations_say_the_same_as_edges(text):
    assert graph(text) == graph(TEXTS[text])


def test_every_notation_comes_back_as_the_same_graph():
    rng = np.random.default_rng(0)
    for _ in range(30):
        drawn = random_graph(rng, 5)
        renamed = {name: rng.choice([name, f"{name} b", f'{name}"', f"x/{name}[0]", f"{name}-1"]) for name in "ABCDE"}
        mixed = CausalGraph(
            tuple(renamed.values()),
            frozenset((renamed[a], renamed[b]) for a, b in drawn.directed),
            frozenset(frozenset(renamed[end] for end in pair) for pair in drawn.bidirected),
        )
        for written in (str(mixed), mixed.dot(), mixed.dagitty(mixed.nodes[0], mixed.nodes[1]), mixed.to_networkx()):
            assert graph(written) == mixed
    assert repr(graph(FRONT)) == "CausalGraph('X->M; M->Y; X<->Y')"
    assert "X [exposure]" in graph(FRONT).dagitty("X", "Y")


def test_networkx_graphs_are_read_with_their_hidden_nodes():
    whole = nx.DiGraph([("U", "X"), ("U", "Y"), ("X", "Y"), ("L", "Z"), ("Z", "X")])
    whole.nodes["U"]["latent"] = True
    assert graph(whole, hidden="L") == graph("X->Y; X<->Y; Z->X")
    assert graph(nx.MultiDiGraph([("X", "Y", {"bidirected": True}), ("X", "Y")])) == graph("X->Y; X<->Y")
    assert graph(graph("U->X; U->Y"), hidden="U") == graph("X<->Y")
    assert graph("U->X; U->Y; V->U; V->Z", hidden=("U", "V")).hidden_causes == {
        frozenset("XY"): {"U"} | {"V"},
        frozenset("XZ"): {"V"},
        frozenset("YZ"): {"V"},
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("A->B->C->A", "the cycle A -> B -> C -> A.*A<->B"),
        ("A->A", "joins 'A' to itself"),
        ("A<->A", "joins 'A' to itself"),
        ("X Y", "has 'Y' where an arrow"),
        ("A->", "ends in the middle of an edge"),
        ("A--B", "does not say which end is the cause"),
        ("A->B; a = b", "has '=' where"),
        ("A->$<", "cannot be read at '<'"),
        ("", "has no node"),
        ("mag { A -> B }", "of type 'mag'"),
        ("dag { A -> B", "closing brace"),
        ("dag { A -> B; S [selected] }", "selects units by 'S'"),
        ("dag { A @-> B }", "does not say which end"),
        ("digraph { A:n -> B }", "the port 'A:n'"),
        ("digraph { A -> B [dir=none] }", "dir=none"),
        ("digraph { A -> {B C }", "closing"),
        ("y ~ 3x^2", r"the term '3x\^2'"),
        ("y ~ x ~ z", "cannot be read"),
        (nx.Graph([("A", "B")]), "undirected Graph"),
        (nx.DiGraph([("A", "B"), ("B", "A")]), "the cycle"),
        (nx.DiGraph([((1, 2), "B")]), r"a node of the graph is \(1, 2\)"),
        (3, "cannot be made from int"),
    ],
)
def test_what_is_no_causal_graph_is_refused(source, message):
    with pytest.raises(pg.ModelError, match=message):
        graph(source)


def test_names_that_are_no_nodes_are_refused():
    mixed = graph("U->treatment->Y; U->Y", hidden="U")
    with pytest.raises(pg.ModelError, match=r"not a node of the graph. Did you mean 'treatment'\?"):
        mixed.parents("treatmnt")
    with pytest.raises(pg.ModelError, match=r"'U' is hidden\. Take it out of hidden="):
        adjustment_sets(mixed, "treatment", "Y", among="U")
    with pytest.raises(pg.ModelError, match="in two of its three sets"):
        mixed.separated("Y", "Y")
    with pytest.raises(pg.ModelError, match="both treatment and outcome"):
        adjustment_sets(mixed, "Y", "Y")
    with pytest.raises(pg.ModelError, match="outcome names no node"):
        adjustment_sets(mixed, "treatment", ())
    with pytest.raises(pg.ModelError, match="hidden= names 'V'"):
        graph("X->Y", hidden="V")
    with pytest.raises(pg.ModelError, match=r"no pg\.Model"):
        graph("X->Y", keep="X")
    with pytest.raises(pg.ModelError, match=r"A->C names 'C'"):
        CausalGraph(("A", "B"), frozenset({("A", "C")}))
    with pytest.raises(pg.ModelError, match="'A' twice"):
        CausalGraph(("A", "A"))


# -- structure -------------------------------------------------------------------------------------------------------


def test_relatives_districts_and_cuts():
    mixed = graph(NAPKIN)
    assert mixed.topological == ("W", "R", "X", "Y")
    assert mixed.districts == (frozenset("WXY"), frozenset("R"))
    assert (mixed.parents("X"), mixed.children("R"), mixed.spouses("W")) == ({"R"}, {"X"}, {"X", "Y"})
    assert (mixed.ancestors("X"), mixed.descendants(["X", "W"])) == ({"W", "R", "X"}, {"W", "R", "X", "Y"})
    assert mixed.cut_into("X") == graph("W->R; X->Y; W<->Y")
    assert mixed.cut_out_of("X") == graph("W->R->X; W<->X; W<->Y")
    assert mixed.subgraph(["X", "Y", "W"]) == graph("X->Y; W<->X; W<->Y")
    assert mixed.project("W") == graph("R->X->Y; R<->X; R<->Y")  # W would join X and Y only as a collider


def test_separation_is_that_of_the_graph_with_its_hidden_nodes():
    rng = np.random.default_rng(1)
    verdicts = []
    for _ in range(150):
        mixed = random_graph(rng, int(rng.integers(3, 9)))
        whole, names = canonical(mixed), list(rng.permutation(mixed.nodes))
        first, second = sorted(rng.integers(1, len(names), 2))
        a, b, given = names[:first], names[first : second + 1], names[second + 1 :]
        given = given[: rng.integers(len(given) + 1)]
        verdicts.append(mixed.separated(a[:1], b[:2], given))
        assert verdicts[-1] == nx.is_d_separator(whole, set(a[:1]), set(b[:2]), set(given))
    assert 20 < sum(verdicts) < 130


def test_projection_keeps_separations_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(2)
    for _ in range(60):
        mixed = random_graph(rng, 7)
        hidden = list(rng.permutation(mixed.nodes)[:3])
        small = mixed.project(hidden)
        assert small == mixed.project(hidden[2]).project(hidden[0]).project(hidden[1])
        a, b, *rest = rng.permutation(small.nodes)
        for given in subsets(rest):
            assert small.separated(a, b, given) == mixed.separated(a, b, given)
        assert graph(canonical(mixed), hidden=set(canonical(mixed)) - set(mixed.nodes)) == mixed


# -- programs --------------------------------------------------------------------------------------------------------

N = 12
RNG = np.random.default_rng(0)
FRAME = {"W": RNG.normal(size=N), "T": RNG.integers(0, 2, N), "Y": RNG.normal(size=N)}
GROUP = np.arange(N) % 3


def plated(W=None, T=None, Y=None):
    slope, noise = numpyro.sample("slope", dist.Normal().expand([2])), numpyro.sample("noise", dist.HalfNormal())
    numpyro.factor("belief", -(slope[0] ** 2))
    with numpyro.plate("unit", N):
        W = numpyro.sample("W", dist.Normal(), obs=W)
        T = numpyro.sample("T", dist.Bernoulli(logits=slope[0] * W), obs=T)
        mean = numpyro.deterministic("mean", slope[1] * W + T)
        numpyro.sample("Y", dist.Normal(mean, noise), obs=Y)


def rows(X, T=None, Y=None):
    a = numpyro.sample("a", dist.Normal().expand([4]).to_event(1))
    b = numpyro.sample("b", dist.Normal().expand([4]).to_event(1))
    T = numpyro.sample("T", dist.Bernoulli(logits=X @ a), obs=T)
    numpyro.sample("Y", dist.Normal(X @ b + T, 1.0), obs=Y)


def treatment_as_argument(T, Y=None):
    with numpyro.plate("unit", N):
        numpyro.sample("Y", dist.Normal(numpyro.sample("u", dist.Normal()) + T, 1.0), obs=Y)


def looked_up(g, T=None, Y=None):
    with numpyro.plate("group", 3):
        a = numpyro.sample("a", dist.Normal())
    with numpyro.plate("unit", N):
        T = numpyro.sample("T", dist.Bernoulli(logits=a[g]), obs=T)
        numpyro.sample("Y", dist.Normal(T + a[g], 1.0), obs=Y)


def nested(T=None, Y=None):
    with numpyro.plate("group", 3, dim=-2):
        a = numpyro.sample("a", dist.Normal())
        with numpyro.plate("unit", 4, dim=-1):
            T = numpyro.sample("T", dist.Bernoulli(logits=a), obs=T)
            numpyro.sample("Y", dist.Normal(T + a, 1.0), obs=Y)


def group_as_site(G=None, T=None, Y=None):
    with numpyro.plate("group", 3):
        a = numpyro.sample("a", dist.Normal())
    with numpyro.plate("unit", N):
        G = numpyro.sample("G", dist.Categorical(jnp.ones(3) / 3), obs=G)
        T = numpyro.sample("T", dist.Bernoulli(logits=a[G]), obs=T)
        numpyro.sample("Y", dist.Normal(T + a[G], 1.0), obs=Y)


def outside(T=None, Y=None):
    with numpyro.plate("unit", N):
        T = numpyro.sample("T", dist.Normal(FRAME["W"], np.ones(N)), obs=T)
        numpyro.sample("Y", dist.Normal(T + FRAME["W"], 1.0), obs=Y)


def constants(T=None, Y=None):
    T = numpyro.sample("T", dist.Normal(np.zeros(N), 1.0), obs=T)
    numpyro.sample("Y", dist.Normal(T + np.ones(N), 1.0), obs=Y)


def one_unit():
    u = numpyro.sample("U", dist.Normal())
    x = numpyro.sample("X", dist.Normal(u))
    numpyro.sample("Y", dist.Normal(x + u))


def partly_missing(W, seen, T=None, Y=None):
    with numpyro.plate("unit", N):
        W = numpyro.sample("W", dist.Normal(), obs=W, obs_mask=seen)
        T = numpyro.sample("T", dist.Bernoulli(logits=W), obs=T)
        numpyro.sample("Y", dist.Normal(T + W, 1.0), obs=Y)


def two_measurements(T=None, Y=None, Z=None):
    with numpyro.plate("unit", N):
        u = numpyro.sample("u", dist.Normal())
        T = numpyro.sample("T", dist.Normal(u), obs=T)
        mean = numpyro.deterministic("mean", T + u)
        numpyro.sample("Y", dist.Normal(mean, 1.0), obs=Y)
        numpyro.sample("Z", dist.Normal(mean, 1.0), obs=Z)


def steps_alone(T=None, Y=None):
    b = numpyro.sample("b", dist.Normal())

    def step(carry, now):
        t = numpyro.sample("T", dist.Normal(), obs=now[0])
        numpyro.sample("Y", dist.Normal(b * t, 1.0), obs=now[1])
        return carry, None

    scan(step, 0.0, (T, Y), length=N)


def noises():
    with numpyro.plate("unit", N):
        shared = numpyro.sample("shared", dist.Normal())
        T = numpyro.deterministic("T", shared + numpyro.sample("noise_T", dist.Normal()))
        M = numpyro.deterministic("M", T + numpyro.sample("noise_M", dist.Normal()))
        numpyro.deterministic("Y", M + shared + numpyro.sample("noise_Y", dist.Normal()))


def series(T=None, Y=None):
    lag = jnp.concatenate([jnp.zeros(1), T[:-1]]), jnp.concatenate([jnp.zeros(1), Y[:-1]])
    T = numpyro.sample("T", dist.Normal(lag[0], 1.0), obs=T)
    numpyro.sample("Y", dist.Normal(T + lag[1], 1.0), obs=Y)


PAIR = {"T": FRAME["T"], "Y": FRAME["Y"]}
REAL = {"T": 1.0 * FRAME["T"], "Y": FRAME["Y"]}
NESTED = {name: values.reshape(3, 4) for name, values in PAIR.items()}
PROGRAMS = {
    "confounder in a plate": (plated, FRAME, {}, "W->T; W->Y; T->Y"),
    "hidden confounder": (plated, PAIR, {}, "T->Y; T<->Y"),
    "hidden on purpose": (plated, FRAME, {"hidden": "W"}, "T->Y; T<->Y"),
    "kept confounder": (plated, PAIR, {"keep": "W"}, "W->T; W->Y; T->Y"),
    "kept mean": (plated, FRAME, {"keep": "mean"}, "W->T; W->mean; T->mean; mean->Y"),
    "nothing observed": (plated, {}, {}, "W->T; W->Y; T->Y"),
    "rows and a matrix": (rows, {"X": RNG.normal(size=(N, 4)), **PAIR}, {}, "X->T; X->Y; T->Y"),
    "rows with a hidden matrix": (rows, {"X": RNG.normal(size=(N, 4)), **PAIR}, {"hidden": "X"}, "T->Y; T<->Y"),
    "group effects looked up": (looked_up, {"g": GROUP, **PAIR}, {}, "g->T; g->Y; T->Y"),
    "group label not recorded": (looked_up, {"g": GROUP, **PAIR}, {"hidden": "g"}, "T->Y; T<->Y"),
    "group effects in nested plates": (nested, NESTED, {}, "T->Y; T<->Y"),
    "groups as a variable": (nested, NESTED, {"keep": "group"}, "group->T; group->Y; T->Y"),
    "group label as a site": (group_as_site, {"G": GROUP, **PAIR}, {}, "G->T; G->Y; T->Y"),
    "array outside": (outside, REAL, {}, "T->Y; T<->Y"),
    "constants outside": (constants, REAL, {}, "T->Y"),
    "missing values": (partly_missing, {"W": FRAME["W"], "seen": GROUP > 0, **PAIR}, {}, "W->T; W->Y; T->Y"),
    "hidden cause of a mean": (two_measurements, {**REAL, "Z": REAL["Y"]}, {}, "T->Y; T->Z; T<->Y; T<->Z; Y<->Z"),
    "steps without memory": (steps_alone, REAL, {}, "T->Y"),
    "noises written out": (noises, {}, {"keep": ("T", "M", "Y")}, "T->M; M->Y; T<->Y"),
    "earlier values of both": (series, REAL, {}, "T->Y; T<->Y"),
    "one unit": (one_unit, {}, {}, "U->X; U->Y; X->Y"),
    "one unit with a hidden cause": (one_unit, {}, {"hidden": "U"}, "X->Y; X<->Y"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_the_graph_of_a_program_is_that_of_its_units(case):
    program, data, options, expected = PROGRAMS[case]
    assert graph(pg.Model(program, data), **options) == graph(expected)


def test_conditions_and_interventions_show_in_the_graph():
    assert graph(pg.Model(one_unit).condition(X=1.0, Y=2.0)) == graph("X->Y; X<->Y")
    assert graph(pg.Model(one_unit).do(X=1.0)) == graph("U->Y; X->Y")
    assert graph(pg.Model(plated, FRAME).do(T=1)) == graph("W->Y; T->Y")


def test_a_program_says_why_something_is_no_node():
    hidden = graph(pg.Model(plated, PAIR))
    assert hidden.hidden_causes == {frozenset("TY"): {"W"}}
    for name, message in {
        "W": "latent site, which varies with the units.*keep='W'",
        "slope": "it is a parameter",
        "mean": "deterministic site.*keep='mean'",
    }.items():
        with pytest.raises(pg.ModelError, match=message):
            hidden.require(name)
    with pytest.raises(pg.ModelError, match=r"Write T = numpyro.sample\('T', ..., obs=T\)"):
        adjustment_sets(graph(pg.Model(treatment_as_argument, PAIR)), "T", "Y")
    assert adjustment_sets(graph(pg.Model(looked_up, {"g": GROUP, **PAIR})), "T", "Y") == [frozenset("g")]


def test_programs_without_an_acyclic_graph_are_refused():
    def filtered(Y=None):
        def step(x, y):
            x = numpyro.sample("X", dist.Normal(x))
            numpyro.sample("Y", dist.Normal(x), obs=y)
            return x, None

        scan(step, 0.0, Y, length=N)

    def tied(T=None, Y=None):
        with numpyro.plate("unit", N):
            T = numpyro.sample("T", dist.Normal(), obs=T)
            Y = numpyro.sample("Y", dist.Normal(), obs=Y)
            numpyro.factor("tie", -((T - Y) ** 2))

    def likelihood(y):
        numpyro.factor("likelihood", dist.Normal(numpyro.sample("m", dist.Normal()), 1.0).log_prob(y))
        numpyro.sample("Z", dist.Normal().expand([N]), obs=np.zeros(N))

    def bypassed(T=None, Y=None):
        with numpyro.plate("unit", N):
            numpyro.sample("T", dist.Normal(), obs=T)
            numpyro.sample("Y", dist.Normal(T), obs=Y)

    for program, data, message in (
        (filtered, {"Y": FRAME["Y"]}, "'X' depends on 'X' of an earlier step.*Python loop"),
        (tied, REAL, "the factor 'tie' ties 'T', 'Y'"),
        (likelihood, {"y": FRAME["Y"]}, "the factor 'likelihood' ties 'y'"),
        (bypassed, REAL, r"'Y' uses the argument 'T' and not the value.*Write T = numpyro.sample\('T'"),
    ):
        with pytest.raises(pg.ModelError, match=message):
            graph(pg.Model(program, data))
    with pytest.raises(pg.ModelError, match=r"keep= names 'meen'.*Did you mean 'mean'"):
        graph(pg.Model(plated, FRAME), keep="meen")
    with pytest.raises(pg.ModelError, match="keep= names 'slope', which does not vary"):
        graph(pg.Model(plated, FRAME), keep="slope")


# -- adjustment and front doors ----------------------------------------------------------------------------------------


def adjusted(law, treatment, outcome, covariates):
    """sum_z P(y | x, z) P(z) from a joint table."""
    x, y, z = ([law.dims.index(name) for name in sorted(names)] for names in (treatment, outcome, covariates))
    joint = law.values.sum(tuple(set(range(law.ndim)) - {*x, *y, *z}), keepdims=True)
    whole = joint / joint.sum(tuple(y), keepdims=True) * joint.sum((*x, *y), keepdims=True)
    whole = whole.sum(tuple(z), keepdims=True).transpose(*y, *x, *(set(range(law.ndim)) - {*x, *y}))
    return whole.reshape(whole.shape[: len(x) + len(y)])


def through_front_door(law, x, outcome, mediators, covariates):
    y, m, w = sorted(outcome), sorted(mediators), sorted(covariates)

    def of(names):
        return law.sum([dim for dim in law.dims if dim not in names])

    inner = of([*y, x, *m, *w]) / of([x, *m, *w]) * of([x, *w]) / of(w)
    return (of(w) * of([*m, x, *w]) / of([x, *w]) * inner.sum(x)).sum([*m, *w]).transpose(*y, x)


def minimal(sets):
    return {one for one in sets if not any(other < one for other in sets)}


@pytest.mark.parametrize(("seed", "graphs"), [(3, 60), pytest.param(13, 600, marks=pytest.mark.slow)])
def test_a_set_is_valid_exactly_where_adjusting_gives_the_truth(seed, graphs):
    rng = np.random.default_rng(seed)
    verdicts = []
    for _ in range(graphs):
        mixed = random_graph(rng, int(rng.integers(3, 7)))
        names, several = list(rng.permutation(mixed.nodes)), 1 + (rng.random() < 0.4)
        treatment, outcome = frozenset(names[:several]), frozenset(names[several : several + 1 + (rng.random() < 0.2)])
        rest = set(names) - treatment - outcome
        model = DiscreteSCM.random(mixed, rng)
        law, truth = model.table(), model.table(sorted(outcome), sorted(treatment)).values
        valid = {some for some in subsets(rest) if is_adjustment_set(mixed, treatment, outcome, some)}
        for some in subsets(rest):
            error = abs(adjusted(law, treatment, outcome, some) - truth).max()
            verdicts.append(some in valid)
            assert error < 1e-12 if some in valid else error > 1e-8, (mixed, treatment, outcome, some)
        listed = adjustment_sets(mixed, treatment, outcome)
        assert (set(listed), len(listed)) == (minimal(valid), len(minimal(valid)))
        among = set(list(rest)[:2])
        assert set(adjustment_sets(mixed, treatment, outcome, among=among)) == minimal(
            {some for some in valid if some <= among}
        )
    assert 80 < sum(verdicts) < len(verdicts) - 80


def test_front_doors_give_the_truth_and_none_is_missing():
    rng = np.random.default_rng(4)
    found = {True: 0, False: 0}
    for _ in range(60):
        mixed = random_graph(rng, int(rng.integers(3, 6)))
        x, y = mixed.topological[0], mixed.topological[-1]
        model = DiscreteSCM.random(mixed, rng)
        law, truth = model.table(), model.table([y], [x])
        for mediators, covariates in conditional_front_doors(mixed, x, y):
            assert is_front_door(mixed, x, y, mediators, given=covariates)
            error = abs(through_front_door(law, x, [y], mediators, covariates) - truth).max().item()
            assert error < 1e-12, (mixed, x, y, mediators, covariates)
            found[bool(covariates)] += 1
        valid = {some for some in subsets(set(mixed.nodes) - {x, y}) if is_front_door(mixed, x, y, some)}
        assert set(front_door_sets(mixed, x, y)) == minimal(valid)
    assert found[False] > 10
    for text in (CONDITIONAL_FRONT, "A->C->B; D->B; A<->B; C<->D"):
        mixed = graph(text)
        x, y = ("X", "Y") if "X" in mixed.nodes else ("A", "B")
        model = DiscreteSCM.random(mixed, rng)
        pairs = conditional_front_doors(mixed, x, y)
        assert any(covariates for _, covariates in pairs)
        for pair in pairs:
            assert abs(through_front_door(model.table(), x, [y], *pair) - model.table([y], [x])).max() < 1e-12


@pytest.mark.parametrize(
    ("text", "adjust", "front", "conditional", "instrument"),
    [
        ("W->X; W->Y; X->Y", [{"W"}], [], [], set()),
        (FRONT, [], [{"M"}], [({"M"}, set())], set()),
        ("X->Y; X<->Y", [], [], [], set()),
        ("Z->X->Y; X<->Y", [], [], [], {"Z"}),
        (NAPKIN, [], [], [], set()),
        (M_BIAS, [set()], [], [], set()),
        (CONDITIONAL_FRONT, [], [], [({"M"}, {"W"})], set()),
        ("X->M->Y; X->Y; M<->Y", [set()], [], [], set()),
        ("X->M->Y; X<->M", [], [], [], set()),
    ],
)
def test_textbook_graphs(text, adjust, front, conditional, instrument):
    mixed = graph(text)
    assert adjustment_sets(mixed, "X", "Y") == adjust
    assert front_door_sets(mixed, "X", "Y") == front
    assert conditional_front_doors(mixed, "X", "Y") == conditional
    assert instruments(mixed, "X", "Y") == instrument


def test_m_bias_and_descendants_are_refused():
    assert not is_adjustment_set(graph(M_BIAS), "X", "Y", "Z")
    assert not is_adjustment_set(graph("X->M->Y"), "X", "Y", "M")
    assert not is_adjustment_set(graph("X->Y->D"), "X", "Y", "D")
    assert not is_adjustment_set(graph("X->M->Y; M->D"), "X", "Y", "D")
    assert is_adjustment_set(graph("X->D; X->Y"), "X", "Y", "D")


def test_many_adjustment_sets_end_with_a_warning():
    wide = graph("; ".join(f"A{i}->B{i}; A{i}->X; B{i}->Y" for i in range(5)) + "; X->Y")
    assert len(adjustment_sets(wide, "X", "Y")) == 32
    with pytest.warns(pg.ProbgenWarning, match="more than 7 minimal adjustment sets"):
        assert len(adjustment_sets(wide, "X", "Y", limit=7)) == 7


def test_the_efficient_set_has_the_smallest_variance_of_all():
    """In a linear Gaussian model n Var(estimate) = Var(y | x, z) / Var(x | z), exactly known."""
    rng = np.random.default_rng(5)
    strictly = 0
    for _ in range(60):
        mixed = random_graph(rng, 6, hidden=False)
        covariance, _, place = linear_model(mixed, rng)
        x, y = mixed.topological[1], mixed.topological[-1]
        best = efficient_adjustment_set(mixed, x, y)

        def variance(names, covariance=covariance, place=place, x=x, y=y):
            given = [place[name] for name in sorted(names)]
            of_y = conditional_covariance(covariance, [place[y]], [place[x], *given])
            return (of_y / conditional_covariance(covariance, [place[x]], given)).item()

        valid = [z for z in subsets(set(mixed.nodes) - {x, y}) if is_adjustment_set(mixed, x, y, z)]
        if best is None:
            assert not valid or y not in mixed.descendants(x)
            continue
        assert best in valid
        others = [variance(z) for z in valid]
        assert variance(best) <= min(others) * (1 + 1e-9)
        strictly += variance(best) < max(others) * 0.95
    assert strictly > 10
    assert efficient_adjustment_set(graph("W->X; W->Y; X->M->Y; M<->Y"), "X", "Y") is None
    assert efficient_adjustment_set(graph("W->X->Y; V->Y; V<->W"), "X", "Y") == {"V"}


# -- instruments -----------------------------------------------------------------------------------------------------


def test_instruments_are_those_whose_ratio_is_the_effect():
    rng = np.random.default_rng(6)
    verdicts, conditional = [], 0
    for _ in range(80):
        mixed = random_graph(rng, 5)
        x, y = mixed.topological[-2:]
        covariance, effects, place = linear_model(mixed, rng)
        others = set(mixed.nodes) - {x, y}
        for z in others:
            for given in subsets(others - {z}):
                inner = conditional_covariance(
                    covariance, [place[name] for name in (z, x, y)], [place[name] for name in sorted(given)]
                )
                relevant = abs(inner[0, 1]) > 1e-9
                ratio = inner[0, 2] / inner[0, 1] if relevant else np.nan
                truth = abs(ratio - effects[place[y], place[x]]) < 1e-9
                verdicts.append(is_instrument(mixed, z, x, y, given))
                assert verdicts[-1] == (relevant and truth), (mixed, z, given)
        listed = conditional_instruments(mixed, x, y)
        assert all(is_instrument(mixed, z, x, y, given) for z, given in listed)
        assert {z for z, given in listed if not given} == instruments(mixed, x, y)
        conditional += any(given for _, given in listed)
    assert sum(verdicts) > 50
    assert conditional > 3


def test_a_napkin_has_an_instrument_only_given_its_fold():
    """R given W, for linear models; a hidden node is never an instrument, and neither is what X causes."""
    assert conditional_instruments(graph(NAPKIN), "X", "Y") == [("R", frozenset("W"))]
    hidden = "U->X; U->Y; Z->X; X->Y; X->D; X<->Y"
    assert instruments(graph(hidden, hidden="U"), "X", "Y") == {"Z"}
    with pytest.raises(pg.ModelError, match="one treatment and one outcome"):
        instruments(graph(NAPKIN), ("X", "R"), "Y")
    with pytest.raises(pg.ModelError, match="two roles"):
        is_instrument(graph(NAPKIN), "R", "X", "Y", "R")


# -- implications ------------------------------------------------------------------------------------------------------


def test_every_separable_pair_is_listed_with_a_minimal_set():
    rng = np.random.default_rng(7)
    for _ in range(60):
        mixed = random_graph(rng, 5)
        listed = {frozenset((one.a, one.b)): one.given for one in implications(mixed)}
        for a, b in itertools.combinations(mixed.nodes, 2):
            adjacent = {(a, b), (b, a)} & mixed.directed or frozenset((a, b)) in mixed.bidirected
            sets = [z for z in subsets(set(mixed.nodes) - {a, b}) if not adjacent and mixed.separated(a, b, z)]
            assert (frozenset((a, b)) in listed) == bool(sets)
            if sets:
                assert len(listed[frozenset((a, b))]) == min(map(len, sets))
                assert listed[frozenset((a, b))] in sets
    assert [str(one) for one in implications(graph("A->B->C->D; B<->D"))] == [
        "A ⊥ C | B"
    ]  # A and D: a Verma constraint
    assert [str(one) for one in implications(graph("A->M->B"), among=("A", "B"))] == []


def chain(rng, rows, discrete):
    """A -> B -> C -> D with D depending on A as well where ``broken``."""
    if discrete:
        a = rng.integers(0, 3, rows)
        b = (rng.random(rows) < np.array([0.2, 0.5, 0.8])[a]).astype(int)
        c = rng.binomial(2, np.where(b, 0.7, 0.4))
        d = (rng.random(rows) < np.array([0.3, 0.5, 0.8])[c]).astype(int)
    else:
        a = rng.normal(size=rows)
        b = 0.8 * a + rng.normal(size=rows)
        c = 0.8 * b + rng.normal(size=rows)
        d = 0.8 * c + rng.normal(size=rows)
    return {"A": a, "B": b, "C": c, "D": d}


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_p_values_are_uniform_and_families_err_as_rarely_as_they_say(discrete):
    rng, mixed = np.random.default_rng(8), graph("A->B->C->D")
    test = GTest() if discrete else PartialCorrelation()
    single, family = [], []
    for _ in range(1000):
        data = chain(rng, 300 if discrete else 40, discrete)
        # B and D given both A and C, so that strata, or columns, multiply.
        found = [test(data, *pair).p for pair in (("A", "C", ["B"]), ("B", "D", ["C"]), ("A", "D", ["B"]))]
        single.append(test(data, "B", "D", ["A", "C"] if not discrete else ["C"]).p)
        family.append((holm(np.array(found)) < 0.05).any())
    assert stats.kstest(single, "uniform").pvalue > 1e-6
    assert_proportion((np.array(single) < 0.05).sum(), 1000, 0.05, detects=0.06)
    assert stats.binomtest(int(np.sum(family)), 1000, 0.05, "greater").pvalue > 1e-6
    report = check_implications(mixed, data)
    assert set(report.table["test"]) == {test.name}
    assert len(report.table) == len(implications(mixed)) == 3


def test_partial_correlation_and_g_are_the_textbook_numbers():
    rng = np.random.default_rng(9)
    data = chain(rng, 50, discrete=False)
    covariance = np.cov([data["A"], data["C"], data["B"], data["D"]])
    inverse = np.linalg.inv(covariance)
    found = PartialCorrelation()(data, "A", "C", ["B", "D"])
    assert found.effect == pytest.approx(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]), abs=1e-12)
    z = np.sqrt(50 - 2 - 3) * np.arctanh(found.effect)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-12)
    data = chain(rng, 300, discrete=True)
    total = degrees = 0
    for level in (0, 1):
        here = data["B"] == level
        seen = np.histogram2d(data["A"][here], data["C"][here], bins=[3, 3])[0]
        g, _, free, _ = stats.chi2_contingency(seen, lambda_="log-likelihood", correction=False)
        total, degrees = total + g, degrees + free
    found = GTest()(data, "A", "C", ["B"])
    assert (found.statistic, found.p) == pytest.approx((total, stats.chi2.sf(total, degrees)), abs=1e-9)
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)


def test_a_wrong_graph_is_contradicted_and_says_where():
    import pandas

    rng = np.random.default_rng(10)
    data = pandas.DataFrame(chain(rng, 500, discrete=False))
    data["D"] += data["A"]
    report = check_implications(graph("A->B->C->D; E->A"), data)
    assert report.rejected
    assert report.rows == 500
    assert "A ⊥ D | B" in set(report.table["independence"][report.table["rejected"]])
    assert any("contradict A ⊥ D" in sentence for sentence in report.findings)
    assert any("Not measured" in sentence and "E" in sentence for sentence in report.findings)
    right = check_implications(graph("A->B->C->D; A->D"), data)
    assert not right.rejected
    assert "None of 2" in right.findings[-1]
    assert "implies no conditional independence" in check_implications(graph("A->B"), data).findings[-1]
    text = pandas.DataFrame(chain(rng, 500, discrete=True))
    text["B"] = np.where(text["B"] == 1, "yes", "no")
    assert not check_implications(graph("A->B->C->D"), text).rejected
    few = check_implications(graph("A->B->C->D"), text[:20])
    assert few.table["p"].isna().any()
    assert "too few rows per cell" in few.findings[0]
    twin = rng.normal(size=50)
    same = check_implications(graph("A->B->C->D"), {**chain(rng, 50, False), "C": twin, "B": twin})
    assert same.table["p"].isna().any()


def test_categories_become_indicators_and_what_cannot_be_tested_is_refused():
    data = chain(np.random.default_rng(11), 40, discrete=False)
    mixed = graph("A->B->C->D")
    for wrong, error, message in (
        ({"Q": data["A"]}, pg.ModelError, "a column for 0 of the nodes"),
        ({**data, "B": np.where(data["B"] > 1, np.nan, data["B"])}, pg.DataError, "'B' has .* missing values"),
        ({**data, "B": np.ones(40)}, pg.DataError, "'B' is constant"),
        ({**data, "B": data["B"][:9]}, pg.DataError, "different lengths"),
        ({name: values[:4] for name, values in data.items()}, pg.DataError, "at least 5 are needed"),
        (3, pg.DataError, "got int"),
    ):
        with pytest.raises(error, match=message):
            check_implications(mixed, wrong)
    with pytest.raises(pg.MethodError, match="between 0 and 1, got 5"):
        check_implications(mixed, data, level=5)
    levels = np.array(["x", "y", "z", "x"] * 10)
    indicators = {**data, "y": levels == "y", "z": levels == "z", "B": levels}
    test = PartialCorrelation()
    assert test(indicators, "A", "C", ["B"]).p == pytest.approx(test(indicators, "A", "C", ["y", "z"]).p, abs=1e-12)
    with pytest.raises(pg.DataError, match="holds categories"):
        test({**data, "A": levels}, "A", "C", ["B"])


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_drawings_show_roles_and_hidden_causes(tmp_path):
    from matplotlib.colors import to_hex
    from matplotlib.patches import Ellipse, PathPatch

    mixed = graph(CONDITIONAL_FRONT)
    figure = mixed.draw(treatment="X", outcome="Y", adjustment="W", path=tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    patches = figure.axes[0].patches
    assert len([p for p in patches if isinstance(p, PathPatch)]) == len(mixed.bidirected)
    colours = {to_hex(p.get_facecolor()) for p in patches if isinstance(p, Ellipse)}
    assert len(colours) == 4
    assert {text.get_text() for text in figure.axes[0].texts} == set(mixed.nodes)
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {
        "treatment",
        "outcome",
        "adjusted for",
    }
    with pytest.raises(pg.ModelError, match="both as treatment and as outcome"):
        mixed.draw(treatment="X", outcome="X")
    assert without_effect(mixed, "X", "Y").draw().axes[0].get_legend() is None
