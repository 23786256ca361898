"""Born machines: sequences of tokens by matrix products, with a trained embedding.

Eight tokens that are four kinds written in two ways: which way says nothing. Four physical dimensions are enough for an
embedding that learns it; the law of the sequence is a cycle that goes on, or jumps.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

EXPECTED = {
    "entropy of the sequences, nats": (6.24, 6.25),
    "trained embedding of 4 dimensions, nats": (-6.9, -6.15),
    "sum over all pairs of tokens": (0.9999, 1.0001),
    "tokens written in two ways: distance of their operators": (0.0, 0.35),
    "other pairs: distance of their operators": (0.6, 1.5),
    "tokens of the right kind between known ones": (0.8, 1.0),
}
"""The entropy is known by construction; a fit stays above it by its error."""


def data(count, seed):
    """Sequences of five tokens: the kind steps by one with probability 0.9, else anywhere; each kind has two spellings."""
    rng = np.random.default_rng(seed)
    kind = np.zeros((count, 5), int)
    kind[:, 0] = rng.integers(0, 4, count)
    for i in range(1, 5):
        kind[:, i] = np.where(rng.random(count) < 0.9, (kind[:, i - 1] + 1) % 4, rng.integers(0, 4, count))
    return 2 * kind + rng.integers(0, 2, (count, 5))


def main() -> dict[str, float]:
    """Fit, and look at the embedding."""
    steps = np.array([0.9 + 0.1 / 4] + [0.1 / 4] * 3)
    entropy = np.log(4) - 4 * (steps * np.log(steps)).sum() + 5 * np.log(2)
    family = pg.generative.BornMachine(bond=8, physical=4, rank=1)
    training = pg.generative.Training(steps=1500, batch=128, learning_rate=2e-2, ema=0.98, weight_decay=0.0)
    model = pg.generative.fit(family, data(6000, 0), values=8, training=training)
    held = data(1000, 1)
    pairs = np.array(list(itertools.product(range(8), repeat=2)))
    first = jnp.arange(5) < 2
    rows = np.concatenate([pairs, np.zeros((64, 3), int)], 1)
    total = np.exp(np.asarray(jax.jit(model.marginal)(rows, first))).sum()
    operators = model.net.operators()
    flat = np.asarray(operators[2]).reshape(8, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    same = np.arange(8)[:, None] // 2 == np.arange(8)[None] // 2
    known = jnp.array([True, True, False, True, True])
    guessed = np.asarray(jax.jit(model.conditional)(held, known))[:, 2].argmax(-1)
    regular = (held[:, 3] // 2 - held[:, 1] // 2) % 4 == 2
    return {
        "entropy of the sequences, nats": entropy,
        "trained embedding of 4 dimensions, nats": np.asarray(jax.jit(model.log_prob)(held)).mean(),
        "sum over all pairs of tokens": total,
        "tokens written in two ways: distance of their operators": distance[same & ~np.eye(8, dtype=bool)].mean(),
        "other pairs: distance of their operators": distance[~same].mean(),
        "tokens of the right kind between known ones": (guessed // 2 == held[:, 2] // 2)[regular].mean(),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
