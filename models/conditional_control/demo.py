"""Conditional control by reinforcement learning

The sampler of a mixture tuned to real labels, against the exact posterior given a label.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "share of the first mode given 0.0 (exact 0.5)": (0.42, 0.58),
    "share of the first mode given 0.9": (0.85, 1.0),
    "exact share given 0.9": (0.9, 1.0),
    "standard error of the shares": (0.0, 0.012),
    "error of the mean given 0.9, in deviations": (0.0, 0.3),
    "divergence from the optimal chain given 0.9, nats": (0.0, 0.2),
    "its standard error": (0.0, 0.03),
    "divergence of the chain that was given, nats": (1.6, 2.2),
}
"""4000 draws; the divergence is that of whole chains, at least that of where they end."""
PATH = pg.VP()


def main() -> dict[str, float]:
    prior = pg.GaussianMixture([0.5, 0.5], [[1.0, 0.5], [-1.0, -0.5]], 0.15 * np.eye(2), PATH)
    rng = np.random.default_rng(0)
    x = np.asarray(prior.means)[rng.integers(0, 2, 5000)] + np.sqrt(0.15) * rng.normal(size=(5000, 2))
    row, sd = np.array([0.5, 1.0]), 0.6
    y = x @ row + sd * rng.normal(size=5000)
    training = pg.Training(steps=800, batch=128, learning_rate=5e-3)
    model = pg.fit(pg.Controlled(prior, steps=20, width=32), x, y[:, None], training=training, progress=False)

    exact = pg.observed_mixture(prior, row[None], [0.9], [[sd**2]])
    labels = jnp.array([[0.0], [0.9]])
    keys = jax.random.split(jax.random.key(0), 4000)
    both = jax.jit(jax.vmap(jax.vmap(model.family.run, (0, None, None)), (None, None, 0)))
    draws, paid = (np.asarray(a) for a in both(keys, model.net, labels))
    shares = np.asarray(jax.vmap(lambda x: exact.shares(x, PATH.start)[0])(draws.reshape(-1, 2))).reshape(2, 4000)
    weights = np.exp(exact.log_weights)
    mean = weights @ np.asarray(exact.means)
    off = np.linalg.norm(draws[1].mean(0) - mean) / np.sqrt(draws[1].var(0).sum())

    def log_normal(y, mean, variance):
        return -0.5 * (y - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)

    # The objective, with the true law of the label, less its least value, minus the log evidence.
    log_evidence = np.log(np.mean(np.exp(log_normal(0.9, np.asarray(prior.means) @ row, 0.15 * row @ row + sd**2))))
    above = paid[1] - log_normal(0.9, draws[1] @ row, sd**2) + log_evidence
    given = -log_normal(0.9, x @ row, sd**2) + log_evidence
    return {
        "share of the first mode given 0.0 (exact 0.5)": shares[0].mean(),
        "share of the first mode given 0.9": shares[1].mean(),
        "exact share given 0.9": float(weights[0]),
        "standard error of the shares": shares.std(1).max() / np.sqrt(4000),
        "error of the mean given 0.9, in deviations": float(off),
        "divergence from the optimal chain given 0.9, nats": above.mean(),
        "its standard error": above.std() / np.sqrt(4000),
        "divergence of the chain that was given, nats": given.mean(),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
