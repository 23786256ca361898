"""Data-dependent couplings

Inpainting: the flow starts from the picture with a hole filled with noise, and leaves the rest alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "mean of the missing entry (0.72)": (0.62, 0.82),
    "deviation of the missing entry (0.6)": (0.5, 0.7),
    "largest error of the entry seen": (0.0, 0.2),
    "transport, from the degraded datum": (0.0, 1.2),
    "transport, from noise": (2.0, 5.0),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    # Two pixels of correlation 0.8; the second is missing, and 0 stands for it.
    x = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]], 10_000)
    masked = x * [1.0, 0.0]
    training = pg.Training(steps=700, batch=256, learning_rate=5e-3, block=350)
    near, far = (
        pg.fit(pg.FlowMatching(source=source, width=32, depth=2), x, masked, training=training)
        for source in (pg.NearCondition((0.0, 0.5)), pg.NormalSource())
    )
    seen = jnp.array([0.9, 0.0])
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (2000,)))(near.given(seen), jax.random.key(0)))

    def transport(model):
        """Mean squared length of the way from start to draw, over conditions."""
        z = jnp.asarray(rng.normal(size=(500, 2)), jnp.float32)
        given = model.given(jnp.asarray(masked[:500], jnp.float32))
        begin = z if model is far else jnp.asarray(masked[:500]) + z * jnp.array([0.0, 0.5]) * x.std(0)
        end = jax.jit(lambda m, b: m.transport(b))(given, begin)
        return float(jnp.mean(jnp.sum((end - begin) ** 2, -1)))

    return {
        "mean of the missing entry (0.72)": float(draws[:, 1].mean()),
        "deviation of the missing entry (0.6)": float(draws[:, 1].std()),
        "largest error of the entry seen": float(np.abs(draws[:, 0] - 0.9).max()),
        "transport, from the degraded datum": transport(near),
        "transport, from noise": transport(far),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
