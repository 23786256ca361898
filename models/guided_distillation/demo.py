"""Distilled guidance

One network that is given the guidance weight, and then draws in fewer and fewer steps, against the exact guided pair.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "error of the student, weight 1": (0.0, 0.15),
    "error of the student, weight 3": (0.0, 0.2),
    "distance of the two weights": (0.15, 2.0),
    "error of 4 steps, distilled": (0.0, 0.2),
    "error of 4 steps, not distilled": (0.1, 2.0),
    "error of 4 steps over that not distilled": (0.0, 0.7),
}


def main() -> dict[str, float]:
    """The numbers of the page."""
    path = pg.VP()
    cond = pg.GaussianMixture([1.0], [[1.0, 0.5]], 0.2 * np.eye(2), path)
    uncond = pg.GaussianMixture([0.5, 0.5], [[1.0, 0.5], [-1.0, -0.5]], 0.2 * np.eye(2), path)
    x = np.asarray(jax.vmap(lambda k: uncond.draw(k, path.start))(jax.random.split(jax.random.key(1), 2048)))
    weights = np.random.default_rng(0).uniform(1.0, 3.0, size=(2048, 1))
    z = jax.random.normal(jax.random.key(2), (300, 2))

    @jax.jit
    def exact(weight: float) -> jax.Array:
        guided, times = pg.Guidance(cond, uncond, weight), pg.even_log_snr(path, 48)
        noise = path(path.end)[1] * z
        return jax.vmap(lambda z: pg.sample_path(jax.random.key(0), pg.UniPC(), guided, z, times))(noise)

    def error(model: pg.Learned, weight: float) -> float:
        return float(np.sqrt(np.mean((model.given(jnp.array([weight])).noise_map(z) - exact(weight)) ** 2)))

    training = pg.Training(steps=1000, batch=128, learning_rate=2e-3, validation=0.0, ema=0.99, block=500)
    student = pg.fit(
        pg.GuidedDistillation(cond, uncond, pg.Diffusion(width=64, depth=2, sampling_steps=16)),
        x,
        weights,
        training=training,
    )
    found = {f"error of the student, weight {w:g}": error(student, w) for w in (1.0, 3.0)}
    found["distance of the two weights"] = float(np.sqrt(np.mean((exact(1.0) - exact(3.0)) ** 2)))
    few = pg.Diffusion(width=64, depth=2, sampler=pg.DDIM(), sampling_steps=4).distribution(student.net, student.spec)
    found["error of 4 steps, not distilled"] = error(few, 2.0)
    training = pg.Training(steps=300, batch=128, learning_rate=5e-4, validation=0.0, ema=0.99, block=300)
    for steps in (8, 4):
        student = pg.fit(pg.ProgressiveDistillation(student, steps), x, weights, training=training)
    found["error of 4 steps, distilled"] = error(student, 2.0)
    found["error of 4 steps over that not distilled"] = (
        found["error of 4 steps, distilled"] / found["error of 4 steps, not distilled"]
    )
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
