"""Multi-modal latent diffusion

Two modalities that share one of four classes: one is drawn given the other, both ways, and both together.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "same class, both drawn": (0.85, 1.0),
    "same class, second given first": (0.9, 1.0),
    "same class, first given second": (0.9, 1.0),
    "largest error of the share of a class": (0.0, 0.08),
    "spread within a class over that of the data": (0.6, 1.5),
}
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    label = rng.choice(4, size=4096, p=SHARES)
    first = np.array([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]])
    second = np.array([[2.0, 0.0, 1.0], [0.0, 2.0, -1.0], [-2.0, 0.0, 1.0], [0.0, -2.0, -1.0]])
    x = np.concatenate([first[label], second[label]], 1) + 0.3 * rng.normal(size=(4096, 5))
    training = pg.Training(steps=800, batch=128, learning_rate=3e-3, validation=0.0, ema=0.99, block=400)
    encoders = (
        pg.fit(pg.PrincipalComponents(2), x[:, :2]),
        pg.fit(pg.Autoencoder(size=2, variance=0.0, width=32, depth=1), x[:, 2:], training=training),
    )
    training = pg.Training(steps=1500, batch=128, learning_rate=3e-3, validation=0.0, ema=0.99, block=500)
    family = pg.MultimodalDiffusion(encoders, width=64, depth=2, sampling_steps=16)
    model = pg.fit(family, x, training=training)

    def classes(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = (draws[..., None, :2] - first, draws[..., None, 2:] - second)
        return tuple((part**2).sum(-1).argmin(-1) for part in parts)

    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(model, jax.random.key(0)))
    left, right = classes(draws)
    found = {"same class, both drawn": float(np.mean(left == right))}
    for name, known in (("second given first", (True, False)), ("first given second", (False, True))):
        drawn = jax.jit(lambda m, x, k, known=known: m.sample_given(k, x, known))(
            model, jnp.asarray(x[:1000]), jax.random.key(1)
        )
        a, b = classes(np.asarray(drawn))
        found[f"same class, {name}"] = float(np.mean(a == b))
    found["largest error of the share of a class"] = float(
        np.abs(np.bincount(left, minlength=4) / len(left) - SHARES).max()
    )
    found["spread within a class over that of the data"] = float(
        np.std((draws[:, :2] - first[left])[left == right]) / 0.3
    )
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
