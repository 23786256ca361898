"""SVI against closed forms: moments, bounds, weights; and that convergence is judged."""

import itertools
import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.special
import scipy.stats
from numpyro.infer.autoguide import AutoNormal

import probgen as pg
from probgen.infer.guides import BNAF, ELBO, IAF, IWAE, FullRank, LowRank, MeanField, Renyi
from probgen.infer.svi import SVI, Judge
from probgen.run.compiled import compile_count

COV = np.array([[2.0, 0.9], [0.9, 1.0]])
Y = 1.0
COUNT = 4000
TOLERANCE = 0.01
"""Nats that the judge lets a fit lack."""


def gaussian(y):
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), COV))
    numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)


PRECISION = np.linalg.inv(COV) + 4 * np.ones((2, 2))
POSTERIOR = np.linalg.inv(PRECISION)
LOG_Z = scipy.stats.norm(0, np.sqrt(COV.sum() + 0.25)).logpdf(Y)
GAP = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
"""Divergence of the best mean-field normal from the posterior."""


def mean(y=Y):
    return POSTERIOR @ np.full(2, 4 * y)


def draws(tree):
    return tree["posterior/x"].values.reshape(COUNT, 2)


def assert_bound(tree, name, expected):
    """A bound is what it should be: not above, by Monte Carlo error; not below by more than the judge allows."""
    value, se = tree.attrs[name], tree.attrs[f"{name}_se"]
    assert expected - TOLERANCE - 5 * se < value < expected + 5 * se + 1e-9


@pytest.fixture(scope="module")
def model():
    return pg.Model(gaussian, {"y": Y})


# Log weights of the best mean-field normal are quadratic in normals: k is the correlation of the precision, 0.62, and
# estimates scatter around 0.7.
K = abs(PRECISION[0, 1]) / np.sqrt(PRECISION[0, 0] * PRECISION[1, 1])
near_the_limit = pytest.mark.filterwarnings("ignore:Pareto k-hat")


@pytest.fixture(scope="module")
def mean_field(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pg.ProbgenWarning)
        return pg.infer(model, SVI(), seed=0)


@pytest.fixture(scope="module")
def full_rank(model):
    return pg.infer(model, SVI(guide=FullRank()), seed=0)


# -- guides on a Gaussian
# ------------------------------------------------------------------------------------------------


def assert_is_the_posterior(tree):
    x = draws(tree)
    # KL <= 0.01 nats leaves the mean within sqrt(2 * 0.01) = 0.14 and a scale within 0.1 standard deviations; the
    # fits come much nearer.
    sd = np.sqrt(np.diag(POSTERIOR))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean()), (0.14 + 5 / np.sqrt(COUNT)) * sd)
    scale = np.outer(sd, sd)
    np.testing.assert_array_less(np.abs(np.cov(x.T) - POSTERIOR), (0.2 + 5 * np.sqrt(2 / COUNT)) * scale)
    weights = np.exp(tree["sample_stats/log_weight"].values.ravel())
    centred = x - mean()
    np.testing.assert_array_less(np.abs(weights @ centred), 5 * sd / np.sqrt(COUNT))
    found = (weights[:, None] * centred).T @ centred
    np.testing.assert_array_less(np.abs(found - POSTERIOR), 5 * np.sqrt(2 / COUNT) * scale)
    assert_bound(tree, "elbo", LOG_Z)
    assert abs(tree.attrs["log_evidence"] - LOG_Z) < 5 * tree.attrs["log_evidence_se"] + 1e-9
    assert tree.attrs["ended"] == "completed"


def test_full_rank_is_exact_on_a_gaussian(full_rank):
    assert_is_the_posterior(full_rank)
    assert full_rank.attrs["pareto_k"] < 0.5
    assert full_rank.attrs["kind"] == "approximate"


def test_mean_field_has_the_conditional_variances(mean_field):
    x = draws(mean_field)
    sd = 1 / np.sqrt(np.diag(PRECISION))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean()), (0.14 + 5 / np.sqrt(COUNT)) * sd)
    # 1 / precision, and not the marginal variance, which is 1.6 times as large.
    assert np.all(np.diag(POSTERIOR) > 1.6 * sd**2)
    np.testing.assert_allclose(x.var(0), sd**2, rtol=0.2 + 5 * np.sqrt(2 / COUNT))
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(COUNT)
    assert_bound(mean_field, "elbo", LOG_Z - GAP)
    assert abs(mean_field.attrs["pareto_k"] - K) < 4 * (1 + K) / np.sqrt(190)


