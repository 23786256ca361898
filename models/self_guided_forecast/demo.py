"""Self-guided forecasting (TSDiff)

Forecasts of an autoregressive series by an unconditional denoiser and self-guidance; and a forecast refined.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "CRPS, exact forecast": (0.3, 0.42),
    "CRPS, self-guided": (0.3, 0.46),
    "CRPS, no guidance": (0.45, 0.65),
    "self-guided, share of the gap closed": (0.6, 1.05),
    "CRPS, persistence": (0.4, 0.8),
    "CRPS, persistence refined": (0.3, 0.65),
    "refinement, gain in CRPS": (0.02, 0.4),
}
PATH = pg.VP()
LENGTH, SEEN, NOISE, SERIES, MEMBERS = 12, 8, 0.4, 60, 50


def crps(draws, truth):
    ordered, count = np.sort(draws, 0), len(draws)
    rank = 2 * np.arange(1, count + 1)[:, None, None] - count - 1
    return float((np.abs(draws - truth).mean(0) - (rank * ordered).sum(0) / (count * (count - 1))).mean())


def main() -> dict[str, float]:
    covariance = 0.9 ** np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
    process = pg.GaussianMixture([1.0], [np.zeros(LENGTH)], covariance, PATH)
    rng = np.random.default_rng(0)
    series = rng.multivariate_normal(np.zeros(LENGTH), covariance, SERIES)
    seen, future = series[:, :SEEN] + NOISE * rng.normal(size=(SERIES, SEEN)), series[:, SEEN:]
    times = pg.even_log_snr(PATH, 60)

    def forecast(key, y):
        guided = pg.TrainingFree(lambda x: -0.5 * jnp.sum((x[:SEEN] - y) ** 2) / NOISE**2, rho=0.5)
        key_noise, key_path = jax.random.split(key)
        return pg.sample_path(key_path, guided, process, process.draw_noise(key_noise), times)

    keys = jax.random.split(jax.random.key(0), (MEMBERS, SERIES))
    drawn = np.asarray(jax.jit(jax.vmap(jax.vmap(forecast), (0, None)))(keys, seen))[..., SEEN:]

    gain = covariance[SEEN:, :SEEN] @ np.linalg.inv(covariance[:SEEN, :SEEN] + NOISE**2 * np.eye(SEEN))
    spread = np.sqrt(np.diag(covariance[SEEN:, SEEN:] - gain @ covariance[:SEEN, SEEN:]))
    exact = seen @ gain.T + spread * rng.normal(size=drawn.shape)
    free = rng.normal(size=drawn.shape)

    held = np.broadcast_to(seen, (MEMBERS, SERIES, SEEN))
    base = np.concatenate([held, seen[:, -1:] + 0.8 * rng.normal(size=drawn.shape)], -1)

    def better(key, x):
        scale = jnp.where(jnp.arange(LENGTH) < SEEN, NOISE, 2.0)
        return pg.refine(
            key, process, x, lambda z: -0.5 * jnp.sum(((z - x) / scale) ** 2), t=0.05, steps=60, length=0.02
        )

    refined = np.asarray(jax.jit(jax.vmap(jax.vmap(better)))(keys, base))[..., SEEN:]
    best, ours, worst = crps(exact, future), crps(drawn, future), crps(free, future)
    rough, fine = crps(base[..., SEEN:], future), crps(refined, future)
    return {
        "CRPS, exact forecast": best,
        "CRPS, self-guided": ours,
        "CRPS, no guidance": worst,
        "self-guided, share of the gap closed": (worst - ours) / (worst - best),
        "CRPS, persistence": rough,
        "CRPS, persistence refined": fine,
        "refinement, gain in CRPS": rough - fine,
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
