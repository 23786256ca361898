"""Probabilistic integral circuits: continuous latents, and a likelihood that converges in the points of the quadrature.

Eight coarse readings of a random phase: the right latent is continuous. One model is trained at 16 points and compiled
at others.
"""

import jax
import numpy as np

import probgen as pg

EXPECTED = {
    "held-out nats at 16 points": (-9.5, -7.5),
    "independent entries, nats": (-11.2, -10.9),
    "change from 4 to 32 points, nats": (1e-3, 10.0),
    "change from 8 to 32 points, nats": (1e-8, 0.5),
    "change from 16 to 32 points, nats": (0.0, 1e-2),
}
"""Changes shrink with the points; nats: what a fit with this seed varies by (entries have log 4 = 1.39 nats each)."""


def data(count, seed):
    """Quantised cosines of one phase, with noise."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, count)[:, None]
    wave = np.cos(phase + np.arange(8) * np.pi / 4) + 0.3 * rng.normal(size=(count, 8))
    return np.digitize(wave, [-0.7, 0.0, 0.7])


def main() -> dict[str, float]:
    """Fit at 16 points, compile at others."""
    family = pg.generative.IntegralCircuit(points=16, units=pg.generative.NeuralUnits(width=32))
    training = pg.generative.Training(steps=400, batch=128, learning_rate=1e-2, ema=0.98, weight_decay=0.0)
    model = pg.generative.fit(family, data(4000, 0), training=training)
    held = data(500, 1)
    alone = pg.generative.fit(pg.generative.Circuit(states=1, epochs=1, batch=4000), data(4000, 0))
    values = {n: np.asarray(jax.jit(model.compiled(n).log_prob)(held)) for n in (4, 8, 16, 32)}
    numbers = {
        "held-out nats at 16 points": values[16].mean(),
        "independent entries, nats": np.asarray(jax.jit(alone.log_prob)(held)).mean(),
    }
    for n in (4, 8, 16):
        numbers[f"change from {n} to 32 points, nats"] = np.abs(values[n] - values[32]).mean()
    return numbers


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
