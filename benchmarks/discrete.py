"""Test log likelihood of models of binary data.

    python benchmarks/discrete.py            # all models, about ten minutes
    python benchmarks/discrete.py --quick    # a smoke run on few rows and steps; writes nothing

The data are 16 binary answers to a survey, made with a fixed seed from hidden traits (16,000 rows to learn from, 2,000 to
stop by, 3,000 to judge by): like the survey data that circuits are usually compared on, which are not at hand offline,
but with a likelihood of the truth that is known. A bound is a lower bound of the log likelihood, in expectation.
"""

import argparse
import itertools
import json
import platform
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np

import probgen as pg

gen = pg.generative
RESULTS = Path(__file__).parent / "results" / "discrete.json"
TRAITS, ANSWERS = 6, 16


class Survey:
    """Six hidden traits of one of four kinds of people; each of 16 answers depends on two of the traits."""

    def __init__(self, seed=2026):
        self.rng = rng = np.random.default_rng(seed)
        traits = np.array(list(itertools.product([0, 1], repeat=TRAITS)))  # all 64
        kinds = rng.dirichlet(np.full(4, 3.0)) @ np.prod(
            np.where(traits, (chance := rng.beta(0.6, 0.6, size=(4, 1, TRAITS))), 1 - chance), -1
        )
        pairs = np.array([rng.choice(TRAITS, 2, replace=False) for _ in range(ANSWERS)])
        answers = rng.beta(0.25, 0.35, size=(ANSWERS, 2, 2)).clip(0.02, 0.98)
        self.weights = kinds
        self.yes = answers[np.arange(ANSWERS), traits[:, pairs[:, 0]], traits[:, pairs[:, 1]]]  # (64, answers)

    def draw(self, count):
        hidden = self.rng.choice(len(self.weights), size=count, p=self.weights)
        return (self.rng.random((count, ANSWERS)) < self.yes[hidden]).astype(np.int32)

    def log_prob(self, x):
        return np.log(np.exp(x @ np.log(self.yes).T + (1 - x) @ np.log1p(-self.yes).T) @ self.weights)


def independent(train, test, quick):
    return "exact", fit(gen.ChowLiu(edges=False), train, None).log_prob(test)


def chow_liu(train, test, quick):
    return "exact", fit(gen.ChowLiu(), train, None).log_prob(test)


def circuit(train, test, quick):
    family = gen.Circuit(states=16 if quick else 64, epochs=2 if quick else 60, batch=500)
    return "exact", jax.jit(fit(family, train, None).log_prob)(test)


def marginal_model(train, test, quick):
    family = gen.MarginalModel(width=32 if quick else 192)
    model = fit(family, train, trained(quick))
    return "exact", jnp.concatenate([jax.jit(model.log_prob)(part) for part in jnp.split(test, 10)])


def absorbing_diffusion(train, test, quick):
    family = gen.AbsorbingDiffusion(width=32 if quick else 192)
    model = fit(family, train, trained(quick))

    def bound(key, part):
        return jnp.mean(jnp.stack([model.bound(k, part) for k in jax.random.split(key, 4)]), 0)

    keys = jax.random.split(jax.random.key(0), 10)
    return "bound", jnp.concatenate(
        [jax.jit(bound)(k, part) for k, part in zip(keys, jnp.split(test, 10), strict=True)]
    )


def fit(family, train, training):
    return gen.fit(family, train, training=training, seed=0, progress=False)


def trained(quick):
    if quick:
        return gen.Training(steps=50, batch=64, block=25)
    return gen.Training(steps=6000, batch=256, learning_rate=2e-3, validation=2 / 18, block=250, patience=8)


MODELS = {
    "independent": independent,
    "Chow-Liu tree": chow_liu,
    "circuit": circuit,
    "absorbing diffusion": absorbing_diffusion,
    "marginalisation model": marginal_model,
}
"""Name -> function of training rows, test rows, and whether to be quick, that gives ("exact" or "bound", values)."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    truth = Survey()
    train, test = truth.draw(500 if args.quick else 18_000), truth.draw(100 if args.quick else 3_000)
    rows = [row("the truth", "exact", truth.log_prob(test), 0.0)]
    for name in args.only:
        start = time.perf_counter()
        kind, values = MODELS[name](train, jnp.asarray(test), args.quick)
        rows.append(row(name, kind, np.asarray(values), time.perf_counter() - start))
    if args.quick:
        return
    by_name = {r["model"]: r for r in rows}
    for name in {"circuit", "marginalisation model"} & set(by_name):
        if "Chow-Liu tree" in by_name:
            assert by_name[name]["log_likelihood"] > by_name["Chow-Liu tree"]["log_likelihood"]
    if RESULTS.exists():  # rows of models that were not run are kept
        by_name = {r["model"]: r for r in json.loads(RESULTS.read_text())["rows"]} | by_name
    machine = {"machine": platform.machine(), "python": platform.python_version(), "jax": jax.__version__}
    RESULTS.write_text(json.dumps({**machine, "rows": list(by_name.values())}, indent=1) + "\n")


def row(name, kind, values, seconds):
    mean, error = float(np.mean(values)), float(np.std(values) / len(values) ** 0.5)
    print(f"{name:24s} {mean:8.3f} +- {error:.3f} nats per row ({kind}), {seconds:.0f} s", flush=True)
    return {"model": name, "kind": kind, "log_likelihood": mean, "standard_error": error, "seconds": seconds}


if __name__ == "__main__":
    main()
