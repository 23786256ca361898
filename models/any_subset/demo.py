"""Any-subset autoregression: several symbols at a time, with the law of one at a time.

Ten bits that follow one another like weather. Guesses are drawn all at once and accepted by the chain of conditionals.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

gen = pg.generative
SIZE = 10
EXPECTED = {
    "log probability, nats per row": (-4.7, -4.35),
    "entropy, nats per row": (4.49, 4.51),
    "passes of the network per row, mean": (3.0, 10.0),
    "passes of the network per row, most": (2.0, 10.0),
    "chance of staying in the draws": (0.82, 0.88),
    "sum of the probabilities of all rows, error": (0.0, 1e-4),
}
"""Bits stay as they are with chance 0.85: entropy log 2 + 9 H(0.85) = 4.50 nats; 10 symbols take at most 10 passes."""


def weather(rng: np.random.Generator, count: int):
    """Rows that stay or change."""
    changes = rng.random((count, SIZE)) < 0.15
    changes[:, 0] = rng.random(count) < 0.5
    return changes.cumsum(1) % 2


def main() -> dict[str, float]:
    """Fit, judge, draw by speculation."""
    rng = np.random.default_rng(0)
    rows, held = weather(rng, 6000), weather(rng, 2000)
    training = gen.Training(steps=350, batch=128, learning_rate=4e-3, ema=0.98, block=175)
    model = gen.fit(gen.AnySubset(width=32, depth=2), rows, training=training)
    blank = jnp.full(SIZE, 2)
    drawn, calls = jax.jit(jax.vmap(lambda k: model.unmasked(k, blank)))(jax.random.split(jax.random.key(0), 2000))
    drawn = np.asarray(drawn)
    log_prob = jax.jit(model.log_prob)
    return {
        "log probability, nats per row": float(log_prob(held).mean()),
        "entropy, nats per row": float(np.log(2) - 9 * (0.85 * np.log(0.85) + 0.15 * np.log(0.15))),
        "passes of the network per row, mean": float(calls.mean()),
        "passes of the network per row, most": float(calls.max()),
        "chance of staying in the draws": float((drawn[:, 1:] == drawn[:, :-1]).mean()),
        "sum of the probabilities of all rows, error": abs(
            float(jnp.exp(log_prob(model.enumerate_support())).sum()) - 1
        ),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
