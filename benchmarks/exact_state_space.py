"""State-space programs in closed form: time against length, in sequence and in parallel, and as one dense Gaussian.

    python benchmarks/exact_state_space.py [--quick]

The first table is ``pg.Exact().solve`` on a local linear trend (two states) and on a hidden Markov model (three states),
compiled before: everything from data to the exact posterior and evidence. "dense" solves the same block as one multivariate
normal, or by visiting all paths, as far as that goes. The second table is the recursions alone (filter and posterior), in
sequence and by an associative scan over time.
"""

import argparse
import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.feynman_kac import forward_backward, kalman
from probgen.program.closed_form import Limits, recognise
from probgen.program.finite import Finite
from probgen.program.joint import Joint
from probgen.program.linear_gaussian import LinearGaussian

ROOT = Path(__file__).resolve().parent.parent
MOVE = np.array([[0.9, 0.1, 0.0], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])
REPEATS = 5


def trend(y):
    def step(state, y):
        level, slope = state
        slope = numpyro.sample("slope", dist.Normal(slope, 0.05))
        level = numpyro.sample("level", dist.Normal(level + slope, 0.2))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
        return (level, slope), None

    scan(step, (0.0, 0.0), y)


def regimes(y):
    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        numpyro.sample("y", dist.StudentT(3.0, 2.0 * z, 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def seconds(run):
    """Best of some runs, compiled before."""
    jax.block_until_ready(run())
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run())
        spent.append(time.perf_counter() - began)
    return min(spent)


def program_row(program, length, densely):
    model = pg.Model(program, {"y": np.random.default_rng(0).normal(size=length)})
    row = {
        "program": program.__name__,
        "length": length,
        "exact": seconds(lambda: pg.Exact().solve(model).log_evidence),
    }
    if length <= densely:
        (block,) = recognise(model, Limits(2**20, 4096)).blocks
        dense = LinearGaussian(block.sites, block.terms)
        if program is regimes:
            dense = Finite(block.sites, block.terms, (3,), (length,))
        solve = jax.jit(lambda model: dense.solve(Joint(model)).log_evidence)
        row["dense"] = seconds(lambda: solve(model))
    return row


def recursion_row(length):
    rng = np.random.default_rng(0)
    transition, noise = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.2, 0.05], [0.0, 0.05]])
    observation, scale = np.array([[1.0, 0.0]]), np.eye(1)
    y = rng.normal(size=(length, 1))
    chain = kalman.state_space(
        *map(jnp.asarray, (np.zeros(2), np.eye(2), transition, noise, observation, scale, y, np.isfinite(y)))
    )
    w = jnp.log(jnp.asarray(rng.random((length - 1, 3, 3))))
    finite = forward_backward.FiniteChain(jnp.zeros(1), jnp.zeros((1, 3)), w)
    row = {"length": length}
    for name, parallel in (("sequence", False), ("parallel", True)):
        gaussian = jax.jit(lambda c, p=parallel: (kalman.filtered(c, parallel=p), kalman.driven(c, parallel=p)))
        messages = jax.jit(lambda c, p=parallel: forward_backward.messages(c, parallel=p))
        row[f"kalman_{name}"] = seconds(lambda run=gaussian: run(chain))
        row[f"messages_{name}"] = seconds(lambda run=messages: run(finite))
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="short series only; write nothing")
    quick = parser.parse_args().quick
    lengths = [100, 1000] if quick else [1000, 10_000, 100_000]
    programs = []
    for program, densely in ((trend, 100 if quick else 1000), (regimes, 10)):
        for length in ([10] if program is regimes else []) + lengths:
            programs.append(program_row(program, length, densely))
            print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in programs[-1].items()))
    recursions = []
    for length in lengths:
        recursions.append(recursion_row(length))
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in recursions[-1].items()))
    if not quick:
        result = {"device": jax.devices()[0].device_kind, "programs": programs, "recursions": recursions}
        (ROOT / "benchmarks/results/exact_state_space.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
