"""Implicit variational inference: a curved posterior and a Bayesian network from a neural sampler.

A banana, of which all moments are known: u1 ~ N(0, 1), u2 | u1 ~ N(u1^2, 0.3). And a small Bayesian network, whose
predictions are compared with those of NUTS (its weights have the symmetries of hidden units, what it predicts has none).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import probgen as pg
from probgen import generative
from probgen.program.density import Density

EXPECTED = {
    "mean of u2 (1)": (0.85, 1.15),
    "standard deviation of u2 (1.446)": (1.2, 1.7),
    "correlation of u1^2 and u2 (0.978)": (0.95, 1.0),
    "spread of u2 about the curve (0.3)": (0.25, 0.35),
    "objective at the end (0)": (-0.15, 0.15),
    "network: largest error of a mean, in standard deviations": (0.0, 0.2),
    "network: smallest ratio of standard deviations": (0.85, 1.15),
    "network: largest ratio of standard deviations": (0.85, 1.15),
}


def log_density(u):
    return jax.scipy.stats.norm.logpdf(u[0]) + jax.scipy.stats.norm.logpdf(u[1], u[0] ** 2, 0.3)


def network(x, w, b, v):
    return jnp.tanh(x[:, None] * w + b) @ v


def program(x, y):
    w, b, v = (numpyro.sample(name, dist.Normal(jnp.zeros(2), 1.5).to_event(1)) for name in "wbv")
    numpyro.sample("y", dist.Normal(network(x, w, b, v), 0.2).to_event(1), obs=y)


def predictions():
    """Of NUTS and of the neural sampler at five points, shapes ``(draws, 5)``."""
    x = np.linspace(-2, 2, 40)
    y = np.tanh(2 * x + 2) - np.tanh(2 * x - 2) + 0.2 * np.random.default_rng(0).normal(size=40)
    model = pg.Model(program, {"x": x, "y": y})
    tree = pg.infer(model, pg.NUTS(), draws=1000, warmup=500, chains=2, seed=0, progress=False)["posterior"]
    density = Density(model)
    fitted = generative.Implicit().fit_density(density.log_density, density.dim, seed=0)
    values = jax.vmap(density.constrain)(fitted.sample(jax.random.key(0), (2000,)))
    points = jnp.asarray([-2.5, -1.0, 0.0, 1.0, 2.5])
    exact = {name: jnp.asarray(tree[name].values).reshape(2000, 2) for name in "wbv"}
    predict = jax.jit(jax.vmap(lambda w, b, v: network(points, w, b, v)))
    return [np.asarray(predict(d["w"], d["b"], d["v"])) for d in (exact, values)]


def main() -> dict[str, float]:
    model = generative.Implicit().fit_density(log_density, 2, seed=0)
    truth, found = predictions()
    ratios = found.std(0) / truth.std(0)
    u1, u2 = np.asarray(model.sample(jax.random.key(1), (5000,))).T
    return {
        "mean of u2 (1)": float(u2.mean()),
        "standard deviation of u2 (1.446)": float(u2.std()),
        "correlation of u1^2 and u2 (0.978)": float(np.corrcoef(u1**2, u2)[0, 1]),
        "spread of u2 about the curve (0.3)": float((u2 - u1**2).std()),
        "objective at the end (0)": float(model.history["objective"][-300:].mean()),
        "network: largest error of a mean, in standard deviations": float(
            np.max(np.abs(found.mean(0) - truth.mean(0)) / truth.std(0))
        ),
        "network: smallest ratio of standard deviations": float(ratios.min()),
        "network: largest ratio of standard deviations": float(ratios.max()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
