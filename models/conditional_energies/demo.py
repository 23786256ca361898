"""Conditional energies by scale: a lattice field with two phases, drawn by short chains.

The phi^4 field on an 8 x 8 lattice in its ordered phase: all sites up, or all down. A chain in the space of fields hardly
ever goes from one to the other; conditional densities of wavelet coefficients are log-concave.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

EXPECTED = {
    "second moment of the field, reference": (0.5, 1.5),
    "second moment, model less reference, per cent": (-4.0, 4.0),
    "its standard error, per cent": (0.2, 3.0),
    "product of neighbours, model less reference, per cent": (-4.0, 4.0),
    "its standard error, per cent again": (0.2, 4.0),
    "fourth moment of the field, model less reference, per cent": (-4.0, 9.0),
    "size of the magnetisation, model less reference, per cent": (-8.0, 4.0),
    "largest z-score of the four": (0.0, 8.0),
    "share of fields that are up": (0.46, 0.54),
    "share of points with positive curvature at every scale": (0.9, 1.0),
    "share of points where the joint energy has": (0.0, 0.3),
}
"""Eight fits, each to fields of its own and compared with other fields: z-scores of the mean difference."""
FITS, FIELDS = 8, 200


def action(x):
    """Of the lattice field, periodic; double wells at every site."""
    gradient = sum((jnp.roll(x, 1, axis) - x) ** 2 for axis in (0, 1))
    return jnp.sum(0.5 * gradient + 0.25 * (x**2 - 1.2) ** 2 * 2)


def fields(key, chains, sweeps=200):
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


def moments(x):
    """Second moment, product of neighbours, fourth moment, size of the magnetisation."""
    neighbours = ((x * jnp.roll(x, 1, 1)).mean() + (x * jnp.roll(x, 1, 2)).mean()) / 2
    return jnp.stack([(x**2).mean(), neighbours, (x**4).mean(), jnp.abs(x.mean((1, 2))).mean()])


def main() -> dict[str, float]:
    """Fit to long chains, draw, compare with other chains; again and again."""
    reference = jax.jit(fields, static_argnums=1)
    family = pg.generative.ConditionalEnergies(sampling_steps=60, sampling_scale=0.4)
    sample = jax.jit(lambda model, key: model.sample(key, (FIELDS,)))
    found, up = [], []
    for i in range(FITS):
        key_data, key_other, key_draws = jax.random.split(jax.random.key(i), 3)
        x = reference(key_data, FIELDS)
        model = pg.generative.fit(family, x, seed=i)
        draws = sample(model, key_draws)
        found.append([moments(draws), moments(reference(key_other, FIELDS))])
        up.append((draws.mean((1, 2)) > 0).mean())
    ours, theirs = np.moveaxis(np.asarray(found), 1, 0)
    off = 100 * (ours - theirs) / theirs.mean(0)
    error = off.std(0, ddof=1) / np.sqrt(FITS)
    curvature = np.asarray(jax.jit(jax.vmap(model.least_curvature))(x[:50]))
    joint = jax.jit(jax.vmap(lambda x: jnp.linalg.eigvalsh(jax.hessian(action)(x).reshape(64, 64))[0]))(x[:50])
    return {
        "second moment of the field, reference": theirs.mean(0)[0],
        "second moment, model less reference, per cent": off.mean(0)[0],
        "its standard error, per cent": error[0],
        "product of neighbours, model less reference, per cent": off.mean(0)[1],
        "its standard error, per cent again": error[1],
        "fourth moment of the field, model less reference, per cent": off.mean(0)[2],
        "size of the magnetisation, model less reference, per cent": off.mean(0)[3],
        "largest z-score of the four": float(np.abs(off.mean(0) / error).max()),
        "share of fields that are up": float(np.mean(up)),
        "share of points with positive curvature at every scale": float((curvature > 0).all(1).mean()),
        "share of points where the joint energy has": float((joint > 0).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
