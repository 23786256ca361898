"""Yearly earnings in dollars of 1192 adults, on the log scale, given height in inches and sex.

    log(earn) ~ normal(beta_1 + beta_2 height + beta_3 male, sigma)

Flat priors on the coefficients beta and on the residual scale sigma > 0.
The outcome itself is log-normal: the posterior is that of a normal law of its logarithm, and predictions keep its unit.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(height: jax.Array, male: jax.Array, earn: jax.Array | None = None) -> None:
    """Every argument has shape (person,)."""
    X = jnp.column_stack([jnp.ones_like(height), height, male])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (3,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("person", len(height)):
        numpyro.sample("earn", dist.LogNormal(X @ beta, sigma), obs=earn)
