"""Tables, any-order autoregression (absorbing diffusion), marginalisation models, Chow-Liu trees: by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

import probgen as pg
from probgen.generative.table import known
from probgen.generative.unmasking import any_order_loss
from probgen.testing import assert_mean, assert_proportion

gen = pg.generative
SIZE, VALUES = 4, 3
BLANK = VALUES


@pytest.fixture(scope="module")
def table():
    """A joint distribution of 4 symbols of 3 kinds, far from independent."""
    return gen.Table(1.5 * jax.random.normal(jax.random.key(1), (VALUES**SIZE,)), SIZE, VALUES)


def clashing(symbols):
    """Conditionals that belong to no joint distribution, but depend on all that is known."""
    features = jnp.append(jnp.where(symbols < VALUES, symbols + 1.0, 0.0), 1.0)
    weights = jax.random.normal(jax.random.key(2), (SIZE * VALUES, SIZE + 1))
    return jax.nn.log_softmax((weights @ features).reshape(SIZE, VALUES), axis=-1)


def orders():
    return [jnp.asarray(np.argsort(order)) for order in itertools.permutations(range(SIZE))]


def any_order(predict, x):
    """The bound by all orders."""
    return jnp.mean(jax.vmap(lambda ranks: gen.ordered_log_prob(predict, x, ranks, VALUES))(jnp.stack(orders())))


# -- tables ----------------------------------------------------------------------------------------------------------


def test_table_is_the_array_of_probabilities(table):
    p = jnp.exp(table.log_p).reshape((VALUES,) * SIZE)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    x = jnp.array([2, 0, 1, 2])
    assert jnp.exp(table.log_density(x)) == pytest.approx(p[2, 0, 1, 2])
    np.testing.assert_array_equal(table.index(table.states), jnp.arange(VALUES**SIZE))
    assert table.entropy() == pytest.approx(-(p * jnp.log(p)).sum())
    # One blank evidence sums an axis out; soft evidence weighs it.
    symbols = jnp.array([2, BLANK, 1, BLANK])
    assert jnp.exp(table.log_marginal(symbols)) == pytest.approx(p[2, :, 1, :].sum())
    np.testing.assert_allclose(
        jnp.exp(table.conditionals(symbols)[1]), p[2, :, 1, :].sum(1) / p[2, :, 1, :].sum(), rtol=1e-10
    )
    np.testing.assert_array_equal(jnp.exp(table.conditionals(symbols)[0]), [0, 0, 1])
    soft = jax.random.normal(jax.random.key(3), (SIZE, VALUES))
    weighed = jnp.einsum("abcd,a,b,c,d->abcd", p, *jnp.exp(soft))
    evidence, marginals = table.posterior(soft)
    assert jnp.exp(evidence) == pytest.approx(weighed.sum())
    np.testing.assert_allclose(jnp.exp(marginals[2]), weighed.sum((0, 1, 3)) / weighed.sum(), rtol=1e-10)
    np.testing.assert_allclose(jnp.exp(table.tilted(soft).log_p), (weighed / weighed.sum()).ravel(), rtol=1e-10)


def test_ising_lattice():
    ising = gen.Ising.lattice(3, 0.3, 0.1)
    x = jax.random.bernoulli(jax.random.key(0), shape=(9,)).astype(int)
    s = np.asarray(2 * x - 1).reshape(3, 3)
    energy = 0.3 * ((s[1:] * s[:-1]).sum() + (s[:, 1:] * s[:, :-1]).sum()) + 0.1 * s.sum()
    assert ising.log_density(x) == pytest.approx(energy)
    assert ising.table().log_density(x) - ising.table().log_density(1 - x) == pytest.approx(0.2 * s.sum())


def test_bad_tables_are_named():
    with pytest.raises(pg.DataError, match="has 7 numbers, expected one for each of 2\\^3"):
        gen.Table(jnp.zeros(7), 3)
    with pytest.raises(pg.MethodError, match="too large"):
        gen.Table(jnp.zeros(7), 64)


# -- any order -------------------------------------------------------------------------------------------------------


def test_three_forms_of_the_bound_are_one():
    x = jnp.array([2, 0, 1, 2])
    sets = [jnp.array(b) for b in itertools.product([False, True], repeat=SIZE) if any(b)]

    def of_blank(blank):
        log_p = clashing(jnp.where(blank, BLANK, x))[jnp.arange(SIZE), x]
        return jnp.sum(jnp.where(blank, log_p, 0.0))

    terms = {tuple(map(bool, b)): float(of_blank(b)) for b in sets}
    count = {n: sum(sum(b) == n for b in terms) for n in range(1, SIZE + 1)}
    by_number = sum(SIZE / sum(b) * v / (SIZE * count[sum(b)]) for b, v in terms.items())
    rates, weights = np.polynomial.legendre.leggauss(8)
    rates, weights = (rates + 1) / 2, weights / 2
    by_rate = sum(
        w / r * sum(r ** sum(b) * (1 - r) ** (SIZE - sum(b)) * v for b, v in terms.items())
        for r, w in zip(rates, weights, strict=True)
    )
    expected = float(any_order(clashing, x))
    assert by_number == pytest.approx(expected, abs=1e-10)
    assert by_rate == pytest.approx(expected, abs=1e-10)


def test_estimates_of_the_bound_are_unbiased():
    x = jnp.array([2, 0, 1, 2])
    keys = jax.random.split(jax.random.key(4), (200, 400))
    of_order = jax.jit(jax.vmap(jax.vmap(lambda k: gen.any_order_bound(k, clashing, x, VALUES))))(keys).mean(1)
    assert_mean(of_order, any_order(clashing, x), detects=0.3)

    def net(symbols, _):
        return clashing(jnp.minimum(symbols, BLANK)) + 3.0  # scores need not be normalised

    rows = jnp.tile(x, (256, 1))
    losses = jax.jit(jax.vmap(lambda k: any_order_loss(k, net, rows, None)))(jax.random.split(jax.random.key(5), 200))
    assert_mean(losses, -any_order(clashing, x), detects=0.4)


def test_with_exact_conditionals_the_bound_is_the_log_probability_and_the_nll_the_entropy(table):
    bound = jax.jit(jax.vmap(lambda k, x: gen.any_order_bound(k, table.conditionals, x, VALUES)))
    rows = table.states
    each = jax.vmap(lambda ranks, x: gen.ordered_log_prob(table.conditionals, x, ranks, VALUES), (None, 0))
    found = jax.vmap(each, (0, None))(jnp.stack(orders()[::5]), rows)
    np.testing.assert_allclose(found, jnp.broadcast_to(table.log_p, found.shape), atol=1e-9)
    keys = jax.random.split(jax.random.key(0), (40, len(rows)))
    mean = jnp.stack([bound(k, rows) for k in keys])
    # One order gives the log probability but for the mean over what could come next, which averages out.
    assert_mean(mean @ jnp.exp(table.log_p), -table.entropy(), detects=0.2)


def test_one_at_a_time_draws_follow_the_joint_distribution(table):
    keys = jax.random.split(jax.random.key(6), 20_000)
    blank = jnp.full(SIZE, BLANK)

    def draw(key):
        key_ranks, key_draw = jax.random.split(key)
        return gen.unmask(key_draw, table.conditionals, blank, gen.random_ranks(key_ranks, SIZE), VALUES)

    rows, calls = jax.jit(jax.vmap(draw))(keys)
    assert (calls == SIZE).all()
    counts = np.bincount(table.index(rows), minlength=VALUES**SIZE)
    assert_proportion(counts, len(keys), np.exp(table.log_p), detects=0.03)


def test_calls_are_cached_and_entries_of_one_step_are_independent(table):
    steps, blank = 5, jnp.full(SIZE, BLANK)
    keys = jax.random.split(jax.random.key(7), (40, 500))

    def draw(key):
        key_ranks, key_draw = jax.random.split(key)
        return gen.unmask(key_draw, table.conditionals, blank, gen.random_ranks(key_ranks, SIZE, steps), VALUES)

    rows, calls = jax.jit(jax.vmap(jax.vmap(draw)))(keys)
    assert calls.max() <= SIZE
    assert_mean(calls.mean(1), steps * (1 - (1 - 1 / steps) ** SIZE), detects=0.05)
    # The law by enumeration: ordered partitions of the entries by the step in which they fall.
    law = np.zeros(VALUES**SIZE)
    states = np.asarray(table.states)
    log_p = jax.jit(jax.vmap(table.conditionals))
    for ranks in np.array(list(itertools.product(range(steps), repeat=SIZE))):
        total = np.zeros(len(states))
        for step in np.unique(ranks):
            symbols = np.where(ranks < step, states, BLANK)
            here = np.take_along_axis(np.asarray(log_p(symbols)), states[:, :, None], 2)[:, :, 0]
            total += np.where(ranks == step, here, 0.0).sum(1)
        law += np.exp(total) / steps**SIZE
    counts = np.bincount(np.asarray(table.index(rows)).ravel(), minlength=VALUES**SIZE)
    assert_proportion(counts, keys.size, law, detects=0.03)
    assert np.abs(law - np.exp(table.log_p)).sum() / 2 > 0.02  # an approximation, as the docstring says


def test_known_entries_stay(table):
    symbols = jnp.array([1, BLANK, BLANK, 0])
    draw = jax.jit(jax.vmap(lambda k: gen.unmask(k, table.conditionals, symbols, jnp.arange(SIZE), VALUES)))
    rows, calls = draw(jax.random.split(jax.random.key(8), 10_000))
    assert (calls == 2).all()
    posterior = np.exp(table.tilted(known(symbols, VALUES)).log_p)
    counts = np.bincount(table.index(rows), minlength=VALUES**SIZE)
    assert_proportion(counts, 10_000, posterior, detects=0.04)


# -- models with random weights: what holds whatever was learned -------------------------------------------------------


def untrained(family, spec, scale=0.7):
    net = family.build(jax.random.key(0), spec)
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [a + scale * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)]
    return family.distribution(jax.tree.unflatten(tree, leaves), spec)


SPEC = gen.Spec((SIZE,), None, VALUES)


def test_any_absorbing_diffusion(table):
    model = untrained(gen.AbsorbingDiffusion(width=8, depth=1), SPEC, 0.4)
    x, mask = jnp.array([2, 0, 1, 1]), jnp.array([True, False, True, False])
    keys = jax.random.split(jax.random.key(1), (100, 100))
    found = jax.jit(jax.vmap(jax.vmap(lambda k: model.bound(k, x))))(keys).mean(1)
    assert_mean(found, jax.jit(lambda x: any_order(model.predict, x))(x), detects=0.3)
    given = model.conditional(x, mask)
    np.testing.assert_array_equal(given[0], jnp.where(jnp.arange(VALUES) == x[0], 0.0, -jnp.inf))
    np.testing.assert_allclose(given[1], model.predict(jnp.where(mask, x, BLANK))[1])
    np.testing.assert_allclose(jnp.exp(given).sum(-1), 1.0, atol=1e-12)
    filled = model.infill(jax.random.key(0), jnp.stack([x, x[::-1]]), mask)
    np.testing.assert_array_equal(filled[:, mask], jnp.stack([x, x[::-1]])[:, mask])
    assert (filled < VALUES).all()
    with pytest.raises(pg.MethodError, match=r"AbsorbingDiffusion has no log_prob.*bound"):
        model.log_prob(x)


def test_any_marginal_model(table):
    """The product of conditionals is a distribution and that of the draws; marginals of nothing are 1."""
    model = untrained(gen.MarginalModel(width=8, depth=1), SPEC, 0.5)
    log_p = jax.jit(model.log_prob)(table.states)
    assert jnp.exp(log_p).sum() == pytest.approx(1.0, abs=1e-10)
    assert model.has_enumerate_support
    np.testing.assert_array_equal(model.enumerate_support(), table.states)
    drawn = jax.jit(lambda k: model.sample(k, (10_000,)))(jax.random.key(3))
    assert_proportion(np.bincount(table.index(drawn), minlength=VALUES**SIZE), 10_000, np.exp(log_p), detects=0.04)
    x, mask = jnp.array([2, 0, 1, 1]), jnp.array([False, True, True, False])
    assert model.marginal(x, jnp.zeros(SIZE, bool)) == 0.0
    each = [model.marginal(x.at[0].set(v), mask.at[0].set(True)) for v in range(VALUES)]
    wanted = jax.scipy.special.logsumexp(jnp.stack(each)) - model.marginal(x, mask)
    residual = model.consistency(x, mask)
    assert residual[0] == pytest.approx(float(wanted), abs=1e-5)
    assert (residual[mask] == 0).all()
    np.testing.assert_allclose(jnp.exp(model.conditional(x, mask)).sum(-1), 1.0, atol=1e-12)


FAMILIES = {
    "absorbing": gen.AbsorbingDiffusion(width=8, depth=1, steps=3),
    "marginals": gen.MarginalModel(width=8, depth=1),
    "marginals of a density": gen.MarginalModel(width=8, depth=1, target=gen.Ising.lattice(2, 0.3)),
}


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("absorbing", "marginals")), "marginals of a density"]
)
def test_models_are_distributions_and_can_be_kept(name, tmp_path):
    family, spec = FAMILIES[name], gen.Spec((4,), None, 2)
    model, rows = untrained(family, spec), jnp.zeros((16, 4), jnp.int32)
    loss, slope = jax.jit(jax.value_and_grad(lambda w: family.loss(jax.random.key(0), w, rows, None, None)))(model.net)
    assert np.isfinite(loss)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))
    drawn = jax.jit(lambda k: model.sample(k, (3, 2)))(jax.random.key(0))
    assert drawn.shape == (3, 2, 4)
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    assert model.support(drawn).all()
    assert not model.support(drawn + 2).any()
    gen.save(model, tmp_path / "m")
    again = gen.load(tmp_path / "m")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True))


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(gen.AbsorbingDiffusion(width=8, depth=1), marks=pytest.mark.slow, id="absorbing"),
        pytest.param(gen.MarginalModel(width=8, depth=1), id="marginals"),
    ],
)
def test_conditions_reach_the_model_and_its_gradient(family):
    model = untrained(family, gen.Spec((3,), (1,), 2))
    both = model.given(jnp.array([[0.0], [1.0]]))
    assert both.batch_shape == (2,)
    assert both.sample(jax.random.key(0), (5,)).shape == (5, 2, 3)
    with pytest.raises(pg.MethodError, match="was given none"):
        model.sample(jax.random.key(0))

    def value(c):
        here = model.given(jnp.asarray(c)[None])
        return (
            here.log_prob(jnp.ones(3, int))
            if "log_prob" in model.offers
            else here.bound(jax.random.key(0), jnp.ones(3, int))
        )

    # The network computes in 32 bits.
    step = 1e-2
    (_, up, down), (slope, _, _) = jax.jit(jax.vmap(jax.value_and_grad(value)))(
        0.5 + step * jnp.array([0.0, 1.0, -1.0])
    )
    assert slope == pytest.approx(float(up - down) / (2 * step), rel=2e-2, abs=1e-3)
    assert abs(slope) > 1e-2


def test_a_discrete_model_is_a_likelihood_in_a_program():
    model = untrained(gen.MarginalModel(width=8, depth=1), gen.Spec((3,), (1,), 2))
    rows = jnp.array([[0, 1, 1], [1, 1, 0]])

    def program():
        slope = numpyro.sample("slope", dist.Normal())
        with numpyro.plate("rows", 2):
            numpyro.sample("x", model.given(slope[None]), obs=rows)

    found, _ = log_density(program, (), {}, {"slope": jnp.asarray(0.3)})
    wanted = dist.Normal().log_prob(0.3) + model.given(jnp.array([0.3])).log_prob(rows).sum()
    assert found == pytest.approx(float(wanted), abs=1e-9)


# -- trees -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_chow_liu(values):
    """On data of a tree: the tree is found, its counts are matched, and everything about it is exact."""
    rng = np.random.default_rng(0)
    parents, x = [0, 0, 1, 1, 3], np.zeros((3000, 5), int)
    for i, parent in enumerate(parents):
        same = rng.random(3000) < 0.8 if i else np.zeros(3000, bool)
        x[:, i] = np.where(same, x[:, parent], rng.integers(values, size=3000))
    model = gen.fit(gen.ChowLiu(smoothing=1e-3), x)
    edges = {frozenset((i, int(p))) for i, p in enumerate(model.parents) if i != p}
    assert edges == {frozenset((i, p)) for i, p in enumerate(parents) if i != p}
    table = gen.Table(jax.jit(model.log_prob)(model.enumerate_support()), 5, values)
    assert jnp.exp(model.log_prob(table.states)).sum() == pytest.approx(1.0, abs=1e-12)
    # Likeliest tree: pairs along its edges have the frequencies of the data.
    p = np.exp(np.asarray(table.log_p)).reshape((values,) * 5)
    kept, gone = (0, 1), (2, 3, 4)
    counts = np.zeros((values, values))
    np.add.at(counts, tuple(x[:, list(kept)].T), 1)
    np.testing.assert_allclose(p.sum(gone), counts / counts.sum(), atol=2e-6)
    masks = jnp.array(list(itertools.product([False, True], repeat=5)))[::3]
    found = model.marginal(table.states[:, None], masks)
    symbols = jnp.where(masks, table.states[:, None], values)
    np.testing.assert_allclose(found, jax.vmap(jax.vmap(table.log_marginal))(symbols), atol=1e-9)
    given = model.conditional(table.states[:, None], masks)
    np.testing.assert_allclose(jnp.exp(given), jnp.exp(jax.vmap(jax.vmap(table.conditionals))(symbols)), atol=1e-9)
    drawn = model.sample(jax.random.key(3), (10_000,))
    assert_proportion(np.bincount(table.index(drawn), minlength=values**5), 10_000, p.ravel(), detects=0.04)


def test_independent_entries_are_a_tree_without_edges():
    x = np.random.default_rng(0).integers(2, size=(500, 3))
    model = gen.fit(gen.ChowLiu(edges=False), x, training=gen.Training(validation=0.0))
    alone = (x.sum(0) + 0.5) / 501
    assert model.log_prob(jnp.array([1, 0, 1])) == pytest.approx(np.log(alone[0] * (1 - alone[1]) * alone[2]), abs=1e-6)


def test_a_tree_can_be_kept(tmp_path):
    x = np.random.default_rng(0).integers(3, size=(50, 3))
    model = gen.fit(gen.ChowLiu(), x)
    gen.save(model, tmp_path / "m")
    np.testing.assert_array_equal(gen.load(tmp_path / "m").log_prob(x), model.log_prob(x))


def test_bad_settings_and_data_are_named():
    rows = np.zeros((100, 4), int)
    with pytest.raises(pg.MethodError, match="Flatten images"):
        gen.fit(gen.AbsorbingDiffusion(), np.zeros((10, 2, 2), int))
    with pytest.raises(pg.MethodError, match="AbsorbingDiffusion got steps=0"):
        gen.fit(gen.AbsorbingDiffusion(steps=0), rows)
    with pytest.raises(pg.DataError, match="with fractions"):
        gen.fit(gen.AbsorbingDiffusion(), rows + 0.5)
    with pytest.raises(pg.MethodError, match="target has 9 entries of 2 values, and the data have 4 of 2"):
        gen.fit(gen.MarginalModel(target=gen.Ising.lattice(3, 0.1)), rows)
    with pytest.raises(pg.MethodError, match="consistency=0"):
        gen.fit(gen.MarginalModel(consistency=0.0), rows)
    with pytest.raises(pg.MethodError, match="smoothing=0"):
        gen.fit(gen.ChowLiu(smoothing=0.0), rows)
    with pytest.raises(pg.MethodError, match="ChowLiu has no conditions"):
        gen.fit(gen.ChowLiu(), rows, np.zeros((100, 1)))
    with pytest.raises(pg.MethodError, match="too many to be listed"):
        gen.fit(gen.ChowLiu(), np.zeros((10, 20), int)).enumerate_support()


# -- fitted ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(table):
    return np.asarray(jax.vmap(table.draw)(jax.random.split(jax.random.key(9), 4096)))


@pytest.fixture(scope="module")
def absorbing(rows):
    training = gen.Training(steps=800, batch=128, learning_rate=3e-3, ema=0.99, block=200)
    return gen.fit(gen.AbsorbingDiffusion(width=48, depth=2), rows, training=training)


@pytest.mark.slow
def test_a_learned_absorbing_diffusion_is_near_its_data(table, absorbing):
    predict = absorbing.predict
    per_row = jax.jit(jax.vmap(lambda x: any_order(predict, x)))(table.states)
    # The exact bound is below the entropy by a divergence, which is small after training and >= 0 by theory.
    gap = -jnp.exp(table.log_p) @ per_row - table.entropy()
    assert 0 <= gap < 0.15
    keys = jax.random.split(jax.random.key(1), 1000)
    x = table.states[5]
    assert_mean(jax.vmap(lambda k: absorbing.bound(k, x))(keys), per_row[5], detects=0.15)
    mask = jnp.array([True, False, True, False])
    given = absorbing.conditional(x, mask)
    np.testing.assert_array_equal(given[0], jnp.where(jnp.arange(VALUES) == x[0], 0.0, -jnp.inf))
    np.testing.assert_allclose(jnp.exp(given).sum(-1), 1.0, atol=1e-12)
    assert jnp.abs(jnp.exp(given) - jnp.exp(table.conditionals(jnp.where(mask, x, BLANK)))).max() < 0.12
    drawn = jax.vmap(lambda k: absorbing.infill(k, x, mask))(jax.random.split(jax.random.key(2), 4000))
    assert (drawn[:, mask] == x[mask]).all()
    assert absorbing.infill(jax.random.key(0), jnp.stack([x, x]), mask).shape == (2, SIZE)


@pytest.mark.slow
def test_a_learned_marginal_model_knows_every_part(table, rows):
    training = gen.Training(steps=800, batch=128, learning_rate=3e-3, ema=0.99, block=200)
    model = gen.fit(gen.MarginalModel(width=48, depth=2), rows, training=training)
    # Exact: the product of conditionals is normalised.
    log_p = jax.jit(model.log_prob)(table.states)
    assert jnp.exp(log_p).sum() == pytest.approx(1.0, abs=1e-10)
    assert model.has_enumerate_support
    np.testing.assert_array_equal(model.enumerate_support(), table.states)
    assert 0 <= jnp.exp(table.log_p) @ (table.log_p - log_p) < 0.15
    # Estimates: every part in one call, weighed by how often it is met.
    masks = jnp.array(list(itertools.product([False, True], repeat=SIZE)))
    found = jax.jit(lambda x, m: model.marginal(x[:, None], m))(table.states, masks)
    exact = jax.vmap(lambda x: jax.vmap(lambda m: table.log_marginal(jnp.where(m, x, BLANK)))(masks))(table.states)
    weights = jnp.exp(table.log_p)[:, None] / len(masks)
    assert (found[:, 0] == 0).all()
    assert jnp.sum(weights * jnp.abs(found - exact)) < 0.12
    residual = jax.jit(lambda x, m: model.consistency(x[:, None], m))(table.states, masks)
    assert jnp.sum(weights[..., None] * jnp.abs(residual)) / SIZE < 0.08
    x, mask = table.states[7], masks[5]
    each = [model.marginal(x.at[0].set(v), mask.at[0].set(True)) for v in range(VALUES)]
    wanted = jax.scipy.special.logsumexp(jnp.stack(each)) - model.marginal(x, mask)
    assert model.consistency(x, mask)[0] == pytest.approx(float(wanted), abs=1e-5)
    # Draws are those of log_prob.
    drawn = model.sample(jax.random.key(3), (10_000,))
    assert_proportion(np.bincount(table.index(drawn), minlength=VALUES**SIZE), 10_000, np.exp(log_p), detects=0.04)


@pytest.mark.slow
def test_a_marginal_model_learns_an_unnormalised_density():
    """A small Ising model, of which the model sees no draw: distribution, marginals and evidence by enumeration."""
    ising = gen.Ising.lattice(2, 0.5, 0.2)
    training = gen.Training(steps=400, batch=64, learning_rate=5e-3, ema=0.98, validation=0.0, block=200)
    family = gen.MarginalModel(width=32, depth=2, target=ising)
    model = gen.fit(family, np.zeros((64, 4), int), values=2, training=training)
    table = ising.table()
    log_p = jax.jit(model.log_prob)(table.states)
    assert 0.5 * jnp.abs(jnp.exp(log_p) - jnp.exp(table.log_p)).sum() < 0.02
    masks = jnp.array(list(itertools.product([False, True], repeat=4)))
    found = jax.jit(lambda x, m: model.marginal(x[:, None], m))(table.states, masks)
    exact = jax.vmap(lambda x: jax.vmap(lambda m: table.log_marginal(jnp.where(m, x, 2)))(masks))(table.states)
    weights = jnp.exp(table.log_p)[:, None] / len(masks)
    assert jnp.sum(weights * jnp.abs(found - exact)) < 0.03
    # As the density is exact and normalised, weights of its draws are unbiased for the evidence.
    energies = jax.vmap(ising.log_density)(table.states)
    assert jnp.exp(log_p) @ jnp.exp(energies - log_p) == pytest.approx(float(jnp.exp(energies).sum()), rel=1e-9)


@pytest.mark.slow
def test_a_marginal_model_of_a_four_by_four_lattice():
    """An Ising lattice of 16 spins against the enumeration of its 65536 states, learned from its energy alone."""
    ising = gen.Ising.lattice(4, 0.2, 0.1)
    table = ising.table()
    training = gen.Training(steps=300, batch=64, learning_rate=5e-3, ema=0.97, validation=0.0, block=150)
    model = gen.fit(
        gen.MarginalModel(width=48, depth=2, target=ising), np.zeros((64, 16), int), values=2, training=training
    )
    rows = model.sample(jax.random.key(0), (4000,))
    log_w = table.log_p[table.index(rows)] - jax.jit(model.log_prob)(rows)
    # The divergence of the model from the lattice, beside that of independent spins with the right means.
    up = jnp.exp(table.log_p) @ table.states
    alone = -jnp.sum(up * jnp.log(up) + (1 - up) * jnp.log(1 - up)) - table.entropy()
    assert -log_w.mean() < 0.12 < 0.5 * alone
    # log_prob is exact: weights are unbiased for the normalising constant, here divided out.
    assert_mean(jnp.exp(log_w).reshape(40, 100).mean(1), 1.0, detects=0.1)
    rows, masks = rows[:24], jax.random.bernoulli(jax.random.key(1), 0.5, (24, 16))
    found = jax.jit(model.marginal)(rows, masks)
    exact = jax.lax.map(lambda at: table.log_marginal(jnp.where(at[1], at[0], 2)), (rows, masks))
    assert jnp.abs(exact).mean() > 4
    assert jnp.abs(found - exact).mean() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("family", [gen.AbsorbingDiffusion(width=16, depth=1), gen.MarginalModel(width=16, depth=1)])
def test_conditions_are_learned(family):
    """Entries that are those of the condition, mostly: the condition is used, and differentiated through."""
    rng = np.random.default_rng(0)
    c = rng.integers(2, size=(1000, 1))
    rows = np.where(rng.random((1000, 3)) < 0.9, c, 1 - c)
    training = gen.Training(steps=300, batch=64, learning_rate=1e-2, ema=0.9, block=100)
    model = gen.fit(family, rows, c.astype(float), training=training)
    both = model.given(jnp.array([[0.0], [1.0]]))
    assert both.batch_shape == (2,)
    drawn = both.sample(jax.random.key(0), (500,))
    assert_proportion(drawn.sum((0, 2)), [1500, 1500], [0.1, 0.9], detects=0.1)
    with pytest.raises(pg.MethodError, match="was given none"):
        model.sample(jax.random.key(0))
    value = (lambda d, x: d.log_prob(x)) if "log_prob" in model.offers else (lambda d, x: d.bound(jax.random.key(0), x))
    slope = jax.grad(lambda c: value(model.given(c), jnp.ones(3, int)))(jnp.array([0.5]))
    assert slope[0] > 0.5
