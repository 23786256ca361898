"""Variational autoencoder: a linear one finds the principal components.

The maximum likelihood of a linear model with normal noise is known (Tipping and Bishop 1999), and the guide can be the
exact posterior there, so the bound is the log density.
"""

import jax
import numpy as np

from probgen import generative

EXPECTED = {
    "best possible mean log density": (-6.8, -6.2),
    "log density lost in training": (-0.002, 0.03),
    "gap of the bound": (-0.02, 0.05),
    "active units": (2, 2.1),
}


def data(count=500):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 2)) * [2, 1]
    return rng.normal(size=(count, 2)) @ mixing.T + 0.5 * rng.normal(size=(count, 5))


def best_mean_log_density(x, latent):
    """Of probabilistic principal component analysis, in closed form."""
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise, dim = variances[latent:].mean(), len(variances)
    log_det = np.log(variances[:latent]).sum() + (dim - latent) * np.log(noise)
    return -0.5 * (dim * np.log(2 * np.pi) + log_det + dim)


def main() -> dict[str, float]:
    x = data()
    family = generative.VAE(latent=2, encoder=generative.Amortised(depth=0), depth=0)
    training = generative.Training(
        steps=1200, batch=100, learning_rate=2e-2, weight_decay=0.0, ema=0.99, validation=0.0
    )
    model = generative.fit(family, x, training=training, seed=0)
    best = best_mean_log_density(x, 2)
    key_estimate, key_bound, key_report = jax.random.split(jax.random.key(1), 3)
    log_p = float(jax.jit(lambda x: model.estimate(key_estimate, x, 50).log_p.mean())(x))
    bound = float(jax.jit(lambda x: model.bound(key_bound, x).mean())(x))
    report = model.report(key_report, x)
    return {
        "best possible mean log density": best,
        "log density lost in training": best - log_p,
        "gap of the bound": log_p - bound,
        "active units": float(report.active.sum()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
