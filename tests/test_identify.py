"""Identification: formulas against exact interventions on random models, textbook formulas and numbers, hedges."""

import itertools
import re

import networkx as nx
import numpy as np
import pytest
import xarray
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import probgen as pg
from probgen.causal import (
    CausalGraph,
    ControlledDirectEffect,
    DiscreteSCM,
    NaturalDirectEffect,
    NaturalIndirectEffect,
    PathSpecificEffect,
    Query,
    TotalEffect,
    identify,
)
from probgen.causal.contraction import Factor, TooLarge, contract
from probgen.causal.expression import Probability, Variable, product, substitute, variables
from probgen.causal.kernels import district_kernels
from probgen.causal.notation import Notation
from probgen.causal.simplify import Simplifier
from probgen.causal.verification import verify
from probgen.testing import assert_mean, assert_moments

EXACT = 1e-12
NAPKIN = "W->R; R->X; X->Y; W<->X; W<->Y"
BOW = "X->Y; X<->Y"
VERMA = "A->B; B->C; C->D; B<->D"
MEDIATION = "X->M; M->Y; X->Y"


def brute(model, names, do=()):
    """P(names | do) by writing out every cell of the product of all tables; axes: names, then do."""
    tables = [model.tables[name] for name in model.graph.nodes if name not in do]
    tables += model.hidden
    axes = [*names, *do]
    axes += [axis for table in [*model.tables.values(), *model.hidden] for axis in table.axes if axis not in axes]
    axes = list(dict.fromkeys(axes))
    sizes = {axis: size for table in [*model.tables.values(), *model.hidden] for axis, size in table.sizes.items()}
    total = np.ones([sizes[axis] for axis in axes])
    for table in tables:
        order = sorted(range(len(table.axes)), key=lambda n: axes.index(table.axes[n]))
        shape = [table.sizes.get(axis, 1) for axis in axes]
        total = total * table.array.transpose(order).reshape(shape)
    kept = len(names) + len(do)
    return total.sum(tuple(range(kept, len(axes))))


def truth(model, query):
    law = brute(model, [*query.outcomes, *query.given], query.do)
    law = law / law.sum(tuple(range(len(query.outcomes))), keepdims=True)
    labels = [*query.outcomes, *query.given, *query.do]
    return law.transpose([labels.index(name) for name in query.names])


def observed(model):
    names = model.graph.nodes
    return xarray.DataArray(brute(model, names), {name: np.arange(2) for name in names}, names)


def worst(estimand, seeds=range(3)):
    """The largest error of an estimand over random models, by the independent enumeration above."""
    errors = []
    for seed in seeds:
        model = DiscreteSCM.random(estimand.graph, seed)
        value = estimand.evaluate(observed(model))
        assert value.dims == tuple(estimand.query.names)
        errors.append(np.max(np.abs(value.values - truth(model, estimand.query))))
    return max(errors)


# -- the cases of the literature ---------------------------------------------------------------------------------------

