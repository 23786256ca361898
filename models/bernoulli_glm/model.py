"""Bernoulli GLM: the filter by which a neuron responds to white noise, from its spikes.

    y_t ~ Bernoulli(1 / (1 + exp(-(V theta)_t))),  t = 1 ... T,    V_t = (1, I_t, I_(t-1), ..., I_(t-8)),
    x = V^T y,    theta_1 ~ normal(0, 2),    (theta_2, ..., theta_10) ~ normal(0, (F^T F)^-1),
    F = D² + diag(sqrt(k / 9)),  k = 0 ... 8,    D = first differences

(2 is a variance.) I is the stimulus, 0 before its start; x, the number of spikes and the sums of the stimulus before
them, is sufficient for theta. Its probability is exp(theta x) / prod_t (1 + exp((V theta)_t)) times the number of spike
trains with this x: 1 almost surely if the stimulus is drawn from a density. Differences of second order make the filter
smooth. References: Lueckmann et al. (2021), Benchmarking Simulation-Based Inference, AISTATS; Gonçalves et al. (2020),
Training Deep Neural Density Estimators to Identify Mechanistic Models of Neural Dynamics, eLife 9, e56261.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

LAGS = 9


class SpikeSums(dist.Distribution):
    """The law of design^T y for spikes y_t ~ Bernoulli(logit (design theta)_t), if no two spike trains give the same.

    The density is a probability: the support is a finite set, of which only membership in R^dim is declared.

    Args:
        design: V, shape ``(T, dim)``.
        theta: Coefficients, shape ``(..., dim)``.
    """

    arg_constraints: ClassVar = {"design": dist.constraints.real_matrix, "theta": dist.constraints.real_vector}
    support = dist.constraints.real_vector
    pytree_data_fields = ("design", "theta")

    def __init__(self, design: jax.Array, theta: jax.Array) -> None:
        self.design, self.theta = design, theta
        super().__init__(batch_shape=jnp.shape(theta)[:-1], event_shape=jnp.shape(theta)[-1:], validate_args=False)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        rate = jax.nn.sigmoid(self.theta @ self.design.T)
        spikes = jax.random.bernoulli(key, rate, sample_shape + jnp.shape(rate))
        return spikes.astype(rate.dtype) @ self.design

    def log_prob(self, value: jax.Array) -> jax.Array:
        return (value * self.theta).sum(-1) - jax.nn.softplus(self.theta @ self.design.T).sum(-1)


def precision() -> jax.Array:
    """Prior precision of the offset and the filter, shape (10, 10)."""
    difference = jnp.eye(LAGS) - jnp.eye(LAGS, k=-1)
    f = difference @ difference + jnp.diag(jnp.sqrt(jnp.arange(LAGS) / LAGS))
    return jnp.block([[jnp.full((1, 1), 0.5), jnp.zeros((1, LAGS))], [jnp.zeros((LAGS, 1)), f.T @ f]])


def model(stimulus: jax.Array, x: jax.Array | None = None) -> None:
    """stimulus: I, shape (T,); x: number of spikes, and the sums of the stimulus 0 ... 8 steps before, shape (10,)."""
    past = [jnp.pad(stimulus, (lag, 0))[: len(stimulus)] for lag in range(LAGS)]
    design = jnp.stack([jnp.ones_like(stimulus), *past], 1)
    theta = numpyro.sample("theta", dist.MultivariateNormal(jnp.zeros(LAGS + 1), precision_matrix=precision()))
    numpyro.sample("x", SpikeSums(design, theta), obs=x)
