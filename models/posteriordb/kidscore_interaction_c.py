"""Test scores of 434 three- and four-year-old children, given the mother's schooling, IQ and interaction, centred.

    kid_score ~ normal(beta_1 + beta_2 hs + beta_3 iq + beta_4 hs iq, sigma)

where hs and iq are mom_hs and mom_iq minus their sample means.
Flat priors on the coefficients beta and on the residual scale sigma > 0.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(mom_hs: jax.Array, mom_iq: jax.Array, kid_score: jax.Array | None = None) -> None:
    """Every argument has shape (child,)."""
    hs, iq = mom_hs - jnp.mean(mom_hs), mom_iq - jnp.mean(mom_iq)
    X = jnp.column_stack([jnp.ones_like(iq), hs, iq, hs * iq])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (4,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("child", len(mom_hs)):
        numpyro.sample("kid_score", dist.Normal(X @ beta, sigma), obs=kid_score)
