"""Residual quantisation

A normal plane written with one, two and four symbols of a book of eight, and the law of the codes, exactly.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "distortion, 1 symbol": (0.08, 0.3),
    "distortion, 2 symbols": (0.005, 0.1),
    "distortion, 4 symbols": (0.0, 0.04),
    "ratio of 2 symbols to 1": (0.0, 0.5),
    "ratio of 4 symbols to 2": (0.0, 0.7),
    "sum of the probabilities of all codes": (0.99999, 1.00001),
    "total variation of codes and prior": (0.0, 0.12),
    "standard deviation of draws": (0.85, 1.1),
}


def main() -> dict[str, float]:
    """The numbers of the page."""
    x = np.random.default_rng(0).normal(size=(4096, 2))
    training = pg.Training(
        steps=1200, batch=128, learning_rate=2e-3, weight_decay=0.0, validation=0.0, ema=0.99, block=600
    )
    found, encoders = {}, {}
    for stack in (1, 2, 4):
        encoder = encoders[stack] = pg.fit(
            pg.QuantisedAutoencoder(values=8, stack=stack, width=32), x, training=training
        )
        error = float(np.mean((encoder.decode(encoder.encode(x)) - x) ** 2))
        found[f"distortion, {stack} symbol{'s' if stack > 1 else ''}"] = error
    found["ratio of 2 symbols to 1"] = found["distortion, 2 symbols"] / found["distortion, 1 symbol"]
    found["ratio of 4 symbols to 2"] = found["distortion, 4 symbols"] / found["distortion, 2 symbols"]

    encoder = encoders[2]
    model = pg.fit(pg.LatentModel(encoder, pg.CodePrior(width=32, depth=2)), x, training=training)
    rows = np.array(list(itertools.product(range(8), repeat=2)))
    p = np.exp(np.asarray(model.prior.log_prob(jnp.asarray(rows))))
    codes = np.asarray(encoder.encode(x))
    counts = np.bincount(8 * codes[:, 0] + codes[:, 1], minlength=64) / len(codes)
    found["sum of the probabilities of all codes"] = float(p.sum())
    found["total variation of codes and prior"] = float(0.5 * np.abs(p - counts).sum())
    found["standard deviation of draws"] = float(model.sample(jax.random.key(0), (2000,)).std())
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
