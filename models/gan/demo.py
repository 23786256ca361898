"""Generative adversarial networks

Four modes in the plane; and the critic of a generator whose law is known, against the log ratio of densities.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "share of draws near a mode": (0.7, 1.0),
    "least share of a mode": (0.1, 0.25),
    "mean probability of data that the critic gives data": (0.4, 0.6),
    "mean probability of data that the critic gives draws": (0.4, 0.6),
    "error of the critic of a known generator": (0.0, 0.25),
    "standard deviation of the log ratio there": (0.6, 0.75),
}


class Known(pg.GAN):
    """A generator that is not trained: a standard normal, in standard units."""

    def made(self, net, z):
        return z


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    modes = np.array([[1.5, 1.5], [-1.5, 1.5], [-1.5, -1.5], [1.5, -1.5]])
    x = modes[rng.integers(4, size=4096)] + 0.3 * rng.normal(size=(4096, 2))
    training = pg.Training(
        steps=3000, batch=128, learning_rate=1e-3, weight_decay=0.0, validation=0.0, ema=0.995, block=1000
    )
    model = pg.fit(pg.GAN(latent=2, width=64, depth=2, penalty=0.5), x, training=training)
    draws = np.asarray(model.sample(jax.random.key(0), (2000,)))
    away = np.linalg.norm(draws[:, None] - modes, axis=-1)
    chance = lambda x: float(jax.nn.sigmoid(model.log_ratio(jnp.asarray(x))).mean())  # noqa: E731
    found = {
        "share of draws near a mode": float(np.mean(away.min(1) < 0.9)),
        "least share of a mode": float(np.bincount(away.argmin(1), minlength=4).min() / len(draws)),
        "mean probability of data that the critic gives data": chance(x[:1000]),
        "mean probability of data that the critic gives draws": chance(draws[:1000]),
    }

    # In standard units both have mean 0 and variance 1: data with |x| = 1 on average, draws N(0, 1).
    side = rng.choice([-1.0, 1.0], size=(4096, 1)) * np.sqrt(0.8) + np.sqrt(0.2) * rng.normal(size=(4096, 1))
    training = pg.Training(steps=1500, batch=256, learning_rate=2e-3, validation=0.0, ema=0.99, block=500)
    known = pg.fit(Known(latent=1, width=64, depth=2, penalty=0.0), side, training=training)
    z = np.random.default_rng(1).normal(size=1000)
    scale, loc = (float(a.value[0]) for a in (known.net.units.scale, known.net.units.loc))
    at = loc + scale * z
    # Log density of the mixture in standard units, less that of the normal.
    parts = [-((at - m) ** 2) / 0.4 - 0.5 * np.log(2 * np.pi * 0.2) for m in (np.sqrt(0.8), -np.sqrt(0.8))]
    exact = np.logaddexp(*parts) - np.log(2) + np.log(scale) + 0.5 * z**2 + 0.5 * np.log(2 * np.pi)
    logit = np.asarray(known.log_ratio(jnp.asarray(at)[:, None]))
    inside = np.abs(z) < 2.5
    found["error of the critic of a known generator"] = float(np.sqrt(np.mean((logit - exact)[inside] ** 2)))
    found["standard deviation of the log ratio there"] = float(exact[inside].std())
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
