"""Deep Boltzmann machines: unbiased contrastive divergence, and when its chains meet.

Bars and stripes on 3 x 3 pixels: fourteen patterns. A machine of two hidden layers is trained by the unbiased gradient;
with so few units its likelihood is known by enumeration.
"""

import itertools

import jax
import numpy as np

import probgen as pg

EXPECTED = {
    "entropy of the patterns, nats": (2.63, 2.65),
    "before training, nats": (-6.4, -6.0),
    "after training, nats": (-5.0, -2.65),
    "largest z-score of the gradient": (0.0, 4.5),
    "mean meeting time of free chains, sweeps": (1.5, 60.0),
    "share of chains that did not meet": (0.0, 0.0001),
}
"""The likelihood cannot be above minus the entropy, log 14; z-scores of the entries stay below 4.5."""


def patterns():
    """All bars and stripes."""
    rows = [np.repeat(np.array(bits)[:, None], 3, 1) for bits in itertools.product((0, 1), repeat=3)]
    return np.unique(np.array([p.ravel() for p in rows] + [p.T.ravel() for p in rows]), axis=0)


def main() -> dict[str, float]:
    """Train, and look at gradient and likelihood."""
    x = patterns()
    family = pg.generative.DeepBoltzmann(hidden=(8, 4), first=1, last=6)
    training = pg.generative.Training(
        steps=600, batch=28, learning_rate=0.03, validation=0.0, ema=0.98, weight_decay=0.0, clip=5.0
    )
    before = pg.generative.fit(family, x, training=pg.generative.Training(steps=1, learning_rate=1e-9, validation=0.0))
    after = pg.generative.fit(family, np.tile(x, (4, 1)), training=training)

    def nats(model):
        return float(-np.asarray(jax.jit(model.energy)(x)).mean() - float(model.log_normaliser()))

    def log_likelihood(net):
        here = family.distribution(net, after.spec)
        return -here.energy(x[3]) - here.log_normaliser()

    def flat(tree):
        return np.concatenate([np.asarray(a).reshape(-1) for a in jax.tree.leaves(tree)])

    exact = flat(jax.jit(jax.grad(log_likelihood))(after.net))
    gradient = jax.jit(jax.vmap(lambda k: family.gradient(k, after.net, x[3])))
    found, meeting = gradient(jax.random.split(jax.random.key(1), 4000))
    rows = np.concatenate([np.asarray(a).reshape(4000, -1) for a in jax.tree.leaves(found)], 1)
    z = (rows.mean(0) - exact) / (rows.std(0) / np.sqrt(4000) + 1e-6)
    return {
        "entropy of the patterns, nats": np.log(len(x)),
        "before training, nats": nats(before),
        "after training, nats": nats(after),
        "largest z-score of the gradient": np.abs(z).max(),
        "mean meeting time of free chains, sweeps": float(meeting[:, 1].mean()),
        "share of chains that did not meet": float((meeting == -1).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
