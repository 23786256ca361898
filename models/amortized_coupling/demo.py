"""Couplings of amortized flow matching

A parameter of unknown sign: the posterior has two modes whose places depend on the observation. How good are draws after 1, 2,
4 and 20 Heun steps, by the coupling of training?
"""

import warnings

import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import norm

import probgen as pg
from probgen.amortized.amortized import AmortizedPosterior
from probgen.base.errors import ProbgenWarning

NOISE = 0.4
SHARE = 1 / (1 + NOISE**2)
WIDTH = NOISE * SHARE**0.5
"""The posterior is half N(y SHARE, WIDTH^2), half N(-y SHARE, WIDTH^2)."""
OBSERVED = np.linspace(0, 2, 5)
STEPS = (1, 2, 4, 20)
COUPLINGS = {
    "independent": pg.generative.Independent(),
    "OT": pg.generative.OptimalTransport(),
    "C2OT": pg.generative.ConditionalOT(),
}
LEVELS = (np.arange(1000) + 0.5) / 1000
EXPECTED: dict[str, tuple[float, float]] = {
    # By quadrature: numbers of the problem, not of a training.
    "distance of the prior": (0.498, 0.503),
    "one Heun step of the exact velocity, independent": (0.57, 0.576),
    # Deviations of about 1, and a share of either mode that is 0.016 off times the way between them.
    "distance of 1,000 exact draws": (0.01, 0.08),
    # What the exact velocity gives, plus or minus the error of a short training.
    "independent, 1 step": (0.45, 0.69),
    "independent, 2 steps": (0.03, 0.25),
    "independent, 4 steps": (0.03, 0.2),
    "independent, 20 steps": (0.0, 0.2),
    # The distance of the prior, plus or minus that of exact draws.
    "OT, 1 step": (0.45, 0.56),
    "OT, 2 steps": (0.45, 0.56),
    "OT, 4 steps": (0.45, 0.56),
    "OT, 20 steps": (0.45, 0.56),
    # Less than half of what one step of independent pairs is away, and less than what two are.
    "C2OT, 1 step": (0.0, 0.28),
    "C2OT, 2 steps": (0.0, 0.14),
    "C2OT, 4 steps": (0.0, 0.12),
    "C2OT, 20 steps": (0.0, 0.12),
}


def program(y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    signs = dist.Normal(theta * np.array([-1.0, 1.0]), NOISE)
    numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(np.full(2, 0.5)), signs), obs=y)


def quantiles(y: float) -> np.ndarray:
    """Of the posterior, at ``LEVELS``."""
    grid, mode = np.linspace(-6, 6, 20_001), SHARE * y
    return np.interp(LEVELS, (norm.cdf((grid - mode) / WIDTH) + norm.cdf((grid + mode) / WIDTH)) / 2, grid)


def distance(draws: np.ndarray, y: float) -> float:
    """Wasserstein distance from the posterior, in prior standard deviations; ``draws`` as many as ``LEVELS``."""
    return float(np.mean(np.abs(np.sort(draws) - quantiles(y))))


def main() -> dict[str, float]:
    rng, normal = np.random.default_rng(0), norm.ppf(LEVELS)
    found = {
        "distance of the prior": np.mean([distance(normal, y) for y in OBSERVED]),
        # With E[theta | y] = 0, Euler's rule goes to 0 and the velocity there is 0: Heun's rule goes half of the way.
        "one Heun step of the exact velocity, independent": np.mean([distance(normal / 2, y) for y in OBSERVED]),
        "distance of 1,000 exact draws": np.mean([distance(rng.choice(quantiles(y), 1000), y) for y in OBSERVED]),
    }
    model = pg.Model(program)
    simulations = pg.amortized.simulate(model, ["y"], 10_000, seed=0, progress=False)
    training = pg.generative.Training(steps=1000, batch=128, learning_rate=3e-3, block=250)
    for name, coupling in COUPLINGS.items():
        method = pg.FlowMatching(width=48, depth=2, coupling=coupling, training=training)
        with warnings.catch_warnings():
            # Plain transport is warned of, which is what this page is about.
            warnings.simplefilter("ignore" if name == "OT" else "default", ProbgenWarning)
            amortized = pg.amortize(model, ["y"], method, simulations, seed=1, progress=False)
        assert isinstance(amortized, AmortizedPosterior)
        for steps in STEPS:
            here, errors = amortized.using(pg.generative.HeunSteps(steps)), []
            for seed, y in enumerate(OBSERVED):
                tree = pg.infer(pg.Model(program, data={"y": y}), here, draws=1000, chains=1, seed=seed, progress=False)
                errors.append(distance(tree.posterior["theta"].values.ravel(), y))
            found[f"{name}, {steps} step{'s' if steps > 1 else ''}"] = np.mean(errors)
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
