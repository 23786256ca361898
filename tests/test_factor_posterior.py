"""The product of learned factors of rows: with the right weights it is the posterior, for any number of rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.amortized.encoded import gains
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.factor_posterior import FactorPosterior
from probgen.amortized.question import Question
from probgen.amortized.reading import Field, Reading, Rows
from probgen.amortized.whitening import Whitening
from probgen.generative.family import Spec
from probgen.program.density import Density

NOISE = 0.5
FEWEST = (("row", 2),)
SMALL = pg.generative.Training(steps=3000, batch=128, learning_rate=2e-3)


def line(t, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", t.shape[0]):
        numpyro.sample("y", dist.Normal(level + slope * t, NOISE), obs=y)


def conjugate(y, t):
    """Mean and covariance of level and slope."""
    design = np.stack([np.ones(len(t)), t], 1)
    covariance = np.linalg.inv(np.eye(2) + design.T @ design / NOISE**2)
    return covariance @ design.T @ y / NOISE**2, covariance


READING = Reading((), (Rows("row", 8, False, (Field("y", ()),), (Field("t", ()),)),))
ENCODER = ObservationEncoder(Question(READING, (), (), (), 0.0, FEWEST, 0, 0))
LARGE = 100.0
"""Units in which numbers are so small that their inverse hyperbolic sine is linear."""


@pytest.fixture(scope="module")
def lines():
    """Factors of the line with the weights that are right from the prior mean: Jacobian (1, t), residual y, over the noise."""
    family, spec = FactorPosterior(ENCODER, depth=0, steps=1), Spec((2,), (READING.size,))
    net = eqx.filter_jit(family.build)(jax.random.key(0), spec)
    # In: y, t, and the two coordinates of the point. Out, of two ranks: J (2), a, B.
    weight = np.zeros((8, 4))
    weight[1, 1] = LARGE / NOISE
    bias = np.array([1.0, 0.0, 0.0, LARGE] + [0.0] * 4) / NOISE

    def parts(net):
        first = net.groups[0]
        layer = first.net.layers[0]
        return [
            layer.weight,
            layer.bias,
            first.gains,
            *(u.scale.value for u in (net.reader.rows[0], net.reader.designs[0])),
        ]

    units = jnp.full(1, LARGE, jnp.float32)
    values = [jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32), jnp.zeros(2, jnp.float32), units, units]
    return family.distribution(eqx.tree_at(parts, net, values), spec)


def observed(rows, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(-2, 2, rows)
    return 0.7 - 0.4 * t + NOISE * rng.normal(size=rows), t


@pytest.fixture(scope="module")
def whitening(lines):
    return jax.jit(lines.whitening)


def test_gaussian_rows_have_their_exact_posterior_for_any_number_and_design(whitening):
    for rows in (1, 2, 5, 8):
        y, t = observed(rows, rows)
        mean, covariance = conjugate(y, t)
        found = whitening(READING.pack({"y": y}, {"t": t}))
        # The inverse hyperbolic sine is off by (3 / 100)^2 / 6 of a number; 32 bits by less.
        np.testing.assert_allclose(found.loc, mean, atol=2e-3 * np.sqrt(covariance.max()))
        root = np.asarray(found.outer, float) @ np.linalg.inv(np.asarray(found.inner, float)).T
        np.testing.assert_allclose(root @ root.T, covariance, atol=2e-3 * covariance.max())


def test_rows_that_are_not_there_play_no_part_and_others_have_no_order(whitening):
    y, t = observed(5)
    packed = READING.pack({"y": y}, {"t": t})
    read = READING.unpack(packed)
    from dataclasses import replace

    there = read.present[0][:, None]
    filled = replace(
        read,
        rows=(jnp.where(there, read.rows[0], 7.0),),
        rows_seen=(jnp.ones_like(read.rows_seen[0]),),
        designs=(jnp.where(there, read.designs[0], 9.0),),
    )
    for other in (READING.repack(filled), READING.pack({"y": y[::-1]}, {"t": t[::-1]})):
        for part in ("loc", "inner"):
            a, b = (getattr(whitening(c), part) for c in (packed, other))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_whitening_is_invertible_and_knows_its_volume():
    rng = np.random.default_rng(0)
    outer, inner = (np.tril(rng.normal(size=(3, 3))) + 2 * np.eye(3) for _ in range(2))
    units = Whitening(jnp.asarray(rng.normal(size=3)), jnp.asarray(outer), jnp.asarray(inner))
    u = jnp.asarray(rng.normal(size=3))
    np.testing.assert_allclose(units.outward(units.inward(u)), u, rtol=1e-5)
    np.testing.assert_allclose(units.log_det(), np.linalg.slogdet(jax.jacfwd(units.inward)(u))[1], rtol=1e-5)
    covariance = outer @ np.linalg.inv(inner @ inner.T) @ outer.T
    exact = dist.MultivariateNormal(units.loc, covariance).log_prob(u)
    np.testing.assert_allclose(units.log_density(u), exact, rtol=1e-5)


def test_parameters_may_have_any_scale():
    """The same weights, adapted to parameters that are a million times as large, find the same residuals."""
    rng = np.random.default_rng(1)
    family, spec = FactorPosterior(ENCODER, width=8, depth=1), Spec((2,), (READING.size,))
    net = eqx.filter_jit(family.build)(jax.random.key(0), spec)
    y, t = np.stack([observed(8, seed) for seed in range(20)], 1)
    packed = jax.vmap(lambda y, t: READING.pack({"y": y}, {"t": t}))(jnp.asarray(y), jnp.asarray(t))
    u = rng.normal(size=(20, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]]) + 3
    rests = []
    for scale in (1.0, 1e6):
        law = family.distribution(family.adapt(jax.random.key(0), net, jnp.asarray(scale * u), packed), spec)
        rests.append(jax.jit(lambda c, u: law.whitening(c).inward(u))(packed[0], jnp.asarray(scale * u[0])))  # noqa: B023
    np.testing.assert_allclose(rests[0], rests[1], rtol=1e-4, atol=1e-4)


def test_what_reads_rows_that_are_alike_and_nothing_else():
    series = Reading((), (Rows("time", 8, True, (Field("y", ()),), ()),))
    flat = Reading((Field("x", (3,)),), ())
    assert [FactorPosterior.reads(r, 2) for r in (READING, series, flat)] == [True, False, False]
    assert not FactorPosterior.reads(READING, 100)


def test_factors_that_are_right_are_better_than_a_line_by_what_the_design_says(lines):
    """Against the best linear prediction from means and mean squares, which no design enters; and a prior is worse."""
    rng = np.random.default_rng(2)
    u = rng.normal(size=(400, 2))
    t = rng.uniform(-2, 2, (400, 8))
    y = u[:, :1] + u[:, 1:] * t + NOISE * rng.normal(size=t.shape)
    packed = jax.vmap(lambda y, t: READING.pack({"y": y}, {"t": t}))(jnp.asarray(y), jnp.asarray(t))
    gained = gains(jax.random.key(0), ENCODER, lines, jnp.asarray(u, jnp.float32), packed)
    assert gained > 0.5
    blind = eqx.tree_at(lambda law: law.net.groups[0].gains, lines, jnp.full(2, -20.0))
    assert gains(jax.random.key(0), ENCODER, blind, jnp.asarray(u, jnp.float32), packed) < -0.05


# -- trained -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return pg.amortize(
        pg.Model(line, {"t": np.linspace(-2.0, 2.0, 8)}),
        ["y"],
        pg.FlowMatching(width=64, depth=2, encoder_width=16, encoder_depth=1, training=SMALL),
        20_000,
        design=lambda key: {"t": jax.random.uniform(key, (8,), minval=-2.0, maxval=2.0)},
        fewest=dict(FEWEST),
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 5, 8])
def test_any_number_of_points_of_a_line_has_its_conjugate_posterior(trained, rows):
    y, t = observed(rows, 10 + rows)
    mean, covariance = conjugate(y, t)
    tree = pg.infer(pg.Model(line, {"t": t, "y": y}), trained, draws=4000, chains=1, seed=rows)
    draws = np.stack([tree.posterior[name].values[0] for name in ("level", "slope")], 1)
    # A quarter of a standard deviation off in one direction is told with an accuracy of 0.55.
    off = np.linalg.solve(np.linalg.cholesky(covariance), draws.mean(0) - mean)
    assert np.linalg.norm(off) < 0.25
    ratio = np.linalg.eigvals(np.linalg.solve(covariance, np.cov(draws.T))).real
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25


@pytest.mark.slow
def test_the_factors_are_kept(trained, tmp_path):
    y, t = observed(4)
    density = Density(pg.Model(line, {"t": t, "y": y}))
    trained.save(tmp_path / "line")
    loaded = pg.amortized.load(tmp_path / "line")
    u = jnp.asarray([[0.5, -0.3], [1.0, 0.0]])
    np.testing.assert_array_equal(loaded.given(density).log_prob(u), trained.given(density).log_prob(u))
    assert loaded.law.family.gaussian is not None


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform_for_a_line(trained):
    t = np.array([-1.5, -0.2, 0.4, 1.1])
    found = pg.check.sbc(pg.Model(line, {"t": t}), trained, datasets=200, draws=60, seed=4)
    assert not [f for f in found.findings if f.severity.name == "error"]
