"""Closed forms: against textbook posteriors, enumeration and integration; near misses are refused by name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import integrate, stats
from scipy.special import betaln, gammaln, logsumexp

import probgen as pg
from probgen.infer.choose import choose
from probgen.infer.exact import Exact
from probgen.infer.nuts import NUTS
from probgen.program.degree import Degree, dependences
from probgen.run.compiled import compile_count

DRAWS = {"draws": 2000, "chains": 2}
N = 4000


def z_of_mean(draws, mean, sd):
    """z-score of the average of independent draws."""
    return np.abs(np.mean(draws, 0) - mean) / (sd / np.sqrt(len(draws)))


def flat(tree, name):
    values = tree["posterior"][name].values
    return values.reshape(-1, *values.shape[2:])


# -- finite discrete programs ----------------------------------------------------------------------------------------


def coins(y):
    """A hidden cause, two dependent switches in a plate, and noise that depends on all of them."""
    cause = numpyro.sample("cause", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    with numpyro.plate("switch", 2):
        on = numpyro.sample("on", dist.Bernoulli(jnp.array([0.1, 0.4, 0.8])[cause]))
    count = numpyro.sample("count", dist.Binomial(3, 0.5))
    numpyro.sample("y", dist.StudentT(3.0, cause + 2.0 * on.sum() - count, 1.0), obs=y)


@pytest.fixture(scope="module")
def coins_tree():
    return pg.infer(pg.Model(coins, {"y": 1.3}), Exact(), seed=1, **DRAWS)


def coins_by_hand():
    states = list(itertools.product(range(3), range(2), range(2), range(4)))
    p_on, p_cause = [0.1, 0.4, 0.8], [0.2, 0.5, 0.3]
    log_p = [
        np.log(p_cause[c])
        + stats.bernoulli.logpmf([a, b], p_on[c]).sum()
        + stats.binom.logpmf(k, 3, 0.5)
        + stats.t.logpdf(1.3, 3, c + 2 * (a + b) - k)
        for c, a, b, k in states
    ]
    return np.array(states), np.array(log_p)


def test_enumeration_equals_a_sum_by_hand(coins_tree):
    states, log_p = coins_by_hand()
    assert coins_tree.attrs["log_evidence"] == pytest.approx(logsumexp(log_p), abs=1e-10)
    assert coins_tree.attrs["log_evidence_se"] == 0
    p = np.exp(log_p - logsumexp(log_p))
    exact = coins_tree["exact"]

    def marginal(column, size):
        return [p[states[:, column] == v].sum() for v in range(size)]

    np.testing.assert_allclose(exact["cause_probability"], marginal(0, 3), atol=1e-12)
    np.testing.assert_allclose(exact["on_probability"], [marginal(1, 2), marginal(2, 2)], atol=1e-12)
    np.testing.assert_allclose(exact["count_probability"], marginal(3, 4), atol=1e-12)
    assert exact["on_probability"].dims == ("switch", "on_state")


def test_draws_of_discrete_sites_have_the_joint_law(coins_tree):
    states, log_p = coins_by_hand()
    p = np.exp(log_p - logsumexp(log_p))
    on = flat(coins_tree, "on")
    drawn = np.stack([flat(coins_tree, "cause"), on[:, 0], on[:, 1], flat(coins_tree, "count")], -1)
    counts = np.array([(drawn == state).all(1).sum() for state in states])
    likely = p * N > 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = N * np.append(p[likely], p[~likely].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    np.testing.assert_allclose(
        coins_tree["sample_stats/lp"].values.reshape(-1)[:5],
        [log_p[(states == d).all(1)][0] for d in drawn[:5]],
        rtol=1e-10,
    )


def test_a_hidden_markov_chain_in_scan():
    rng = np.random.default_rng(0)
    y, move = rng.normal(size=6), np.array([[0.9, 0.1], [0.3, 0.7]])

    def program(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(move)[z]))
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    tree = pg.infer(pg.Model(program, {"y": y}), Exact(), draws=50, chains=1)
    alpha = np.array([1.0, 0.0])
    for value in y:
        alpha = alpha @ move * stats.norm.pdf(value, [0, 2], 1)
    assert tree.attrs["log_evidence"] == pytest.approx(np.log(alpha.sum()), abs=1e-10)
    last = tree["exact/z_probability"].values[-1]
    np.testing.assert_allclose(last, alpha / alpha.sum(), atol=1e-12)


def test_too_many_states_are_refused():
    def program(y):
        with numpyro.plate("i", 12):
            numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=y)

    with pytest.raises(pg.MethodError, match="'z' stands in a block of 4096 joint states, more than max_states=100"):
        pg.infer(pg.Model(program, {"y": np.zeros(12)}), Exact(max_states=100))


# -- Gaussian programs -----------------------------------------------------------------------------------------------


def kalman(y):
    level = numpyro.sample("level", dist.Normal(10.0, 2.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x + 0.1 * level, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y)
        return x, x

    _, x = scan(step, jnp.zeros(()), y)
    numpyro.deterministic("last", x[-1])


def test_a_linear_state_space_model_with_an_unknown_level():
    steps = 8
    y = np.random.default_rng(1).normal(size=steps)
    tree = pg.infer(pg.Model(kalman, {"y": y}), Exact(), seed=0, **DRAWS)
    # x = level * a + E eps, by hand.
    powers = np.array([[0.9 ** (i - j) if j <= i else 0.0 for j in range(steps)] for i in range(steps)])
    a = powers @ np.full(steps, 0.1)
    prior_mean = np.append(10.0, 10 * a)
    root = np.block([[np.array([[2.0]]), np.zeros((1, steps))], [2 * a[:, None], 0.5 * powers]])
    prior_cov = root @ root.T
    observe = np.hstack([np.zeros((steps, 1)), np.eye(steps)])
    marginal = observe @ prior_cov @ observe.T + 0.09 * np.eye(steps)
    gain = prior_cov @ observe.T @ np.linalg.inv(marginal)
    mean = prior_mean + gain @ (y - observe @ prior_mean)
    cov = prior_cov - gain @ observe @ prior_cov
    assert tree.attrs["log_evidence"] == pytest.approx(
        stats.multivariate_normal(observe @ prior_mean, marginal).logpdf(y), abs=1e-9
    )
    exact = tree["exact"]
    np.testing.assert_allclose(np.append(exact["level_mean"], exact["x_mean"]), mean, atol=1e-9)
    np.testing.assert_allclose(np.append(exact["level_sd"], exact["x_sd"]), np.sqrt(np.diag(cov)), atol=1e-9)
    draws = np.column_stack([flat(tree, "level"), flat(tree, "x")])
    sd = np.sqrt(np.diag(cov))
    assert z_of_mean(draws, mean, sd).max() < 4.5
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    spread = np.sqrt(np.outer(sd, sd) ** 2 + cov**2)
    assert z_of_mean(products, cov, spread).max() < 5
    np.testing.assert_array_equal(flat(tree, "last"), flat(tree, "x")[:, -1])
    chains = tree["posterior/level"].values
    assert abs(np.corrcoef(chains[0], chains[1])[0, 1]) < 4.5 / np.sqrt(2000)


def test_regression_with_multivariate_prior_and_missing_outcomes():
    rng = np.random.default_rng(2)
    x, prior_cov = rng.normal(size=(7, 2)), np.array([[2.0, 0.5], [0.5, 1.0]])
    y, seen = rng.normal(size=7), np.array([True, True, False, True, True, False, True])

    def program(x, y, seen):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), prior_cov))
        with numpyro.plate("row", 7):
            numpyro.sample("y", dist.Normal(x @ b, 0.7), obs=y, obs_mask=seen)

    tree = pg.infer(pg.Model(program, {"x": x, "y": y, "seen": seen}), Exact(), draws=10, chains=1)
    kept = x[seen]
    marginal = kept @ prior_cov @ kept.T + 0.49 * np.eye(len(kept))
    assert tree.attrs["log_evidence"] == pytest.approx(
        stats.multivariate_normal(np.zeros(len(kept)), marginal).logpdf(y[seen]), abs=1e-9
    )
    precision = np.linalg.inv(prior_cov) + kept.T @ kept / 0.49
    np.testing.assert_allclose(tree["exact/b_covariance"], np.linalg.inv(precision), atol=1e-10)


def test_a_mean_far_from_zero_keeps_its_digits():
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(1e6, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1e-3).expand([3]).to_event(1), obs=y)

    y = 1e6 + np.array([0.1, 0.2, 0.3])
    tree = pg.infer(pg.Model(program, {"y": y}), Exact(), draws=10, chains=1)
    marginal = stats.multivariate_normal(np.full(3, 0.0), np.eye(3) * 1e-6 + 1.0)
    assert tree.attrs["log_evidence"] == pytest.approx(marginal.logpdf(y - 1e6), rel=1e-6)
    assert tree["exact/mu_mean"].item() == pytest.approx(1e6 + 0.6e6 / (3e6 + 1), abs=1e-8)


def test_regression_with_unknown_noise():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10, 2))
    y = x @ [1.0, 2.0] + rng.normal(size=10)

    def program(x, y):
        variance = numpyro.sample("variance", dist.InverseGamma(3.0, 2.0))
        b = numpyro.sample("b", dist.Normal(0.5, 2 * jnp.sqrt(variance)).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ b, jnp.sqrt(variance)).to_event(1), obs=y)

    tree = pg.infer(pg.Model(program, {"x": x, "y": y}), Exact(), seed=4, **DRAWS)
    shape = (np.eye(10) + 4 * x @ x.T) * 2 / 3
    assert tree.attrs["log_evidence"] == pytest.approx(
        stats.multivariate_t(x @ [0.5, 0.5], shape, df=6).logpdf(y), abs=1e-9
    )
    precision = x.T @ x + np.eye(2) / 4
    mean = np.linalg.solve(precision, x.T @ y + 0.5 / 4)
    rate = 2 + 0.5 * (y @ y + 2 * 0.25 / 4 - mean @ precision @ mean)
    assert tree["exact/variance_concentration"].item() == pytest.approx(8.0, abs=1e-8)
    assert tree["exact/variance_rate"].item() == pytest.approx(rate, abs=1e-8)
    np.testing.assert_allclose(tree["exact/b_mean"], mean, atol=1e-9)
    np.testing.assert_allclose(tree["exact/b_unit_covariance"], np.linalg.inv(precision), atol=1e-9)
    # Marginally, b is Student-t with 16 degrees of freedom, and precision-weighted deviations are F.
    b, variance = flat(tree, "b"), flat(tree, "variance")
    assert stats.kstest(variance, stats.invgamma(8, scale=rate).cdf).pvalue > 1e-4
    spread = np.sqrt(np.diag(np.linalg.inv(precision)) * rate / 8)
    for i in range(2):
        assert stats.kstest((b[:, i] - mean[i]) / spread[i], stats.t(16).cdf).pvalue > 1e-4


# -- conjugate programs ----------------------------------------------------------------------------------------------


def many_pairs(y, group, n, exposure, x, w, v):
    p = numpyro.sample("p", dist.Beta(2.0, 3.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(p[group]).to_event(1), obs=y)
    fair = numpyro.sample("fair", dist.Uniform(0.0, 1.0))
    numpyro.sample("w", dist.Binomial(20, fair), obs=w)
    with numpyro.plate("cell", 4):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("n", dist.Poisson(rate * exposure), obs=n)
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    with numpyro.plate("row", 5):
        numpyro.sample("x", dist.Categorical(shares), obs=x)
    variance = numpyro.sample("variance", dist.InverseGamma(4.0, 3.0))
    numpyro.sample("v", dist.Normal(1.0, jnp.sqrt(variance)).expand([3]).to_event(1), obs=v)


PAIRS = {
    "y": [0, 1, 1, 0, 1],
    "group": [0, 1, 1, 2, 0],
    "n": [3, 0, 8, 100],
    "exposure": [1.0, 2.0, 1e6, 30.0],
    "x": [0, 1, 1, 1, 0],
    "w": np.array(7),
    "v": [0.3, 1.9, -0.5],
}


@pytest.fixture(scope="module")
def pairs_tree():
    return pg.infer(pg.Model(many_pairs, PAIRS), Exact(), seed=5, **DRAWS)


def test_conjugate_posteriors_are_those_of_the_textbook(pairs_tree):
    exact = pairs_tree["exact"]
    np.testing.assert_allclose(exact["p_concentration1"], [3, 4, 2], rtol=1e-9)
    np.testing.assert_allclose(exact["p_concentration0"], [4, 3, 4], rtol=1e-9)
    np.testing.assert_allclose([exact["fair_concentration1"], exact["fair_concentration0"]], [8, 14], rtol=1e-9)
    np.testing.assert_allclose(exact["rate_concentration"], [5, 2, 10, 102], rtol=1e-8)
    np.testing.assert_allclose(exact["rate_rate"], [2, 3, 1e6 + 1, 31], rtol=1e-9)
    np.testing.assert_allclose(exact["shares_concentration"], [3, 5, 3], rtol=1e-9)
    np.testing.assert_allclose(exact["variance_concentration"], 5.5, rtol=1e-9)
    np.testing.assert_allclose(exact["variance_rate"], 3 + 0.5 * (0.49 + 0.81 + 2.25), rtol=1e-9)
    assert exact["rate_rate"].dims == ("cell",)


def test_conjugate_evidence_is_the_product_of_the_marginals(pairs_tree):
    log_z = sum(betaln(a, b) - betaln(2, 3) for a, b in [(3, 4), (4, 3), (2, 4)])
    log_z += stats.betabinom.logpmf(7, 20, 1, 1)
    log_z += sum(stats.nbinom.logpmf(n, 2, 1 / (1 + e)) for n, e in zip(PAIRS["n"], PAIRS["exposure"], strict=True))
    log_z += gammaln(6) - gammaln(11) + sum(gammaln(a) - gammaln(b) for a, b in [(3, 1), (5, 2), (3, 3)])
    log_z += stats.multivariate_t(np.ones(3), np.eye(3) * 3 / 4, df=8).logpdf(PAIRS["v"])
    assert pairs_tree.attrs["log_evidence"] == pytest.approx(log_z, rel=1e-9)


def test_conjugate_draws(pairs_tree):
    laws = {
        "fair": stats.beta(8, 14),
        "variance": stats.invgamma(5.5, scale=3 + 0.5 * 3.55),
    }
    for name, law in laws.items():
        assert stats.kstest(flat(pairs_tree, name), law.cdf).pvalue > 1e-4
    for i, (a, b) in enumerate([(3, 4), (4, 3), (2, 4)]):
        assert stats.kstest(flat(pairs_tree, "p")[:, i], stats.beta(a, b).cdf).pvalue > 1e-4
    for i, (a, b) in enumerate([(5, 2), (2, 3), (10, 1e6 + 1), (102, 31)]):
        assert stats.kstest(flat(pairs_tree, "rate")[:, i], stats.gamma(a, scale=1 / b).cdf).pvalue > 1e-4
    for i, a in enumerate([3, 5, 3]):
        assert stats.kstest(flat(pairs_tree, "shares")[:, i], stats.beta(a, 11 - a).cdf).pvalue > 1e-4


def test_evidence_against_numerical_integration():
    def program(y):
        p = numpyro.sample("p", dist.Beta(1.5, 2.5))
        numpyro.sample("y", dist.NegativeBinomialProbs(4.0, p), obs=y)

    tree = pg.infer(pg.Model(program, {"y": 6}), Exact(), draws=10, chains=1)

    def integrand(p):
        return stats.beta.pdf(p, 1.5, 2.5) * stats.nbinom.pmf(6, 4, 1 - p)

    assert tree.attrs["log_evidence"] == pytest.approx(np.log(integrate.quad(integrand, 0, 1)[0]), abs=1e-7)


def test_blocks_of_several_kinds_in_one_program():
    def program(y, n, o):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        rate = numpyro.sample("rate", dist.Exponential(2.0))
        numpyro.sample("n", dist.Poisson(rate), obs=n)
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("o", dist.Laplace(z, 1.0), obs=o)
        numpyro.sample("nothing", dist.Normal(0.0, 1.0), obs=o)

    tree = pg.infer(pg.Model(program, {"y": 0.7, "n": 4, "o": 0.2}), Exact(), draws=10, chains=1)
    log_z = stats.norm.logpdf(0.7, 0, np.sqrt(2)) + stats.nbinom.logpmf(4, 1, 2 / 3) + stats.norm.logpdf(0.2)
    log_z += np.log(0.7 * stats.laplace.pdf(0.2) + 0.3 * stats.laplace.pdf(0.2, 1))
    assert tree.attrs["log_evidence"] == pytest.approx(log_z, abs=1e-9)
    rules = tree.attrs["rules"]
    assert all(f'"{site}": "{rule}' in rules for site, rule in [("mu", "lin"), ("rate", "conj"), ("z", "finite")])


# -- near misses -----------------------------------------------------------------------------------------------------


def student(y):
    numpyro.sample("y", dist.StudentT(5.0, numpyro.sample("mu", dist.Normal()), 1.0), obs=y)


def funnel(y):
    s = numpyro.sample("s", dist.Normal())
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), jnp.exp(s)), obs=y)


def product(y):
    numpyro.sample(
        "y", dist.Normal(numpyro.sample("a", dist.Normal()) * numpyro.sample("b", dist.Normal()), 1.0), obs=y
    )


def probit(k):
    p = jnp.clip(numpyro.sample("mu", dist.Normal()), 0.1, 0.9)
    numpyro.sample("k", dist.Bernoulli(p), obs=k)


def kinked(y):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("y", dist.Normal(jnp.where(mu > 1e6, 0.0, mu), 1.0), obs=y)


def half_cauchy(y):
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, tau)), 1.0), obs=y)


def semi_conjugate(y):
    variance = numpyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), jnp.sqrt(variance)), obs=y)


def standard_deviation(y):
    sd = numpyro.sample("sd", dist.InverseGamma(3.0, 2.0))
    numpyro.sample("y", dist.Normal(0.0, sd), obs=y)


def shifted_rate(k):
    numpyro.sample("k", dist.Poisson(numpyro.sample("rate", dist.Gamma(2.0, 1.0)) + 0.001), obs=k)


def squared(k):
    numpyro.sample("k", dist.Bernoulli(numpyro.sample("p", dist.Beta(2.0, 2.0)) ** 2), obs=k)


def narrow_uniform(k):
    numpyro.sample("k", dist.Bernoulli(numpyro.sample("p", dist.Uniform(0.2, 1.0))), obs=k)


def hierarchical_beta(k):
    a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
    numpyro.sample("k", dist.Bernoulli(numpyro.sample("p", dist.Beta(a, 1.0))), obs=k)


def coupled(k):
    p = numpyro.sample("p", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("k", dist.Bernoulli(p[0] * p[1]), obs=k)


def moving_support(y):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Pareto(scale, 2.0), obs=y)


def mixture(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()) * z, 1.0), obs=y)


def infinite(k):
    numpyro.sample("k", dist.Binomial(numpyro.sample("n", dist.Poisson(3.0)), 0.5), obs=k)


def weighted(y):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.factor("extra", -(mu**4))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


NEAR_MISSES = [
    (student, {"y": 0.3}, "'y' has the likelihood StudentT"),
    (funnel, {"y": 0.3}, "'y' has a scale that depends on 's'"),
    (product, {"y": 0.3}, r"'y' has a location that is not affine in 'a', 'b' \(through 'mul'\)"),
    (probit, {"k": 1}, "'k' .* is not Gaussian, and depends on 'mu'"),
    (kinked, {"y": 0.3}, "'y' has a location that is not affine in 'mu'"),
    (half_cauchy, {"y": 0.3}, "'tau' has the prior HalfCauchy"),
    (semi_conjugate, {"y": 0.3}, "'variance'.*misses the program's density"),
    (standard_deviation, {"y": 0.3}, "'sd' with y is not conjugate"),
    (shifted_rate, {"k": 2}, "'rate' with k is not conjugate"),
    (squared, {"k": 0}, "'p' with k is not conjugate"),
    (narrow_uniform, {"k": 1}, "'p' with k is not conjugate"),
    (hierarchical_beta, {"k": 1}, "'p' has a prior that depends on 'a'"),
    (coupled, {"k": 0}, "'p' with k is not conjugate"),
    (moving_support, {"y": 3.0}, "'y' has the likelihood Pareto"),
    (mixture, {"y": 0.3}, "'z' is discrete and depends on continuous sites"),
    (infinite, {"k": 1}, "'n'.* has infinitely many values"),
    (weighted, {"y": 0.3}, "'extra' is a factor"),
]


@pytest.mark.parametrize(("program", "data", "message"), NEAR_MISSES, ids=[row[0].__name__ for row in NEAR_MISSES])
def test_near_misses_are_refused_by_name(program, data, message):
    model = pg.Model(program, data)
    with pytest.raises(pg.MethodError, match=message):
        Exact().solve(model)
    method, reason = choose(model)
    assert isinstance(method, NUTS)
    assert "no closed form" in reason


def test_one_success_of_a_scaled_probability_is_conjugate_after_all():
    """p -> 0.3 p only multiplies the likelihood of a success: closure is a matter of the data, and it is found."""

    def program(k):
        numpyro.sample("k", dist.Bernoulli(0.3 * numpyro.sample("p", dist.Beta(2.0, 2.0))), obs=k)

    solution = Exact().solve(pg.Model(program, {"k": 1}))
    assert float(solution.log_evidence) == pytest.approx(np.log(0.3 * 0.5), abs=1e-9)
    with pytest.raises(pg.MethodError, match="not conjugate"):
        Exact().solve(pg.Model(program, {"k": 0}))


# -- choosing, compiling, settings -----------------------------------------------------------------------------------


def test_infer_without_a_method_is_exact_where_it_can_be(eight_schools):
    def program(k):
        numpyro.sample("k", dist.Bernoulli(numpyro.sample("p", dist.Beta(1.0, 1.0))), obs=k)

    tree = pg.infer(pg.Model(program, {"k": 1}), draws=20, chains=1)
    assert tree.attrs["method"] == "exact"
    assert tree.attrs["method_reason"] == "chosen because the posterior has a closed form (conjugate)"
    assert tree["sample_stats/lp"].shape == (1, 20)
    method, reason = choose(eight_schools)
    assert isinstance(method, NUTS)
    assert "'tau' has the prior HalfCauchy" in reason


def test_new_data_compile_nothing(pairs_tree):
    before = compile_count()
    other = pg.infer(pg.Model(many_pairs, {**PAIRS, "w": np.array(9), "n": [0, 0, 0, 0]}), Exact(), seed=6, **DRAWS)
    assert compile_count() == before
    np.testing.assert_allclose(other["exact/rate_concentration"], [2, 2, 2, 2], rtol=1e-7)
    np.testing.assert_allclose(other["exact/fair_concentration1"], 10, rtol=1e-9)
    assert other.attrs["log_evidence"] != pairs_tree.attrs["log_evidence"]


def test_settings_are_checked():
    with pytest.raises(pg.MethodError, match="max_states must be at least 1"):
        Exact(max_states=0).check()


def test_degrees_of_expressions():
    x, index = jnp.ones((4, 3)), jnp.array([0, 2, 1])

    def expressions(values):
        b, t = values["b"], values["t"]
        return {
            "constant": x.sum(),
            "regression": x @ b + t,
            "indexed": b[index],
            "solved": jnp.linalg.solve(jnp.eye(3), b),
            "scanned": scanned(b),
            "product": b * t,
            "squared": b**2,
            "rectified": jnp.maximum(b, 0.0),
            "looked_up": jnp.arange(3.0)[jnp.asarray(t, int)],
            "power_in_loop": powers(t),
        }

    def scanned(b):
        return jax.lax.scan(lambda c, x: (0.5 * c + x, c), 0.0, b)[1]

    def powers(t):
        return jax.lax.scan(lambda c, _: (c * t, None), 1.0, None, length=3)[0]

    found = dependences(expressions, {"b": jnp.ones(3), "t": jnp.ones(())})
    degrees = {name: one.degree for name, one in found.items()}
    affine, smooth, other = Degree.AFFINE, Degree.SMOOTH, Degree.OTHER
    assert degrees == {
        "constant": Degree.CONSTANT,
        "regression": affine,
        "indexed": affine,
        "solved": affine,
        "scanned": affine,
        "product": smooth,
        "squared": smooth,
        "rectified": other,
        "looked_up": other,
        "power_in_loop": smooth,
    }
    assert found["regression"].sites == {"b", "t"}
    assert found["product"].why == "mul"
