"""How close amortized posteriors come to the reference posteriors of the tasks of sbibm.

    python benchmarks/sbi.py --references FOLDER [--tasks two_moons ...] [--simulations 10000] [--quick]
    python benchmarks/sbi.py --references FOLDER --peer --peer-python VENV/bin/python

FOLDER is the unzipped wheel of sbibm (``pip download --no-deps sbibm``). For each task one posterior is trained on
simulations of its program (``models/TASK``), and asked for 10 000 draws given each of the ten observations; then the
same is corrected by the density of the program. The measure is that of sbibm (Lueckmann et al. 2021): the accuracy of a
classifier that tells the draws from the 10 000 of the reference, 0.5 if it cannot, averaged over the observations.
Results are kept by task and observation: a run with other ``--observations`` adds to them.

What is learned follows one rule: the likelihood (``pg.NLE``) where a datum that is independent of others is at most two
numbers, elsewhere the posterior (``pg.FlowMatching``). The posterior of a learned likelihood is sampled by sequential Monte
Carlo, in more than five dimensions by NUTS.

Training is the processor time of ``pg.amortize`` in this process, simulations and compilation included; sampling the
wall time of ``pg.infer`` for 10 000 draws, the median over the observations after the first, which compiles. With
``--peer`` the package sbi trains its neural spline flow (``NPE(density_estimator="nsf")``, otherwise its defaults, one
thread) on as many simulations of the same programs, in a process of its own with the Python that is given.
"""

import argparse
import bz2
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sbi.json"
TARGETS = {
    "two_moons": 0.53,
    "gaussian_linear": 0.52,
    "gaussian_linear_uniform": None,
    "gaussian_mixture": 0.53,
    "bernoulli_glm": 0.60,
    "bernoulli_glm_raw": 0.60,
    "slcp": 0.66,
    "sir": None,
    "lotka_volterra": None,
}
"""Accuracy to reach without correction, from 10 000 simulations."""
CORRECTED = 0.52
"""With correction, for every task."""
TRAINING, SAMPLING = 300.0, 2.0
"""Seconds that training (processor) and 10 000 draws (wall) may take."""
PEER_TASKS = {"two_moons": 1.0, "slcp": 3.0}
"""Those that the peer runs, and the bounds of their uniform priors."""


# -- what is measured ------------------------------------------------------------------------------------------------


def train(task, model, simulations, seed, steps):
    """One amortized posterior. The only place that chooses how."""
    import probgen as pg

    method = estimator(task)
    if steps is not None:
        from probgen.generative import Training

        method = dataclasses.replace(method, training=Training(steps=steps))
    return pg.amortize(model, observed=["x"], method=method, simulations=simulations, seed=seed, progress=False)


def estimator(task):
    """What is trained on a task, by the rule above."""
    import probgen as pg

    if task == "bernoulli_glm_raw":
        return pg.NLE(sampler=pg.NUTS())
    return pg.NLE() if task in ("two_moons", "gaussian_mixture", "slcp") else pg.FlowMatching()


def chains_of(task):
    """How many chains the draws come from: four, which run side by side, where a Markov chain makes them."""
    return 4 if task == "bernoulli_glm_raw" else 1


def correct(amortized, draws):
    """The method that corrects an amortized posterior by the density of the program."""
    import probgen as pg

    return pg.ImportanceSampling(amortized)


# -- tasks and references --------------------------------------------------------------------------------------------


def program_of(task):
    """The program of a task, its data, and the shape of what is observed."""
    from probgen.program.files import load_data, load_module

    data = load_data(ROOT / "models" / task / "data.json")
    return load_module(ROOT / "models" / task / "model.py").model, data, np.shape(data["x"])


def model_of(task, x=None):
    import probgen as pg

    program, data, _ = program_of(task)
    arguments = {name: value for name, value in data.items() if name != "x"}
    return pg.Model(program, arguments if x is None else {**arguments, "x": x})


def recorded(references, task, number):
    """An observation, and the draws of its posterior, shape ``(draws, dim)``."""
    folder = references / "sbibm" / "tasks" / task.removesuffix("_raw") / "files" / f"num_observation_{number}"
    name = "observation_raw.csv" if task.endswith("_raw") else "observation.csv"
    x = np.loadtxt(folder / name, delimiter=",", skiprows=1).reshape(program_of(task)[2])
    with bz2.open(folder / "reference_posterior_samples.csv.bz2", "rt") as file:
        draws = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    return (x.astype(int) if task in ("sir", "bernoulli_glm_raw") else x), draws


