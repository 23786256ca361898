"""Posteriors given many rows, composed of scores given one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen import generative as gm
from probgen.amortized.composed import AnnealedLangevin, Composed, Gauss, Jacobian, Particles, RowDenoisers, positive
from probgen.amortized.composed_score import ComposedScore
from probgen.testing import assert_draws, assert_mean, assert_moments

PATH = gm.VP()
LOC, SPREAD = np.array([0.3, -0.2]), np.array([[1.0, 0.4], [0.4, 0.8]])
MATRIX, NOISE = np.array([[1.0, 0.3], [-0.2, 1.0]]), np.array([[0.5, 0.1], [0.1, 0.9]])
PRIOR = gm.GaussianMixture([1.0], [LOC], SPREAD, PATH)


def problem(count):
    """Rows ``x ~ N(A theta, R)``: exact denoisers given each, and mean and covariance given all."""
    rng = np.random.default_rng(count)
    theta = rng.multivariate_normal(LOC, SPREAD)
    x = theta @ MATRIX.T + rng.multivariate_normal(np.zeros(2), NOISE, count)
    rows = RowDenoisers.stacked([gm.observed_mixture(PRIOR, MATRIX, row, NOISE) for row in x])
    weighed = MATRIX.T @ np.linalg.inv(NOISE)
    covariance = np.linalg.inv(np.linalg.inv(SPREAD) + count * weighed @ MATRIX)
    return rows, covariance @ (np.linalg.solve(SPREAD, LOC) + weighed @ x.sum(0)), covariance, x


@pytest.mark.parametrize("composition", [Gauss(), Jacobian()], ids=["gauss", "jacobian"])
def test_the_composed_denoiser_of_gaussians_is_that_of_their_conjugate_posterior(composition):
    x, t = jax.random.normal(jax.random.key(1), (7, 2)), jnp.linspace(PATH.start, PATH.end, 7)

    @jax.jit
    def means(rows):
        key = (jax.random.key(0),) if isinstance(composition, Gauss) else ()
        return jax.vmap(composition.denoiser(*key, rows, PRIOR).mean)(x, t)

    for count in (1, 5, 30):
        rows, mean, covariance, _ = problem(count)
        exact = gm.GaussianMixture([1.0], [mean], covariance, PATH)
        np.testing.assert_allclose(means(rows), jax.vmap(exact.mean)(x, t), atol=1e-10)


def test_one_row_is_itself_whatever_the_precisions():
    """With one row nothing is composed, even where Gaussian precisions are far from the truth."""
    row = gm.GaussianMixture([0.3, 0.7], [[1.0, 0.5], [-1.0, 0.0]], 0.1 * np.eye(2), PATH)
    gains = positive(jnp.array([[2.0, 3.0], [3.0, -1.0]]))[None]
    composed = Composed(rows=RowDenoisers.stacked([row]), prior=PRIOR, precision=jnp.eye(2), gains=gains, path=PATH)
    x = jnp.array([0.2, -0.4])
    np.testing.assert_allclose(*jax.jit(lambda x: (composed.mean(x, 0.3), row.mean(x, 0.3)))(x), atol=1e-10)


@pytest.mark.parametrize("count", [5, 30])
def test_what_is_drawn_has_the_moments_of_the_posterior_given_all_rows(count):
    """For Gaussians the sampler is an affine map of the noise, so the moments of its draws are known without any."""
    rows, mean, covariance, _ = problem(count)
    composed, times = Gauss().denoiser(jax.random.key(0), rows, PRIOR), gm.even_log_snr(PATH, 64)
    noise = PATH(PATH.end)[1] * jnp.concatenate([jnp.zeros((1, 2)), jnp.eye(2)])
    ends = jax.jit(jax.vmap(lambda x: gm.sample_path(jax.random.key(0), gm.UniPC(), composed, x, times)))(noise)
    root, slope = np.linalg.cholesky(covariance), np.asarray(ends[1:] - ends[0]).T
    white = np.linalg.solve(root, slope)
    # The noise end is taken as centred noise, which with alpha = 0.007 there costs a mean of 0.01 sd; 64 steps cost 1 % of
    # the variance, and so does the noise that is left at the data end, sigma^2 = 1e-4 against variances of 0.02.
    np.testing.assert_allclose(np.linalg.solve(root, ends[0] - mean), 0, atol=0.015)
    np.testing.assert_allclose(white @ white.T, np.eye(2), atol=0.015)


def test_estimated_precisions_come_close():
    rows, _, covariance, _ = problem(3)
    gauss = Gauss(steps=16)
    known = gauss.denoiser(jax.random.key(0), rows, PRIOR)
    # The same laws, as mixtures of two equal parts, whose covariances are not known.
    mixtures = [
        gm.GaussianMixture([0.5, 0.5], [row.means[0]] * 2, _covariance(row), PATH) for row in map(rows.one, range(3))
    ]
    rows = RowDenoisers.stacked(mixtures)
    found = jax.jit(lambda key: gauss.denoiser(key, rows, PRIOR))(jax.random.key(0))
    root = np.linalg.cholesky(covariance)
    total = root.T @ np.asarray(found.precision + found.gains.sum(0)) @ root
    # A precision from 256 draws has a relative error of sqrt(2 / 256), the sum of three less by sqrt(3): 0.05, five times.
    np.testing.assert_allclose(total, root.T @ np.asarray(known.precision + known.gains.sum(0)) @ root, atol=0.26)


def _covariance(denoiser):
    return np.asarray((denoiser.axes[0] * denoiser.variances[0]) @ denoiser.axes[0].T)


def test_annealed_langevin_moves_come_to_the_posterior():
    rows, mean, covariance, _ = problem(5)
    moves = AnnealedLangevin(levels=100, moves=10, step=0.4)
    draws = jax.jit(lambda key: moves.draw(key, rows, PRIOR, 2400))(jax.random.key(0))
    # The moves are as short as the noise, and stall while some of it is left: with these settings the recursion of the
    # moments, which is exact for Gaussians, ends 0.02 sd off and 5 % too wide.
    assert_moments(draws.reshape(48, 50, 2), mean, covariance, detects=0.4, tolerance=0.05)


@pytest.mark.slow
def test_particles_of_the_product_have_its_evidence():
    rows, mean, covariance, _ = problem(3)
    product = Particles(particles=1000, steps=100).product(rows, PRIOR)
    clouds = jax.jit(jax.vmap(product.run))(jax.random.split(jax.random.key(0), 32))
    # Given by Bayes' rule at any point: the product of the densities is that of the posterior times the evidence.
    t = PATH.start
    at = jnp.asarray(mean)
    each = rows.each(lambda row: row.log_density(at, t)).sum() - 2 * PRIOR.log_density(at, t)
    exact = each - gm.GaussianMixture([1.0], [mean], covariance, PATH).log_density(at, t)
    # exp(log Z) is unbiased up to the discretisation, which 100 steps leave below 0.02.
    assert_mean(jnp.exp(clouds.log_z - exact), 1.0, detects=0.45, tolerance=0.02)


# -- from a program ------------------------------------------------------------------------------------------------------


def rows_of(n, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.5, 1.5))
    with numpyro.plate("row", n):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def scales(y=None):
    scale = numpyro.sample("scale", dist.Gamma(3.0, 3.0))
    with numpyro.plate("row", 2):
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)


ONE_STEP = gm.Training(steps=1, batch=64)
QUICK = Gauss(pilot=16, steps=4, sampler=gm.DDIM())
SMALL = {"width": 16, "depth": 1, "encoder_width": 8, "training": ONE_STEP, "composition": QUICK}


@pytest.fixture(scope="module")
def untrained():
    return pg.amortize(pg.Model(rows_of, {"n": 2}), ["y"], ComposedScore(**SMALL), 256)


def test_any_number_of_rows_is_read_row_by_row(untrained, tmp_path):
    for count in (1, 2, 7):
        y = np.arange(count) + 0.5
        model = pg.Model(rows_of, {"n": count, "y": y})
        packed = untrained.rows(pg.program.density.Density(model))
        values = jax.vmap(untrained.question.reading.unpack)(packed).rows[0]
        np.testing.assert_allclose(values.ravel(), y)
    result = pg.infer(model, untrained, draws=50, chains=1, seed=0)
    assert result.posterior["mean"].shape == (1, 50)
    untrained.save(tmp_path / "kept")
    again = pg.amortized.load(tmp_path / "kept")
    same = pg.infer(model, again, draws=50, chains=1, seed=0)
    np.testing.assert_array_equal(result.posterior["mean"], same.posterior["mean"])


def test_the_prior_is_gaussian_where_the_program_says_so(untrained):
    described = untrained.described()
    assert described["prior_score"] == "exact: a Gaussian"
    prior, net = untrained.law.family.prior, untrained.law.net
    from probgen.amortized.composed_score import outward

    z = jax.vmap(lambda key: prior.draw(key, 0.0))(jax.random.split(jax.random.key(0), 4800))
    u = jax.vmap(lambda z: outward(net, z))(z)
    assert_moments(u.reshape(48, 100), 0.5, 1.5**2, detects=0.2)


@pytest.mark.slow
def test_another_prior_is_learned():
    learned = pg.amortize(pg.Model(scales), ["y"], ComposedScore(**SMALL), 256)
    assert learned.described()["prior_score"] == "learned from draws of the prior"
    assert (
        pg.infer(pg.Model(scales, {"y": np.ones(2)}), learned, draws=20, chains=1, seed=0).posterior["scale"].min() > 0
    )


def series(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean * jnp.arange(3.0), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("program", "change", "message"),
    [
        (series, {}, "entry by entry"),
        (scales, {"fewest": {"row": 1}}, "fewest"),
        (scales, {"method": ComposedScore(composition="gauss")}, "composition"),
        (scales, {"method": ComposedScore(composition=Gauss(pilot=0))}, "pilot=0, expected an int"),
        (scales, {"method": ComposedScore(composition=AnnealedLangevin(step=3.0))}, "step=3.0, expected 0"),
    ],
)
def test_mistakes_are_named(program, change, message):
    arguments = {"method": ComposedScore(**SMALL), "simulations": 50, **change}
    with pytest.raises(pg.MethodError, match=message):
        pg.amortize(pg.Model(program), ["y"], **arguments)
    with pytest.raises(pg.MethodError, match="one for each row"):
        RowDenoisers.stacked([])


@pytest.mark.slow
def test_a_network_that_has_seen_single_rows_answers_for_thirty():
    amortized = pg.amortize(
        pg.Model(rows_of, {"n": 2}),
        ["y"],
        ComposedScore(width=64, depth=2, encoder_width=16, training=gm.Training(steps=6000, batch=512)),
        20_000,
    )
    rng = np.random.default_rng(0)
    for count in (1, 5, 30):
        y = 1.0 + rng.normal(size=count)
        variance = 1 / (1 / 1.5**2 + count)
        mean = variance * (0.5 / 1.5**2 + y.sum())
        draws = np.asarray(pg.infer(pg.Model(rows_of, {"n": count, "y": y}), amortized, seed=0).posterior["mean"])
        # The error of one score counts as often as there are rows: a fifth of a posterior sd is what 30 rows may cost.
        assert abs(draws.mean() - mean) < 0.2 * variance**0.5
        assert abs(draws.std() / variance**0.5 - 1) < 0.2
    corrected = pg.infer(pg.Model(rows_of, {"n": 30, "y": y}), pg.ImportanceSampling(amortized), chains=4, seed=0)
    # Draws of a chain are nearly independent where weights are nearly equal.
    assert_draws(corrected, means={"mean": mean}, sds={"mean": variance**0.5}, detects=0.5)
