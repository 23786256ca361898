"""Flow matching

A flow from noise to four Gaussians, and its density against the exact one.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {"gap to the entropy, nats": (-0.05, 0.15), "share of the rarest mode (0.1)": (0.05, 0.15)}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    weights, means = np.array([0.1, 0.2, 0.3, 0.4]), 2.0 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])

    def draw(count):
        return means[rng.choice(4, count, p=weights)] + 0.5 * rng.normal(size=(count, 2))

    training = pg.Training(steps=1500, batch=256, learning_rate=3e-3, block=500)
    model = pg.fit(pg.FlowMatching(width=64, depth=2), draw(20_000), training=training)

    fresh = draw(500)
    squared = np.sum((fresh[:, None] - means) ** 2, -1) / 0.25
    exact = np.log(np.exp(-squared / 2) @ weights / (2 * np.pi * 0.25))
    gap = float(np.mean(exact - jax.jit(lambda m, x: m.log_prob(x))(model, jnp.asarray(fresh, jnp.float32))))
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(model, jax.random.key(0)))
    nearest = np.argmin(np.sum((draws[:, None] - means) ** 2, -1), 1)
    return {"gap to the entropy, nats": gap, "share of the rarest mode (0.1)": float(np.mean(nearest == 0))}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
