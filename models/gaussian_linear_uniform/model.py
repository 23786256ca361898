"""Gaussian linear uniform: the mean of a normal law in ten dimensions, known to lie in a cube.

    theta ~ uniform on [-1, 1]^10,    x ~ normal(theta, 0.1 I)

The posterior is normal(x, 0.1 I), cut off at the faces of the cube. Reference: Lueckmann et al. (2021), Benchmarking
Simulation-Based Inference, AISTATS.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(x: jax.Array | None = None) -> None:
    """x: one point, shape (10,)."""
    theta = numpyro.sample("theta", dist.Uniform(-1, 1).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, jnp.sqrt(0.1)).to_event(1), obs=x)
