"""How close one network comes to the posterior of an epidemic, for any two to eight observations.

    python benchmarks/seir.py [--method flow_matching npe] [--simulations 50000] [--quick]

The program is ``models/seir``: an epidemic in four compartments, two of which are surveyed on days that are drawn at random.
One posterior is trained for all numbers of surveys at once (Sherki, Oseledets and Muravleva 2025, arXiv:2503.01375). Then,
for each number of surveys from 2 to 8,

- ``error``: relative error of the posterior mean, ``|mean - truth| / |truth|`` over the vector of the three rates, averaged
  over ``--errors`` fresh data sets; the published one is 1.5 to 2.8 %. Beside it that of NUTS, which is as small as it can
  be, on the few data sets that NUTS runs;
- ``C2ST``: accuracy of a classifier that tells the draws from those of NUTS on the same program, 0.5 if it cannot; before and
  after the correction by the density of the program; averaged over ``--data-sets`` data sets;
- ``seconds``: wall time of 1,000 draws once compiled, and that of NUTS (four chains, 500 steps of warm-up each).
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, median

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "seir.json"
NAMES = ("alpha", "beta", "gamma")
LEAST, MOST = 2, 8
ERROR, C2ST = 0.028, 0.6
"""What is to be reached, for each number of surveys."""


def program():
    from probgen.program.files import load_module

    return load_module(ROOT / "models" / "seir" / "model.py")


def estimator(method, steps):
    """What is trained; the only place that chooses how."""
    import probgen as pg

    training = pg.generative.Training(steps=steps, batch=256, learning_rate=2e-3)
    if method == "npe":
        return pg.NPE(count=4, encoder_width=32, training=training)
    return pg.FlowMatching(width=96, depth=2, encoder_width=32, training=training)


def train(seir, method, simulations, seed, steps):
    import probgen as pg

    return pg.amortize(
        pg.Model(seir.model, {"t": np.linspace(5.0, seir.DAYS, MOST)}),
        ["y"],
        estimator(method, steps),
        simulations,
        design=seir.design,
        fewest={"survey": LEAST},
        seed=seed,
        progress=False,
    )


def drawn(seir, keys, surveys):
    """Truths, days and observations, one of each per key."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import Predictive

    def one(key):
        key_design, key_data = jax.random.split(key)
        t = seir.design(key_design, surveys)["t"]
        found = Predictive(seir.model, num_samples=1)(key_data, t)
        return jnp.stack([found[name][0] for name in NAMES]), t, found["y"][0]

    return jax.jit(jax.vmap(one))(keys)


def errors(seir, amortized, key, count):
    """Relative errors of posterior means, by number of surveys, shape ``(MOST - LEAST + 1, count)``."""
    import jax
    import jax.numpy as jnp

    import probgen as pg
    from probgen.program.density import Density

    density = Density(pg.Model(seir.model, {"t": np.full(2, 30.0), "y": np.zeros((2, 2))}))
    reading = amortized.question.reading

    def one(key, packed):
        u = amortized.law.given(packed).sample(key, (500,))
        values = jax.vmap(density.constrain)(u.astype(float))
        return jnp.stack([values[name].mean() for name in NAMES])

    means = jax.jit(lambda keys, packed: jax.lax.map(lambda row: one(*row), (keys, packed)))
    found = []
    for surveys in range(LEAST, MOST + 1):
        key_draw, key_data = jax.random.split(jax.random.fold_in(key, surveys))
        truth, t, y = drawn(seir, jax.random.split(key_data, count), surveys)
        packed = jax.vmap(lambda t, y: reading.pack({"y": y}, {"t": t}))(t, y)
        off = np.asarray(means(jax.random.split(key_draw, count), packed) - truth)
        found.append(np.linalg.norm(off, axis=1) / np.linalg.norm(truth, axis=1))
    return np.stack(found)


def matrix(tree):
    return np.stack([tree.posterior[name].values.reshape(-1) for name in NAMES], 1)


