"""Gaussian mixture: the common mean of a wide and a narrow normal law in the plane.

    theta ~ uniform on [-10, 10]²,    x ~ 1/2 normal(theta, I) + 1/2 normal(theta, 0.01 I)

The posterior is the same mixture about x, cut off at the edges of the square: a narrow peak on a wide base. Reference:
Sisson, Fan and Tanaka (2007), Sequential Monte Carlo without Likelihoods, PNAS 104(6), 1760-1765; settings of Lueckmann
et al. (2021), Benchmarking Simulation-Based Inference, AISTATS.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

SCALES = (1.0, 0.1)


def model(x: jax.Array | None = None) -> None:
    """x: one point, shape (2,)."""
    theta = numpyro.sample("theta", dist.Uniform(-10, 10).expand([2]).to_event(1))
    component = dist.Normal(theta, jnp.array(SCALES)[:, None]).to_event(1)
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), component), obs=x)
