"""Entropic optimal transport by energy

A potential, trained like an energy-based model, gives the plan between two samples: Gaussian, so that it is known.
"""

import jax
import numpy as np

import probgen.generative as pg

EPSILON = 0.5
EXPECTED = {
    "mean of the ends (2)": (1.85, 2.15),
    "deviation of the ends (1)": (0.85, 1.15),
    "covariance of start and end": (0.38, 0.6),
    "its closed form": (0.493, 0.494),
    "covariance without regularisation": (0.699, 0.701),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(2.0, 1.0, (5000, 1)), rng.normal(1.0, 0.7, (5000, 1))
    # The data have a deviation of 1, so that standard units are theirs.
    family = pg.EntropicTransport(source=pg.Samples(y), epsilon=EPSILON, moves=25, width=32)
    training = pg.Training(steps=700, batch=256, learning_rate=5e-3, ema=0.98, block=350)
    model = pg.fit(family, x, training=training)
    begin = rng.normal(1.0, 0.7, (6000, 1)).astype(np.float32)
    end = np.asarray(jax.jit(lambda m, k, b: m.transport(k, b))(model, jax.random.key(0), begin))
    return {
        "mean of the ends (2)": float(end.mean()),
        "deviation of the ends (1)": float(end.std()),
        "covariance of start and end": float(np.cov(begin[:, 0], end[:, 0])[0, 1]),
        "its closed form": float(np.sqrt(0.49 + EPSILON**2 / 4) - EPSILON / 2),
        "covariance without regularisation": float(np.sqrt(0.49)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
