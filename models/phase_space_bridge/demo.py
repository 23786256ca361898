"""Phase-space bridges

Particles with a velocity are steered to two modes: few steps do, and the end is known early.
"""

import jax
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "share of the right mode in 8 steps (0.7)": (0.6, 0.8),
    "share of the right mode in 40 steps (0.7)": (0.6, 0.8),
    "deviation within the right mode in 8 steps (0.3)": (0.15, 0.6),
    "deviation within the right mode in 40 steps (0.3)": (0.2, 0.5),
    "correlation of the end and its prediction half way": (0.8, 1.0),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    x = rng.choice([-2.0, 2.0], (8000, 1), p=[0.3, 0.7]) + 0.3 * rng.normal(size=(8000, 1))
    training = pg.Training(steps=1200, batch=256, learning_rate=5e-3, block=600)
    model = pg.fit(pg.PhaseBridge(width=48, depth=2), x, training=training)
    z = jax.random.normal(jax.random.key(0), (2000, *model.noise_shape))
    found = {}
    for steps in (8, 40):
        here = model.using(steps=steps)
        ends = np.asarray(jax.jit(jax.vmap(lambda z, m=here: m.predictions(z)[1]))(z))[..., 0]
        right = ends[:, -1] > 0
        found[f"share of the right mode in {steps} steps (0.7)"] = float(right.mean())
        found[f"deviation within the right mode in {steps} steps (0.3)"] = float(ends[right, -1].std())
    found["correlation of the end and its prediction half way"] = float(np.corrcoef(ends[:, 20], ends[:, -1])[0, 1])
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
