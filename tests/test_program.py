"""The program layer: densities against NumPyro's and hand-written ones, and each construct of a program by what it
should do.
"""

import math

import arviz
import jax
import jax.numpy as jnp
import jax.scipy.stats as jss
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import potential_energy
from programs import ROWS, Y, branches, network, random_walk, regression

import probgen as pg
from probgen.program.density import Density

# -- programs, and the density against NumPyro's -----------------------------------------------------------------------


def simplex():
    p = numpyro.sample("p", dist.Dirichlet(2 * jnp.ones(4)))
    numpyro.sample("counts", dist.Multinomial(10, p), obs=jnp.array([1, 2, 3, 4]))


def covariance(y):
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = numpyro.sample("scale", dist.HalfNormal().expand([3]).to_event(1))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.MultivariateNormal(0, scale_tril=scale[:, None] * factor), obs=y)


def correlation():
    c = numpyro.sample("c", dist.LKJ(3, 2.0))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), c), obs=jnp.array([0.5, -0.2, 1.0]))


def ordered():
    ordered_normal = dist.TransformedDistribution(
        dist.Normal(0, 2).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    )
    cuts = numpyro.sample("cuts", ordered_normal)
    numpyro.sample("grade", dist.OrderedLogistic(0.3, cuts).expand([3]).to_event(1), obs=jnp.array([0, 1, 3]))


def zero_sum(y):
    z = numpyro.sample("z", dist.ZeroSumNormal(1.0, (6,)))
    numpyro.sample("y", dist.Normal(z, 1).to_event(1), obs=y)


def improper(y):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.positive, (), (6,)))
    numpyro.sample("y", dist.Normal(z, 1).to_event(1), obs=y)


def factors():
    z = numpyro.sample("z", dist.Normal())
    numpyro.factor("quartic", -(z**4))
    with numpyro.plate("row", 2):
        numpyro.factor("each", -z * jnp.arange(2.0))


def moving_supports(y):
    def step(x, y_now):
        x = numpyro.sample("x", dist.LogNormal(jnp.log(x), 1.0))
        with numpyro.plate("pair", 2):
            v = numpyro.sample("v", dist.Uniform(x, x + 1))
        numpyro.sample("y", dist.Normal(v.sum(), 1), obs=y_now)
        return x, None

    scan(step, 1.0, y)


def reparameterised():
    with handlers.reparam(config={"a": LocScaleReparam(0.0), "b": TransformReparam(), "c": LocScaleReparam(0.5)}):
        m = numpyro.sample("m", dist.Normal())
        a = numpyro.sample("a", dist.Normal(m, 2.0))
        b = numpyro.sample("b", dist.TransformedDistribution(dist.Normal(m, 1), dist.transforms.ExpTransform()))
        c = numpyro.sample("c", dist.Normal(m, 1.0))
    numpyro.sample("y", dist.Normal(a + c, b), obs=1.0)


def dependent_supports():
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("a", dist.Uniform(x, x + 1).expand([3]).to_event(1))
    numpyro.sample("b", dist.TruncatedNormal(0, 3, high=x))


def matrices():
    numpyro.sample("w", dist.Wishart(4.0, jnp.eye(2)))
    numpyro.sample("l", dist.LKJCholesky(4).expand([2]))
    numpyro.sample("m", dist.MatrixNormal(jnp.zeros((2, 3)), jnp.eye(2), jnp.eye(3)))


SAME_AS_NUMPYRO = {
    regression: {"x": ROWS, "y": Y[:5]},
    simplex: {},
    covariance: {"y": ROWS},
    correlation: {},
    ordered: {},
    zero_sum: {"y": Y},
    improper: {"y": Y},
    factors: {},
    random_walk: {"y": Y},
    moving_supports: {"y": Y},
    branches: {},
    reparameterised: {},
    dependent_supports: {},
    network: {"x": ROWS[:, :2], "y": Y[:5]},
    matrices: {},
}


@pytest.mark.parametrize("program", SAME_AS_NUMPYRO, ids=lambda program: program.__name__)
def test_density_is_numpyros(program):
    data = SAME_AS_NUMPYRO[program]
    density = Density(pg.Model(program, data))

    def reference(u):
        return -potential_energy(program, (), data, density.split(u))

    both = jax.jit(lambda u: (jax.value_and_grad(density.log_density)(u), jax.value_and_grad(reference)(u)))
    for u in np.random.default_rng(1).normal(size=(3, density.dim)):
        (ours, our_slope), (theirs, their_slope) = both(u)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        np.testing.assert_allclose(our_slope, their_slope, rtol=1e-8, atol=1e-8)
        prior, likelihood = density.parts(u)
        np.testing.assert_allclose(prior + likelihood, ours, rtol=1e-10)
        np.testing.assert_allclose(sum(density.breakdown(u).values()), ours, rtol=1e-10)