IDENTIFIED = {
    "back_door": ("W->X; W->Y; X->Y", "P(Y | do(X))", "Σ_w P(w) P(y | x, w)"),
    "front_door": ("X->M; M->Y; X<->Y", "P(Y | do(X))", "Σ_m P(m | x) Σ_x' P(x') P(y | m, x')"),
    "second_step_of_front_door": ("X->M; M->Y; X<->Y", "P(Y | do(M))", "Σ_x P(x) P(y | m, x)"),
    "napkin": (NAPKIN, "P(Y | do(X))", "[Σ_w P(w) P(x, y | r, w)] / [Σ_w P(w) P(x | r, w)] (for any r)"),
    "m_bias": ("X->Y; X<->Z; Z<->Y", "P(Y | do(X))", "P(y | x)"),
    "conditional_front_door": (
        "W->X; W->M; W->Y; X->M; M->Y; X<->Y",
        "P(Y | do(X))",
        "Σ_{w,m} P(w) P(m | x, w) Σ_x' P(x' | w) P(y | m, x', w)",
    ),
    "confounded_mediator": ("X->M; M->Y; X->Y; M<->Y", "P(Y | do(X))", "P(y | x)"),
    "verma": (VERMA, "P(D | do(C))", "Σ_b P(b) P(d | c, b)"),
    "verma_earlier": (VERMA, "P(D | do(B))", "Σ_c P(c | b) Σ_b' P(b' | a) P(d | c, b', a) (for any a)"),
    "conditional_moved_into_do": ("X->Z; Z->Y; X<->Y", "P(Y | do(X), Z)", "Σ_x' P(x') P(y | z, x')"),
    "stratum": ("W->X; W->Y; X->Y", "P(Y | do(X), W)", "P(y | x, w)"),
    "no_effect": ("Y->X", "P(Y | do(X))", "P(y)"),
    "nothing_set": ("X->Y; X<->Y", "P(Y | X)", "P(y | x)"),
    "pearl_2009_page_80": (
        "Z1->Z2; Z1->Z3; Z2->X; Z3->X; Z4->X; Z4->Z5; Z3->Y; Z5->Y; X->Y; Z4->Z3",
        "P(Y | do(X))",
        None,
    ),
    "seven_and_more_nodes": (
        "Z1->Z2; Z1->Z3; Z2->X; Z3->X; X->W0; W0->Y; Z4->Z3; Z4->Z5; Z5->Y; X->W1; W1->W2; W2->Y; Z3->Y; "
        "Z1<->X; Z2<->Z3; Z3<->Z5; Z4<->Y",
        "P(Y | do(X))",
        None,
    ),
    "tian_2002_page_90": (
        "W1->W2; W3->W4; W2->X; W4->X; X->Y; W1<->X; W1<->Y; W1<->W3; W3<->W2; W3<->W5; W5<->W4",
        "P(Y | do(X))",
        "[Σ_w1 P(w1) Σ_w3 P(w3 | w2, w1) P(x, y | w4, w3, w2, w1)] / "
        "[Σ_w1 P(w1) Σ_w3 P(w3 | w2, w1) P(x | w4, w3, w2, w1)] (for any w2, w4)",
    ),
    "tian_2002_page_70": ("V1->V2; V2->V3; V3->V4; V4->V5; V1<->V3; V2<->V4; V3<->V5", "P(V5 | do(V1))", None),
    "pearl_2009_page_119": (
        "X1->Z; X1->Y; X1->X2; Z->X2; X2->Y; X1<->Z; Z<->Y",
        "P(Y | do(X1, X2))",
        "Σ_z P(z | x1) P(y | x2, z, x1)",
    ),
    "two_outcomes": (
        "X->Y1; W1->X; W2->Y2; W1<->W2; W1<->Y1; W1<->Y2; X<->W2",
        "P(Y1, Y2 | do(X))",
        "P(y2) Σ_w1 P(w1) P(y1 | x, w1)",
    ),
    "joint_law_after_do": ("W->X; W->Y; X->M; M->Y; X<->Y; X->Z; W<->Z", "P(Y, W | do(X), Z)", None),
}


@pytest.mark.parametrize("case", IDENTIFIED, ids=str)
def test_the_cases_of_the_literature_are_identified_exactly(case):
    graph, query, formula = IDENTIFIED[case]
    estimand = identify(pg.causal.graph(graph), query)
    assert worst(estimand) <= EXACT
    assert estimand.verification.models == 3
    assert estimand.verification.error <= EXACT
    if formula is not None:
        assert str(estimand).split(" = ", 1)[1] == formula


HEDGES = {
    "bow": (BOW, "P(Y | do(X))", "XY", "Y"),
    "instrument": ("Z->X; X->Y; X<->Y", "P(Y | do(X))", "XY", "Y"),
    "confounded_first_step": ("X->M; X<->M; M->Y", "P(Y | do(X))", "XM", "M"),
    "bow_given_its_effect": ("X->Y; Y->Z; X<->Y", "P(Y | do(X), Z)", "XY", "Y"),
    "front_door_confounded": ("X->M; M->Y; X<->Y; M<->Y; X<->M", "P(Y | do(X))", "XMY", "MY"),
    "confounder_kept_from_sight": ("W->X; W->Y; X->Y; W<->X; W<->Y; X<->Y", "P(Y | do(X), W)", "WXY", "WY"),
}


@pytest.mark.parametrize("case", HEDGES, ids=str)
def test_what_is_not_identified_has_a_hedge(case):
    graph, query, outer, inner = HEDGES[case]
    graph = pg.causal.graph(graph)
    with pytest.raises(pg.NotIdentified, match="has no estimand in this graph") as caught:
        identify(graph, query)
    hedge = caught.value.hedge
    if case != "confounder_kept_from_sight":
        assert hedge.outer == set(outer)
        assert hedge.inner == set(inner)
    assert is_hedge(graph, hedge)
    assert hedge.holds(graph)
    assert caught.value.advice


