"""Flow matching: assignments and couplings against exact answers, the flow against Gaussian closed forms, training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import multivariate_normal, norm

import probgen.generative as pg
from probgen.base.errors import DataError, MethodError
from probgen.generative.assignment import assign
from probgen.generative.coupling import sinkhorn
from probgen.generative.family import Spec
from probgen.generative.flow_matching import paired
from probgen.generative.standardisation import Standardisation
from probgen.testing import assert_mean, assert_moments

# -- assignments and couplings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["distances", "ties", "small"])
def test_assignments_are_optimal(kind):
    rng = np.random.default_rng(0)
    # 70 rows begin with the prices of 18.
    n = 2 if kind == "small" else 70
    costs = rng.normal(size=(8, n, 1)) - rng.normal(size=(8, 1, n))
    costs = costs**2 if kind != "ties" else rng.integers(0, 4, (8, n, n)).astype(float)
    found = np.asarray(jax.jit(lambda c: jax.lax.map(assign, c))(jnp.asarray(costs)))
    for cost, columns in zip(costs, found, strict=True):
        assert sorted(columns) == list(range(n))
        np.testing.assert_allclose(cost[np.arange(n), columns].sum(), cost[linear_sum_assignment(cost)].sum())
    assert assign(jnp.ones((1, 1))).tolist() == [0]


def batch(count=64):
    """Data of two classes, right and left, as wide as the starts."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, count)
    x = np.stack([4.0 * labels + rng.normal(size=count), rng.normal(size=count)], 1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(2.0 * labels - 1, jnp.float32)[:, None]


@pytest.fixture(scope="module")
def pairs():
    """The starts that each datum gets, inside of a compiled program as in training."""
    x, condition = batch()
    family = pg.FlowMatching(width=8, depth=1)
    net = family.adapt(jax.random.key(0), family.build(jax.random.key(1), Spec((2,), (1,))), x, condition)

    def starts(coupling):
        here = jax.jit(lambda x, c: paired(jax.random.key(2), pg.NormalSource(), coupling, net, x, c))
        return np.asarray(here(x, condition)[0])

    return starts


def test_conditional_transport_leaves_the_prior_of_every_condition_alone(pairs):
    """The skew of the conditional prior is zero: each class keeps exactly the starts that were drawn with it."""
    labels = np.asarray(batch()[1])[:, 0]
    drawn, matched, plain = (pairs(c) for c in (pg.Independent(), pg.ConditionalOT(0.0), pg.OptimalTransport()))
    for label in (-1, 1):
        own = labels == label
        np.testing.assert_array_equal(np.sort(matched[own], 0), np.sort(drawn[own], 0))
        assert not np.array_equal(matched[own], drawn[own])
    # Plain transport does skew it: data on the right get starts on the right.
    skew = plain[labels == 1, 0].mean() - plain[labels == -1, 0].mean()
    assert skew > 5 * np.sqrt(4 / len(labels))


def test_transport_is_the_cheapest_and_matching_is_in_between(pairs):
    x, _ = batch()
    x = (x - x.mean(0)) / x.std(0)
    costs = [
        float(jnp.mean((x - pairs(c)) ** 2)) for c in (pg.OptimalTransport(), pg.ConditionalOT(0.0), pg.Independent())
    ]
    assert costs[0] < costs[1] < costs[2]


def test_the_share_sets_the_weight_of_continuous_conditions():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(96, 2))
    start, condition = jnp.asarray(rng.normal(size=(96, 2))), jnp.asarray(100 * x[:, :1])
    x = jnp.asarray(x)
    cost = jnp.sum((x[:, None] - start) ** 2, -1)
    apart = jnp.sum((x[:, None, :1] - x[:, :1]) ** 2, -1)
    weights = [float(pg.ConditionalOT(share).weight(cost, apart)) for share in (0.02, 0.05, 0.2, 1.0)]
    assert np.all(np.diff(weights) < 0)
    assert weights[-1] == 0
    for share, weight in zip((0.02, 0.05, 0.2), weights[:-1], strict=True):
        reached = float(jnp.mean(cost + weight * apart <= jnp.diagonal(cost)[:, None]))
        assert abs(reached - share) <= 2 / 96
    plain = pg.OptimalTransport().pair(jax.random.key(0), start, x, None)
    np.testing.assert_array_equal(pg.ConditionalOT(1.0).pair(jax.random.key(0), start, x, condition), plain)
    # The conditions of exchanged starts come closer as the share falls, whatever their unit.
    moved = [
        float(jnp.mean((condition - condition[pg.ConditionalOT(s).pair(jax.random.key(0), start, x, condition)]) ** 2))
        for s in (0.02, 0.2, 1.0)
    ]
    assert np.all(np.diff(moved) > 0)


