"""Score-based models through stochastic equations: three paths, the reverse equations, and exact likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "log density by the probability flow, largest error, VP": (0.0, 1e-5),
    "log density by the probability flow, largest error, SubVP": (0.0, 1e-5),
    # 4000 draws: the standard error of a relative variance is 0.022, and Euler's rule adds a few per cent.
    "variance of reverse SDE draws over exact, VP": (0.9, 1.1),
    "variance of reverse SDE draws over exact, VE": (0.9, 1.1),
    "variance of reverse SDE draws over exact, SubVP": (0.9, 1.1),
    "variance of 30-step draws over exact, predictor alone": (0.8, 0.95),
    "variance of 30-step draws over exact, predictor and corrector": (0.86, 1.02),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    weights, means = np.array([0.4, 0.6]), np.array([[-1.0, 0.5], [0.8, 0.0]])
    variance = 0.1 + weights @ means[:, 0] ** 2 - (weights @ means[:, 0]) ** 2

    def ratio(path: g.Path, sampler: g.Sampler, steps: int) -> float:
        denoiser = g.GaussianMixture(weights, means, 0.1 * np.eye(2), path)
        times = g.even_log_snr(path, steps)

        def draw(key: jax.Array) -> jax.Array:
            key_noise, key_path = jax.random.split(key)
            return g.sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

        draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
        alpha, sigma = path(path.start)
        return float(draws[:, 0].var() / (alpha**2 * variance + sigma**2))

    found = {}
    for path in (g.VP(), g.VE(), g.SubVP()):
        name = type(path).__name__
        found[f"variance of reverse SDE draws over exact, {name}"] = ratio(path, g.EulerMaruyama(), 400)
    for path in (g.VP(), g.SubVP()):
        name = type(path).__name__
        denoiser = g.GaussianMixture(weights, means, 0.1 * np.eye(2), path)
        x = jax.vmap(denoiser.draw, (0, None))(jax.random.split(jax.random.key(1), 4), path.start)
        exact = jax.vmap(denoiser.log_density, (0, None))(x, path.start)
        by_flow = jax.jit(jax.vmap(lambda x, d=denoiser: g.flow_log_density(d, x)))(x)
        found[f"log density by the probability flow, largest error, {name}"] = float(jnp.abs(by_flow - exact).max())
    few = g.VP()
    found["variance of 30-step draws over exact, predictor alone"] = ratio(few, g.DDIM(eta=1.0), 30)
    corrected = g.PredictorCorrector(g.DDIM(eta=1.0), moves=2, snr=0.3)
    found["variance of 30-step draws over exact, predictor and corrector"] = ratio(few, corrected, 30)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
