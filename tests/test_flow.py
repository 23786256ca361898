"""Flows: every transform against its inverse and its autodiff Jacobian, gradients in the condition, dequantisation against
quadrature, flowjax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.infer.reparam import TransformReparam

import probgen.generative as pg
from probgen.base.errors import MethodError
from probgen.generative import Spec
from probgen.generative.coupling_layers import nested_halves
from probgen.nets import MaskedMLP, Transformer, trainable
from probgen.testing import assert_mean, assert_proportion

SMALL = {"count": 2, "width": 8, "depth": 1}


def shaken(net, seed=0, size=0.3):
    """Weights away from the start, where most transforms are the identity."""
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = zip(leaves, jax.tree.leaves(trainable(net)), keys, strict=True)
    return jax.tree.unflatten(
        tree, [a + size * jax.random.normal(k, a.shape, a.dtype) if free else a for a, free, k in moved]
    )


def untrained(family, shape, condition=None, values=0, seed=0, size=0.3):
    spec = Spec(shape, condition, values)
    family.check(spec)
    net = shaken(family.build(jax.random.key(seed), spec), seed + 1, size)
    return family.distribution(net, spec)


FLOWS = {
    "spline coupling": (pg.Flow(scalar=pg.Spline(bins=4), **SMALL), (3,)),
    "one entry": (pg.Flow(scalar=pg.Spline(bins=4), **SMALL), (1,)),
    "Real NVP, two scales": (
        pg.Flow(scalar=pg.Affine(), layers=pg.CouplingLayers(scales=2), count=3, width=8, depth=1),
        (2, 4),
    ),
    "logistic mixture": (pg.Flow(scalar=pg.LogisticMixture(components=3), **SMALL), (3,)),
    "MAF": (pg.Flow(scalar=pg.Affine(), layers=pg.AutoregressiveLayers(), **SMALL), (3,)),
    "IAF": (
        pg.Flow(scalar=pg.Spline(bins=4), layers=pg.AutoregressiveLayers(inverse=True), **SMALL),
        (3,),
    ),
    "transformer over rows": (pg.Flow(scalar=pg.Affine(), layers=pg.TransformerLayers(heads=2), **SMALL), (3, 2)),
    "transformer over patches": (
        pg.Flow(scalar=pg.Spline(bins=4), layers=pg.TransformerLayers(heads=2, patch=2), **SMALL),
        (4, 2),
    ),
}


LONG = ("one entry", "transformer over rows", "IAF", "transformer over patches")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in FLOWS])
def test_flows_are_exact(name):
    """Inverse, density by the autodiff Jacobian, noise map, and the gradient in the condition."""
    family, shape = FLOWS[name]
    model = untrained(family, shape, (2,), seed=3)
    model.net = eqx.tree_at(lambda n: n.units.scale.value, model.net, jnp.full(shape, 1.7))
    z = 1.5 * jax.random.normal(jax.random.key(1), shape)
    condition = jnp.asarray([0.3, -1.2])

    @jax.jit
    def values(model, z, x, condition):
        here = model.given(condition)
        found, gained = model.net.outward(z, condition)
        return found, gained, here.noise_of(x), here.log_prob(x)

    @jax.jit
    def slopes(model, z, x, condition):
        def both(x, c):
            return model.given(c).noise_of(x).reshape(-1), model.given(c).log_prob(x) + model.given(c).noise_map(
                z
            ).sum()

        ((jacobian, _), (_, gradient)) = jax.jacobian(both, argnums=(0, 1))(x, condition)
        return jacobian.reshape(z.size, z.size), gradient

    x, gained = values(model, z, z, condition)[:2]
    _, _, back, log_prob = values(model, z, x, condition)
    jacobian, gradient = slopes(model, z, x, condition)
    assert np.abs(x - z).max() > 0.1
    np.testing.assert_allclose(back, z, atol=1e-9)
    log_det = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_prob, norm.logpdf(z).sum() + log_det, atol=1e-9)
    np.testing.assert_allclose(gained, -log_det, atol=1e-9)

    def of_condition(c):
        found, _, _, log_prob = values(model, z, x, c)
        return log_prob + found.sum()

    numeric = [(of_condition(condition + s) - of_condition(condition - s)) / 2e-5 for s in 1e-5 * jnp.eye(2)]
    assert np.abs(gradient).min() > 1e-4
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_entries_act_in_their_order():
    """The derivative of a masked network or a causal transformer is zero where it must be, and nowhere else."""
    net = shaken(MaskedMLP(jax.random.key(0), 4, 2, 12, 2, given=1))
    slope = jax.jacobian(lambda x: net(x, jnp.ones(1)))(jnp.ones(4))
    np.testing.assert_array_equal(np.abs(slope).max(1) > 0, np.tril(np.ones((4, 4), bool), -1))
    assert (np.abs(jax.jacobian(lambda c: net(jnp.ones(4), c))(jnp.ones(1))) > 0).all()

    net = shaken(Transformer(jax.random.key(0), 2, 3, 4, 8, 2, 2, given=1, causal=True))
    x, given = jax.random.normal(jax.random.key(1), (4, 2)), jnp.ones(1)
    slope = jax.jacobian(lambda x: net(x, given))(x)
    np.testing.assert_array_equal(np.abs(slope).max((1, 3)) > 0, np.tril(np.ones((4, 4), bool)))

    def one(cache, at):
        out, cache = net.extend(at[1], at[0], cache, given)
        return cache, out

    _, extended = jax.lax.scan(one, net.cache(x.dtype), (jnp.arange(4), x))
    np.testing.assert_allclose(extended, net(x, given), atol=1e-12)
    full = shaken(Transformer(jax.random.key(0), 2, 3, 4, 8, 1, 2))
    assert (np.abs(jax.jacobian(full)(x)).max((1, 3)) > 0).all()


@pytest.mark.parametrize(
    "scalar",
    [pg.Spline(bins=5, bound=2.0), pg.Affine(), pg.LogisticMixture(components=4)],
    ids=lambda s: type(s).__name__,
)
def test_scalar_transforms(scalar):
    """Monotone on all reals, slopes by autodiff, inverse, and derivatives of the inverse in its parameters."""
    p = 1.5 * jax.random.normal(jax.random.key(0), (40, scalar.parameters))
    x = jnp.linspace(-6.0, 6.0, 40)
    z, log_slope = scalar.inward(x, p)
    slope = jax.vmap(jax.grad(lambda x, p: scalar.inward(x[None], p[None])[0][0]))(x, p)
    np.testing.assert_allclose(jnp.exp(log_slope), slope, rtol=1e-9)
    assert (slope > 0).all()
    back, back_slope = scalar.outward(z, p)
    np.testing.assert_allclose(back, x, atol=1e-7 if isinstance(scalar, pg.LogisticMixture) else 1e-10)
    np.testing.assert_allclose(back_slope, -log_slope, rtol=1e-5, atol=1e-6)
    # With z = g(x; p): dx/dp = -(dg/dp) / (dg/dx).
    by_p = jax.vmap(jax.grad(lambda p, z: scalar.outward(z[None], p[None])[0][0]))(p, z)
    direct = jax.vmap(jax.grad(lambda p, x: scalar.inward(x[None], p[None])[0][0]))(p, x)
    np.testing.assert_allclose(by_p, -direct / slope[:, None], rtol=1e-4, atol=1e-5)


def test_a_spline_is_the_identity_outside_and_at_the_start():
    scalar = pg.Spline(bins=4, bound=2.0)
    x = jnp.asarray([-5.0, -2.0, -1.3, 0.4, 1.9, 2.0, 7.0])
    z, log_slope = scalar.inward(x, jnp.zeros((7, scalar.parameters)))
    np.testing.assert_allclose(z, x, atol=1e-12)
    np.testing.assert_allclose(log_slope, 0, atol=1e-12)
    p = jax.random.normal(jax.random.key(0), (1, scalar.parameters)) * jnp.ones((4, 1))
    ends = jnp.asarray([-2 - 1e-9, -2 + 1e-9, 2 - 1e-9, 2 + 1e-9])
    np.testing.assert_allclose(scalar.inward(ends, p)[0], ends, atol=1e-8)
    np.testing.assert_allclose(scalar.inward(ends, p)[1], 0, atol=1e-6)


def test_scales_keep_coarser_grids():
    order = nested_halves((4, 4))
    assert sorted(order) == list(range(16))
    rows, columns = order // 4, order % 4
    assert ((rows[:8] + columns[:8]) % 2 == 0).all()
    assert (rows[:4] % 2 == 0).all()
    assert (columns[:4] % 2 == 0).all()
    np.testing.assert_array_equal(nested_halves((5,)), np.arange(5))
    # What goes to the noise after the first scale is not touched by the second, and does not touch it.
    family = pg.Flow(scalar=pg.Affine(), layers=pg.CouplingLayers(scales=2), **SMALL)
    chain = untrained(family, (4, 4)).net.bijection
    second = chain.parts[2]
    assert chain.sizes == (16, 16, 8)
    assert second.inward(jnp.ones(8), None)[0].shape == (8,)


def test_batches_plates_and_precisions():
    model = untrained(pg.Flow(scalar=pg.Affine(), **SMALL), (3,), (2,))
    conditions = jax.random.normal(jax.random.key(0), (4, 2))
    given = model.given(conditions)
    x = given.sample(jax.random.key(1), (5,))
    assert x.shape == (5, 4, 3)
    each = [model.given(c).log_prob(x[:, i]) for i, c in enumerate(conditions)]
    np.testing.assert_allclose(given.log_prob(x), np.stack(each, 1), atol=1e-12)
    assert given.log_prob(x.astype(jnp.float32)).dtype == jnp.float64  # the conditions are 64-bit
    both = model.given(conditions.astype(jnp.float32)).log_prob(x.astype(jnp.float32))
    assert both.dtype == jnp.float32
    np.testing.assert_allclose(both, given.log_prob(x), atol=1e-3)


def test_as_a_transform_of_a_program():
    """Reparameterised, the site is noise and the value its image, with the very density of the flow."""
    model = untrained(pg.Flow(scalar=pg.Affine(), **SMALL), (3,), (2,)).given(jnp.asarray([0.2, 0.5]))
    base = dist.Normal(jnp.zeros(3), 1).to_event(1)
    law = dist.TransformedDistribution(base, model.transform)
    x = law.sample(jax.random.key(0), (4,))
    np.testing.assert_allclose(law.log_prob(x), model.log_prob(x), atol=1e-9)

    def program():
        numpyro.sample("x", law)

    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.reparam(config={"x": TransformReparam()}):
        sites = numpyro.handlers.trace(program).get_trace()
    np.testing.assert_allclose(sites["x"]["value"], model.noise_map(sites["x_base"]["value"]), atol=1e-12)
    with pytest.raises(MethodError, match="one condition"):
        _ = untrained(pg.Flow(**SMALL), (3,), (2,)).given(jnp.zeros((4, 2))).transform


def test_denoising_is_the_posterior_mean():
    """At the start the law is normal with the deviation of the data, plus noise: the mean given x is known."""
    family = pg.Flow(scalar=pg.Affine(), noise=0.4, **SMALL)
    spec = Spec((3,))
    net = family.build(jax.random.key(0), spec)
    units = (jnp.asarray([1.0, -2.0, 0.0]), jnp.asarray([2.0, 0.5, 1.0]))
    net = eqx.tree_at(lambda n: (n.units.loc.value, n.units.scale.value), net, units)
    model = family.distribution(net, spec)
    x = jax.random.normal(jax.random.key(1), (5, 3))
    np.testing.assert_allclose(model.denoised(x), x - 0.4**2 * (x - units[0]), atol=1e-6)
    # Training adds that noise: the loss at the start is the mean of the normal law of x + noise.
    data = jnp.zeros((20000, 3)) + units[0]
    losses = jax.jit(lambda keys: jax.lax.map(lambda k: family.loss(k, net, data[:500], None, None), keys))
    entropy = 3 * 0.5 * np.log(2 * np.pi) + np.log(units[1]).sum() + 0.5 * 3 * 0.4**2
    assert_mean(losses(jax.random.split(jax.random.key(2), 40)), entropy, detects=0.05)


# -- discrete data ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells():
    """An untrained flow of two grades of three values, and the probabilities of its cells by quadrature."""
    noise = pg.Flow(scalar=pg.Affine(limit=0.5), count=2, width=8, depth=1)
    family = pg.DequantizedFlow(flow=pg.Flow(scalar=pg.LogisticMixture(components=2), **SMALL), dequantizer=noise)
    model = untrained(family, (2,), None, 3, size=0.1)
    # Noise of wide tails, or the weights have no variance.
    wide = jnp.full((2,), 0.4)
    model.net = eqx.tree_at(lambda n: n.dequantizer.units.scale.value, model.net, wide)
    # Nodes that crowd at the ends of the cells, where densities behind a logit are steep.
    at = (np.arange(200) + 0.5) / 200
    grid = np.concatenate([k + (1 - np.cos(np.pi * at)) / 2 for k in range(3)])
    weight = np.tile(np.pi * np.sin(np.pi * at) / 400, 3)
    y = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    logits = np.log(y) - np.log(3 - y)

    @jax.jit
    def densities(net, logits, y):
        return jax.vmap(lambda h: net.log_density(h, None))(logits) + jnp.sum(jnp.log(3 / (y * (3 - y))), -1)

    mass = np.exp(densities(model.net.flow, logits, y)).reshape(600, 600) * weight[:, None] * weight
    p = mass.reshape(3, 200, 3, 200).sum((1, 3))
    return model, p


def test_dequantisation_bounds_probabilities(cells):
    model, p = cells
    np.testing.assert_allclose(p.sum(), 1, atol=1e-3)
    x = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), -1).reshape(-1, 2)
    keys = jax.random.split(jax.random.key(0), 6000)
    for dequantizer in (model.family.dequantizer, None):
        family = pg.DequantizedFlow(flow=model.family.flow, dequantizer=dequantizer)
        net = eqx.tree_at(lambda n: n.dequantizer, model.net, None) if dequantizer is None else model.net
        here = family.distribution(net, model.spec)
        bounds = np.asarray(jax.jit(jax.vmap(lambda key, here=here: here.bound(key, x)))(keys))
        assert_mean(np.exp(bounds), p.reshape(-1), tolerance=1e-4, detects=0.12)
        assert (bounds.mean(0) < np.log(p.reshape(-1))).all()
        assert "log_prob" not in here.offers


def test_dequantised_draws_have_their_probabilities(cells):
    model, p = cells
    x = np.asarray(jax.jit(lambda model: model.sample(jax.random.key(3), (20000,)))(model))
    assert x.dtype == np.int32
    assert model.support(x).all()
    counts = np.bincount(3 * x[:, 0] + x[:, 1], minlength=9)
    assert_proportion(counts, len(x), p.reshape(-1), detects=0.04)
    with pytest.raises(MethodError, match="lower bound"):
        model.log_prob(x)


@pytest.mark.slow
def test_learned_noise_is_worth_its_weights():
    """Four binary values in a row: with uniform noise the flow has to have edges, and a larger one loses more."""
    stay = 0.85
    x = np.stack(np.meshgrid(*[np.arange(2)] * 4, indexing="ij"), -1).reshape(-1, 4)
    changes = np.abs(np.diff(x)).sum(1)
    p = 0.5 * stay ** (3 - changes) * (1 - stay) ** changes
    data = x[np.random.default_rng(0).choice(16, 10_000, p=p)]
    training = pg.Training(steps=300, batch=256, learning_rate=5e-3, ema=0.98, block=300, validation=0)

    def flow(count):
        return pg.Flow(scalar=pg.LogisticMixture(components=3), count=count, width=24, depth=1)

    def above(family):
        model = pg.fit(family, data, values=2, training=training)
        keys = jax.random.split(jax.random.key(1), 300)
        bounds = jax.jit(lambda model, keys: jax.lax.map(lambda key: model.bound(key, x), keys))(model, keys)
        return (np.log(p) - np.asarray(bounds)) @ p, sum(np.size(a) for a in jax.tree.leaves(model.net))

    learned, weights = above(pg.DequantizedFlow(flow=flow(4), dequantizer=flow(2)))
    uniform, as_many = above(pg.DequantizedFlow(flow=flow(6), dequantizer=None))
    assert 0.9 < weights / as_many < 1.1
    error = np.hypot(learned.std(), uniform.std()) / len(learned) ** 0.5
    assert learned.mean() > -4 * error  # a bound
    assert (uniform.mean() - learned.mean()) / error > 6


# -- flowjax ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("flowjax")
    from flowjax.distributions import StandardNormal
    from flowjax.flows import coupling_flow

    return coupling_flow(jax.random.key(0), base_dist=StandardNormal((2,)), cond_dim=2, flow_layers=2, nn_width=8)


def test_flowjax_keeps_the_gradient_of_the_condition(theirs):
    theirs = jax.tree.map(lambda a: a + 0.3 if eqx.is_inexact_array(a) else a, theirs)
    model = pg.from_flowjax(theirs)
    x, condition = jnp.asarray([0.3, -0.8]), jnp.asarray([0.5, 1.5])
    want, direct = jax.value_and_grad(lambda c: theirs.log_prob(x, c))(condition)
    found, gradient = jax.value_and_grad(lambda c: model.given(c).log_prob(x))(condition)
    np.testing.assert_allclose(found, want, rtol=1e-12)
    np.testing.assert_allclose(gradient, direct, rtol=1e-9)
    assert np.abs(gradient).min() > 1e-3

    def program(c):
        numpyro.sample("x", model.given(c), obs=x)

    def log_density(c):
        return numpyro.infer.util.log_density(program, (c,), {}, {})[0]

    np.testing.assert_allclose(jax.grad(log_density)(condition), direct, rtol=1e-9)
    z = jnp.asarray([0.1, 0.2])
    np.testing.assert_allclose(
        model.given(condition).noise_map(z), theirs.bijection.transform(z, condition), rtol=1e-12
    )
    batch = model.given(jnp.stack([condition, -condition])).sample(jax.random.key(1), (3,))
    assert batch.shape == (3, 2, 2)


def test_flowjax_flows_are_fitted(theirs):
    from paramax import non_trainable

    rng = np.random.default_rng(0)
    condition = rng.normal(size=(1000, 2))
    data = condition + 0.3 * rng.normal(size=(1000, 2))
    frozen = eqx.tree_at(lambda f: f.base_dist, theirs, non_trainable(theirs.base_dist))
    short = pg.Training(steps=150, batch=128, learning_rate=1e-2, ema=0.9, validation=0, block=150)
    model = pg.fit(pg.FromFlowjax(frozen), data, condition, training=short)
    losses = model.history["loss"]
    assert losses[-20:].mean() < losses[:5].mean() - 1
    with pytest.raises(MethodError, match="takes data of shape"):
        pg.fit(pg.FromFlowjax(theirs), data)
    with pytest.raises(MethodError, match="distribution of flowjax"):
        pg.from_flowjax("flow")


# -- fitting, saving, errors -----------------------------------------------------------------------------------------


SAVED = {
    "flow": (pg.Flow(noise=0.1, layers=pg.TransformerLayers(heads=2), **SMALL), np.float64),
    "multi-scale": (pg.Flow(scalar=pg.Affine(), layers=pg.CouplingLayers(scales=2), **SMALL), np.float64),
    "discrete": (pg.DequantizedFlow(flow=pg.Flow(**SMALL), dequantizer=pg.Flow(**SMALL)), np.int64),
}


@pytest.mark.parametrize("name", SAVED)
def test_fitted_flows_come_back_from_disk(name, tmp_path):
    family, dtype = SAVED[name]
    x = np.random.default_rng(0).integers(0, 3, (300, 4)).astype(dtype)
    training = pg.Training(steps=20, batch=50, block=20, validation=0)
    model = pg.fit(family, x, x[:, :1], training=training)
    pg.save(model, tmp_path / "model")
    again = pg.load(tmp_path / "model")
    key = jax.random.key(0)
    given, back = model.given(jnp.ones(1)), again.given(jnp.ones(1))
    np.testing.assert_array_equal(back.sample(key, (3,)), given.sample(key, (3,)))
    if dtype is np.float64:
        np.testing.assert_array_equal(back.log_prob(x), given.log_prob(x))
    assert again.family == family


def test_errors_say_what_to_do():
    x = np.random.default_rng(0).normal(size=(50, 4))
    for family, message in [
        (lambda: pg.Spline(bins=1), "at least 2 bins"),
        (lambda: pg.Spline(bound=-1.0), "bound"),
        (lambda: pg.Affine(limit=0.0), "limit"),
        (lambda: pg.LogisticMixture(components=0), "components"),
        (lambda: pg.Flow(count=0), "count=0"),
        (lambda: pg.Flow(noise=-1.0), "noise"),
        (lambda: pg.Flow(layers=pg.CouplingLayers(scales=5)), "scales from 1 to 2"),
        (lambda: pg.Flow(layers=pg.TransformerLayers(patch=2)), "patch"),
        (lambda: pg.Flow(layers=pg.TransformerLayers(heads=3)), "heads"),
    ]:
        with pytest.raises(MethodError, match=message):
            pg.fit(family(), x)
    with pytest.raises(MethodError, match="dequantisation"):
        pg.fit(pg.DequantizedFlow(flow=pg.Flow(noise=0.1)), np.arange(50) % 3)
