"""Consistency trajectories

A normal plane, where every jump along the probability flow is known: how far jumps, score and density are from it.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "error of the jump from 2 to 0.5": (0.0, 0.15),
    "error of the jump from 20 to 0.002": (0.0, 0.4),
    "length of the jump from 20 to 0.002": (0.9, 1.1),
    "relative error of the score at level 1": (0.0, 0.15),
    "mean error of the log density": (-0.1, 0.1),
    "standard deviation, 2 jumps, gamma 0": (0.8, 1.2),
    "standard deviation, 4 jumps, gamma 1": (0.8, 1.2),
}


def main() -> dict[str, float]:
    """The numbers of the page."""
    x = np.random.default_rng(0).normal(size=(4096, 2))
    training = pg.Training(steps=1500, batch=128, learning_rate=2e-3, validation=0.0, ema=0.99, block=500)
    family = pg.ConsistencyTrajectory(width=64, depth=2, levels=(0.002, 20.0))
    model = pg.fit(family, x, training=training)
    z = jax.random.normal(jax.random.key(1), (500, 2))
    found = {}
    for t, s in ((2.0, 0.5), (20.0, 0.002)):
        # The flow of N(0, 1) keeps x / sqrt(1 + t^2).
        there, here = np.sqrt(1 + s**2) * z, np.sqrt(1 + t**2) * z
        reached = jax.jit(jax.vmap(lambda x, t=t, s=s: model.jump(x, t, s)))(here)
        found[f"error of the jump from {t:g} to {s:g}"] = float(jnp.sqrt(jnp.mean((reached - there) ** 2)))
    found["length of the jump from 20 to 0.002"] = float(jnp.sqrt(jnp.mean((0.002 / 20 * here - there) ** 2)))
    time = float(np.log(500) / np.log(1e4))  # where the level of the path is 1
    wide = np.sqrt(2.0) * z
    error = jax.jit(lambda m: m.score(wide, time))(model) + wide / 2
    found["relative error of the score at level 1"] = float(jnp.sqrt(jnp.mean(error**2) / jnp.mean((wide / 2) ** 2)))
    y = np.random.default_rng(1).normal(size=(64, 2))
    log_prob = np.asarray(model.log_prob(jnp.asarray(y)))
    found["mean error of the log density"] = float(np.mean(log_prob + 0.5 * np.sum(y**2, 1) + np.log(2 * np.pi)))
    for jumps, gamma in ((2, 0.0), (4, 1.0)):
        other = pg.ConsistencyTrajectory(width=64, depth=2, levels=(0.002, 20.0), jumps=jumps, gamma=gamma)
        draws = other.distribution(model.net, model.spec).sample(jax.random.key(2), (2000,))
        found[f"standard deviation, {jumps} jumps, gamma {gamma:g}"] = float(draws.std())
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
