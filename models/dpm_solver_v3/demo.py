"""DPM-Solver-v3: coefficients of the solver fitted to the model, against DPM-Solver++ and UniPC."""

import jax
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "error of DPM-Solver++(2M), 5 evaluations": (0.1, 0.35),
    "error of UniPC, 5 evaluations": (0.1, 0.35),
    "error of DPM-Solver-v3, 5 evaluations": (0.005, 0.09),
    "error of DPM-Solver++(2M), 10 evaluations": (0.06, 0.2),
    "error of UniPC, 10 evaluations": (0.03, 0.2),
    "error of DPM-Solver-v3, 10 evaluations": (0.002, 0.02),
    "order of DPM-Solver-v3 with corrector (theory 3)": (2.6, 3.3),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(4, 2, 2)) * 0.3
    covariances = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2)
    denoiser = g.GaussianMixture([0.1, 0.2, 0.3, 0.4], rng.normal(size=(4, 2)) * 1.5, covariances, g.VP())
    data = jax.vmap(denoiser.draw, (0, None))(jax.random.split(jax.random.key(2), 400), 0.0)
    statistics = jax.jit(lambda key, data: g.model_statistics(key, denoiser, data, 96))(jax.random.key(3), data)
    noise = jax.vmap(denoiser.draw_noise)(jax.random.split(jax.random.key(1), 100))

    def ends(sampler: g.Sampler, steps: int) -> jax.Array:
        times = g.even_log_snr(denoiser.path, steps)
        return jax.jit(jax.vmap(lambda z: g.sample_path(jax.random.key(0), sampler, denoiser, z, times)))(noise)

    true = ends(g.UniPC(4), 400)

    def error(sampler: g.Sampler, steps: int) -> float:
        return float(np.median(np.linalg.norm(ends(sampler, steps) - true, axis=1)))

    v3 = g.DPMSolverV3(statistics)
    found = {}
    for evaluations in (5, 10):
        # DPM-Solver++ takes one evaluation a step; the others one at the start too.
        found[f"error of DPM-Solver++(2M), {evaluations} evaluations"] = error(g.DPM2M(), evaluations)
        found[f"error of UniPC, {evaluations} evaluations"] = error(g.UniPC(), evaluations - 1)
        found[f"error of DPM-Solver-v3, {evaluations} evaluations"] = error(v3, evaluations - 1)
    slope = np.log(error(v3, 20) / error(v3, 80)) / np.log(4)
    found["order of DPM-Solver-v3 with corrector (theory 3)"] = float(slope)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