@pytest.mark.parametrize("program", SAME_AS_NUMPYRO, ids=lambda program: program.__name__)
def test_unconstrain_undoes_constrain(program):
    model = pg.Model(program, SAME_AS_NUMPYRO[program])
    density = Density(model)
    u = np.random.default_rng(2).normal(size=density.dim)
    np.testing.assert_allclose(density.unconstrain(density.constrain(u)), u, atol=1e-8)
    if all(site.proper for site in model.sites):
        drawn = density.draw_prior(jax.random.key(0))
        assert drawn.shape == (density.dim,)
        assert np.isfinite(density.log_prior(drawn))


# -- what a density must not do ----------------------------------------------------------------------------------------


def test_scale_and_mask_leave_jacobians_alone():
    def program():
        with handlers.scale(scale=3.0):
            numpyro.sample("s", dist.HalfNormal())
        with handlers.mask(mask=jnp.array([True, False])):
            numpyro.sample("r", dist.LogNormal().expand([2]))
        with handlers.scale(scale=2.0), numpyro.plate("row", 6):
            numpyro.sample("y", dist.Normal(), obs=Y)

    density = Density(pg.Model(program))
    u = jnp.array([0.3, -0.7, 1.1])
    s, r = jnp.exp(u[0]), jnp.exp(u[1:])
    prior = 3 * dist.HalfNormal().log_prob(s) + u[0] + dist.LogNormal().log_prob(r[0]) + u[1] + u[2]
    np.testing.assert_allclose(density.log_prior(u), prior, rtol=1e-12)
    np.testing.assert_allclose(density.log_likelihood(u), 2 * jss.norm.logpdf(Y).sum(), rtol=1e-12)


def test_factors_count_as_likelihood():
    density = Density(pg.Model(factors))
    u = jnp.array([0.7])
    np.testing.assert_allclose(density.log_prior(u), jss.norm.logpdf(0.7), rtol=1e-12)
    np.testing.assert_allclose(density.log_likelihood(u), -(0.7**4) - 0.7, rtol=1e-12)
    np.testing.assert_allclose(density.log_density(u, 0.25), jss.norm.logpdf(0.7) - 0.25 * (0.7**4 + 0.7), rtol=1e-12)
    assert density.pointwise_log_likelihood(u) == {}


def test_an_angle_keeps_its_evidence():
    """Integrating the two coordinates of an angle gives the integral over the angle: the auxiliary radius adds
    nothing.
    """

    def program():
        angle = numpyro.sample("angle", dist.VonMises(1.0, 2.0))
        numpyro.sample("y", dist.Normal(jnp.cos(angle), 0.5), obs=0.8)

    density = Density(pg.Model(program))
    theta = np.linspace(-np.pi, np.pi, 2001)[:-1]
    on_circle = np.exp(dist.VonMises(1.0, 2.0).log_prob(theta) + jss.norm.logpdf(0.8, np.cos(theta), 0.5))
    expected = on_circle.sum() * (theta[1] - theta[0])
    # In polar coordinates of the plane, since the density jumps at the origin.
    theta, radius = theta[::10], np.linspace(0, 9, 400)
    grid = radius[:, None, None] * np.stack([np.cos(theta), np.sin(theta)], -1)
    plane = np.exp(jax.vmap(jax.vmap(density.log_density))(grid)) * radius[:, None]
    integral = plane.sum() * (radius[1] - radius[0]) * (theta[1] - theta[0])
    np.testing.assert_allclose(integral, expected, rtol=1e-4)
    value = density.constrain(density.unconstrain({"angle": jnp.array(3.0)}))
    np.testing.assert_allclose(value["angle"], 3.0, rtol=1e-12)


def test_each_angle_of_a_vector_has_its_own_pair():
    """Angles with an event dimension: one auxiliary pair each."""
    density = Density(pg.Model(lambda: numpyro.sample("t", dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.5))))
    assert density.dim == 4
    u = jnp.array([0.3, 0.4, -0.5, 1.2])
    angles = jnp.arctan2(u[1::2], u[::2])
    expected = dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.5).log_prob(angles)
    expected += 2 * math.log(2 * math.pi) + jss.norm.logpdf(u).sum()
    np.testing.assert_allclose(density.log_density(u), expected, rtol=1e-12)


# -- missing data ------------------------------------------------------------------------------------------------------


