"""Lotka-Volterra: prey and predators, counted ten times with an error of a tenth.

    d/dt X = alpha X - beta X Y,    d/dt Y = -gamma Y + delta X Y,    (X, Y)(0) = (30, 1),
    x_1k ~ log-normal(log X(t_k), 0.1),    x_2k ~ log-normal(log Y(t_k), 0.1),  t_k = 0, 2.1, ..., 18.9,
    alpha, gamma ~ log-normal(-1/8, 1/2),    beta, delta ~ log-normal(-3, 1/2)

X and Y are kept within [1e-10, 1e4] in the law of x. The equations are solved for log X and log Y by the classical
Runge-Kutta method with STEPS steps between two counts: over 2,000 draws of the prior, populations are wrong by less than
0.01 % in 99 cases of 100, and by 0.13 % at most. References: Lotka (1920), Analytical Note on Certain Rhythmic Relations
in Organic Systems, PNAS 6(7), 410-415; Volterra (1926), Fluctuations in the Abundance of a Species Considered
Mathematically, Nature 118; settings of Lueckmann et al. (2021), Benchmarking Simulation-Based Inference, AISTATS.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

START, INTERVAL, TIMES, STEPS = (30.0, 1.0), 2.1, 10, 100
COORDS = {"species": ["prey", "predator"], "day": [round(INTERVAL * k, 1) for k in range(TIMES)]}


def solve(alpha: jax.Array, beta: jax.Array, gamma: jax.Array, delta: jax.Array) -> jax.Array:
    """Log populations of prey and predators at the times of the counts, shape (2, TIMES)."""
    h = INTERVAL / STEPS

    def drift(z: jax.Array) -> jax.Array:
        # The cap, far above any population, keeps a solution that blows up finite, and so its gradient.
        prey, predator = jnp.exp(jnp.minimum(z, 20.0))
        return jnp.stack([alpha - beta * predator, delta * prey - gamma])

    def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        k1 = drift(z)
        k2 = drift(z + h / 2 * k1)
        k3 = drift(z + h / 2 * k2)
        k4 = drift(z + h * k3)
        return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def interval(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(step, z, None, length=STEPS)[0], z

    return jax.lax.scan(interval, jnp.log(jnp.array(START)), None, length=TIMES)[1].T


def model(x: jax.Array | None = None) -> None:
    """x: counted prey and predators, shape (species, day)."""
    alpha = numpyro.sample("alpha", dist.LogNormal(-0.125, 0.5))
    beta = numpyro.sample("beta", dist.LogNormal(-3, 0.5))
    gamma = numpyro.sample("gamma", dist.LogNormal(-0.125, 0.5))
    delta = numpyro.sample("delta", dist.LogNormal(-3, 0.5))
    log_z = jnp.clip(solve(alpha, beta, gamma, delta), jnp.log(1e-10), jnp.log(1e4))
    with numpyro.plate("species", 2, dim=-2), numpyro.plate("day", TIMES, dim=-1):
        numpyro.sample("x", dist.LogNormal(log_z, 0.1), obs=x)
