"""What Hamiltonian moves inside the particle step buy: bootstrap, locally linear and Hamiltonian proposals, side by side.

    python benchmarks/hamiltonian_smc.py [--quick]

Three programs with a nonlinear observation: stochastic volatility, the growth model of Gordon, Salmond and Smith (whose square
is observed, so that the local posterior has two modes), and counts of a hidden log intensity in two dimensions. All filters
resample systematically below half of the particles. Per model and proposal: mean effective sample size as a share of the
particles, standard deviation of the log evidence over runs, log of its mean relative to that of a long bootstrap run, seconds
of a run, and the efficiency, one over variance times seconds, relative to the bootstrap.
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
from probgen.feynman_kac.smc import Settings, smc
from probgen.program.hamiltonian import Hamiltonian
from probgen.program.particles import ParticleSystem
from probgen.program.proposals import Bootstrap, LocallyLinear

RESULTS = Path(__file__).parent / "results" / "hamiltonian_smc.json"


def volatility(y):
    def day(h, y):
        h = numpyro.sample("h", dist.Normal(-1.0 + 0.97 * (h + 1.0), 0.3))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)
        return h, None

    scan(day, -1.0, y)


def growth(y):
    def step(carry, y):
        x, t = carry
        x = numpyro.sample("x", dist.Normal(x / 2 + 25 * x / (1 + x**2) + 8 * jnp.cos(1.2 * t), jnp.sqrt(10.0)))
        numpyro.sample("y", dist.Normal(x**2 / 20, 1.0), obs=y)
        return (x, t + 1.0), None

    scan(step, (0.1, 0.0), y)


def counts(y):
    def step(x, y):
        mean = jnp.array([[0.9, 0.1], [-0.1, 0.9]]) @ x
        x = numpyro.sample("x", dist.Normal(mean, 0.5).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(1.0 + x)).to_event(1), obs=y)
        return x, None

    scan(step, jnp.zeros(2), y)


PROGRAMS = {"volatility": volatility, "growth": growth, "counts": counts}
PROPOSALS = {
    "bootstrap": Bootstrap(),
    "locally linear": LocallyLinear(),
    "Hamiltonian, 2 temperatures": Hamiltonian(temperatures=2),
    "Hamiltonian, 4 temperatures": Hamiltonian(temperatures=4),
    "Hamiltonian, 8 temperatures": Hamiltonian(temperatures=8),
    "Hamiltonian, 8, no metric": Hamiltonian(temperatures=8, metric=False),
}


def data(program, length):
    """Observations drawn from the program itself."""
    blank = jnp.zeros((length, 2)) if program is counts else jnp.zeros(length)

    def unobserved(y):
        with numpyro.handlers.block(), numpyro.handlers.seed(rng_seed=1):
            return numpyro.handlers.trace(numpyro.handlers.uncondition(program)).get_trace(y)

    return np.asarray(unobserved(blank)["y"]["value"], float)


def measured(system, particles, runs):
    """Log evidence and mean share of effective particles of each run, and the seconds of one run."""
    settings = Settings(particles, variance=False)

    @jax.jit
    def run(key):
        result = smc(key, system, settings)
        return result.log_z, jnp.mean(result.steps.ess) / particles

    keys = jax.random.split(jax.random.key(0), runs + 1)
    jax.block_until_ready(run(keys[0]))  # compile
    start = time.perf_counter()
    found = [jax.block_until_ready(run(key)) for key in keys[1:]]
    seconds = (time.perf_counter() - start) / runs
    log_z, ess = (np.array(column) for column in zip(*found, strict=True))
    return log_z, ess, seconds


def log_mean(log_z):
    return float(np.logaddexp.reduce(log_z) - np.log(len(log_z)))


def main(*, length, particles, runs, long):
    table = {}
    for name, program in PROGRAMS.items():
        model = pg.Model(program, {"y": data(program, length)})
        reference = log_mean(measured(ParticleSystem(model, {}, Bootstrap()), long, 8)[0])
        rows = {}
        for label, proposal in PROPOSALS.items():
            log_z, ess, seconds = measured(ParticleSystem(model, {}, proposal), particles, runs)
            rows[label] = {
                "ess": float(ess.mean()),
                "sd_log_z": float(log_z.std(ddof=1)),
                "log_mean_z_error": log_mean(log_z) - reference,
                "seconds": seconds,
            }
        for label, row in rows.items():
            cost = row["sd_log_z"] ** 2 * row["seconds"]
            row["efficiency"] = rows["bootstrap"]["sd_log_z"] ** 2 * rows["bootstrap"]["seconds"] / cost
            print(
                f"{name:12}{label:30} ESS {row['ess']:.2f}  sd {row['sd_log_z']:.3f}  "
                f"error {row['log_mean_z_error']:+.3f}  {1e3 * row['seconds']:7.1f} ms  efficiency {row['efficiency']:.2f}"
            )
        table[name] = rows
    return {"length": length, "particles": particles, "runs": runs, "table": table}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run, which leaves the results alone")
    if parser.parse_args().quick:
        main(length=20, particles=100, runs=20, long=2000)
    else:
        RESULTS.write_text(json.dumps(main(length=100, particles=1000, runs=100, long=100_000), indent=1) + "\n")
