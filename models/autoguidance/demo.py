"""Autoguidance

A network guided by a smaller one that was trained for less time: fewer outliers, and all modes.
"""

import jax
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "outliers": (0.03, 0.3),
    "outliers with autoguidance": (0.0, 0.06),
    "outliers, ratio": (0.0, 0.5),
    "error of mode weights": (0.0, 0.12),
    "error of mode weights with autoguidance": (0.0, 0.12),
}
WEIGHTS, MEANS = np.array([0.1, 0.2, 0.3, 0.4]), np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    x = MEANS[rng.choice(4, 20_000, p=WEIGHTS)] + 0.15 * rng.normal(size=(20_000, 2))
    long, short = (pg.Training(steps=n, batch=128, learning_rate=5e-3, ema=0.99) for n in (1000, 150))
    good = pg.fit(pg.Diffusion(width=32, depth=2), x, training=long, progress=False)
    bad = pg.fit(pg.Diffusion(width=16, depth=1), x, training=short, progress=False)

    def numbers(weight):
        guided = pg.Guidance(good.denoiser, bad.denoiser, weight)
        law = pg.DenoisedDistribution(guided, units=good.units, steps=20)
        draws = np.asarray(law.sample(jax.random.key(1), (3000,)))
        squared = ((draws[:, None] - MEANS) ** 2).sum(-1)
        shares = np.bincount(squared.argmin(1), minlength=4) / len(draws)
        # Outside of 99% of every component.
        return float(np.mean(squared.min(1) > 9.21 * 0.15**2)), float(0.5 * np.abs(shares - WEIGHTS).sum())

    (outliers, error), (fewer, error_guided) = numbers(1.0), numbers(1.8)
    return {
        "outliers": outliers,
        "outliers with autoguidance": fewer,
        "outliers, ratio": fewer / outliers,
        "error of mode weights": error,
        "error of mode weights with autoguidance": error_guided,
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
