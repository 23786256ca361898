"""Effects of coaching in eight schools: a hierarchical normal model, centred.

    y_j ~ normal(theta_j, sigma_j),    theta_j ~ normal(mu, tau),    mu ~ normal(0, 5),    tau ~ half-Cauchy(0, 5)

sigma_j are known standard errors. As tau tends to 0 the effects theta are squeezed into a funnel that gradient-based
samplers enter with difficulty; eight_schools_noncentered is the same posterior without it.
References: Rubin (1981), Estimation in Parallel Randomized Experiments, Journal of Educational Statistics 6(4);
Gelman et al. (2013), Bayesian Data Analysis, section 5.5.
"""

import jax
import numpyro
import numpyro.distributions as dist


def model(sigma: jax.Array, y: jax.Array | None = None) -> None:
    """sigma: standard errors, y: estimated effects; both of shape (school,)."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
