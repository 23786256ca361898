"""Leaf weight in grams of 46 mesquite bushes, given six measurements taken before the harvest.

    weight ~ normal(beta_1 + beta_2 diam1 + beta_3 diam2 + beta_4 canopy_height + beta_5 total_height
                    + beta_6 density + beta_7 group, sigma)

Flat priors on the coefficients beta and on the residual scale sigma > 0.
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
    X = jnp.column_stack([jnp.ones_like(diam1), diam1, diam2, canopy_height, total_height, density, group])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (7,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("bush", len(diam1)):
        numpyro.sample("weight", dist.Normal(X @ beta, sigma), obs=weight)
