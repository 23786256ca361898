"""A diffusion model as a classifier: Bayes' rule with bounds that share their noise."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    # 60 data, log odds with an error of about a tenth.
    "mean error of the probability of class 1": (0.0, 0.05),
    "agreement with the exact classifier": (0.93, 1.0),
    "standard deviation of log odds, own noise over shared noise": (2.0, 100.0),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    path = g.VP()
    centres = np.array([[[-0.5, 0.0], [-0.5, 1.0]], [[0.5, 0.0], [0.5, 1.0]]])
    laws = [g.GaussianMixture([0.5, 0.5], m, 0.3 * np.eye(2), path) for m in centres]
    classes = [g.DenoisedDistribution(law, steps=100) for law in laws]
    keys = jax.random.split(jax.random.key(0), 30)
    x = jnp.concatenate([jax.vmap(law.draw, (0, None))(keys, path.start) for law in laws])
    exact = jax.nn.softmax(jnp.stack([jax.vmap(law.log_density, (0, None))(x, path.start) for law in laws], -1))
    classify = jax.jit(lambda key, x: g.class_log_probs(key, classes, x, draws=32))
    found = jnp.exp(classify(jax.random.key(1), x))
    first, second = classes

    @jax.jit
    def spread(keys: jax.Array, others: jax.Array) -> jax.Array:
        return jax.vmap(lambda k, o: second.bound(k, x[0]) - first.bound(o, x[0]))(keys, others).std()

    keys, others = jax.random.split(jax.random.key(2), (2, 200))
    return {
        "mean error of the probability of class 1": float(jnp.abs(found - exact)[:, 1].mean()),
        "agreement with the exact classifier": float(jnp.mean(found.argmax(1) == exact.argmax(1))),
        "standard deviation of log odds, own noise over shared noise": float(spread(keys, others) / spread(keys, keys)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
