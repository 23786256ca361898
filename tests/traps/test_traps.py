"""Traps between a NumPyro program and a sampler: ways in which answers came out silently wrong elsewhere, each pinned
here.

The numbers in the names are those of the list of thirty that this library was designed against.
"""

import importlib.metadata
import math
import warnings
from pathlib import Path

import arviz
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.stats as jss
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam

import probgen as pg
from probgen.infer.mclmc import MCLMC
from probgen.infer.predict import predict
from probgen.infer.random_walk import RandomWalk
from probgen.kernels.loop import TRIES, advance, begin, find_start
from probgen.program.density import Density
from probgen.program.enumerated import density_of
from probgen.run.compiled import compile_count

SHORT = {"draws": 300, "warmup": 300, "chains": 2}
LONG = {"draws": 1500, "warmup": 500, "chains": 2}


def z_scores(draws, mean):
    """Distance of the means of draws ``(chain, draw, ...)`` from the truth in Monte Carlo standard errors."""
    draws = np.asarray(draws)
    flat = draws.reshape(*draws.shape[:2], -1)
    sizes = np.array([float(arviz.ess(flat[..., i])) for i in range(flat.shape[-1])])
    error = flat.std((0, 1)) / np.sqrt(sizes)
    return (flat.mean((0, 1)) - np.ravel(mean)) / error


def normal_mean(y):
    """Conjugate: prior N(0, 10^2), unit noise."""
    m = numpyro.sample("m", dist.Normal(0.0, 10.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(m, 1.0), obs=y)


def centre(y):
    return y.sum() / (len(y) + 1 / 100)


# -- 1: supports that depend on values ---------------------------------------------------------------------------------


def moving_supports():
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("a", dist.Uniform(x, x + 1).expand([3]).to_event(1))
    numpyro.sample("b", dist.TruncatedNormal(0, 3, high=x))


@pytest.fixture(scope="module")
def moved():
    return pg.infer(pg.Model(moving_supports), pg.NUTS(), seed=1, **LONG)["posterior"]


def test_01_draws_lie_in_their_own_support(moved):
    x, a, b = moved["x"], moved["a"], moved["b"]
    assert bool(((a >= x) & (a <= x + 1)).all())
    assert bool((b <= x).all())


def test_01_and_have_their_own_moments(moved):
    x, a, b = (moved[name].values for name in "xab")
    line = np.linspace(-8, 8, 4001)
    weight = np.exp(jss.norm.logpdf(line))
    weight /= weight.sum()
    # E b | x = -3 phi(x/3) / Phi(x/3), and E b^2 | x = 9 (1 - (x/3) phi(x/3) / Phi(x/3)).
    hazard = np.exp(jss.norm.logpdf(line / 3) - jss.norm.logcdf(line / 3))
    got = np.concatenate([x[..., None], x[..., None] ** 2, a, (a - 0.5) ** 2, b[..., None], b[..., None] ** 2], -1)
    b_mean, b_square = (weight * -3 * hazard).sum(), (weight * 9 * (1 - line / 3 * hazard)).sum()
    expected = [0, 1, 0.5, 0.5, 0.5, 1 + 1 / 12, 1 + 1 / 12, 1 + 1 / 12, b_mean, b_square]
    assert np.abs(z_scores(got, expected)).max() < 5


def test_01_observations_outside_a_moving_support_have_probability_zero():
    """``Uniform.log_prob`` does not look: without care, draws of ``top`` below the largest observation would pass."""
    y = np.array([0.5, 2.0, 3.0, 1.0])

    def program(y):
        top = numpyro.sample("top", dist.Pareto(1.0, 1.0))
        numpyro.sample("y", dist.Uniform(0.0, top).expand([4]).to_event(1), obs=y)

    density = Density(pg.Model(program, {"y": y}))
    for top in (2.9, 3.1):
        u = density.unconstrain({"top": jnp.array(top)})
        expected = -4 * math.log(top) if top > 3 else -np.inf
        np.testing.assert_allclose(jax.jit(lambda u: density.log_likelihood(u))(u), expected)


# -- 2, 3, 26, 27, 30: one object, one set of sites, one schema --------------------------------------------------------


def test_02_both_densities_have_a_name():
    def program():
        numpyro.sample("s", dist.LogNormal(0.3, 0.7))

    density = Density(pg.Model(program))
    u = jnp.array([0.9])
    constrained = dist.LogNormal(0.3, 0.7).log_prob(jnp.exp(u[0]))
    np.testing.assert_allclose(density.log_prior(u), constrained + u[0], rtol=1e-12)
    np.testing.assert_allclose(density.log_prior(u), jss.norm.logpdf(u[0], 0.3, 0.7), rtol=1e-12)


def reparameterised(y):
    with numpyro.handlers.reparam(config={"theta": LocScaleReparam(0.0)}):
        scale = numpyro.sample("scale", dist.HalfNormal())
        with numpyro.plate("group", 3):
            theta = numpyro.sample("theta", dist.Normal(0.0, scale))
            numpyro.deterministic("double", 2 * theta)
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.fixture(
    scope="module", params=[pg.NUTS(), pg.NUTS(backend="numpyro"), RandomWalk()], ids=["ours", "numpyro", "rw"]
)
def grouped(request):
    model = pg.Model(reparameterised, {"y": np.array([1.0, 0.2, -0.4])}, coords={"group": list("abc")})
    with warnings.catch_warnings():  # a run of this length need not have converged; only what it reports is looked at
        warnings.simplefilter("ignore")
        return pg.infer(model, request.param, draws=50, warmup=200, chains=1)


def test_03_every_method_reports_the_same_sites(grouped):
    posterior = grouped["posterior"]
    assert set(posterior.data_vars) == {"scale", "theta_decentered", "theta", "double"}
    np.testing.assert_allclose(posterior["double"], 2 * posterior["theta"])


def test_24_27_statistics_are_those_that_the_method_has(grouped):
    schema = {"lp", "energy", "diverging", "acceptance_rate", "n_steps", "tree_depth", "step_size"}
    stats = set(grouped["sample_stats"].data_vars)
    if grouped.attrs["method"] == "nuts":
        assert stats >= schema
    else:
        assert "lp" in stats
        assert not stats & {"diverging", "energy", "tree_depth"}


def test_26_results_are_labelled_whatever_the_method(grouped):
    assert grouped["posterior/theta"].dims == ("chain", "draw", "group")
    assert grouped["posterior"].coords["group"].values.tolist() == list("abc")
    assert grouped["observed_data/y"].dims == ("group",)


def test_30_the_precision_is_recorded(grouped):
    assert grouped.attrs["precision"] == "64-bit"
    assert grouped["posterior/theta"].dtype == np.float64


def test_22_versions_of_the_engines_are_pinned_and_recorded(grouped):
    pins = dict(
        line.split("==")
        for line in Path(__file__).parents[2].joinpath("constraints.txt").read_text().split()
        if "==" in line
    )
    for package in ("numpyro", "blackjax", "jax"):
        assert package in pins
        assert grouped.attrs[f"version_{package}"] == importlib.metadata.version(package)


def test_30_in_32_bit_too():
    with jax.enable_x64(False):
        tree = pg.infer(pg.Model(normal_mean, {"y": np.ones(4)}), pg.NUTS(), draws=20, warmup=50, chains=1)
    assert tree.attrs["precision"] == "32-bit"
    assert tree["posterior/m"].dtype == np.float32


# -- 4, 5, 6, 7: discrete sites and prediction -------------------------------------------------------------------------


Y_MIXED = np.array([-2.1, -1.8, 2.2, 1.9, 0.1])


def mixture(y=None):
    p = numpyro.sample("p", dist.Beta(4.0, 4.0))
    with numpyro.plate("row", 5):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(jnp.where(z == 1, 2.0, -2.0), 1.5), obs=y)


