"""ARD-VAE: how many latent dimensions the data have.

Ten variables made from three, by a curved map; eight latent dimensions are offered, with learned prior variances.
"""

import jax
import numpy as np

from probgen import generative

EXPECTED = {"relevant dimensions": (3, 3.1), "share of the three": (0.99, 1.0001), "active dimensions": (3, 3.1)}


def main() -> dict[str, float]:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1000, 3))
    x = np.concatenate([z, np.tanh(z @ rng.normal(size=(3, 3))), z @ rng.normal(size=(3, 4))], 1)
    x = x + 0.1 * rng.normal(size=x.shape)
    family = generative.VAE(
        latent=8, prior=generative.Relevance(), encoder=generative.Amortised(64, 1), width=64, depth=1
    )
    training = generative.Training(
        steps=3000, batch=100, learning_rate=5e-3, weight_decay=0.0, ema=0.99, validation=0.0
    )
    model = generative.fit(family, x, training=training, seed=0)
    report = model.report(jax.random.key(1), x[:300])
    shares = np.sort(report.relevance)[::-1]
    return {
        "relevant dimensions": float(report.relevant),
        "share of the three": float(shares[:3].sum()),
        "active dimensions": float(report.active.sum()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
