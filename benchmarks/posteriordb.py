"""Speed and accuracy on posteriordb, beside the peers, in one run.

    python benchmarks/posteriordb.py                                   # all posteriors, all samplers at hand
    python benchmarks/posteriordb.py --only kidiq-kidscore_momiq --samplers probgen numpyro

Every (posterior, sampler) pair runs in a process of its own, one at a time: 4 chains of 1,000 warm-up steps and 1,000 draws in
64-bit, each sampler with its defaults. *Cold* is the first fit of the process, imports excluded, compilation included, up to
results with labelled draws; *warm* is the median of further fits with new seeds. No compiled program is kept on disk. ESS is
the smallest bulk effective sample size over the reference parameters of the last warm fit; z is the largest distance of a mean
or mean of squares from the reference in standard errors. The peers run the same NumPyro programs, except PyStan, which runs
posteriordb's own Stan programs (``--stan``, the folder ``posterior_database`` of a checkout) and is left out without them.
"""

import argparse
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "models" / "posteriordb"
CHAINS, WARMUP, DRAWS = 4, 1000, 1000
SAMPLERS = ("probgen", "numpyro", "blackjax", "nutpie", "pystan")


# -- one pair, in its own process -------------------------------------------------------------------------------------


def load(posterior):
    from probgen.program.files import load_program, match_arguments

    entry = json.loads((FOLDER / "index.json").read_text())[posterior]
    program = load_program(FOLDER / f"{entry['model']}.py")
    columns = json.loads((FOLDER / "data" / f"{entry['data']}.json").read_text())
    return program, match_arguments(program, columns).data, columns, entry


def load_arrays(posterior):
    import jax.numpy as jnp

    program, data, _, _ = load(posterior)
    return program, {k: v if isinstance(v, int) else jnp.asarray(v) for k, v in data.items()}


def probgen_fitter(posterior, stan):
    import probgen as pg

    importlib.import_module("probgen.backends.blackjax")  # imports are not counted
    program, data, _, _ = load(posterior)

    def fit(seed):
        model = pg.Model(program, data)
        tree = pg.infer(model, pg.NUTS(), draws=DRAWS, warmup=WARMUP, chains=CHAINS, seed=seed, progress=False)
        return {name: tree.posterior[name].values for name in tree.posterior.data_vars}

    return fit


def numpyro_fitter(posterior, stan):
    import arviz_base
    import jax
    import numpy as np
    from numpyro.infer import MCMC, NUTS

    program, data = load_arrays(posterior)
    mcmc = MCMC(
        NUTS(program),
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )

    def fit(seed):
        mcmc.run(jax.random.key(seed), **data)
        draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
        arviz_base.from_dict({"posterior": draws})
        return draws

    return fit


def blackjax_fitter(posterior, stan):
    """As its how-to shows it, with chains by vmap: one jitted program for warm-up, draws and constraining."""
    import arviz_base
    import blackjax
    import jax
    import numpy as np
    from numpyro.infer.util import initialize_model

    program, data = load_arrays(posterior)
    compiled = {}

    def prepare():
        info = initialize_model(jax.random.key(0), program, model_kwargs=data)

        def log_density(z):
            return -info.potential_fn(z)

        def chain(key):
            key_start, key_warmup, key_draws = jax.random.split(key, 3)
            leaves, treedef = jax.tree.flatten(info.param_info.z)
            keys = jax.random.split(key_start, len(leaves))
            start = [jax.random.uniform(k, x.shape, x.dtype, -2, 2) for k, x in zip(keys, leaves, strict=True)]
            adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
            (state, settings), _ = adaptation.run(key_warmup, jax.tree.unflatten(treedef, start), num_steps=WARMUP)
            step = blackjax.nuts(log_density, **settings).step

            def body(state, key):
                state, _ = step(key, state)
                return state, state.position

            positions = jax.lax.scan(body, state, jax.random.split(key_draws, DRAWS))[1]
            return jax.vmap(info.postprocess_fn)(positions)

        return jax.jit(jax.vmap(chain))

    def fit(seed):
        if not compiled:
            compiled["run"] = prepare()
        draws = compiled["run"](jax.random.split(jax.random.key(seed), CHAINS))
        draws = {k: np.asarray(v) for k, v in draws.items()}
        arviz_base.from_dict({"posterior": draws})
        return draws

    return fit


