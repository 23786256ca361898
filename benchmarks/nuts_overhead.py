"""What one leapfrog step costs beyond the gradient itself, on eight schools: probgen, NumPyro and BlackJAX by hand.

    python benchmarks/nuts_overhead.py

Both run 4 chains of 1,000 + 1,000 in 64-bit; the figure is the warm wall time over the leapfrog steps of the kept draws times two (warm-up taken
to cost what the draws cost), against a bare scan of the same number of gradient evaluations.
"""

import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC
from numpyro.infer import NUTS as NumpyroNUTS

import probgen as pg
from probgen.program.density import Density
from probgen.program.files import load_program

ROOT = Path(__file__).resolve().parent.parent


def best(run, repeats=5):
    run(0)
    walls = []
    for seed in range(1, repeats + 1):
        start = time.perf_counter()
        steps = run(seed)
        walls.append((time.perf_counter() - start) / (2 * steps))
    return 1e6 * min(walls)


def main():
    program = load_program(ROOT / "models" / "eight_schools" / "model.py")
    data = json.loads((ROOT / "models" / "eight_schools" / "data.json").read_text())
    data = {name: np.asarray(data[name], float) for name in ("sigma", "y")}
    model = pg.Model(program, data)

    def ours(seed):
        tree = pg.infer(model, pg.NUTS(), seed=seed, progress=False)
        return int(tree["sample_stats/n_steps"].sum())

    mcmc = MCMC(
        NumpyroNUTS(program),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )

    def numpyro(seed):
        mcmc.run(jax.random.key(seed), extra_fields=("num_steps",), **data)
        return int(np.sum(mcmc.get_extra_fields()["num_steps"]))

    density = Density(model)
    gradient = jax.grad(density.log_density)
    bare = jax.jit(lambda u: jax.lax.fori_loop(0, 50_000, lambda _, u: u + 1e-3 * gradient(u), u))

    def gradients(seed):
        jax.block_until_ready(bare(jnp.full(density.dim, 0.1 * seed)))
        return 25_000

    results = {"probgen": best(ours), "numpyro": best(numpyro), "gradient": best(gradients)}
    for name, microseconds in results.items():
        print(f"{name:9s} {microseconds:8.2f} microseconds per leapfrog step")
    print(f"NumPyro over probgen: {results['numpyro'] / results['probgen']:.1f}")
    (ROOT / "benchmarks" / "results" / "nuts_overhead.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
