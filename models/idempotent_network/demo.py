"""Idempotent generative networks

A noisy ring: noise is taken to it in one step, points on it stay, and points beside it are projected.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "how far data are moved": (0.0, 0.15),
    "how far draws are moved again": (0.0, 0.15),
    "distance of draws from the ring": (0.0, 0.3),
    "distance of noise from the ring": (0.3, 0.7),
    "largest error of the distribution of the angle": (0.0, 0.3),
    "distance from the ring before projection": (0.2, 0.4),
    "distance from the ring after projection": (0.0, 0.2),
}


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, size=4096)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + 0.05 * rng.normal(size=(4096, 1)))
    training = pg.Training(steps=3000, batch=128, learning_rate=1e-3, validation=0.0, ema=0.99, block=1000)
    model = pg.fit(pg.IdempotentNetwork(width=64, depth=3), x, training=training)
    from_ring = lambda x: float(np.mean(np.abs(np.linalg.norm(x, axis=-1) - 1)))  # noqa: E731
    draws = model.sample(jax.random.key(0), (2000,))
    turn = np.arctan2(draws[:, 1], draws[:, 0]) / (2 * np.pi) + 0.5
    beside = x[:1000] * rng.choice([0.7, 1.3], (1000, 1))
    found = {
        "how far data are moved": float(jnp.linalg.norm(model.project(x[:1000]) - x[:1000], axis=1).mean()),
        "how far draws are moved again": float(jnp.linalg.norm(model.project(draws) - draws, axis=1).mean()),
        "distance of draws from the ring": from_ring(draws),
        "largest error of the distribution of the angle": float(np.abs(np.sort(turn) - np.linspace(0, 1, 2000)).max()),
        "distance of noise from the ring": from_ring(rng.normal(size=(2000, 2)) * x.std(0)),
        "distance from the ring before projection": from_ring(beside),
        "distance from the ring after projection": from_ring(model.project(beside)),
    }
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
