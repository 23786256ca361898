"""Prediction from posterior draws, against closed forms; the draws are made by hand, so nothing but prediction is
tested."""

import sys
import warnings

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scipy import stats

import probgen as pg
from probgen.infer.predict import log_likelihood, predict
from probgen.run.compiled import compile_count

CHAINS, DRAWS = 2, 3000
COUNT = CHAINS * DRAWS
RNG = np.random.default_rng(7)


def tree_of(observed=None, log_weight=None, **draws):
    """A tree as ``pg.infer`` gives it; draws have leading axes (chain, draw)."""
    groups = {
        "posterior": {
            name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(v.ndim - 2))), v) for name, v in draws.items()
        }
    }
    if observed is not None:
        groups["observed_data"] = {
            name: ([f"{name}_dim_{i}" for i in range(np.ndim(v))], v) for name, v in observed.items()
        }
    if log_weight is not None:
        groups["sample_stats"] = {"log_weight": (("chain", "draw"), log_weight)}
    return xarray.DataTree.from_dict({name: xarray.Dataset(group) for name, group in groups.items()})


def normal_draws(mean, sd, *shape):
    return mean + sd * RNG.normal(size=(CHAINS, DRAWS, *shape))


def z_scores(draws, mean, variance):
    """Of the mean and of the second central moment of independent draws, from their own Monte Carlo errors."""
    draws = np.asarray(draws).reshape(COUNT, -1)
    squares = (draws - mean) ** 2
    first = (draws.mean(0) - mean) / (draws.std(0) / np.sqrt(COUNT))
    second = (squares.mean(0) - variance) / (squares.std(0) / np.sqrt(COUNT))
    return np.abs(np.concatenate([first, second])).max()


def line(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 10.0))
    b = numpyro.sample("b", dist.Normal(0.0, 10.0))
    with numpyro.plate("row", x.shape[0]):
        mean = numpyro.deterministic("mean", a + b * x)
        numpyro.sample("y", dist.Normal(mean, 2.0), obs=y)


@pytest.fixture(scope="module")
def fitted():
    x, y = np.array([-1.0, 0.0, 2.0]), np.full(3, 50.0)
    model = pg.Model(line, {"x": x, "y": y}, coords={"row": list("pqr")})
    tree = tree_of({"y": y}, a=normal_draws(1.0, 0.5), b=normal_draws(-2.0, 0.3))
    return model, tree


def test_posterior_predictive_is_posterior_plus_noise(fitted):
    model, tree = fitted
    x = np.asarray(model.leaves["x"])
    result = predict(model, tree, seed=1)
    y = result["posterior_predictive/y"]
    assert y.dims == ("chain", "draw", "row")
    assert y.row.values.tolist() == list("pqr")
    assert set(result["posterior_predictive"].data_vars) == {"y"}
    assert z_scores(y, 1 - 2 * x, 0.25 + 0.09 * x**2 + 4) < 4.5
    # Draw by draw, the noise is independent of the parameters, and of the noise of other rows.
    a, b = tree["posterior/a"].values, tree["posterior/b"].values
    noise = y.values - a[..., None] - b[..., None] * x
    assert z_scores(noise, 0.0, 4.0) < 4.5
    columns = np.column_stack([a.ravel(), b.ravel(), noise.reshape(COUNT, -1)])
    assert np.abs(np.corrcoef(columns.T)[np.triu_indices(5, 1)]).max() * np.sqrt(COUNT) < 4.8
    assert "posterior_predictive" not in tree.children


def test_conjugate_normal_end_to_end():
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.array([1.0, 2.0, 4.0, 1.5])
    model = pg.Model(program, {"y": y})
    tree = predict(model, pg.infer(model, pg.NUTS(), draws=1500, warmup=300, chains=2, seed=2))
    variance = 1 / (1 / 9 + 4)
    mean = variance * y.sum()
    drawn = tree["posterior_predictive/y"].values.reshape(3000, -1)
    # NUTS draws are correlated: the error of the mean counts 1000 independent ones at least.
    assert np.abs(drawn.mean(0) - mean).max() < 4.5 * np.sqrt(variance / 1000 + 1 / 3000)
    assert np.abs(drawn.var(0) / (variance + 1) - 1).max() < 4.5 * np.sqrt(2 / 2000)


