"""Score calibration: subtracting the mean of a learned score lowers its loss."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "norm of the mean error of the denoiser, before": (0.003, 0.5),
    "norm of the mean error of the denoiser, after": (0.0, 0.03),
    "loss that is saved over the squared mean (theory 1)": (0.5, 1.5),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    rng = np.random.default_rng(0)
    data = rng.choice([-2.0, 1.0], (8000, 1), p=[0.3, 0.7]) + 0.5 * rng.normal(size=(8000, 2))
    training = g.Training(steps=150, batch=128, learning_rate=2e-3, validation=0.0)
    model = g.fit(g.Diffusion(width=24, depth=1), data[:4000], training=training, seed=0)
    units, denoiser = model.units, model.denoiser
    seen, held = (jax.vmap(units.inward)(jnp.asarray(part)) for part in (data[:4000], data[4000:]))
    better = g.calibrated(jax.random.key(0), denoiser, seen, levels=257)
    t = denoiser.path.time(0.0)  # where signal and noise are equal
    alpha, sigma = denoiser.path(t)
    noise = jax.random.normal(jax.random.key(1), held.shape)
    noise, clean = jnp.concatenate([noise, -noise]), jnp.concatenate([held, held])

    def judged(denoiser: g.Denoiser) -> tuple[jax.Array, jax.Array]:
        wrong = jax.vmap(denoiser.mean, (0, None))(alpha * clean + sigma * noise, t) - clean
        return wrong.mean(0), jnp.mean(jnp.sum(wrong**2, 1))

    (mean, loss), (mean_after, loss_after) = judged(denoiser), judged(better)
    return {
        "norm of the mean error of the denoiser, before": float(jnp.linalg.norm(mean)),
        "norm of the mean error of the denoiser, after": float(jnp.linalg.norm(mean_after)),
        "loss that is saved over the squared mean (theory 1)": float((loss - loss_after) / jnp.sum(mean**2)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