def is_hedge(graph, hedge):
    """The definition, written with networkx."""
    directed = nx.DiGraph(list(graph.directed))
    directed.add_nodes_from(graph.nodes)
    bidirected = nx.Graph([tuple(pair) for pair in graph.bidirected])
    bidirected.add_nodes_from(graph.nodes)

    def forest(names):
        inside = directed.subgraph(names)
        reach = set().union(*(nx.ancestors(inside, root) | {root} for root in hedge.roots))
        return nx.is_connected(bidirected.subgraph(names)) and reach == names

    cut = directed.copy()
    cut.remove_edges_from([(a, b) for a, b in directed.edges if b in hedge.do])
    causes = set().union(*(nx.ancestors(cut, outcome) | {outcome} for outcome in hedge.outcomes))
    return (
        hedge.roots <= hedge.inner < hedge.outer
        and hedge.outer & hedge.do
        and not hedge.inner & hedge.do
        and forest(set(hedge.outer))
        and forest(set(hedge.inner))
        and hedge.roots <= causes
    )


def test_a_false_hedge_is_told_from_a_real_one():
    hedge = pg.causal.Hedge(*map(frozenset, ("XY", "Y", "Y", "X", "Y")))
    assert hedge.holds(pg.causal.graph(BOW))
    assert not hedge.holds(pg.causal.graph("X->Y; W->X; W->Y"))
    wrong = pg.causal.Hedge(*map(frozenset, ("XY", "X", "X", "X", "Y")))
    assert not wrong.holds(pg.causal.graph(BOW))


def test_the_law_of_a_district_is_tians():
    """P(d | do(c)) from the district {B, D} is constant in a, which no smaller formula shows."""
    graph = pg.causal.graph(VERMA)
    kernels = district_kernels(graph, frozenset("D"), frozenset("C"), Simplifier(graph))
    (law,) = kernels.values()
    assert Notation(graph.topological).write(law) == "Σ_b P(b | a) P(d | c, b, a)"


def test_the_spread_over_arbitrary_values_tests_the_graph():
    estimand = identify(pg.causal.graph(VERMA), "P(D | do(B))")
    assert estimand.constant_in == ("A",)
    model = DiscreteSCM.random(estimand.graph, 5)
    assert estimand.spread(model.table()) <= EXACT
    other = DiscreteSCM.random(pg.causal.graph(f"{VERMA}; A->D"), 5)
    assert estimand.spread(other.table()) > 0.01


def test_latex():
    assert identify("W->X1; W->Y; X1->Y", "P(Y | do(X1))").latex() == (
        r"P(y \mid \mathrm{do}(x_{1})) = \sum_{w} P(w) \, P(y \mid x_{1}, w)"
    )
    assert (
        identify(NAPKIN, "P(Y | do(X))")
        .latex()
        .endswith(r"\frac{\sum_{w} P(w) \, P(x, y \mid r, w)}{\sum_{w} P(w) \, P(x \mid r, w)} \quad \text{for any } r")
    )
    assert (
        r"\mathrm{kidney\_stone}"
        in identify("kidney_stone->drug; drug->cure", "P(cure | do(drug), kidney_stone)").latex()
    )
    effect = identify("a_b->Y", "TE(a_b -> Y)").latex()
    assert effect.startswith(r"\text{TE(a\_b } \to \text{ Y, a\_b: 0 to 1)} = E(Y \mid \mathrm{a\_b} = 1) - ")
    assert identify("x->X", "P(X | do(x))").latex() == r"P(X \mid \mathrm{do}(x)) = P(X \mid x)"


# -- random graphs -----------------------------------------------------------------------------------------------------


@st.composite
def questions(draw, most=8):
    """A random mixed graph with up to 8 nodes and a query about it."""
    size = draw(st.integers(2, most))
    names = draw(st.permutations([f"V{n}" for n in range(size)]))
    pairs = list(itertools.combinations(names, 2))
    directed = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=14))
    bidirected = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=6))
    graph = CausalGraph(tuple(sorted(names)), frozenset(directed), frozenset(map(frozenset, bidirected)))
    roles = draw(st.permutations(names))
    outcomes = draw(st.integers(1, min(2, size - 1)))
    do = draw(st.integers(1, min(2, size - outcomes)))
    given_ = draw(st.integers(0, min(2, size - outcomes - do)))
    parts = (roles[:outcomes], roles[outcomes : outcomes + do], roles[outcomes + do : outcomes + do + given_])
    return graph, Query(*map(tuple, parts))


def found(graph, query):
    """The estimand, or the error that says why there is none."""
    try:
        return identify(graph, query)
    except pg.NotIdentified as error:
        return error


def check_question(graph, query):
    answer = found(graph, query)
    if isinstance(answer, pg.NotIdentified):
        assert is_hedge(graph, answer.hedge)
        if not query.given:
            assert not pg.causal.adjustment_sets(graph, query.do, query.outcomes)
        if not query.given and len(query.do) == 1:
            assert not pg.causal.front_door_sets(graph, query.do, query.outcomes)
    else:
        assert worst(answer, [0]) <= EXACT


