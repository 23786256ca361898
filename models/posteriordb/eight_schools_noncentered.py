"""Effects of coaching in eight schools: a hierarchical normal model, non-centred.

    y_j ~ normal(theta_j, sigma_j),    theta_j = mu + tau theta_trans_j,    theta_trans_j ~ normal(0, 1),
    mu ~ normal(0, 5),    tau ~ half-Cauchy(0, 5)

sigma_j are known standard errors. mu, tau and theta have the posterior of eight_schools_centered, without its funnel.
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
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
