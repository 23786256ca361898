"""Probabilistic contrastive learning: an encoder that knows which inputs are ambiguous.

Inputs whose true posteriors on the sphere are known: mean directions and concentrations from 8 to 60. An encoder that sees
pairs, never the latents, is to find both, up to a rotation.
"""

import jax
import numpy as np

import probgen as pg

EXPECTED = {
    "rank correlation of concentrations": (0.85, 1.0),
    "slope of log concentration": (0.75, 1.3),
    "mean log ratio of concentrations": (-0.25, 0.25),
    "mean cosine of directions, after the best rotation": (0.98, 1.0),
}
"""Perfect recovery: 1, 1, 0, 1."""


def pairs(rng, count, inputs, mu, kappa):
    """Inputs x, and others whose latent is near: z of x, z+ near z, x+ by its posterior at z+."""
    first = rng.integers(0, inputs, count)
    key = jax.random.key(int(rng.integers(2**31)))
    key_latent, key_near = jax.random.split(key)
    law = pg.generative.VonMisesFisher
    z = law(mu[first], kappa[first], validate_args=False).sample(key_latent)
    near = np.asarray(law(z, 20.0, validate_args=False).sample(key_near))
    log_p = np.log(kappa / (1 - np.exp(-2 * kappa))) + kappa * (near @ mu.T - 1)
    return first, (log_p + rng.gumbel(size=log_p.shape)).argmax(1)


def main() -> dict[str, float]:
    """Make inputs, fit, compare with the truth."""
    from scipy import stats

    rng = np.random.default_rng(0)
    inputs = 500
    mu = rng.normal(size=(inputs, 3))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    kappa = np.exp(rng.uniform(np.log(8), np.log(60), inputs))
    mixing = np.linalg.qr(rng.normal(size=(6, 4)))[0].T
    shown = np.concatenate([2 * mu, np.log(kappa)[:, None] - 3], 1) @ mixing
    first, second = pairs(rng, 20_000, inputs, mu, kappa)
    x = np.stack([shown[first], shown[second]], 1)
    family = pg.generative.ContrastiveEncoder(positive=20.0, draws=64, width=64)
    training = pg.generative.Training(steps=700, batch=64, learning_rate=5e-3, ema=0.98, weight_decay=0.0)
    model = pg.generative.fit(family, x, training=training)
    found, direction = np.asarray(model.concentration(shown)), np.asarray(model.direction(shown))
    u, _, v = np.linalg.svd(direction.T @ mu)
    return {
        "rank correlation of concentrations": float(np.asarray(stats.spearmanr(found, kappa))[0]),
        "slope of log concentration": np.polyfit(np.log(kappa), np.log(found), 1)[0],
        "mean log ratio of concentrations": np.log(found / kappa).mean(),
        "mean cosine of directions, after the best rotation": ((direction @ (u @ v)) * mu).sum(1).mean(),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
