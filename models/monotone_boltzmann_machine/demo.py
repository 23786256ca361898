"""Monotone Boltzmann machines: one model that completes and classifies, with a mean field that is always found.

Digits of 4 x 4 binary pixels with their label, written as ten more pixels. One model, trained to fill in random parts,
classifies from the pixels and completes pixels from half of them.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

EXPECTED = {
    "right labels from all pixels": (0.55, 0.9),
    "right labels from the upper half": (0.25, 0.6),
    "lower pixels guessed right from the upper half and the label": (0.875, 0.95),
    "lower pixels guessed right from their frequency": (0.86, 0.88),
    "largest residual of the solver": (0.0, 1.1e-5),
    "most steps of the solver": (3.0, 499.0),
}
"""Chance is 0.1 for labels; the rest: what a fit with this seed varies by."""


def digits():
    """Means of 2 x 2 pixels, binary, and one-hot labels; split at random."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = found.images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) >= 6
    rows = np.concatenate([x, np.eye(10)[found.target]], 1).astype(int)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[:1497], rows[1497:]


def main() -> dict[str, float]:
    """Fit, classify, complete."""
    x, held = digits()
    family = pg.generative.MonotoneBoltzmann(hidden=6, rank=32, monotonicity=0.03, longest=499)
    training = pg.generative.Training(steps=700, batch=32, learning_rate=3e-2, ema=0.98, weight_decay=0.0)
    model = pg.generative.fit(family, x, training=training)
    at = jnp.arange(26)
    pixels, upper, with_label = at < 16, at < 8, (at < 8) | (at >= 16)
    conditional = jax.jit(model.conditional)

    def label(mask):
        return np.asarray(conditional(held, mask))[:, 16:, 1].argmax(1)

    guessed = np.asarray(conditional(held, with_label)).argmax(-1)
    fields = jax.jit(jax.vmap(lambda row: model.mean_field(row, upper)))(held)
    right = held[:, 16:].argmax(1)
    return {
        "right labels from all pixels": (label(pixels) == right).mean(),
        "right labels from the upper half": (label(upper) == right).mean(),
        "lower pixels guessed right from the upper half and the label": (guessed == held)[:, 8:16].mean(),
        "lower pixels guessed right from their frequency": ((x.mean(0) > 0.5) == held)[:, 8:16].mean(),
        "largest residual of the solver": float(fields.residual.max()),
        "most steps of the solver": float(fields.steps.max()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