def matrix(model, tree):
    """The draws of a run, shape ``(draws, dim)``, in the order of the sites."""
    names = [site.name for site in model.sites if site.latent]
    values = [tree["posterior"][name].values for name in names]
    return np.concatenate([v.reshape(v.shape[0] * v.shape[1], -1) for v in values], 1)


def accuracy(pair):
    """C2ST of a reference and draws; runs in a process of its own."""
    import probgen as pg

    return pg.check.c2st(*pair)


# -- one task --------------------------------------------------------------------------------------------------------


def run_task(task, args, pool):
    import probgen as pg

    cpu, wall = time.process_time(), time.perf_counter()
    amortized = train(task, model_of(task), args.simulations, args.seed, 200 if args.quick else None)
    row = {"task": task, "estimator": repr(amortized), "simulations": args.simulations, "seed": args.seed}
    row |= {"training_cpu_seconds": time.process_time() - cpu, "training_wall_seconds": time.perf_counter() - wall}
    print(f"{task}: trained in {row['training_cpu_seconds']:.0f} s of processor time", flush=True)
    corrected = None if args.no_correction else correct(amortized, args.draws)
    seconds, jobs, notes = {"amortized": [], "corrected": []}, {"amortized": [], "corrected": []}, []
    for number in args.observations:
        x, reference = recorded(args.references, task, number)
        model = model_of(task, x)
        for kind, method in (("amortized", amortized), ("corrected", corrected)):
            if method is None:
                continue
            start = time.perf_counter()
            chains = chains_of(task)
            draws = args.draws // chains
            tree = pg.infer(model, method, draws=draws, chains=chains, seed=args.seed + number, progress=False)
            seconds[kind].append(time.perf_counter() - start)
            jobs[kind].append(pool.submit(accuracy, (reference[: args.draws], matrix(model, tree))))
            if kind == "corrected":
                notes.append({name: tree.attrs.get(name) for name in ("correction", "pareto_k", "importance_ess")})
    for kind in jobs:
        found = [job.result() for job in jobs[kind]]
        if found:
            row |= {f"{kind}_c2st": found, f"{kind}_seconds": median(seconds[kind][1:] or seconds[kind])}
    row["observations"] = args.observations
    row["corrections"] = notes
    row["target"] = TARGETS[task]
    return row


def simulations_of(task, count, seed):
    """Parameters and observations drawn from a program, as matrices."""
    import jax
    from numpyro.infer import Predictive

    program, data, _ = program_of(task)
    arguments = {name: value for name, value in data.items() if name != "x"}
    drawn = Predictive(program, num_samples=count)(jax.random.key(seed), **arguments)
    return tuple(np.asarray(drawn[name], np.float32).reshape(count, -1) for name in ("theta", "x"))


def run_peer(task, args, pool):
    """sbi's NPE on simulations of the same program, in its own Python."""
    references = {number: recorded(args.references, task, number) for number in args.observations}
    theta, x = simulations_of(task, args.simulations, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "asked.npz", Path(folder) / "answered.npz"
        observations = np.stack([np.ravel(x) for x, _ in references.values()]).astype(np.float32)
        np.savez(asked, theta=theta, x=x, observations=observations)
        # -P: the folder of this file, which has the name of the package, stays out of the path.
        python = os.path.abspath(shutil.which(args.peer_python) or args.peer_python)
        command = [python, "-P", str(ROOT / "benchmarks" / "sbi_peer.py"), str(asked), str(answered)]
        command += [str(PEER_TASKS[task]), str(args.draws), str(args.seed), str(20 if args.quick else 0)]
        # sbi writes logs of its training into the folder that it runs in.
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
            return {"task": task, "failed": f"{args.peer_python} could not run sbi: {reason}"}
        found = dict(np.load(answered))
    draws = zip(references.values(), found.pop("draws"), strict=True)
    jobs = [pool.submit(accuracy, (reference[: args.draws], ours.astype(float))) for (_, reference), ours in draws]
    versions = {name: str(found.pop(name)) for name in ("sbi", "torch")}
    return {
        "task": task,
        **versions,
        **{name: float(value) for name, value in found.items()},
        "observations": args.observations,
        "amortized_c2st": [job.result() for job in jobs],
    }


# -- reports ---------------------------------------------------------------------------------------------------------


def spread(values):
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.3f} +- {error:.3f}"


