"""Conditional energies by scale: a lattice field with two phases, drawn by short chains.

The phi^4 field on an 8 x 8 lattice in its ordered phase: all sites up, or all down. A chain in the space of fields hardly
ever goes from one to the other; conditional densities of wavelet coefficients are log-concave.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

EXPECTED = {
    "second moment of the field, of the data's": (0.9, 1.1),
    "product of neighbours, of the data's": (0.88, 1.12),
    "fourth moment of the field, of the data's": (0.85, 1.2),
    "mean size of the magnetisation, of the data's": (0.88, 1.12),
    "share of fields that are up": (0.4, 0.6),
    "share of points with positive curvature at every scale": (0.9, 1.0),
    "share of points where the joint energy has": (0.0, 0.3),
}
"""Ratios to long chains; errors of a few per cent are those of the effective energies of coarse scales."""


def action(x):
    """Of the lattice field, periodic; double wells at every site."""
    gradient = sum((jnp.roll(x, 1, axis) - x) ** 2 for axis in (0, 1))
    return jnp.sum(0.5 * gradient + 0.25 * (x**2 - 1.2) ** 2 * 2)


def fields(key, chains, sweeps=400):
    """Metropolis chains by checkerboards, half of them from each phase, which are equally likely by symmetry."""
    board = (jnp.indices((8, 8)).sum(0) % 2).astype(bool)
    start = jnp.where(jnp.arange(chains)[:, None, None] % 2, 1.0, -1.0) * jnp.ones((8, 8))

    def sweep(x, key):
        for colour in (board, ~board):
            key, key_move, key_accept = jax.random.split(key, 3)
            new = x + 1.2 * jax.random.uniform(key_move, x.shape, minval=-1.0, maxval=1.0)
            near = sum(jnp.roll(x, s, axis) for s in (1, -1) for axis in (1, 2))
            local = lambda v, near=near: 2 * v**2 - v * near + 0.5 * (v**2 - 1.2) ** 2  # noqa: E731
            taken = jnp.log(jax.random.uniform(key_accept, x.shape)) < local(x) - local(new)
            x = jnp.where(taken & colour, new, x)
        return x, None

    return jax.lax.scan(sweep, start, jax.random.split(key, sweeps))[0]


def main() -> dict[str, float]:
    """Fit to long chains, draw, compare."""
    x = jax.jit(fields, static_argnums=1)(jax.random.key(0), 1000)
    family = pg.generative.ConditionalEnergies(sampling_steps=60, sampling_scale=0.4)
    model = pg.generative.fit(family, x)
    draws = jax.jit(lambda k: model.sample(k, (1000,)))(jax.random.key(1))

    def moments(x):
        x = np.asarray(x)
        neighbours = (x * np.roll(x, 1, 1)).mean() / 2 + (x * np.roll(x, 1, 2)).mean() / 2
        return np.array([(x**2).mean(), neighbours, (x**4).mean(), np.abs(x.mean((1, 2))).mean()])

    ratios = moments(draws) / moments(x)
    curvature = np.asarray(jax.jit(jax.vmap(model.least_curvature))(x[:50]))
    joint = jax.jit(jax.vmap(lambda x: jnp.linalg.eigvalsh(jax.hessian(action)(x).reshape(64, 64))[0]))(x[:50])
    return {
        "second moment of the field, of the data's": ratios[0],
        "product of neighbours, of the data's": ratios[1],
        "fourth moment of the field, of the data's": ratios[2],
        "mean size of the magnetisation, of the data's": ratios[3],
        "share of fields that are up": float((draws.mean((1, 2)) > 0).mean()),
        "share of points with positive curvature at every scale": float((curvature > 0).all(1).mean()),
        "share of points where the joint energy has": float((joint > 0).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
