"""Test scores of 434 three- and four-year-old children, given the mother's IQ.

    kid_score ~ normal(beta_1 + beta_2 mom_iq, sigma)

Flat prior on the coefficients beta, half-Cauchy prior on the residual scale sigma.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 3.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(mom_iq: jax.Array, kid_score: jax.Array | None = None) -> None:
    """Every argument has shape (child,)."""
    X = jnp.column_stack([jnp.ones_like(mom_iq), mom_iq])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (2,)))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("child", len(mom_iq)):
        numpyro.sample("kid_score", dist.Normal(X @ beta, sigma), obs=kid_score)