RANDOM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, derandomize=True, **RANDOM)
@given(questions())
def test_on_random_graphs_an_estimand_is_what_mutilation_gives(question):
    check_question(*question)


@pytest.mark.slow
@settings(max_examples=1000, **RANDOM)
@given(questions())
def test_on_many_random_graphs_an_estimand_is_what_mutilation_gives(question):
    check_question(*question)


@settings(max_examples=80, derandomize=True, **RANDOM)
@given(questions())
def test_no_identified_query_is_missed(question):
    """P(all others | do(x)) is identified exactly if no bidirected path joins x to its child (Tian and Pearl 2002)."""
    graph, _ = question
    name = graph.nodes[0]
    clear = not graph.district(name) & graph.children(name)
    assert isinstance(found(graph, Query(tuple(graph.nodes[1:]), name)), pg.NotIdentified) is not clear


@settings(max_examples=60, derandomize=True, **RANDOM)
@given(questions(6), st.data())
def test_on_random_graphs_path_effects_are_what_mixed_worlds_give(question, data):
    graph, query = question
    treatment, outcome = query.do[0], query.outcomes[0]
    children = sorted(graph.children(treatment) & graph.cut_into(treatment).ancestors(outcome))
    assume(children)
    active = data.draw(st.sets(st.sampled_from(children), min_size=1))
    directed = nx.DiGraph(list(graph.directed))
    paths = [tuple(path) for path in nx.all_simple_paths(directed, treatment, outcome) if path[1] in active]
    answer = found(graph, PathSpecificEffect(treatment, outcome, paths=paths))
    if isinstance(answer, pg.NotIdentified):
        if answer.recanting is None:
            assert is_hedge(graph, answer.hedge)
        else:
            assert answer.recanting.asked <= active
            assert not answer.recanting.other & active
            assert answer.recanting.nodes >= answer.recanting.asked | answer.recanting.other
        return
    model = DiscreteSCM.random(graph, 1)
    mixed = mixed_world(model, outcome, treatment, active)
    base = mixed_world(model, outcome, treatment, set())
    assert answer.evaluate(observed(model)).item() == pytest.approx(mixed - base, abs=EXACT)


def mixed_world(model, outcome, treatment, active):
    """E[Y] where the ``active`` children see treatment 1 and the others 0, by enumeration of a cut model."""
    tables = {}
    for name, table in model.tables.items():
        tables[name] = table
        if treatment in table.axes[1:]:
            axis = table.axes.index(treatment)
            seen = np.take(table.array, [int(name in active)] * 2, axis=axis)
            tables[name] = Factor(table.axes, seen)
    other = DiscreteSCM(model.graph, tables, model.hidden)
    return brute(other, [outcome], [treatment])[1, 0]


# -- numbers of the literature -----------------------------------------------------------------------------------------


def rows(names, *cells):
    """Data from counts by values."""
    return {
        name: np.concatenate([[values[n]] * values[-1] for values in cells]).astype(int) for n, name in enumerate(names)
    }


def test_smoking_and_tar():
    """Pearl's fictitious front-door data: smoking protects, although smokers have more cancer."""
    data = rows(
        ("smoke", "tar", "cancer"),
        *((1, 1, 1, 323), (1, 1, 0, 57), (1, 0, 1, 18), (1, 0, 0, 2)),
        *((0, 1, 1, 1), (0, 1, 0, 19), (0, 0, 1, 38), (0, 0, 0, 342)),
    )
    estimand = identify("smoke->tar; tar->cancer; smoke<->cancer", "P(cancer=1 | do(smoke))")
    value = estimand.plug_in(data)
    np.testing.assert_allclose(value.sel(smoke=[1, 0]), [0.4525, 0.4975], atol=EXACT)
    assert estimand.adjustment is None
    assert estimand.front_door == {"tar"}
    naive = identify("smoke->cancer", "P(cancer=1 | do(smoke))").plug_in(data)
    np.testing.assert_allclose(naive.sel(smoke=[1, 0]), [0.8525, 0.0975], atol=EXACT)


def test_kidney_stones():
    data = rows(
        ("drug", "large", "cured"),
        *((1, 0, 1, 81), (1, 0, 0, 6), (1, 1, 1, 192), (1, 1, 0, 71)),
        *((0, 0, 1, 234), (0, 0, 0, 36), (0, 1, 1, 55), (0, 1, 0, 25)),
    )
    graph = "large->drug; large->cured; drug->cured"
    estimand = identify(graph, Query("cured", "drug"))
    value = estimand.plug_in(data).sel(cured=1)
    small, large = 357 / 700, 343 / 700
    np.testing.assert_allclose(value.sel(drug=1), 81 / 87 * small + 192 / 263 * large, atol=EXACT)
    np.testing.assert_allclose(value.sel(drug=[1, 0]), [0.83255, 0.77888], atol=1e-5)
    assert estimand.adjustment == {"large"}
    assert estimand.front_door is None
    effect = identify(graph, TotalEffect("drug", "cured"))
    assert str(effect).endswith("Σ_large P(large) [E(cured | drug=1, large) - E(cured | drug=0, large)]")
    np.testing.assert_allclose(effect.plug_in(data), 0.83255 - 0.77888, atol=1e-5)


