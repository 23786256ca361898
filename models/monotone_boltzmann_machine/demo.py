"""Monotone Boltzmann machines: one model that completes and classifies, with a mean field that is always found.

Digits of 8 x 8 binary pixels with their label, written as ten more pixels. One model classifies from all pixels or from
half of them, and completes pixels from the others; logistic regression, which can do the first alone, stands beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

EXPECTED = {
    "right labels from all pixels": (0.87, 0.96),
    "right labels of logistic regression": (0.93, 0.96),
    "right labels from the upper half": (0.5, 0.7),
    "right labels of logistic regression from the upper half": (0.7, 0.8),
    "lower pixels guessed right from the upper half and the label": (0.79, 0.86),
    "lower pixels guessed right from their frequency": (0.76, 0.79),
    "largest residual of the solver": (0.0, 1.01e-4),
    "most steps of the solver": (3.0, 499.0),
}
"""300 held-out digits: standard errors of labels are 0.015 to 0.03. The residual is at most the tolerance."""
PIXELS = 64


def digits():
    """Binary pixels and one-hot labels; split at random."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = np.concatenate([found.data >= 8, np.eye(10)[found.target]], 1).astype(int)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[:1497], rows[1497:]


def logistic(x, held, count):
    """Share of right labels of logistic regression on the first pixels."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=2000).fit(x[:, :count], x[:, PIXELS:].argmax(1))
    return fitted.score(held[:, :count], held[:, PIXELS:].argmax(1))


def main() -> dict[str, float]:
    """Fit, classify, complete."""
    x, held = digits()
    labels = tuple(range(PIXELS, PIXELS + 10))
    family = pg.generative.MonotoneBoltzmann(hidden=0, rank=32, tolerance=1e-4, longest=499, wanted=labels)
    training = pg.generative.Training(steps=300, batch=32, learning_rate=2e-2, ema=0.98, weight_decay=0.0)
    model = pg.generative.fit(family, x, training=training)
    at = jnp.arange(PIXELS + 10)
    pixels, upper, with_label = at < PIXELS, at < PIXELS // 2, (at < PIXELS // 2) | (at >= PIXELS)
    conditional = jax.jit(model.conditional)
    right = held[:, PIXELS:].argmax(1)

    def label(mask):
        return np.mean(np.asarray(conditional(held, mask))[:, PIXELS:, 1].argmax(1) == right)

    def lower(guessed):
        return np.mean((guessed == held)[:, PIXELS // 2 : PIXELS])

    fields = jax.jit(jax.vmap(lambda row: model.mean_field(row, upper)))(held)
    return {
        "right labels from all pixels": label(pixels),
        "right labels of logistic regression": logistic(x, held, PIXELS),
        "right labels from the upper half": label(upper),
        "right labels of logistic regression from the upper half": logistic(x, held, PIXELS // 2),
        "lower pixels guessed right from the upper half and the label": lower(
            np.asarray(conditional(held, with_label)).argmax(-1)
        ),
        "lower pixels guessed right from their frequency": lower(x.mean(0) > 0.5),
        "largest residual of the solver": float(fields.residual.max()),
        "most steps of the solver": float(fields.steps.max()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