def nutpie_fitter(posterior, stan):
    import jax
    import numpy as np
    import nutpie
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.util import constrain_fn, initialize_model, potential_energy

    program, data = load_arrays(posterior)
    kept = {}

    def prepare():
        info = initialize_model(jax.random.key(0), program, model_kwargs=data)
        flat, unravel = ravel_pytree(info.param_info.z)
        gradient = jax.jit(jax.value_and_grad(lambda u: -potential_energy(program, (), data, unravel(u))))
        constrain = jax.jit(lambda u: constrain_fn(program, (), data, unravel(u), return_deterministic=True))
        shapes = {k: v.shape for k, v in jax.eval_shape(constrain, flat).items()}

        def make_gradient():
            def call(u):
                value, grad = gradient(u)
                return float(value), np.asarray(grad)

            return call

        def make_expand(*_):
            def call(u):
                return {k: np.asarray(v, np.float64) for k, v in constrain(u).items()}

            return call

        kept["model"] = nutpie.compiled_pyfunc.from_pyfunc(
            flat.size,
            make_gradient,
            make_expand,
            [np.dtype("float64")] * len(shapes),
            list(shapes.values()),
            list(shapes),
            make_initial_point_fn=lambda seed: np.random.default_rng(seed).uniform(-2, 2, flat.size),
        )

    def fit(seed):
        if not kept:
            prepare()
        tree = nutpie.sample(
            kept["model"],
            tune=WARMUP,
            draws=DRAWS,
            chains=CHAINS,
            seed=seed,
            progress_bar=False,
        )
        return {k: tree.posterior[k].values for k in tree.posterior.data_vars}

    return fit


def pystan_fitter(posterior, stan):
    """Building the C++ program is not counted."""
    import numpy as np
    import stan as pystan

    entry = json.loads((FOLDER / "index.json").read_text())[posterior]
    code = (Path(stan) / "models" / "stan" / f"{entry['model']}.stan").read_text()
    with zipfile.ZipFile(Path(stan) / "data" / "data" / f"{entry['data']}.json.zip") as archive:
        columns = json.loads(archive.read(archive.namelist()[0]))
    built = pystan.build(code, data=columns)

    def fit(seed):
        result = built.sample(num_chains=CHAINS, num_warmup=WARMUP, num_samples=DRAWS)
        return {
            name: np.moveaxis(result[name].reshape(*result[name].shape[:-1], DRAWS, CHAINS), (-1, -2), (0, 1))
            for name in result
            if name in result.param_names
        }

    return fit


def measure(posterior, sampler, fits, stan):
    import jax

    jax.config.update("jax_enable_x64", True)
    import arviz_base
    import arviz_stats
    import numpy as np

    reference = json.loads((ROOT / "tests" / "reference" / "posteriordb.json").read_text())[posterior]["params"]
    make = globals()[f"{sampler}_fitter"]
    fit = make(posterior, stan)
    walls = []
    for seed in range(fits):
        start = time.perf_counter()
        draws = fit(seed)
        walls.append(time.perf_counter() - start)
    wanted = {name.split("[")[0] for name in reference}
    draws = {name: np.asarray(draws[name]) for name in wanted}
    ess = arviz_stats.ess(arviz_base.from_dict({"posterior": draws})["posterior"].to_dataset())
    rhat = arviz_stats.rhat(arviz_base.from_dict({"posterior": draws})["posterior"].to_dataset())
    z = 0.0
    for square in (False, True):
        powered = {k: v**2 if square else v for k, v in draws.items()}
        mcse = arviz_stats.mcse(arviz_base.from_dict({"posterior": powered})["posterior"].to_dataset())
        for name, row in reference.items():
            stem, _, index = name.partition("[")
            column = int(index[:-1]) - 1 if index else 0
            mean = powered[stem].reshape(CHAINS * DRAWS, -1)[:, column].mean()
            error = math.hypot(mcse[stem].values.reshape(-1)[column], row["sd_sq" if square else "sd"] / 100)
            z = max(z, abs(mean - row["mean_sq" if square else "mean"]) / error)
    least = min(float(ess[name].min()) for name in wanted)
    warm = statistics.median(walls[1:]) if fits > 1 else float("nan")
    return {
        "posterior": posterior,
        "sampler": sampler,
        "fits": fits,
        "cold": walls[0],
        "warm": warm,
        "min_ess": least,
        "ess_per_second": least / warm,
        "rhat": max(float(rhat[name].max()) for name in wanted),
        "z": z,
    }