def test_the_entropic_plan_is_that_of_gaussians():
    """Quantiles of N(0, 1) and N(0, 4): the covariance of the plan is sqrt(s1 s2 + e^2 / 4) - e / 2."""
    points = norm.ppf((np.arange(400) + 0.5) / 400)
    x, y, epsilon = points, 2 * points, 0.7
    affinity = jnp.asarray(-((x[:, None] - y) ** 2) / (2 * epsilon))
    f, g = sinkhorn(affinity, 200)
    plan = np.asarray(jnp.exp(affinity + f[:, None] + g)) / 400**2
    np.testing.assert_allclose(plan.sum(0), 1 / 400, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(1), 1 / 400, rtol=1e-12)
    # The quantiles have slightly less variance than the laws: the closed form for that.
    exact = np.sqrt(x.var() * y.var() + epsilon**2 / 4) - epsilon / 2
    np.testing.assert_allclose(x @ plan @ y, exact, rtol=2e-3)
    rows = jax.vmap(
        lambda k: pg.EntropicOT(epsilon, 200).pair(k, jnp.asarray(y)[:, None], jnp.asarray(x)[:, None], None)
    )(jax.random.split(jax.random.key(0), 200))
    assert_mean(np.mean(x * y[np.asarray(rows)], 1), x @ plan @ y, detects=0.03)


# -- the flow against closed forms -----------------------------------------------------------------------------------


class ExactNet:
    """The velocity for data N(A c, S) in units of its own, and standard normal starts."""

    def __init__(self, covariance, slope, units):
        self.covariance, self.slope, self.units = covariance, slope, units

    def given(self, condition):
        return condition

    def __call__(self, x, t, given):
        mean = jnp.zeros(2) if given is None else self.units.inward(self.slope * given)
        scale = self.units.scale.value
        inner = self.covariance / scale[:, None] / scale
        white = jnp.linalg.solve((1 - t) ** 2 * inner + t**2 * jnp.eye(2), x - (1 - t) * mean)
        return t * white - mean - (1 - t) * inner @ white


jax.tree_util.register_pytree_node(
    ExactNet, lambda n: ((n.covariance, n.slope, n.units), None), lambda _, parts: ExactNet(*parts)
)

COVARIANCE = jnp.array([[1.0, 0.6], [0.6, 2.0]])


def exact(solver=None, condition=False, **settings):
    import equinox as eqx

    units = Standardisation((2,))
    units = eqx.tree_at(lambda u: (u.loc.value, u.scale.value), units, (jnp.zeros(2), jnp.array([0.5, 3.0])))
    family = pg.FlowMatching(solver=solver or pg.AdaptiveSteps(1e-8), tolerance=1e-8, **settings)
    spec = Spec((2,), (2,) if condition else None)
    return pg.LearnedVelocity(family, spec, ExactNet(COVARIANCE, jnp.array([1.0, -2.0]), units))


def test_the_density_is_that_of_the_flow():
    points = jnp.array([[0.3, -0.5], [2.0, 1.0], [-1.0, 4.0]])
    expected = multivariate_normal([0, 0], np.asarray(COVARIANCE)).logpdf(points)
    np.testing.assert_allclose(jax.jit(lambda m, x: m.log_prob(x))(exact(), points), expected, atol=1e-6)


