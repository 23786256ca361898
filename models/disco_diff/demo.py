"""DisCo-Diff

Six modes on a circle: one learned symbol takes over which mode it is, and the probability flow no longer has to branch.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "mutual information of symbol and mode": (0.8, 1.8),
    "bend of the trajectories, diffusion alone": (0.4, 1.5),
    "bend of the trajectories, given the symbol": (0.0, 0.9),
    "ratio of the two": (0.0, 0.7),
    "share of draws near a mode": (0.8, 1.0),
    "least share of a mode": (0.1, 0.17),
}


def bend(model: pg.LearnedDiffusion, noise: jax.Array) -> jax.Array:
    """How far the denoised value is from where the trajectory ends, mean over the levels: 0 for straight lines."""
    denoiser = model.denoiser
    times = pg.even_log_snr(denoiser.path, 48)

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        here, there = at
        mean = denoiser.mean(x, here)
        return pg.DDIM().step(jax.random.key(0), denoiser, x, here, there, None)[0], mean

    end, means = jax.lax.scan(step, noise, (times[:-1], times[1:]))
    return jnp.mean(jnp.linalg.norm(means - end, axis=-1))


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    mode = rng.integers(6, size=4096)
    angle = 2 * np.pi * mode / 6
    modes = 2 * np.stack([np.cos(2 * np.pi * np.arange(6) / 6), np.sin(2 * np.pi * np.arange(6) / 6)], 1)
    x = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.15 * rng.normal(size=(4096, 2))
    training = pg.Training(steps=1500, batch=128, learning_rate=3e-3, validation=0.0, ema=0.99, block=500)
    diffusion = pg.Diffusion(width=64, depth=2, sampling_steps=16)
    alone = pg.fit(diffusion, x, training=training)
    coded = pg.fit(pg.CodedDiffusion(pg.SymbolCode(1, 8, temperature=0.5), diffusion, width=64), x, training=training)
    model = pg.fit(
        pg.LatentModel(coded, pg.CodePrior(width=16, depth=1)),
        x,
        training=pg.Training(steps=300, batch=256, learning_rate=1e-2, validation=0.0, ema=0.98, block=300),
    )

    symbol = np.asarray(coded.encode(x))[:, 0]
    joint = np.histogram2d(mode, symbol, bins=(np.arange(7) - 0.5, np.arange(9) - 0.5))[0] / len(x)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    found = {"mutual information of symbol and mode": float(np.sum(joint[seen] * np.log(joint[seen] / apart[seen])))}
    noise = jax.random.normal(jax.random.key(0), (300, 2))
    plain = jax.jit(jax.vmap(lambda z: bend(alone, z)))(noise)
    given = jax.jit(jax.vmap(lambda z, c: bend(coded.diffusion_of(c), z)))(noise, jnp.asarray(symbol[:300, None]))
    found["bend of the trajectories, diffusion alone"] = float(plain.mean())
    found["bend of the trajectories, given the symbol"] = float(given.mean())
    found["ratio of the two"] = float(given.mean() / plain.mean())
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(model, jax.random.key(1)))
    away = np.linalg.norm(draws[:, None] - modes, axis=-1)
    found["share of draws near a mode"] = float(np.mean(away.min(1) < 0.6))
    found["least share of a mode"] = float(np.bincount(away.argmin(1), minlength=6).min() / len(draws))
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