MEANS = {(1, 1): 0.8, (1, 0): 0.4, (0, 1): 0.3, (0, 0): 0.2}


@pytest.fixture
def drug_table():
    """Pearl's mediation formula example: E[Y | x, m] as above, P(M=1 | x) = .4 and .75."""
    table = np.zeros((2, 2, 2))
    for (x, m), mean in MEANS.items():
        mediator = [0.4, 0.75][x] if m else 1 - [0.4, 0.75][x]
        table[x, m] = [0.5 * mediator * (1 - mean), 0.5 * mediator * mean]
    return xarray.DataArray(table, dims=("X", "M", "Y"))


@pytest.mark.parametrize(
    ("query", "value", "formula"),
    [
        ("TE(X -> Y)", 0.46, "E(Y | X=1) - E(Y | X=0)"),
        ("NDE(X -> Y)", 0.32, "Σ_m P(m | X=0) [E(Y | m, X=1) - E(Y | m, X=0)]"),
        ("NIE(X -> Y)", 0.035, "Σ_m E(Y | m, X=0) [P(m | X=1) - P(m | X=0)]"),
        ("CDE(X -> Y; M=1)", 0.5, "E(Y | M=1, X=1) - E(Y | M=1, X=0)"),
        ("PSE(X -> M -> Y; X -> Y)", 0.46, None),
        (NaturalDirectEffect("X", "Y", active=0, reference=1), -0.425, None),
    ],
)
def test_the_mediation_formula(drug_table, query, value, formula):
    estimand = identify(MEDIATION, query)
    assert estimand.evaluate(drug_table).item() == pytest.approx(value, abs=EXACT)
    if formula is not None:
        assert str(estimand).split(" = ", 1)[1] == formula


def test_controlled_effects_are_functions_of_what_is_held(drug_table):
    value = identify(MEDIATION, ControlledDirectEffect("X", "Y", mediators="M")).evaluate(drug_table)
    assert value.dims == ("M",)
    np.testing.assert_allclose(value, [0.2, 0.5], atol=EXACT)


def test_natural_effects_need_an_unconfounded_mediator():
    graph = pg.causal.graph("X->M; M->Y; X->Y; M<->Y")
    assert str(identify(graph, "TE(X -> Y)")).endswith("E(Y | X=1) - E(Y | X=0)")
    for query in ("NDE(X -> Y)", "NIE(X -> Y)"):
        with pytest.raises(pg.NotIdentified, match=re.escape("(recanting district {M, Y})")) as caught:
            identify(graph, query)
        assert caught.value.hedge is None
        assert caught.value.recanting.nodes == {"M", "Y"}


def test_a_recanting_witness_is_found_and_named():
    """Avin, Shpitser and Pearl (2005): through L, both with and without M."""
    graph = pg.causal.graph("X->L; L->M; L->Y; M->Y; X->Y")
    with pytest.raises(pg.NotIdentified, match="paths of both kinds leave X by L"):
        identify(graph, "PSE(X -> L -> M -> Y)")
    with pytest.raises(pg.NotIdentified, match="recanting district"):
        identify(graph, NaturalIndirectEffect("X", "Y", mediators="M"))
    assert identify(graph, NaturalIndirectEffect("X", "Y", mediators=("L", "M"))).verification.error <= EXACT


def test_effects_that_the_graph_excludes_are_zero(drug_table):
    assert str(identify("X->M; M->Y", "NDE(X -> Y)")).endswith(" = 0")
    assert identify("X->M; M->Y", "NDE(X -> Y)").evaluate(drug_table).item() == 0.0
    assert identify("Y->X; M", "TE(X -> Y)").evaluate(drug_table).item() == 0.0


# -- tables and data ---------------------------------------------------------------------------------------------------