@pytest.fixture(scope="module")
def mixed():
    return pg.infer(pg.Model(mixture, {"y": Y_MIXED}), pg.NUTS(), seed=2, draws=1000, warmup=300, chains=2)


def mixture_truth():
    """On a grid of p: posterior weights, responsibilities by (p, row), and marginal log likelihood by (p, row)."""
    p = np.linspace(0, 1, 2001)[1:-1, None]
    one = np.log(p) + jss.norm.logpdf(Y_MIXED, 2.0, 1.5)
    zero = np.log1p(-p) + jss.norm.logpdf(Y_MIXED, -2.0, 1.5)
    marginal = np.logaddexp(one, zero)
    log_weight = marginal.sum(1) + 3 * np.log(p[:, 0]) + 3 * np.log1p(-p[:, 0])
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum(), np.exp(one - marginal), marginal


def test_04_05_discrete_sites_are_summed_out_and_drawn_back(mixed):
    weight, responsible, _ = mixture_truth()
    z = mixed["posterior/z"]
    assert z.dims == ("chain", "draw", "row")
    assert set(np.unique(z)) == {0, 1}
    assert np.abs(z_scores(z.values.astype(float), weight @ responsible)).max() < 5
    p = np.linspace(0, 1, 2001)[1:-1]
    assert abs(z_scores(mixed["posterior/p"].values, weight @ p)[0]) < 5


def test_06_pointwise_likelihood_is_marginal():
    density = density_of(pg.Model(mixture, {"y": Y_MIXED}))
    p = np.linspace(0, 1, 2001)[1:-1]
    u = jnp.log(p) - jnp.log1p(-p)
    values = jax.vmap(lambda one: density.pointwise_log_likelihood(one[None])["y"])(u)
    np.testing.assert_allclose(values, mixture_truth()[2], rtol=1e-8)