def test_new_data_recompute_what_depends_on_them(fitted):
    model, tree = fitted
    x = np.array([0.0, 5.0])
    result = predict(model, tree, {"x": x}, seed=2)
    group = result["predictions"]
    assert set(group.data_vars) == {"mean", "y"}
    assert group["y"].row.values.tolist() == [0, 1]
    np.testing.assert_allclose(
        group["mean"], tree["posterior/a"].values[..., None] + tree["posterior/b"].values[..., None] * x
    )
    assert z_scores(group["y"], 1 - 2 * x, 0.25 + 0.09 * x**2 + 4) < 4.5
    np.testing.assert_array_equal(result["predictions_constant_data/x"], x)
    assert "y" not in result["predictions_constant_data"]
    labelled = predict(model, tree, {"x": x}, coords={"row": ["s", "t"]}, group="later", sites=["mean"])
    assert labelled["later/mean"].row.values.tolist() == ["s", "t"]
    assert set(labelled["later"].data_vars) == {"mean"}


def test_observations_given_as_data_do_not_come_back(fitted):
    model, tree = fitted
    x = np.array([0.0, 5.0])
    given = predict(model, tree, {"x": x, "y": np.full(2, 1e6)}, seed=2)
    np.testing.assert_array_equal(given["predictions/y"], predict(model, tree, {"x": x}, seed=2)["predictions/y"])


def test_programs_that_need_their_observations():
    def program(x, y):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mu + x, 1.0), obs=y)

    model = pg.Model(program, {"x": np.zeros(3), "y": np.zeros(3)})
    tree = tree_of({"y": np.zeros(3)}, mu=normal_draws(0.0, 1.0))
    assert z_scores(predict(model, tree, {"x": np.ones(3)})["predictions/y"], 1.0, 2.0) < 4.5
    with pytest.raises(
        (pg.ModelError, pg.DataError), match="Where the program needs y, give any values of the new shape"
    ):
        predict(model, tree, {"x": np.zeros(4)})
    assert predict(model, tree, {"x": np.zeros(4), "y": np.zeros(4)})["predictions/y"].shape == (CHAINS, DRAWS, 4)


def test_same_seed_whatever_the_batches_and_no_second_compilation(fitted, monkeypatch):
    model, tree = fitted
    whole = predict(model, tree, seed=5)
    before = compile_count()
    other = predict(model.with_data(x=np.array([3.0, 4.0, 5.0])), tree, seed=6)
    assert compile_count() == before
    assert not np.array_equal(whole["posterior_predictive/y"], other["posterior_predictive/y"])
    monkeypatch.setattr(sys.modules["probgen.infer.batched"], "_BYTES", 70_000)
    cut = predict(model, tree, seed=jax.random.key(5))
    assert compile_count() == before + 1
    np.testing.assert_array_equal(whole["posterior_predictive/y"], cut["posterior_predictive/y"])


