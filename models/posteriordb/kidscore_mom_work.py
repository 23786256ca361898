"""Test scores of 434 three- and four-year-old children, given the mother's work in the child's first years.

    kid_score ~ normal(beta_1 + beta_2 [mom_work = 2] + beta_3 [mom_work = 3] + beta_4 [mom_work = 4], sigma)

mom_work: 1 no work in the first three years, 2 work in the second or third year, 3 part time in the first year,
4 full time in the first year.
Flat priors on the coefficients beta and on the residual scale sigma > 0.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(mom_work: jax.Array, kid_score: jax.Array | None = None) -> None:
    """Every argument has shape (child,)."""
    X = jnp.column_stack([jnp.ones_like(mom_work), mom_work == 2, mom_work == 3, mom_work == 4])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (4,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("child", len(mom_work)):
        numpyro.sample("kid_score", dist.Normal(X @ beta, sigma), obs=kid_score)
