"""Hard data consistency (ReSample)

A latent Gaussian behind a linear decoder: the posterior mean is right, the spread is not.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "error of the posterior mean, in deviations": (0.0, 0.1),
    "variance over the exact one": (0.25, 0.5),
    "largest misfit without noise": (0.0, 0.1),
}
PATH = pg.VP()


def sampled(denoiser, sampler, steps, count):
    times = pg.even_log_snr(PATH, steps)

    def draw(key):
        key_noise, key_path = jax.random.split(key)
        return pg.sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count)))


def main() -> dict[str, float]:
    decoder = np.random.default_rng(0).normal(size=(5, 3))
    seen, y, sd = decoder[:2], np.array([0.8, -0.5]), 0.3
    latent = pg.GaussianMixture([1.0], [np.zeros(3)], np.eye(3), PATH)
    exact = pg.observed_mixture(latent, seen, y, sd**2 * np.eye(2))

    def log_likelihood(z):
        return -0.5 * jnp.sum((y - (decoder @ z)[:2]) ** 2) / sd**2

    proximal = pg.HardConsistency(log_likelihood, variance=1.0, gamma=math.inf, iterations=6)
    draws = sampled(latent, proximal, 12, 1000)
    trace = float(np.asarray(exact.variances).sum())
    published = sampled(latent, pg.HardConsistency(log_likelihood, gamma=math.inf, iterations=10), 12, 50)
    return {
        "error of the posterior mean, in deviations": float(
            np.linalg.norm(draws.mean(0) - np.asarray(exact.means[0])) / np.sqrt(trace)
        ),
        "variance over the exact one": float(draws.var(0).sum() / trace),
        "largest misfit without noise": float(np.abs(published @ seen.T - y).max()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
