"""Conditional sliced-Wasserstein flows

No network: particles are moved along random directions, and conditional draws come from the same maps.
"""

import jax
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "mean given 1 (3)": (2.8, 3.2),
    "deviation given 1 (0.7)": (0.6, 0.85),
    "mean given -1 (-1)": (-1.2, -0.8),
    "deviation given -1 (0.7)": (0.6, 0.85),
    "squared MMD to the conditional": (-0.005, 0.02),
    "squared MMD of the marginal to it": (0.1, 0.6),
}


def mmd(x, y):
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel of width 1."""

    def kernel(a, b):
        return np.exp(-np.sum((a[:, None] - b) ** 2, -1) / 2)

    def own(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(own(x) + own(y) - 2 * kernel(x, y).mean())


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    c = rng.normal(size=(4000, 1))
    x = 1 + 2 * c + 0.7 * rng.normal(size=(4000, 1))
    family = pg.SlicedFlow(steps=300, rate=0.3, levels=80)
    model = pg.fit(family, x, c, training=pg.Training(validation=0.0))
    draw = jax.jit(lambda m, k: m.sample(k, (1000,)))
    draws = {at: np.asarray(draw(model.given([at]), jax.random.key(0))) for at in (1.0, -1.0)}
    found = {}
    for at, here in draws.items():
        found[f"mean given {at:g} ({1 + 2 * at:g})"] = float(here.mean())
        found[f"deviation given {at:g} (0.7)"] = float(here.std())
    exact = 3 + 0.7 * rng.normal(size=(1000, 1))
    found["squared MMD to the conditional"] = mmd(draws[1.0], exact)
    found["squared MMD of the marginal to it"] = mmd(x[:1000], exact)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
