"""Conditional optimal transport couplings (C2OT)

Two classes, one on each side: which starts do data of a class get, and how good is one step of Euler's rule?
"""

import jax
import jax.numpy as jnp
import numpy as np

import probgen.generative as pg

COUPLINGS = {"independent": pg.Independent(), "OT": pg.OptimalTransport(), "C2OT": pg.ConditionalOT(0.0)}
EXPECTED = {
    "skew of the prior, independent": (-0.6, 0.6),
    "skew of the prior, OT": (0.8, 2.4),
    "skew of the prior, C2OT": (-0.6, 0.6),
    "skew that C2OT adds": (-1e-5, 1e-5),
    "error, independent": (0.0, 0.4),
    "error, OT": (0.2, 2.0),
    "error, C2OT": (0.0, 0.4),
    "error in one step, independent": (0.5, 2.0),
    "error in one step, C2OT": (0.0, 0.6),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    label = np.repeat([-1.0, 1.0], 2000)[:, None]
    # In each class two narrow modes, above and below: a bimodal target, for which independent paths cross.
    x = np.concatenate([2 * label, rng.choice([-2.0, 2.0], (4000, 1))], 1) + 0.2 * rng.normal(size=(4000, 2))
    found = {}

    start, some = rng.normal(size=(128, 2)), rng.permutation(4000)[:128]
    standard = (x[some] - x.mean(0)) / x.std(0)
    arrays = [jnp.asarray(a, jnp.float32) for a in (start, standard, label[some])]
    for name, coupling in COUPLINGS.items():
        rows = np.asarray(jax.jit(coupling.pair)(jax.random.key(0), *arrays))
        right = label[some, 0] > 0
        found[f"skew of the prior, {name}"] = float(np.mean(start[rows][right, 0]) - np.mean(start[rows][~right, 0]))
    found["skew that C2OT adds"] = found["skew of the prior, C2OT"] - found["skew of the prior, independent"]

    training = pg.Training(steps=700, batch=128, learning_rate=5e-3, block=350)
    for name, coupling in COUPLINGS.items():
        model = pg.fit(pg.FlowMatching(coupling=coupling, width=48, depth=2), x, label, training=training).given([1.0])
        for how, solver in (("error", pg.HeunSteps(16)), ("error in one step", pg.EulerSteps(1))):
            draws = jax.jit(lambda m, k: m.sample(k, (1000,)))(model.using(solver), jax.random.key(1))
            # Distance from the two modes of the class, beyond their width.
            away = np.abs(np.stack([draws[:, 0] - 2, np.abs(draws[:, 1]) - 2], 1))
            found[f"{how}, {name}"] = float(np.sqrt(np.mean(away**2)) - 0.2)
    return {name: found[name] for name in EXPECTED}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
