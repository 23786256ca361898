"""Circuits: everything against enumeration or closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen.generative.born_machine import BornMachine
from probgen.generative.circuit import Circuit, expected_counts, maximised
from probgen.generative.integral_circuit import GaussianUnits, IntegralCircuit, NeuralUnits
from probgen.generative.latent_tree import HiddenChowLiu, RandomRegions
from probgen.testing import assert_mean, assert_proportion

ALL = np.array(list(itertools.product(range(2), repeat=6)))
SHAPES = [HiddenChowLiu(), RandomRegions()]


def chain(n=800, size=6, seed=0):
    """Binary data with dependent neighbours, permuted."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, size), int)
    x[:, 0] = rng.random(n) < 0.4
    for i in range(1, size):
        x[:, i] = np.where(rng.random(n) < 0.85, x[:, i - 1], rng.random(n) < 0.5)
    return x[:, [3, 0, 5, 2, 4, 1][:size]]


@pytest.fixture(
    scope="module", params=[SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.slow)], ids=lambda s: type(s).__name__
)
def circuit(request):
    return pg.generative.fit(Circuit(states=3, structure=request.param, epochs=5, batch=200), chain())


@pytest.fixture(scope="module")
def probabilities(circuit):
    return np.exp(np.asarray(jax.jit(circuit.log_prob)(ALL)))


def test_the_normaliser_is_one(probabilities):
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-12)
    assert probabilities.std() > 0.005


def test_marginals_are_sums(circuit, probabilities):
    rng = np.random.default_rng(1)
    masks = rng.random((6, 6)) < 0.5
    found = jax.jit(circuit.marginal)(jnp.asarray(ALL)[:, None], masks)
    for m, mask in enumerate(masks):
        for row in (0, 21, 63):
            agree = (ALL[:, mask] == ALL[row, mask]).all(1)
            np.testing.assert_allclose(np.exp(found[row, m]), probabilities[agree].sum(), rtol=1e-10)


def test_conditionals_are_ratios_of_sums(circuit, probabilities):
    mask = np.array([True, False, False, True, False, True])
    x = np.array([1, 0, 0, 0, 0, 1])
    law = circuit.conditional(x, mask)
    agree = (ALL[:, mask] == x[mask]).all(1)
    for i in range(6):
        expected = [probabilities[agree & (ALL[:, i] == v)].sum() / probabilities[agree].sum() for v in (0, 1)]
        np.testing.assert_allclose(np.exp(law[i]), expected, rtol=1e-10)


@pytest.mark.slow
def test_draws_and_conditional_draws_follow_the_probabilities(circuit, probabilities):
    mask = jnp.array([True, False, False, True, False, True])
    x = jnp.array([1, 0, 0, 0, 0, 1])
    code = 2 ** np.arange(5, -1, -1)
    drawn = circuit.sample(jax.random.key(1), (20_000,)) @ code
    given = jax.jit(lambda k: circuit.impute(k, jnp.broadcast_to(x, (20_000, 6)), mask))(jax.random.key(2))
    assert (given[:, mask] == x[mask]).all()
    given = given @ code
    agree = (ALL[:, mask] == np.asarray(x)[mask]).all(1)
    conditional = np.where(agree, probabilities, 0) / probabilities[agree].sum()
    for codes, law in ((drawn, probabilities), (given, conditional)):
        counts = np.bincount(codes, minlength=64)
        assert counts[law == 0].sum() == 0
        some = law * 20_000 > 5
        assert (
            stats.chisquare(
                np.append(counts[some], counts[~some].sum() + 1e-9),
                np.append(law[some], law[~some].sum() + 1e-9 / 20_000) * 20_000,
            ).pvalue
            > 1e-6
        )