def test_observed_sites_that_are_not_named_stay(fitted):
    def program(w=None, y=None):
        theta = numpyro.sample("theta", dist.Normal())
        w = numpyro.sample("w", dist.Normal(theta, 1.0), obs=w)
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)

    model = pg.Model(program, {"w": 10.0, "y": 0.0})
    tree = tree_of({"w": 10.0, "y": 0.0}, theta=normal_draws(0.0, 0.1))
    both = predict(model, tree)["posterior_predictive"]
    assert z_scores(both["y"], 0.0, 2.01) < 4.5
    only = predict(model, tree, sites=["y"])["posterior_predictive"]
    assert set(only.data_vars) == {"y"}
    assert z_scores(only["y"], 10.0, 1.0) < 4.5
    conditioned = pg.Model(program, {"y": 0.0}).condition(w=10.0)
    assert z_scores(predict(conditioned, tree, sites=["y"])["posterior_predictive/y"], 10.0, 1.0) < 4.5
    assert z_scores(predict(model.do(w=5.0), tree)["posterior_predictive/y"], 5.0, 1.0) < 4.5
    # The value that w would have had is drawn, and shifted.
    shifted = predict(model.do(w=lambda w: w + 3), tree)["posterior_predictive"]
    np.testing.assert_allclose(shifted["w"], shifted["w_natural"] + 3)
    assert z_scores(shifted["w"], 3.0, 1.01) < 4.5
    # New data know of w, not of y.
    assert z_scores(predict(model, tree, {"w": 20.0}, sites=["y"])["predictions/y"], 20.0, 1.0) < 4.5
    assert z_scores(predict(model, tree, {"w": 20.0})["predictions/y"], 0.0, 2.01) < 4.5


# -- time ------------------------------------------------------------------------------------------------------------


def latent_ar(y=None, steps=3):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, 0.5))
        numpyro.deterministic("double", 2 * x)
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
        return x, None

    scan(step, 0.0, y, length=steps)


def test_forecast_of_a_latent_ar1():
    y = np.array([1.0, 0.5, 2.0])
    model = pg.Model(latent_ar, {"y": y, "steps": 3})
    x = normal_draws(np.array([0.0, 1.0, 4.0]), np.array([0.1, 0.2, 0.7]), 3)
    tree = tree_of({"y": y}, phi=np.full((CHAINS, DRAWS), 0.8), x=x)
    group = predict(model, tree, {"steps": 6}, seed=3)["predictions"]
    assert set(group.data_vars) == {"x", "double", "y"}
    assert group["y"].time.values.tolist() == [3, 4, 5]
    power = 0.8 ** np.arange(1, 4)
    variance = 0.49 * power**2 + 0.25 * (1 - power**2) / (1 - 0.64)
    assert z_scores(group["x"], 4 * power, variance) < 4.5
    assert z_scores(group["y"], 4 * power, variance + 0.09) < 4.5
    np.testing.assert_allclose(group["double"], 2 * group["x"])
    # Lag by lag the path is one: Cov(x_{T+1}, x_{T+2}) = phi Var(x_{T+1}).
    centred = group["x"].values.reshape(COUNT, 3) - 4 * power
    products = centred[:, 0] * centred[:, 1]
    assert abs(products.mean() - 0.8 * variance[0]) < 4.5 * products.std() / np.sqrt(COUNT)
    # The first new step goes on from the last step of the very draw.
    residual = group["x"].values[..., 0] - 0.8 * x[..., 2]
    assert z_scores(residual, 0.0, 0.25) < 4.5
    assert abs(np.corrcoef(residual.ravel(), x[..., 2].ravel())[0, 1]) * np.sqrt(COUNT) < 4.5


def test_a_shorter_horizon_keeps_the_first_steps():
    model = pg.Model(latent_ar, {"y": np.zeros(3), "steps": 3})
    tree = tree_of({"y": np.zeros(3)}, phi=np.zeros((CHAINS, DRAWS)), x=normal_draws(np.array([5.0, 6.0, 7.0]), 0.1, 3))
    group = predict(model, tree, {"steps": 2})["predictions"]
    assert z_scores(group["y"], np.array([5.0, 6.0]), 0.01 + 0.09) < 4.5


