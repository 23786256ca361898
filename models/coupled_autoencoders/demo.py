"""Coupled mixture autoencoders: clusters, found because two autoencoders must agree.

Six planted clusters around a circle, each spread along a third direction.
"""

import numpy as np

from probgen import generative

EXPECTED = {"adjusted Rand index": (0.9, 1.0001), "data on which the arms agree": (0.95, 1.0001)}


def rand_index(found, label):
    """Agreement of two partitions: 1 if they are the same, 0 by chance."""
    table = np.zeros((found.max() + 1, label.max() + 1))
    np.add.at(table, (found, label), 1)

    def pairs(n):
        return (n * (n - 1) / 2).sum()

    rows, columns, total = pairs(table.sum(1)), pairs(table.sum(0)), pairs(np.asarray([len(label)]))
    expected = rows * columns / total
    return float((pairs(table) - expected) / ((rows + columns) / 2 - expected))


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, 1200)
    angle = np.pi * label / 3
    centre = 4 * np.stack([np.cos(angle), np.sin(angle), np.zeros(len(label))], 1)
    x = centre + rng.normal(size=centre.shape) * [0.3, 0.3, 1.0]
    family = generative.CoupledMixture(categories=6, state=1, width=32)
    model = generative.fit(family, x, seed=0)
    best = np.argmax(model.shares(x), -1)
    return {
        "adjusted Rand index": rand_index(best[:, 0], label),
        "data on which the arms agree": float(model.agreement(x)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
