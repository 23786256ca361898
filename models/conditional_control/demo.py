"""Conditional control by reinforcement learning

The sampler of a mixture tuned to real labels, against the exact posterior given a label.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "share of the first mode given 0.0 (exact 0.5)": (0.4, 0.6),
    "share of the first mode given 0.9": (0.8, 1.0),
    "exact share given 0.9": (0.9, 1.0),
    "error of the mean given 0.9, in deviations": (0.0, 0.4),
}
PATH = pg.VP()


def main() -> dict[str, float]:
    prior = pg.GaussianMixture([0.5, 0.5], [[1.0, 0.5], [-1.0, -0.5]], 0.15 * np.eye(2), PATH)
    rng = np.random.default_rng(0)
    x = np.asarray(prior.means)[rng.integers(0, 2, 5000)] + np.sqrt(0.15) * rng.normal(size=(5000, 2))
    row, sd = np.array([0.5, 1.0]), 0.6
    y = x @ row + sd * rng.normal(size=5000)
    training = pg.Training(steps=600, batch=128, learning_rate=5e-3)
    model = pg.fit(pg.Controlled(prior, steps=20, width=32), x, y[:, None], training=training, progress=False)

    exact = pg.observed_mixture(prior, row[None], [0.9], [[sd**2]])
    draws = np.asarray(model.given(jnp.array([[0.0], [0.9]])).sample(jax.random.key(0), (2000,)))
    shares = (
        np.asarray(jax.vmap(lambda x: exact.shares(x, PATH.start)[0])(draws.reshape(-1, 2))).reshape(2000, 2).mean(0)
    )
    weights = np.exp(exact.log_weights)
    mean = weights @ np.asarray(exact.means)
    off = np.linalg.norm(draws[:, 1].mean(0) - mean) / np.sqrt(draws[:, 1].var(0).sum())
    return {
        "share of the first mode given 0.0 (exact 0.5)": float(shares[0]),
        "share of the first mode given 0.9": float(shares[1]),
        "exact share given 0.9": float(weights[0]),
        "error of the mean given 0.9, in deviations": float(off),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