def test_labels_fix_variables_and_draws_are_carried_through():
    graph = pg.causal.graph("W->X; W->Y; X->Y")
    full = identify(graph, "P(Y | do(X))")
    fixed = identify(graph, "P(Y=1 | do(X=0))")
    assert str(fixed) == "P(Y=1 | do(X=0)) = Σ_w P(w) P(Y=1 | X=0, w)"
    tables = [DiscreteSCM.random(graph, seed).table() for seed in range(3)]
    draws = xarray.concat(tables, dim="draw")
    values = full.evaluate(draws)
    assert values.dims == ("draw", "Y", "X")
    for n, table in enumerate(tables):
        np.testing.assert_allclose(values[n], full.evaluate(table), atol=EXACT)
    np.testing.assert_allclose(fixed.evaluate(draws), values.sel(Y=1, X=0), atol=EXACT)
    doubled = xarray.concat([tables[0], tables[0]], dim="Extra") / 2
    np.testing.assert_allclose(full.evaluate(doubled.sum("Extra")), full.evaluate(tables[0]), atol=EXACT)


@pytest.mark.parametrize("graph", ["W->X; W->Y; X->Y", "X->M; M->Y; X<->Y", NAPKIN])
def test_variables_may_have_several_values(graph):
    graph = pg.causal.graph(graph)
    levels = {name: 2 + n % 3 for n, name in enumerate(graph.nodes)}
    model = DiscreteSCM.random(graph, 0, levels=levels)
    value = identify(graph, "P(Y | do(X))").evaluate(model.table())
    assert value.shape == (levels["Y"], levels["X"])
    np.testing.assert_allclose(value, model.table(["Y"], ["X"]), atol=EXACT)


def test_treatments_may_have_any_labels(drug_table):
    named = drug_table.assign_coords(X=["placebo", "drug"], M=[0, 1], Y=[0, 1])
    effect = NaturalIndirectEffect("X", "Y", active="drug", reference="placebo")
    estimand = identify(MEDIATION, effect)
    assert "P(m | X=drug) - P(m | X=placebo)" in str(estimand)
    assert estimand.evaluate(named).item() == pytest.approx(0.035, abs=EXACT)


def test_an_arbitrary_value_is_one_that_the_table_has():
    """The napkin formula holds for any r: values of R that are never seen do no harm."""
    estimand = identify(NAPKIN, "P(Y | do(X))")
    model = DiscreteSCM.random(estimand.graph, 3)
    table = model.table()
    wider = table.reindex(R=[0, 1, 2], fill_value=0.0)
    np.testing.assert_allclose(estimand.evaluate(wider), estimand.evaluate(table), atol=EXACT)


def test_empty_cells_are_named():
    estimand = identify("W->X; W->Y; X->Y", "P(Y | do(X))")
    data = {"W": [0, 0, 0, 0, 1, 1], "X": [0, 1, 0, 1, 1, 1], "Y": [0, 1, 1, 0, 1, 0]}
    with pytest.warns(pg.ProbgenWarning, match=r"no rows with W=1, X=0, and the formula"):
        value = estimand.plug_in(data)
    assert np.isnan(value.sel(X=0)).all()
    np.testing.assert_allclose(value.sel(X=1), [0.5, 0.5], atol=EXACT)
    with pytest.raises(pg.DataError, match=r"no rows with W=1, X=0"):
        identify("W->X; W->Y; X->Y", "P(Y | do(X=0))").plug_in(data)


def test_a_cell_that_does_not_count_may_be_empty():
    estimand = identify("W->X; W->Y; X->Y", "P(Y | do(X))")
    table = DiscreteSCM.random(estimand.graph, 0).table()
    wider = table.reindex(W=[0, 1, 2], fill_value=0.0)
    np.testing.assert_allclose(estimand.evaluate(wider), estimand.evaluate(table), atol=EXACT)


def test_the_posterior_of_a_formula_is_that_of_the_dirichlet_law():
    """Margins and conditional laws of a Dirichlet are independent betas, so the mean of the sum is known."""
    data = rows(("W", "X", "Y"), *((w, x, y, 1 + 3 * w + 5 * x * y) for w, x, y in itertools.product((0, 1), repeat=3)))
    ones = {"Y": data["Y"]}
    law = identify("Y", "P(Y=1)").posterior(ones, seed=0, draws=4000)
    n, a = len(data["Y"]), data["Y"].sum() + 0.5
    assert_moments(law.values, a / (n + 1), a * (n + 1 - a) / (n + 1) ** 2 / (n + 2), detects=0.2)
    estimand = identify("W->X; W->Y; X->Y", "P(Y=1 | do(X=1))")
    draws = estimand.posterior(data, seed=1, draws=4000)
    assert draws.dims == ("draw",)
    expected = 0.0
    for w in (0, 1):
        here = data["W"] == w
        treated = here & (data["X"] == 1)
        expected += (here.sum() + 2) / (n + 4) * (data["Y"][treated].sum() + 0.5) / (treated.sum() + 1)
    assert_mean(draws.values, expected, detects=0.02)
    again = estimand.posterior(data, seed=1, draws=4000)
    np.testing.assert_array_equal(draws, again)
    with pytest.raises(pg.MethodError, match="prior is 0"):
        estimand.posterior(data, seed=1, prior=0)