def test_gradients_pass_through_conditions_and_the_batch_is_that_of_the_conditions():
    x, c = jnp.array([0.3, -0.5]), jnp.array([[0.5, 0.2], [1.0, -1.0]])
    model = exact(condition=True)
    values = jax.jit(lambda m, c: m.given(c).log_prob(x))(model, c)
    means = np.asarray(c) * [1.0, -2.0]
    precision = np.linalg.inv(COVARIANCE)
    np.testing.assert_allclose(
        values, [multivariate_normal(m, np.asarray(COVARIANCE)).logpdf(x) for m in means], atol=1e-6
    )
    found = jax.jit(jax.grad(lambda c: model.given(c).log_prob(x)))(c[0])
    np.testing.assert_allclose(found, (precision @ (np.asarray(x) - means[0])) * [1.0, -2.0], atol=1e-5)
    assert model.given(c).sample(jax.random.key(0), (3,)).shape == (3, 2, 2)
    with pytest.raises(MethodError, match="given"):
        model.sample(jax.random.key(0))


def test_draws_and_the_noise_map_follow_the_data():
    draws = jax.jit(lambda m, k: m.sample(k, (32, 400)))(exact(pg.HeunSteps(32)), jax.random.key(0))
    assert_moments(draws, np.zeros(2), np.asarray(COVARIANCE), detects=0.2, tolerance=0.01)
    z = jnp.array([0.4, -1.2])
    mapped = [exact(s).noise_map(z) for s in (pg.AdaptiveSteps(1e-9), pg.HeunSteps(64), pg.HeunSteps(128))]
    errors = [float(jnp.abs(m - mapped[0]).max()) for m in mapped[1:]]
    assert 3.5 < errors[0] / errors[1] < 4.5  # order 2
    mapped = [exact(s).noise_map(z) for s in (pg.EulerSteps(64), pg.EulerSteps(128))]
    errors = [float(jnp.abs(m - exact(pg.AdaptiveSteps(1e-9)).noise_map(z)).max()) for m in mapped]
    assert 1.8 < errors[0] / errors[1] < 2.2  # order 1
    moved = exact(pg.HeunSteps(64)).transport(exact().units.outward(z))
    np.testing.assert_allclose(moved, exact(pg.HeunSteps(64)).noise_map(z))


def test_velocity_and_score_are_those_of_the_path():
    model, x, t = exact(), jnp.array([0.3, -0.5]), 0.3
    scale = np.array([0.5, 3.0])
    inner = np.asarray(COVARIANCE) / scale[:, None] / scale
    mixed = (1 - t) ** 2 * inner + t**2 * np.eye(2)
    np.testing.assert_allclose(model.score(x, t), -np.linalg.solve(mixed, x), rtol=1e-6)
    np.testing.assert_allclose(model.denoiser.velocity(x, t), model.velocity(x, t), rtol=1e-6)
    for settings in ({"coupling": pg.OptimalTransport()}, {"source": pg.Samples(np.zeros((3, 2)))}):
        assert "score" not in exact(**settings).offers
        with pytest.raises(MethodError, match="no score"):
            exact(**settings).score(x, t)
    with pytest.raises(MethodError, match="no log_prob"):
        exact(source=pg.Samples(np.zeros((3, 2)))).log_prob(x)


