"""Effects of coaching for the SAT in eight schools: a hierarchical normal model, non-centred.

    y_j ~ normal(theta_j, sigma_j),    theta_j = mu + tau z_j,    z_j ~ normal(0, 1),
    mu ~ normal(0, 5),    tau ~ half-Cauchy(0, 5)

sigma_j are known standard errors. Each school borrows strength from the others, the more the smaller tau is. Written
with z instead of theta, the posterior has no funnel where tau is near 0. Reference: Rubin (1981), Estimation in
Parallel Randomized Experiments, Journal of Educational Statistics 6(4), 377-401.
"""

import jax
import numpyro
import numpyro.distributions as dist

COORDS = {"school": list("ABCDEFGH")}


def model(sigma: jax.Array, y: jax.Array | None = None) -> None:
    """sigma: standard errors, y: estimated effects in points of the test; both of shape (school,)."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
