"""Gradient origin network: an autoencoder without an encoder.

The guide steps along the gradient of the log likelihood at the origin. For a linear decoder that can be the exact
posterior, so training should reach the principal components, whose log density is known.
"""

import jax
import numpy as np

from probgen import generative

EXPECTED = {"log density lost in training": (-0.002, 0.05), "gap of the bound": (-0.02, 0.06)}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 2)) * [2, 1]
    x = rng.normal(size=(500, 2)) @ mixing.T + 0.5 * rng.normal(size=(500, 5))
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = variances[2:].mean()
    best = -0.5 * (5 * np.log(2 * np.pi) + np.log(variances[:2]).sum() + 3 * np.log(noise) + 5)
    family = generative.VAE(latent=2, encoder=generative.GradientOrigin(), depth=0)
    training = generative.Training(
        steps=2500, batch=100, learning_rate=3e-2, weight_decay=0.0, ema=0.99, validation=0.0
    )
    model = generative.fit(family, x, training=training, seed=0)
    key_estimate, key_bound = jax.random.split(jax.random.key(1))
    log_p = float(jax.jit(lambda x: model.estimate(key_estimate, x, 100).log_p.mean())(x))
    bound = float(jax.jit(lambda x: model.bound(key_bound, x).mean())(x))
    return {"log density lost in training": best - log_p, "gap of the bound": log_p - bound}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
