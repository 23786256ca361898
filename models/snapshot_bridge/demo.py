"""Schroedinger bridges between snapshots, with a refined reference

Prey and predators are seen at nine times, other animals each time: the rates of their equations are recovered.
"""

import numpy as np

import probgen.generative as pg

RATES = {"birth of prey (1)": 1.0, "predation (0.4)": 0.4, "growth of predators (0.1)": 0.1, "their death (0.4)": 0.4}
EXPECTED = {
    **{name: (0.85 * rate, 1.15 * rate) for name, rate in RATES.items()},
    "largest relative error, Brownian reference": (0.05, 0.6),
    "largest relative error, refined": (0.0, 0.15),
}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    times, (a, b, d, c) = tuple(0.7 * i for i in range(9)), RATES.values()
    clouds = []
    for t in times:
        x = np.stack([rng.uniform(5, 5.5, 100), rng.uniform(4, 4.5, 100)], 1)
        for _ in range(round(100 * t)):
            u, v = x.T
            x = x + 0.01 * np.stack([a * u - b * u * v, d * u * v - c * v], 1) + 0.01 * rng.normal(size=x.shape)
        clouds.append(x)
    family = pg.SnapshotBridge(
        drift=pg.LotkaVolterra(), noise=0.1, times=times, particles=80, steps=15, refinements=8, iterations=30
    )
    model = pg.fit(family, np.stack(clouds, 1), training=pg.Training(validation=0.0))
    errors = np.abs(np.asarray(model.trace) / list(RATES.values()) - 1).max(1)
    return {
        **{name: float(value) for name, value in zip(RATES, model.parameters, strict=True)},
        "largest relative error, Brownian reference": float(errors[0]),
        "largest relative error, refined": float(errors[-1]),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