def reference(model, draws, seed):
    """Draws of NUTS, and the seconds that 1,000 would take, warm-up included and compilation not."""
    import probgen as pg

    tree = pg.infer(model, pg.NUTS(), draws=draws // 4, warmup=500, chains=4, seed=seed, progress=False)
    spent = tree.attrs["seconds_sampling"]
    return matrix(tree), spent * (500 + 250) / (500 + draws // 4)


def compare(seir, methods, args):
    """One row per number of surveys, for each trained method."""
    import jax

    import probgen as pg

    rows = {name: [] for name in methods}
    for surveys in range(LEAST, MOST + 1):
        found = {name: {"c2st": [], "corrected": [], "seconds": [], "pareto_k": []} for name in methods}
        best, slow = [], []
        key = jax.random.fold_in(jax.random.key(args.seed + 1), surveys)
        some = zip(*map(np.asarray, drawn(seir, jax.random.split(key, args.data_sets), surveys)), strict=True)
        for number, (truth, t, y) in enumerate(some):
            model = pg.Model(seir.model, {"t": t, "y": y})
            draws, seconds = reference(model, args.draws, number)
            best.append(float(np.linalg.norm(draws.mean(0) - truth) / np.linalg.norm(truth)))
            slow.append(seconds)
            for name, amortized in methods.items():
                here = found[name]
                for kind, method in (("c2st", amortized), ("corrected", pg.ImportanceSampling(amortized))):
                    tree = pg.infer(model, method, draws=len(draws), chains=1, seed=number, progress=False)
                    here[kind].append(pg.check.c2st(draws, matrix(tree)))
                here["pareto_k"].append(float(tree.attrs["pareto_k"]))
                for _ in range(2):  # the first compiles
                    start = time.perf_counter()
                    pg.infer(model, amortized, draws=1000, chains=1, seed=number, progress=False)
                here["seconds"].append(time.perf_counter() - start)
        for name in methods:
            rows[name].append({"surveys": surveys, **found[name], "nuts_error": best, "nuts_seconds": slow})
            print(f"{name}, {surveys} surveys: C2ST {mean(found[name]['c2st']):.3f}", flush=True)
    return rows


def report(results):
    for result in results:
        print(
            f"\n{result['method']}: {result['simulations']} simulations, {result['training_cpu_seconds']:.0f} s of training\n"
            f"{'surveys':>7s} {'error':>7s} {'':>6s} {'NUTS':>7s} {'C2ST':>6s} {'':>4s} {'corrected':>9s} {'k-hat':>6s} "
            f"{'seconds':>8s} {'NUTS':>7s}"
        )
        for row in result["rows"]:
            error, c2st = row["error"], mean(row["c2st"])
            print(
                f"{row['surveys']:>7d} {error:>7.2%} {'ok' if error <= ERROR else '':>6s} {mean(row['nuts_error']):>7.2%} "
                f"{c2st:>6.3f} {'ok' if c2st <= C2ST else '':>4s} {mean(row['corrected']):>9.3f} {max(row['pareto_k']):>6.2f} "
                f"{median(row['seconds']):>8.3f} {median(row['nuts_seconds']):>7.2f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=["flow_matching", "npe"], default=["flow_matching", "npe"])
    parser.add_argument("--simulations", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--data-sets", type=int, default=3, help="per number of surveys, with a reference by NUTS")
    parser.add_argument(
        "--errors", type=int, default=200, help="data sets per number of surveys, for the relative error"
    )
    parser.add_argument("--draws", type=int, default=4000, help="of each posterior that is compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs; writes nothing")
    args = parser.parse_args()
    if args.quick:
        args.simulations, args.steps, args.data_sets, args.errors, args.draws = 1000, 100, 1, 5, 400
    import jax

    seir, methods, results = program(), {}, []
    for method in args.method:
        cpu = time.process_time()
        methods[method] = train(seir, method, args.simulations, args.seed, args.steps)
        spent = time.process_time() - cpu
        print(f"{method}: trained in {spent:.0f} s of processor time", flush=True)
        settings = {"simulations": args.simulations, "steps": args.steps, "seed": args.seed}
        results.append({"method": method, **settings, "training_cpu_seconds": spent})
    rows = compare(seir, methods, args)
    for result in results:
        off = errors(seir, methods[result["method"]], jax.random.key(args.seed + 2), args.errors).mean(1)
        result["rows"] = [{**row, "error": float(e)} for row, e in zip(rows[result["method"]], off, strict=True)]
    if not args.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


if __name__ == "__main__":
    main()
