"""PFGM++: diffusion as the limit of Poisson flows in more and more dimensions."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "mean square radius of the noise over exact, D = 8": (0.9, 1.1),
    "distance to the Gaussian kernel, D = 8 [nats]": (0.05, 2.0),
    "distance to the Gaussian kernel, D = 8192 [nats]": (0.0, 2e-3),
    # 2000 draws of a model that was trained for some seconds.
    "share of draws in the right mode (0.5)": (0.42, 0.58),
    "mean log density by the flow, minus exact": (-0.25, 0.15),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    draws = g.PoissonKernel((2,), 8.0, 1.0).sample(jax.random.key(0), (20000,))
    found = {"mean square radius of the noise over exact, D = 8": float(jnp.mean(jnp.sum(draws**2, 1)) / (2 * 8 / 6))}
    x = jnp.array([1.5, -1.0])
    normal = jnp.sum(jax.scipy.stats.norm.logpdf(x))
    for extra in (8, 8192):
        name = f"distance to the Gaussian kernel, D = {extra} [nats]"
        found[name] = float(jnp.abs(g.PoissonKernel((2,), float(extra), 1.0).log_prob(x) - normal))

    rng = np.random.default_rng(0)
    data = rng.choice([-2.0, 2.0], (4000, 1)) * [1.0, 0.5] + 0.5 * rng.normal(size=(4000, 2))
    training = g.Training(steps=700, batch=128, learning_rate=3e-3)
    model = g.fit(g.PoissonFlow(extra=16.0, width=32, depth=2, sampling_steps=16), data, training=training, seed=0)
    sampled = model.sample(jax.random.key(1), (2000,))
    found["share of draws in the right mode (0.5)"] = float(jnp.mean(sampled[:, 0] > 0))
    exact = g.GaussianMixture([0.5, 0.5], [[-2.0, -1.0], [2.0, 1.0]], 0.25 * np.eye(2), g.VP())
    held = jax.vmap(exact.draw, (0, None))(jax.random.split(jax.random.key(2), 30), 0.0)
    difference = jax.jit(model.log_prob)(held) - jax.vmap(exact.log_density, (0, None))(held, 0.0)
    found["mean log density by the flow, minus exact"] = float(jnp.mean(difference))
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
