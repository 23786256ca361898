"""Event sampling

How likely is it that a trajectory goes as high as that, and what does it look like then? An Ornstein-Uhlenbeck process.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from probgen import generative as gm

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    # The estimated standard error of 1000 particles is 1 to 2 %.
    **{f"mean, exact 1e-{k}: estimate over exact": (0.85, 1.15) for k in (1, 2, 3, 4)},
    "max > 3.2: frequency in 200,000 draws": (2.9e-3, 4.6e-3),
    "max > 3.2: twisted particles": (2.9e-3, 4.6e-3),
    "max > 3.2: share of uncorrected draws where it happens": (0.9, 1.0),
    "max > 3.2: error of the mean at the middle, uncorrected": (-0.6, -0.05),
    "max > 3.2: error of the mean at the middle, particles": (-0.3, 0.3),
}

PATH = gm.VP()
TIMES = np.arange(6) / 2
OU = gm.GaussianMixture([1.0], np.zeros((1, 6)), np.exp(-np.abs(TIMES[:, None] - TIMES)), PATH)


def main() -> dict[str, float]:
    alpha, sigma = map(float, PATH(PATH.start))
    scale = np.sqrt(alpha**2 * np.mean(np.exp(-np.abs(TIMES[:, None] - TIMES))) + sigma**2 / 6)
    found = {}
    for k in (1, 2, 3, 4):
        event = gm.Event(OU, jnp.mean, float(scale * norm.isf(10.0**-k)))
        estimate = event.run(jax.random.key(k), particles=1000, steps=30).log_probability
        found[f"mean, exact 1e-{k}: estimate over exact"] = float(jnp.exp(estimate)) * 10.0**k

    draws = jax.jit(jax.vmap(lambda key: OU.draw(key, PATH.start)))(jax.random.split(jax.random.key(0), 200_000))
    there = draws[draws.max(1) >= 3.2]
    event = gm.Event(OU, jnp.max, 3.2)
    cloud = event.run(jax.random.key(1), particles=4000, steps=60)
    plain = jax.jit(lambda key: event.approximate.sample(key, (500,)))(jax.random.key(2))
    middle = float(there[:, 3].mean())
    found |= {
        "max > 3.2: frequency in 200,000 draws": len(there) / len(draws),
        "max > 3.2: twisted particles": float(jnp.exp(cloud.log_probability)),
        "max > 3.2: share of uncorrected draws where it happens": float(jnp.mean(plain.max(1) >= 3.2)),
        "max > 3.2: error of the mean at the middle, uncorrected": float(plain[:, 3].mean()) - middle,
        "max > 3.2: error of the mean at the middle, particles": float(jnp.exp(cloud.log_w) @ cloud.x[:, 3]) - middle,
    }
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
