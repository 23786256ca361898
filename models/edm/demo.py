"""EDM: the preconditioning, the grid of noise levels, and Heun's rule with and without churn."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "order of Heun's rule on the grid of EDM (theory 2)": (1.85, 2.2),
    # Standard error of a standard deviation of 4000 draws: 0.011.
    "standard deviation with churn over exact": (0.95, 1.05),
    # The targets of a network have unit variance at every level where data are of unit variance.
    "least variance of the network's target": (0.93, 1.07),
    "largest variance of the network's target": (0.93, 1.07),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    path = g.VE(0.01, 50.0)
    means = np.array([[-1.0, 0.5], [0.8, 0.0]])
    denoiser = g.GaussianMixture([0.4, 0.6], means, 0.1 * np.eye(2), path)
    noise = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(0), 200))

    def ends(sampler: g.Sampler, times: jax.Array, noise: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(1), len(noise))
        return jax.jit(jax.vmap(lambda key, z: g.sample_path(key, sampler, denoiser, z, times)))(keys, noise)

    true = ends(g.UniPC(3), g.even_log_snr(path, 600), noise)
    errors = []
    for steps in (40, 160):
        reached = ends(g.Heun(), g.karras_times(path, steps), noise)
        errors.append(np.median(np.linalg.norm(reached - true, axis=1)))
    found = {"order of Heun's rule on the grid of EDM (theory 2)": float(np.log(errors[0] / errors[1]) / np.log(4))}

    many = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(2), 4000))
    churned = ends(g.Heun(churn=0.2), g.karras_times(path, 100), many)
    exact = np.sqrt(0.1 + 0.24 * 1.8**2)
    found["standard deviation with churn over exact"] = float(churned[:, 0].std() / exact)

    # x0 = c_skip y + c_out F, with y = x0 + sigma e: the variance of F where x0 has unit variance.
    x, e = jax.random.normal(jax.random.key(3), (2, 20000))
    target = []
    for sigma in (0.01, 0.1, 1.0, 10.0):
        skip, out = 1 / (1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        target.append(float(jnp.var((x - skip * (x + sigma * e)) / out)))
    found["least variance of the network's target"] = min(target)
    found["largest variance of the network's target"] = max(target)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