def test_missing_observations_become_latent():
    seen = np.array([1, 1, 0, 1, 0, 1], bool)

    def program(seen, y):
        m = numpyro.sample("m", dist.Normal())
        with numpyro.plate("row", 6):
            numpyro.sample("y", dist.Gamma(jnp.exp(m), 2.0), obs=y, obs_mask=seen)

    model = pg.Model(program, {"seen": seen, "y": np.where(seen, np.abs(Y), np.nan)})
    assert [site.name for site in model.sites if site.auxiliary] == ["y_unobserved"]
    density = Density(model)
    u = jnp.asarray(np.random.default_rng(3).normal(size=7))
    gamma = dist.Gamma(jnp.exp(u[0]), 2.0)
    missing = (gamma.log_prob(jnp.exp(u[1:])) + u[1:])[~seen].sum()
    # The places of entries that were seen hold a standard normal, which integrates to one.
    prior = jss.norm.logpdf(u[0]) + missing + jss.norm.logpdf(u[1:])[seen].sum()
    np.testing.assert_allclose(density.log_prior(u), prior, rtol=1e-12)
    np.testing.assert_allclose(density.log_likelihood(u), gamma.log_prob(np.abs(Y))[seen].sum(), rtol=1e-12)
    assert np.isfinite(jax.grad(density.log_density)(u)).all()


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_missing_observations_inside_scan(reverse):
    seen = np.array([1, 0, 1, 1, 0, 1], bool)

    def path(y, seen):
        def step(x, now):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=now[0], obs_mask=now[1])
            return x, None

        scan(step, 0.0, (y, seen), reverse=reverse)

    density = Density(pg.Model(path, {"y": Y, "seen": seen}))
    u = jnp.asarray(np.random.default_rng(5).normal(size=12))
    x, y = u[:6], u[6:]
    steps = jnp.diff(x, append=0.0) if reverse else jnp.diff(x, prepend=0.0)
    prior = jss.norm.logpdf(steps).sum()
    prior += jnp.where(seen, jss.norm.logpdf(y), jss.norm.logpdf(y, x, 0.5)).sum()
    np.testing.assert_allclose(density.log_prior(u), prior, rtol=1e-12)
    np.testing.assert_allclose(density.log_likelihood(u), jss.norm.logpdf(Y, x, 0.5)[seen].sum(), rtol=1e-12)
    np.testing.assert_allclose(density.constrain(u)["y"], jnp.where(seen, Y, y))


def test_missing_observations_with_event_axes():
    seen = np.array([1, 0, 1, 1, 0, 1], bool)

    def rows(y):
        with numpyro.plate("row", 6):
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), obs=y, obs_mask=seen)

    model = pg.Model(rows, {"y": np.where(seen[:, None], 1.0, np.nan) * np.ones(2)})
    assert model.sites["y"].dims == ("row", "y_dim_1")
    assert np.isfinite(jax.grad(Density(model).log_density)(jnp.zeros(12))).all()


def test_imputed_values_have_their_posterior():
    """Normal data with a known prior: the missing value given the others is Normal(posterior mean, 1 + posterior
    variance).
    """
    seen = np.array([1, 1, 1, 1, 1, 0], bool)

    def program(y):
        m = numpyro.sample("m", dist.Normal(0.0, 2.0))
        with numpyro.plate("row", 6):
            numpyro.sample("y", dist.Normal(m, 1.0), obs=y, obs_mask=seen)

    tree = pg.infer(pg.Model(program, {"y": Y}), pg.NUTS(), draws=1000, warmup=300, chains=2, seed=1)
    variance = 1 / (5 + 1 / 4)
    mean = variance * Y[:5].sum()
    draws = tree["posterior/y"].values[..., 5].ravel()
    error = math.sqrt((1 + variance) / 500)  # at least a quarter of the 2000 draws are effective
    assert abs(draws.mean() - mean) < 4 * error
    assert abs(draws.var() / (1 + variance) - 1) < 4 * math.sqrt(2 / 500)
    assert np.ptp(tree["posterior/y"].values[..., :5], (0, 1)).max() == 0
    assert "y_unobserved" not in tree["posterior"]


def test_masked_observations_may_be_nan():
    y = np.where(np.arange(6) < 4, Y, np.nan)

    def program(y):
        m = numpyro.sample("m", dist.Normal())
        with numpyro.plate("row", 6), handlers.mask(mask=~jnp.isnan(y)):
            numpyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def by_hand(y):
        m = numpyro.sample("m", dist.Normal())
        gap = jnp.isnan(y)
        with numpyro.plate("row", 6):
            log_prob = dist.Normal(m, 1.0).log_prob(jnp.where(gap, 0.0, y))
            numpyro.factor("y", jnp.where(gap, 0.0, log_prob))

    u = jnp.array([0.4])
    for model in (pg.Model(program, {"y": y}), pg.Model(by_hand, {"y": y})):
        density = Density(model)
        np.testing.assert_allclose(density.log_likelihood(u), jss.norm.logpdf(Y[:4], 0.4).sum(), rtol=1e-12)
        assert np.isfinite(jax.grad(density.log_density)(u)).all()


