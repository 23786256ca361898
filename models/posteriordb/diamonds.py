"""Log prices of 5000 diamonds, given 24 highly correlated predictors: logarithms of the sizes, grades, interactions.

    Y ~ normal(Intercept + Xc b, sigma),    b_k ~ normal(0, 1),    Intercept ~ t_3(8, 10),    sigma ~ half-t_3(0, 10)

Xc holds the columns of X after the first, the constant, each minus its mean; Intercept is therefore the expected log
price of a diamond with average predictors.
References: Wickham (2016), ggplot2: Elegant Graphics for Data Analysis (data); Bales, Pourzanjani, Vehtari and Petzold
(2019), Selecting the Metric in Hamiltonian Monte Carlo, arXiv:1905.11916 (model).
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(X: jax.Array, Y: jax.Array | None = None) -> None:
    """X: shape (diamond, 25), its first column constant; Y: log prices, shape (diamond,)."""
    Xc = X[:, 1:] - jnp.mean(X[:, 1:], axis=0)
    n, k = Xc.shape
    b = numpyro.sample("b", dist.Normal(0, 1).expand([k]).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3, 8, 10))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3, 0, 10)))
    with numpyro.plate("diamond", n):
        numpyro.sample("Y", dist.Normal(intercept + Xc @ b, sigma), obs=Y)
