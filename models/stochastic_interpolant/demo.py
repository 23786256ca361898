"""Stochastic interpolants

One learned interpolant, followed with different amounts of noise; and the exact one, for which all agree.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

LEVELS = (0.0, 0.2, 1.0)
RANGES = ((0.8, 1.0001), (0.3, 0.95), (-0.2, 0.75))
EXPECTED = {
    **{f"exact fields, variance at t = 1/2, noise {e:g}": (1.0, 1.25) for e in LEVELS},  # 1.125
    **{f"learned fields, variance, noise {e:g}": (0.8, 1.2) for e in LEVELS},
    **{f"correlation of start and end, noise {e:g}": r for e, r in zip(LEVELS, RANGES, strict=True)},
}


def main() -> dict[str, float]:
    found = {}
    # From N(0, 2) to N(0, 1): at t = 1/2 the variance is 1/4 + 2/4 + 3/8 with noise of sqrt(3/2 t (1 - t)).
    covariances = np.diag([1.0, 2.0]).reshape(2, 1, 2, 1)
    exact = pg.GaussianInterpolant(np.zeros((2, 1)), covariances, pg.Straight(1.5**0.5))
    key_start, key_path, key_draw = jax.random.split(jax.random.key(0), 3)
    starts = 2**0.5 * jax.random.normal(key_start, (8000, 1))
    keys = jax.random.split(key_path, 8000)
    walk = jax.jit(jax.vmap(lambda key, x, e: pg.interpolant_path(key, exact, x, e, 60)[1], (0, 0, None)))
    for epsilon in LEVELS:
        values = np.asarray(walk(keys, starts, epsilon))[..., 0]
        found[f"exact fields, variance at t = 1/2, noise {epsilon:g}"] = float(values[:, 30].var())
        found[f"correlation of start and end, noise {epsilon:g}"] = float(
            np.corrcoef(values[:, 0], values[:, -1])[0, 1]
        )

    x = np.random.default_rng(0).choice([-1.0, 1.0], (8000, 1)) * 0.9
    x = x + np.sqrt(1 - 0.81) * np.random.default_rng(1).normal(size=x.shape)
    training = pg.Training(steps=1000, batch=256, learning_rate=5e-3, block=500)
    model = pg.fit(pg.StochasticInterpolant(width=48, depth=2), x, training=training)
    for epsilon in LEVELS:
        draws = jax.jit(lambda m, k: m.sample(k, (2000,)))(model.with_noise(epsilon, steps=60), key_draw)
        found[f"learned fields, variance, noise {epsilon:g}"] = float(jnp.var(draws))
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
