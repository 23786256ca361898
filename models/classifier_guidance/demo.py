"""Classifier guidance

A mixture guided to a noisy observation by the exact classifier of noisy values, against the exact posterior.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "largest difference of denoised values": (0.0, 1e-6),
    "error of mode weights, scale 1": (0.0, 0.035),
    "error of the mean, scale 1": (0.0, 0.07),
    "error of the mean, scale 3": (0.1, 0.5),
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
    row, y, sd = np.array([[1.0, 0.5]]), 0.4, 0.5
    posterior = pg.observed_mixture(PRIOR, row, [y], [[sd**2]])

    def log_classifier(x, t):
        return posterior.log_density(x, t) - PRIOR.log_density(x, t)

    once = pg.ClassifierGuidance(PRIOR, log_classifier)
    x = jax.random.normal(jax.random.key(1), (100, 2))
    means = [jax.jit(jax.vmap(lambda x, d=d: d.mean(x, 0.4)))(x) for d in (once, posterior)]

    draws = sampled(once, pg.DDIM(eta=1.0), 60, 2000)
    weights = np.exp(posterior.log_weights)
    shares = np.mean(jax.vmap(lambda x: posterior.shares(x, PATH.start))(draws), 0)
    # A likelihood to the power of three is one with a third of the variance: what scale 3 should sample.
    cubed = pg.observed_mixture(PRIOR, row, [y], [[sd**2 / 3]])
    thrice = sampled(pg.ClassifierGuidance(PRIOR, log_classifier, 3.0), pg.DDIM(eta=1.0), 60, 2000)

    def off(draws, exact):
        return float(np.linalg.norm(draws.mean(0) - np.exp(exact.log_weights) @ np.asarray(exact.means)))

    return {
        "largest difference of denoised values": float(jnp.abs(means[0] - means[1]).max()),
        "error of mode weights, scale 1": float(0.5 * np.abs(shares - weights).sum()),
        "error of the mean, scale 1": off(draws, posterior),
        "error of the mean, scale 3": off(thrice, cubed),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
