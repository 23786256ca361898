"""Neural ordinary equations: series at irregular times by a latent equation, and its gradients by the adjoint."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative

EXPECTED = {
    # A wave of amplitude 1 about 0: to guess its mean has an error of 0.707. The noise of the data is 0.1.
    "error of the path at new times": (0.0, 0.35),
    "error of guessing the mean": (0.6, 0.8),
    "bound beyond that of independent normals, nats per value": (0.2, 2.5),
    "gradients by the adjoint and step by step, relative difference": (0.0, 1e-2),
}
STEPS = 10


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waves of one frequency and any phase, at times of their own; and their phases."""
    times = np.sort(rng.uniform(0, 4, (count, STEPS)), 1)
    phase = rng.uniform(0, 2 * np.pi, count)
    x = np.sin(2 * times + phase[:, None]) + 0.1 * rng.normal(size=(count, STEPS))
    return x[..., None], times, phase


def main() -> dict[str, float]:
    """Fit waves and look between the data; compare two ways to gradients."""
    rng = np.random.default_rng(0)
    x, times, _ = draw(rng, 4000)
    training = generative.Training(steps=1000, batch=64, learning_rate=1e-2, ema=0.99)
    family = generative.LatentODE(latent=3, width=24, solver=generative.HeunSteps(1))
    model = generative.fit(family, x, times, training=training, seed=0, progress=False)
    held, held_times, phase = draw(rng, 500)
    new = jnp.linspace(0.5, 3.5, 7)
    paths = jax.jit(
        jax.vmap(lambda key, x, t: model.given(t).forecast(key, x, new)[:, 0]),
    )(jax.random.split(jax.random.key(1), 500), held, held_times)
    truth = np.sin(2 * np.asarray(new) + phase[:, None])
    bounds = model.given(held_times).bound(jax.random.key(2), held)
    independent = -0.5 * (1 + np.log(2 * np.pi * held.var()))

    flow = generative.fit(generative.ContinuousFlow(width=8, depth=1), x[:200, :2, 0], training=SHORT, progress=False)

    def gradient(solver: generative.OdeSolver) -> np.ndarray:
        family = generative.ContinuousFlow(width=8, depth=1, training_solver=solver)
        data = jnp.asarray(x[:8, :2, 0], jnp.float32)
        slope = eqx.filter_grad(lambda net: family.loss(jax.random.key(0), net, data, None, NOW))(flow.net)
        return np.concatenate([np.ravel(a) for a in jax.tree.leaves(slope.net)])

    direct, adjoint = gradient(generative.AdaptiveSteps(1e-6)), gradient(generative.ContinuousAdjoint(1e-6))
    return {
        "error of the path at new times": float(np.sqrt(np.mean((np.asarray(paths) - truth) ** 2))),
        "error of guessing the mean": float(np.sqrt(np.mean(truth**2))),
        "bound beyond that of independent normals, nats per value": float(np.mean(bounds)) / STEPS - float(independent),
        "gradients by the adjoint and step by step, relative difference": float(
            np.linalg.norm(adjoint - direct) / np.linalg.norm(direct)
        ),
    }


SHORT = generative.Training(steps=20, batch=64, block=20)
NOW = generative.Now(jnp.zeros(()), None)

if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
