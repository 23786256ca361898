"""InfoVAE: a latent variable that the evidence lower bound would leave unused.

The noise of the likelihood is fixed above the spread of the data, so the bound is best without the latent variable.
With most of the information unpenalised it is used, and its aggregate posterior is still the prior.
"""

import warnings

import jax
import numpy as np

from probgen import generative

EXPECTED = {
    "information, evidence lower bound": (-0.02, 0.02),
    "information, InfoVAE": (0.8, 1.4),
    "aggregate posterior from the prior, InfoVAE": (-0.05, 0.1),
}


def main() -> dict[str, float]:
    x = np.random.default_rng(0).normal(size=(300, 1))
    training = generative.Training(steps=600, batch=128, learning_rate=2e-2, ema=0.98, validation=0.0)
    reports = []
    for objective in (generative.ELBO(), generative.InfoVAE(alpha=0.95, scale=10.0)):
        family = generative.VAE(
            likelihood=generative.GaussianLikelihood(scale=1.2),
            latent=1,
            objective=objective,
            encoder=generative.Amortised(depth=0),
            depth=0,
        )
        model = generative.fit(family, x, training=training, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first one says that it collapsed
            reports.append(model.report(jax.random.key(1), x))
    plain, informed = reports
    return {
        "information, evidence lower bound": float(plain.mutual_information),
        "information, InfoVAE": float(informed.mutual_information),
        "aggregate posterior from the prior, InfoVAE": float(informed.marginal_divergence),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
