"""UniPC: predictors and correctors of any order, one evaluation a step."""

import jax
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "order of UniP-1 (theory 1)": (0.9, 1.1),
    "order of UniP-1 with UniC-1 (theory 2)": (1.9, 2.1),
    "order of UniP-2 (theory 2)": (1.9, 2.15),
    "order of UniP-2 with UniC-2 (theory 3)": (2.85, 3.15),
    "order of UniP-3 (theory 3)": (2.8, 3.2),
    "order of UniP-3 with UniC-3 (theory 4)": (3.8, 4.2),
    "error of DDIM with 10 evaluations": (0.02, 0.4),
    "error of UniP-3 with UniC-3 with 10 evaluations": (0.001, 0.1),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(4, 2, 2)) * 0.3
    covariances = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2)
    denoiser = g.GaussianMixture([0.1, 0.2, 0.3, 0.4], rng.normal(size=(4, 2)) * 1.5, covariances, g.VP())
    noise = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(1), 100))

    def ends(sampler: g.Sampler, steps: int) -> jax.Array:
        times = g.even_log_snr(denoiser.path, steps)
        return jax.jit(jax.vmap(lambda z: g.sample_path(jax.random.key(0), sampler, denoiser, z, times)))(noise)

    true = ends(g.UniPC(4), 800)

    def error(sampler: g.Sampler, steps: int) -> float:
        return float(np.median(np.linalg.norm(ends(sampler, steps) - true, axis=1)))

    found = {}
    for order in (1, 2, 3):
        for corrected in (False, True):
            sampler = g.UniPC(order, corrected)
            slope = np.log(error(sampler, 60) / error(sampler, 240)) / np.log(4)
            name = f"UniP-{order}" + (f" with UniC-{order}" if corrected else "")
            found[f"order of {name} (theory {order + corrected})"] = float(slope)
    found["error of DDIM with 10 evaluations"] = error(g.DDIM(), 10)
    found["error of UniP-3 with UniC-3 with 10 evaluations"] = error(g.UniPC(3), 9)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
