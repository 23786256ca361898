"""Composed scores

The posterior given thirty rows, from exact scores of the posteriors given one: for Gaussians, and for a prior of two modes.
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg
from probgen import generative as gm
from probgen.amortized.composed import RowDenoisers

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "Gaussian, 30 rows: error of the mean in sd": (0.0, 0.1),
    "Gaussian, 30 rows: sd over the true one": (0.95, 1.05),
    "two modes, 8 rows: exact share of the first": (0.05, 0.95),
    # Shares of 1000 draws have a standard error of 0.016; GAUSS is biased, as the page says.
    "error of the share, GAUSS": (0.0, 0.15),
    "error of the share, JAC": (0.0, 0.1),
    "error of the share, annealed Langevin": (0.0, 0.1),
    "error of the share, particles": (0.0, 0.1),
}

PATH = gm.VP()
DRAWS = 1000


def rows_given(prior, noise, x):
    """Exact denoisers given one row each, and the posterior given all."""
    all_rows = gm.observed_mixture(prior, np.eye(2), x.mean(0), noise / len(x))
    return RowDenoisers.stacked([gm.observed_mixture(prior, np.eye(2), row, noise) for row in x]), all_rows


def main() -> dict[str, float]:
    rng = np.random.default_rng(1)
    prior = gm.GaussianMixture([1.0], [[0.3, -0.2]], [[1.0, 0.4], [0.4, 0.8]], PATH)
    rows, exact = rows_given(prior, np.eye(2), np.array([0.5, 0.5]) + rng.normal(size=(30, 2)))
    gauss = pg.amortized.Gauss()
    draws = jax.jit(lambda key: gauss.draw(key, rows, prior, DRAWS))(jax.random.key(0))
    white = (draws - exact.means[0]) @ exact.axes[0] / jnp.sqrt(exact.variances[0])

    two = gm.GaussianMixture([0.5, 0.5], [[1.0, 0.5], [-1.0, -0.5]], 0.2 * np.eye(2), PATH)
    rows, exact_two = rows_given(two, 8.0 * np.eye(2), np.array([0.3, 0.1]) + 8.0**0.5 * rng.normal(size=(8, 2)))
    share = float(jnp.exp(exact_two.log_weights[0]))

    def error(composition):
        if isinstance(composition, pg.amortized.Particles):
            found = composition.draw(jax.random.key(1), rows, two, DRAWS)
        else:
            found = jax.jit(lambda key: composition.draw(key, rows, two, DRAWS))(jax.random.key(1))
        return abs(float(jnp.mean(jax.vmap(lambda x: exact_two.shares(x, PATH.start)[0])(found))) - share)

    return {
        "Gaussian, 30 rows: error of the mean in sd": float(jnp.abs(white.mean(0)).max()),
        "Gaussian, 30 rows: sd over the true one": float(white.std()),
        "two modes, 8 rows: exact share of the first": share,
        "error of the share, GAUSS": error(pg.amortized.Gauss()),
        "error of the share, JAC": error(pg.amortized.Jacobian()),
        "error of the share, annealed Langevin": error(pg.amortized.AnnealedLangevin()),
        "error of the share, particles": error(pg.amortized.Particles(particles=1000, steps=200)),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
