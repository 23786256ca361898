"""Counterfactual worlds per second, beside ChiRho on the same model.

    python benchmarks/counterfactual.py [--draws 1000] [--units 500] [--quick]
    python benchmarks/counterfactual.py --peer --peer-python VENV/bin/python [--peer-path FOLDER] [--peer-draws 50]

A mediation model (treatment, mediator, outcome of 500 units) at 1000 posterior draws of its four parameters, in two
worlds: treated and untreated. What is timed is the whole call ``pg.causal.worlds`` after compilation, results labelled
and on the host; the median of several. With ``--peer`` ChiRho runs the same model under ``MultiWorldCounterfactual``
with the same two interventions, one draw at a time as its documentation does, in a process of its own with the Python
that is given (``--peer-path``: a folder for its PYTHONPATH); its time per draw is compared with ours.

The peer draws the noise of plain ``Normal`` sites anew in each world, so that it does less: no abduction. Both report
how far Y in the world ``do(T = T)`` is from the observed Y, which should be 0.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray

import probgen as pg

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "counterfactual.json"
SECONDS, RATIO = 0.1, 100.0
"""1000 draws of 2 worlds of 500 units may take so long; the peer's time per draw is so many times ours."""


def mediated(age, t=None, m=None, y=None):
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Normal(0, 1))
    c = numpyro.sample("c", dist.Normal(0, 1))
    s = numpyro.sample("s", dist.HalfNormal(1))
    with numpyro.plate("unit", len(age)):
        t = numpyro.sample("T", dist.Bernoulli(logits=a * age), obs=t)
        m = numpyro.sample("M", dist.Normal(age + b * t, s), obs=m)
        numpyro.sample("Y", dist.Normal(a + t + c * m, s), obs=y)


def problem(units, draws):
    rng = np.random.default_rng(0)
    data = {
        "age": rng.normal(size=units),
        "t": rng.integers(0, 2, units),
        "m": rng.normal(size=units),
        "y": rng.normal(size=units),
    }
    values = {name: rng.normal(size=draws) for name in "abc"} | {"s": np.abs(rng.normal(size=draws)) + 0.1}
    return data, values


def ours(data, values, repeats):
    draws = len(values["a"])
    coords = {"chain": [0], "draw": np.arange(draws)}
    posterior = xarray.Dataset({k: (("chain", "draw"), v[None]) for k, v in values.items()}, coords)
    tree, model = xarray.DataTree.from_dict({"posterior": posterior}), pg.Model(mediated, data)
    arms = {"t1": pg.do(T=1), "t0": pg.do(T=0)}
    start = time.perf_counter()
    pg.causal.worlds(model, tree, arms)
    first = time.perf_counter() - start
    each = []
    for seed in range(repeats):
        start = time.perf_counter()
        pg.causal.worlds(model, tree, arms, seed=seed)
        each.append(time.perf_counter() - start)
    same = pg.causal.worlds(model, tree, {"same": pg.do(T=data["t"])})
    gap = float(abs(same.value("Y", "same") - data["y"]).max())
    return {"first_seconds": first, "seconds": median(each), "per_draw": median(each) / draws, "composition": gap}


def peer(data, values, args):
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.npz"
        np.savez(asked, **data, **{f"draw_{k}": v[: args.peer_draws] for k, v in values.items()})
        path = os.pathsep.join(filter(None, (args.peer_path, os.environ.get("PYTHONPATH"))))
        script = Path(__file__).with_name("counterfactual_peer.py")
        run = subprocess.run(
            [args.peer_python, str(script), str(asked)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if run.returncode:
        sys.exit(f"the peer failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="few draws, no targets")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--peer-path", default=None)
    parser.add_argument("--peer-draws", type=int, default=50)
    parser.add_argument("--results", type=Path, default=None, help=f"where to write, {RESULTS.name} say")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if args.quick:
        args.draws, args.repeats, args.peer_draws = 20, 2, 5
    data, values = problem(args.units, args.draws)
    row = {"draws": args.draws, "units": args.units, "worlds": 2, "probgen": ours(data, values, args.repeats)}
    mine = row["probgen"]
    print(
        f"probgen: {mine['seconds']:.4f} s for {args.draws} draws x 2 worlds x {args.units} units "
        f"({1e6 * mine['per_draw']:.0f} us per draw; first call {mine['first_seconds']:.1f} s), "
        f"largest change of Y under do(T = T): {mine['composition']:.2g}"
    )
    if args.peer:
        row["chirho"] = theirs = peer(data, values, args)
        row["ratio"] = theirs["per_draw"] / mine["per_draw"]
        print(
            f"ChiRho {theirs['version']}: {1e6 * theirs['per_draw']:.0f} us per draw, largest change of Y under "
            f"do(T = T): {theirs['composition']:.2g}; ratio {row['ratio']:.0f}"
        )
    if args.results:
        args.results.write_text(json.dumps(row, indent=1) + "\n")
    if not args.quick:
        missed = [f"{mine['seconds']:.3f} s > {SECONDS} s"] if mine["seconds"] > SECONDS else []
        if args.peer and row["ratio"] < RATIO:
            missed.append(f"ratio {row['ratio']:.0f} < {RATIO:.0f}")
        sys.exit("; ".join(missed) or 0)


if __name__ == "__main__":
    main()
