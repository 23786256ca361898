"""SMC samplers side by side: adaptive tempering by probgen and by BlackJAX, with the same particles and kernel.

    python benchmarks/smc.py [--quick]

Both draw from the prior, temper at the same effective sample size, resample systematically and move each particle by
the same number of moves of the same kernel, with the covariance of the particles: random walk with steps of 2.38 /
sqrt(dim), or HMC of eight leapfrog steps (BlackJAX's step size is that which probgen has found). BlackJAX takes the
program's log prior and log likelihood from probgen; the evidence it leaves to the caller, who adds up the increments.
One run is one compiled program, and all times are warm.

Per model and kernel: the median seconds of a run, the root mean square error of the log evidence over runs, the
effective sample size of the worst posterior mean (its variance over runs against the posterior variance) per second,
and the ratios. Errors are against the closed form where there is one, else against the log of the mean evidence of
all runs of both.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import blackjax
import blackjax.smc.resampling as blackjax_resampling
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from blackjax.mcmc.random_walk import build_additive_step, normal
from blackjax.smc.tuning.from_particles import particles_covariance_matrix

import probgen as pg
from probgen.feynman_kac.smc import smc
from probgen.infer.smc import SMC
from probgen.program.enumerated import density_of
from probgen.testing.oracles import oracles

RESULTS = Path(__file__).parent / "results" / "smc.json"
LEAPS = 8


def eight_schools(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def logistic(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def models():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 10))
    y = (rng.random(500) < 1 / (1 + np.exp(-x @ rng.normal(size=10)))).astype(int)
    sigma, effects = [15.0, 10, 16, 11, 9, 11, 10, 18], [28.0, 8, -3, 7, -1, 1, 18, 12]
    regression = next(oracle for oracle in oracles() if oracle.name == "regression")
    return {
        "regression": (regression.model, regression.log_evidence),
        "eight schools": (pg.Model(eight_schools, {"sigma": sigma, "y": effects}), None),
        "logistic": (pg.Model(logistic, {"x": x, "y": y}), None),
    }


def ours(density, kernel, particles, moves):
    """One run: log evidence, posterior mean, and the last scale of the kernel."""
    method = SMC(
        particles=particles, moves=moves, kernel=pg.RandomWalk() if kernel == "random walk" else pg.HMC(steps=LEAPS)
    )

    @jax.jit
    def run(key, density):
        result = smc(key, method.feynman_kac(density), method.settings())
        mean = jnp.exp(result.cloud.log_w) @ result.cloud.x.point.u
        return result.log_z, mean, result.steps.numbers["scale"][result.taken - 1]

    return lambda key: run(key, density)


def theirs(density, kernel, particles, moves, scale):
    """The same by BlackJAX."""
    dim = density.dim
    if kernel == "random walk":
        step = build_additive_step()

        def mcmc_step(key, state, log_density, cov):
            return step(key, state, log_density, normal(2.38 / np.sqrt(dim) * jnp.linalg.cholesky(cov)))

        init = blackjax.additive_step_random_walk.init

        def tuned(particles):
            return {"cov": jnp.atleast_2d(particles_covariance_matrix(particles))[None]}
    else:
        step = blackjax.hmc.build_kernel()
        # As many steps as probgen takes at this step size: about a quarter of a period.
        leaps = int(np.clip(round(np.pi / 2 / scale), 1, LEAPS))

        def mcmc_step(key, state, log_density, mass):
            return step(key, state, log_density, scale, mass, leaps)

        init = blackjax.hmc.init

        def tuned(particles):
            return {"mass": jnp.atleast_2d(particles_covariance_matrix(particles))[None]}

    def make(parameters):
        return blackjax.inner_kernel_tuning(
            smc_algorithm=blackjax.adaptive_tempered_smc,
            logprior_fn=density.log_prior,
            loglikelihood_fn=density.log_likelihood,
            mcmc_step_fn=mcmc_step,
            mcmc_init_fn=init,
            resampling_fn=blackjax_resampling.systematic,
            mcmc_parameter_update_fn=lambda key, state, info: tuned(state.particles),
            initial_parameter_value=parameters,
            num_mcmc_steps=moves,
            target_ess=0.5,
        )

    @jax.jit
    def run(key):
        key_prior, key_run = jax.random.split(key)
        start = jax.vmap(density.draw_prior)(jax.random.split(key_prior, particles))
        sampler = make(tuned(start))

        def body(carry):
            state, log_z, key = carry
            key, key_step = jax.random.split(key)
            state, info = sampler.step(key_step, state)
            return state, log_z + info.log_likelihood_increment, key

        def more(carry):
            return carry[0].sampler_state.tempering_param < 1

        state, log_z, _ = jax.lax.while_loop(more, body, (sampler.init(start), jnp.zeros(()), key_run))
        return log_z, state.sampler_state.weights @ state.sampler_state.particles

    return run


def measure(run, runs, seed=0):
    jax.block_until_ready(run(jax.random.key(10_000)))
    walls, log_z, means = [], [], []
    for i in range(runs):
        key = jax.random.fold_in(jax.random.key(seed), i)
        start = time.perf_counter()
        out = jax.block_until_ready(run(key))
        walls.append(time.perf_counter() - start)
        log_z.append(float(out[0]))
        means.append(np.asarray(out[1]))
    return statistics.median(walls), np.array(log_z), np.array(means)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model, few particles: does it work? writes nothing")
    args = parser.parse_args()
    particles, moves, runs = (64, 2, 3) if args.quick else (2048, 10, 40)
    rows = []
    for name, (model, exact) in list(models().items())[: 1 if args.quick else None]:
        density = density_of(model)
        long = pg.infer(model, pg.NUTS(), draws=200 if args.quick else 2000, seed=1, progress=False)
        u = jax.vmap(density.unconstrain)(
            {
                site.name: long[f"posterior/{site.name}"].values.reshape(-1, *site.shape)
                for site in model.sites
                if site.latent
            }
        )
        variance = np.asarray(u).var(0)
        for kernel, moved in (("random walk", moves), ("hmc", max(1, moves // 5))):
            mine = ours(density, kernel, particles, moved)
            scale = float(mine(jax.random.key(1))[2])
            other = theirs(density, kernel, particles, moved, scale)
            results = {"probgen": measure(mine, runs), "blackjax": measure(other, runs)}
            together = np.concatenate([log_z for _, log_z, _ in results.values()])
            truth = exact if exact is not None else float(np.logaddexp.reduce(together) - np.log(together.size))
            row = {"model": name, "kernel": kernel, "dim": density.dim, "particles": particles, "moves": moved}
            for who, (wall, log_z, means) in results.items():
                ess = float(np.min(variance / means.var(0, ddof=1)))
                row[who] = {
                    "seconds": wall,
                    "log_evidence_error": float(np.sqrt(np.mean((log_z - truth) ** 2))),
                    "ess_per_second": ess / wall,
                }
            row["time_ratio"] = row["blackjax"]["seconds"] / row["probgen"]["seconds"]
            row["efficiency_ratio"] = row["probgen"]["ess_per_second"] / row["blackjax"]["ess_per_second"]
            rows.append(row)
            for who in results:
                numbers = row[who]
                print(
                    f"{name:14s} {kernel:12s} {who:9s} {numbers['seconds']:8.4f} s  log Z error "
                    f"{numbers['log_evidence_error']:.3f}  ESS/s {numbers['ess_per_second']:10.0f}"
                )
            print(
                f"{'':28s}BlackJAX takes {row['time_ratio']:.2f} times as long; "
                f"ESS/s ratio {row['efficiency_ratio']:.2f}"
            )
    if not args.quick:
        RESULTS.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
