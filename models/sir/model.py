"""SIR: an epidemic, seen through tests of a thousand people at ten times.

    dS/dt = -beta S I / N,    dI/dt = beta S I / N - gamma I,    dR/dt = gamma I,    (S, I, R)(0) = (N - 1, 1, 0),
    x_k ~ binomial(1000, I(t_k) / N),  t_k = 0, 17, ..., 153 days,    N = 10^6,
    beta ~ log-normal(log 0.4, 0.5),    gamma ~ log-normal(log 0.125, 0.2)

The equations are solved for log S/N and log I/N by the classical Runge-Kutta method with STEPS steps between two tests:
over 2,000 draws of the prior, I is wrong by 1e-5 of its value at most. Reference: Kermack and McKendrick (1927), A
Contribution to the Mathematical Theory of Epidemics, Proceedings of the Royal Society A 115, 700-721; settings of
Lueckmann et al. (2021), Benchmarking Simulation-Based Inference, AISTATS.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

POPULATION, TESTED, INTERVAL, TIMES, STEPS = 1_000_000, 1000, 17.0, 10, 50
COORDS = {"day": [INTERVAL * k for k in range(TIMES)]}


class Binomial(dist.BinomialLogits):
    """The binomial law of numpyro, drawn by inversion of its distribution function.

    numpyro's rejection sampler was seen not to end for some fractions in 32 bits, when many are drawn at once.
    """

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        u = jax.random.uniform(key, sample_shape + self.batch_shape, jnp.result_type(self.logits))
        counts = jnp.arange(TESTED + 1)
        mass = jnp.exp(dist.BinomialLogits(self.logits[..., None], TESTED).log_prob(counts))
        return (jnp.cumsum(mass, -1)[..., :-1] <= u[..., None] * mass.sum(-1, keepdims=True)).sum(-1)


def solve(beta: jax.Array, gamma: jax.Array) -> jax.Array:
    """Logarithm of the infected fraction at the times of the tests, shape (TIMES,)."""
    h = INTERVAL / STEPS

    def drift(z: jax.Array) -> jax.Array:
        susceptible, infected = jnp.exp(z)
        return jnp.stack([-beta * infected, beta * susceptible - gamma])

    def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        k1 = drift(z)
        k2 = drift(z + h / 2 * k1)
        k3 = drift(z + h / 2 * k2)
        k4 = drift(z + h * k3)
        return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def interval(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(step, z, None, length=STEPS)[0], z[1]

    start = jnp.log(jnp.array([POPULATION - 1.0, 1.0]) / POPULATION)
    return jax.lax.scan(interval, start, None, length=TIMES)[1]


def model(x: jax.Array | None = None) -> None:
    """x: infected among the tested, whole numbers of shape (day,)."""
    beta = numpyro.sample("beta", dist.LogNormal(jnp.log(0.4), 0.5))
    gamma = numpyro.sample("gamma", dist.LogNormal(jnp.log(0.125), 0.2))
    log_infected = solve(beta, gamma)
    with numpyro.plate("day", TIMES):
        # A logit keeps fractions far below the smallest float, which late in an epidemic occur.
        logits = log_infected - jnp.log1p(-jnp.exp(log_infected))
        numpyro.sample("x", Binomial(logits, TESTED), obs=x)