def test_the_most_probable_states_and_entries_by_enumeration(circuit):
    """A circuit of one state has no latent states to choose."""
    tree = circuit.tree
    mask = jnp.array([True, False, False, True, False, True])
    x = jnp.array([1, 0, 0, 0, 0, 1])
    found = circuit.most_probable(x, mask)
    assert (found[mask] == x[mask]).all()
    parent, node = np.asarray(tree.shape.parent.value), np.asarray(tree.shape.node.value)
    emitting = dict(zip(node.tolist(), range(6), strict=True))
    root, links, leaves = (np.asarray(a) for a in (tree.log_root, tree.log_links, tree.leaves.log_probs))
    free = [v for v in ALL if (v[np.asarray(mask)] == np.asarray(x)[np.asarray(mask)]).all()]

    def best(v):
        value = np.zeros((len(parent), 3))
        for i in range(len(parent) - 1, -1, -1):
            if i in emitting:
                value[i] += leaves[emitting[i], :, v[emitting[i]]]
            if i:
                value[parent[i]] += (links[i] + value[i]).max(1)
        return (root + value[0]).max()

    scores = [best(v) for v in free]
    np.testing.assert_array_equal(found, free[int(np.argmax(scores))])


def test_em_never_lowers_the_likelihood_and_its_counts_add_up():
    x = jnp.asarray(chain())
    family = Circuit(states=4)
    net = family.adapt(jax.random.key(0), family.build(jax.random.key(1), pg.generative.Spec((6,), None, 2)), x, None)

    @jax.jit
    def step(net):
        counts = expected_counts(net, x)
        tree = net.tree(jnp.float64)
        return maximised(net, counts, 1e-9), counts, jnp.mean(jax.vmap(lambda x: tree.log_prob(x, x > -1))(x))

    seen = []
    for _ in range(12):
        net, (root, links, leaves), value = step(net)
        seen.append(float(value))
    assert (np.diff(seen) > -1e-6).all()
    assert seen[-1] > seen[0] + 0.1
    np.testing.assert_allclose(root.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(links[1:].sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(leaves.sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.slow
def test_it_learns_what_it_can_hold():
    """Data of a chain: the held-out likelihood nears the entropy, which a product of marginals misses by far."""
    x, y = chain(8000), chain(4000, seed=5)
    model = pg.generative.fit(Circuit(states=4, epochs=20), x)
    alone = pg.generative.fit(Circuit(states=1, epochs=2), x)
    exact = np.zeros(4000) + np.log(np.where(y[:, 1] == 1, 0.4, 0.6))
    order = [1, 5, 3, 0, 4, 2]
    for a, b in itertools.pairwise(order):
        exact += np.log(np.where(y[:, a] == y[:, b], 0.925, 0.075))
    gap = exact - np.asarray(jax.jit(model.log_prob)(y))
    assert gap.mean() < 0.01 + 4 * gap.std() / 63
    assert (exact - np.asarray(jax.jit(alone.log_prob)(y))).mean() > 1.0


# -- real data -------------------------------------------------------------------------------------------------------


def blobs(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 2, n)
    return np.stack([3 * z + 0.5 * rng.normal(size=n) + 10, -2 * z + rng.normal(size=n), rng.normal(size=n)], 1)


@pytest.mark.slow
def test_a_circuit_of_real_data_by_quadrature():
    """Densities integrate to marginals and to one; conditional means and variances are ratios of integrals."""
    model = pg.generative.fit(Circuit(states=2, real=True, epochs=8, batch=1500), blobs())
    grid = np.linspace(-25, 25, 1201)
    x = np.array([12.5, 0.0, 0.3])
    points = jnp.broadcast_to(jnp.asarray(x), (1201, 3)).at[:, 1].set(grid)
    values, part = np.exp(jax.jit(model.log_prob)(points)), model.marginal(x, [True, False, True])
    np.testing.assert_allclose(np.trapezoid(values, grid), np.exp(part), rtol=1e-9)
    law = model.conditional(x, [True, False, True])
    mean = np.trapezoid(values * grid, grid) / np.exp(part)
    np.testing.assert_allclose(
        law[1], [mean, np.trapezoid(values * (grid - mean) ** 2, grid) / np.exp(part)], rtol=1e-7
    )
    np.testing.assert_allclose(law[0], [12.5, 0.0])
    drawn = jax.vmap(lambda k: model.impute(k, x, jnp.array([True, False, True])))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert_mean(drawn[:, 1].reshape(40, 100).mean(1), law[1, 0], detects=0.2)
    one = np.linspace(-20, 40, 2001)
    np.testing.assert_allclose(
        np.trapezoid(
            np.exp(model.marginal(jnp.asarray(one)[:, None] * jnp.array([1.0, 0, 0]), [True, False, False])), one
        ),
        1,
        rtol=1e-9,
    )


# -- integral circuits -----------------------------------------------------------------------------------------------


def latent_tree_covariance(model):
    """Mean and covariance of a Gaussian latent tree, from its definition."""
    f, shape = model.net.functions, model.net.shape
    parent, node = np.asarray(shape.parent.value), np.asarray(shape.node.value)
    slope = np.tanh(np.asarray(f.slope, float))
    latent = np.eye(len(parent))
    for i in range(1, len(parent)):
        latent[i, :i] = latent[:i, i] = slope[i] * latent[parent[i], :i]
    load = np.diag(np.asarray(f.load, float))
    cov = load @ latent[np.ix_(node, node)] @ load + np.diag(np.exp(2 * np.asarray(f.log_noise, float)))
    units = model.net.units
    loc, scale = np.asarray(units.loc.value, float), np.asarray(units.scale.value, float)
    return loc + scale * np.asarray(f.loc, float), np.diag(scale) @ cov @ np.diag(scale)


def test_a_gaussian_latent_tree_has_its_closed_form_and_converges_in_points():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)) @ np.array([[1, 0.8, 0, 0], [0, 1, 0.7, 0], [0, 0, 1, 0.9], [0, 0, 0, 1.0]]) + 2
    family = IntegralCircuit(points=16, units=GaussianUnits(), real=True)
    model = pg.generative.fit(family, x, training=pg.generative.Training(steps=40, batch=128, learning_rate=0.03))
    mean, cov = latent_tree_covariance(model)
    exact = stats.multivariate_normal(mean, cov).logpdf(x[:5])
    errors = [np.abs(model.compiled(n).log_prob(x[:5]) - exact).max() for n in (8, 16, 32, 64)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-6
    mask = np.array([True, False, True, True])
    fine = model.compiled(64)
    some = np.ix_(mask, mask)
    np.testing.assert_allclose(
        fine.marginal(x[0], mask), stats.multivariate_normal(mean[mask], cov[some]).logpdf(x[0][mask]), atol=1e-6
    )
    weight = np.linalg.solve(cov[some], cov[mask, 1])
    law = [mean[1] + weight @ (x[0] - mean)[mask], cov[1, 1] - weight @ cov[mask, 1]]
    np.testing.assert_allclose(fine.conditional(x[0], mask)[1], law, atol=1e-5)


@pytest.mark.slow
def test_a_neural_integral_circuit_is_normalised_and_converges():
    family = IntegralCircuit(points=12, units=NeuralUnits(width=16))
    few = pg.generative.Training(steps=60, batch=128, learning_rate=0.01)
    model = pg.generative.fit(family, chain(), training=few)
    reference = np.asarray(jax.jit(model.compiled(64).log_prob)(ALL))
    np.testing.assert_allclose(np.exp(reference).sum(), 1, rtol=1e-12)
    errors = []
    for points in (8, 16, 32):
        values = np.asarray(jax.jit(model.compiled(points).log_prob)(ALL))
        np.testing.assert_allclose(np.exp(values).sum(), 1, rtol=1e-12)
        errors.append(np.abs(values - reference).max())
    assert errors[0] > 1e-4
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 25, errors


# -- Born machines ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def born():
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, 500)
    x = np.stack([np.where(rng.random(500) < 0.8, z, rng.integers(0, 2, 500)) * 2 for _ in range(4)], 1)
    x[:, 1:] = (x[:, 1:] + rng.integers(0, 2, (500, 3))) % 4
    few = pg.generative.Training(steps=60, batch=128, learning_rate=0.02, weight_decay=0.0)
    return pg.generative.fit(BornMachine(bond=3, physical=3, rank=2), x, values=4, training=few)


EVERY = np.array(list(itertools.product(range(4), repeat=4)))


def test_a_born_machine_is_normalised_and_its_conditionals_are_ratios(born):
    p = np.exp(np.asarray(jax.jit(born.log_prob)(EVERY)))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
    mask, x = np.array([False, True, False, True]), np.array([0, 2, 0, 1])
    agree = (EVERY[:, mask] == x[mask]).all(1)
    np.testing.assert_allclose(np.exp(born.marginal(x, mask)), p[agree].sum(), rtol=1e-10)
    law = born.conditional(x, mask)
    for i in range(4):
        expected = [p[agree & (EVERY[:, i] == v)].sum() / p[agree].sum() for v in range(4)]
        np.testing.assert_allclose(np.exp(law[i]), expected, rtol=1e-9, atol=1e-14)
    drawn = jax.jit(jax.vmap(lambda k: born.impute(k, x, mask)))(jax.random.split(jax.random.key(0), 20_000))
    assert (drawn[:, mask] == x[mask]).all()
    counts = np.bincount(drawn @ 4 ** np.arange(3, -1, -1), minlength=256)
    free = np.flatnonzero(agree)
    assert counts.sum() == counts[free].sum()
    for at in free[np.argsort(-p[free])][:6]:
        assert_proportion(int(counts[at]), 20_000, float(p[at] / p[agree].sum()), detects=0.05)
    counts = np.bincount(born.sample(jax.random.key(1), (20_000,)) @ 4 ** np.arange(3, -1, -1), minlength=256)
    some = p * 20_000 > 5
    assert (
        stats.chisquare(
            np.append(counts[some], counts[~some].sum()), np.append(p[some], p[~some].sum()) * 20_000
        ).pvalue
        > 1e-6
    )


# -- errors, files, programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        Circuit(states=2, epochs=1),
        Circuit(states=2, epochs=1, real=True, structure=RandomRegions()),
        IntegralCircuit(points=4, units=NeuralUnits(width=8)),
        IntegralCircuit(points=4, units=GaussianUnits(), real=True),
        BornMachine(bond=2, physical=2, rank=1),
        BornMachine(bond=2, embedded=False),
    ],
    ids=lambda f: f"{type(f).__name__}-{getattr(f, 'real', f)}"[:30],
)
def test_saved_models_come_back(family, tmp_path):
    """Untrained networks will do: what is stored is structure, settings and arrays."""
    spec = pg.generative.Spec((5,), None, 0 if getattr(family, "real", False) else 2)
    x = jnp.asarray(chain(50)[:, :5])
    net = family.adapt(
        jax.random.key(0), family.build(jax.random.key(1), spec), x.astype(jnp.float32) if not spec.values else x, None
    )
    model = family.distribution(net, spec)
    pg.generative.save(model, tmp_path / "model")
    again = pg.generative.load(tmp_path / "model")
    assert type(again.family) is type(family)
    np.testing.assert_array_equal(again.log_prob(x[:3]), model.log_prob(x[:3]))


