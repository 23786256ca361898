"""Denoising diffusion: the variational bound of the chain against the exact density and entropy."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    # Expected losses; the bands are about five standard errors of the estimates.
    "loss of the bound, 20 steps [nats]": (2.5, 10.0),
    "loss of the bound, 80 steps [nats]": (0.4, 1.6),
    "ratio of the losses (4 as steps grow)": (2.5, 14.0),
    "bound, 80 steps [bits per entry]": (0.8, 2.4),
    "mean of the posterior by multiplying with r(x) (exact 0.5556)": (0.50, 0.61),
    "log evidence of r (exact -1.491)": (-1.56, -1.42),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    weights, means = [0.4, 0.6], np.array([[-1.0, 0.5], [0.8, 0.0]])
    denoiser = g.GaussianMixture(weights, means, 0.1 * np.eye(2), g.VP())
    start = denoiser.path.start
    x = jax.vmap(denoiser.draw, (0, None))(jax.random.split(jax.random.key(0), 500), start)
    exact = jax.vmap(denoiser.log_density, (0, None))(x, start)
    found, losses = {}, []
    for steps in (20, 80):
        times = g.even_log_snr(denoiser.path, steps)
        keys = jax.random.split(jax.random.key(1), len(x))
        bound = jax.jit(jax.vmap(lambda key, x, times=times: g.chain_bound(key, denoiser, x, times).total))(keys, x)
        losses.append(float(jnp.mean(exact - bound)))
        found[f"loss of the bound, {steps} steps [nats]"] = losses[-1]
    found["ratio of the losses (4 as steps grow)"] = losses[0] / losses[1]
    found["bound, 80 steps [bits per entry]"] = float(-jnp.mean(bound) / (2 * np.log(2)))

    # Posterior of a Gaussian N(0, 1) after multiplying with r(x) = N(1; x, 0.8): N(1 / 1.8, 0.8 / 1.8).
    prior = g.GaussianMixture([1.0], [[0.0]], [[1.0]], g.VP())
    r = g.Tilted(
        prior,
        lambda x: jax.scipy.stats.norm.logpdf(1.0, x[0], jnp.sqrt(0.8)),
        correction=g.Correction(particles=2000, steps=100),
    )
    particles = r.run(jax.random.key(2))
    name = "mean of the posterior by multiplying with r(x) (exact 0.5556)"
    found[name] = float(jnp.exp(particles.log_w) @ particles.x[:, 0])
    found["log evidence of r (exact -1.491)"] = float(particles.log_z)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
