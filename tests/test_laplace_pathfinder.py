"""Laplace, Pathfinder and the importance weights that all approximations share, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

import probgen as pg
from probgen.infer.approximate import weigh
from probgen.infer.laplace import Laplace
from probgen.infer.pathfinder import FactoredNormal, Pathfinder
from probgen.run.compiled import compile_count

COV = np.array([[2.0, 0.9], [0.9, 1.0]])
Y = 1.0


def gaussian(y):
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), COV))
    numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)


def exact(y=Y):
    """Posterior mean and covariance, and log evidence, of ``gaussian``."""
    precision = np.linalg.inv(COV) + 4 * np.ones((2, 2))
    cov = np.linalg.inv(precision)
    return cov @ np.full(2, 4 * y), cov, scipy.stats.norm(0, np.sqrt(COV.sum() + 0.25)).logpdf(y)


def assert_moments(x, y=Y, z=5.0, count=None):
    """Mean and covariance of draws ``x``, shape ``(n, 2)``, are the exact ones within ``z`` standard errors."""
    mean, cov, _ = exact(y)
    count = count or len(x)
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), z * np.sqrt(np.diag(cov) / count))
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / count)
    np.testing.assert_array_less(np.abs(np.cov(x.T) - cov), z * spread)


def draws(tree, name="x"):
    return tree[f"posterior/{name}"].values.reshape(-1, *tree[f"posterior/{name}"].shape[2:])


@pytest.fixture(scope="module")
def model():
    return pg.Model(gaussian, {"y": Y})


@pytest.fixture(scope="module")
def laplace(model):
    return pg.infer(model, Laplace(), seed=1)


@pytest.fixture(scope="module")
def mixture_of_paths(model):
    return pg.infer(model, Pathfinder(resample=False), seed=1)


# -- weights
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.2, 1.0])
def test_pareto_k_is_that_of_pareto_weights(k):
    # k * Exp(1) is the log of a Pareto with shape 1/k. The fit sees 190 tail draws: standard error about (1 + k) /
    # sqrt(190).
    found = weigh(k * np.random.default_rng(0).standard_exponential(4000)).pareto_k
    assert abs(found - k) < 4 * (1 + k) / np.sqrt(190)


def test_weights_are_normalised_and_the_evidence_is_their_mean():
    raw = np.random.default_rng(1).normal(3.0, 0.5, 4000)
    weights = weigh(raw)
    assert np.logaddexp.reduce(weights.smoothed) == pytest.approx(0)
    assert weights.log_evidence == pytest.approx(scipy.special.logsumexp(raw) - np.log(4000))
    assert weights.log_evidence_se == pytest.approx(np.sqrt(np.expm1(0.25) / 4000), rel=0.1)
    assert weights.ess == pytest.approx(4000 / np.exp(0.25), rel=0.05)


def test_weights_that_are_equal_zero_or_few():
    assert weigh(np.full(1000, 2.0)).pareto_k == -np.inf
    assert weigh(np.full(1000, 2.0)).log_evidence == pytest.approx(2)
    half = np.where(np.arange(1000) % 2, 2.0, np.nan)
    assert weigh(half).log_evidence == pytest.approx(2 - np.log(2))
    assert weigh(half).ess == pytest.approx(500)
    assert np.isnan(weigh(np.zeros(10)).pareto_k)
    assert weigh(np.full(100, np.nan)).log_evidence == -np.inf


# -- Laplace
# -------------------------------------------------------------------------------------------------------------


def test_laplace_is_exact_on_a_gaussian(laplace):
    assert_moments(draws(laplace))
    attrs = laplace.attrs
    assert attrs["log_evidence"] == pytest.approx(exact()[2], abs=1e-8)
    assert attrs["log_evidence_importance"] == pytest.approx(exact()[2], abs=1e-8)
    assert attrs["ended"] == "completed"
    assert attrs["kind"] == "approximate"
    assert attrs["starts_at_mode"] == 4
    assert attrs["pareto_k"] < 0.5
    np.testing.assert_allclose(laplace["sample_stats/log_weight"], -np.log(4000))
    stats = laplace["sample_stats"]
    np.testing.assert_allclose(stats["lp"] - stats["log_q"], stats["log_weight_raw"])


def test_laplace_on_a_gamma_posterior_is_stirlings_formula():
    a, b, y = 3.0, 2.0, np.array([4.0, 2.0, 5.0, 3.0])

    def program(y):
        rate = numpyro.sample("rate", dist.Gamma(a, b))
        with numpyro.plate("i", len(y)):
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    tree = pg.infer(pg.Model(program, {"y": y}), Laplace(), draws=20_000, seed=0)
    count, shape, rate = 80_000, a + y.sum(), b + len(y)
    gamma = scipy.special.gammaln
    constant = a * np.log(b) - gamma(a) - gamma(y + 1).sum() - shape * np.log(rate)
    stirling = shape * np.log(shape) - shape + 0.5 * np.log(2 * np.pi / shape)
    assert tree.attrs["log_evidence"] == pytest.approx(constant + stirling, abs=1e-6)
    gap = tree.attrs["log_evidence_importance"] - (constant + gamma(shape))
    assert abs(gap) < 4 * tree.attrs["log_evidence_importance_se"]
    assert abs(stirling - gamma(shape)) > 4 * tree.attrs["log_evidence_importance_se"]  # the test can tell them apart
    weights, x = np.exp(tree["sample_stats/log_weight"].values.ravel()), draws(tree, "rate")
    assert weights @ x == pytest.approx(shape / rate, abs=5 * np.sqrt(shape) / rate / np.sqrt(count))
    u = np.log(x)  # the draws themselves follow N(log(shape / rate), 1 / shape)
    assert abs(u.mean() - np.log(shape / rate)) < 5 / np.sqrt(shape * count)
    assert u.var() == pytest.approx(1 / shape, rel=5 * np.sqrt(2 / count))


def test_laplace_warns_on_heavy_tails():
    def program():
        numpyro.sample("x", dist.Cauchy().expand([5]).to_event(1))

    with pytest.warns(pg.ProbgenWarning, match="k-hat"):
        tree = pg.infer(pg.Model(program), Laplace(), seed=0)
    assert tree.attrs["pareto_k"] > 0.7


def banana(y):
    a = numpyro.sample("a", dist.Normal(0.0, 10.0))
    b = numpyro.sample("b", dist.Normal(a**2, 0.01))
    numpyro.sample("y", dist.Normal(a + b, 0.1), obs=y)


def test_laplace_says_when_it_has_not_converged():
    with pytest.warns(pg.ProbgenWarning, match="before it had converged|k-hat") as caught:
        tree = pg.infer(pg.Model(banana, {"y": 20.0}), Laplace(max_steps=2, starts=1), seed=0)
    assert tree.attrs["ended"] == "not_converged"
    assert tree.attrs["newton_decrement"] > 1e-6
    assert any("before it had converged" in str(w.message) for w in caught)


def test_laplace_refuses_a_flat_direction_by_name():
    def program(y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    with pytest.raises(pg.MethodError, match=r"no Gaussian shape.*along [ab], [ab]"):
        pg.infer(pg.Model(program, {"y": 1.0}), Laplace(), seed=0)


def test_an_improper_prior_has_no_evidence():
    def program(y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    tree = pg.infer(pg.Model(program, {"y": 1.0}), Laplace(), seed=0)
    assert "log_evidence" not in tree.attrs
    assert tree["posterior/a"].values.mean() == pytest.approx(1, abs=5 / np.sqrt(4000))


# -- Pathfinder
# ----------------------------------------------------------------------------------------------------------


def test_factored_normal_is_its_dense_form():
    rng = np.random.default_rng(0)
    alpha, beta, gamma = rng.uniform(0.5, 2, 5), rng.normal(size=(5, 3)), 0.3 * np.eye(3)
    u, grad, x = rng.normal(size=(3, 5))
    cov = np.diag(alpha) + beta @ gamma @ beta.T
    normal = FactoredNormal.at(*map(jnp.asarray, (u, grad, alpha, beta, gamma)))
    dense = scipy.stats.multivariate_normal(u + cov @ grad, cov)
    assert normal.log_prob(x) == pytest.approx(dense.logpdf(x))
    root = jax.jacobian(normal.push)(jnp.zeros(5))
    np.testing.assert_allclose(root @ root.T, cov, atol=1e-10)
    np.testing.assert_allclose(normal.variance(), np.diag(cov))


def test_weighted_paths_have_the_moments_of_a_gaussian(mixture_of_paths):
    x = draws(mixture_of_paths)
    weights = np.exp(mixture_of_paths["sample_stats/log_weight"].values.ravel())
    mean, cov, log_evidence = exact()
    centred = x - mean
    np.testing.assert_array_less(np.abs(weights @ centred), 5 * np.sqrt(np.diag(cov) / 4000))
    found = (weights[:, None] * centred).T @ centred
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 4000)
    np.testing.assert_array_less(np.abs(found - cov), 5 * spread)
    attrs = mixture_of_paths.attrs
    assert abs(attrs["log_evidence"] - log_evidence) < 5 * attrs["log_evidence_se"] + 1e-9
    assert attrs["pareto_k"] < 0.5


def test_resampled_paths_have_the_moments_of_a_gaussian(model):
    tree = pg.infer(model, Pathfinder(), seed=2)
    # Resampling n of n adds about as much variance again as the draws have.
    assert_moments(draws(tree), count=2000)
    assert "log_weight" not in tree["sample_stats"]
    assert 1000 < tree.attrs["unique_draws"] < 4000
    trace = tree["optimization/elbo"]
    assert trace.sizes["path"] == 4
    np.testing.assert_allclose(trace.max("step"), tree["optimization/best_elbo"])
    # An ELBO estimate from 64 draws; the best of a few candidates is chosen, and so a little high.
    assert tree.attrs["elbo"] == pytest.approx(exact()[2], abs=0.2)


def test_modes_keep_their_mass_however_many_paths_found_them():
    def program():
        parts = dist.Normal(jnp.array([-3.0, 3.0]), 0.3)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.2, 0.8])), parts))

    tree = pg.infer(pg.Model(program), Pathfinder(paths=6), seed=0)
    share = (draws(tree) > 0).mean()
    assert abs(share - 0.8) < 5 * np.sqrt(0.16 / 1500)
    assert abs(tree.attrs["log_evidence"]) < 5 * tree.attrs["log_evidence_se"] + 1e-3


def test_pathfinder_says_when_it_has_not_converged():
    with pytest.warns(pg.ProbgenWarning) as caught:
        tree = pg.infer(pg.Model(banana, {"y": 20.0}), Pathfinder(max_steps=2, paths=1), seed=0)
    assert tree.attrs["ended"] == "not_converged"
    assert any("before it had converged" in str(w.message) for w in caught)


# -- both
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Laplace(), Pathfinder(resample=False)], ids=["laplace", "pathfinder"])
def test_a_second_fit_compiles_nothing_and_sees_the_new_data(model, laplace, mixture_of_paths, method):
    before = compile_count()
    tree = pg.infer(model.with_data(y=-3.0), method, seed=5)
    assert compile_count() == before
    mean = exact(-3.0)[0]
    weights = np.exp(tree["sample_stats/log_weight"].values.ravel())
    np.testing.assert_array_less(np.abs(weights @ draws(tree) - mean), 5 * np.sqrt(np.diag(exact()[1]) / 4000))


def test_same_seed_same_draws(model, laplace):
    again = pg.infer(model, Laplace(), seed=1, progress=True)
    np.testing.assert_array_equal(again["posterior/x"], laplace["posterior/x"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Laplace(starts=0), "starts must be at least 1, got 0"),
        (Laplace(max_steps=0), "max_steps"),
        (Laplace(tolerance=-1.0), "tolerance"),
        (Laplace(backend="numpyro"), "backend 'numpyro' does not serve Laplace"),
        (Pathfinder(paths=0), "paths"),
        (Pathfinder(history=0), "history"),
        (Pathfinder(tolerance=0.0), "tolerance"),
    ],
)
def test_settings_are_checked(model, method, message):
    with pytest.raises(pg.MethodError, match=message):
        pg.infer(model, method)


@pytest.mark.parametrize("method", [Laplace(), Pathfinder()])
def test_there_is_no_warm_up_to_keep(model, method):
    with pytest.raises(pg.MethodError, match="keep_warmup"):
        pg.infer(model, method, keep_warmup=True)
