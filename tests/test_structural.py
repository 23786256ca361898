"""Mechanisms and noise of sites: exact inversion, laws, tails, and what has no mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats

from probgen.base.errors import ModelError
from probgen.program.handlers import base_of
from probgen.program.noise import quantile
from probgen.program.structural import GumbelMax, Independent, Monotone, mechanism_of
from probgen.program.tails import tails_of
from probgen.testing import assert_proportion, assert_same_distribution

COUNT = 20_000
P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
MIXING = (jnp.array([0.3, 0.7]), jnp.array([0.6, 0.4]))


def mixture(weights, shift):
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(jnp.array([-1.0, 2.0]) + shift, 0.5))


CHEAP = {
    "normal": (dist.Normal(1.0, 2.0), dist.Normal(-1.0, 0.5), scipy.stats.norm(-1, 0.5).cdf),
    "uniform": (dist.Uniform(1.0, 2.0), dist.Uniform(-1.0, 3.0), scipy.stats.uniform(-1, 4).cdf),
    "log_normal": (dist.LogNormal(0.0, 1.0), dist.LogNormal(1.0, 0.5), scipy.stats.lognorm(0.5, scale=np.e).cdf),
    "exponential": (dist.Exponential(2.0), dist.Exponential(0.5), scipy.stats.expon(scale=2).cdf),
    "half_normal": (dist.HalfNormal(2.0), dist.HalfNormal(0.5), scipy.stats.halfnorm(scale=0.5).cdf),
    "weibull": (dist.Weibull(1.0, 2.0), dist.Weibull(2.0, 0.8), scipy.stats.weibull_min(0.8, scale=2).cdf),
    "bernoulli": (dist.Bernoulli(0.3), dist.Bernoulli(0.6), scipy.stats.bernoulli(0.6).cdf),
    "categorical": (dist.Categorical(jnp.asarray(P)), dist.Categorical(jnp.asarray(Q)), lambda k: _cdf(Q, k)),
    "geometric": (dist.Geometric(0.3), dist.Geometric(0.6), lambda k: (k >= 0) * (1 - 0.4 ** (np.floor(k) + 1))),
    "discrete_uniform": (dist.DiscreteUniform(0, 20), dist.DiscreteUniform(3, 8), scipy.stats.randint(3, 9).cdf),
    "mixture": (
        mixture(MIXING[0], 0.0),
        mixture(MIXING[1], 1.0),
        lambda x: 0.6 * scipy.stats.norm(0, 0.5).cdf(x) + 0.4 * scipy.stats.norm(3, 0.5).cdf(x),
    ),
}
DEAR = {
    "gamma": (dist.Gamma(2.0, 1.0), dist.Gamma(3.0, 0.5), scipy.stats.gamma(3, scale=2).cdf),
    "beta": (dist.Beta(2.0, 1.0), dist.Beta(0.5, 3.0), scipy.stats.beta(0.5, 3).cdf),
    "student": (dist.StudentT(4.0, 1.0, 2.0), dist.StudentT(7.0, 0.0, 0.5), scipy.stats.t(7, 0, 0.5).cdf),
    "poisson": (dist.Poisson(3.0), dist.Poisson(40.0), scipy.stats.poisson(40).cdf),
    "binomial": (dist.Binomial(30, 0.3), dist.Binomial(30, 0.7), scipy.stats.binom(30, 0.7).cdf),
    "negative_binomial": (
        dist.NegativeBinomial2(3.0, 2.0),
        dist.NegativeBinomial2(9.0, 4.0),
        scipy.stats.nbinom(4, 4 / 13).cdf,
    ),
    "zero_inflated": (
        dist.ZeroInflatedPoisson(0.2, 3.0),
        dist.ZeroInflatedPoisson(0.5, 6.0),
        lambda k: (k >= 0) * (0.5 + 0.5 * scipy.stats.poisson(6).cdf(k)),
    ),
}
BOTH = [pytest.param(*case, id=name) for name, case in CHEAP.items()] + [
    pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in DEAR.items()
]


def _cdf(probs, k):
    ends = np.concatenate([[0.0], np.cumsum(probs)])
    return np.clip(ends[np.clip(np.floor(np.asarray(k)).astype(int) + 1, 0, len(probs))], 0, 1)


def world_of(fn, new, assume=None, seed=0, count=COUNT):
    """Draws of one distribution, the same under its own mechanism, and the values of their noise under another."""

    key_value, key_noise = jax.random.split(jax.random.key(seed))
    value = fn.expand((count,)).sample(key_value)

    def run(key_noise, value):
        mechanism = mechanism_of(fn, "site", assume)
        noise = mechanism.abduct(key_noise, base_of(fn), value)
        return mechanism.again(base_of(fn), noise, value), mechanism.again(base_of(new), noise, value), noise

    return value, *jax.jit(run)(key_noise, value)


@pytest.mark.parametrize(("fn", "new", "cdf"), BOTH)
def test_noise_gives_back_the_value_and_follows_every_law(fn, new, cdf):
    value, same, other, noise = world_of(fn, new)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(noise))
    np.testing.assert_array_equal(value, same)
    assert_same_distribution(np.asarray(other, float), cdf, detects=0.04)


@pytest.mark.parametrize(
    ("fn", "new"),
    [
        pytest.param(
            dist.MultivariateNormal(jnp.array([1.0, 2.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]])),
            dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
            id="multivariate_normal",
        ),
        pytest.param(dist.GaussianRandomWalk(2.0, 3), dist.GaussianRandomWalk(0.5, 3), id="walk"),
        pytest.param(dist.Normal(jnp.arange(3.0), 1).to_event(1), dist.Normal(0, jnp.ones(3)).to_event(1), id="event"),
    ],
)
def test_vectors_keep_their_standard_noise(fn, new):
    value, same, other, noise = world_of(fn, new, count=50)
    np.testing.assert_array_equal(value, same)
    again = mechanism_of(new, "site").abduct(jax.random.key(0), base_of(new), other)
    np.testing.assert_allclose(again, noise, rtol=0, atol=1e-12)


def test_a_monotone_site_never_moves_against_its_odds():
    value, _, other, _ = world_of(dist.Bernoulli(0.3), dist.Bernoulli(0.6))
    assert np.all(np.asarray(other) >= np.asarray(value))
    assert np.any(np.asarray(other) > np.asarray(value))


def test_gumbel_max_is_the_posterior_of_oberst_and_sontag():
    value, _, other, _ = world_of(dist.Categorical(jnp.asarray(P)), dist.Categorical(jnp.asarray(Q)))
    counterfactual = np.asarray(other)[np.asarray(value) == 0]

    def stays(t):  # t is the maximum, a standard Gumbel variable; the others lie below it
        below = [
            np.exp(P[i] * np.exp(-t) - P[i] * np.exp(-min(t, t + np.log(Q[0] * P[i] / (P[0] * Q[i]))))) for i in (1, 2)
        ]
        return np.exp(-t - np.exp(-t)) * np.prod(below)

    expected = scipy.integrate.quad(stays, -8, 40)[0]
    assert 0.39 < expected < 0.41
    assert_proportion(int(np.sum(counterfactual == 0)), len(counterfactual), expected, detects=0.04)
    # Counterfactual stability: 1 gains odds against 0 and 2 gains more against both, so a 2 stays a 2.
    twos = np.asarray(value) == 2
    assert np.all(np.asarray(other)[twos] == 2)


def test_independent_keeps_the_value_until_the_distribution_changes():
    fn, new = dist.Bernoulli(0.3), dist.Bernoulli(0.6)
    value, same, other, _ = world_of(fn, new, Independent())
    np.testing.assert_array_equal(value, same)
    for seen in (0, 1):
        after = np.asarray(other)[np.asarray(value) == seen]
        assert_proportion(int(after.sum()), len(after), 0.6, detects=0.06)


def test_ordered_categories_by_assumption():
    _, _, other, _ = world_of(dist.Categorical(jnp.asarray(P)), dist.Categorical(jnp.asarray(Q)), Monotone())
    assert_same_distribution(np.asarray(other, float), lambda k: _cdf(Q, k), detects=0.04)
    ordered = dist.OrderedLogistic(0.3, jnp.array([-1.0, 1.0]))
    assert "monotone" in mechanism_of(ordered, "site").assumption


def test_tails_are_accurate_on_both_sides():
    k = np.array([-1.0, 0, 1, 5, 30])
    with np.errstate(all="ignore"):
        for fn, law in (
            (dist.Geometric(0.3), scipy.stats.geom(0.3, loc=-1)),
            (dist.Bernoulli(0.3), scipy.stats.bernoulli(0.3)),
            (dist.DiscreteUniform(0, 6), scipy.stats.randint(0, 7)),
        ):
            found = tails_of(fn)
            assert found is not None
            upto, above = found[0](fn, jnp.asarray(k))
            np.testing.assert_allclose(upto, law.cdf(k), rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(above, law.sf(k), rtol=1e-5, atol=1e-12)


@pytest.mark.slow
def test_far_tails_are_resolved_on_both_sides():
    with jax.enable_x64(True):
        fn = dist.Poisson(jnp.asarray(1.0))
        value = jnp.asarray([0.0, 60.0])  # P(V > 60) is about 1e-84: its noise is 1 up to 1e-84
        mechanism = mechanism_of(fn, "site")
        noise = mechanism.abduct(jax.random.key(0), fn, value)
        assert -1e-80 < float(noise[1]) < 0
        np.testing.assert_array_equal(mechanism.again(fn, noise, value), value)
        assert float(mechanism.again(dist.Poisson(2.0), noise, value)[1]) > 60


@pytest.mark.slow
def test_quantiles_by_newton():
    with jax.enable_x64(True):
        u = jnp.asarray([1e-12, 1e-5, 0.1, 0.9, 0.999])
        for fn, law in (
            (dist.Gamma(2.0, 3.0), scipy.stats.gamma(2, scale=1 / 3)),
            (dist.Gamma(0.1, 3.0), scipy.stats.gamma(0.1, scale=1 / 3)),
            (dist.Beta(200.0, 50.0), scipy.stats.beta(200, 50)),
            (dist.StudentT(3.0, 1.0, 2.0), scipy.stats.t(3, 1, 2)),
        ):
            np.testing.assert_allclose(quantile(fn, u), law.ppf(u), rtol=1e-10)


def test_what_has_no_mechanism_is_named():
    with pytest.raises(ModelError, match="site 'angle' follows VonMises, for which no mechanism"):
        mechanism_of(dist.VonMises(0.0, 1.0), "angle")
    with pytest.raises(ModelError, match=r"assume\['count'\] is GumbelMax\(\), but site 'count' follows Poisson"):
        mechanism_of(dist.Poisson(1.0), "count", GumbelMax())
    with pytest.raises(ModelError, match="Leave 'y' out of assume"):
        mechanism_of(dist.Normal(0.0, 1.0), "y", Independent())


def test_impossible_values_have_no_noise():
    for fn, value in (
        (dist.Categorical(jnp.array([0.0, 1.0])), 0),
        (dist.Bernoulli(0.0), 1),
        (dist.Uniform(0.0, 1.0), 2.0),
    ):
        noise = mechanism_of(fn, "site").abduct(jax.random.key(0), fn, jnp.asarray([value]))
        assert not np.isfinite(np.asarray(noise)).all()