def report(rows, peers):
    print(
        f"\n{'task':24s} {'C2ST':>16s} {'target':>7s} {'corrected':>16s} {'target':>7s} {'train, CPU s':>13s} {'draws, s':>9s}"
    )
    for row in rows:
        plain, corrected = row["amortized_c2st"], row.get("corrected_c2st")
        print(
            f"{row['task']:24s} {spread(plain):>16s} {mark(mean(plain), row['target']):>7s} "
            f"{spread(corrected) if corrected else '':>16s} {mark(mean(corrected), CORRECTED) if corrected else '':>7s} "
            f"{row['training_cpu_seconds']:>8.0f} {mark(row['training_cpu_seconds'], TRAINING):>4s} "
            f"{row['amortized_seconds']:>6.2f} {mark(row['amortized_seconds'], SAMPLING)}"
        )
    for peer in peers:
        if "failed" in peer:
            print(f"{peer['task']}: {peer['failed']}. Make an environment with `pip install sbi`; name its Python.")
            continue
        print(
            f"{peer['task']}: sbi {peer['sbi']} {spread(peer['amortized_c2st'])}, {peer['training_cpu_seconds']:.0f} s of training"
        )
        for row in rows:
            if row["task"] == peer["task"]:
                ratio = peer["training_cpu_seconds"] / row["training_cpu_seconds"]
                ours, theirs = (mean(r["amortized_c2st"]) - 0.5 for r in (row, peer))
                print(
                    f"    its training takes {ratio:.2f} times as long as ours, its C2ST - 0.5 is {theirs / ours:.2f} times ours"
                )


def mark(value, target):
    return "" if target is None else ("ok" if value <= target else f">{target:g}")


def keep(kind, row):
    """Put a row into the results; those of other tasks stay, and so do other observations of the same training."""
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": [], "peers": []}
    for old in found[kind]:
        if old["task"] == row["task"]:
            row = together(old, row)
    rows = [*(old for old in found[kind] if old["task"] != row["task"]), row]
    found[kind] = sorted(rows, key=lambda row: list(TARGETS).index(row["task"]))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def together(old, new):
    """Two rows of one task as one, if the same was trained: the new one counts where both have an observation."""
    if any(old.get(name) != new.get(name) for name in ("estimator", "simulations", "seed", "sbi")):
        return new
    lists = [name for name in ("amortized_c2st", "corrected_c2st", "corrections") if new.get(name)]
    if any(name not in old for name in lists):
        return new
    each = {}
    for row in (old, new):
        each |= dict(zip(row["observations"], zip(*(row[name] for name in lists), strict=True), strict=True))
    numbers = sorted(each)
    return {
        **new,
        "observations": numbers,
        **{name: [each[number][i] for number in numbers] for i, name in enumerate(lists)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, help="the unzipped wheel of sbibm")
    parser.add_argument("--tasks", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", nargs="+", type=int, choices=range(1, 11), default=list(range(1, 11)))
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-correction", action="store_true", help="only what the network says")
    parser.add_argument("--peer", action="store_true", help=f"run sbi as well, on {' and '.join(PEER_TASKS)}")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of an environment with sbi")
    parser.add_argument("--peer-only", action="store_true", help="nothing of ours")
    parser.add_argument("--jobs", type=int, default=2, help="classifiers that are trained at a time")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs; writes nothing")
    args = parser.parse_args()
    if not (args.references / "sbibm" / "tasks").is_dir():
        parser.error(f"{args.references} has no sbibm/tasks: unzip the wheel of sbibm there")
    if args.quick:
        args.simulations, args.draws, args.observations = 500, 500, args.observations[:2]
    rows, peers = [], []
    # The processor time of this process is that of training: classifiers have processes of their own.
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task in () if args.peer_only else args.tasks:
            rows.append(run_task(task, args, pool))
            print(json.dumps(rows[-1]), flush=True)
            if not args.quick:
                keep("rows", rows[-1])
        for task in [task for task in args.tasks if task in PEER_TASKS] if args.peer or args.peer_only else ():
            peers.append(run_peer(task, args, pool))
            print(json.dumps(peers[-1]), flush=True)
            if not args.quick:
                keep("peers", peers[-1])
    report(rows, peers)


if __name__ == "__main__":
    main()