def test_07_predictions_are_no_copies_of_the_data(mixed):
    tree = predict(pg.Model(mixture, {"y": Y_MIXED}), mixed, seed=3)
    y = tree["posterior_predictive/y"].values
    assert y.shape == (2, 1000, 5)
    assert (y.std((0, 1)) > 0.5).all()


# -- 8, 9, 10, 29: stateless methods, data as arguments ----------------------------------------------------------------


def test_08_09_29_methods_have_no_memory():
    """One method object, other data, other numbers of chains, an array changed in place: no stale answer, few
    compilations.
    """
    method = pg.NUTS()
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    before = compile_count()
    for chains in (1, 3):
        tree = pg.infer(pg.Model(normal_mean, {"y": y}), method, **{**SHORT, "chains": chains})
        assert tree["posterior/m"].sizes["chain"] == chains
        assert abs(z_scores(tree["posterior/m"].values, centre(y))[0]) < 5
    # Two programs (start and steps) per number of chains at most, not two per chain.
    assert compile_count() - before <= 4
    y += 10
    before = compile_count()
    tree = pg.infer(pg.Model(normal_mean, {"y": y}), method, **{**SHORT, "chains": 3})
    assert compile_count() == before
    assert abs(z_scores(tree["posterior/m"].values, centre(y))[0]) < 5


@pytest.mark.parametrize("size", [3, 64, 4096])
def test_09_a_model_keeps_its_own_copy_of_the_data(size):
    y = np.zeros(size)
    model = pg.Model(normal_mean, {"y": y})
    held = model.condition(m=np.zeros(())).do(y=y)
    y += 10
    assert float(model.leaves["y"].max()) == 0
    assert float(held.world["y"].max()) == 0


def test_10_data_are_arguments_not_constants():
    def size(n):
        density = Density(pg.Model(normal_mean, {"y": np.random.default_rng(0).normal(size=n)}))
        program = eqx.filter_jit(lambda density, u: jax.value_and_grad(density.log_density)(u))
        return len(program.lower(density, jnp.zeros(1)).as_text())

    assert abs(size(100_000) - size(100)) < 200


# -- 11 to 17: programs that cannot mean what they say -----------------------------------------------------------------


def refused(program, words, data=None, error=pg.ProbgenError, **settings):
    with pytest.raises(error) as caught:
        pg.infer(pg.Model(program, data or {}), pg.NUTS(), **{**SHORT, **settings})
    for word in words:
        assert word in str(caught.value)


def test_11_subsampled_plates_are_not_for_nuts():
    def program(y):
        m = numpyro.sample("m", dist.Normal())
        with numpyro.plate("row", 50, subsample_size=5) as rows:
            numpyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])

    refused(program, ["'row'", "5 of 50", "NUTS"], {"y": np.zeros(50)})


