"""Path posterior: the states of any series from one network, beside the Kalman smoother."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import probgen as pg

STEPS, DECAY, DRIVE, NOISE = 30, 0.9, 0.5, 0.6
EXPECTED: dict[str, tuple[float, float]] = {
    "gap in nats": (0.0, 0.4),
    # Half the log of the product of the variances over the determinant of the covariance.
    "gap of independent states with exact means and deviations": (2.88, 2.9),
    "log evidence, error in standard errors": (-4.0, 4.0),
    "Pareto k-hat": (-2.0, 0.7),
    # 1,000 draws of 30 means: deviation 0.03, the largest of 30 some three of them, and more for the spread of the weights.
    "largest error of a corrected mean, in posterior deviations": (0.0, 0.2),
}


def series(y=None):
    """An autoregression, seen through noise."""

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(DECAY * x, DRIVE))
        numpyro.sample("y", dist.Normal(x, NOISE), obs=y)
        return x, None

    scan(step, 0.0, y, length=STEPS)


def log_normal(x, mean, covariance):
    """Log density of a multivariate normal law."""
    root = np.linalg.cholesky(covariance)
    z = np.linalg.solve(root, x - mean)
    return -0.5 * z @ z - np.log(np.diag(root)).sum() - 0.5 * len(x) * np.log(2 * np.pi)


def main() -> dict[str, float]:
    """The gap to the exact posterior in nats; then one series, corrected by the density."""
    root = np.linalg.inv(np.eye(STEPS) - DECAY * np.eye(STEPS, k=-1)) * DRIVE
    prior, rng = root @ root.T, np.random.default_rng(0)
    total = prior + NOISE**2 * np.eye(STEPS)
    gain = prior @ np.linalg.inv(total)
    covariance = prior - gain @ prior
    x = rng.multivariate_normal(np.zeros(STEPS), prior, 200)
    y = x + NOISE * rng.normal(size=x.shape)
    exact = np.array([log_normal(x, gain @ y, covariance) for x, y in zip(x, y, strict=True)])

    training = pg.generative.Training(steps=400, batch=128, learning_rate=2e-3)
    method = pg.PathPosterior(width=32, training=training)
    amortized = pg.amortize(pg.Model(series), ["y"], method, 4000, seed=0, progress=False)
    reading = amortized.question.reading
    packed = jnp.stack([reading.pack({"y": y}, {}) for y in y])
    log_q = jax.jit(lambda law, c, x: jax.vmap(lambda c, x: law.given(c).log_prob(x))(c, x))(
        amortized.law, packed, jnp.asarray(x)
    )
    tree = pg.infer(pg.Model(series, {"y": y[0]}), pg.ImportanceSampling(amortized), draws=1000, chains=1)
    evidence = log_normal(y[0], np.zeros(STEPS), total)
    off = (tree.posterior.x.values[0].mean(0) - gain @ y[0]) / np.sqrt(np.diag(covariance))
    apart = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    return {
        "gap in nats": float(np.mean(exact - np.asarray(log_q))),
        "gap of independent states with exact means and deviations": float(apart),
        "log evidence, error in standard errors": float(
            (tree.attrs["log_evidence"] - evidence) / tree.attrs["log_evidence_se"]
        ),
        "Pareto k-hat": float(tree.attrs["pareto_k"]),
        "largest error of a corrected mean, in posterior deviations": float(np.abs(off).max()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
