"""Warm-up: when windows end, that the metric changes then and only then, and that the step size does what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.kernels.adaptation import windows
from probgen.kernels.metric import estimate_of
from probgen.program.density import Density
from probgen.testing import assert_mean


def gaussian():
    numpyro.sample("x", dist.Normal(0.0, jnp.array([1.0, 10.0, 0.1])).to_event(1))


@pytest.mark.parametrize("warmup", [1, 20, 60, 100, 200, 1000, 5000])
def test_windows_double_and_leave_a_stretch_for_the_step_size(warmup):
    ends = windows(warmup)
    assert (np.diff(ends) > 0).all()
    if warmup >= 60:
        stretch = max(int(0.15 * warmup), min(50, warmup // 2))
        assert warmup - 1 - ends[-1] == stretch
    lengths = np.diff(ends)
    np.testing.assert_array_equal(lengths[1:-1], 2 * lengths[:-2])
    assert len(lengths) < 2 or lengths[-1] >= 2 * lengths[-2]


def heavy():
    """Here every window finds another metric; on a Gaussian they all find the best one."""
    numpyro.sample("x", dist.StudentT(5.0, 0.0, jnp.array([1.0, 10.0, 0.1])).to_event(1))


def test_the_metric_changes_at_the_ends_of_windows_and_nowhere_else():
    density = Density(pg.Model(heavy))
    kernel = pg.HMC(metric="diagonal").kernel(200)
    state = kernel.init(jax.random.key(0), density, jnp.ones(3))
    step = jax.jit(lambda index, state: kernel.step(jax.random.fold_in(jax.random.key(1), index), density, state)[0])
    changed = []
    for index in range(220):
        new = step(index, state)
        if not np.array_equal(new.metric.scale, state.metric.scale):
            changed.append(index)
        state = new
    np.testing.assert_array_equal(changed, windows(200))


@pytest.mark.parametrize(
    ("method", "target"),
    [(pg.NUTS(target_accept=0.9), 0.9), (pg.MALA(target_accept=0.6), 0.6), (pg.RandomWalk(target_accept=0.3), 0.3)],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_step_size_reaches_the_acceptance_that_was_asked_for(method, target):
    density = Density(pg.Model(gaussian))
    drawn = jax.jit(lambda key: method.draw(key, density, draws=200, warmup=300, chains=32))(jax.random.key(2))
    # The average of the log step sizes of the warm-up is near the one sought, and not at it.
    assert_mean(drawn.stats["acceptance_rate"].mean(1), target, tolerance=0.08, detects=0.2)


@pytest.mark.parametrize("kind", ["diagonal", "dense", "low_rank"])
def test_gradients_transform_as_the_adjoint_of_positions(kind):
    rng = np.random.default_rng(0)
    estimate = estimate_of(kind, 4).empty(4)
    for _ in range(30):
        u = rng.normal(size=4) * [1.0, 3.0, 0.2, 1.0] + rng.normal()
        estimate = estimate.add(jnp.asarray(u), jnp.asarray(rng.normal(size=4) - u))
    metric, z, g = estimate.metric(), rng.normal(size=4), rng.normal(size=4)
    np.testing.assert_allclose(metric.push(z) @ g, z @ metric.pull(g), rtol=1e-10)
    np.testing.assert_allclose(metric.pull_back(metric.pull(g)), g, rtol=1e-10)
    dense = np.asarray(jax.jacobian(metric.push)(jnp.zeros(4)))
    assert kind == "diagonal" or not np.allclose(dense, dense.T)  # a transposition would show