# -- short fits: the constructs under NUTS -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [covariance, moving_supports, network, ordered, reparameterised, zero_sum],
    ids=lambda program: program.__name__,
)
def test_constructs_fit(program):
    tree = pg.infer(pg.Model(program, SAME_AS_NUMPYRO[program]), pg.NUTS(), draws=100, warmup=150, chains=1)
    posterior = tree["posterior"]
    assert all(np.isfinite(value).all() for value in posterior.data_vars.values())
    if program is zero_sum:
        np.testing.assert_allclose(posterior["z"].sum("z_dim_0"), 0, atol=1e-10)
    if program is network:  # a slash would separate groups of the tree
        assert posterior["net.layers[0].weight"].dims[2:] == (
            "net.layers[0].weight_dim_0",
            "net.layers[0].weight_dim_1",
        )
    if program is ordered:
        assert bool((posterior["cuts"].diff("cuts_dim_0") > 0).all())
    if program is moving_supports:
        low, v = posterior["x"], posterior["v"]
        assert bool(((v >= low) & (v <= low + 1)).all())
    if program is covariance:
        np.testing.assert_allclose((posterior["factor"] ** 2).sum("factor_dim_1"), 1, rtol=1e-8)
    if program is reparameterised:
        np.testing.assert_allclose(posterior["a"], posterior["m"] + 2 * posterior["a_decentered"], atol=1e-10)


def expectation(log_density, low=-10.0, high=10.0):
    """Of the argument, by quadrature."""
    line = np.linspace(low, high, 4001)
    log_p = np.asarray(log_density(line))
    weight = np.exp(log_p - log_p.max())
    return weight @ line / weight.sum()


def either_branch(z):
    up, down = jss.norm.logpdf(0.3, 2.0, math.sqrt(2.0)), jss.norm.logpdf(0.3, -2.0, math.sqrt(5.0))
    return jss.norm.logpdf(z) + jnp.where(z > 0, up, down)


POSTERIOR_MEANS = {
    simplex: ("p", (2 + np.array([1, 2, 3, 4])) / 18),
    improper: ("z", Y + np.exp(jss.norm.logpdf(Y) - jss.norm.logcdf(Y))),
    factors: ("z", expectation(lambda z: jss.norm.logpdf(z) - z**4 - z)),
    branches: ("z", expectation(either_branch)),
}


@pytest.mark.parametrize("program", POSTERIOR_MEANS, ids=lambda program: program.__name__)
def test_constructs_have_their_posterior(program):
    model = pg.Model(program, SAME_AS_NUMPYRO[program])
    tree = pg.infer(model, pg.NUTS(), draws=1000, warmup=400, chains=2, seed=1)
    name, mean = POSTERIOR_MEANS[program]
    draws = tree[f"posterior/{name}"].values.reshape(2, 1000, -1)
    for i, expected in enumerate(np.ravel(mean)):
        error = draws[..., i].std() / math.sqrt(float(arviz.ess(draws[..., i])))
        assert 4.5 * error < 0.35 * draws[..., i].std()
        assert abs(draws[..., i].mean() - expected) < 4.5 * error


def test_a_network_is_fitted_stored_and_predicted_from(tmp_path):
    model = pg.Model(network, {"x": ROWS[:, :2], "y": Y[:5]})
    tree = pg.infer(model, pg.NUTS(), draws=50, warmup=100, chains=1, store=tmp_path / "run.zarr")
    names = {"net.layers[0].weight", "net.layers[0].bias", "net.layers[1].weight", "net.layers[1].bias"}
    assert set(tree["posterior"].data_vars) == set(pg.load(tmp_path / "run.zarr")["posterior"].data_vars) == names
    tree.to_netcdf(tmp_path / "run.nc")
    predicted = pg.predict(model, tree)["posterior_predictive/y"].values
    weights = [tree[f"posterior/net.layers[{i}].{part}"].values[0] for i in (0, 1) for part in ("weight", "bias")]
    hidden = jax.nn.relu(jnp.einsum("dhi,ri->drh", weights[0], ROWS[:, :2]) + weights[1][:, None])
    mean = jnp.einsum("dh,drh->dr", weights[2].reshape(50, 3), hidden) + weights[3].reshape(50, 1)
    z = predicted[0] - mean  # the noise has unit variance
    assert abs(z.mean()) < 4.5 / math.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 4.5 * math.sqrt(2 / z.size)


def test_names_that_results_cannot_tell_apart_are_refused():
    def program():
        numpyro.sample("a/b", dist.Normal())
        numpyro.sample("a.b", dist.Normal())

    with pytest.raises(pg.ModelError, match=r"'a/b' and 'a\.b' are both called 'a\.b' in results"):
        pg.Model(program)
