"""Self-supervised variational autoencoder: digits from coarse to fine.

The binarised 8x8 digits of scikit-learn. A first autoencoder draws the 4x4 image, a second the 8x8 image given it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative

EXPECTED = {
    "bound per held-out image": (-21.0, -16.0),
    "independent pixels": (-25.3, -25.1),
    "coarse pixels that refined draws keep": (0.9, 1.0),
}


def main() -> dict[str, float]:
    from sklearn.datasets import load_digits

    x = (load_digits().images >= 8).astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = x[order[:1497]], x[order[1497:]]
    coarse, fine = (
        generative.VAE(
            generative.BernoulliLikelihood(), latent=size, encoder=generative.Amortised(64, 1), width=64, depth=1
        )
        for size in (4, 6)
    )
    family = generative.SelfSupervisedVAE((coarse, fine))
    training = generative.Training(steps=2500, batch=100, learning_rate=3e-3, ema=0.99)
    model = generative.fit(family, train, training=training, seed=0)
    bound = jax.jit(lambda x: model.bound(jax.random.key(1), x, 50).mean())(jnp.asarray(test))
    summary = model.summaries(test)[0]
    refined = jax.jit(lambda y: model.refine(jax.random.key(2), y))(summary)
    p = (train.sum(0) + 1) / (len(train) + 2)
    return {
        "bound per held-out image": float(bound),
        "independent pixels": float(np.where(test == 1, np.log(p), np.log1p(-p)).sum((1, 2)).mean()),
        "coarse pixels that refined draws keep": float((model.summaries(refined)[0] == summary).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
