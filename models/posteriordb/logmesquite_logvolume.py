"""Leaf weight in grams of 46 mesquite bushes, given the volume of the canopy, on the log scale.

    log(weight) ~ normal(beta_1 + beta_2 log(diam1 diam2 canopy_height), sigma)

Flat priors on the coefficients beta and on the residual scale sigma > 0.
The outcome itself is log-normal: the posterior is that of a normal law of its logarithm, and predictions keep its unit.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(diam1: jax.Array, diam2: jax.Array, canopy_height: jax.Array, weight: jax.Array | None = None) -> None:
    """Every argument has shape (bush,)."""
    X = jnp.column_stack([jnp.ones_like(diam1), jnp.log(diam1 * diam2 * canopy_height)])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (2,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("bush", len(diam1)):
        numpyro.sample("weight", dist.LogNormal(X @ beta, sigma), obs=weight)
