"""A third of the diffusion time, with a law of its own where the path ends."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    # Standard errors of the bounds, over 500 data, are about 0.05.
    "entropy bound lost, whole path [nats]": (-0.2, 0.5),
    "entropy bound lost, a third of the path [nats]": (0.3, 6.0),
    "entropy bound lost, a third, fitted law at its end [nats]": (-0.2, 0.5),
    "of the loss of a third, the part of the end [nats]": (0.2, 6.0),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    weights, means = np.array([0.4, 0.6]), np.array([[-2.0], [1.5]])

    def lost(end: float, fitted: bool) -> tuple[float, float]:
        path = g.VP(end=end)
        law = g.GaussianMixture(weights, means, [[0.2]], path)
        draws, keys = jax.random.split(jax.random.key(0), (2, 500))
        x = jax.vmap(law.draw, (0, None))(draws, path.start)
        sigma = path(end)[1]
        at_end = dist.Normal(jnp.zeros(1), sigma).to_event(1)
        if fitted:
            # A mixture of two Gaussians, by their moments given the side of a large sample of noisy data.
            noisy = jax.vmap(law.draw, (0, None))(jax.random.split(jax.random.key(1), 20000), end)[:, 0]
            at_end = two_gaussians(noisy)
        denoiser = g.Ended(law, at_end)
        times = g.even_log_snr(path, 400)
        parts = jax.jit(jax.vmap(lambda key, x: g.chain_bound(key, denoiser, x, times)))(keys, x)
        exact = jax.vmap(law.log_density, (0, None))(x, path.start)
        return float(jnp.mean(exact - parts.total)), float(-jnp.mean(parts.end))

    whole, _ = lost(1.0, False)
    short, end = lost(0.3, False)
    mended, end_mended = lost(0.3, True)
    return {
        "entropy bound lost, whole path [nats]": whole,
        "entropy bound lost, a third of the path [nats]": short,
        "entropy bound lost, a third, fitted law at its end [nats]": mended,
        "of the loss of a third, the part of the end [nats]": end - end_mended,
    }


def two_gaussians(x: jax.Array) -> dist.Distribution:
    """Fit a mixture of two Gaussians to numbers, by expectation and maximisation."""
    share, mean, sd = jnp.array([0.5, 0.5]), jnp.array([-1.0, 1.0]), jnp.ones(2)
    for _ in range(50):
        log_p = jnp.log(share) + jax.scipy.stats.norm.logpdf(x[:, None], mean, sd)
        each = jax.nn.softmax(log_p, 1)
        share = each.mean(0)
        mean = each.T @ x / each.sum(0)
        sd = jnp.sqrt(jnp.sum(each * (x[:, None] - mean) ** 2, 0) / each.sum(0))
    parts = dist.Normal(mean[:, None], sd[:, None]).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(share), parts)


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
