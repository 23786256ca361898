"""Nested diffusion

Four clusters in two groups: a coarse code, a finer one, then the data, each level drawn given the one above.
"""

import jax
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "largest error of the share of a cluster": (0.0, 0.08),
    "share of draws near a cluster": (0.8, 1.0),
    "coarse code of the datum against the one it came from": (0.9, 1.0),
    "fine code of the datum against the one it came from": (0.8, 1.0),
    "largest error of a standard deviation, relative": (0.0, 0.2),
}
SHARES = np.array([0.4, 0.1, 0.2, 0.3])
CENTRES = np.array([[-4.0, -1.0, 0, 0], [-4.0, 1.0, 0, 0], [4.0, -1.0, 0, 0], [4.0, 1.0, 0, 0]])


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    label = rng.choice(4, size=4096, p=SHARES)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    x = (CENTRES[label] + 0.3 * rng.normal(size=(4096, 4))) @ turn
    encoders = tuple(pg.fit(pg.PrincipalComponents(size), x) for size in (1, 2))
    training = pg.Training(steps=1000, batch=128, learning_rate=3e-3, validation=0.0, ema=0.99, block=500)
    family = pg.NestedDiffusion(encoders, noise=0.2, diffusion=pg.Diffusion(width=48, depth=2, sampling_steps=16))
    model = pg.fit(family, x, training=training)
    coarse, fine, draws = (
        np.asarray(a) for a in jax.jit(lambda m, k: m.sample_levels(k, (2000,)))(model, jax.random.key(0))
    )
    away = np.linalg.norm((draws @ turn.T)[:, None] - CENTRES, axis=-1)
    shares = np.bincount(away.argmin(1), minlength=4) / len(draws)
    found = {
        "largest error of the share of a cluster": float(np.abs(shares - SHARES).max()),
        "share of draws near a cluster": float(np.mean(away.min(1) < 1.1)),
    }
    for name, encoder, code in (("coarse", encoders[0], coarse), ("fine", encoders[1], fine)):
        again = np.asarray(encoder.encode(draws))
        found[f"{name} code of the datum against the one it came from"] = float(
            np.corrcoef(again[:, -1], code[:, -1])[0, 1]
        )
    found["largest error of a standard deviation, relative"] = float(np.abs(draws.std(0) / x.std(0) - 1).max())
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
