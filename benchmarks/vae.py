"""Log likelihood of held-out digits under variational autoencoders.

    python benchmarks/vae.py [--quick] [--seeds 1]

The 8x8 digits of scikit-learn, binarised at 8 (of 16); 1497 images for training and 300 for the test, split at random
with seed 0. The log likelihood of the test set is estimated by importance sampling from the encoder with 5000 draws per
image (a lower bound on average). Beside the models: independent pixels. To reach: -16.34 for the evidence lower bound
and -16.18 for the importance-weighted bound of 50 draws, both with 8 latent dimensions and two hidden layers of 100
(measured on this split with other code).
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative

ROOT = Path(__file__).resolve().parent.parent
TO_REACH = {"VAE": -16.34, "IWAE-50": -16.18}


def digits():
    """Training and test images, 0 or 1."""
    from sklearn.datasets import load_digits

    x = (load_digits().data >= 8).astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:1497]], x[order[1497:]]


def independent(train, test):
    """Log likelihood of pixels that know nothing of one another."""
    p = (train.sum(0) + 1) / (len(train) + 2)
    return float(np.mean(np.sum(np.where(test == 1, np.log(p), np.log1p(-p)), 1)))


def measured(name, objective, steps, train, test, seed, draws):
    """Fit and judge one model."""
    family = generative.VAE(
        likelihood=generative.BernoulliLikelihood(),
        latent=8,
        objective=objective,
        encoder=generative.Amortised(width=100),
        width=100,
    )
    training = generative.Training(
        steps=steps, batch=100, learning_rate=2e-3, weight_decay=3e-2, ema=0.999, clip=10.0, validation=0.0
    )
    start = time.perf_counter()
    model = generative.fit(family, train, training=training, seed=seed)
    seconds = time.perf_counter() - start
    estimate = jax.jit(lambda key, x: model.estimate(key, x, draws))
    keys = jax.random.split(jax.random.key(seed + 1), 10)
    log_p = jnp.concatenate([estimate(k, x).log_p for k, x in zip(keys, jnp.split(jnp.asarray(test), 10), strict=True)])
    report = model.report(jax.random.key(seed + 2), test)
    return {
        "model": name,
        "seed": seed,
        "test log likelihood": float(log_p.mean()),
        "standard error": float(log_p.std() / np.sqrt(len(test))),
        "training ELBO bound on the test set": float(report.bound),
        "active units": int(report.active.sum()),
        "mutual information": float(report.mutual_information),
        "training seconds": seconds,
        "to reach": TO_REACH[name],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs; writes nothing")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=list(TO_REACH))
    args = parser.parse_args()
    train, test = digits()
    rows = []
    for seed in range(args.seeds):
        for name, objective, steps in (
            ("VAE", generative.ELBO(), 9000),
            ("IWAE-50", generative.IWAE(draws=50), 2500),
        ):
            if args.only in (None, name):
                taken, draws = (100, 50) if args.quick else (steps, 5000)
                rows.append(measured(name, objective, taken, train, test, seed, draws))
                print(json.dumps(rows[-1]), flush=True)
    found = {"independent pixels": independent(train, test), "rows": rows}
    print(f"independent pixels: {found['independent pixels']:.3f}")
    if not args.quick and args.only is None:
        (ROOT / "benchmarks/results/vae.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
