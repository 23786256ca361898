"""Structured variational autoencoders against exact evidence: Kalman filters and enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probgen import generative
from probgen.base.errors import DataError, MethodError
from probgen.testing import assert_mean

LENGTH, SIZE, DIM = 6, 2, 3
NOISE = 0.4


@pytest.fixture(scope="module")
def linear():
    """A linear decoder with orthogonal columns, and the potentials that are its likelihood."""
    family = generative.StructuredVAE(generative.LinearDynamics(SIZE), depth=0)
    net = family.build(jax.random.key(0), generative.Spec((LENGTH, DIM)))
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.normal(size=(DIM, SIZE)))[0] * [1.5, 0.7]
    squares = np.sum(columns**2, 0)
    offset = rng.normal(size=DIM)
    inverse = columns.T / squares[:, None]
    log_scale = np.log(NOISE) - 0.5 * np.log(squares)
    transition = np.asarray([[0.8, 0.3], [-0.2, 0.9]])
    net = eqx.tree_at(
        lambda n: (
            n.decoder.layers[0].weight,
            n.decoder.layers[0].bias,
            n.encoder.layers[0].weight,
            n.encoder.layers[0].bias,
            n.noise,
            n.parameters["transition"],
        ),
        net,
        tuple(
            map(
                jnp.asarray,
                (
                    columns,
                    offset,
                    np.concatenate([inverse, np.zeros((SIZE, DIM))]),
                    np.concatenate([-inverse @ offset, log_scale]),
                    np.log(NOISE),
                    transition,
                ),
            )
        ),
    )
    model = family.distribution(net, generative.Spec((LENGTH, DIM)))
    # The joint law of states and data, in one matrix.
    q = np.exp(-1.0) ** 2 * np.eye(SIZE)
    powers = [np.linalg.matrix_power(transition, k) for k in range(LENGTH + 1)]

    def covariance(s, t):
        start = powers[s] @ powers[t].T
        return start + sum(powers[s - r] @ q @ powers[t - r].T for r in range(1, min(s, t) + 1))

    states = np.block([[covariance(s, t) for t in range(1, LENGTH + 1)] for s in range(1, LENGTH + 1)])
    seen_by = np.kron(np.eye(LENGTH), columns)
    return model, states, seen_by, np.tile(offset, LENGTH)


def test_the_bound_of_a_linear_model_is_its_evidence_and_gaps_are_integrated_out(linear):
    model, states, seen_by, mean = linear
    x = np.random.default_rng(1).normal(size=(LENGTH, DIM))
    covariance = seen_by @ states @ seen_by.T + NOISE**2 * np.eye(LENGTH * DIM)
    bound = jax.jit(lambda key, x, seen: model.bound(key, x, seen))
    for seen in (np.ones(LENGTH, bool), np.asarray([True, False, True, True, False, True])):
        rows = np.repeat(seen, DIM)
        truth = jax.scipy.stats.multivariate_normal.logpdf(
            x.reshape(-1)[rows], mean[rows], covariance[np.ix_(rows, rows)]
        )
        holes = np.where(seen[:, None], x, np.nan)
        np.testing.assert_allclose(bound(jax.random.key(0), holes, seen), truth, rtol=1e-5)


def test_the_guide_of_a_linear_model_is_the_smoother_and_fills_gaps(linear):
    model, states, seen_by, mean = linear
    x = np.random.default_rng(1).normal(size=(LENGTH, DIM))
    seen = np.asarray([True, False, True, True, False, True])
    rows = np.repeat(seen, DIM)
    covariance = (seen_by @ states @ seen_by.T + NOISE**2 * np.eye(LENGTH * DIM))[np.ix_(rows, rows)]
    smoothed = states @ seen_by.T[:, rows] @ np.linalg.solve(covariance, x.reshape(-1)[rows] - mean[rows])
    np.testing.assert_allclose(jax.jit(model.encode)(x, seen), smoothed.reshape(LENGTH, SIZE), atol=1e-5)
    filled = jax.jit(model.conditional)(x, np.repeat(seen[:, None], DIM, 1))
    np.testing.assert_allclose(filled, (mean + seen_by @ smoothed).reshape(LENGTH, DIM), atol=1e-5)


@pytest.mark.slow
def test_messages_in_parallel_are_the_same(linear):
    model = linear[0]
    family = generative.StructuredVAE(generative.LinearDynamics(SIZE, parallel=True), depth=0)
    other = family.distribution(model.net, model.spec)
    x = np.random.default_rng(2).normal(size=(LENGTH, DIM))
    key, seen = jax.random.key(0), np.arange(LENGTH) != 2
    one, two = (eqx.filter_jit(lambda m: (m.bound(key, x, seen), m.encode(x, seen)))(m) for m in (model, other))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], two[1], atol=1e-6)


@pytest.mark.slow
def test_draws_of_a_linear_model_have_its_moments(linear):
    model, states, seen_by, mean = linear
    draws = np.asarray(model.sample(jax.random.key(0), (4000,))).reshape(4000, -1)
    covariance = seen_by @ states @ seen_by.T + NOISE**2 * np.eye(LENGTH * DIM)
    assert_mean(draws, mean, detects=0.5)
    products = ((draws - mean)[:, :, None] * (draws - mean)[:, None]).reshape(50, 80, LENGTH * DIM, -1).mean(1)
    assert_mean(products, covariance, detects=1.5)


def test_the_bound_of_a_hidden_markov_model_is_its_evidence_when_potentials_are_likelihoods():
    """Binary data, three states: enumeration. With other potentials it is a bound, and no noise enters."""
    size, length = 3, 4
    family = generative.StructuredVAE(generative.HiddenMarkov(size), generative.BernoulliLikelihood(), depth=0)
    spec = generative.Spec((length, 2), None, 2)
    net = family.build(jax.random.key(0), spec)
    moves = jax.random.normal(jax.random.key(1), (size, size))
    net = eqx.tree_at(lambda n: n.parameters, net, {"start": jnp.asarray([0.1, 0.5, -0.3]), "moves": moves})
    logits = jax.vmap(net.decoder)(jnp.eye(size))
    # log p(x | z) is linear in 2 x - 1, up to a number that every state shares only if it is kept: it is in the bias.
    weight, bias = logits / 2, -0.5 * jnp.sum(jax.nn.softplus(logits) + jax.nn.softplus(-logits), 1)
    exact = eqx.tree_at(lambda n: (n.encoder.layers[0].weight, n.encoder.layers[0].bias), net, (weight, bias))
    x = np.asarray([[0, 1], [1, 1], [1, 0], [0, 0]])
    seen = np.asarray([True, True, False, True])
    start, steps = jax.nn.log_softmax(net.parameters["start"]), jax.nn.log_softmax(moves, -1)
    each = np.asarray(jax.vmap(lambda x: jnp.sum(-jax.nn.softplus(jnp.where(x == 1, -1, 1) * logits), 1))(x))
    each = np.where(seen[:, None], each, 0.0)
    terms = [
        float(start[path[0]])
        + sum(float(steps[a, b]) for a, b in itertools.pairwise(path))
        + sum(each[t, z] for t, z in enumerate(path))
        for path in itertools.product(range(size), repeat=length)
    ]
    truth = np.logaddexp.reduce(terms)
    bound = eqx.filter_jit(lambda model, key: model.bound(key, x, seen))
    found = bound(family.distribution(exact, spec), jax.random.key(0))
    assert found == pytest.approx(truth, rel=1e-5)
    other = family.distribution(net, spec)
    assert bound(other, jax.random.key(0)) < truth - 1e-3
    assert bound(other, jax.random.key(0)) == bound(other, jax.random.key(1))
    draws = other.sample(jax.random.key(0), (2,))
    assert draws.shape == (2, length, 2)
    assert set(np.unique(draws)) <= {0, 1}


@pytest.mark.slow
def test_training_and_files(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4, 2))
    training = generative.Training(steps=2, batch=8, block=2, validation=0.0)
    family = generative.StructuredVAE(generative.LinearDynamics(1), depth=0)
    model = generative.fit(family, x, training=training, progress=False)
    assert np.isfinite(model.history["loss"]).all()
    generative.save(model, tmp_path / "m")
    key = jax.random.key(0)
    assert generative.load(tmp_path / "m").bound_at(key, x[0]) == model.bound_at(key, x[0])


def test_errors(linear):
    x, model, family = np.zeros((3, LENGTH, DIM)), linear[0], linear[0].family
    with pytest.raises(DataError, match=r"a datum has shape \(6,\), expected a sequence"):
        generative.fit(family, x[:, :, 0])
    with pytest.raises(MethodError, match="size=1, expected at least 2 states"):
        generative.fit(generative.StructuredVAE(generative.HiddenMarkov(1)), x)
    with pytest.raises(DataError, match=r"seen has shape \(3,\)"):
        model.bound(jax.random.key(0), x, np.ones(3, bool))
    with pytest.raises(MethodError, match="no log_prob"):
        model.log_prob(x)
