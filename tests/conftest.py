"""Shared set-up: 64-bit, and compiled programs kept between test runs."""

import gc
import resource
import sys

import jax
import pytest

import probgen as pg

jax.config.update("jax_enable_x64", True)

# Thousands of traced programs are kept: the collector would walk them again and again.
gc.freeze()
gc.set_threshold(20_000, 10, 10)

LARGE = 4 * 2**30


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Forget compiled programs between files where they take gigabytes: thousands are made in one process."""
    yield
    unit = 1 if sys.platform == "darwin" else 1024
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > LARGE:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def eight_schools():
    """Rubin's eight schools, non-centred: the smallest hierarchical model."""
    import numpyro
    import numpyro.distributions as dist

    def program(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", len(sigma)):
            z = numpyro.sample("z", dist.Normal())
            theta = numpyro.deterministic("theta", mu + tau * z)
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    data = {"sigma": [15.0, 10, 16, 11, 9, 11, 10, 18], "y": [28.0, 8, -3, 7, -1, 1, 18, 12]}
    return pg.Model(program, data, coords={"school": list("ABCDEFGH")})
