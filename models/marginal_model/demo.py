"""Marginalisation models: the probability of any part of a row in one pass.

A 3 x 3 Ising lattice, given as an unnormalised density: the model never sees a draw of it. All numbers are compared with
the enumeration of its 512 states.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

gen = pg.generative
EXPECTED = {
    "total variation from the lattice": (0.0, 0.12),
    "error of a log marginal, mean": (0.0, 0.15),
    "residual of self-consistency, mean": (0.0, 0.08),
    "log normalising constant, error": (-0.03, 0.03),
    "sum of the probabilities of all rows, error": (0.0, 1e-4),
}
"""The first three are what is left after a short training; the fourth is an unbiased estimate of the constant from 4000
draws, whose weights vary by the first; the last is rounding, in 32 bits."""


def main() -> dict[str, float]:
    """Fit to the density, compare with enumeration."""
    ising = gen.Ising.lattice(3, 0.3, 0.1)
    table = ising.table()
    training = gen.Training(steps=700, batch=64, learning_rate=4e-3, ema=0.98, validation=0.0, block=350)
    family = gen.MarginalModel(width=48, depth=2, target=ising)
    model = gen.fit(family, np.zeros((64, 9), int), values=2, training=training)
    log_p = jax.jit(model.log_prob)(table.states)
    masks = jnp.array(list(itertools.product([False, True], repeat=9)))[::9]
    rows = table.states[::5]
    found = jax.jit(lambda x: model.marginal(x[:, None], masks))(rows)
    exact = jax.jit(jax.vmap(lambda x: jax.vmap(lambda m: table.log_marginal(jnp.where(m, x, 2)))(masks)))(rows)
    weights = jnp.exp(table.log_p[::5])
    weights = weights / weights.sum()
    residual = jax.jit(lambda x: model.consistency(x[:, None], masks))(rows)
    drawn = model.sample(jax.random.key(1), (4000,))
    log_z = jax.scipy.special.logsumexp(jax.vmap(ising.log_density)(table.states))
    log_w = jax.vmap(ising.log_density)(drawn) - jax.jit(model.log_prob)(drawn)
    return {
        "total variation from the lattice": float(0.5 * jnp.abs(jnp.exp(log_p) - jnp.exp(table.log_p)).sum()),
        "error of a log marginal, mean": float(weights @ jnp.abs(found - exact).mean(1)),
        "residual of self-consistency, mean": float(weights @ jnp.abs(residual).mean((1, 2))),
        "log normalising constant, error": float(jax.scipy.special.logsumexp(log_w) - jnp.log(4000) - log_z),
        "sum of the probabilities of all rows, error": abs(float(jnp.exp(log_p).sum()) - 1),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
