"""Guidance-free training

A single network with the weight of guidance as an input, against exact guidance of two Gaussian classes.
"""

import jax
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "mean, weight 1": (0.8, 1.0),
    "mean, weight 2": (1.0, 1.35),
    "mean, exact guidance with weight 2": (1.1, 1.3),
    "error of the deviation, weight 2": (-0.2, 0.2),
}
PATH = pg.VP()


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 10_000)
    x = np.array([-0.9, 0.9])[labels][:, None] + 0.5 * rng.normal(size=(10_000, 1))
    family = pg.GuidanceFree(pg.Diffusion(width=32, depth=2, sampling_steps=20), most=3.0)
    model = pg.fit(family, x, np.eye(2)[labels], training=pg.Training(steps=1200, batch=256), progress=False)
    once, twice = (
        np.asarray(model.given(np.eye(2)[1], weight).sample(jax.random.key(1), (3000,))) for weight in (1.0, 2.0)
    )
    # In standard units, those of the network.
    scale = float(np.std(x))
    both = pg.GaussianMixture([0.5, 0.5], np.array([[-0.9], [0.9]]) / scale, [[0.25 / scale**2]], PATH)
    one = pg.GaussianMixture([1.0], np.array([[0.9]]) / scale, [[0.25 / scale**2]], PATH)
    guided = pg.DenoisedDistribution(pg.Guidance(one, both, 2.0), steps=20)
    exact = scale * np.asarray(guided.sample(jax.random.key(2), (3000,)))
    return {
        "mean, weight 1": float(once.mean()),
        "mean, weight 2": float(twice.mean()),
        "mean, exact guidance with weight 2": float(exact.mean()),
        "error of the deviation, weight 2": float(twice.std() - exact.std()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
