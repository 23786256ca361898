"""Glauber generative models: noise is undone site by site, by a classifier of noise.

Four spins of an Ising model. The odds of the learned classifier are compared with the exact conditionals.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

gen = pg.generative
EXPECTED = {
    "conditionals of the data, mean error": (0.0, 0.08),
    "total variation of the draws": (0.0, 0.12),
    "total variation of independent spins": (0.2, 0.6),
}
"""A classifier that knew nothing would be wrong by about 0.25."""


def main() -> dict[str, float]:
    """Fit, compare conditionals at the last step, draw."""
    table = gen.Ising.lattice(2, 0.6, 0.1).table()
    rows = np.asarray(jax.vmap(table.draw)(jax.random.split(jax.random.key(0), 8000)))
    training = gen.Training(steps=1500, batch=256, learning_rate=3e-3, ema=0.99, block=500)
    model = gen.fit(gen.Glauber(sweeps=8, width=48, depth=2), rows, training=training)
    p = jnp.exp(table.log_p)
    # Step 0 undoes the first noise: there the law is that of the data.
    learned = jnp.exp(jax.vmap(lambda x: model.predict(x, 0))(table.states))
    exact = jnp.exp(jax.vmap(lambda x: table.conditionals(x.at[0].set(2))[0])(table.states))
    drawn = np.asarray(jax.jit(lambda k: model.sample(k, (8000,)))(jax.random.key(1)))
    law = np.bincount(table.index(drawn), minlength=16) / len(drawn)
    up = p @ table.states
    alone = np.array([np.prod(np.where(x, up, 1 - up)) for x in itertools.product([0, 1], repeat=4)])
    return {
        "conditionals of the data, mean error": float(p @ jnp.abs(learned - exact).mean(1)),
        "total variation of the draws": float(0.5 * np.abs(law - p).sum()),
        "total variation of independent spins": float(0.5 * np.abs(alone - p).sum()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
