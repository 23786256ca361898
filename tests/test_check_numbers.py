"""The numbers behind the findings, against those of ArviZ, which takes one quantity at a time, and closed forms."""

import arviz
import arviz_stats
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from arviz_stats.base import array_stats
from scipy import stats

import probgen as pg
from probgen.check.mixing import Mixing, ess, measure, rhat
from probgen.check.sensitivity import log_prior, scaling_sensitivity
from probgen.check.subject import Subject
from probgen.check.tails import pareto_k, tail_length, weights_k


def chains(kind, quantities=6, shape=(4, 300), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(quantities, *shape))
    if kind == "slow":
        for t in range(1, shape[1]):
            x[..., t] += 0.9 * x[..., t - 1]
    elif kind == "alternating":
        for t in range(1, shape[1]):
            x[..., t] -= 0.6 * x[..., t - 1]
    elif kind == "apart":
        x += np.arange(shape[0])[:, None]
    elif kind == "heavy":
        x = rng.standard_cauchy(x.shape)
    elif kind == "counts":
        x = rng.poisson(0.7, x.shape).astype(float)
    elif kind == "coin":  # as often 0 as 1, each at the same distance from the median
        x = np.argsort(np.argsort(x.reshape(quantities, -1), axis=-1), axis=-1).reshape(x.shape) % 2.0
    elif kind == "rare":
        x = (rng.uniform(size=x.shape) < 0.01).astype(float)
    elif kind == "stuck" and shape[0] > 1:
        x[:, 1] = 0.5
    return x


KINDS = ("independent", "slow", "alternating", "apart", "heavy", "counts", "coin", "rare", "stuck")


@pytest.mark.parametrize("shape", [(4, 300), (3, 101), (1, 64), (2, 4), (2, 5), (2, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_mixing_is_that_of_arviz(kind, shape):
    x = chains(kind, shape=shape)
    if shape[1] < 10:
        x = x[:, :, : shape[1]] + 1e-3 * np.random.default_rng(1).normal(size=x.shape)
    x = x[np.ptp(x, axis=(1, 2)) > 0]
    found = measure(x)
    for name, method in (("ess_bulk", "bulk"), ("ess_tail", "tail"), ("ess_mean", "mean")):
        prob = (0.05, 0.95) if method == "tail" else None
        expected = array_stats.ess(x, method=method, prob=prob)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-8, err_msg=name)
    np.testing.assert_allclose(found.mcse_mean, array_stats.mcse(x, method="mean"), rtol=1e-8)
    if shape[0] > 1:  # ArviZ has no R-hat of one chain
        np.testing.assert_allclose(found.rhat, array_stats.rhat(x, method="rank"), rtol=1e-8)
    np.testing.assert_array_equal(found.rhat, rhat(x))
    np.testing.assert_array_equal(found.ess_bulk, ess(x))


def test_batches_of_quantities_are_measured_alike():
    x = chains("slow")
    joined, whole = Mixing.joined([measure(x[:2]), measure(x[2:])]), measure(x)
    for name in ("rhat", "ess_bulk", "ess_tail", "ess_within", "drift", "sd"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-12)


def test_within_chains_nothing_is_known_of_other_chains():
    together, apart = measure(chains("independent")), measure(chains("apart"))
    assert (apart.ess_bulk < 20).all()
    assert (apart.ess_within > 0.3 * together.ess_within).all()


def test_drift_of_walks_lines_and_stationary_chains():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(400, 4, 800)), axis=-1)
    line = np.broadcast_to(np.arange(800.0), (1, 4, 800)) + rng.normal(size=(1, 4, 800))
    assert np.median(measure(walk).drift) == pytest.approx(8, rel=0.15)
    assert measure(line).drift[0] == pytest.approx(64, rel=0.05)
    assert (np.abs(measure(chains("independent", 50)).drift - 1) < 0.25).all()


