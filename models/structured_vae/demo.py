"""Structured variational autoencoder: a rotating state, seen through noise, with gaps.

Sequences of a linear-Gaussian model, whose log density is known; the fitted model is linear too, so it can reach it. Then
a third of the times is hidden and filled in, next to the best that is possible (the true model's mean).
"""

import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative

EXPECTED = {
    "log density of the true model, per time": (-2.4, -2.25),
    "bound of the fitted model, less that": (-0.05, 0.02),
    "error of what was filled in": (0.46, 0.52),
    "the same, by the true model": (0.46, 0.49),
}
LENGTH, ANGLE, NOISE, KICK = 12, 0.5, 0.4, 0.2


def true_law():
    """Covariance of a sequence of 3-vectors, and the map from states to them."""
    turn = 0.98 * np.asarray([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
    states = np.zeros((LENGTH, 2, LENGTH, 2))
    marginal = np.eye(2)
    for t in range(LENGTH):
        marginal = turn @ marginal @ turn.T + KICK**2 * np.eye(2)
        later = marginal
        for s in range(t, LENGTH):
            states[s, :, t], states[t, :, s] = later, later.T
            later = turn @ later
    seen_by = np.kron(np.eye(LENGTH), np.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    covariance = seen_by @ states.reshape(2 * LENGTH, -1) @ seen_by.T
    return covariance, covariance + NOISE**2 * np.eye(3 * LENGTH)


def main() -> dict[str, float]:
    signal, covariance = true_law()
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(np.zeros(3 * LENGTH), covariance, 500)
    train, test = x[:400], x[400:]
    truth = jax.scipy.stats.multivariate_normal.logpdf(jnp.asarray(test), jnp.zeros(3 * LENGTH), covariance).mean()
    family = generative.StructuredVAE(generative.LinearDynamics(2), depth=0)
    training = generative.Training(steps=1500, batch=50, learning_rate=1e-2, weight_decay=0.0, ema=0.99, validation=0.0)
    model = generative.fit(family, train.reshape(-1, LENGTH, 3), training=training, seed=0)
    whole = jnp.asarray(test.reshape(-1, LENGTH, 3))
    bound = jax.jit(lambda x: model.bound(jax.random.key(1), x).mean())(whole)
    seen = np.arange(LENGTH) % 3 != 1
    mask = np.repeat(seen[:, None], 3, 1)
    filled = np.asarray(jax.jit(lambda x: model.conditional(x, mask))(whole)).reshape(len(test), -1)
    rows = mask.reshape(-1)
    best = test[:, rows] @ np.linalg.solve(covariance[np.ix_(rows, rows)], signal[np.ix_(rows, ~rows)])
    return {
        "log density of the true model, per time": float(truth) / LENGTH,
        "bound of the fitted model, less that": float(bound - truth) / LENGTH,
        "error of what was filled in": float(np.sqrt(np.mean((filled - test)[:, ~rows] ** 2))),
        "the same, by the true model": float(np.sqrt(np.mean((best - test[:, ~rows]) ** 2))),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
