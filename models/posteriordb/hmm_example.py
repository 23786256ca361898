"""A hidden Markov model with two states and normal emissions, on 100 simulated points.

    z_t ~ categorical(theta_{z_{t-1}}),    y_t ~ normal(mu_{z_t}, 1),
    mu_1 ~ normal(3, 1),    mu_2 ~ normal(10, 1),    0 < mu_1 < mu_2,    theta1, theta2 flat on the simplex

theta1 and theta2 are the rows of the transition matrix; the first state is either one with the same weight.
The states are summed out by the forward algorithm, so y is required.
Reference: Ali (2019), Tagging Basketball Events with HMM in Stan, https://github.com/imadmali/bball-hmm.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp


def model(y: jax.Array) -> None:
    """y: the series, shape (time,)."""
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1).log_prob(mu).sum())

    log_transition = jnp.log(jnp.stack([theta1, theta2]))
    log_emission = dist.Normal(mu, 1).log_prob(y[:, None])

    def step(log_alpha: jax.Array, log_emission_t: jax.Array) -> tuple[jax.Array, None]:
        return logsumexp(log_alpha[:, None] + log_transition, axis=0) + log_emission_t, None

    log_alpha, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])
    numpyro.factor("log_likelihood", logsumexp(log_alpha))
