"""Weak scaling: twice the devices, twice the chains. In how much more time?

    python benchmarks/weak_scaling.py

Each number of devices runs in a process of its own: so many virtual CPU devices, four chains each, NUTS on eight
schools, warm time (median of three fits with new seeds). Beside them the same chains by threads, the default on a CPU.
Virtual devices share the cores of this machine, so the time can stay the same only up to the number of cores; what is
measured is that sharing chains out costs nothing in itself. GPUs and networks were not measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "weak_scaling.json"
PER_DEVICE = 4


def measure(devices, shared):
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    import numpy as np

    import probgen as pg
    from probgen.program.files import load_program

    folder = Path(__file__).resolve().parent.parent / "models" / "eight_schools"
    data = json.loads((folder / "data.json").read_text())
    model = pg.Model(
        load_program(folder / "model.py"), {name: np.asarray(data[name], float) for name in ("sigma", "y")}
    )
    walls = []
    for seed in range(4):
        start = time.perf_counter()
        pg.infer(
            model,
            pg.NUTS(),
            chains=PER_DEVICE * devices,
            seed=seed,
            devices=devices if shared else None,
            progress=False,
        )
        walls.append(time.perf_counter() - start)
    return statistics.median(walls[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(int(args.one[0]), args.one[1] == "shared"))
        return
    rows = []
    print(f"{os.cpu_count()} cores\ndevices  chains  devices, s  threads, s  per chain, of one device")
    for devices in (1, 2, 4, 8):
        walls = {}
        for how in ("shared", "threads"):
            command = [sys.executable, "-W", "ignore", __file__, "--one", str(devices), how]
            walls[how] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        rows.append({"devices": devices, "chains": PER_DEVICE * devices, **walls})
        share = rows[-1]["shared"] / devices / rows[0]["shared"]
        print(f"{devices:7d} {PER_DEVICE * devices:7d} {walls['shared']:11.3f} {walls['threads']:11.3f} {share:12.2f}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
