"""Two moons: a posterior of two crescents that face each other, each of them thin.

    theta ~ uniform on [-1, 1]²,
    x = (1/4 - |theta_1 + theta_2| / sqrt(2), (theta_2 - theta_1) / sqrt(2)) + r (cos a, sin a),
    a ~ uniform(-pi/2, pi/2),    r ~ normal(0.1, 0.01)

The absolute value gives the two moons; the noise on half a ring bends them. A change to polar coordinates sums a and r
out: the density of x is written in closed form. Reference: Greenberg, Nonnenmacher and Macke (2019), Automatic
Posterior Transformation for Likelihood-Free Inference, ICML; settings of Lueckmann et al. (2021), Benchmarking
Simulation-Based Inference, AISTATS.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


class Crescent(dist.Distribution):
    """The law of c + r (cos a, sin a) with a ~ uniform(-pi/2, pi/2) and r ~ normal(0.1, 0.01).

    With s = |x - c|, negative where x lies to the left of c (there r < 0), the density is normal(s | 0.1, 0.01) over
    pi |s|, the length of the half circle.

    Args:
        center: c, shape ``(..., 2)``.
    """

    arg_constraints: ClassVar = {"center": dist.constraints.real_vector}
    support = dist.constraints.real_vector
    pytree_data_fields = ("center",)

    def __init__(self, center: jax.Array) -> None:
        self.center = center
        super().__init__(batch_shape=jnp.shape(center)[:-1], event_shape=(2,), validate_args=False)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        key_a, key_r = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        a = jax.random.uniform(key_a, shape, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
        r = 0.1 + 0.01 * jax.random.normal(key_r, shape)
        return self.center + r[..., None] * jnp.stack([jnp.cos(a), jnp.sin(a)], -1)

    def log_prob(self, value: jax.Array) -> jax.Array:
        u, v = jnp.moveaxis(value - self.center, -1, 0)
        s = jnp.sqrt(u**2 + v**2)
        return dist.Normal(0.1, 0.01).log_prob(jnp.where(u < 0, -s, s)) - jnp.log(jnp.pi * s)


def model(x: jax.Array | None = None) -> None:
    """x: one point of the plane, shape (2,)."""
    theta = numpyro.sample("theta", dist.Uniform(-1, 1).expand([2]).to_event(1))
    along, across = (theta[0] + theta[1]) / jnp.sqrt(2), (theta[1] - theta[0]) / jnp.sqrt(2)
    numpyro.sample("x", Crescent(jnp.stack([0.25 - jnp.abs(along), across])), obs=x)
