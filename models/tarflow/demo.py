"""TarFlow: causal transformers over tokens in alternating order, trained on noisy data, and the step that removes the
noise."""

import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative

EXPECTED = {
    "largest error of the inverse": (0.0, 1e-3),
    "log determinant against autodiff": (0.0, 1e-3),
    # Noise of 0.1 deviations: (0.0707^2 + E[s^2] 0.1^2)^(1/2) = 0.122 for noisy data, and what the fit adds.
    "distance of draws from the curve": (0.10, 0.20),
    # The share that is left is 0 for the true law of noisy data but for curvature.
    "share of it after the denoising step": (0.0, 0.8),
}
POINTS = 3


def walks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points (s, s^2 / 2) of a parabola along a random walk, one after another: shape (count, 2 POINTS)."""
    s = rng.normal(size=(count, POINTS))
    for t in range(1, POINTS):
        s[:, t] = 0.8 * s[:, t - 1] + 0.6 * s[:, t]
    return np.stack([s, s**2 / 2], -1).reshape(count, -1)


def distance(x: np.ndarray) -> float:
    """Root mean square distance from the parabola, upwards."""
    s, height = x.reshape(-1, 2).T
    return float(np.sqrt(np.mean((height - s**2 / 2) ** 2)))


def main() -> dict[str, float]:
    """Fit, draw, denoise, and check the map."""
    x = walks(np.random.default_rng(0), 20_000)
    family = generative.Flow(
        scalar=generative.Affine(), layers=generative.TransformerLayers(heads=2), count=2, width=32, depth=1, noise=0.1
    )
    training = generative.Training(steps=800, batch=128, learning_rate=3e-3, ema=0.99)
    flow = generative.fit(family, x, training=training, seed=0, progress=False)
    noisy = flow.sample(jax.random.key(1), (1000,))
    clean = flow.denoised(noisy)
    point = noisy[0]
    z = flow.noise_of(point)
    jacobian = jax.jacobian(flow.noise_of)(point)
    log_det = flow.log_prob(point) + 0.5 * jnp.sum(z**2) + POINTS * jnp.log(2 * jnp.pi)
    return {
        "largest error of the inverse": float(jnp.abs(flow.noise_map(z) - point).max()),
        "log determinant against autodiff": float(jnp.abs(log_det - jnp.linalg.slogdet(jacobian)[1])),
        "distance of draws from the curve": distance(np.asarray(noisy)),
        "share of it after the denoising step": distance(np.asarray(clean)) / distance(np.asarray(noisy)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
