"""Self-supervised variational autoencoders: the bound is a sum over levels, and its limit a probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from probgen import generative
from probgen.base.errors import DataError, MethodError
from probgen.generative.vae import VAE
from probgen.testing import assert_proportion, assert_unbiased_evidence

PART = VAE(generative.BernoulliLikelihood(), latent=1, width=4, depth=1, encoder=generative.Amortised(4, 1))
FAMILY = generative.SelfSupervisedVAE((PART, PART))
SPEC = generative.Spec((2, 2), None, 2)


@pytest.fixture(scope="module")
def model():
    return FAMILY.distribution(FAMILY.build(jax.random.key(3), SPEC), SPEC)


def test_blocks_are_rounded_means():
    x = jnp.asarray([[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 3, 3], [0, 1, 3, 2]])
    spec = generative.Spec((4, 4), None, 4)
    np.testing.assert_array_equal(generative.Downscaled(2)(x, spec), [[1, 1], [0, 3]])
    assert generative.Downscaled(2).spec(spec).shape == (2, 2)


def test_the_bound_is_the_sum_of_those_of_the_levels(model):
    x = jnp.asarray([[1, 1], [0, 0]])
    summary, same = model.summaries(x)
    np.testing.assert_array_equal(summary, [[1]])
    np.testing.assert_array_equal(same, x)
    key_summary, key_datum = jax.random.split(jax.random.key(0), 2)
    of_summary, of_datum = model.parts
    total = of_summary.bound_at(key_summary, summary, 4) + of_datum.given(summary).bound_at(key_datum, x, 4)
    key = jax.random.key(0)
    assert model.bound_at(key, x, 4) == pytest.approx(float(total))


@pytest.mark.slow
def test_draws_and_probabilities_agree(model):
    """By quadrature over the latent variables: p(x) = sum_y p(y) p(x | y), of which the bound knows y = d(x) alone."""
    points = jnp.asarray(np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 2, 2))
    grid = jnp.linspace(-7, 7, 301)[:, None]
    of_summary, of_datum = model.parts

    def log_p(part, x, c):
        prior = jax.scipy.stats.norm.logpdf(grid[:, 0]) + jnp.log(grid[1, 0] - grid[0, 0])
        return logsumexp(prior + jax.vmap(lambda z: part.net.log_likelihood(z, x, c))(grid))

    ys = jnp.asarray([[[0]], [[1]]])
    p_y = jnp.exp(jax.vmap(lambda y: log_p(of_summary, y, None))(ys))
    p_xy = jnp.exp(jax.vmap(lambda x: jax.vmap(lambda y: log_p(of_datum, x, y))(ys))(points))
    p = p_xy @ p_y
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    draws = np.asarray(model.sample(jax.random.key(0), (4000,)))
    index = draws.reshape(-1, 4) @ [8, 4, 2, 1]
    assert_proportion(np.bincount(index, minlength=16), 4000, np.asarray(p, float), detects=0.06)
    own = np.asarray([model.summaries(x)[0].item() for x in points])
    joint = np.log(np.asarray(p_y)[own] * np.asarray(p_xy)[np.arange(16), own])
    assert np.all(joint <= np.log(p))
    many = jnp.broadcast_to(points, (64, 16, 2, 2))
    found = jax.jit(lambda key: model.bound(key, many, 200))(jax.random.key(1))
    assert_unbiased_evidence(found, joint, detects=0.6)
    assert model.refine(jax.random.key(0), jnp.ones((5, 1, 1))).shape == (5, 2, 2)


@pytest.mark.slow
def test_training_and_files(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (40, 4, 4))
    training = generative.Training(steps=2, batch=16, block=2, validation=0.0)
    linear = VAE(generative.BernoulliLikelihood(), latent=1, depth=0, encoder=generative.Amortised(depth=0))
    family = generative.SelfSupervisedVAE((linear, linear, linear))
    fitted = generative.fit(family, x, training=training, progress=False)
    assert [p.event_shape for p in fitted.parts] == [(1, 1), (2, 2), (4, 4)]
    generative.save(fitted, tmp_path / "m")
    key = jax.random.key(0)
    assert generative.load(tmp_path / "m").bound_at(key, x[0]) == fitted.bound_at(key, x[0])


def test_errors(model):
    x = np.zeros((9, 4, 4), int)
    with pytest.raises(DataError, match="cannot be downscaled by 2"):
        generative.fit(FAMILY, x[:, :3])
    with pytest.raises(MethodError, match="at least two VAE with discrete"):
        generative.fit(generative.SelfSupervisedVAE((PART, VAE())), x)
    with pytest.raises(MethodError, match="no log_prob"):
        model.log_prob(x[0, :2, :2])
