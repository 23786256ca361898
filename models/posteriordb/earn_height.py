"""Yearly earnings in dollars of 1192 adults, given height in inches.

    earn ~ normal(beta_1 + beta_2 height, sigma)

Flat priors on the coefficients beta and on the residual scale sigma > 0.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(height: jax.Array, earn: jax.Array | None = None) -> None:
    """Every argument has shape (person,)."""
    X = jnp.column_stack([jnp.ones_like(height), height])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (2,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("person", len(height)):
        numpyro.sample("earn", dist.Normal(X @ beta, sigma), obs=earn)
