"""Latent diffusion

Digits of 8 x 8 pixels: an autoencoder, then a diffusion model of its codes, with the digit as its condition.
"""

import jax
import numpy as np
from sklearn.datasets import load_digits

import probgen.generative as pg

EXPECTED = {
    "share of the variance that codes lose": (0.05, 0.4),
    "discrepancy of draws and data": (-0.002, 0.02),
    "discrepancy of decoded noise and data": (0.005, 0.5),
    "discrepancy over that of decoded noise": (-0.2, 0.7),
    "draws nearest to the mean of their digit": (0.7, 1.0),
}


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, of a Gaussian kernel as wide as the data."""
    x, y = x[:800], y[:800]
    wide = 2 * x.var(0).sum()
    gram = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / wide)  # noqa: E731
    within = sum((gram(a, a).sum() - len(a)) / len(a) / (len(a) - 1) for a in (x, y))
    return float(within - 2 * gram(x, y).mean())


def main() -> dict[str, float]:
    """The numbers of the page."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x, label = digits.data[order] / 16, np.eye(10)[digits.target[order]]
    learned, held = slice(0, 1000), slice(1000, None)
    training = pg.Training(steps=1500, batch=128, learning_rate=2e-3, weight_decay=0.0, ema=0.99, block=500)
    encoder = pg.fit(pg.Autoencoder(size=8, variance=0.05, width=128, depth=1), x[learned], training=training)
    family = pg.LatentModel(encoder, pg.Diffusion(width=96, depth=2, sampling_steps=16))
    model = pg.fit(family, x[learned], label[learned], training=training)

    again = np.asarray(encoder.decode(encoder.encode(x[held])))
    found = {"share of the variance that codes lose": float(np.mean((again - x[held]) ** 2) / x[held].var(0).mean())}
    draws = np.asarray(model.given(label[held]).sample(jax.random.key(0)))
    noise = np.asarray(encoder.decode(jax.random.normal(jax.random.key(1), (len(draws), 8))))
    found["discrepancy of draws and data"] = discrepancy(x[held], draws)
    found["discrepancy of decoded noise and data"] = discrepancy(x[held], noise)
    found["discrepancy over that of decoded noise"] = (
        found["discrepancy of draws and data"] / found["discrepancy of decoded noise and data"]
    )
    means = np.stack([x[learned][label[learned][:, k] == 1].mean(0) for k in range(10)])
    nearest = np.argmin(((draws[:, None] - means) ** 2).sum(-1), 1)
    found["draws nearest to the mean of their digit"] = float(np.mean(nearest == label[held].argmax(1)))
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
