"""Rows of one answer: the regression before training, laws that are normalised, and the likelihood of a program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.amortized import BinaryRegression
from probgen.amortized.amortized_likelihood import AmortizedLikelihood
from probgen.amortized.binary_regression import LearnedBinaryRegression
from probgen.generative import Training
from probgen.generative.training import fit
from probgen.program.enumerated import density_of

ONE_STEP = Training(steps=1, batch=64, learning_rate=1e-9)
"""The regression is made before the first step, and the network begins at zero."""
TIMES = np.linspace(-1.0, 1.5, 6)


def dose(t, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(1.0, 1.0))
    with numpyro.plate("row", t.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=level + slope * t), obs=y)


@pytest.fixture(scope="module")
def fitted():
    return pg.amortize(pg.Model(dose, {"t": TIMES}), ["y"], pg.NLE(training=ONE_STEP), 4000, seed=1)


@pytest.fixture(scope="module")
def learned():
    rng = np.random.default_rng(0)
    condition = rng.normal(size=(600, 3)) * [1.0, 4.0, 0.3] + [0.0, 2.0, -1.0]
    logits = 0.5 + condition[:, 0] * condition[:, 2] - 0.3 * condition[:, 1]
    answers = (rng.uniform(size=600) < 1 / (1 + np.exp(-logits))).astype(int)[:, None]
    training = Training(steps=1, batch=64, learning_rate=1e-9, validation=0.0)
    return fit(BinaryRegression(shared=2), answers, condition, training=training), answers[:, 0], condition


def test_before_training_it_is_the_logistic_regression_on_products(learned):
    """The gradient of its likelihood and ridge is zero, with products written a second time."""
    law, answers, condition = learned
    units = condition.mean(0), condition.std(0)
    c = (condition - units[0]) / units[1]
    z, s = np.concatenate([np.ones((600, 1)), c[:, :2]], 1), np.concatenate([np.ones((600, 1)), c[:, 2:]], 1)
    products = np.asarray(law.net.products, float)
    rate = 1 / (1 + np.exp(-np.einsum("ni,ij,nj->n", z, products, s)))
    score = np.einsum("n,ni,nj->ij", answers - rate, z, s)
    assert np.abs(score).max() > 0.5  # the ridge pulls: of what it balances, next to nothing is left
    np.testing.assert_allclose(score, products, atol=0.02)


def test_the_answers_have_probabilities_and_rows_one_network(learned):
    law, answers, condition = learned
    # Any weights: those of the network too.
    weights = law.net
    for name in ("first", "second"):
        layers = getattr(weights, name)
        seeds = jax.random.split(jax.random.key(len(name)), len(jax.tree.leaves(layers)))
        flat, form = jax.tree.flatten(layers)
        noisy = [a + 0.3 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(flat, seeds, strict=True)]
        weights = _with(weights, name, jax.tree.unflatten(form, noisy))
    law = LearnedBinaryRegression(law.family, law.spec, weights)
    shared, rows = jnp.asarray(condition[0, :2]), jnp.asarray(condition[:20, 2:])
    whole = jnp.concatenate([jnp.broadcast_to(shared, (20, 2)), rows], 1)
    each = law.given(whole).log_prob(jnp.asarray(answers[:20, None]))
    np.testing.assert_allclose(law.of_rows(shared, rows, jnp.asarray(answers[:20, None])), each, rtol=1e-10)
    both = [law.given(whole).log_prob(jnp.full((20, 1), x)) for x in (0, 1)]
    np.testing.assert_allclose(np.exp(both).sum(0), 1.0, rtol=1e-12)
    drawn = np.asarray(law.given(whole).sample(jax.random.key(0), (4000,)))[..., 0]
    rate = np.exp(np.asarray(both[1]))
    z = (drawn.mean(0) - rate) / np.sqrt(rate * (1 - rate) / 4000)
    assert np.abs(z).max() < 5.0


def _with(net, name, value):
    return dataclasses.replace(net, **{name: value})


@pytest.mark.parametrize("count", [4, 9])
def test_the_likelihood_is_that_of_the_program(fitted, count):
    """For any number of rows. The law of the program is a regression on products: four numbers from 24,000 answers, whose
    log likelihoods are off by sqrt(4 / 24000 * 4) = 0.03 a row at the mean, and more where parameters are rare."""
    assert fitted.estimator == "NLE(BinaryRegression)"
    rng = np.random.default_rng(count)
    t = np.linspace(-1.0, 1.5, count)
    density = density_of(pg.Model(dose, {"t": t, "y": rng.integers(0, 2, count)}))
    u = jnp.asarray(np.array([0.0, 1.0]) + 0.7 * rng.normal(size=(50, 2)))
    exact = jax.jit(jax.vmap(density.log_likelihood))(u)
    found = jax.jit(jax.vmap(fitted.law.about(density)))(u)
    assert np.abs(np.asarray(found - exact)).max() < 0.06 * count
    assert np.asarray(exact).std() > 0.5


def test_answers_that_are_missing_are_left_out(fitted):
    law, reading = fitted.law, fitted.law.family.parts.reading
    y, u = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]), jnp.array([0.3, -0.5])
    holes = np.where(np.arange(6) == 2, np.nan, y)

    def at(y, t):
        return law.seen(law.family.parts, reading.unpack(reading.pack({"y": y}, {"t": t})))(u)

    np.testing.assert_allclose(at(holes, TIMES), at(np.delete(y, 2), np.delete(TIMES, 2)), rtol=1e-5)
    assert abs(at(holes, TIMES) - at(y, TIMES)) > 0.1


def test_what_was_saved_gives_the_same_likelihood(fitted, tmp_path):
    fitted.save(tmp_path / "kept")
    again = pg.amortized.load(tmp_path / "kept")
    density = density_of(pg.Model(dose, {"t": TIMES, "y": np.array([0, 1, 1, 0, 1, 1])}))
    u = jnp.array([0.3, -0.5])
    assert again.law.about(density)(u) == fitted.law.about(density)(u)


@pytest.mark.slow
def test_a_proposal_from_a_sampler_of_ones_own_is_warmed_up(fitted):
    """The weights of a mixture that was fitted to draws by NUTS: without a warm-up the draws stay near where they began."""
    y = np.array([0, 1, 0, 1, 1, 1])
    model = pg.Model(dose, {"t": TIMES, "y": y})
    tree = pg.infer(model, pg.ImportanceSampling(fitted.with_sampler(pg.NUTS())), draws=1000, chains=1, seed=0)
    assert tree.attrs["pareto_k"] < 0.7
    assert tree.attrs["importance_ess"] > 0.7 * 4000


class Wide(AmortizedLikelihood):
    """A proposal far wider than the posterior: weights that are bounded, and nearly all of them zero."""

    def proposal(self, key, density):
        return dist.Normal(0.0, 4.0).expand([density.dim]).to_event(1), {}


@pytest.mark.slow
def test_weights_that_are_worth_few_draws_are_not_repeated(fitted):
    """Weights with a light tail can be trusted and still give each point many times; moved, the draws are all different
    and follow the posterior, here against a grid."""
    y = np.array([0, 1, 0, 1, 1, 1])
    model = pg.Model(dose, {"t": TIMES, "y": y})
    tree = pg.infer(model, pg.ImportanceSampling(Wide(law=fitted.law), pool=2), draws=2000, chains=1, seed=0)
    assert tree.attrs["pareto_k"] < 0.7
    assert tree.attrs["importance_ess"] < 1000
    level, slope = (tree.posterior[name].values.ravel() for name in ("level", "slope"))
    assert len(np.unique(level)) > 1500
    grid = np.stack(np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-5, 7, 201), indexing="ij"), -1).reshape(-1, 2)
    density = density_of(model)
    log_p = np.asarray(jax.jit(jax.vmap(density.log_density))(jnp.asarray(grid)))
    p = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    for found, at in ((level, grid[:, 0]), (slope, grid[:, 1])):
        mean, spread = p @ at, math.sqrt(p @ at**2 - (p @ at) ** 2)
        # Particles that moved twenty times are as good as a quarter of as many draws, at least.
        assert abs(found.mean() - mean) < 5 * spread / math.sqrt(500)


@pytest.mark.slow
def test_what_is_no_regression_is_learned_by_the_network():
    """A yes where a parameter and a time have one sign, up to an error: products of both in standard units say little of
    the curvature, the network learns it."""
    rng = np.random.default_rng(0)
    condition = rng.normal(size=(20_000, 2))
    logits = 3 * np.sin(2 * condition[:, 0]) * np.cos(2 * condition[:, 1])
    answers = (rng.uniform(size=20_000) < 1 / (1 + np.exp(-logits))).astype(int)[:, None]
    training = Training(steps=2000, batch=512, learning_rate=2e-3, weight_decay=1e-2, validation=0.05)
    law = fit(BinaryRegression(shared=1), answers, condition, training=training)
    found = np.asarray(law.given(jnp.asarray(condition[:3000])).log_prob(jnp.ones((3000, 1), int)))
    truth = -np.logaddexp(0, -logits[:3000])
    p, q = np.exp(truth), np.exp(found)
    divergence = p * (truth - found) + (1 - p) * (np.log1p(-p) - np.log1p(-q))
    lone = answers.mean()
    none = np.mean(p * np.log(p / lone) + (1 - p) * np.log((1 - p) / (1 - lone)))
    assert divergence.mean() < 0.1 * none


def test_bad_settings_are_refused():
    x, condition = np.array([[0], [1]] * 20), np.arange(40.0)[:, None]
    for family, data, given, wrong in (
        (BinaryRegression(rank=0), x, condition, "rank=0"),
        (BinaryRegression(shared=2), x, condition, "shared=2"),
        (BinaryRegression(), x, None, "has 0 entries"),
        (BinaryRegression(), x + 1, condition, "one answer, 0 or 1"),
        (BinaryRegression(), np.tile(x, 2), condition, "one answer, 0 or 1"),
    ):
        with pytest.raises(pg.MethodError, match=wrong):
            fit(family, data, given, training=ONE_STEP)
    with pytest.raises(pg.MethodError, match="binary must be"):
        pg.NLE(binary=pg.generative.MixtureDensity()).check()
    assert math.isclose(BinaryRegression.training.validation, 0.05)
