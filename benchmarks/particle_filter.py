"""A particle filter beside `particles`, cuthbert, and a bare JAX scan.

    pip install cuthbert numba && pip install --no-deps "particles>=0.4"    # particles asks for an older NumPy than JAX
    python benchmarks/particle_filter.py             # T = 500, 1,000 and 10,000 particles
    python benchmarks/particle_filter.py --float32
    python benchmarks/particle_filter.py --large     # a million particles too: for an accelerator

The model is x' = 0.9 x + N(0, 1), y = x + N(0, 0.25), seen 500 times. Everyone resamples systematically when the
effective sample size is below half of the particles. The bare scan is the shortest filter that one would write by hand:
no records, no variance of the evidence, no second model. Prints the error of the log likelihood (mean and standard
deviation over runs, against the Kalman filter) and the time of a compiled run (least of all rounds; the competitors take
turns, so that a slow minute of the machine hits all).
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import jax

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--float32", action="store_true")
parser.add_argument("--large", action="store_true")
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--particles", type=int, nargs="*", default=[1_000, 10_000])
ARGS = parser.parse_args()
jax.config.update("jax_enable_x64", not ARGS.float32)

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.feynman_kac.smc import Settings, smc
from probgen.program.particles import ParticleSystem
from probgen.program.proposals import Bootstrap, LocallyLinear

RESULTS = Path(__file__).parent / "results" / "particle_filter.json"
LENGTH, A, SD = 500, 0.9, 0.5


def program(y):
    def step(x, now):
        x = numpyro.sample("x", dist.Normal(A * x, 1.0))
        numpyro.sample("y", dist.Normal(x, SD), obs=now)
        return x, None

    first = numpyro.sample("first", dist.Normal(0.0, 1.0 / np.sqrt(1 - A**2)))
    scan(step, first, y)


def simulated():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.0, 1 / np.sqrt(1 - A**2)), []
    for _ in range(LENGTH):
        x = A * x + rng.normal()
        y.append(x + SD * rng.normal())
    return np.array(y)


def kalman(y):
    mean, variance, total = 0.0, 1 / (1 - A**2), 0.0
    for value in y:
        mean, variance = A * mean, A**2 * variance + 1
        spread = variance + SD**2
        total -= 0.5 * (np.log(2 * np.pi * spread) + (value - mean) ** 2 / spread)
        mean, variance = mean + variance / spread * (value - mean), variance * SD**2 / spread
    return total


def ours(y, particles, proposal):
    system = ParticleSystem(pg.Model(program, {"y": y}), proposal=proposal)
    filtered = jax.jit(lambda key, system: smc(key, system, Settings(particles)).log_z)
    return lambda seed: float(filtered(jax.random.key(seed), system))


def bare(y, particles):
    y = jnp.asarray(y)

    @jax.jit
    def run(key):
        def step(carry, now):
            x, log_w, log_z, key = carry
            key, key_resample, key_move = jax.random.split(key, 3)
            w = jnp.exp(log_w)

            def resample():
                teeth = (jnp.arange(particles) + jax.random.uniform(key_resample)) / particles
                chosen = jnp.minimum(jnp.searchsorted(jnp.cumsum(w), teeth), particles - 1)
                return x[chosen], jnp.full(particles, -jnp.log(particles))

            x, log_w = jax.lax.cond(1 / jnp.sum(w**2) < particles / 2, resample, lambda: (x, log_w))
            x = A * x + jax.random.normal(key_move, (particles,))
            log_w = log_w + jax.scipy.stats.norm.logpdf(now, x, SD)
            total = jax.scipy.special.logsumexp(log_w)
            return (x, log_w - total, log_z + total, key), None

        key, key_first = jax.random.split(key)
        x = jax.random.normal(key_first, (particles,)) / jnp.sqrt(1 - A**2)
        start = x, jnp.full(particles, -jnp.log(particles)), jnp.zeros(()), key
        return jax.lax.scan(step, start, y)[0][2]

    return lambda seed: float(run(jax.random.key(seed)))


def of_particles(y, particles, guided):
    import particles as peer
    from particles import distributions, state_space_models

    class Model(state_space_models.StateSpaceModel):
        def PX0(self):
            return distributions.Normal(scale=np.sqrt(A**2 / (1 - A**2) + 1))

        def PX(self, t, xp):
            return distributions.Normal(loc=A * xp, scale=1.0)

        def PY(self, t, xp, x):
            return distributions.Normal(loc=x, scale=SD)

        def proposal0(self, data):
            return self.PX0().posterior(data[0], sigma=SD)

        def proposal(self, t, xp, data):
            return self.PX(t, xp).posterior(data[t], sigma=SD)

    kind = state_space_models.GuidedPF if guided else state_space_models.Bootstrap

    def run(seed):
        np.random.seed(seed)  # noqa: NPY002 - the peer draws from the global generator
        run = peer.SMC(fk=kind(ssm=Model(), data=y), N=particles, resampling="systematic", ESSrmin=0.5)
        run.run()
        return run.logLt

    return run


def of_cuthbert(y, particles):
    import cuthbert
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import ess_decorator, systematic

    y = jnp.asarray(y)
    peer = particle_filter.build_filter(
        init_sample=lambda key: jax.random.normal(key) / jnp.sqrt(1 - A**2),
        propagate_sample=lambda key, x, now: A * x + jax.random.normal(key),
        log_potential=lambda before, x, now: jax.scipy.stats.norm.logpdf(now, x, SD),
        n_filter_particles=particles,
        resampling_fn=ess_decorator(systematic.resampling, 0.5),
    )

    @jax.jit
    def run(key):
        key_first, key_rest = jax.random.split(key)
        start = peer.init_prepare(key=key_first)
        return cuthbert.filter(peer, y, start, key=key_rest).log_normalizing_constant[-1]

    return lambda seed: float(run(jax.random.key(seed)))


def competitors(y, particles):
    yield "probgen, bootstrap", lambda: ours(y, particles, Bootstrap())
    yield "bare JAX scan", lambda: bare(y, particles)
    yield "cuthbert", lambda: of_cuthbert(y, particles)
    yield "particles, bootstrap", lambda: of_particles(y, particles, guided=False)
    yield "probgen, locally linear", lambda: ours(y, particles, LocallyLinear())
    yield "particles, guided", lambda: of_particles(y, particles, guided=True)


def compare(y, particles, rounds):
    exact, entrants, first = kalman(y), {}, {}
    for name, make in competitors(y, particles):
        if particles > 100_000 and ("particles" in name.split(",")[0] or name == "cuthbert"):
            continue
        start = time.perf_counter()
        try:
            entrants[name] = make()
            entrants[name](0)
        except ImportError as error:
            entrants.pop(name, None)
            print(f"{name}: left out ({error})")
            continue
        first[name] = time.perf_counter() - start
    times, values = {name: [] for name in entrants}, {name: [] for name in entrants}
    for seed in range(1, rounds + 1):
        for name, run in entrants.items():
            start = time.perf_counter()
            values[name].append(run(seed))
            times[name].append(time.perf_counter() - start)
    rows = []
    for name in entrants:
        error = np.array(values[name]) - exact
        row = {"name": name, "particles": particles, "first_call": first[name], "seconds": min(times[name])}
        row |= {"bias": float(error.mean()), "sd": float(error.std(ddof=1)), "rounds": rounds}
        row["ratio"] = row["seconds"] / min(times["bare JAX scan"])
        rows.append(row)
        print(
            f"{particles:>9,}  {name:<24} {error.mean():+.2f} ± {row['sd']:.2f}   {1e3 * row['seconds']:8.1f} ms"
            f"   {row['ratio']:5.2f} of the bare scan   first call {row['first_call']:.1f} s",
            flush=True,
        )
    return rows


def main():
    y = simulated()
    precision = "float32" if ARGS.float32 else "float64"
    print(f"{precision}, {jax.devices()[0].device_kind}, exact log likelihood {kalman(y):.3f}")
    sizes = [*ARGS.particles, *([1_000_000] if ARGS.large else [])]
    rows = [row for particles in sizes for row in compare(y, particles, ARGS.rounds)]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[precision] = rows
    results["machine"] = (
        f"{platform.machine()}, {jax.devices()[0].device_kind}, Python {platform.python_version()}, {sys.platform}"
    )
    RESULTS.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
