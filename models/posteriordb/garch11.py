"""A GARCH(1, 1) model of the volatility of a simulated series of 200 points.

    y_t ~ normal(mu, sigma_t),    sigma_t^2 = alpha0 + alpha1 (y_{t-1} - mu)^2 + beta1 sigma_{t-1}^2

Flat priors on mu, on alpha0 > 0, and on the triangle alpha1, beta1 > 0, alpha1 + beta1 < 1 where the series is
stationary. The first scale sigma1 is given. The variances follow from past data, so y is required.
Reference: https://github.com/stan-dev/stat_comp_benchmarks (benchmarks/garch).
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(sigma1: float, y: jax.Array) -> None:
    """sigma1: the first scale; y: the series, shape (time,)."""
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    alpha0 = numpyro.sample("alpha0", dist.ImproperUniform(dist.constraints.positive, (), ()))
    # The flat law on the triangle: marginal density 2 (1 - alpha1), then a uniform on what is left.
    alpha1 = numpyro.sample("alpha1", dist.Beta(1, 2))
    beta1 = numpyro.sample("beta1", dist.Uniform(0, 1 - alpha1))

    def step(variance: jax.Array, shock: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(alpha0 + alpha1 * shock**2 + beta1 * variance), variance

    _, variance = jax.lax.scan(step, jnp.square(sigma1), y - mu)
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(mu, variance**0.5), obs=y)