def test_12_params_are_not_frozen():
    def program():
        numpyro.sample("a", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    refused(program, ["'loc'", "numpyro.param", "frozen"])


def test_13_mutable_state_is_not_frozen():
    def program():
        state = numpyro.primitives.mutable("state", {"mean": jnp.zeros(())})
        numpyro.sample("a", dist.Normal(state["mean"], 1.0))
        state["mean"] += 1

    refused(program, ["'state'", "mutable"])


def test_14_random_keys_are_not_constants():
    def program():
        numpyro.sample("a", dist.Normal(jax.random.normal(numpyro.prng_key()), 1.0))

    refused(program, ["prng_key", "random"])

    def in_a_loop():
        def step(x, _):
            return numpyro.sample("x", dist.Normal(x + jax.random.normal(numpyro.prng_key()), 1.0)), None

        scan(step, 0.0, None, length=3)

    refused(in_a_loop, ["prng_key", "random"])


def test_15_observations_are_not_broadcast():
    def program(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
        with numpyro.plate("row", 20):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x = np.linspace(-1, 1, 20)
    refused(program, ["(20,)", "(20, 20)"], {"x": x[:, None], "y": 2 * x})


def test_16_nan_and_impossible_data_are_named_apart():
    def program(y):
        rate = numpyro.sample("rate", dist.Exponential())
        with numpyro.plate("row", 4):
            numpyro.sample("y", dist.Exponential(rate), obs=y)

    refused(program, ["'y' has NaN", "(2,)"], {"y": np.array([1, 2, np.nan, 3])})
    refused(program, ["'y' has the value -1.0", "(1,)", "Exponential"], {"y": np.array([1.0, -1, 2, 3])})


def test_17_control_flow_on_a_latent_is_explained():
    def program():
        a = numpyro.sample("a", dist.Normal())
        numpyro.sample("b", dist.Normal(1.0 if a > 0 else -1.0, 1.0))

    refused(program, ["after site 'a'", "control_flow.cond"])


# -- 18 to 21: starting, adapting, remembering -------------------------------------------------------------------------


def test_18_a_start_is_finite_and_among_the_best():
    """Half of the space is impossible, and most of the rest far away: the start is possible, and no chance hit."""

    def program():
        a = numpyro.sample("a", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        numpyro.factor("half", jnp.where(a[0] > 0, -10 * jnp.sum((a - 1) ** 2), -jnp.inf))

    density = Density(pg.Model(program))
    points, found = jax.vmap(lambda key: find_start(key, density))(jax.random.split(jax.random.key(0), 50))
    assert found.all()
    assert (points[:, 0] > 0).all()
    values = jax.vmap(density.log_density)(points)
    assert np.isfinite(values).all()
    box = np.random.default_rng(0).uniform(-2, 2, (2000, 2))
    box = box[box[:, 0] > 0]
    assert np.median(values) > np.quantile(jax.vmap(density.log_density)(box), 0.7)
    assert TRIES >= 50


def correlated(y):
    b = numpyro.sample("b", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    x = jnp.stack([jnp.ones(30), jnp.linspace(99, 101, 30), jnp.linspace(0, 1, 30) ** 2], -1)
    numpyro.sample("y", dist.Normal(x @ b, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize("metric", ["low_rank", "dense"])
def test_19_draws_start_where_the_warm_up_ended(metric):
    """A chain that starts anew at an estimate of the mode shows it in its first draws."""
    y = np.random.default_rng(1).normal(size=30)
    u = pg.infer(pg.Model(correlated, {"y": y}), pg.NUTS(metric=metric), seed=4, draws=400, warmup=400, chains=4)
    b = u["posterior/b"].values
    assert (np.abs(b[:, :5] - b.mean((0, 1))) / b.std((0, 1))).max() < 6
    x = np.stack([np.ones(30), np.linspace(99, 101, 30), np.linspace(0, 1, 30) ** 2], -1)
    covariance = np.linalg.inv(x.T @ x / 0.25 + np.eye(3) / 1e4)
    mean = covariance @ x.T @ y / 0.25
    assert np.abs(z_scores(b, mean)).max() < 5
    assert np.abs(z_scores((b - mean) ** 2, np.diag(covariance))).max() < 5


def test_20_21_adaptation_is_jittable_and_keeps_nothing_per_step():
    """The largest array of the program does not grow with the warm-up, and all of it maps over keys."""
    density = Density(pg.Model(correlated, {"y": np.zeros(30)}))

    def largest(warmup):
        kernel = pg.NUTS(metric="low_rank").kernel(warmup)
        zero = jnp.zeros((), int)

        def chain(key):
            state, _ = begin(key, kernel, density, 1)
            return advance(key, kernel, density, state, zero, zero + warmup + 10, zero + warmup, 10, 1)

        return max(_sizes(jax.make_jaxpr(jax.vmap(chain))(jax.random.split(jax.random.key(0), 2)).jaxpr))

    assert largest(100_000) == largest(1000)


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


# -- 23, 25, 28 --------------------------------------------------------------------------------------------------------


def test_23_mclmc_says_what_it_cannot_do_in_one_dimension():
    model = pg.Model(normal_mean, {"y": np.ones(4)})
    before = compile_count()
    with pytest.raises(pg.MethodError, match="coordinate"):
        pg.infer(model, MCLMC(), **SHORT)
    assert compile_count() == before


def test_25_angles_do_not_stick_to_the_cut():
    def program():
        numpyro.sample("angle", dist.VonMises(3.1, 2.0))

    angle = pg.infer(pg.Model(program), pg.NUTS(), seed=5, **LONG)["posterior/angle"].values
    ratio = float(jax.scipy.special.i1(2.0) / jax.scipy.special.i0(2.0))
    assert abs(z_scores(np.cos(angle - 3.1), ratio)[0]) < 5
    assert abs(z_scores(np.sin(angle - 3.1), 0.0)[0]) < 5
    # The second trigonometric moment of a von Mises distribution is 1 - 2 ratio / kappa.
    assert abs(z_scores(np.cos(2 * (angle - 3.1)), 1 - ratio)[0]) < 5


def test_28_a_run_that_went_wrong_says_so():
    def program():
        a = numpyro.sample("a", dist.Normal(0.0, 50.0).expand([2]).to_event(1))
        modes = jnp.stack([-jnp.sum((a - 1.5) ** 2), -jnp.sum((a + 1.5) ** 2)])
        numpyro.factor("modes", 100 * jax.nn.logsumexp(modes))

    with pytest.warns(pg.ProbgenWarning, match="chains do not agree"):
        tree = pg.infer(pg.Model(program), pg.NUTS(), seed=0, draws=100, warmup=100, chains=4)
    assert tree.attrs["ended"] == pg.Ended.chains_disagree.name
