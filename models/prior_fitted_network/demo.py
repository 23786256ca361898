"""Prior-data fitted network

A transformer learns the predictive of a Gaussian process from data sets that the process draws, and is compared with the
exact predictive; so is the spread of its martingale posterior.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import norm

import probgen as pg

EXPECTED = {
    "gap to the exact predictive, nats per point": (0.0, 0.1),
    "spread of the martingale posterior over what it should be": (0.75, 1.3),
    "spread of the martingale posterior over the whole posterior's": (0.6, 1.2),
}
ROWS, NOISE = 12, 0.3


def kernel(a, b):
    return jnp.exp(-0.5 * (a[:, None] - b[None, :]) ** 2 / 0.5**2)


def process(x, y=None):
    covariance = kernel(x, x) + NOISE**2 * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(x.shape[0]), covariance), obs=y)


def exact(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the process at new points, without noise."""
    gain = np.linalg.solve(np.asarray(kernel(x, x)) + NOISE**2 * np.eye(len(x)), np.asarray(kernel(x, new))).T
    return gain @ y, 1.0 - np.sum(gain * np.asarray(kernel(new, x)), 1)


def main() -> dict[str, float]:
    training = pg.generative.Training(steps=1200, batch=64, learning_rate=3e-3, block=600)
    predictor = pg.amortized.predictor(
        pg.Model(process, {"x": np.zeros(ROWS)}),
        observed="y",
        design=lambda key: {"x": jax.random.uniform(key, (ROWS,), minval=-1.0, maxval=1.0)},
        method=pg.PFN(bars=100, width=32, depth=3, training=training),
        simulations=10_000,
        seed=0,
        progress=False,
    )
    rng, gaps, ratios, shares = np.random.default_rng(0), [], [], []
    for _ in range(60):
        x = rng.uniform(-1, 1, 21)
        y = np.linalg.cholesky(np.asarray(kernel(x, x)) + NOISE**2 * np.eye(21)) @ rng.normal(size=21)
        mean, variance = exact(x[:5], y[:5], x[5:])
        law = predictor.given(x[:5], y[:5], x[5:])
        gaps.append(np.mean(norm(mean, np.sqrt(variance + NOISE**2)).logpdf(y[5:]) - np.asarray(law.log_prob(y[5:]))))
    pseudo, new = np.linspace(-1, 1, 6), np.linspace(-0.9, 0.9, 7)
    for seed in range(3):
        x = rng.uniform(-1, 1, 3)
        y = np.linalg.cholesky(np.asarray(kernel(x, x)) + NOISE**2 * np.eye(3)) @ rng.normal(size=3)
        means = np.asarray(predictor.martingale(seed, x, y, rng.permutation(pseudo), new, 150))
        # What the pseudo-context takes away from the posterior variance.
        whole, left = exact(x, y, new)[1], exact(np.r_[x, pseudo], np.zeros(9), new)[1]
        ratios.append(np.sqrt(means.var(0).mean() / (whole - left).mean()))
        shares.append(np.sqrt(means.var(0).mean() / whole.mean()))
    return {
        "gap to the exact predictive, nats per point": float(np.mean(gaps)),
        "spread of the martingale posterior over what it should be": float(np.mean(ratios)),
        "spread of the martingale posterior over the whole posterior's": float(np.mean(shares)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
