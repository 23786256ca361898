"""Classifier-free guidance

One network trained with condition dropout on two Gaussian classes, and guided; and what exact guidance gives.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "log variance, exact guidance": (-1.06, -1.03),
    "log variance, geometric mean of powers": (-1.05, -1.04),
    "log variance, geometric average of the laws": (-0.87, -0.84),
    "mean of a class, trained": (0.8, 1.0),
    "mean without the class, trained": (-0.15, 0.15),
    "mean of a class with weight 2, trained": (1.0, 1.4),
}
PATH = pg.VP()


def main() -> dict[str, float]:
    # Centred Gaussians with weight 2: guidance has the variance of the left, the geometric average that of the right.
    narrow, wide, weight = 0.6, 1.0201, 2.0
    cond, uncond = (pg.GaussianMixture([1.0], [[0.0]], [[v]], PATH) for v in (narrow, wide))
    law = pg.DenoisedDistribution(pg.Guidance(cond, uncond, weight), steps=200)
    times = pg.even_log_snr(PATH, 200)
    end = jax.jit(lambda z: pg.sample_path(jax.random.key(0), pg.UniPC(), law.denoiser, z, times)[0])(jnp.ones(1))

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 10_000)
    x = np.array([-0.9, 0.9])[labels][:, None] + 0.5 * rng.normal(size=(10_000, 1))
    family = pg.ConditionDropout(pg.Diffusion(width=32, depth=2), dropout=0.2)
    training = pg.Training(steps=600, batch=128, learning_rate=3e-3, ema=0.99)
    model = pg.fit(family, x, np.eye(2)[labels], training=training, progress=False)
    given, free = model.given(np.eye(2)[1]), model.unconditional()
    guided = pg.DenoisedDistribution(pg.Guidance(given.denoiser, free.denoiser, 2.0), units=given.units, steps=20)
    means = [float(law.sample(jax.random.key(1), (2000,)).mean()) for law in (given, free, guided)]
    return {
        "log variance, exact guidance": float(2 * jnp.log(end)),
        "log variance, geometric mean of powers": float(weight * np.log(narrow) + (1 - weight) * np.log(wide)),
        "log variance, geometric average of the laws": float(-np.log(weight / narrow + (1 - weight) / wide)),
        "mean of a class, trained": means[0],
        "mean without the class, trained": means[1],
        "mean of a class with weight 2, trained": means[2],
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
