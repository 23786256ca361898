"""Discrete diffusion (D3PM), blackout diffusion, Glauber models, Bayesian flows, against enumeration of small tables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

import probgen as pg
from probgen.generative.glauber import Glauber
from probgen.testing import assert_mean, assert_proportion

gen = pg.generative
SIZE, VALUES = 3, 3
LINE = jnp.arange(4.0)[:, None]
CORRUPTIONS = {
    "uniform": gen.UniformCorruption(),
    "absorbing": gen.AbsorbingCorruption(),
    "gaussian": gen.GaussianCorruption(4.0),
    "neighbours": gen.NeighbourCorruption(LINE[:3]),
}


@pytest.fixture(scope="module")
def table():
    """A joint distribution of 3 symbols of 3 kinds, far from independent."""
    return gen.Table(1.5 * jax.random.normal(jax.random.key(1), (VALUES**SIZE,)), SIZE, VALUES)


def exact(table, process):
    """The exact posteriors of the clean entries."""
    return lambda x, t: table.posterior(process.evidence(x, t))[1]


def rows_of(states, size):
    return jnp.array(list(itertools.product(range(states), repeat=size)))


def reversed_law(table, process):
    """The law of sampling with exact posteriors, over all states, by enumeration."""
    states = process.moves.shape[-1]
    rows = rows_of(states, table.size)
    log_law = process.log_end[rows].sum(1)

    @jax.jit
    def back(log_law, t):
        log_p = jax.vmap(lambda x: process.reverse(exact(table, process)(x, t), x, t))(rows)  # (from, size, states)
        moves = sum(log_p[:, i, rows[:, i]] for i in range(table.size))  # (from, to)
        moves = jnp.where((log_law > -jnp.inf)[:, None], moves, -jnp.inf)  # states that are never met may be impossible
        return jax.scipy.special.logsumexp(log_law[:, None] + moves, axis=0)

    for t in range(process.steps, 0, -1):
        log_law = back(log_law, t)
    clean = (rows < table.values).all(1)
    assert jnp.exp(log_law[~clean]).sum() < 1e-12
    return log_law[clean]


def exact_bound(table, process):
    """The mean bound with exact posteriors, by enumeration."""
    rows, clean = rows_of(process.moves.shape[-1], table.size), table.states

    @jax.jit
    def term(t):
        def one(x, x_t):
            log_q = process.since_start[t][x, x_t].sum()
            value = process.divergence(exact(table, process)(x_t, t), x, x_t, t)
            return jnp.where(log_q > -jnp.inf, jnp.exp(log_q) * jnp.where(log_q > -jnp.inf, value, 0.0), 0.0)

        return jnp.exp(table.log_p) @ jax.vmap(lambda x: jax.vmap(lambda y: one(x, y))(rows))(clean).sum(1)

    end = jnp.exp(table.log_p) @ jax.vmap(process.end_divergence)(clean)
    return -sum(term(t) for t in range(1, process.steps + 1)) - end


# -- transition matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_transition_matrices(name):
    corruption, steps = CORRUPTIONS[name], 12
    q = np.asarray(corruption.matrices(3, steps))
    states = corruption.states(3)
    assert q.shape == (steps, states, states)
    assert (q >= -1e-15).all()
    np.testing.assert_allclose(q.sum(-1), 1.0, atol=1e-12)
    end = np.asarray(corruption.end(3))
    np.testing.assert_allclose(end @ np.linalg.multi_dot(q), end, atol=1e-12)
    # The start is forgotten.
    np.testing.assert_allclose(np.linalg.multi_dot(q)[:3], np.broadcast_to(end, (3, states)), atol=2e-2)
    if name in ("uniform", "absorbing"):
        np.testing.assert_allclose(np.linalg.multi_dot(q)[:3], np.broadcast_to(end, (3, states)), atol=1e-12)


def test_matrices_are_the_published_ones():
    q = gen.GaussianCorruption(3.0).matrices(4, 5)
    beta = 3.0 * 2 / 5  # the second step
    n = np.arange(-3, 4)
    weights = np.exp(-4 * n**2 / (9 * beta)) / np.exp(-4 * n**2 / (9 * beta)).sum()
    np.testing.assert_allclose(q[1][0, 1:], weights[4:], rtol=1e-12)
    # On a line the nearest neighbours of 0 are 1 (and 2), and R is the generator that they make.
    near = gen.NeighbourCorruption(LINE, nearest=1, total=2.0)
    g = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], float)
    rates = (g + g.T) / 2
    rates -= np.diag(rates.sum(1))
    gap = -np.sort(np.linalg.eigvalsh(rates))[-2]
    np.testing.assert_allclose(near.matrices(4, 1)[0], expm(2.0 / gap * rates), atol=1e-12)
    # Half of 1 / (T - t + 1) ... : the share 1 - t/T survives.
    left = np.linalg.multi_dot(np.asarray(gen.AbsorbingCorruption().matrices(2, 8))[:6])[0, 0]
    assert left == pytest.approx(1 - 6 / 8)


def test_uniform_corruption_of_two_values_is_binomial_diffusion():
    process = gen.DiscreteProcess.of(gen.UniformCorruption(), 2, 10)
    left = np.cos(np.pi / 2 * np.arange(11) / 10) ** 2
    for t in (1, 4, 9):
        beta = 1 - left[t] / left[t - 1]
        before = np.arange(2)
        np.testing.assert_allclose(jnp.exp(process.moves[t - 1])[:, 1], before * (1 - beta) + beta / 2, atol=1e-12)
        np.testing.assert_allclose(
            jnp.exp(process.since_start[t])[:, 1], before * left[t] + (1 - left[t]) / 2, atol=1e-12
        )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_reverse_is_bayes_rule(name, table):
    """Each entry of a reverse step has the exact law of that entry, from the joint law of all steps."""
    process = gen.DiscreteProcess.of(CORRUPTIONS[name], VALUES, 6)
    states, t = process.moves.shape[-1], 3
    rows, clean = rows_of(states, SIZE), table.states
    x_t = jnp.array([2, states - 1, 0])
    before = jnp.exp(table.log_p[:, None] + process.since_start[t - 1][clean[:, None], rows].sum(-1))  # (x_0, x_{t-1})
    joint = before.sum(0) * jnp.exp(process.moves[t - 1][rows, x_t].sum(-1))
    posterior = joint / joint.sum()
    found = jnp.exp(process.reverse(exact(table, process)(x_t, t), x_t, t))
    for i in range(SIZE):
        wanted = np.bincount(rows[:, i], posterior, minlength=states)
        np.testing.assert_allclose(found[i], wanted, atol=1e-10)


# -- laws and bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_one_entry_is_reversed_exactly(name):
    table = gen.Table(jnp.array([0.3, -1.0, 1.2]), 1, 3)
    process = gen.DiscreteProcess.of(CORRUPTIONS[name], 3, 7)
    error = (
        1e-12
        if name in ("uniform", "absorbing")
        else float(jax.vmap(process.end_divergence)(table.states).max()) ** 0.5
    )
    np.testing.assert_allclose(jnp.exp(reversed_law(table, process)), jnp.exp(table.log_p), atol=max(error, 1e-12))


@pytest.mark.parametrize("name", [pytest.param("uniform", marks=pytest.mark.slow), "absorbing"])
def test_law_and_bound_by_enumeration(name, table):
    """-H >= E log p(draw) >= E bound, and both gaps close like 1/T."""
    entropy, p = float(table.entropy()), jnp.exp(table.log_p)
    laws, bounds = {}, {}
    for steps in (8, 4):
        process = gen.DiscreteProcess.of(CORRUPTIONS[name], VALUES, steps)
        law = reversed_law(table, process)
        laws[steps] = float(p @ law) + entropy
        bounds[steps] = float(exact_bound(table, process)) + entropy
        assert bounds[steps] <= laws[steps] + 1e-10 <= 2e-10
    assert 0.35 < bounds[8] / bounds[4] < 0.7
    # Draws and bounds of the last process are unbiased for what was enumerated.
    predict = exact(table, process)
    drawn = jax.jit(jax.vmap(lambda k: process.sample(k, predict, SIZE)))(jax.random.split(jax.random.key(0), 10_000))
    counts = np.bincount(table.index(drawn), minlength=VALUES**SIZE)
    assert_proportion(counts, 10_000, np.exp(law), detects=0.04)

    def one(key):
        key_row, key_bound = jax.random.split(key)
        return process.bound(key_bound, predict, table.draw(key_row))

    found = jax.jit(jax.vmap(jax.vmap(one)))(jax.random.split(jax.random.key(1), (100, 100))).mean(1)
    assert_mean(found, bounds[4] - entropy, detects=0.15)


# -- blackout --------------------------------------------------------------------------------------------------------

COUNTS = 12
SURVIVAL = gen.Blackout().logits(1)


def count_table():
    n = np.arange(COUNTS + 1)
    return gen.Table(jnp.log(0.6 * stats.poisson.pmf(n, 2) + 0.4 * stats.binom.pmf(n, COUNTS, 0.8)), 1, COUNTS + 1)


def missing_of(table):
    """The exact expected number of deaths."""

    def one(n, logit):
        start = jnp.arange(COUNTS + 1.0)
        log_p = jax.nn.log_sigmoid(logit)
        log_choose = jax.scipy.special.gammaln(start + 1) - jax.scipy.special.gammaln(jnp.maximum(start - n, 0) + 1)
        log_q = jnp.where(start >= n, log_choose + (start - n) * jax.nn.log_sigmoid(-logit) + n * log_p, -jnp.inf)
        return jnp.exp(table.posterior(log_q[None])[1][0]) @ (start - n)

    return lambda n, logit: jax.vmap(lambda n: jnp.where(n <= COUNTS, one(jnp.minimum(n, COUNTS), logit), 0.0))(n)


def test_exact_birth_rates_make_the_distribution():
    """The master equation of births with the exact rates ends in the data; Poisson steps do so to first order."""
    table = count_table()
    missing, p = missing_of(table), np.exp(table.log_p)
    at = jnp.arange(COUNTS + 1)
    rates = jax.jit(lambda logit: missing(at, logit))
    # In the logit of survival the birth rate is y p.
    law = np.eye(COUNTS + 1)[0]
    grid = np.linspace(-12.0, 12.0, 1201)
    for low, high in itertools.pairwise(grid):
        middle = (low + high) / 2
        rate = np.asarray(rates(middle)) / (1 + np.exp(-middle))
        law = law @ expm((high - low) * (np.diag(rate[:-1], 1) - np.diag(rate)))
    assert 0.5 * np.abs(law - p).sum() < 1e-4

    errors = {}
    for steps in (50, 100, 200):
        law, logits = np.zeros(COUNTS + 20), np.asarray(gen.Blackout().logits(steps))
        law[0] = 1.0
        for low, high in itertools.pairwise(logits):
            share = -np.expm1(np.log1p(-1 / (1 + np.exp(-high))) - np.log1p(-1 / (1 + np.exp(-low))))
            mean = np.append(np.asarray(rates(low)), np.zeros(19)) * share
            moves = stats.poisson.pmf(np.arange(COUNTS + 20) - np.arange(COUNTS + 20)[:, None], mean[:, None])
            law = law @ moves
        errors[steps] = 0.5 * np.abs(law - np.append(p, np.zeros(19))).sum()
        if steps == 50:
            draw = jax.jit(jax.vmap(lambda k, at=jnp.asarray(logits): gen.births(k, missing, 1, at)))
            drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)))[:, 0]
            tail = np.append(law[: COUNTS + 2], law[COUNTS + 2 :].sum())
            counts = np.bincount(np.minimum(drawn, COUNTS + 2), minlength=COUNTS + 3)
            assert_proportion(counts, 20_000, tail, detects=0.03)
    assert errors[200] < 0.02
    assert 0.35 < errors[200] / errors[100] < 0.65


def test_the_loss_of_blackout_is_least_at_the_expected_number_of_deaths():
    """Its gradient vanishes there, by enumeration over what died: so the rates above are what is learned."""
    table, logit = count_table(), 0.7
    p, y = np.exp(table.log_p), np.asarray(missing_of(table)(jnp.arange(COUNTS + 1), logit))
    alive = stats.binom.pmf(np.arange(COUNTS + 1), np.arange(COUNTS + 1)[:, None], 1 / (1 + np.exp(-logit)))

    def loss(y):
        gap = np.arange(COUNTS + 1)[:, None] - np.arange(COUNTS + 1)
        return jnp.sum(p[:, None] * alive * jnp.where(alive > 0, y - gap * jnp.log(y), 0.0))

    y = np.maximum(y, 1e-12)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(y))[:-1], 0.0, atol=1e-9)


# -- Glauber ---------------------------------------------------------------------------------------------------------


def noisy_laws(table, family):
    """The law before every step of noise, by enumeration."""
    size, values = table.size, table.values
    p = np.exp(np.asarray(table.log_p)).reshape((values,) * size)
    laws = [p]
    for t in range(family.sweeps * size):
        p = family.kept * p + (1 - family.kept) * p.mean(t % size, keepdims=True)
        laws.append(p)
    return laws


def test_odds_of_signal_are_conditionals_and_undo_the_noise():
    ising = gen.Ising(jnp.array([[0, 0.8, -0.4], [0.8, 0, 0.3], [-0.4, 0.3, 0]]), jnp.array([0.3, -0.2, 0.1]))
    table, family = ising.table(), Glauber(sweeps=4, left=1e-3)
    laws, kept = noisy_laws(table, family), family.kept
    t, size = 7, 3
    site = t % size
    # P(signal, x) and P(noise, x) after the step, by enumeration.
    signal, noise = kept * laws[t], (1 - kept) * laws[t].mean(site, keepdims=True)
    conditional = laws[t] / laws[t].sum(site, keepdims=True)
    np.testing.assert_allclose(signal / noise, kept * 2 / (1 - kept) * conditional, rtol=1e-12)
    # Heat-bath steps from the law at the end lead back to the data exactly; from noise, up to what is left of them.
    chance = jnp.stack([jnp.asarray(law / law.sum(s % size, keepdims=True)) for s, law in enumerate(laws[:-1])])

    def back(p):
        for s in range(len(laws) - 2, -1, -1):
            p = p.sum(s % size, keepdims=True) * np.asarray(chance[s])
        return p

    np.testing.assert_allclose(back(laws[-1]), laws[0], atol=1e-14)
    drawn_law = back(np.full((2, 2, 2), 1 / 8))
    assert 0.5 * np.abs(drawn_law - laws[0]).sum() < 3 * family.left

    def predict(x, t):
        at = chance[t]
        each = [x.at[t % size].set(v) for v in range(2)]
        return jnp.log(jnp.stack([at[tuple(e)] for e in each]))

    draw = jax.jit(jax.vmap(lambda k: gen.heat_bath(k, predict, 3, 2, 12)))
    drawn = draw(jax.random.split(jax.random.key(0), 20_000))
    assert_proportion(np.bincount(table.index(drawn), minlength=8), 20_000, drawn_law.ravel(), detects=0.03)


@pytest.mark.slow
def test_the_loss_of_glauber_is_the_cross_entropy_of_signal():
    """Of a network that scores by a fixed table: the mean over keys is that by enumeration."""
    table, family = gen.Ising.lattice(2, 0.5).table(), Glauber(sweeps=2, left=0.1)
    laws, kept = noisy_laws(table, family), family.kept
    scores = jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (8, 2))) + jnp.log(2)

    class Net:
        values = 2

        def __call__(self, x, given):
            blank = jnp.sum(jnp.where(x < 2, x, 0) * jnp.array([1, 3, 2, 5])) % 8
            return jnp.broadcast_to(scores[blank], (4, 2))

    total = 0.0
    for t, law in enumerate(laws[:-1]):
        site = t % 4
        noise = (1 - kept) * law.mean(site, keepdims=True)
        for x in itertools.product(range(2), repeat=4):
            odds = scores[int(np.sum(np.delete(np.array(x) * [1, 3, 2, 5], site))) % 8, x[site]] + np.log(
                kept / (1 - kept)
            )
            index = tuple(0 if i == site else v for i, v in enumerate(x))
            total += kept * law[x] * np.logaddexp(0, -odds) + noise[index] * np.logaddexp(0, odds)
    wanted = total / (len(laws) - 1)

    def one(key):
        key_rows, key_loss = jax.random.split(key)
        rows = jax.vmap(table.draw)(jax.random.split(key_rows, 64))
        return family.loss(key_loss, Net(), rows, None, None)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 200))
    assert_mean(found, wanted, detects=0.05)


# -- Bayesian flows --------------------------------------------------------------------------------------------------


def beliefs(table):
    return lambda belief, t: table.posterior(belief)[1]


def test_continuous_loss_is_the_information_of_the_messages():
    """One symbol of two kinds: by quadrature, the loss with exact predictions is the mutual information (I-MMSE)."""
    p, accuracy = np.array([0.3, 0.7]), 1.5
    table = gen.Table(jnp.log(p), 1, 2)
    process = gen.BeliefProcess(2, accuracy)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    times, time_weights = np.polynomial.legendre.leggauss(40)
    times, time_weights = (times + 1) / 2, time_weights / 2

    def at(beta):
        """Log posteriors of the symbol for each true one and each node: messages matter by their difference alone."""
        # y_1 - y_0 ~ N(+-2 beta, 4 beta)
        difference = np.array([-1, 1])[:, None] * 2 * beta + np.sqrt(4 * beta) * nodes
        y = np.stack([-difference / 2, difference / 2], -1)
        return np.asarray(jax.vmap(jax.vmap(lambda y: beliefs(table)(y[None], 1.0)[0]))(jnp.asarray(y)))

    loss = sum(
        w * 2 * accuracy * t * (p @ (((np.eye(2)[:, None] - np.exp(at(accuracy * t**2))) ** 2).sum(-1) @ weights))
        for t, w in zip(times, time_weights, strict=True)
    )
    end = at(accuracy)
    left = -(p @ (np.stack([end[0, :, 0], end[1, :, 1]]) @ weights))
    assert loss + left == pytest.approx(float(table.entropy()), abs=1e-8)
    # What the code draws has these means.
    keys = jax.random.split(jax.random.key(0), (100, 200))

    def one(key):
        key_row, key_time, key_loss = jax.random.split(key, 3)
        return process.continuous_loss(key_loss, beliefs(table), table.draw(key_row), jax.random.uniform(key_time))

    assert_mean(jax.jit(jax.vmap(jax.vmap(one)))(keys).mean(1), loss, detects=0.04)


def test_messages_update_beliefs_by_bayes_rule():
    process, x = gen.BeliefProcess(3, 2.0), jnp.array([1, 2])
    y = process.message(jax.random.key(0), x, 0.7)
    for v in range(3):
        mean = 0.7 * (3 * np.eye(3)[v] - 1)
        log_p = stats.norm.logpdf(np.asarray(y), mean, np.sqrt(0.7 * 3)).sum(-1)
        first = stats.norm.logpdf(np.asarray(y), 0.7 * (3 * np.eye(3)[0] - 1), np.sqrt(0.7 * 3)).sum(-1)
        np.testing.assert_allclose(log_p - first, y[:, v] - y[:, 0], atol=1e-12)
    alphas = [process.at_step(i, 8)[1] for i in range(1, 9)]
    np.testing.assert_allclose(np.cumsum(alphas), 2.0 * (np.arange(1, 9) / 8) ** 2, rtol=1e-6)


@pytest.mark.slow
def test_bound_of_a_bayesian_flow_with_exact_predictions(table):
    """It is below the log probability, and nearly reaches it; draws nearly follow the table."""
    process, steps = gen.BeliefProcess(VALUES, 5.0), 60
    predict = beliefs(table)

    def one(key):
        key_row, key_bound = jax.random.split(key)
        x = table.draw(key_row)
        return process.bound(key_bound, predict, x, steps) - table.log_density(x)

    found = jax.jit(jax.vmap(jax.vmap(one)))(jax.random.split(jax.random.key(1), (50, 100))).mean(1)
    assert_mean(found, -0.05, detects=0.2, tolerance=0.05)  # between 0 and -0.1
    drawn = jax.jit(jax.vmap(lambda k: process.sample(k, predict, SIZE, steps)))(
        jax.random.split(jax.random.key(2), 4000)
    )
    assert_proportion(np.bincount(table.index(drawn), minlength=VALUES**SIZE), 4000, np.exp(table.log_p), detects=0.08)


@pytest.mark.slow
def test_finite_loss_of_many_steps_is_the_continuous_one(table):
    process, x = gen.BeliefProcess(VALUES, 2.0), jnp.array([0, 1, 2])

    def pair(key):
        key_time, key_loss = jax.random.split(key)
        i = 1 + jnp.floor(jax.random.uniform(key_time) * 400)
        finite = 400 * process.step_loss(key_loss, beliefs(table), x, i, 400)
        # The same belief at the same time: what differs is the message of one step.
        same = jax.random.split(key_loss)[0]
        return finite - process.continuous_loss(same, beliefs(table), x, (i - 1) / 400)

    gaps = jax.jit(jax.vmap(jax.vmap(pair)))(jax.random.split(jax.random.key(3), (50, 500)))
    assert_mean(gaps.mean(1), 0.0, detects=0.2, tolerance=0.03)


# -- fitted ----------------------------------------------------------------------------------------------------------

FAMILIES = {
    "uniform": gen.D3PM(steps=4, width=8, depth=1),
    "absorbing": gen.D3PM(gen.AbsorbingCorruption(), steps=4, width=8, depth=1),
    "neighbours": gen.D3PM(gen.NeighbourCorruption(LINE), steps=4, width=8, depth=1),
    "blackout": gen.Blackout(steps=8, width=8, depth=1),
    "glauber": gen.Glauber(sweeps=2, width=8, depth=1),
    "flow": gen.BayesianFlow(steps=4, width=8, depth=1),
    "finite flow": gen.BayesianFlow(steps=4, width=8, depth=1, training_steps=10),
}


@pytest.mark.parametrize("name", [n if n == "blackout" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_models_are_distributions_and_can_be_kept(name, tmp_path):
    family = FAMILIES[name]
    spec, rows = gen.Spec((3,), None, 4), jnp.asarray(np.random.default_rng(0).integers(4, size=(16, 3)), jnp.int32)
    net = family.adapt(jax.random.key(1), family.build(jax.random.key(0), spec), rows, None)
    model = family.distribution(net, spec)
    loss, slope = jax.jit(jax.value_and_grad(lambda w: family.loss(jax.random.key(0), w, rows, None, None)))(net)
    assert np.isfinite(loss)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))
    assert any((np.asarray(a) != 0).any() for a in jax.tree.leaves(slope))
    drawn = jax.jit(lambda k: model.sample(k, (3, 2)))(jax.random.key(0))
    assert drawn.shape == (3, 2, 3)
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    assert model.support(drawn).all()
    gen.save(model, tmp_path / "m")
    again = gen.load(tmp_path / "m")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True))
    if "bound" in model.offers:
        found = jax.jit(lambda k: model.bound(k, drawn))(jax.random.key(1))
        assert found.shape == (3, 2)
        # An untrained network knows nothing: no bound is above that of independent uniform symbols by much.
        assert (found < 0).all()
    else:
        with pytest.raises(pg.MethodError, match="has no bound"):
            model.bound(jax.random.key(1), drawn)


def test_bad_settings_are_named():
    rows = np.zeros((100, 4), int)
    for family, message in (
        (gen.D3PM(steps=0), "D3PM got steps=0"),
        (gen.D3PM(cross_entropy=-1.0), "cross_entropy=-1"),
        (gen.D3PM(gen.NeighbourCorruption(LINE)), "places for 4 values, and the data have 2"),
        (gen.Blackout(duration=0.5), "duration=0.5"),
        (gen.Glauber(left=0.0), "left=0"),
        (gen.Glauber(sweeps=0), "sweeps=0"),
        (gen.BayesianFlow(accuracy=0.0), "accuracy=0"),
        (gen.BayesianFlow(training_steps=0), "training_steps=0"),
    ):
        with pytest.raises(pg.MethodError, match=message):
            gen.fit(family, rows)
    with pytest.raises(pg.MethodError, match="most=-1"):
        gen.GaussianCorruption(-1.0)
    with pytest.raises(pg.MethodError, match="nearest=4"):
        gen.NeighbourCorruption(LINE, nearest=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "absorbing", "flow", "glauber", "blackout"])
def test_learned_models_come_near_their_data(name):
    table = gen.Table(1.5 * jax.random.normal(jax.random.key(1), (VALUES**SIZE,)), SIZE, VALUES)
    rows = np.asarray(jax.vmap(table.draw)(jax.random.split(jax.random.key(9), 8000)))
    family = {
        "uniform": gen.D3PM(steps=20, width=64, depth=2),
        "absorbing": gen.D3PM(gen.AbsorbingCorruption(), steps=20, width=64, depth=2),
        "flow": gen.BayesianFlow(width=64, depth=2),
        "glauber": gen.Glauber(sweeps=6, width=64, depth=2),
        "blackout": gen.Blackout(width=64, depth=2),
    }[name]
    # Noise and signal are told apart slowly: a long average lags behind.
    ema = 0.99 if name == "glauber" else 0.999
    training = gen.Training(steps=2000, batch=256, learning_rate=3e-3, ema=ema, block=500)
    model = gen.fit(family, rows, training=training)
    drawn = np.asarray(model.sample(jax.random.key(0), (20_000,)))
    inside = (drawn < VALUES).all(1)
    law = np.bincount(table.index(drawn[inside]), minlength=VALUES**SIZE) / len(drawn)
    p = np.exp(table.log_p)
    alone = np.prod(
        [
            [p.reshape((VALUES,) * SIZE).sum(tuple({0, 1, 2} - {i}))[x[i]] for i in range(3)]
            for x in np.asarray(table.states)
        ],
        1,
    )
    # Independent entries are much further away; draws of the table itself are about 0.02 away.
    assert 0.5 * np.abs(alone - p).sum() > 0.4
    assert 0.5 * np.abs(law - p).sum() < {"blackout": 0.2}.get(name, 0.1)
