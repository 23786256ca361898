"""Leaf weight in grams of 46 mesquite bushes, given six measurements taken before the harvest, on the log scale.

    log(weight) ~ normal(beta_1 + beta_2 log(diam1) + beta_3 log(diam2) + beta_4 log(canopy_height)
                         + beta_5 log(total_height) + beta_6 log(density) + beta_7 group, sigma)

Flat priors on the coefficients beta and on the residual scale sigma > 0.
The outcome itself is log-normal: the posterior is that of a normal law of its logarithm, and predictions keep its unit.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(
    diam1: jax.Array,
    diam2: jax.Array,
    canopy_height: jax.Array,
    total_height: jax.Array,
    density: jax.Array,
    group: jax.Array,
    weight: jax.Array | None = None,
) -> None:
    """Every argument has shape (bush,)."""
    logs = [jnp.log(size) for size in (diam1, diam2, canopy_height, total_height, density)]
    X = jnp.column_stack([jnp.ones_like(diam1), *logs, group])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (7,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("bush", len(diam1)):
        numpyro.sample("weight", dist.LogNormal(X @ beta, sigma), obs=weight)
