"""Compositional optimisation: maximum likelihood for an energy, with a tracked normaliser.

The mean of a normal density off the noise, 200 data sets of 200: mean squared errors, in units of that of the mean of
the data, of maximum likelihood by compositional optimisation and of noise contrast, with the same steps and batches.
"""

import numpy as np

import probgen as pg

EXPECTED = {
    "squared error of compositional optimisation, of the best": (0.9, 1.15),
    "squared error of noise contrast, of the best": (1.05, 3.0),
    "distance from the mean of the data": (0.0, 0.02),
    "log normaliser less 0.5 log(2 pi)": (-0.05, 0.05),
}
"""Maximum likelihood has 1; noise contrast with as much noise as data has about 1.4 in the limit of fresh noise."""


def main() -> dict[str, float]:
    """Two hundred fits of each kind."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    energy = pg.generative.GaussianEnergy(scaled=False)
    ours = pg.generative.Compositional(
        energy=energy, steps=800, batch=128, learning_rate=0.03, tracking=0.05, spread=2.0
    )
    theirs = pg.generative.NoiseContrast(energy=energy, ratio=1, spread=2.0)
    spec, now = pg.generative.Spec((1,)), pg.generative.Now(jnp.zeros(()), None)
    net = theirs.build(jax.random.key(0), spec)
    weights, fixed = eqx.partition(net, lambda leaf: leaf is net.energy.loc or leaf is net.log_z)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.03, 800))

    def both(key):
        key_data, key_ours, key_theirs = jax.random.split(key, 3)
        x = 2.5 + jax.random.normal(key_data, (200, 1), jnp.float32)
        found = ours.solve(key_ours, net, x, None)

        def step(carried, key):
            weights, memory = carried
            key_rows, key_loss = jax.random.split(key)
            rows = jax.random.randint(key_rows, (128,), 0, 200)
            loss = lambda w: theirs.loss(key_loss, eqx.combine(w, fixed), x[rows], None, now)  # noqa: E731
            updates, memory = optimiser.update(jax.grad(loss)(weights), memory, weights)
            return (optax.apply_updates(weights, updates), memory), None

        keys = jax.random.split(key_theirs, 800)
        (last, _), _ = jax.lax.scan(step, (weights, optimiser.init(weights)), keys)
        return found.energy.loc[0], last.energy.loc[0], x.mean(), found.log_z

    keys = jax.random.split(jax.random.key(0), 200)
    ours_at, theirs_at, best, log_z = (np.asarray(a) for a in jax.jit(jax.vmap(both))(keys))
    least = ((best - 2.5) ** 2).mean()
    return {
        "squared error of compositional optimisation, of the best": ((ours_at - 2.5) ** 2).mean() / least,
        "squared error of noise contrast, of the best": ((theirs_at - 2.5) ** 2).mean() / least,
        "distance from the mean of the data": np.abs(ours_at - best).mean(),
        "log normaliser less 0.5 log(2 pi)": log_z.mean() - 0.5 * np.log(2 * np.pi),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
