"""Importance-weighted autoencoder: more draws tighten the bound, up to the log density.

Points near a circle, with one latent dimension, so that the log density is known by quadrature.
"""

import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative

EXPECTED = {
    "gap of the bound, 1 draw": (0.1, 3.0),
    "gap of the bound, 8 draws": (0.0, 0.3),
    "gap of the bound, 64 draws": (-0.02, 0.06),
    "effective share of 64 draws": (0.2, 1.0),
    "signal to noise: doubly reparameterised over plain": (3.0, 100.0),
}


def data(count=1000):
    rng = np.random.default_rng(0)
    angle = rng.uniform(-2.5, 2.5, count)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(count, 2))


def exact(model, x):
    """Mean log density by quadrature over the latent dimension."""
    grid = jnp.linspace(-6, 6, 1201)[:, None]
    prior = jax.scipy.stats.norm.logpdf(grid[:, 0]) + jnp.log(grid[1, 0] - grid[0, 0])
    likelihood = jax.vmap(lambda x: jax.vmap(lambda z: model.net.log_likelihood(z, x, None))(grid))
    return jnp.mean(jax.scipy.special.logsumexp(prior + likelihood(x), axis=1))


def main() -> dict[str, float]:
    x = data()
    family = generative.VAE(
        latent=1, objective=generative.IWAE(draws=8), encoder=generative.Amortised(32, 1), width=32, depth=1
    )
    training = generative.Training(steps=1500, batch=100, learning_rate=1e-2, ema=0.99, validation=0.0)
    model = generative.fit(family, x, training=training, seed=0)
    few = jnp.asarray(x[:200])
    truth = float(jax.jit(lambda x: exact(model, x))(few))
    repeated = jnp.tile(few, (20, 1))
    numbers = {}
    for draws in (1, 8, 64):
        bound = jax.jit(lambda x, draws=draws: model.bound(jax.random.key(1), x, draws).mean())(repeated)
        numbers[f"gap of the bound, {draws} draw{'s' if draws > 1 else ''}"] = truth - float(bound)
    ess = jax.jit(lambda x: model.estimate(jax.random.key(2), x, 64).ess.mean())(few)
    numbers["effective share of 64 draws"] = float(ess) / 64
    plain, doubly = (
        model.signal_to_noise(jax.random.key(3), few[:16], generative.IWAE(64, doubly=d)) for d in (False, True)
    )
    numbers["signal to noise: doubly reparameterised over plain"] = float(doubly / plain)
    return numbers


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
