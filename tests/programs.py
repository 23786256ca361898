"""Programs that several test files look at."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import random_eqx_module

Y = np.array([0.3, -1.2, 2.1, 0.4, 0.9, -0.5])
ROWS = np.random.default_rng(0).normal(size=(5, 3))


def regression(x, y=None):
    """On ``ROWS`` and ``Y[:5]``."""
    b = numpyro.sample("b", dist.Normal(0, 2).expand([3]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(1.0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.StudentT(4.0, x @ b, sigma), obs=y)


def random_walk(y):
    """A latent path with a deterministic site beside it, inside ``scan``."""
    s = numpyro.sample("s", dist.HalfNormal())

    def step(x, y_now):
        x = numpyro.sample("x", dist.Normal(x, s))
        numpyro.sample("y", dist.Normal(x, 1), obs=y_now)
        return x, numpyro.deterministic("double", 2 * x)

    scan(step, 0.0, y)


def branches():
    """A site that stands in both branches of ``cond``."""
    z = numpyro.sample("z", dist.Normal())

    def up(_):
        return numpyro.sample("w", dist.Normal(2.0, 1.0))

    def down(_):
        return numpyro.sample("w", dist.Normal(-2.0, 2.0))

    numpyro.sample("y", dist.Normal(cond(z > 0, up, down, None), 1), obs=0.3)


def network(x, y):
    """A small network with priors, on ``ROWS[:, :2]`` and ``Y[:5]``."""
    net = random_eqx_module("net", eqx.nn.MLP(2, "scalar", 3, 1, key=jax.random.key(0)), prior=dist.Normal())
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 1.0), obs=y)
