"""Schroedinger bridges

Between two samples: the most likely Brownian motion, its marginals, and the plan of its ends.
"""

import math

import jax
import numpy as np

import probgen.generative as pg

EPSILON = 0.5
EXPECTED = {
    "mean at the end (2)": (1.85, 2.15),
    "deviation at the end (1)": (0.85, 1.15),
    "covariance of the ends": (0.2, 0.42),
    "its closed form": (0.309, 0.31),
    "covariance of the ends, exact fields": (0.28, 0.34),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(2.0, 1.0, (6000, 1)), rng.normal(-1.0, 0.5, (6000, 1))
    # The data have a deviation of 1, so that standard units are theirs.
    family = pg.schroedinger_bridge(EPSILON, pg.Samples(y), width=48, depth=2, steps=40, iterations=20)
    model = pg.fit(family, x, training=pg.Training(steps=1000, batch=128, learning_rate=5e-3, block=500))
    begin = rng.normal(-1.0, 0.5, (4000, 1))
    end = np.asarray(jax.jit(lambda m, k, b: m.transport(k, b))(model, jax.random.key(0), begin.astype(np.float32)))
    exact = pg.GaussianInterpolant.bridge([[2.0], [-1.0]], [[1.0]], [[0.25]], EPSILON)
    keys = jax.random.split(jax.random.key(1), len(begin))
    walk = jax.jit(jax.vmap(lambda k, x: pg.interpolant_path(k, exact, x, EPSILON / 2, 40)[1][-1]))
    ideal = np.asarray(walk(keys, begin))
    return {
        "mean at the end (2)": float(end.mean()),
        "deviation at the end (1)": float(end.std()),
        "covariance of the ends": float(np.cov(begin[:, 0], end[:, 0])[0, 1]),
        "its closed form": math.sqrt(0.25 + EPSILON**2 / 4) - EPSILON / 2,
        "covariance of the ends, exact fields": float(np.cov(begin[:, 0], ideal[:, 0])[0, 1]),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
