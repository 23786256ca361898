"""RePaint and ILVR

A part of the data replaced at every step: by known entries, with rounds of resampling, and by low frequencies.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "RePaint, error of the known entry": (0.0, 1e-9),
    "RePaint, error of mode weights, 1 round": (0.1, 0.4),
    "RePaint, error of mode weights, 16 rounds": (0.0, 0.09),
    "ILVR, error of the low frequencies": (0.0, 1e-9),
    "ILVR, deviation of the rest over the exact one": (0.8, 1.4),
}
PATH = pg.VP()


def sampled(denoiser, sampler, steps, count):
    times = pg.even_log_snr(PATH, steps)

    def draw(key):
        key_noise, key_path = jax.random.split(key)
        return pg.sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count)))


def main() -> dict[str, float]:
    mixture = pg.GaussianMixture([0.5, 0.5], [[0.6, 1.0], [-0.3, -1.0]], [[0.2, 0.1], [0.1, 0.2]], PATH)
    exact = pg.observed_mixture(mixture, [[1.0, 0.0]], [0.6], [[1e-8]])

    def painted(rounds):
        sampler = pg.Replacement([0.6, 0.0], pg.kept([True, False]), repeats=rounds)
        x = sampled(mixture, sampler, 50, 1500)
        shares = np.mean(jax.vmap(lambda x: exact.shares(x, PATH.start))(x), 0)
        return x, float(0.5 * np.abs(shares - np.exp(exact.log_weights)).sum())

    (x, one), (_, many) = painted(1), painted(16)

    length = 16
    smooth = np.exp(-0.5 * (np.subtract.outer(np.arange(length), np.arange(length)) / 3.0) ** 2)
    series = pg.GaussianMixture([1.0], [np.zeros(length)], smooth + 0.01 * np.eye(length), PATH)
    reference, low = np.sin(np.arange(length) / 3), pg.block_mean(4)
    refined = sampled(series, pg.Replacement(reference, low, repeats=4), 50, 500)
    matrix = np.kron(np.eye(4), np.full((1, 4), 0.25))
    rest = pg.observed_mixture(series, matrix, matrix @ reference, 1e-8 * np.eye(4))
    deviation = np.sqrt(refined.var(0).sum() / np.asarray(rest.variances).sum())
    return {
        "RePaint, error of the known entry": float(np.abs(x[:, 0] - 0.6).max()),
        "RePaint, error of mode weights, 1 round": one,
        "RePaint, error of mode weights, 16 rounds": many,
        "ILVR, error of the low frequencies": float(
            jnp.abs(jax.vmap(low)(refined) - low(jnp.asarray(reference))).max()
        ),
        "ILVR, deviation of the rest over the exact one": float(deviation),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
