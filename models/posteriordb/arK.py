"""An autoregression of order K, here 5, on a simulated series of 200 points.

    y_t ~ normal(alpha + sum_k beta_k y_{t-k}, sigma) for t > K,    alpha, beta_k ~ normal(0, 10),
    sigma ~ half-Cauchy(0, 2.5)

The first K points are conditioned on. Every mean is known from the lagged data, so y is required.
Reference: https://github.com/stan-dev/stat_comp_benchmarks (benchmarks/arK).
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(K: int, y: jax.Array) -> None:
    """K: the order; y: the series, longer than K."""
    lags = jnp.column_stack([y[K - k : -k] for k in range(1, K + 1)])
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([K]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", len(lags)):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[K:])
