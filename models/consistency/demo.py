"""Consistency training

Two modes in the plane: where the network takes noisy values in one step, and where the exact probability flow takes them.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "one step from noise, distance to the end of the flow": (0.0, 0.35),
    "from the level 1, distance to the end of the flow": (0.0, 0.2),
    "distance of a map that forgets its argument": (0.7, 1.5),
    "share of the right mode, one step": (0.52, 0.68),
    "share of the right mode, two steps": (0.52, 0.68),
    "standard deviation within a mode, two steps": (0.24, 0.38),
}
MEANS, WEIGHTS, VARIANCE = np.array([[-1.2, 0.0], [1.2, 0.5]]), np.array([0.4, 0.6]), 0.1


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    x = MEANS[rng.choice(2, size=4096, p=WEIGHTS)] + np.sqrt(VARIANCE) * rng.normal(size=(4096, 2))
    training = pg.Training(steps=2000, batch=128, learning_rate=2e-3, validation=0.0, ema=0.99, block=1000)
    family = pg.Consistency(width=64, depth=2, levels=(0.002, 20.0), grid=(10, 320))
    model = pg.fit(family, x, training=training)
    two_steps = pg.Consistency(width=64, depth=2, levels=(0.002, 20.0), grid=(10, 320), refine=(0.8,))
    twice = two_steps.distribution(model.net, model.spec)

    # The exact denoiser of the same mixture, in the units and on the noise levels of the network.
    loc, scale = np.asarray(model.units.loc.value, float), np.asarray(model.units.scale.value, float)
    path = pg.VE(0.002, 20.0, start=1e-6)
    exact = pg.GaussianMixture(WEIGHTS, (MEANS - loc) / scale, np.diag(VARIANCE / scale**2), path)
    found, keys = {}, jax.random.split(jax.random.key(0), 500)
    for name, t in (("one step from noise", 1.0), ("from the level 1", float(np.log(500) / np.log(1e4)))):
        noisy = jax.vmap(lambda k, t=t: exact.draw(k, t))(keys)
        times = jnp.linspace(t, path.start, 200)
        ends = jax.jit(jax.vmap(lambda x, s=times: pg.sample_path(keys[0], pg.UniPC(), exact, x, s)))(noisy)
        mapped = jax.jit(jax.vmap(lambda x, t=t: model.origin(x, path(t)[1])))(noisy)
        found[f"{name}, distance to the end of the flow"] = float(np.median(np.linalg.norm(mapped - ends, axis=1)))
    away = np.linalg.norm(ends - ends.mean(0), axis=1)
    found["distance of a map that forgets its argument"] = float(np.median(away))
    for name, which in (("one step", model), ("two steps", twice)):
        draws = np.asarray(which.sample(jax.random.key(1), (2000,)))
        right = draws @ (MEANS[1] - MEANS[0]) > (MEANS[1] - MEANS[0]) @ MEANS.mean(0)
        found[f"share of the right mode, {name}"] = float(right.mean())
    found["standard deviation within a mode, two steps"] = float(draws[right].std(0).mean())
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