def test_forecast_of_an_observed_ar1_starts_at_the_data():
    def program(y=None, steps=4):
        phi = numpyro.sample("phi", dist.Normal())

        def step(last, y_t):
            value = numpyro.sample("y", dist.Normal(phi * last, 1.0), obs=y_t)
            return value, None

        scan(step, 0.0, y, length=steps)

    y = np.array([1.0, 3.0, 6.0, 10.0])
    model = pg.Model(program, {"y": y, "steps": 4}, coords={"time": [2001, 2002, 2003, 2004]})
    tree = tree_of({"y": y}, phi=np.full((CHAINS, DRAWS), 0.5))
    group = predict(model, tree, {"steps": 6})["predictions"]
    assert group["y"].dims == ("chain", "draw", "time")
    assert z_scores(group["y"], np.array([5.0, 2.5]), np.array([1.0, 1.25])) < 4.5
    assert group["y"].time.values.tolist() == [4, 5]
    labelled = predict(model, tree, {"steps": 6}, coords={"time": range(2001, 2007)})["predictions"]
    assert labelled["y"].time.values.tolist() == [2005, 2006]
    # The replicates of the past start anew.
    past = predict(model, tree)["posterior_predictive/y"]
    assert z_scores(past, 0.0, np.cumsum(0.25 ** np.arange(4))) < 4.5


def test_backward_scans_are_not_continued_but_are_replayed_in_place():
    def program(y=None, steps=3):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.1), obs=y_t)
            return x, None

        scan(step, 0.0, y, length=steps, reverse=True)

    model = pg.Model(program, {"y": np.zeros(3), "steps": 3})
    tree = tree_of({"y": np.zeros(3)}, x=normal_draws(np.array([1.0, 5.0, 9.0]), 0.1, 3))
    assert z_scores(predict(model, tree)["posterior_predictive/y"], np.array([1.0, 5.0, 9.0]), 0.02) < 4.5
    with pytest.raises(pg.ModelError, match="site 'x' runs backwards in time for 5 steps, but its draws have 3"):
        predict(model, tree, {"steps": 5})


# -- latent sites ----------------------------------------------------------------------------------------------------


def groups(size, group, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("group", size):
        theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
    with numpyro.plate("row", group.shape[0]):
        numpyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)


def test_new_members_of_a_plate_are_drawn_only_on_request():
    data = {"size": 2, "group": np.array([0, 0, 1]), "y": np.zeros(3)}
    model = pg.Model(groups, data, coords={"group": ["u", "v"], "row": ["a", "b", "c"]})
    tree = tree_of({"y": np.zeros(3)}, mu=normal_draws(1.0, 0.5), theta=normal_draws(np.array([-3.0, 3.0]), 0.1, 2))
    tree["posterior"] = xarray.DataTree(tree["posterior"].to_dataset().rename(theta_dim_0="group"))
    known = predict(model, tree, {"group": np.array([1, 0])})["predictions"]
    assert z_scores(known["y"], np.array([3.0, -3.0]), 1.01) < 4.5
    with pytest.raises(
        pg.MethodError,
        match=r"site 'theta' has draws of shape \(2,\), but the model now gives it shape \(3,\).*resample",
    ):
        predict(model, tree, {"size": 3, "group": np.array([2])})
    fresh = predict(model, tree, {"size": 3, "group": np.array([2])}, resample=["theta"])["predictions"]
    assert set(fresh.data_vars) == {"theta", "y"}
    assert z_scores(fresh["theta"], 1.0, 0.25 + 4) < 4.5
    assert z_scores(fresh["y"], 1.0, 0.25 + 4 + 1) < 4.5
    with pytest.raises(
        pg.ModelError, match=r"resample names 'thet', which is not a site of the model. Did you mean 'theta'"
    ):
        predict(model, tree, resample=["thet"])
    with pytest.raises(pg.MethodError, match="resample names 'y', which is observed"):
        predict(model, tree, resample=["y"])


