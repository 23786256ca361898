"""Deep Boltzmann machines: unbiased contrastive divergence, beside the exact gradient.

Digits of 4 x 4 binary pixels. A machine of two hidden layers is trained by the unbiased gradient, and once more with the
same steps by the exact one; with so few units that is known, and so is the likelihood, by enumeration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import probgen as pg

EXPECTED = {
    "held-out nats, independent pixels": (-4.95, -4.87),
    "held-out nats, unbiased gradient": (-4.6, -4.35),
    "held-out nats, exact gradient": (-4.45, -4.33),
    "share of the gain of the exact gradient": (0.65, 1.1),
    "largest z-score of the gradient": (0.0, 4.5),
    "mean meeting time of free chains, sweeps": (1.5, 60.0),
    "share of chains that did not meet": (0.0, 0.0001),
}
"""Held-out nats of 300 digits, by enumeration; z-scores are those of 200 combinations of entries."""


def digits():
    """Means of 2 x 2 pixels, binary; split at random."""
    from sklearn.datasets import load_digits

    x = load_digits().images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) >= 6
    x = x[np.random.default_rng(0).permutation(len(x))].astype(int)
    return x[:1497], x[1497:]


def exact_fit(family, training, x, spec):
    """The same descent by the gradient of the enumerated likelihood."""
    optimiser = training.optimiser()
    key_build, key_steps = jax.random.split(jax.random.key(0))
    net = family.adapt(key_build, family.build(key_build, spec), jnp.asarray(x), None)

    def loss(net, x):
        model = family.distribution(net, spec)
        return model.log_normaliser() + jnp.mean(jax.vmap(model.energy_at)(x))

    @jax.jit
    def run(net):
        def step(carried, key):
            net, memory = carried
            batch = jnp.asarray(x)[jax.random.randint(key, (training.batch,), 0, len(x))]
            updates, memory = optimiser.update(jax.grad(loss)(net, batch), memory, net)
            return (optax.apply_updates(net, updates), memory), None

        return jax.lax.scan(step, (net, optimiser.init(net)), jax.random.split(key_steps, training.steps))[0][0]

    return family.distribution(run(net), spec)


def main() -> dict[str, float]:
    """Train, and look at gradient and likelihood."""
    x, held = digits()
    family = pg.generative.DeepBoltzmann(hidden=(10, 4), first=1, last=3)
    training = pg.generative.Training(
        steps=1000, batch=64, learning_rate=0.04, validation=0.0, ema=0.99, weight_decay=0.0, clip=5.0
    )
    model = pg.generative.fit(family, x, training=training)
    best = exact_fit(family, training, x, model.spec)

    def nats(model):
        return float(-np.asarray(jax.jit(model.energy)(held)).mean() - float(jax.jit(model.log_normaliser)()))

    share = (x.sum(0) + 0.5) / (len(x) + 1)
    independent = float(np.sum(held.mean(0) * np.log(share) + (1 - held.mean(0)) * np.log1p(-share)))

    def log_likelihood(net):
        here = family.distribution(net, model.spec)
        return -here.energy(x[3]) - here.log_normaliser()

    def flat(tree):
        return np.concatenate([np.asarray(a).reshape(-1) for a in jax.tree.leaves(tree)])

    exact = flat(jax.jit(jax.grad(log_likelihood))(model.net))
    gradient = jax.jit(jax.vmap(lambda k: family.gradient(k, model.net, x[3])))
    found, meeting = gradient(jax.random.split(jax.random.key(1), 2000))
    rows = np.concatenate([np.asarray(a, float).reshape(2000, -1) for a in jax.tree.leaves(found)], 1)
    # Random combinations of the entries: single ones may hang on events that no replicate saw.
    off = (rows - exact) @ np.random.default_rng(1).normal(size=(len(exact), 200))
    z = off.mean(0) / (off.std(0) / np.sqrt(2000))
    ours, theirs = nats(model), nats(best)
    return {
        "held-out nats, independent pixels": independent,
        "held-out nats, unbiased gradient": ours,
        "held-out nats, exact gradient": theirs,
        "share of the gain of the exact gradient": (ours - independent) / (theirs - independent),
        "largest z-score of the gradient": np.abs(z).max(),
        "mean meeting time of free chains, sweeps": float(meeting[:, 1].mean()),
        "share of chains that did not meet": float((meeting == -1).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