def test_data_that_do_not_fit_are_refused():
    estimand = identify("W->X; W->Y; X->Y", "P(Y | do(X))")
    rng = np.random.default_rng(0)
    data = {"W": rng.normal(size=100), "X": rng.integers(2, size=100), "Y": rng.integers(2, size=100)}
    with pytest.raises(
        pg.DataError, match=r"'W' takes 100 different values.*back-door adjustment.*pg\.causal\.estimate"
    ):
        estimand.plug_in(data)
    with pytest.raises(pg.DataError, match="no column 'W'"):
        estimand.plug_in({"X": [0, 1], "Y": [0, 1]})
    table = DiscreteSCM.random(estimand.graph, 0).table()
    with pytest.raises(pg.DataError, match="no dim 'W'"):
        estimand.evaluate(table.sum("W"))
    with pytest.raises(pg.DataError, match=r"sums to 2 .* sums to one"):
        estimand.evaluate(2 * table)
    with pytest.raises(pg.DataError, match="negative, NaN"):
        estimand.evaluate(-table)
    with pytest.raises(pg.DataError, match=r"sets X to 7, which is not a label.*0, 1"):
        identify(estimand.graph, "P(Y | do(X=7))").evaluate(table)
    with pytest.raises(pg.DataError, match="a mean needs numbers"):
        identify(estimand.graph, TotalEffect("X", "Y")).evaluate(table.assign_coords(Y=["no", "yes"]))


# -- queries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("P(Y | do(X))", Query("Y", "X")),
        ("P(Y|do(X=1),Z)", Query("Y", "X", "Z", {"X": 1})),
        ("P(Y1, Y2 | do(X=1, Z), W)", Query(("Y1", "Y2"), ("X", "Z"), "W", {"X": 1})),
        (
            "P(Y=1 | W='a b', do(X=high), do(Z=0.5))",
            Query("Y", ("X", "Z"), "W", {"Y": 1, "W": "a b", "X": "high", "Z": 0.5}),
        ),
        (
            'P("log income" | do(training programme=True))',
            Query("log income", "training programme", (), {"training programme": True}),
        ),
        ("P(Y)", Query("Y")),
        ("P(Y | W)", Query("Y", (), "W")),
    ],
)
def test_the_notation_is_read_and_written(text, query):
    assert Query.parse(text) == query
    assert Query.parse(str(query)) == query


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Y | do(X)", "not of the form"),
        ("P(Y | do(X)", "not closed|not of the form"),
        ("P(do(X))", "before the bar"),
        ("P(Y | do(X), Y)", "'Y' twice: as an outcome and as given"),
        ("P(Y | do(Y))", "'Y' twice: as an outcome and as in do"),
        ("P( | do(X))", "lacks a name"),
        ("P(Y | do())", "lacks a name"),
        ("P(Y | X | Z)", "two bars"),
        ("P(Y | do(X) Z)", "where a comma is due"),
        ("P(Y | do(X),)", "ends where a name is due"),
        ("P(Y | do(X=))", "cannot be read at 'X ='"),
        ("P(Y | 'X)", "quote that is not closed"),
        ("P(Y | do(V))", "names 'V', which is not a node"),
        ("NDE(X)", "cannot be read"),
        ("TE(X -> Y; M)", "a total effect has none"),
        ("NDE(X -> X)", "treatment and outcome"),
        ("CDE(X -> Y)", "needs mediators"),
        ("NDE(X -> Y; Y)", "which is the treatment or the outcome"),
        ("NIE(X -> Y; V)", "not a node"),
        ("PSE(X -> W -> Y)", "no edge of the graph"),
        ("PSE(X -> Y; W -> Y)", "does not lead from X to Y"),
    ],
)
def test_queries_that_make_no_sense_are_refused(text, message):
    with pytest.raises(pg.ModelError, match=message):
        identify("W->X; W->Y; X->Y", text)


def test_values_of_the_query_are_its_own():
    with pytest.raises(pg.ModelError, match="values names 'Z'"):
        Query("Y", "X", values={"Z": 1})
    with pytest.raises(pg.ModelError, match="active and reference are both 1"):
        TotalEffect("X", "Y", active=1, reference=1)
    with pytest.raises(pg.ModelError, match="query is a int"):
        identify("X->Y", 3)


def test_advice_says_what_to_measure_and_names_an_instrument():
    with pytest.raises(pg.NotIdentified) as caught:
        identify("Z->X; X->Y; X<->Y", "P(Y | do(X))")
    advice = " ".join(caught.value.advice)
    assert "if the hidden cause behind X<->Y is measured" in advice
    assert "Z is an instrument" in advice
    assert "pg.causal.BalkePearl" in advice
    assert "pg.causal.sensitivity" in advice


