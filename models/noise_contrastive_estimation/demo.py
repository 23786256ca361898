"""Noise-contrastive estimation: an energy and its normaliser, by telling data from noise.

A mixture of two normals in the plane. The learned energy is integrated on a grid, which gives the normaliser that the
fit has estimated on the side, and the distance of the learned law from the true one.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

EXPECTED = {
    "log normaliser, by the fit less by the grid": (-0.08, 0.08),
    "relative entropy of the learned law, nats": (0.0, 0.08),
    "weight of the mode on the right, learned": (0.26, 0.34),
    "weight of the mode on the right, of draws": (0.22, 0.38),
}
"""The true weight is 0.3. The normaliser of one fit varies by a few hundredths."""


def main() -> dict[str, float]:
    """Fit, integrate, draw."""
    rng = np.random.default_rng(0)
    right = rng.random(4000) < 0.3
    x = 0.5 * rng.normal(size=(4000, 2)) + np.where(right[:, None], [1.2, 0.5], [-1.0, -0.5])
    family = pg.generative.NoiseContrast(energy=pg.generative.NeuralEnergy(width=32), sampling_steps=300)
    training = pg.generative.Training(steps=1500, batch=256, learning_rate=5e-3, ema=0.99, weight_decay=0.0)
    model = pg.generative.fit(family, x, training=training)
    axis = np.linspace(-6, 6, 201)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    energy = np.asarray(jax.jit(model.energy)(grid))
    cell = (axis[1] - axis[0]) ** 2
    log_z = np.log(np.exp(-energy).sum() * cell)
    learned = np.exp(-energy - log_z)

    def normal(mean):
        return np.exp(-((grid - mean) ** 2).sum(-1) / 0.5) / (0.5 * np.pi)

    true = 0.3 * normal([1.2, 0.5]) + 0.7 * normal([-1.0, -0.5])
    side = grid @ np.array([1.1, 0.5]) > 0.1
    draws = np.asarray(jax.jit(lambda k: model.sample(k, (500,)))(jax.random.key(1)))
    return {
        "log normaliser, by the fit less by the grid": float(model.log_normaliser) - log_z,
        "relative entropy of the learned law, nats": (true * np.log(np.maximum(true, 1e-300) / learned)).sum() * cell,
        "weight of the mode on the right, learned": learned[side].sum() * cell,
        "weight of the mode on the right, of draws": float(jnp.mean(draws @ np.array([1.1, 0.5]) > 0.1)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
