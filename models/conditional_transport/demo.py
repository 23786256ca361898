"""Conditional transport (ACT)

The cost of going to the data and back by Bayes' rule, against closed forms, and a generator that it trains.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import probgen.generative as pg

EXPECTED = {
    "cost of the way there": (0.72, 0.735),
    "its closed form": (0.727, 0.7285),
    "smallest share of four modes (0.25)": (0.05, 0.25),
    "share of draws near a mode": (0.6, 1.0),
}


def main() -> dict[str, float]:
    # x ~ N(0, 1), y ~ N(1, 1.5^2), d = (x - y)^2 / 2r.
    points, m, s, r = norm.ppf((np.arange(1000) + 0.5) / 1000), 1.0, 1.5, 0.8
    squared = jnp.asarray((points[:, None] - m - s * points) ** 2)
    precision = 1 / s**2 + 1 / r
    slope, shift = 1 / r / precision, m / s**2 / precision

    rng = np.random.default_rng(0)
    means = 2.0 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    x = means[rng.integers(0, 4, 4000)] + 0.3 * rng.normal(size=(4000, 2))
    training = pg.Training(steps=1000, batch=128, learning_rate=3e-3, ema=0.99, block=500)
    model = pg.fit(pg.ConditionalTransport(width=48, depth=2), x, training=training)
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(model, jax.random.key(0)))
    distance = np.linalg.norm(draws[:, None] - means, axis=-1)
    return {
        "cost of the way there": float(pg.conditional_transport_cost(squared, squared / (2 * r), 1.0)),
        "its closed form": float((1 - slope) ** 2 + shift**2 + 1 / precision),
        "smallest share of four modes (0.25)": float(np.bincount(np.argmin(distance, 1), minlength=4).min() / 2000),
        "share of draws near a mode": float(np.mean(distance.min(1) < 1.2)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