@pytest.mark.parametrize("kind", ["independent", "heavy", "apart", "slow"])
def test_pareto_k_is_that_of_arviz(kind):
    x = chains(kind, shape=(4, 500))
    flat = x.reshape(len(x), -1)
    expected = array_stats.pareto_khat(x, r_eff=1, tail="both")
    np.testing.assert_allclose(pareto_k(flat, tail_length(2000)), expected, rtol=1e-6)
    log_w = 2 * x.reshape(len(x), -1) if kind != "heavy" else np.clip(x, -20, 20).reshape(len(x), -1)
    expected = [float(array_stats.psislw(-row)[1]) for row in log_w]
    np.testing.assert_allclose(weights_k(log_w), expected, rtol=1e-6)


@pytest.mark.parametrize(("shape", "draw"), [(1.0, "standard_cauchy"), (0.5, "t2"), (0.0, "exponential")])
def test_pareto_k_finds_the_shape_of_known_tails(shape, draw):
    rng = np.random.default_rng(0)
    draws = {
        "standard_cauchy": rng.standard_cauchy((200, 4000)),
        "t2": rng.standard_t(2, (200, 4000)),
        "exponential": rng.exponential(size=(200, 4000)),
    }[draw]
    length = tail_length(4000)
    # The larger of two tails for symmetric draws; the prior at 0.5 has the weight of 10 of 190 values.
    found = pareto_k(draws, length)
    assert found.mean() == pytest.approx((190 * shape + 10 * 0.5) / 200, abs=0.1)


def test_tails_without_spread_or_length():
    assert np.isnan(pareto_k(np.ones((1, 100)), 20)).all()
    assert np.isnan(weights_k(np.zeros((2, 10)))).all()


def test_power_scaling_is_that_of_arviz():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 500))
    log_prior = -0.5 * x[0] ** 2 - 0.1 * np.abs(x[1] - 1)
    log_lik = -0.5 * (x[0] - 2) ** 2
    tree = xarray.DataTree.from_dict(
        {
            "posterior": xarray.Dataset({"x": (("chain", "draw", "i"), np.moveaxis(x, 0, -1))}),
            "log_prior": xarray.Dataset({"p": (("chain", "draw"), log_prior)}),
            "log_likelihood": xarray.Dataset({"y": (("chain", "draw"), log_lik)}),
        }
    )
    for group, component in (("prior", log_prior), ("likelihood", log_lik)):
        expected = arviz_stats.psense(tree, group=group)["x"].values
        np.testing.assert_allclose(scaling_sensitivity(component)(x.reshape(3, -1)), expected, rtol=1e-6)
    np.testing.assert_array_equal(scaling_sensitivity(np.zeros((4, 500)))(x.reshape(3, -1)), 0)


def test_leave_one_out_is_that_of_arviz():
    tree = arviz.load_arviz_data("centered_eight")
    log_lik = np.moveaxis(tree["log_likelihood/obs"].values, -1, 0).reshape(8, -1)
    expected = arviz.loo(tree, pointwise=True, reff=1.0).pareto_k.values
    np.testing.assert_allclose(weights_k(-log_lik), expected, rtol=1e-6)


def test_the_prior_that_is_scaled_is_that_at_the_top_without_jacobians():
    rng = np.random.default_rng(0)
    mu, tau = rng.normal(size=(2, 30)), rng.exponential(size=(2, 30))

    def centred(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    model = pg.Model(centred, {"sigma": 10.0, "y": np.zeros(8)})
    draws = {"mu": mu, "tau": tau, "theta": rng.normal(size=(2, 30, 8))}
    dims = {"mu": (), "tau": (), "theta": ("school",)}
    posterior = xarray.Dataset({k: (("chain", "draw", *dims[k]), v) for k, v in draws.items()})
    subject = Subject(xarray.DataTree.from_dict({"posterior": posterior}), model)
    expected = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(0, 5).logpdf(tau)
    np.testing.assert_allclose(log_prior(subject), expected, rtol=1e-10)
