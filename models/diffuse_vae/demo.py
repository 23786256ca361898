"""DiffuseVAE

A noisy arc: a code of one number, and a diffusion model that refines what it decodes to, in four steps.
"""

import jax
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "discrepancy in 4 steps, refined": (-0.005, 0.05),
    "discrepancy in 4 steps, diffusion alone": (0.0, 0.3),
    "ratio of the two": (-0.5, 0.8),
    "distance from the curve, data": (0.03, 0.06),
    "distance from the curve, autoencoder alone": (0.0, 0.045),
    "distance from the curve, refined": (0.02, 0.06),
    "distance from the curve, diffusion alone": (0.07, 0.4),
    "correlation of the code and that of the draw": (0.95, 1.0),
}


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, of a Gaussian kernel half as wide as the data."""
    gram = lambda a, b: np.exp(-2 * ((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
    within = sum((gram(a, a).sum() - len(a)) / len(a) / (len(a) - 1) for a in (x, y))
    return float(within - 2 * gram(x, y).mean())


def from_curve(x: np.ndarray) -> float:
    """Mean distance from the circle of which the arc is a part."""
    return float(np.abs(np.linalg.norm(x, axis=-1) - 1).mean())


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    turn = 0.3 * np.pi * rng.normal(size=6000)
    x = np.stack([np.cos(turn), np.sin(turn)], 1) + 0.06 * rng.normal(size=(6000, 2))
    learned, held = x[:4500], x[4500:]
    training = pg.Training(steps=1000, batch=128, learning_rate=3e-3, ema=0.99, block=500)
    vae = pg.fit(pg.Autoencoder(size=1, variance=0.02, width=64, depth=2), learned, training=training)
    diffusion = pg.Diffusion(width=48, depth=2, sampler=pg.DDIM(), sampling_steps=4)
    alone = pg.fit(diffusion, learned, training=training)
    refined = pg.fit(pg.DiffuseVAE(vae, diffusion), learned, training=training)
    found = {}
    for name, model in (("in 4 steps, refined", refined), ("in 4 steps, diffusion alone", alone)):
        draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (1500,)))(model, jax.random.key(0)))
        found[f"discrepancy {name}"] = discrepancy(held, draws)
        found[f"distance from the curve, {name[12:]}"] = from_curve(draws)
    found["ratio of the two"] = (
        found["discrepancy in 4 steps, refined"] / found["discrepancy in 4 steps, diffusion alone"]
    )
    codes = jax.random.normal(jax.random.key(1), (1500, 1))
    found["distance from the curve, data"] = from_curve(held)
    found["distance from the curve, autoencoder alone"] = from_curve(np.asarray(vae.decode(codes)))
    again = np.asarray(refined.encode(refined.decode(codes, jax.random.key(2))))
    found["correlation of the code and that of the draw"] = float(
        np.corrcoef(np.asarray(codes)[:, 0], again[:, 0])[0, 1]
    )
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
