"""Shared set-up: 64-bit, and compiled programs kept between test runs."""

import jax
import pytest

import probgen as pg

jax.config.update("jax_enable_x64", True)


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
