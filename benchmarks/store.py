"""What a store costs, and how much memory a long run takes.

    python benchmarks/store.py            # the cost of a store on a short and on a longer run
    python benchmarks/store.py --large    # 10^6 draws of 100 parameters (about 2 GB on disk)

Prints the warm wall time with and without a store (median of three), and for the large run its time, the size on disk
and the largest resident memory of the process that made it, including the interpreter and JAX.
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import numpy as np
import numpyro
import numpyro.distributions as dist

import probgen as pg
from probgen.program.files import load_program

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "store.json"


def eight_schools():
    data = json.loads((ROOT / "models" / "eight_schools" / "data.json").read_text())
    data = {name: np.asarray(data[name], float) for name in ("sigma", "y")}
    return pg.Model(load_program(ROOT / "models" / "eight_schools" / "model.py"), data)


def hundred():
    numpyro.sample("x", dist.Normal(0, 1).expand([100]).to_event(1))


def cost(folder):
    rows = []
    model = eight_schools()
    for draws in (1_000, 50_000):
        walls = {}
        for kind in ("memory", "store"):
            times = []
            for seed in range(4):
                store = folder / f"{kind}{draws}-{seed}.zarr" if kind == "store" else None
                start = time.perf_counter()
                pg.infer(model, pg.NUTS(), draws=draws, seed=seed, store=store, progress=False)
                times.append(time.perf_counter() - start)
            walls[kind] = statistics.median(times[1:])
        rows.append({"draws": draws, **walls})
        print(f"{draws:6d} draws x 4 chains: {walls['memory']:.3f} s in memory, {walls['store']:.3f} s with a store")
    return rows


def large(folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    path = folder / "large.zarr"
    tree = pg.infer(pg.Model(hundred), pg.NUTS(), draws=250_000, chains=4, seed=0, store=path, progress=False)
    row = {
        "draws": int(tree.posterior.sizes["draw"] * tree.posterior.sizes["chain"]),
        "parameters": int(tree.posterior["x"].shape[-1]),
        "seconds": time.perf_counter() - start,
        "disk_mb": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6,
        "memory_before_mb": before,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(row, indent=1))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    try:
        results["large" if args.large else "cost"] = large(folder) if args.large else cost(folder)
    finally:
        shutil.rmtree(folder)
    results["machine"] = f"{platform.machine()}, Python {platform.python_version()}, {sys.platform}"
    RESULTS.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
