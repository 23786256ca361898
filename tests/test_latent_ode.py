"""Latent ordinary equations: the bound against a law in closed form, and paths against the exact solution."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import expm
from jax.scipy.stats import multivariate_normal

import probgen.generative as pg
from probgen.base.errors import DataError, MethodError
from probgen.generative import Spec
from probgen.testing import assert_mean, assert_moments

SLOPE = jnp.asarray([[0.0, -2.0], [2.0, -0.3]])
LOOK = jnp.asarray([[1.0, 0.5]])
TIMES = jnp.asarray([1.0, 1.5, 3.0])  # on the clock: 0, 1/4, 1


class Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, z):
        return self.matrix @ z


@pytest.fixture(scope="module")
def linear():
    """Linear dynamics and a linear look: series are normal."""
    family = pg.LatentODE(latent=2, width=4, solver=pg.AdaptiveSteps(1e-9))
    spec = Spec((3, 1), (3,))
    net = family.build(jax.random.key(0), spec)
    parts = (Linear(SLOPE), Linear(LOOK), jnp.asarray([1.0, 3.0]), jnp.asarray([-0.5]))
    net = eqx.tree_at(lambda n: (n.slope, n.decoder, n.span.value, n.log_noise), net, parts)
    design = jnp.concatenate([LOOK @ expm(t * SLOPE) for t in (0.0, 0.25, 1.0)])
    return family.distribution(net, spec).given(TIMES), design


def test_the_bound_lies_below_the_evidence(linear):
    """The mean of exp(log p(x, z) - log q(z)) would be the evidence; the divergence in closed form has the same mean."""
    model, design = linear
    x = jnp.asarray([[0.5], [-0.2], [0.8]])
    covariance = design @ design.T + jnp.exp(-1.0) * jnp.eye(3)
    evidence = multivariate_normal.logpdf(x[:, 0], jnp.zeros(3), covariance)
    mean, log_scale = model.net.encoded(x, jnp.asarray([0.0, 0.25, 1.0]))
    # E_q of a quadratic form, in closed form.
    off = x[:, 0] - design @ mean
    spread = jnp.sum((design * jnp.exp(log_scale)) ** 2)
    fit = -0.5 * (jnp.sum(off**2) + spread) * jnp.exp(1.0) - 1.5 * jnp.log(2 * jnp.pi) + 1.5
    want = fit - 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale)
    bounds = jax.jit(lambda m, x: m.bound(jax.random.key(1), x))(model, jnp.broadcast_to(x, (20000, 3, 1)))
    assert_mean(bounds, want, detects=0.6)
    assert want < evidence


def test_draws_and_paths_follow_the_equation(linear):
    model, design = linear
    draws = jax.jit(lambda m: m.sample(jax.random.key(2), (4000,)))(model)[..., 0]
    covariance = design @ design.T + jnp.exp(-1.0) * jnp.eye(3)
    assert_moments(draws, jnp.zeros(3), covariance, detects=0.2)
    z = jnp.asarray([0.3, -1.0])
    paths = model.net.paths(model.family.solver, z, jnp.asarray([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(paths[:, 0], design @ z, atol=1e-6)
    x = jnp.asarray([[0.5], [-0.2], [0.8]])
    forecast = model.forecast(jax.random.key(0), x, jnp.asarray([2.0, 5.0]))
    assert forecast.shape == (2, 1)


@pytest.mark.slow
def test_fitting_saving_and_errors(tmp_path):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 3, (200, 6)), 1)
    x = np.sin(times + rng.uniform(0, 6, (200, 1)))[..., None]
    family = pg.LatentODE(latent=2, width=8)
    training = pg.Training(steps=60, batch=50, learning_rate=1e-2, block=60, validation=0)
    model = pg.fit(family, x, times, training=training)
    assert model.history["loss"][-10:].mean() < model.history["loss"][:10].mean() - 0.15
    pg.save(model, tmp_path / "model")
    again = pg.load(tmp_path / "model")
    key = jax.random.key(0)
    np.testing.assert_array_equal(again.given(times[0]).sample(key), model.given(times[0]).sample(key))
    with pytest.raises(MethodError, match="given their times"):
        pg.fit(family, x)
    with pytest.raises(DataError, match="must rise"):
        pg.fit(family, x, times[:, ::-1])