def test_discrete_draws_are_used():
    def program(y=None):
        with numpyro.plate("row", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(10.0 * z, 1.0), obs=y)

    z = np.broadcast_to([1, 0, 1], (CHAINS, DRAWS, 3))
    model = pg.Model(program, {"y": np.zeros(3)})
    tree = tree_of({"y": np.zeros(3)}, z=z)
    assert z_scores(predict(model, tree)["posterior_predictive/y"], np.array([10.0, 0, 10]), 1.0) < 4.5
    # Each observation is 0, half way between sites at 0 and 10 with equal odds; the draws of z do not matter.
    marginal = np.log(0.5) + np.logaddexp(-0.5 * 0.0**2, -0.5 * 10.0**2) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_likelihood(model, tree)["log_likelihood/y"], marginal, rtol=1e-10)
    with pytest.raises(pg.MethodError, match="the posterior has no draws of the latent site 'z'"):
        predict(model, tree_of({"y": np.zeros(3)}, other=z))


def test_missing_data_are_predicted_as_one_site():
    def program(x, mask, y=None):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("row", 3):
            x = numpyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=mask)
            numpyro.sample("y", dist.Normal(x, 0.1), obs=y)

    data = {"x": np.array([1.0, 0.0, 3.0]), "mask": np.array([True, False, True]), "y": np.zeros(3)}
    model = pg.Model(program, data)
    x = np.stack([np.full((CHAINS, DRAWS), 1.0), normal_draws(7.0, 0.5), np.full((CHAINS, DRAWS), 3.0)], -1)
    tree = tree_of({"x_observed": data["x"], "y": data["y"]}, mu=normal_draws(2.0, 0.5), x=x)
    both = predict(model, tree)["posterior_predictive"]
    assert set(both.data_vars) == {"x", "y"}
    assert z_scores(both["x"], 2.0, 1.25) < 4.5
    # With x kept, its missing entry stands at the draws.
    assert (
        z_scores(
            predict(model, tree, sites=["y"])["posterior_predictive/y"],
            np.array([1.0, 7, 3]),
            np.array([0.01, 0.26, 0.01]),
        )
        < 4.5
    )
    terms = log_likelihood(model, tree)["log_likelihood"]
    assert terms["x"].dims == ("chain", "draw", "x_observed")
    assert terms["x"].x_observed.values.tolist() == [0, 2]
    mu = tree["posterior/mu"].values[..., None]
    np.testing.assert_allclose(terms["x"], stats.norm(mu, 1).logpdf([1.0, 3.0]))
    np.testing.assert_allclose(terms["y"], stats.norm(x, 0.1).logpdf(0.0))


def test_missing_data_in_a_scope_have_names_without_slashes():
    seen = np.array([1, 0, 1], bool)

    def program(y=None):
        with handlers.scope(prefix="b"):
            mu = numpyro.sample("mu", dist.Normal())
            with numpyro.plate("row", 3):
                numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    model = pg.Model(program, {"y": np.array([0.3, np.nan, 1.0])})
    tree = pg.infer(model, pg.NUTS(), draws=20, warmup=50, chains=1)
    assert set(tree["posterior"].data_vars) == {"b.mu", "b.y"}
    assert predict(model, tree)["posterior_predictive"]["b.y"].shape == (1, 20, 3)
    terms = log_likelihood(model, tree)["log_likelihood"]["b.y"]
    assert terms.dims == ("chain", "draw", "b.y_observed")
    assert terms["b.y_observed"].values.tolist() == [0, 2]


def test_weighted_draws_are_resampled():
    def program(y=None):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 3)), 1.0), obs=y)

    mu = normal_draws(0.0, 3.0)
    weights = stats.norm(mu, 1).logpdf(2.0)
    result = predict(pg.Model(program, {"y": 2.0}), tree_of({"y": 2.0}, log_weight=weights, mu=mu))
    y = result["posterior_predictive/y"]
    assert y.ancestor.dims == ("chain", "draw")
    chosen = np.take_along_axis(mu, y.ancestor.values, 1)
    assert z_scores(y.values - chosen, 0.0, 1.0) < 4.5
    variance = 1 / (1 / 9 + 1)
    size = (np.exp(weights).sum() ** 2) / np.exp(2 * weights).sum()
    assert abs(y.values.mean() - 2 * variance) < 4.5 * np.sqrt(variance / size + 1 / COUNT)
    assert abs(y.values.var() / (variance + 1) - 1) < 4.5 * np.sqrt(2 / size)


