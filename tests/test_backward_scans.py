"""``scan(..., reverse=True)``: values belong to rows, whoever gives them, and whenever the row is visited."""

import jax
import jax.numpy as jnp
import jax.scipy.stats as jss
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from programs import Y

import probgen as pg
from probgen.program.density import Density
from probgen.program.joint import Joint


def backwards(y):
    s = numpyro.sample("s", dist.HalfNormal())

    def step(x, y_now):
        x = numpyro.sample("x", dist.Normal(x, s))
        w = numpyro.sample("w", dist.Uniform(x, x + 1))
        numpyro.sample("y", dist.Normal(w, 0.5), obs=y_now)
        return x, None

    scan(step, 0.0, y, reverse=True)


def test_a_reversed_scan_keeps_its_rows_in_order():
    """NumPyro gives the first value of a series to the step that runs first, which sees the last row."""
    density = Density(pg.Model(backwards, {"y": Y}))
    u = jnp.asarray(np.random.default_rng(6).normal(size=13))
    s, x, share = jnp.exp(u[0]), u[1:7], jax.nn.sigmoid(u[7:])
    after = jnp.append(x[1:], 0.0)
    values = density.constrain(u)
    np.testing.assert_allclose(values["x"], x, rtol=1e-12)
    np.testing.assert_allclose(values["w"], x + share, rtol=1e-12)
    prior = dist.HalfNormal().log_prob(s) + u[0] + jss.norm.logpdf(x, after, s).sum()
    prior += jnp.log(share * (1 - share)).sum()
    np.testing.assert_allclose(density.log_prior(u), prior, rtol=1e-10)
    np.testing.assert_allclose(density.log_likelihood(u), jss.norm.logpdf(Y, x + share, 0.5).sum(), rtol=1e-10)
    np.testing.assert_allclose(density.unconstrain(values), u, atol=1e-8)


def test_a_reversed_scan_is_conditioned_and_replayed_row_by_row():
    model = pg.Model(backwards, {"y": Y})
    path = jnp.arange(6.0)
    density = Density(model.condition(x=path))
    u = jnp.asarray(np.random.default_rng(7).normal(size=7))
    s, share = jnp.exp(u[0]), jax.nn.sigmoid(u[1:])
    np.testing.assert_allclose(density.constrain(u)["w"], path + share, rtol=1e-12)
    expected = jss.norm.logpdf(path, jnp.append(path[1:], 0.0), s).sum()
    expected += jss.norm.logpdf(Y, path + share, 0.5).sum()
    np.testing.assert_allclose(density.log_likelihood(u), expected, rtol=1e-10)
    joint, _ = Joint(model)({"s": s, "x": path, "w": path + share}, ("x", "y"))
    np.testing.assert_allclose(joint, expected, rtol=1e-10)
    drawn = handlers.trace(handlers.seed(model.bind(), 0)).get_trace()
    again = handlers.trace(handlers.seed(handlers.replay(model.bind(), drawn), 1)).get_trace()
    np.testing.assert_array_equal(again["x"]["value"], drawn["x"]["value"])


def test_the_closed_form_of_a_reversed_walk_is_that_of_the_flipped_one():
    def walk(y, reverse=False):
        def step(x, y_now):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y_now)
            return x, None

        scan(step, 0.0, y, reverse=reverse)

    back = pg.infer(pg.Model(walk, {"y": Y, "reverse": True}), pg.Exact(), draws=2000, seed=0)
    ahead = pg.infer(pg.Model(walk, {"y": Y[::-1].copy()}), pg.Exact(), draws=2000, seed=0)
    np.testing.assert_allclose(back.attrs["log_evidence"], ahead.attrs["log_evidence"], rtol=1e-12)
    means = [tree["posterior/x"].mean(("chain", "draw")).values for tree in (back, ahead)]
    error = np.sqrt(2 * ahead["posterior/x"].var(("chain", "draw")).values[::-1] / 8000)
    assert (np.abs(means[0] - means[1][::-1]) < 4.5 * error).all()
    assert np.abs(means[0] - means[1]).max() > 1  # the order matters
