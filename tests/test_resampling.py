"""Resampling schemes: unbiased, as even as they promise, and their conditional versions by Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from probgen.base.errors import MethodError
from probgen.feynman_kac.resampling import SSP, Killing, Multinomial, Residual, Stratified, Systematic
from probgen.testing import assert_mean

SCHEMES = {
    "systematic": Systematic(),
    "stratified": Stratified(),
    "residual": Residual(),
    "multinomial": Multinomial(),
    "killing": Killing(),
    "ssp": SSP(),
}
all_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())

WEIGHTS = np.array([0.0, 0.31, 0.02, 0.0, 0.17, 0.25, 0.25, 0.0])  # ends, a gap, and expected numbers that are whole
LOG_W = np.where(WEIGHTS > 0, np.log(np.maximum(WEIGHTS, 1e-300)), -np.inf)
COUNTS = (8, 3, 20)


def cases():
    return [
        pytest.param(scheme, count, id=f"{name}-{count}")
        for name, scheme in SCHEMES.items()
        for count in COUNTS
        if name != "killing" or count == 8
    ]


def offspring(scheme, log_w, count, replicates, seed=0):
    """Numbers of offspring, shape ``(replicates, particles)``, made under jit and vmap."""
    keys = jax.random.split(jax.random.key(seed), replicates)
    ancestors = jax.jit(jax.vmap(lambda key: scheme(key, jnp.asarray(log_w), count)))(keys)
    assert ancestors.dtype == jnp.int32
    assert ancestors.shape == (replicates, count)
    return np.asarray((ancestors[..., None] == jnp.arange(len(log_w))).sum(1))


@pytest.mark.parametrize(("scheme", "count"), cases())
def test_expected_numbers_of_offspring_are_the_weights_and_their_variance_is_the_stated_one(scheme, count):
    numbers = offspring(scheme, LOG_W, count, 20_000)
    assert (numbers.sum(1) == count).all()  # every index is that of a particle
    assert (numbers[:, WEIGHTS == 0] == 0).all()
    expected = count * WEIGHTS
    assert_mean(numbers.astype(float), expected, detects=0.01 * count + 0.03)
    stated = float(scheme.count_variance(jnp.asarray(LOG_W), count))
    assert_mean(((numbers - expected) ** 2).sum(1), stated, detects=0.1 * stated + 1e-9)
    # What each scheme promises about single numbers.
    whole = np.floor(expected + 1e-9)
    if isinstance(scheme, Systematic | SSP):
        assert ((numbers >= whole) & (numbers <= np.ceil(expected - 1e-9))).all()
    if isinstance(scheme, Residual):
        assert (numbers >= whole).all()
    if isinstance(scheme, Stratified):
        assert (np.abs(numbers - expected) < 2).all()


@all_schemes
def test_the_bins_of_one_offspring_are_filled_by_the_weights(scheme):
    """One slot, chosen at random, holds particle i with probability W_i: counts in bins, by chi-squared."""
    count, replicates = len(LOG_W), 20_000
    keys = jax.random.split(jax.random.key(8), replicates)

    @jax.jit
    @jax.vmap
    def one(key):
        key_draw, key_slot = jax.random.split(key)
        return scheme(key_draw, jnp.asarray(LOG_W), count)[jax.random.randint(key_slot, (), 0, count)]

    found = np.bincount(one(keys), minlength=count)
    assert found[WEIGHTS == 0].sum() == 0
    assert stats.chisquare(found[WEIGHTS > 0], replicates * WEIGHTS[WEIGHTS > 0]).pvalue > 1e-6


@all_schemes
def test_the_conditional_version_obeys_the_rule_of_bayes(scheme):
    """A pivot drawn by its weight, then the rest given it, is a draw of ancestors in random order."""
    n, replicates = 3, 30_000

    def ordered(key, log_w, fixed):
        key_draw, key_order = jax.random.split(key)
        ancestors = jax.random.permutation(key_order, scheme(key_draw, log_w, n))
        return ancestors, jnp.array(True)

    def by_pivot(key, log_w, fixed):
        key_pivot, key_slot, key_rest = jax.random.split(key, 3)
        pivot = jax.random.categorical(key_pivot, log_w)
        slot = jnp.where(fixed, 1, jax.random.randint(key_slot, (), 0, n))
        ancestors = scheme.conditional(key_rest, log_w, pivot, slot)
        assert ancestors.dtype == jnp.int32
        return ancestors, ancestors[slot] == pivot

    def table(law):
        """How often each of the 27 outcomes comes; compiled once for all weights."""

        @jax.jit
        def count(key, log_w, fixed):
            keys = jax.random.split(key, replicates)
            ancestors, kept = jax.vmap(law, (0, None, None))(keys, log_w, fixed)
            return jnp.bincount(ancestors @ n ** jnp.arange(n), length=n**n), jnp.all(kept)

        return count

    plain, given = table(ordered), table(by_pivot)
    cases = [((0.5, 0.3, 0.2), False), ((0.5, 0.3, 0.2), True), ((0.0, 0.7, 0.3), False), ((0.34, 0.33, 0.33), True)]
    for (weights, fixed), key in zip(cases, jax.random.split(jax.random.key(5), len(cases)), strict=True):
        key_plain, key_given = jax.random.split(key)
        log_w = jnp.log(jnp.asarray(weights))
        (first, _), (second, kept) = plain(key_plain, log_w, fixed), given(key_given, log_w, fixed)
        assert kept
        used = np.stack([first, second])
        used = used[:, used.sum(0) > 0]
        rare = used.sum(0) < 20
        used = np.column_stack([used[:, ~rare], used[:, rare].sum(1)]) if rare.any() else used
        assert used.shape[1] > 1
        assert stats.chi2_contingency(used)[1] > 1e-6


@all_schemes
def test_one_particle_with_all_the_weight_is_every_ancestor(scheme):

    @jax.jit
    @jax.vmap
    def drawn(key, place):
        log_w = jnp.full(8, -jnp.inf).at[place].set(-700.0)  # of any normalisation
        return jnp.stack([scheme(key, log_w, 8), scheme.conditional(key, log_w, place, 2)])

    places = jnp.array([0, 3, 7] * 20)
    found = drawn(jax.random.split(jax.random.key(0), len(places)), places)
    assert (found == places[:, None, None]).all()
    # A particle of next to no weight beside it: never in such a number of draws.
    tiny = jnp.asarray([0.0, -60.0])
    keys = jax.random.split(jax.random.key(1), 2000)
    assert (jax.jit(jax.vmap(lambda key: scheme(key, tiny, 2)))(keys) == 0).all()


@all_schemes
def test_the_scale_of_the_weights_is_nothing(scheme):
    key, log_w = jax.random.key(2), jnp.asarray(LOG_W)
    # A power of two: normalised weights are then the same to the last bit.
    np.testing.assert_array_equal(scheme(key, log_w, 8), scheme(key, log_w + 1024.0, 8))


@all_schemes
def test_equal_weights_keep_every_particle_where_the_scheme_is_even(scheme):
    numbers = offspring(scheme, np.zeros(7), 7, 200)
    if isinstance(scheme, Multinomial):
        assert (numbers != 1).any()
    else:
        assert (numbers == 1).all()


def test_killing_wants_as_many_ancestors_as_particles():
    with pytest.raises(MethodError, match="killing replaces 8 particles by as many, got count=3"):
        Killing()(jax.random.key(0), jnp.asarray(LOG_W), 3)


@all_schemes
def test_a_million_particles_in_single_precision(scheme):
    """Cumulative sums of 10^6 rounded weights: no index out of range, no ancestor without weight, no drift."""
    n = 100_000 if isinstance(scheme, SSP) else 1_000_000  # SSP goes through the particles one by one
    with jax.enable_x64(False):
        log_w = 2 * jax.random.normal(jax.random.key(0), (n,), jnp.float32)
        log_w = log_w.at[::7].set(-jnp.inf).at[-50:].set(-jnp.inf).at[:50].set(-jnp.inf)
        found = np.bincount(jax.jit(lambda log_w: scheme(jax.random.key(1), log_w, n))(log_w), minlength=n)
        part = log_w[-20_000:]
        pivot = 19_947
        given = jax.jit(lambda log_w: scheme.conditional(jax.random.key(9), log_w, pivot, 19_999))(part)
    w = np.exp(np.asarray(log_w, float))
    w /= w.sum()
    assert w[-20_000:][pivot] > 0
    assert given[-1] == pivot
    assert given.min() >= 0
    assert (w[-20_000:][given] > 0).all()
    assert len(found) == n
    assert found.sum() == n
    assert found[w == 0].sum() == 0
    blocks, expected = found.reshape(20, -1).sum(1), n * w.reshape(20, -1).sum(1)
    # Independent draws have a standard deviation of at most sqrt(n / 20); rounding adds a share of the block.
    assert (np.abs(blocks - expected) < 6 * np.sqrt(n / 20) + 1e-3 * expected).all()
    if isinstance(scheme, Systematic):
        assert (np.abs(blocks - expected) < 20).all()
