"""Diffusion of functions at irregular times: draws and imputations against a Gaussian process."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    # With the exact denoiser; what is left is the solver's error and the blur at the data end.
    "largest error of the covariance, exact denoiser": (0.0, 0.01),
    # A small network, trained for some seconds.
    "imputed mean, error in posterior standard deviations": (0.0, 0.6),
    "imputed standard deviation over exact": (0.6, 1.5),
}


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The covariance of the process that the data come from."""
    apart = a[..., :, None] - b[..., None, :]
    return np.exp(-0.5 * apart**2 / 0.6**2) + 1e-3 * (apart == 0)


def main() -> dict[str, float]:
    """Numbers by name."""
    noise = g.OUNoise(0.7)
    at = np.array([0.0, 0.13, 0.4, 1.1, 1.3])
    root = np.asarray(noise.root(jnp.asarray(at)))
    white = np.linalg.inv(root)
    denoiser = g.GaussianMixture([1.0], np.zeros((1, 5)), white @ kernel(at, at) @ white.T, g.VP())
    times = g.even_log_snr(denoiser.path, 60)
    starts = np.asarray(jnp.sqrt(denoiser.variances[0] * denoiser.path(1.0)[0] ** 2 + denoiser.path(1.0)[1] ** 2))
    push = jax.vmap(lambda z: g.sample_path(jax.random.key(0), g.UniPC(), denoiser, z, times))
    columns = root @ np.asarray(push(jnp.asarray((np.asarray(denoiser.axes[0]) * starts).T))).T
    found = {
        "largest error of the covariance, exact denoiser": float(np.abs(columns @ columns.T - kernel(at, at)).max())
    }

    rng = np.random.default_rng(0)
    series = np.sort(rng.uniform(0, 2, (10000, 4)) + 0.02 * np.arange(4), 1)
    x = np.einsum("kij,kj->ki", np.linalg.cholesky(kernel(series, series)), rng.normal(size=series.shape))
    training = g.Training(steps=2000, batch=256, learning_rate=4e-3)
    family = g.ProcessDiffusion(process=noise, width=48, depth=2, sampling_steps=16)
    model = g.fit(family, x, series, training=training, seed=0)
    at, seen = np.array([0.3, 0.8, 1.2, 1.7]), np.array([True, False, False, True])
    value = np.array([0.8, 0.0, 0.0, -0.6])
    given = model.given(jnp.asarray(at))
    draws = np.asarray(given.impute(jax.random.key(1), np.broadcast_to(value, (2000, 4)), seen))[:, ~seen]
    k = kernel(at, at)
    gain = k[np.ix_(~seen, seen)] @ np.linalg.inv(k[np.ix_(seen, seen)])
    sd = np.sqrt(np.diag(k[np.ix_(~seen, ~seen)] - gain @ k[np.ix_(seen, ~seen)]))
    error = np.abs(draws.mean(0) - gain @ value[seen]) / sd
    found["imputed mean, error in posterior standard deviations"] = float(error.max())
    found["imputed standard deviation over exact"] = float(np.mean(draws.std(0) / sd))
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
