"""Multimarginal interpolants

Three laws and noise, learned at once; transport between two of them, straight and by way of the third.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "largest error of a mean": (0.0, 0.2),
    "largest error of a deviation": (0.0, 0.2),
    "cost of the edge, exact fields": (9.39, 9.5),
    "cost of the learned path, exact fields": (9.0, 9.39),
    "squared Wasserstein distance": (8.99, 9.01),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    means = np.array([[-1.5, 0.0], [1.5, 0.0], [0.0, 0.0]])
    deviations = np.sqrt([0.5, 0.5, 2.0])
    data = means + deviations[:, None] * rng.normal(size=(8000, 3, 2))
    training = pg.Training(steps=1200, batch=256, learning_rate=5e-3, block=400)
    model = pg.fit(pg.Multimarginal(width=64, depth=2, solver=pg.HeunSteps(16)), data, training=training)
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (3000,)))(model, jax.random.key(0)))

    covariances = np.zeros((3, 2, 3, 2))
    for law in range(3):
        covariances[law, :, law] = deviations[law] ** 2 * np.eye(2)
    field, some = pg.GaussianMarginals(means, covariances), jnp.asarray(data[:2000])
    path = jax.jit(lambda k, d: pg.shorter_path(k, field, d, (0, 1), steps=100))(jax.random.key(1), some)
    cost = jax.jit(lambda p, d: pg.path_cost(field, d, p))
    return {
        "largest error of a mean": float(np.abs(draws.mean(0) - means).max()),
        "largest error of a deviation": float(np.abs(draws.std(0) - deviations[:, None]).max()),
        "cost of the edge, exact fields": float(cost(pg.SimplexPath((0, 1), 3), some)),
        "cost of the learned path, exact fields": float(cost(path, some)),
        "squared Wasserstein distance": float(np.sum((means[0] - means[1]) ** 2)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
