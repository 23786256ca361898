"""Condition dropout and guidance-free training: what their losses are minimised by, and what a small fit gives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probgen as pg
from probgen.generative import (
    VP,
    ConditionDropout,
    Diffusion,
    GaussianMixture,
    Guidance,
    GuidanceFree,
    Spec,
    Training,
    fit,
    load,
    save,
)
from probgen.generative.condition_dropout import flagged
from probgen.generative.family import Now
from probgen.testing import assert_mean

PATH = VP()
SHORT = Training(steps=2, batch=8, block=1)
SPEC = Spec((1,), (2,))
MEANS, VARIANCE = np.array([-0.8, 0.9]), 0.3


def oracle(x, level, share):
    """Denoised data plus noise, for a mixture of the two classes with these weights."""
    logs = jnp.log(share) - 0.5 * (x[0] - MEANS) ** 2 / (VARIANCE + level**2)
    each = (x[0] * VARIANCE + level**2 * MEANS) / (VARIANCE + level**2)
    return jnp.sum(jax.nn.softmax(logs) * each, keepdims=True)


class Oracle(GuidanceFree):
    """The guided denoiser itself, plus a small function whose size is the weight."""

    def denoised(self, net, x, level, condition):
        label, beta = condition[:2], condition[3]
        uncond = oracle(x, level, jnp.full(2, 0.5))
        exact = jnp.where(label.sum() > 0, oracle(x, level, label), uncond)
        guided = uncond + (exact - uncond) / beta
        features = jnp.stack([1.0, label[0], beta, x[0], x[0] * label[1], label[0] / beta])
        return guided + jnp.sum(net.weights * features) * level / jnp.sqrt(1 + level**2)


class Net(eqx.Module):
    weights: jax.Array
    units: object


def test_the_loss_is_least_at_the_guided_denoiser():
    """Its gradient there has mean zero, in any direction; and not at the conditional one."""
    family = Oracle()
    units = family.family.build(jax.random.key(0), Spec((1,), (4,))).units
    net = Net(jnp.zeros(6), units)

    def gradient(key, family):
        key_label, key_x, key_loss = jax.random.split(key, 3)
        label = jax.random.bernoulli(key_label, 0.5, (64,)).astype(int)
        x = jnp.asarray(MEANS)[label] + np.sqrt(VARIANCE) * jax.random.normal(key_x, (64,))
        condition = jax.nn.one_hot(label, 2)

        def loss(w):
            return family.loss(key_loss, eqx.tree_at(lambda n: n.weights, net, w), x[:, None], condition, NOW)

        return jax.grad(loss)(net.weights)

    keys = jax.random.split(jax.random.key(1), 2000)
    gradients = np.asarray(jax.jit(jax.vmap(lambda key: gradient(key, family)))(keys)).reshape(40, 50, 6).mean(1)
    scale = gradients.std(0)
    assert_mean(gradients / scale, 0.0, detects=1.5)

    class Other(Oracle):
        def denoised(self, net, x, level, condition):
            return super().denoised(net, x, level, condition.at[3].set(1.0))

    others = np.asarray(jax.jit(jax.vmap(lambda key: gradient(key, Other())))(keys)).reshape(40, 50, 6).mean(1)
    with pytest.raises(AssertionError):
        assert_mean(others / scale, 0.0, detects=3.0)


NOW = Now(jnp.zeros(()), None)


def test_dropout_hides_the_condition():
    """At b = 0 the family sees zeros, and as often as it was told to."""

    class Spy(Diffusion):
        def loss(self, key, net, x, condition, now):
            return jnp.stack([condition[:, -1].mean(), jnp.abs(condition[:, :-1].sum(1) - 3 * condition[:, -1]).max()])

    family = ConditionDropout(Spy(), dropout=0.2)
    x, c = jnp.zeros((50, 1)), jnp.full((50, 2), 1.5)
    seen, off = jax.vmap(lambda key: family.loss(key, None, x, c, NOW))(jax.random.split(jax.random.key(0), 40)).T
    assert_mean(seen, 0.8, detects=0.1)
    assert float(off.max()) == 0.0


def test_flags_stand_behind_flat_conditions():
    np.testing.assert_array_equal(flagged(jnp.ones((2, 3)), 0.0, 0.5), [1, 1, 1, 1, 1, 1, 0, 0.5])
    assert flagged(jnp.ones((4, 2, 3)), jnp.zeros(4), jnp.ones(4)).shape == (4, 8)


@pytest.mark.parametrize(
    "family",
    [ConditionDropout(Diffusion(width=8, sampling_steps=4)), GuidanceFree(Diffusion(width=8, sampling_steps=4))],
    ids=repr,
)
def test_fitted_models_have_both_laws_and_are_saved(family, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    x, c = MEANS[labels][:, None] + rng.normal(size=(40, 1)), np.eye(2)[labels]
    model = fit(family, x, c, training=SHORT, progress=False)
    with pytest.raises(pg.MethodError, match="given none"):
        model.sample(jax.random.key(0))
    here, free = model.given(c[:3]), model.unconditional()
    assert here.sample(jax.random.key(0), (2,)).shape == (2, 3, 1)
    assert free.batch_shape == ()
    assert np.isfinite(free.score(x[0], 0.5)).all()
    guided = Guidance(model.given(c[0]).denoiser, free.denoiser, 2.0)
    assert np.isfinite(guided.mean(x[0], 0.5)).all()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.given(c[0]).score(x[0], 0.5), model.given(c[0]).score(x[0], 0.5))
    save(free, tmp_path / "free")  # a model of the family that was fitted, with the longer condition
    flags = free.condition
    np.testing.assert_array_equal(load(tmp_path / "free").given(flags).score(x[0], 0.5), free.score(x[0], 0.5))
    gradient = jax.grad(lambda c: model.given(c).score(jnp.asarray(x[0]), 0.5)[0])(jnp.asarray(c[0]))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("family", "condition", "message"),
    [
        (ConditionDropout(Diffusion(), dropout=0.0), True, "dropout=0.0"),
        (ConditionDropout(Diffusion()), False, "needs conditions"),
        (GuidanceFree(most=1.0), True, "most=1.0"),
        (GuidanceFree(), False, "needs conditions"),
        (GuidanceFree(dropout=2.0), True, "dropout=2.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(family, condition, message):
    with pytest.raises(pg.MethodError, match=message):
        fit(family, np.zeros((10, 1)), np.zeros((10, 2)) if condition else None, training=SHORT)


def test_a_weight_that_was_not_trained_is_refused():
    model = GuidanceFree(most=3.0).distribution(None, SPEC)
    with pytest.raises(pg.MethodError, match="from 1 to 3, got 4"):
        model.given(np.ones(2), 4.0)


@pytest.mark.slow
def test_one_network_draws_what_guidance_would():
    """Two Gaussian classes, weight 2: quantiles of draws of the single network and of exact guidance."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    x, c = MEANS[labels][:, None] + np.sqrt(VARIANCE) * rng.normal(size=(20_000, 1)), np.eye(2)[labels]
    family = GuidanceFree(Diffusion(width=64, depth=2), most=3.0)
    model = fit(family, x, c, training=Training(steps=3000, batch=256), progress=False)
    ours = np.asarray(model.given(c[labels.argmax()], 2.0).sample(jax.random.key(0), (4000,)))[:, 0]
    both = GaussianMixture([0.5, 0.5], MEANS[:, None], [[VARIANCE]], PATH)
    one = GaussianMixture([1.0], MEANS[1:, None], [[VARIANCE]], PATH)
    exact = pg.generative.DenoisedDistribution(Guidance(one, both, 2.0)).sample(jax.random.key(1), (4000,))[:, 0]
    levels = np.linspace(0.05, 0.95, 10)
    error = np.abs(np.quantile(ours, levels) - np.quantile(exact, levels))
    assert error.max() < 0.25
    assert error.mean() < 0.09
    assert abs(np.mean(exact) - MEANS[1]) > 0.15  # what guidance has moved
