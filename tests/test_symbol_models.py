"""Any-subset autoregression, step-unrolled autoencoders, joints from conditionals, diffusion of embedded symbols."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative.any_subset import left_to_right
from probgen.generative.discrete_family import picked
from probgen.testing import assert_mean, assert_proportion

gen = pg.generative
SIZE, VALUES = 4, 2
BLANK = VALUES
SPEC = gen.Spec((SIZE,), None, VALUES)


@pytest.fixture(scope="module")
def table():
    """A joint distribution of 4 bits, far from independent."""
    return gen.Table(1.5 * jax.random.normal(jax.random.key(1), (VALUES**SIZE,)), SIZE, VALUES)


def untrained(family, spec=SPEC, seed=0, scale=0.7):
    """A model with random weights, those that begin at zero too."""
    net = family.build(jax.random.key(seed), spec)
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [a + scale * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)]
    return family.distribution(jax.tree.unflatten(tree, leaves), spec)


# -- any subset ------------------------------------------------------------------------------------------------------


def clashing(symbols, ranks):
    """Conditionals given the entries of lower rank that belong to no joint distribution."""
    seen = ranks[:, None] > ranks
    features = jnp.where(seen, jnp.where(symbols < VALUES, 2.0 * symbols - 1.0, 9.0), 0.0)
    weights = 1.5 * jax.random.normal(jax.random.key(2), (SIZE, VALUES, SIZE))
    return jax.nn.log_softmax(jnp.einsum("ivj,ij->iv", weights, features) + weights.sum(-1), axis=-1)


@pytest.mark.parametrize("symbols", [(BLANK,) * SIZE, (1, BLANK, BLANK, 0), (BLANK, 0, BLANK, BLANK)])
def test_speculation_draws_from_the_chain_of_conditionals(symbols):
    """Whatever the guesses are worth: the law is the product from left to right, and passes are at most blanks."""
    symbols = jnp.array(symbols)
    blank = symbols == BLANK
    count = int(blank.sum())
    rows = jnp.array(
        [r for r in itertools.product(range(VALUES), repeat=SIZE) if all((np.array(r) == symbols) | blank)]
    )
    chain = jax.vmap(lambda x: jnp.sum(jnp.where(blank, picked(clashing(x, left_to_right(blank)), x), 0.0)))(rows)
    assert jnp.exp(chain).sum() == pytest.approx(1.0)
    keys = jax.random.split(jax.random.key(3), 10_000)
    drawn, calls = jax.jit(jax.vmap(lambda k: gen.speculate(k, clashing, symbols, VALUES)))(keys)
    at = np.array([np.flatnonzero((np.asarray(rows) == x).all(1))[0] for x in np.unique(drawn, axis=0)])
    counts = np.zeros(len(rows))
    counts[at] = np.unique(drawn, axis=0, return_counts=True)[1]
    assert_proportion(counts, len(keys), np.exp(chain), detects=0.04)
    assert calls.max() <= count
    assert calls.min() >= min(2, count)


def test_guesses_that_are_never_refused_take_two_passes():
    """Of entries that are independent."""
    alone = jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.6, 0.4]]))
    blank = jnp.full(SIZE, BLANK)
    draw = jax.jit(jax.vmap(lambda k: gen.speculate(k, lambda x, ranks: alone, blank, VALUES)))
    drawn, calls = draw(jax.random.split(jax.random.key(0), 4000))
    assert (calls == 2).all()
    assert_proportion(np.asarray(drawn).sum(0), 4000, np.exp(alone[:, 1]), detects=0.06)


@pytest.mark.slow
def test_an_entry_depends_on_those_of_lower_rank_alone():
    model = untrained(gen.AnySubset(width=8, depth=2, heads=2))
    x, ranks = jnp.array([0, 1, 1, 0]), jnp.array([2, 0, 3, 1])
    flipped = jnp.where(jnp.eye(SIZE, dtype=bool), 1 - x, x)
    predicted = jax.jit(jax.vmap(model.predict, (0, None)))(jnp.concatenate([x[None], flipped]), ranks)
    for j in range(SIZE):
        moved = jnp.abs(predicted[1 + j] - predicted[0]).max(1) > 1e-6
        np.testing.assert_array_equal(moved, ranks > ranks[j])
    # So the product is normalised, one pass is the chain, and conditionals are normalised too.
    rows = model.enumerate_support()
    log_p = jax.jit(model.log_prob)(rows)
    assert jnp.exp(log_p).sum() == pytest.approx(1.0, abs=1e-9)
    mask = jnp.array([False, True, False, True])
    rest = jax.jit(model.given_log_prob)(rows, mask)
    same = (rows[:, 1] == 1) & (rows[:, 3] == 0)
    assert jnp.exp(rest[same]).sum() == pytest.approx(1.0, abs=1e-9)
    first = jnp.exp(model.conditional(x, mask))[0]
    wanted = [jnp.exp(rest[same & (rows[:, 0] == v)]).sum() for v in range(2)]
    np.testing.assert_allclose(first, wanted, atol=1e-6)  # the network computes in 32 bits
    # Draws, by guessing, follow log_prob.
    drawn = jax.jit(lambda k: model.sample(k, (10_000,)))(jax.random.key(3))
    counts = np.bincount(np.asarray(drawn) @ [8, 4, 2, 1], minlength=16)
    assert_proportion(counts, 10_000, np.exp(log_p), detects=0.04)
    filled = model.infill(jax.random.key(4), jnp.stack([x, 1 - x]), mask)
    np.testing.assert_array_equal(filled[:, mask], jnp.stack([x, 1 - x])[:, mask])


# -- step-unrolled ---------------------------------------------------------------------------------------------------


def test_unrolled_loss_is_its_mean_over_corruptions_and_answers():
    size, values, x = 2, 2, jnp.array([1, 0])
    weights = jax.random.normal(jax.random.key(5), (4, size, values))

    def scores(row):
        return weights[row @ jnp.array([2, 1])]

    log_f = np.asarray(jax.nn.log_softmax(weights, axis=-1))
    rows = list(itertools.product(range(values), repeat=size))
    loss_of = np.array([-(log_f[i][0, 1] + log_f[i][1, 0]) for i in range(4)])  # of x = (1, 0) from each row
    answer = np.array([[np.exp(log_f[i][0, a] + log_f[i][1, b]) for a, b in rows] for i in range(4)])
    # A share u of the entries is replaced; u is uniform, so an entry is changed with probability u / 2.
    u, w = np.polynomial.legendre.leggauss(8)
    u, w = (u + 1) / 2, w / 2
    changed = np.array([sum(a != b for a, b in zip(row, (1, 0), strict=True)) for row in rows])
    corrupted = (w[:, None] * (u[:, None] / 2) ** changed * (1 - u[:, None] / 2) ** (2 - changed)).sum(0)
    wanted = 0.5 * (corrupted @ loss_of + corrupted @ answer @ loss_of)
    keys = jax.random.split(jax.random.key(6), (100, 100))
    found = jax.jit(jax.vmap(jax.vmap(lambda k: gen.unrolled_loss(k, scores, x, values, 1))))(keys).mean(1)
    assert_mean(found, wanted, detects=0.12)


def test_draws_are_those_of_the_chain_of_repairs():
    family = gen.StepUnrolled(steps=3, share=0.6, width=8, depth=1, temperature=0.8)
    spec = gen.Spec((3,), None, 2)
    model = untrained(family, spec)
    rows = jnp.array(list(itertools.product(range(2), repeat=3)))
    new = np.exp(jax.vmap(model.predict)(rows))  # (rows, size, values)
    stays = np.eye(2)[np.asarray(rows)]
    entry = 0.6 * new + 0.4 * stays
    move = np.prod([entry[:, i][:, np.asarray(rows)[:, i]] for i in range(3)], 0)
    law = np.full(8, 1 / 8) @ np.linalg.matrix_power(move, 3)
    drawn = np.asarray(jax.jit(lambda k: model.sample(k, (10_000,)))(jax.random.key(0)))
    assert_proportion(np.bincount(drawn @ [4, 2, 1], minlength=8), 10_000, law, detects=0.04)
    # Known entries are held at every step.
    held = np.asarray(rows)[:, 1] == 1
    entry[:, 1] = np.array([0.0, 1.0])
    move = np.prod([entry[:, i][:, np.asarray(rows)[:, i]] for i in range(3)], 0)
    law = (held / 4) @ np.linalg.matrix_power(move, 3)
    value, mask = jnp.array([0, 1, 0]), jnp.array([False, True, False])
    filled = np.asarray(jax.jit(lambda k: model.infill(k, jnp.tile(value, (10_000, 1)), mask))(jax.random.key(1)))
    assert_proportion(np.bincount(filled @ [4, 2, 1], minlength=8), 10_000, law, detects=0.04)
    # The likeliest symbols, until none changes or for as many steps as there are; known entries are held.
    hold = np.array([False, False, True])
    best = {tuple(x): tuple(np.where(hold, x, y)) for x, y in zip(np.asarray(rows), np.argmax(new, -1), strict=True)}
    fixed = model.fixed_point(rows, hold)
    for start, found in zip(np.asarray(rows), np.asarray(fixed), strict=True):
        row = tuple(start)
        for _ in range(family.steps):
            row = best[row]
        assert row == tuple(found)


# -- joints from conditionals ----------------------------------------------------------------------------------------


def test_compatible_conditionals_give_their_joint_back(table):
    conditionals = gen.unary_conditionals(table.conditionals, SIZE, VALUES)
    x = table.states[5]
    assert conditionals[2, 5] == pytest.approx(float(table.conditionals(x.at[2].set(BLANK))[2, x[2]]))
    found = gen.closest_joint(conditionals, SIZE, VALUES)
    np.testing.assert_allclose(found.table.log_p, table.log_p, atol=1e-7)
    assert abs(found.divergence) < 1e-10
    assert found.change <= 1e-10


def test_clashing_conditionals_give_the_closest_joint():
    """The optimum of the divergence: its gradient in the log probabilities vanishes, and a general optimiser agrees."""
    from scipy.optimize import minimize

    size, values = 3, 2
    scores = jax.random.normal(jax.random.key(7), (size, values**size)).reshape(size, 2, 2, 2)
    each = [jax.nn.log_softmax(scores[i], axis=i).reshape(-1) for i in range(size)]
    found = gen.closest_joint(jnp.stack(each), size, values)

    @jax.jit
    def divergence(log_p):
        log_p = jax.nn.log_softmax(log_p).reshape(2, 2, 2)
        q = [e.reshape(2, 2, 2) for e in each]
        return sum(jnp.sum(jnp.exp(q[i]) * (q[i] - jax.nn.log_softmax(log_p, axis=i))) for i in range(size))

    assert found.divergence == pytest.approx(float(divergence(found.table.log_p)), abs=1e-12)
    assert found.divergence > 0.05
    np.testing.assert_allclose(jax.grad(divergence)(found.table.log_p), 0.0, atol=1e-8)
    best = minimize(lambda v: float(divergence(v)), np.zeros(8), jac=lambda v: np.asarray(jax.grad(divergence)(v)))
    assert found.divergence == pytest.approx(best.fun, abs=1e-7)


def test_bad_conditionals_are_named():
    with pytest.raises(pg.DataError, match="has shape \\(2, 2\\), expected \\(2, 4\\)"):
        gen.closest_joint(jnp.zeros((2, 2)), 2, 2)
    with pytest.raises(pg.MethodError, match="steps=0"):
        gen.closest_joint(jnp.zeros((2, 4)), 2, 2, steps=0)


# -- embedded symbols ------------------------------------------------------------------------------------------------

WORDS = ["this", "these", "the", "cat", "cats", "runs", "run", "slowly"]
SENTENCES = ["this cat runs slowly", "these cats run slowly", "the cat runs slowly", "the cats run slowly"]


def grammar():
    """A uniform law over sentences whose words must agree."""
    log_w = np.full((8,) * 4, -np.inf)
    for sentence in SENTENCES:
        log_w[tuple(WORDS.index(word) for word in sentence.split())] = 0.0
    return gen.Table(jnp.asarray(log_w), 4, 8)


def test_control_is_exact_bayes_where_the_chance_is():
    language = grammar()
    points = jax.random.normal(jax.random.key(0), (8, 4))
    symbols = gen.EmbeddedTable(table=language, embeddings=points, path=gen.VP())
    plural = gen.Table(language.log_p.reshape((8,) * 4).at[:, :, :6].set(-jnp.inf).at[:, :, 7:].set(-jnp.inf), 4, 8)
    given = gen.EmbeddedTable(table=plural, embeddings=points, path=gen.VP())
    steered = gen.ClassifierGuidance(symbols, lambda x, t: symbols.entries(x, t)[2, 6])
    x = jax.random.normal(jax.random.key(1), (4, 4))
    both = jax.jit(lambda x, t: (steered.mean(x, t), given.mean(x, t)))
    for t in (0.3, 0.7, 0.95):
        np.testing.assert_allclose(*both(x, t), atol=1e-6)
    clamped = gen.ClampedDenoiser(symbols, symbols)
    mean = clamped.mean(x, 0.3)
    nearest = jnp.argmin(jnp.linalg.norm(symbols.mean(x, 0.3)[:, None] - points, axis=-1), -1)
    np.testing.assert_array_equal(mean, points[nearest])
    # Sampling keeps the grammar, and the constraint, exactly.
    times = gen.even_log_snr(gen.VP(), 60)

    def draw(key, denoiser):
        key_noise, key_path = jax.random.split(key)
        end = gen.sample_path(key_path, gen.DDIM(eta=1.0), denoiser, denoiser.draw_noise(key_noise), times)
        return symbols.rounded(end)

    keys = jax.random.split(jax.random.key(2), 1000)
    drawn = jax.jit(jax.vmap(lambda k: draw(k, symbols)))(keys)
    assert (language.log_p[language.index(drawn)] > -jnp.inf).mean() == 1.0
    counts = np.bincount(language.index(drawn), minlength=8**4)[np.asarray(language.log_p > -jnp.inf)]
    assert_proportion(counts, 1000, 0.25, detects=0.12)
    drawn = jax.jit(jax.vmap(lambda k: draw(k, steered)))(keys[:200])
    assert (plural.log_p[plural.index(drawn)] > -jnp.inf).all()


# -- all -------------------------------------------------------------------------------------------------------------

FAMILIES = {
    "any subset": gen.AnySubset(width=8, depth=1, heads=2),
    "unrolled": gen.StepUnrolled(steps=3, width=8, depth=1),
    "embedded": gen.EmbeddedDiffusion(dim=3, steps=6, width=8, depth=1),
    "clamped": gen.EmbeddedDiffusion(dim=3, steps=6, width=8, depth=1, clamp=True),
}


@pytest.mark.parametrize("name", [n if n == "clamped" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_models_are_distributions_and_can_be_kept(name, tmp_path):
    family = FAMILIES[name]
    model = untrained(family)
    rows = jnp.zeros((16, SIZE), jnp.int32)
    loss, slope = jax.jit(jax.value_and_grad(lambda net: family.loss(jax.random.key(0), net, rows, None, None)))(
        model.net
    )
    assert np.isfinite(loss)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))
    drawn = jax.jit(lambda k: model.sample(k, (3, 2)))(jax.random.key(0))
    assert drawn.shape == (3, 2, SIZE)
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    assert model.support(drawn).all()
    gen.save(model, tmp_path / "m")
    again = gen.load(tmp_path / "m")
    np.testing.assert_array_equal(jax.jit(lambda k: again.sample(k, (3, 2)))(jax.random.key(0)), drawn)
    if "log_prob" not in model.offers:
        with pytest.raises(pg.MethodError, match="has no log_prob"):
            model.log_prob(drawn)


def test_bad_settings_are_named():
    rows = np.zeros((100, 4), int)
    for family, message in (
        (gen.AnySubset(width=6, heads=4), "width=6 and heads=4"),
        (gen.StepUnrolled(share=0.0), "share=0"),
        (gen.StepUnrolled(unrolled=-1), "unrolled=-1"),
        (gen.StepUnrolled(temperature=0.0), "temperature=0"),
        (gen.EmbeddedDiffusion(dim=0), "dim=0"),
    ):
        with pytest.raises(pg.MethodError, match=message):
            gen.fit(family, rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["any subset", "unrolled"])
def test_learned_models_come_near_their_data(name, table):
    rows = np.asarray(jax.vmap(table.draw)(jax.random.split(jax.random.key(9), 8000)))
    family = {
        "any subset": gen.AnySubset(width=32, depth=2),
        "unrolled": gen.StepUnrolled(width=64, depth=2, share=0.3, steps=40),
    }[name]
    model = gen.fit(family, rows, training=gen.Training(steps=1500, batch=256, learning_rate=3e-3, block=500))
    drawn = np.asarray(model.sample(jax.random.key(0), (20_000,)))
    law = np.bincount(drawn @ [8, 4, 2, 1], minlength=16) / len(drawn)
    # The unrolled chain has no exact stationary law to reach, even with perfect repairs.
    assert 0.5 * np.abs(law - np.exp(table.log_p)).sum() < {"any subset": 0.05, "unrolled": 0.3}[name]
    if name == "any subset":
        mask = jnp.array([False, True, True, False])
        symbols = jnp.where(mask, table.states, BLANK)
        exact = table.log_p - jax.vmap(table.log_marginal)(symbols)
        gap = jnp.exp(table.log_p) @ (exact - model.given_log_prob(table.states, mask))
        assert 0 <= gap < 0.05


@pytest.mark.slow
def test_a_learned_embedding_keeps_a_grammar_under_control():
    language = grammar()
    rows = np.asarray(jax.vmap(language.draw)(jax.random.split(jax.random.key(9), 2000)))
    training = gen.Training(steps=2000, batch=128, learning_rate=3e-3, block=500)
    model = gen.fit(gen.EmbeddedDiffusion(dim=6, width=64, depth=2), rows, values=8, training=training)

    def valid(x):
        return np.asarray(language.log_p[language.index(x)] > -jnp.inf)

    assert valid(model.sample(jax.random.key(0), (500,))).mean() > 0.97
    steered = model.steered(jax.random.key(1), lambda s: s[2, 6], (500,))
    assert (valid(steered) & (np.asarray(steered)[:, 2] == 6)).mean() > 0.95
