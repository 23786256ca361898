"""Implicit variational inference: a curved posterior from a neural sampler.

A banana, of which all moments are known: u1 ~ N(0, 1), u2 | u1 ~ N(u1^2, 0.3).
"""

import jax
import numpy as np

from probgen import generative

EXPECTED = {
    "mean of u2 (1)": (0.85, 1.15),
    "standard deviation of u2 (1.446)": (1.2, 1.7),
    "correlation of u1^2 and u2 (0.978)": (0.95, 1.0),
    "spread of u2 about the curve (0.3)": (0.25, 0.35),
    "objective at the end (0)": (-0.15, 0.15),
}


def log_density(u):
    return jax.scipy.stats.norm.logpdf(u[0]) + jax.scipy.stats.norm.logpdf(u[1], u[0] ** 2, 0.3)


def main() -> dict[str, float]:
    model = generative.Implicit().fit_density(log_density, 2, seed=0)
    u1, u2 = np.asarray(model.sample(jax.random.key(1), (5000,))).T
    return {
        "mean of u2 (1)": float(u2.mean()),
        "standard deviation of u2 (1.446)": float(u2.std()),
        "correlation of u1^2 and u2 (0.978)": float(np.corrcoef(u1**2, u2)[0, 1]),
        "spread of u2 about the curve (0.3)": float((u2 - u1**2).std()),
        "objective at the end (0)": float(model.history["objective"][-300:].mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