# -- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restored():
    """Data x, a degraded copy c, and a flow that starts near it: super-resolution of two pixels."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([1.0, -1.0], [[1.0, 0.5], [0.5, 1.0]], 8000)
    c = np.repeat(x.mean(1, keepdims=True), 2, 1) + 0.0
    family = pg.FlowMatching(source=pg.NearCondition(0.5), width=32, depth=2)
    return pg.fit(family, x, c, training=pg.Training(steps=1200, batch=256, learning_rate=5e-3, block=400))


def test_a_flow_from_degraded_data_restores_them_as_the_exact_conditional_does(restored):
    """Given its mean m, a datum is (m + d, m - d) with d ~ N(1, 1/4)."""
    m = 0.4
    draws = jax.jit(lambda p, k: p.sample(k, (32, 400)))(restored.given(jnp.array([m, m])), jax.random.key(0))
    half = (draws[..., 0] - draws[..., 1]) / 2
    # Learned with few steps: within 0.1 of the deviation.
    assert_mean(half.mean(1), 1.0, detects=0.1, tolerance=0.05)
    assert_mean(half.std(1), 0.5, detects=0.1, tolerance=0.05)
    assert_mean((draws.mean(-1) - m).mean(1), 0.0, detects=0.1, tolerance=0.05)
    assert float(jnp.abs(draws.mean(-1) - m).mean()) < 0.1


def test_a_start_near_the_condition_makes_transport_cheaper(restored):
    cheap = restored.history["loss"][-200:].mean()
    # E |x_b - x|^2 in standard units: the part of the loss that no net explains is less than for independent noise.
    assert cheap < 0.75


@pytest.mark.parametrize(
    "family",
    [
        pg.FlowMatching(width=8, depth=1, solver=pg.EulerSteps(2)),
        pg.FlowMatching(source=pg.Samples(np.ones((5, 2))), coupling=pg.ConditionalOT(0.1), solver=pg.HeunSteps(1)),
        pg.FlowMatching(source=pg.NearCondition((0.0, 0.5)), solver=pg.EulerSteps(2), width=8),
        pg.FlowMatching(coupling=pg.EntropicOT(0.3, 5), width=8, depth=1, solver=pg.EulerSteps(2)),
    ],
    ids=["normal", "samples", "near", "entropic"],
)
def test_what_is_saved_is_what_is_loaded(family, tmp_path):
    spec = Spec((2,), (2,))
    net = jax.tree.map(lambda a: a + 0.1, family.build(jax.random.key(0), spec))
    model = family.distribution(net, spec)
    pg.save(model, tmp_path / "flow")
    again = pg.load(tmp_path / "flow")
    key, c = jax.random.key(0), jnp.array([0.2, 0.4])
    np.testing.assert_array_equal(model.given(c).sample(key), again.given(c).sample(key))
    assert not np.array_equal(model.given(c).sample(key), model.given(c + 1).sample(key))
    assert set(again.offers) == set(model.offers)


def test_settings_that_make_no_sense_are_refused():
    x = np.random.default_rng(0).normal(size=(64, 2))
    with pytest.raises(MethodError, match="share=2"):
        pg.ConditionalOT(2.0)
    with pytest.raises(MethodError, match="have no conditions"):
        pg.fit(pg.FlowMatching(coupling=pg.ConditionalOT()), x)
    with pytest.raises(DataError, match=r"values of shape \(4, 3\)"):
        pg.fit(pg.FlowMatching(source=pg.Samples(np.zeros((4, 3)))), x)
    with pytest.raises(MethodError, match="exchange starts between conditions"):
        pg.fit(pg.FlowMatching(source=pg.NearCondition(), coupling=pg.OptimalTransport()), x, x)
    with pytest.raises(DataError, match="starts from the condition"):
        pg.fit(pg.FlowMatching(source=pg.NearCondition()), x, x[:, :1])
    with pytest.raises(MethodError, match="epsilon"):
        pg.EntropicOT(0.0)
    with pytest.raises(MethodError, match="width=0"):
        pg.fit(pg.FlowMatching(width=0), x)
    for solver in (lambda: pg.EulerSteps(0), lambda: pg.HeunSteps(1.5), lambda: pg.AdaptiveSteps(0.0)):
        with pytest.raises(MethodError):
            solver()


def test_normal_data_are_learned_before_training():
    """With the velocity of normal data built in, an untrained flow is that of the data's mean and deviations."""
    data = np.random.default_rng(0).normal([1.0, -2.0], [3.0, 0.5], (4000, 2))
    once = pg.Training(steps=1, batch=64, learning_rate=1e-9, validation=0.0)
    flow = pg.fit(pg.FlowMatching(width=8, depth=1, gaussian=True, tolerance=1e-6), data, training=once)
    z = jax.random.normal(jax.random.key(0), (50, 2))
    loc, scale = data.mean(0), data.std(0)
    np.testing.assert_allclose(flow.noise_map(z), loc + scale * z, atol=3e-3)
    x = loc + scale * z
    np.testing.assert_allclose(flow.log_prob(x), jax.scipy.stats.norm.logpdf(x, loc, scale).sum(-1), atol=3e-3)