# -- all pairs ---------------------------------------------------------------------------------------------------------


def run_pair(posterior, sampler, fits, stan, limit):
    command = [sys.executable, __file__, "--pair", posterior, sampler, "--fits", str(fits)]
    command += ["--stan", stan] if stan else []
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"posterior": posterior, "sampler": sampler, "failed": f"no result in {limit} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        return {"posterior": posterior, "sampler": sampler, "failed": reason}
    return json.loads(lines[-1])


def report(rows):
    by = {(row["posterior"], row["sampler"]): row for row in rows if "failed" not in row}
    posteriors = sorted({row["posterior"] for row in rows})
    print(
        f"\n{'posterior':44s} {'cold':>6s} {'warm':>7s} {'ESS/s':>8s} {'rhat':>6s} {'z':>4s}   best peer     ESS/s   ratio"
    )
    ratios, colds = [], []
    for posterior in posteriors:
        ours = by.get((posterior, "probgen"))
        if ours is None:
            continue
        peers = [row for (name, sampler), row in by.items() if name == posterior and sampler != "probgen"]
        line = f"{posterior:44s} {ours['cold']:6.2f} {ours['warm']:7.3f} {ours['ess_per_second']:8.0f} "
        line += f"{ours['rhat']:6.3f} {ours['z']:4.1f}"
        good = [row for row in peers if row["rhat"] < 1.05]
        if good:
            best = max(good, key=lambda row: row["ess_per_second"])
            ratios.append(ours["ess_per_second"] / best["ess_per_second"])
            line += f"   {best['sampler']:9s} {best['ess_per_second']:9.0f} {ratios[-1]:7.1f}"
        if (posterior, "numpyro") in by:
            colds.append(ours["cold"] / by[posterior, "numpyro"]["cold"])
        print(line)
    if ratios:
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        print(f"\nESS per second over the best peer: geometric mean {mean:.1f}, smallest {min(ratios):.2f}")
    if colds:
        print(
            f"cold wall over NumPyro (vectorized): geometric mean {math.exp(statistics.mean(map(math.log, colds))):.2f}, largest {max(colds):.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="posteriors; all by default")
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS)
    parser.add_argument("--fits", type=int, default=4, help="fits per process; the first is the cold one")
    parser.add_argument("--missing", action="store_true", help="only pairs that the results do not have yet")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds per pair")
    parser.add_argument("--stan", help="folder posterior_database of a posteriordb checkout, for PyStan")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "posteriordb.json"))
    parser.add_argument("--pair", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pair:
        print(json.dumps(measure(*args.pair, args.fits, args.stan)))
        return
    out = Path(args.out)
    posteriors = args.only or sorted(json.loads((FOLDER / "index.json").read_text()))
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for posterior in posteriors:
        for sampler in args.samplers:
            if sampler == "pystan" and not args.stan:
                continue
            if args.missing and any((r["posterior"], r["sampler"]) == (posterior, sampler) for r in rows):
                continue
            row = run_pair(posterior, sampler, args.fits, args.stan, args.limit)
            rows = [r for r in rows if (r["posterior"], r["sampler"]) != (posterior, sampler)] + [row]
            print(json.dumps(row), flush=True)
            out.parent.mkdir(exist_ok=True)
            machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
            out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    report(rows)


if __name__ == "__main__":
    main()
