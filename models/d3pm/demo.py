"""Structured discrete diffusion: symbols are corrupted by Markov chains, and restored.

Two symbols of four kinds with a known table. With the exact posteriors of the entries, the law of sampling is enumerated,
for corruption by uniform replacement and by blanks.
"""

import itertools

import jax
import jax.numpy as jnp

import probgen as pg

gen = pg.generative
VALUES = 4
EXPECTED = {
    "uniform, 5 steps: total variation": (0.01, 0.3),
    "uniform, 10 steps: total variation": (0.005, 0.15),
    "uniform: ratio of the two": (1.4, 2.8),
    "absorbing, 5 steps: total variation": (0.01, 0.3),
    "absorbing, 10 steps: total variation": (0.005, 0.15),
    "absorbing: ratio of the two": (1.4, 2.8),
    "one symbol: total variation": (0.0, 1e-6),
}
"""An error of order 1/T: twice the steps leave about half. For one symbol there is none but rounding."""


def law(table: gen.Table, corruption: gen.Corruption, steps: int):
    """The law of sampling with exact posteriors, by enumeration."""
    process = gen.DiscreteProcess.of(corruption, table.values, steps)
    rows = jnp.array(list(itertools.product(range(process.moves.shape[-1]), repeat=table.size)))

    @jax.jit
    def back(p: jax.Array, t: int):
        def one(x: jax.Array):
            log_p = process.reverse(table.posterior(process.evidence(x, t))[1], x, t)
            return jnp.exp(sum(log_p[i, rows[:, i]] for i in range(table.size)))

        return p @ jnp.nan_to_num(jax.vmap(one)(rows))

    p = jnp.exp(process.log_end[rows].sum(1))
    for t in range(steps, 0, -1):
        p = back(p, t)
    return p[(rows < table.values).all(1)]


def main() -> dict[str, float]:
    """Laws of sampling."""
    table = gen.Table(2.0 * jax.random.normal(jax.random.key(1), (VALUES**2,)), 2, VALUES)
    alone = gen.Table(jnp.arange(4.0), 1, 4)

    def gap(table: gen.Table, corruption: gen.Corruption, steps: int):
        return float(0.5 * jnp.abs(law(table, corruption, steps) - jnp.exp(table.log_p)).sum())

    numbers = {}
    for name, corruption in (("uniform", gen.UniformCorruption()), ("absorbing", gen.AbsorbingCorruption())):
        few, many = gap(table, corruption, 5), gap(table, corruption, 10)
        numbers[f"{name}, 5 steps: total variation"] = few
        numbers[f"{name}, 10 steps: total variation"] = many
        numbers[f"{name}: ratio of the two"] = few / many
    numbers["one symbol: total variation"] = gap(alone, gen.UniformCorruption(), 5)
    return numbers


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
