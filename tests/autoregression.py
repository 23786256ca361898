"""An autoregression with noise and two unknown parameters, and its posterior on a grid: exact but for the grid."""

import functools

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy import stats

import probgen as pg

R = 0.6
"""Standard deviation of the observations."""


def autoregression(y):
    """Unknown: ``phi``, the dependence; ``q``, the standard deviation of the states; the states themselves."""
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    q = numpyro.sample("q", dist.LogNormal(-0.5, 0.5))
    start = numpyro.sample("start", dist.Normal(0, 1))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(phi * x, q))
        numpyro.sample("y", dist.Normal(x, R), obs=y)
        return x, None

    scan(step, start, y)


def series(length=20, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(), []
    for _ in range(length):
        x = 0.8 * x + 0.7 * rng.normal()
        y.append(x + R * rng.normal())
    return np.array(y)


MODEL = pg.Model(autoregression, {"y": series()})


@functools.cache
def exact():
    """Means, standard deviations and log evidence of ``MODEL``, by Kalman filters and smoothers on a grid."""
    y = series()
    phi = np.linspace(0, 1, 202)[1:-1]
    log_q = np.linspace(-3.2, 1.8, 201)
    cell = (phi[1] - phi[0]) * (log_q[1] - log_q[0])
    phi, log_q = (part.ravel() for part in np.meshgrid(phi, log_q, indexing="ij"))
    q = np.exp(log_q)
    means, variances, log_z = [np.zeros_like(phi)], [np.ones_like(phi)], np.zeros_like(phi)
    for value in y:
        ahead, spread = phi * means[-1], phi**2 * variances[-1] + q**2
        log_z += stats.norm.logpdf(value, ahead, np.sqrt(spread + R**2))
        gain = spread / (spread + R**2)
        means.append(ahead + gain * (value - ahead))
        variances.append((1 - gain) * spread)
    for t in range(len(y) - 1, -1, -1):
        spread = phi**2 * variances[t] + q**2
        back = phi * variances[t] / spread
        means[t] = means[t] + back * (means[t + 1] - phi * means[t])
        variances[t] = variances[t] + back**2 * (variances[t + 1] - spread)
    log_joint = log_z + stats.norm.logpdf(log_q, -0.5, 0.5)
    weight = np.exp(log_joint - log_joint.max())
    evidence = log_joint.max() + np.log(weight.sum() * cell)
    weight /= weight.sum()
    first = {"phi": phi, "q": q, "start": means[0], "x": np.stack(means[1:], -1)}
    second = {"phi": phi**2, "q": q**2, "start": means[0] ** 2 + variances[0]}
    second["x"] = np.stack([m**2 + v for m, v in zip(means[1:], variances[1:], strict=True)], -1)
    mean = {name: np.tensordot(weight, value, 1) for name, value in first.items()}
    sd = {name: np.sqrt(np.tensordot(weight, value, 1) - mean[name] ** 2) for name, value in second.items()}
    return mean, sd, float(evidence)
