"""Bernoulli GLM, spike by spike: the filter by which a neuron responds to white noise.

    y_t ~ Bernoulli(1 / (1 + exp(-(theta_1 + past_t (theta_2, ..., theta_10))))),  t = 1 ... T,
    past_t = (I_t, I_(t-1), ..., I_(t-8)),
    theta_1 ~ normal(0, 2),    (theta_2, ..., theta_10) ~ normal(0, (F^T F)^-1),
    F = D² + diag(sqrt(k / 9)),  k = 0 ... 8,    D = first differences

(2 is a variance.) I is the stimulus. The sums of the spikes that the program ``bernoulli_glm`` observes are sufficient, so
its posterior is this one. References: Lueckmann et al. (2021), Benchmarking Simulation-Based Inference, AISTATS; Gonçalves
et al. (2020), Training Deep Neural Density Estimators to Identify Mechanistic Models of Neural Dynamics, eLife 9, e56261.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

LAGS = 9


def precision() -> jax.Array:
    """Prior precision of the offset and the filter, shape (10, 10)."""
    difference = jnp.eye(LAGS) - jnp.eye(LAGS, k=-1)
    f = difference @ difference + jnp.diag(jnp.sqrt(jnp.arange(LAGS) / LAGS))
    return jnp.block([[jnp.full((1, 1), 0.5), jnp.zeros((1, LAGS))], [jnp.zeros((LAGS, 1)), f.T @ f]])


def model(past: jax.Array, x: jax.Array | None = None) -> None:
    """past: the stimulus 0 ... 8 steps before each time, 0 before its start, shape (T, 9); x: spikes, shape (T,)."""
    theta = numpyro.sample("theta", dist.MultivariateNormal(jnp.zeros(LAGS + 1), precision_matrix=precision()))
    with numpyro.plate("time", past.shape[0]):
        numpyro.sample("x", dist.Bernoulli(logits=theta[0] + past @ theta[1:]), obs=x)
