"""Joint conditionals

One network for the posterior, the likelihood and any other conditional of a small hierarchical program, all of which are
known in closed form.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

import probgen as pg

EXPECTED = {
    "posterior: largest error of a mean, sds": (0.0, 0.25),
    "likelihood: largest error of a mean, sds": (0.0, 0.25),
    "one datum missing: largest error of a mean, sds": (0.0, 0.35),
    "largest error of an sd, share": (0.0, 0.25),
}
ROOT = np.array([[1.0, 0, 0, 0, 0], [1, 0.7, 0, 0, 0], [1, 0, 0.7, 0, 0], [1, 0.7, 0, 0.5, 0], [1, 0, 0.7, 0, 0.5]])
"""The sites as a linear map of independent normal numbers."""
_ = np.nan
QUESTIONS = {
    "posterior": [_, _, _, 0.2, 1.5],
    "likelihood": [0.5, 0.1, 1.4, _, _],
    "one datum missing": [_, _, _, 0.2, _],
}


def program(y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", 2):
        effect = numpyro.sample("effect", dist.Normal(level, 0.7))
        numpyro.sample("y", dist.Normal(effect, 0.5), obs=y)


def exact(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of what is not known."""
    covariance, missing = ROOT @ ROOT.T, np.isnan(known)
    gain = covariance[np.ix_(missing, ~missing)] @ np.linalg.inv(covariance[np.ix_(~missing, ~missing)])
    rest = covariance[np.ix_(missing, missing)] - gain @ covariance[np.ix_(~missing, missing)]
    return gain @ known[~missing], np.sqrt(np.diag(rest))


def main() -> dict[str, float]:
    model = pg.Model(program)
    training = pg.generative.Training(steps=2000, batch=128, learning_rate=3e-3, block=500)
    joint = pg.Joint(width=32, depth=3, training=training)
    amortized = pg.amortize(model, ["y"], joint, 10_000, missing=0.5, seed=0, progress=False)
    found, worst = {}, 0.0
    for name, values in QUESTIONS.items():
        known = np.array(values)
        given = {"level": known[0], "effect": known[1:3], "y": known[3:]}
        drawn = amortized.conditional(1, model, given, draws=2000)
        whole = np.zeros((2000, 5))
        for site, at in (("level", [0]), ("effect", [1, 2]), ("y", [3, 4])):
            if site in drawn:
                whole[:, at] = np.reshape(drawn[site], (2000, -1))
        draws, (mean, sd) = whole[:, np.isnan(known)], exact(known)
        found[f"{name}: largest error of a mean, sds"] = float(np.max(np.abs(draws.mean(0) - mean) / sd))
        worst = max(worst, float(np.max(np.abs(draws.std(0) / sd - 1))))
    return found | {"largest error of an sd, share": worst}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
