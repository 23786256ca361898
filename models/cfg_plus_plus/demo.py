"""CFG++

Inversion and back: data to noise and noise to data with guidance, with DDIM and with CFG++.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "round trip, classifier-free guidance 7.5": (0.3, 30.0),
    "round trip, CFG++ 0.6": (0.0, 0.3),
    "weight of CFG++ 0.6 in 30 steps": (1.0, 3.0),
    "weight of CFG++ 0.6 in 300 steps": (10.0, 30.0),
}

PATH = pg.VP()
MEANS = np.array([[0.9, 1.0], [-0.6, 1.0], [0.1, -1.2]])
PRIOR = pg.GaussianMixture([0.2, 0.3, 0.5], MEANS, 0.15 * np.eye(2), PATH)


def main() -> dict[str, float]:
    cond = pg.observed_mixture(PRIOR, [[1.0, 0.5]], [0.4], [[0.25]])
    x = jax.vmap(lambda key: cond.draw(key, PATH.start))(jax.random.split(jax.random.key(0), 300))
    times = pg.even_log_snr(PATH, 30)

    def round_trip(sampler, weight):
        guided = pg.Guidance(cond, PRIOR, weight)

        def there_and_back(x):
            noise = pg.sample_path(jax.random.key(0), sampler, guided, x, times[::-1])
            return pg.sample_path(jax.random.key(0), sampler, guided, noise, times)

        return float(jnp.sqrt(jnp.mean((jax.jit(jax.vmap(there_and_back))(x) - x) ** 2)))

    def weight(steps):
        step = (PATH.log_snr(PATH.start) - PATH.log_snr(PATH.end)) / 2 / steps
        return float(0.6 / (1 - jnp.exp(-step)))

    return {
        "round trip, classifier-free guidance 7.5": round_trip(pg.DDIM(), 7.5),
        "round trip, CFG++ 0.6": round_trip(pg.CFGPlusPlus(), 0.6),
        "weight of CFG++ 0.6 in 30 steps": weight(30),
        "weight of CFG++ 0.6 in 300 steps": weight(300),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
