"""Exposure bias of a sampler, and what scaling the predicted noise does about it."""

import jax
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "metric at the data end, 10 steps of DDIM": (0.005, 0.1),
    "metric at the data end, noise scaled by 1.03": (0.0, 0.02),
    "metric at the data end, 10 ancestral steps": (0.005, 0.2),
    "metric at the data end, 10 ancestral steps, noise scaled by 1.03": (0.0, 0.15),
    "metric at the data end, 100 steps of DDIM": (0.0, 0.002),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    weights, means = np.array([0.4, 0.6]), np.array([[-1.0, 0.5], [0.8, 0.0]])
    denoiser = g.GaussianMixture(weights, means, 0.2 * np.eye(2), g.VP())
    variances = 0.2 + weights @ means**2 - (weights @ means) ** 2

    def metric(sampler: g.Sampler, constant: float, steps: int) -> float:
        scaled = g.EpsilonScaling(denoiser, constant)
        times = g.even_log_snr(denoiser.path, steps)
        found = jax.jit(lambda key: g.exposure_bias(key, sampler, scaled, variances, times, draws=4000).metric[-1])(
            jax.random.key(0)
        )
        return float(found)

    return {
        "metric at the data end, 10 steps of DDIM": metric(g.DDIM(), 1.0, 10),
        "metric at the data end, noise scaled by 1.03": metric(g.DDIM(), 1.03, 10),
        "metric at the data end, 10 ancestral steps": metric(g.DDIM(eta=1.0), 1.0, 10),
        "metric at the data end, 10 ancestral steps, noise scaled by 1.03": metric(g.DDIM(eta=1.0), 1.03, 10),
        "metric at the data end, 100 steps of DDIM": metric(g.DDIM(), 1.0, 100),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
