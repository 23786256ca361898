"""Bayesian linear regression with vague priors on 100 simulated observations and 5 correlated coefficients.

    y ~ normal(X beta, sigma),    beta_d ~ normal(0, 10),    sigma ~ half-normal(0, 10)

Reference: none; the data were simulated for posteriordb with beta_d = 1, sigma = 1.
"""

import jax
import numpyro
import numpyro.distributions as dist


def model(X: jax.Array, y: jax.Array | None = None) -> None:
    """X: shape (obs, coefficient); y: shape (obs,)."""
    n, d = X.shape
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([d]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    with numpyro.plate("obs", n):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)
