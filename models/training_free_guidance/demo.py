"""Training-free guidance

DPS, LGD, MPGD, FreeDoM and universal guidance as settings of one sampler, against the exact posterior of a mixture.
"""

import jax
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "no guidance": (0.38, 0.48),
    "DPS": (0.2, 0.4),
    "LGD": (0.05, 0.25),
    "MPGD": (0.2, 0.4),
    "FreeDoM": (0.0, 0.12),
    "UGD": (0.12, 0.32),
    "exact denoiser": (0.0, 0.07),
}

PATH = pg.VP()
MEANS = np.array([[0.9, 1.0], [-0.6, 1.0], [0.1, -1.2]])
PRIOR = pg.GaussianMixture([0.2, 0.3, 0.5], MEANS, 0.15 * np.eye(2), PATH)


def sampled(denoiser, sampler, steps, count):
    times = pg.even_log_snr(PATH, steps)

    def draw(key):
        key_noise, key_path = jax.random.split(key)
        return pg.sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count)))


def main() -> dict[str, float]:
    row, y, sd = np.array([1.0, 0.5]), 0.6, 0.5
    posterior = pg.observed_mixture(PRIOR, row[None], [y], [[sd**2]])
    weights = np.exp(posterior.log_weights)
    mean = weights @ np.asarray(posterior.means)
    trace = weights @ np.sum((np.asarray(posterior.means) - mean) ** 2, -1) + weights @ np.asarray(
        posterior.variances
    ).sum(-1)

    def log_likelihood(x):
        return -0.5 * ((row @ x - y) / sd) ** 2

    def error(sampler, denoiser=PRIOR):
        draws = sampled(denoiser, sampler, 60, 2000)
        return float(np.linalg.norm(draws.mean(0) - mean) / np.sqrt(trace))

    free = pg.TrainingFree
    return {
        "no guidance": error(pg.DDIM(eta=1.0)),
        "DPS": error(free(log_likelihood)),
        "LGD": error(free(log_likelihood, smoothing=0.5, probes=8)),
        "MPGD": error(free(log_likelihood, rho=0.0, mu=0.03)),
        "FreeDoM": error(free(log_likelihood, rho=0.5, repeats=4)),
        "UGD": error(free(log_likelihood, rho=0.5, mu=0.005, iterations=4, repeats=4)),
        "exact denoiser": error(pg.DDIM(eta=1.0), posterior),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
