"""Held-out log density of small Bayesian neural networks, trained by particles, by a variational bound, and by SGHMC.

    python benchmarks/partial_bnn.py [--splits 5] [--quick] [--only diabetes ...]

A network with one hidden layer of tanh units. In the partial one the weights into the hidden layer are stochastic, the
rest (weights out of it, scale of the noise) are ``numpyro.param``; ``pg.FeynmanKacTraining`` and ``pg.SVI`` (mean
field) train the same program. ``pg.SGHMC`` has no params: "sghmc, same network" samples the stochastic weights with the
others as the variational fit left them; "sghmc, all weights" samples the network in which every weight is stochastic,
which is another, richer model. Step sizes are the best of several on the first split, by the very number that is
compared, which favours SGHMC. All run in 32 bits.

Five regressions that need no download: diabetes and Linnerud (waist from three exercises) ship with scikit-learn, the
three of Friedman are its generators. Inputs and outputs are standardised on the training rows. Prints, per data set and method,
the mean over splits of the mean held-out log density (higher is better), with the standard error of the paired
difference to particles.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_diabetes, load_linnerud, make_friedman1, make_friedman2, make_friedman3

import probgen as pg
from probgen.infer.feynman_kac_training import FeynmanKacTraining
from probgen.infer.smc import SMC

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = 5
RATES = (0.003, 0.01, 0.03)


def hidden_layer(x):
    """Stochastic weights into the hidden layer; the last row is the bias."""
    inputs = x.shape[1] + 1
    prior = dist.Normal(0.0, 1.0).expand([inputs, HIDDEN]).to_event(2)
    return activations(x, numpyro.sample("w", prior))


def activations(x, w):
    return jnp.tanh(x @ w[:-1] / x.shape[1] ** 0.5 + w[-1])


def partial(x, y=None):
    """Weights out of the hidden layer and the noise are deterministic."""
    v = numpyro.param("v", lambda key: 0.5 * jax.random.normal(key, (HIDDEN,)))
    c = numpyro.param("c", 0.0)
    sd = numpyro.param("sd", 0.7, constraint=dist.constraints.positive)
    given(x, v, c, sd, y)


def given(x, v, c, sd, y=None):
    """The same with the deterministic weights as data."""
    mean = hidden_layer(x) @ v + c
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, sd), obs=y)


def full(x, y=None):
    """Every weight is stochastic."""
    v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([HIDDEN]).to_event(1))
    c = numpyro.sample("c", dist.Normal(0.0, 1.0))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    mean = hidden_layer(x) @ v + c
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, sd), obs=y)


def data_sets():
    diabetes, linnerud = load_diabetes(), load_linnerud()
    return {
        "friedman1": make_friedman1(n_samples=200, n_features=10, noise=1.0, random_state=0),
        "friedman2": make_friedman2(n_samples=200, noise=50.0, random_state=0),
        "friedman3": make_friedman3(n_samples=200, noise=0.1, random_state=0),
        "diabetes": (diabetes.data, diabetes.target),
        "linnerud": (linnerud.data, linnerud.target[:, 1]),
    }


def split(x, y, seed):
    """Training and held-out rows (a fifth), standardised on the former."""
    rows = np.random.default_rng(seed).permutation(len(y))
    test, train = rows[: len(y) // 5], rows[len(y) // 5 :]
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean()) / y[train].std()
    x, y = x.astype(np.float32), y.astype(np.float32)
    return (x[train], y[train]), (x[test], y[test])


@jax.jit
def log_density(x, y, w, v, c, sd):
    """Mean over rows of the log of the mean density over draws."""

    def one(w, v, c, sd):
        return dist.Normal(activations(x, w) @ v + c, sd).log_prob(y)

    return jnp.mean(jax.scipy.special.logsumexp(jax.vmap(one)(w, v, c, sd), 0) - jnp.log(w.shape[0]))


def score(tree, test, weights):
    """Of the draws; ``weights`` has the values of what was not drawn."""
    drawn = {name: value.values.reshape(-1, *value.shape[2:]) for name, value in tree["posterior"].items()}
    count = len(drawn["w"])
    drawn |= {name: np.broadcast_to(value, (count, *np.shape(value))) for name, value in weights.items()}
    return float(log_density(*test, *(drawn[name] for name in ("w", "v", "c", "sd"))))


def methods(quick):
    draws = {"draws": 100 if quick else 250, "chains": 4}
    posterior = SMC(particles=64 if quick else 256, kernel=pg.HMC(), moves=2 if quick else 15)
    count, moves, steps = (32, 1, 200) if quick else (128, 3, 1500)
    particle = FeynmanKacTraining(particles=count, moves=moves, steps=steps, posterior=posterior)
    sampled = {**draws, "warmup": 500 if quick else 5000, "thin": 10}
    found = {
        "particles": (partial, particle, {**draws, "chains": 2}),
        "svi": (partial, pg.SVI(), draws),
    }
    for rate in RATES:
        found[f"sghmc, same network, {rate}"] = (given, pg.SGHMC(step_size=rate), sampled)
        found[f"sghmc, all weights, {rate}"] = (full, pg.SGHMC(step_size=rate), sampled)
    return found


def fit(name, program, method, settings, train, test, weights, seed):
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-hat of the mean field, and fits that stop at their limit of steps
        data = dict(zip("xy", train, strict=True)) | (weights if program is given else {})
        tree = pg.infer(pg.Model(program, data), method, seed=seed, progress=False, **settings)
    if isinstance(method, pg.SVI):
        weights |= {name: np.asarray(tree["params"][name]) for name in ("v", "c", "sd")}
    found = {
        "log_density": score(tree, test, weights if program is given else {}),
        "seconds": time.perf_counter() - start,
        "ended": tree.attrs["ended"],
    }
    found |= {
        key: tree.attrs[key] for key in ("log_evidence", "elbo", "training_log_evidence", "steps") if key in tree.attrs
    }
    print(f"    {name:28s}", {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small settings, nothing is written")
    parser.add_argument("--only", nargs="*", help="data sets")
    options = parser.parse_args()
    out = ROOT / "benchmarks" / "results" / "partial_bnn.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    for label, (x, y) in data_sets().items():
        if options.only and label not in options.only:
            continue
        print(label, x.shape, flush=True)
        runs, todo = {}, methods(options.quick)
        for seed in range(options.splits):
            (train, test), weights = split(x, y, seed), {}
            for name, (program, method, settings) in todo.items():
                runs.setdefault(name, []).append(fit(name, program, method, settings, train, test, weights, seed))
            for kind in ("sghmc, same", "sghmc, all") if seed == 0 else ():  # the best step size is kept
                rates = [name for name in todo if name.startswith(kind)]
                best = max(rates, key=lambda name: runs[name][0]["log_density"])
                for name in set(rates) - {best}:
                    del todo[name], runs[name]
        results[label] = runs
        report(label, runs)
        if not options.quick:
            out.write_text(json.dumps(results, indent=1))


def report(label, runs):
    ours = np.array([run["log_density"] for run in runs["particles"]])
    print(f"  {label}: held-out log density per row, mean of {len(ours)} splits")
    for name, found in runs.items():
        values = np.array([run["log_density"] for run in found])
        seconds = np.median([run["seconds"] for run in found])
        apart = ours - values
        se = apart.std(ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.nan
        better = f"{apart.mean():+.3f} +- {se:.3f}" if name != "particles" else ""
        print(
            f"    {name:28s} {values.mean():7.3f}   particles better by {better:18s} {seconds:6.1f} s"
            if better
            else f"    {name:28s} {values.mean():7.3f} {seconds:43.1f} s"
        )


if __name__ == "__main__":
    main()