# -- the checker checked -----------------------------------------------------------------------------------------------


def test_a_wrong_formula_does_not_pass():
    """P(y | x) is wrong for the napkin, and adjusting for the collider is wrong under M-bias."""
    x, y, z = (Variable(name) for name in "XYZ")
    wrong = Probability(frozenset([y]), frozenset([x]))
    graph = pg.causal.graph(NAPKIN)
    with pytest.raises(pg.ProbgenError, match="This is a bug of probgen"):
        verify(graph, Query("Y", "X"), wrong)
    graph = pg.causal.graph("X->Y; X<->Z; Z<->Y")
    simplifier = Simplifier(pg.causal.graph("X->Y; Z->X; Z->Y"))
    adjusted = simplifier.sum(
        [z], product([Probability(frozenset([z])), Probability(frozenset([y]), frozenset([x, z]))])
    )
    with pytest.raises(pg.ProbgenError, match="This is a bug of probgen"):
        verify(graph, Query("Y", "X"), adjusted)
    assert verify(graph, Query("Y", "X"), wrong).error <= EXACT


def test_large_graphs_are_identified_and_say_whether_they_were_verified():
    chain = "; ".join(f"V{n}->V{n + 1}" for n in range(40))
    estimand = identify(chain + "; V0->V40", "P(V40 | do(V20))")
    assert estimand.verification.error <= EXACT
    causes = "; ".join(f"C{n}->W; C{n}<->C{n + 1}" for n in range(30))
    estimand = identify(f"{causes}; W->X; W->Y; X->Y", "P(Y | do(X))")
    assert estimand.verification.error <= EXACT  # where W's many causes count as hidden
    fan = "; ".join(f"W{n}->X; W{n}->Y" for n in range(30)) + "; X->Y"
    estimand = identify(fan, "P(Y | do(X))")
    assert estimand.adjustment == {f"W{n}" for n in range(30)}
    assert estimand.verification.models == 0
    assert "too large" in str(estimand.verification)


def test_random_models_are_models():
    graph = pg.causal.graph("W->X; X->Y; W<->Y; X<->W")
    model = DiscreteSCM.random(graph, 0, levels={"W": 2, "X": 3, "Y": 2})
    table = model.table()
    assert table.shape == (2, 3, 2)
    np.testing.assert_allclose(table, brute(model, ("W", "X", "Y")), atol=1e-15)
    np.testing.assert_allclose(model.table(["Y"], ["X"]), brute(model, ["Y"], ["X"]), atol=1e-15)
    assert table.min() > 0
    shared = pg.causal.graph("A<->B; B<->C; A<->C")
    assert len(DiscreteSCM.random(shared, 0).hidden) == 3
    assert len(DiscreteSCM.random(shared, 0, causes=["ABC"]).hidden) == 1
    with pytest.raises(pg.ModelError, match="differ at"):
        DiscreteSCM.random(shared, 0, causes=["AB"])
    with pytest.raises(pg.ModelError, match="1 values to 'Y'"):
        DiscreteSCM.random(graph, 0, levels={"W": 2, "X": 2, "Y": 1})
    with pytest.raises(pg.ModelError, match="both in names and in do"):
        model.table(["X"], ["X"])


def test_contraction_sums_products_and_refuses_what_is_too_large():
    rng = np.random.default_rng(0)
    a, b, c = (
        Factor(("i", "j"), rng.random((2, 3))),
        Factor(("j", "k"), rng.random((3, 4))),
        Factor(("k",), rng.random(4)),
    )
    total = contract([a, b, c], ["k", "i"])
    assert total.axes == ("k", "i")
    np.testing.assert_allclose(total.array, np.einsum("ij,jk,k->ki", a.array, b.array, c.array), atol=EXACT)
    assert contract([a, b, c], []).array == pytest.approx(np.einsum("ij,jk,k->", a.array, b.array, c.array))
    with pytest.raises(TooLarge):
        contract([a, b, c], ["i", "j", "k"], largest=20)


def test_substitution_captures_nothing():
    x, other, y = Variable("X"), Variable("X", 1), Variable("Y")
    simplifier = Simplifier(pg.causal.graph(BOW))
    law = simplifier.sum([x], product([Probability(frozenset([x])), Probability(frozenset([y]), frozenset([x]))]))
    assert law == Probability(variables("Y"))
    inner = product([Probability(frozenset([x])), Probability(frozenset([y]), frozenset([other]))])
    moved = substitute(inner, {x: other, other: x})
    assert moved == product([Probability(frozenset([other])), Probability(frozenset([y]), frozenset([x]))])
