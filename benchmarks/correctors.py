"""How well tempered diffusion models are sampled: unweighted, by the published corrector, and by ours.

    python benchmarks/correctors.py [--quick] [--seeds 8] [--only NAME ...]

Exact scores, so that every error is the sampler's. The published corrector (Skreta et al. 2025: score transport, Euler's
rule, even times) is our implementation of it with resampling at half the particles and unclipped weights, which is
better than resampling at every step with clipped ones. "unweighted" is its stochastic equation alone. Each row is
averaged over seeds; the error of the log evidence is given as mean and standard deviation, and the distance is the total
variation between the masses of the modes and the true ones.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np

from probgen.feynman_kac.correctors import Euler, Hutchinson, ScoreTransport, VelocityTransport
from probgen.generative.corrected import Corrected, Correction, Guided, Tempered
from probgen.generative.denoiser import GaussianMixture
from probgen.generative.path import VP, even_times

ROOT = Path(__file__).resolve().parent.parent
PATH = VP()


@dataclasses.dataclass
class Case:
    """A target, its exact evidence and masses, and the share of each component in a point."""

    name: str
    corrected: object
    shares: object
    log_z: float
    masses: np.ndarray
    steps: int
    exact_divergence: bool = True


def forty():
    rng = np.random.default_rng(1)
    return GaussianMixture(np.full(40, 1 / 40), rng.uniform(-40, 40, (40, 2)) / 50, np.eye(2) * (1.31 / 50) ** 2, PATH)


def four(dim, full):
    rng = np.random.default_rng(0)
    means = np.zeros((4, dim))
    means[:, :2] = 1.5 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    covariances = np.eye(dim) * 0.05
    if full:
        roots = rng.normal(size=(4, dim, dim)) * 0.3 / np.sqrt(dim)
        covariances = roots @ roots.swapaxes(1, 2) + 0.03 * np.eye(dim)
    return GaussianMixture([0.1, 0.2, 0.3, 0.4], means, covariances, PATH)


def assigned(mixture):
    k = len(mixture.log_weights)
    return lambda x: jax.nn.one_hot(jnp.argmax(mixture.shares(x, PATH.start)), k)


def by_quadrature(name, corrected, mixture, limit, steps, size=2001):
    grid = jnp.linspace(-limit, limit, size)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_p = jax.lax.map(corrected.log_density, points, batch_size=8192)
    total = jax.scipy.special.logsumexp(log_p)
    labels = jax.lax.map(lambda x: jnp.argmax(mixture.shares(x, PATH.start)), points, batch_size=8192)
    masses = jnp.zeros(len(mixture.log_weights)).at[labels].add(jnp.exp(log_p - total))
    log_z = float(total + 2 * jnp.log(grid[1] - grid[0]))
    return Case(name, corrected, assigned(mixture), log_z, np.asarray(masses), steps)


def by_modes(name, mixture, beta, steps):
    """Modes so far apart that their powers do not overlap."""
    alpha, sigma = PATH(PATH.start)
    v = alpha**2 * mixture.variances + sigma**2
    dim = v.shape[1]
    logs = beta * mixture.log_weights + (1 - beta) / 2 * jnp.sum(jnp.log(2 * jnp.pi * v), -1) - dim / 2 * jnp.log(beta)
    log_z = jax.scipy.special.logsumexp(logs)
    masses = np.asarray(jnp.exp(logs - log_z))
    return Case(name, Tempered(mixture, beta), assigned(mixture), float(log_z), masses, steps, dim < 10)


def cases(quick):
    short = 10 if quick else 1
    modes, square = forty(), four(2, False)
    cond, uncond = four(2, True), GaussianMixture([1.0], np.zeros((1, 2)), 2.5 * np.eye(2), PATH)
    yield by_quadrature("40 modes, beta=3", Tempered(modes, 3.0), modes, 1.0, 1000 // short)
    yield by_quadrature("4 modes, beta=2", Tempered(square, 2.0), square, 3.5, 500 // short)
    yield by_quadrature("4 modes, beta=4", Tempered(square, 4.0), square, 3.5, 500 // short)
    yield by_quadrature("guided, w=2", Guided(cond, uncond, 2.0), cond, 4.0, 500 // short)
    yield by_modes("4 modes in 20 dimensions, beta=2", four(20, False), 2.0, 500 // short)
    yield by_modes("4 modes in 20 dimensions, full covariances, beta=2", four(20, True), 2.0, 500 // short)


def samplers(case):
    published = {"transport": ScoreTransport(), "scheme": Euler(), "grid": even_times}
    yield "unweighted", Correction(steps=case.steps, ess_threshold=0.0, **published)
    yield "published corrector", Correction(steps=case.steps, **published)
    if case.exact_divergence:
        yield "ours", Correction(steps=case.steps)
    hutchinson = VelocityTransport(Hutchinson())
    yield "ours, one probe", Correction(steps=case.steps, transport=hutchinson)
    yield "ours, one probe, half the steps", Correction(steps=case.steps // 2, transport=hutchinson)


def measured(case, name, correction, seeds, particles):
    target = case.corrected
    corrected = Corrected(target.terms, target.rewards, dataclasses.replace(correction, particles=particles))
    corrected.run(jax.random.key(10_000)).log_z.block_until_ready()  # compiles
    errors, distances, hit, ess, seconds = [], [], [], [], []
    for seed in range(seeds):
        began = time.perf_counter()
        cloud = jax.block_until_ready(corrected.run(jax.random.key(seed)))
        seconds.append(time.perf_counter() - began)
        w = jnp.full(particles, 1 / particles) if name == "unweighted" else jnp.exp(cloud.log_w)
        masses = w @ jax.vmap(case.shares)(cloud.x)
        errors.append(float(cloud.log_z) - case.log_z)
        distances.append(0.5 * float(jnp.abs(masses - case.masses).sum()))
        hit.append(int(jnp.sum(masses > 0)))
        ess.append(float(cloud.ess[-1]))
    weighted = name != "unweighted"
    return {
        "case": case.name,
        "sampler": name,
        "steps": correction.steps,
        "particles": particles,
        "seeds": seeds,
        "log_evidence_error": float(np.mean(errors)) if weighted else None,
        "log_evidence_sd": float(np.std(errors, ddof=1)) if weighted else None,
        "distance": float(np.mean(distances)),
        "modes_hit": float(np.mean(hit)),
        "modes": len(case.masses),
        "ess": float(np.mean(ess)) if weighted else None,
        "seconds": float(np.median(seconds)),
    }


def main(quick, seeds, only):
    seeds, particles = (2, 256) if quick else (seeds, 2048)
    out = ROOT / "benchmarks" / "results" / "correctors.json"
    kept = json.loads(out.read_text()) if out.exists() else []
    for case in cases(quick):
        if only and not any(name in case.name for name in only):
            continue
        rows = []
        print(f"{case.name}: log evidence {case.log_z:.4f}")
        for name, correction in samplers(case):
            row = measured(case, name, correction, seeds, particles)
            rows.append(row)
            evidence = (
                f"{row['log_evidence_error']:+.3f} ± {row['log_evidence_sd']:.3f}" if name != "unweighted" else ""
            )
            print(
                f"  {name:32s} log Z error {evidence:16s} distance {row['distance']:.3f}  modes {row['modes_hit']:.1f}"
                f"/{row['modes']}  {row['seconds']:.2f} s",
                flush=True,
            )
        if not quick:
            kept = [row for row in kept if row["case"] != case.name] + rows
            out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs; writes nothing")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="parts of the names of targets")
    options = parser.parse_args()
    main(options.quick, options.seeds, options.only)