@pytest.mark.slow
@pytest.mark.parametrize("guide", [LowRank(1)], ids=["low rank"])
def test_richer_guides_on_a_gaussian(model, guide):
    assert_is_the_posterior(pg.infer(model, SVI(guide=guide), seed=0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")  # tails of flows differ: weights may warn
@pytest.mark.parametrize("guide", [IAF(), BNAF()], ids=["iaf", "bnaf"])
def test_flows_on_a_gaussian(model, guide):
    tree = pg.infer(model, SVI(guide=guide), seed=0)
    sd = np.sqrt(np.diag(POSTERIOR))
    np.testing.assert_array_less(np.abs(draws(tree).mean(0) - mean()), (0.14 + 5 / np.sqrt(COUNT)) * sd)
    assert tree.attrs["elbo"] == pytest.approx(LOG_Z, abs=2 * TOLERANCE)


def test_the_trace_is_kept(mean_field):
    trace = mean_field["optimization"]
    assert trace["objective"].sizes == {"step": mean_field.attrs["steps"]}
    assert np.isfinite(trace["objective"]).all()
    assert len(np.unique(trace["learning_rate"])) >= 3
    assert trace["objective"][-250:].mean() == pytest.approx(LOG_Z - GAP, abs=0.1)


# -- objectives
# ----------------------------------------------------------------------------------------------------------


@near_the_limit
def test_importance_weighted_bounds_tighten_and_stay_below_the_evidence(model, mean_field):
    ladder = [(mean_field.attrs["elbo"], mean_field.attrs["elbo_se"])]
    for samples in (4, 32):
        attrs = pg.infer(model, SVI(objective=IWAE(samples)), seed=0).attrs
        assert attrs["elbo"] < attrs["bound"]
        ladder.append((attrs["bound"], attrs["bound_se"]))
    for (low, low_se), (high, high_se) in itertools.pairwise(ladder):
        assert high - low > 2 * np.hypot(low_se, high_se)
    assert ladder[-1][0] < LOG_Z + 4 * ladder[-1][1]


@pytest.mark.slow
def test_renyis_bound_lies_between_the_elbo_and_the_evidence(model, mean_field):
    attrs = pg.infer(model, SVI(objective=Renyi(0.5)), seed=0).attrs
    assert mean_field.attrs["elbo"] + 3 * mean_field.attrs["elbo_se"] < attrs["bound"] < LOG_Z + 4 * attrs["bound_se"]


# -- convergence
# ---------------------------------------------------------------------------------------------------------


def test_too_few_steps_are_not_converged(model):
    with pytest.warns(pg.ProbgenWarning) as caught:
        tree = pg.infer(model, SVI(steps=300), seed=0)
    assert any("before it had converged" in str(w.message) for w in caught)
    assert tree.attrs["ended"] == "not_converged"
    assert tree["optimization/objective"].sizes["step"] == 300


def judged(objective, window=250):
    judge = Judge(window, 0.01)
    for block in objective.reshape(-1, window):
        judge.add(block)
    return judge


def test_the_judge_ends_noise_and_not_a_climb():
    noise = np.random.default_rng(0).normal(size=50_000)
    assert judged(noise).converged
    assert judged(noise).rate == 0.25**2
    assert not judged(noise + np.arange(50_000) * 1e-2).converged
    assert judged(noise + np.arange(50_000) * 1e-2).rate == 1
    assert not judged(np.full(50_000, np.nan)).converged


def test_the_judge_goes_on_where_a_lower_rate_helps():
    rng = np.random.default_rng(0)
    judge, levels = Judge(250, 0.01), {}
    for _ in range(4000):
        # Every rate down to 4^-5 gains half a nat.
        level = 0.5 * min(round(-np.log2(judge.rate) / 2), 5)
        levels[judge.rate] = level
        judge.add(level + 0.1 * rng.normal(size=250))
    assert judge.converged
    assert min(levels) == 0.25**6


# -- weights, programs, data
# ---------------------------------------------------------------------------------------------


def banana():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(2 * a**2, 0.3))


def test_a_guide_that_is_far_off_warns():
    with pytest.warns(pg.ProbgenWarning, match="k-hat"):
        tree = pg.infer(pg.Model(banana), SVI(), seed=0)
    assert tree.attrs["pareto_k"] > 0.7
    assert tree.attrs["elbo"] < -10 * tree.attrs["elbo_se"]  # log evidence is 0


@near_the_limit
def test_values_follow_supports_that_depend_on_values():
    def program(y):
        low = numpyro.sample("low", dist.Normal())
        x = numpyro.sample("x", dist.Uniform(low, low + 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)

    posterior = pg.infer(pg.Model(program, {"y": [0.2, 0.4, 0.6]}), SVI(guide=FullRank()), seed=0)["posterior"]
    inside = (posterior["x"] > posterior["low"]) & (posterior["x"] < posterior["low"] + 1)
    assert bool(inside.all())


def counts(y):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    with numpyro.plate("i", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)
    numpyro.deterministic("double", 2 * rate)


def gamma_guide(y):
    shape = numpyro.param("shape", 1.0, constraint=dist.constraints.positive)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("rate", dist.Gamma(shape, 1 / scale))


def test_an_own_guide_that_holds_the_posterior_finds_it():
    y = np.array([4.0, 2.0, 5.0, 3.0])
    tree = pg.infer(pg.Model(counts, {"y": y}), SVI(guide=gamma_guide, learning_rate=0.05), seed=0)
    shape, rate = 3 + y.sum(), 2 + len(y)
    gamma = scipy.special.gammaln
    log_z = 3 * np.log(2) - gamma(3) - gamma(y + 1).sum() - shape * np.log(rate) + gamma(shape)
    assert_bound(tree, "elbo", log_z)
    assert abs(tree.attrs["log_evidence"] - log_z) < 5 * tree.attrs["log_evidence_se"] + 1e-9
    x = tree["posterior/rate"].values.ravel()
    weights = np.exp(tree["sample_stats/log_weight"].values.ravel())
    sd = np.sqrt(shape) / rate
    assert abs(weights @ x - shape / rate) < 5 * sd / np.sqrt(COUNT)
    assert abs(weights @ (x - shape / rate) ** 2 - sd**2) < 5 * sd**2 * np.sqrt((2 + 6 / shape) / COUNT)
    np.testing.assert_allclose(tree["posterior/double"].values.ravel(), 2 * x)


def test_params_of_the_program_are_optimised():
    y = np.random.default_rng(0).normal(0, np.sqrt(5), 20)

    def program(y):
        tau = numpyro.param("tau", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("i", len(y)):
            x = numpyro.sample("x", dist.Normal(0.0, tau))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    model = pg.Model(program, {"y": y})
    tree = pg.infer(model, SVI(), seed=0)
    best = np.sqrt(np.mean(y**2) - 1)  # the marginal likelihood is N(y; 0, 1 + tau^2)
    tau = float(tree["params/tau"])
    marginal = scipy.stats.norm(0, np.sqrt(1 + tau**2)).logpdf(y).sum()
    # A mean-field normal is exact here, so what the judge may leave is a loss of marginal likelihood.
    assert scipy.stats.norm(0, np.sqrt(1 + best**2)).logpdf(y).sum() - marginal < TOLERANCE
    assert_bound(tree, "elbo", marginal)
    shrunk = y * tau**2 / (1 + tau**2)
    sd = tau / np.sqrt(1 + tau**2)
    x = tree["posterior/x"].values.reshape(COUNT, -1)
    np.testing.assert_array_less(np.abs(x.mean(0) - shrunk), (0.14 + 5 / np.sqrt(COUNT)) * sd)
    np.testing.assert_allclose(tree["posterior/tau"], tau)
    with pytest.raises(pg.MethodError, match=r"'tau' is a numpyro\.param"):
        pg.infer(model, pg.NUTS())


def minibatch(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("i", len(y), subsample_size=20) as rows:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def test_minibatches_give_the_posterior_of_all_data():
    y = np.random.default_rng(0).normal(3.0, 1.0, 200)
    tree = pg.infer(pg.Model(minibatch, {"y": y}), SVI(), seed=0)
    precision = 1 / 100 + len(y)
    mu = tree["posterior/mu"].values
    sd = precision**-0.5
    # With 20 rows only and no scaling the sd would be 3.2 times as large.
    assert abs(mu.mean() - y.sum() / precision) < (0.3 + 5 / np.sqrt(COUNT)) * sd
    assert mu.std() == pytest.approx(sd, rel=0.15 + 5 / np.sqrt(2 * COUNT))
    log_z = scipy.stats.multivariate_normal(np.zeros(200), np.eye(200) + 100).logpdf(y)
    assert abs(tree.attrs["elbo"] - log_z) < 5 * tree.attrs["elbo_se"] + 0.1
    assert "pareto_k" not in tree.attrs
    assert "mini-batches" in tree.attrs["approximate"]


def test_a_latent_site_in_a_minibatch_is_refused():
    def program(y):
        with numpyro.plate("i", len(y), subsample_size=2) as rows:
            x = numpyro.sample("x", dist.Normal())
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y[rows])

    with pytest.raises(pg.MethodError, match="'x' is latent in the plate 'i'"):
        pg.infer(pg.Model(program, {"y": np.zeros(10)}), SVI())


@near_the_limit
@pytest.mark.parametrize(
    "guide", [MeanField(), pytest.param(FullRank(), marks=pytest.mark.slow)], ids=["mean field", "full rank"]
)
def test_a_second_fit_compiles_nothing_and_sees_the_new_data(model, mean_field, full_rank, guide):
    before = compile_count()
    tree = pg.infer(model.with_data(y=-3.0), SVI(guide=guide), seed=3)
    assert compile_count() == before
    sd = np.sqrt(np.diag(POSTERIOR))
    np.testing.assert_array_less(np.abs(draws(tree).mean(0) - mean(-3.0)), (0.14 + 5 / np.sqrt(COUNT)) * sd)


@near_the_limit
def test_same_seed_same_draws(model, mean_field):
    again = pg.infer(model, SVI(), seed=0, progress=True)
    np.testing.assert_array_equal(again["posterior/x"], mean_field["posterior/x"])


# -- bad settings
# --------------------------------------------------------------------------------------------------------


def wrong_name(y):
    numpyro.sample("rates", dist.Gamma(1.0, 1.0))


def nothing(y):
    pass


def wrong_shape(y):
    numpyro.sample("rate", dist.Gamma(jnp.ones(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SVI(guide=AutoNormal(counts)), "AutoNormal, which keeps the supports"),
        (SVI(guide=MeanField), "guide must be a guide object"),
        (SVI(guide=LowRank(2)), "rank must be from 1 to the dimension 1, got 2"),
        (SVI(guide=IAF()), "one coordinate"),
        (SVI(guide=BNAF()), "one coordinate"),
        (SVI(guide=wrong_name), "the guide samples 'rates'.*Did you mean 'rate'"),
        (SVI(guide=nothing), "does not sample the latent site 'rate'"),
        (SVI(guide=wrong_shape), r"with shape \(2,\), but the site has shape \(\)"),
        (SVI(objective=ELBO(0)), "samples must be an int of at least 1"),
        (SVI(objective=Renyi(1.0)), "alpha must be at least 0 and not 1"),
        (SVI(objective="elbo"), "objective must be an objective object"),
        (SVI(optimizer=optax.adam(0.1)), r"Pass optax.adam, not optax.adam\(0.01\)"),
        (SVI(learning_rate=0.0), "learning_rate must be positive"),
        (SVI(steps=0), "steps must be at least 1"),
        (SVI(window=10), "window must be at least 100"),
        (SVI(backend="blackjax"), "does not serve SVI"),
    ],
)
def test_settings_are_checked(method, message):
    with pytest.raises(pg.MethodError, match=message):
        pg.infer(pg.Model(counts, {"y": [1.0, 2.0]}), method)


@pytest.mark.parametrize(
    "method", [pg.Laplace(), pytest.param(pg.SVI(steps=2000), marks=pytest.mark.slow)], ids=lambda m: m.name
)
@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_discrete_sites_are_drawn_back(method):
    def program(y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(mu + 4.0 * z, 1.0), obs=y)

    tree = pg.infer(pg.Model(program, {"y": np.array([0.0, 2.0, 4.0])}), method, draws=500, chains=4)
    z, mu = tree["posterior/z"].values, tree["posterior/mu"].values[..., None]
    y = np.array([0.0, 2.0, 4.0])
    odds = np.exp(-0.5 * (y - mu - 4) ** 2 + 0.5 * (y - mu) ** 2)
    expected = odds / (1 + odds)  # of z given mu, draw by draw
    error = np.sqrt((expected * (1 - expected)).mean((0, 1)) / z[..., 0].size)
    assert (np.abs((z - expected).mean((0, 1))) < 4.5 * error).all()
