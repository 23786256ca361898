"""SLCP, simple likelihood and complex posterior: four normal points whose mean and covariance are unknown.

    theta ~ uniform on [-3, 3]^5,    x_j ~ normal(m, S),  j = 1 ... 4,    m = (theta_1, theta_2),
    S = [[s_1² + 1e-6, rho s_1 s_2], [rho s_1 s_2, s_2² + 1e-6]],
    s_1 = theta_3²,    s_2 = theta_4²,    rho = tanh(theta_5)

The signs of theta_3 and theta_4 do not matter: four modes, cut off by the bounds of the prior. Reference: Papamakarios,
Sterratt and Murray (2019), Sequential Neural Likelihood, AISTATS; settings of Lueckmann et al. (2021), Benchmarking
Simulation-Based Inference, AISTATS.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

JITTER = 1e-6
"""Added to the variances."""


def cholesky(theta: jax.Array) -> jax.Array:
    """Lower factor of the covariance, shape (2, 2); no difference of nearly equal numbers is taken."""
    v1, v2 = theta[2] ** 4, theta[3] ** 4
    first = jnp.sqrt(v1 + JITTER)
    below = jnp.tanh(theta[4]) * theta[2] ** 2 * theta[3] ** 2 / first
    last = jnp.sqrt(JITTER + v2 * (v1 / jnp.cosh(theta[4]) ** 2 + JITTER) / (v1 + JITTER))
    return jnp.array([[first, 0.0], [below, last]])


def model(x: jax.Array | None = None) -> None:
    """x: the points, shape (4, 2)."""
    theta = numpyro.sample("theta", dist.Uniform(-3, 3).expand([5]).to_event(1))
    with numpyro.plate("point", 4):
        numpyro.sample("x", dist.MultivariateNormal(theta[:2], scale_tril=cholesky(theta)), obs=x)