def test_wrong_use_is_an_error_with_advice():
    fit = pg.generative.fit
    with pytest.raises(pg.MethodError, match="without conditions"):
        fit(Circuit(), chain(20), condition=np.zeros((20, 1)))
    with pytest.raises(pg.MethodError, match="Flatten images"):
        fit(Circuit(), np.zeros((20, 2, 2), int))
    with pytest.raises(pg.MethodError, match="states=0"):
        fit(Circuit(states=0), chain(20))
    with pytest.raises(pg.DataError, match="fractions"):
        fit(Circuit(), chain(20) + 0.5)
    with pytest.raises(pg.MethodError, match="physical=5"):
        fit(BornMachine(physical=5), chain(20))
    with pytest.raises(pg.MethodError, match="real data"):
        fit(IntegralCircuit(units=GaussianUnits()), chain(20))


def test_a_circuit_in_a_program():
    """A site of a program with the circuit's density; discrete, with its support, in jit and vmap."""
    import numpyro

    family = Circuit(states=2)
    spec = pg.generative.Spec((6,), None, 2)
    net = family.adapt(jax.random.key(0), family.build(jax.random.key(1), spec), jnp.asarray(chain(50)), None)
    model = family.distribution(net, spec)

    def program(x):
        numpyro.sample("x", model, obs=x)

    log_density, _ = numpyro.infer.util.log_density(program, (jnp.asarray(ALL[5]),), {}, {})
    np.testing.assert_allclose(log_density, model.log_prob(ALL[5]), rtol=1e-12)
    assert model.support.is_discrete
    assert bool(model.support(jnp.asarray(ALL[5])))
    assert not bool(model.support(jnp.asarray(ALL[5]) + 5))
    np.testing.assert_array_equal(model.enumerate_support(), ALL)
