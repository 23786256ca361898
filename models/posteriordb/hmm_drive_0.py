"""A hidden Markov model that finds the drives to the basket in 416 frames of a basketball player's track.

    z_t ~ categorical(theta_{z_{t-1}}),    u_t ~ exponential(phi_{z_t}),    v_t ~ exponential(lambda_{z_t}),
    theta_k ~ Dirichlet(alpha_k),    phi_1, lambda_1 ~ normal(0, 1),    phi_2, lambda_2 ~ normal(3, 1),
    0 < phi_1 < phi_2,    0 < lambda_1 < lambda_2

u is the inverse of the speed, v the distance to the hoop; state 1 is no drive, state 2 a drive.
theta1 and theta2 are the rows of the transition matrix; the first state is either one with the same weight.
The states are summed out by the forward algorithm, so u and v are required.
Reference: Ali (2019), Tagging Basketball Events with HMM in Stan, https://github.com/imadmali/bball-hmm.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp


def model(alpha: jax.Array, u: jax.Array, v: jax.Array) -> None:
    """alpha: Dirichlet weights of the transitions, shape (2, 2); u, v: the two series, shape (time,)."""
    theta1 = numpyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(alpha[1]))
    phi = numpyro.sample("phi", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (2,)))
    rate = numpyro.sample("lambda", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (2,)))
    emission_prior = dist.Normal(jnp.array([0.0, 3.0]), 1)
    numpyro.factor("phi_prior", emission_prior.log_prob(phi).sum())
    numpyro.factor("lambda_prior", emission_prior.log_prob(rate).sum())

    log_transition = jnp.log(jnp.stack([theta1, theta2]))
    log_emission = dist.Exponential(phi).log_prob(u[:, None]) + dist.Exponential(rate).log_prob(v[:, None])

    def step(log_alpha: jax.Array, log_emission_t: jax.Array) -> tuple[jax.Array, None]:
        return logsumexp(log_alpha[:, None] + log_transition, axis=0) + log_emission_t, None

    log_alpha, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])
    numpyro.factor("log_likelihood", logsumexp(log_alpha))
