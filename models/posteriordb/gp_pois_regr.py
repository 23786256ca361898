"""Poisson regression with a latent Gaussian process, on 11 simulated counts.

    k_n ~ Poisson(exp(f_n)),    f = L f_tilde,    (L L')_ij = alpha^2 exp(-(x_i - x_j)^2 / (2 rho^2)),
    f_tilde_n ~ normal(0, 1),    rho ~ gamma(25, 4),    alpha ~ half-normal(0, 2)

Non-centred: the sampler moves the whitened f_tilde. The jitter of the Cholesky factor is relative to alpha^2, so that it
does its work for every alpha.
Reference: https://github.com/stan-dev/stat_comp_benchmarks (benchmarks/gp_pois_regr).
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(x: jax.Array, k: jax.Array | None = None) -> None:
    """x: positions, k: counts; both of shape (point,)."""
    n = len(x)
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    correlation = jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    jitter = 1e-10 if correlation.dtype == jnp.float64 else 1e-5  # what the Cholesky factor needs at this precision
    L = alpha * jnp.linalg.cholesky(correlation + jitter * jnp.eye(n))
    with numpyro.plate("point", n):
        f_tilde = numpyro.sample("f_tilde", dist.Normal(0, 1))
        f = numpyro.deterministic("f", L @ f_tilde)
        # Clipped far outside the posterior, where exp would overflow to a density that is not a number.
        numpyro.sample("k", dist.Poisson(jnp.exp(jnp.clip(f, -50, 50))), obs=k)
