"""DisCo-Diff

Six modes on a circle: one learned symbol takes over which mode it is. Whether trajectories of the probability flow are
then less curved is measured by two quantities that nothing was tuned for, over repeated fits.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "mutual information of symbol and mode": (0.8, 1.8),
    "turning, diffusion alone": (10.0, 30.0),
    "turning, given the symbol": (8.0, 30.0),
    "turning, exact flow of the mixture": (1.6, 1.9),
    "turning, exact flow given the mode": (0.0, 0.03),
    "turning, difference over its standard error": (-4.0, 10.0),
    "error of 8 steps, diffusion alone": (0.15, 0.35),
    "error of 8 steps, given the symbol": (0.05, 0.2),
    "error of 8 steps, difference over its standard error": (2.0, 100.0),
    "share of draws near a mode": (0.8, 1.0),
    "least share of a mode": (0.1, 0.17),
}
FITS, FINE, COARSE = 4, 128, 8
MODES = 2 * np.stack([np.cos(np.pi * np.arange(6) / 3), np.sin(np.pi * np.arange(6) / 3)], 1)


def trajectory(denoiser: pg.Denoiser, noise: jax.Array, steps: int) -> jax.Array:
    """The probability flow from a point of noise, in the coordinates ``x / alpha``, in which a flow towards one point is
    straight; shape ``(steps + 1, 2)``."""
    times = pg.even_log_snr(denoiser.path, steps)

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = pg.DDIM().step(jax.random.key(0), denoiser, x, *at, None)[0]
        return x, x / denoiser.path(at[1])[0]

    rest = jax.lax.scan(step, noise, (times[:-1], times[1:]))[1]
    return jnp.concatenate([noise[None] / denoiser.path(times[0])[0], rest])


def curvature(denoiser: pg.Denoiser, noise: jax.Array) -> jax.Array:
    """The integral of the curvature along the trajectory, the angle by which it turns in all, in radians; and how far the
    end of 8 steps is from that of 128."""
    fine = trajectory(denoiser, noise, FINE)
    moves = jnp.diff(fine, axis=0)
    (a, b), (c, d) = moves[:-1].T, moves[1:].T
    turned = jnp.abs(jnp.arctan2(a * d - b * c, a * c + b * d))
    return jnp.stack([jnp.sum(turned), jnp.linalg.norm(trajectory(denoiser, noise, COARSE)[-1] - fine[-1])])


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which mode, and the point."""
    rng = np.random.default_rng(seed)
    mode = rng.integers(6, size=4096)
    return mode, MODES[mode] + 0.15 * rng.normal(size=(4096, 2))


def information(mode: np.ndarray, symbol: np.ndarray) -> float:
    """Mutual information of mode and symbol, nats."""
    joint = np.histogram2d(mode, symbol, bins=(np.arange(7) - 0.5, np.arange(9) - 0.5))[0] / len(mode)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(joint[seen] / apart[seen])))


def main() -> dict[str, float]:
    """The numbers of the page."""
    training = pg.Training(steps=1000, batch=128, learning_rate=3e-3, validation=0.0, ema=0.99, block=500)
    diffusion = pg.Diffusion(width=64, depth=2, sampling_steps=16)
    noise, path = jax.random.normal(jax.random.key(0), (300, 2)), diffusion.path
    plain = jax.jit(lambda m, z: jax.vmap(lambda z: curvature(m.denoiser, z))(z))
    given = jax.jit(lambda m, z, c: jax.vmap(lambda z, c: curvature(m.diffusion_of(c).denoiser, z))(z, c))
    learned, measured = [], []
    for seed in range(FITS):
        mode, x = data(seed)
        alone = pg.fit(diffusion, x, training=training, seed=seed)
        coded = pg.fit(pg.CodedDiffusion(pg.SymbolCode(1, 8), diffusion, width=64), x, training=training, seed=seed)
        symbol = np.asarray(coded.encode(x))
        learned.append(information(mode, symbol[:, 0]))
        measured.append([plain(alone, noise).mean(0), given(coded, noise, jnp.asarray(symbol[:300])).mean(0)])
    both = np.asarray(measured)
    less = both[:, 0] - both[:, 1]
    z = less.mean(0) / (less.std(0, ddof=1) / np.sqrt(FITS))
    size = np.sqrt(2 + 0.15**2)  # of the standard units, in which the learned flows live
    exact = [pg.GaussianMixture(np.ones(k) / k, MODES[:k] / size, (0.15 / size) ** 2 * np.eye(2), path) for k in (6, 1)]
    straight = [float(jax.vmap(lambda z, d=d: curvature(d, z)[0])(noise).mean()) for d in exact]

    latent = pg.fit(
        pg.LatentModel(coded, pg.CodePrior(width=16, depth=1)),
        x,
        training=pg.Training(steps=300, batch=256, learning_rate=1e-2, validation=0.0, ema=0.98, block=300),
    )
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(latent, jax.random.key(1)))
    away = np.linalg.norm(draws[:, None] - MODES, axis=-1)
    return {
        "mutual information of symbol and mode": float(np.mean(learned)),
        "turning, diffusion alone": both[:, 0, 0].mean(),
        "turning, given the symbol": both[:, 1, 0].mean(),
        "turning, exact flow of the mixture": straight[0],
        "turning, exact flow given the mode": straight[1],
        "turning, difference over its standard error": z[0],
        "error of 8 steps, diffusion alone": both[:, 0, 1].mean(),
        "error of 8 steps, given the symbol": both[:, 1, 1].mean(),
        "error of 8 steps, difference over its standard error": z[1],
        "share of draws near a mode": float(np.mean(away.min(1) < 0.6)),
        "least share of a mode": float(np.bincount(away.argmin(1), minlength=6).min() / len(draws)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