# -- log likelihood --------------------------------------------------------------------------------------------------


def test_pointwise_log_likelihood_and_loo(fitted):
    model, tree = fitted
    x = np.asarray(model.leaves["x"])
    model = model.with_data(y=1 - 2 * x)
    result = log_likelihood(model, tree)
    mean = tree["posterior/a"].values[..., None] + tree["posterior/b"].values[..., None] * x
    np.testing.assert_allclose(result["log_likelihood/y"], stats.norm(mean, 2.0).logpdf(1 - 2 * x))
    assert result["log_likelihood/y"].dims == ("chain", "draw", "row")
    assert "log_likelihood" not in tree.children
    before = compile_count()
    log_likelihood(model, tree)
    assert compile_count() == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loo = arviz.loo(result)
    # Leave-one-out densities are harmonic means of the likelihood over the draws.
    raw = result["log_likelihood/y"].values.reshape(COUNT, -1)
    exact = -np.log(np.exp(-raw).mean(0)).sum()
    assert abs(loo.elpd - exact) < 0.01


def test_log_likelihood_in_scan_and_with_event_axes_and_factors():
    def program(y=None, v=None):
        s = numpyro.sample("s", dist.HalfNormal())
        numpyro.factor("extra", -s)

        def step(last, y_t):
            value = numpyro.sample("y", dist.Normal(last, s), obs=y_t)
            return value, None

        scan(step, 0.0, y, length=3)
        numpyro.sample("v", dist.MultivariateNormal(jnp.zeros(2), s**2 * jnp.eye(2)).expand([4]), obs=v)

    y, v = np.array([1.0, 2.0, 4.0]), RNG.normal(size=(4, 2))
    s = np.abs(normal_draws(1.0, 0.1))
    result = log_likelihood(pg.Model(program, {"y": y, "v": v}), tree_of(s=s))["log_likelihood"]
    assert result["y"].dims == ("chain", "draw", "time")
    np.testing.assert_allclose(result["y"], stats.norm(0, s[..., None]).logpdf(np.diff(y, prepend=0.0)))
    assert result["v"].dims == ("chain", "draw", "v_dim_0")
    np.testing.assert_allclose(result["v"], stats.norm(0, s[..., None, None]).logpdf(v).sum(-1))
    assert result.attrs["factors_left_out"] == "extra"


def test_bad_input_is_named(fitted):
    model, tree = fitted
    with pytest.raises(pg.MethodError, match="the tree has no group 'posterior'"):
        predict(model, xarray.DataTree())
    averaged = xarray.DataTree.from_dict({"posterior": tree["posterior"].to_dataset().mean("draw")})
    with pytest.raises(pg.MethodError, match="expected chain and draw"):
        predict(model, averaged)
    with pytest.raises(pg.ModelError, match="sites names 'yy', which is not a site of the model"):
        predict(model, tree, sites=["yy"])
    with pytest.raises(pg.MethodError, match=r"sites must be a list of sites, got the string 'y'. Write \['y'\]"):
        predict(model, tree, sites="y")
    with pytest.raises(pg.DataError, match="'z', which is not an argument"):
        predict(model, tree, {"z": 1.0})
    with pytest.raises(pg.DataError, match=r"coords\['row'\] has 3 labels"):
        predict(model, tree, {"x": np.zeros(2)}, coords={"row": list("abc")})

    def only_factor():
        numpyro.factor("f", -(numpyro.sample("a", dist.Normal()) ** 2))

    bare = pg.Model(only_factor)
    with pytest.raises(pg.MethodError, match="the model has no observed site, so there is nothing to predict"):
        predict(bare, tree)
    with pytest.raises(pg.MethodError, match="factors are not pointwise"):
        log_likelihood(bare, tree)
