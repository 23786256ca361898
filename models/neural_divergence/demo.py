"""Neural divergence

A critic judges three models of the plane: the truth, one that is a little off, and one that repeats its training data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import probgen.generative as pg

EXPECTED = {
    "truth": (-0.03, 0.02),
    "truth, standard error": (0.0, 0.01),
    "shifted by 1.5": (0.15, 0.26),
    "Jensen-Shannon divergence of the shift": (0.22, 0.24),
    "shifted by 0.3": (-0.02, 0.03),
    "repeats 40 training data": (0.1, 0.693),
    "nearest datum of the repeated data": (0.0, 0.12),
    "nearest datum of the truth": (0.0, 0.12),
}


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    held, learned = rng.normal(size=(2000, 2)), rng.normal(size=(40, 2))

    class Repeats:
        def sample(self, key, shape):
            return jnp.asarray(learned)[jax.random.randint(key, shape, 0, len(learned))]

    models = {
        "truth": dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        "shifted by 0.3": dist.Normal(jnp.array([0.3, 0.0]), 1.0).to_event(1),
        "shifted by 1.5": dist.Normal(jnp.array([1.5, 0.0]), 1.0).to_event(1),
        "repeats 40 training data": Repeats(),
    }
    training = pg.Training(steps=1500, batch=128, learning_rate=2e-3)
    judged = {name: pg.neural_divergence(m, held, training=training, width=64) for name, m in models.items()}
    found = {name: float(d.value) for name, d in judged.items()}
    found["truth, standard error"] = float(judged["truth"].error)
    grid = np.linspace(-9, 10, 8001)
    p, q = (np.exp(-((grid - m) ** 2) / 2) for m in (0.0, 1.5))
    p, q = p / p.sum(), q / q.sum()
    js = 0.5 * np.sum(p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)))
    found["Jensen-Shannon divergence of the shift"] = float(js)
    nearest = lambda x: float(np.median(np.linalg.norm(x[:, None] - held, axis=-1).min(1)))  # noqa: E731
    found["nearest datum of the repeated data"] = nearest(learned)
    found["nearest datum of the truth"] = nearest(rng.normal(size=(200, 2)))
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
