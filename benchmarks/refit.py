"""How long a refit takes: the same program on new data of the same shape.

    python benchmarks/refit.py

probgen compiles once, since data are leaves of a pytree; NumPyro's ``MCMC`` compiles on every ``run``. Prints the seconds of each fit and
the ratio of the medians.
"""

import json
import statistics
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import numpy as np
from numpyro.infer import MCMC
from numpyro.infer import NUTS as NumpyroNUTS

import probgen as pg
from probgen.program.files import load_program

ROOT = Path(__file__).resolve().parent.parent


def main(refits=8):
    program = load_program(ROOT / "models" / "eight_schools" / "model.py")
    data = json.loads((ROOT / "models" / "eight_schools" / "data.json").read_text())
    data = {name: data[name] for name in ("sigma", "y")}
    rng = np.random.default_rng(0)
    sets = [np.asarray(data["y"]) + rng.normal(0, 5, 8) for _ in range(refits + 1)]

    ours = []
    for seed, y in enumerate(sets):
        start = time.perf_counter()
        pg.infer(pg.Model(program, {**data, "y": y}), pg.NUTS(), seed=seed, progress=False)
        ours.append(time.perf_counter() - start)

    theirs = []
    for seed, y in enumerate(sets):
        start = time.perf_counter()
        # A new object each time: a vectorised MCMC that is run again on other data fails.
        mcmc = MCMC(
            NumpyroNUTS(program),
            num_warmup=1000,
            num_samples=1000,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(seed), **{**{k: np.asarray(v) for k, v in data.items()}, "y": y})
        jax.block_until_ready(mcmc.get_samples())
        theirs.append(time.perf_counter() - start)

    for name, walls in (("probgen", ours), ("NumPyro", theirs)):
        print(f"{name}: first {walls[0]:.2f} s, refits {' '.join(f'{w:.3f}' for w in walls[1:])} s")
    ratio = statistics.median(theirs[1:]) / statistics.median(ours[1:])
    print(f"a refit takes NumPyro {ratio:.0f} times as long")
    out = ROOT / "benchmarks" / "results" / "refit.json"
    out.write_text(json.dumps({"probgen": ours, "numpyro": theirs, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
