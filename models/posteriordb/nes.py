"""Party identification of voters in one wave of the National Election Study (1972 to 1992).

    partyid7 ~ normal(beta_1 + beta_2 real_ideo + beta_3 race_adj + beta_4 [age 30-44] + beta_5 [age 45-64]
                      + beta_6 [age 65+] + beta_7 educ1 + beta_8 gender + beta_9 income, sigma)

partyid7 runs from 1 (strong Democrat) to 7 (strong Republican); age_discrete: 1 is 18-29, then the brackets above.
Flat priors on the coefficients beta and on the residual scale sigma > 0.
Reference: Gelman and Hill (2006), Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 4.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(
    real_ideo: jax.Array,
    race_adj: jax.Array,
    age_discrete: jax.Array,
    educ1: jax.Array,
    gender: jax.Array,
    income: jax.Array,
    partyid7: jax.Array | None = None,
) -> None:
    """Every argument has shape (voter,)."""
    ages = [age_discrete == bracket for bracket in (2, 3, 4)]
    X = jnp.column_stack([jnp.ones_like(real_ideo), real_ideo, race_adj, *ages, educ1, gender, income])
    beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), (9,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with numpyro.plate("voter", len(real_ideo)):
        numpyro.sample("partyid7", dist.Normal(X @ beta, sigma), obs=partyid7)
