"""Linear multivariate diffusions: momenta, noise that turns, and matrices that are learned."""

import jax
import jax.numpy as jnp
import numpy as np

import probgen as pg

g = pg.generative

jax.config.update("jax_enable_x64", True)

EXPECTED: dict[str, tuple[float, float]] = {
    "violation of the stationary law, PSLD": (0.0, 1e-6),
    "violation of the stationary law, spatial": (0.0, 1e-6),
    # Means over 200 data; standard errors are about 0.2, and the gaps of exact denoisers about 0.001.
    "bound minus exact, PSLD [nats]": (-1.0, 1.0),
    "bound minus exact, spatial [nats]": (-1.0, 1.0),
    # 1000 draws, a standard error of 0.03; the ancestral steps lose a few per cent.
    "variance of draws over exact, PSLD": (0.8, 1.12),
    "variance of draws over exact, spatial": (0.8, 1.12),
    "bound gained by learning the matrices of a short path [nats]": (0.05, 10.0),
}


def main() -> dict[str, float]:
    """Numbers by name."""
    weights, means = np.array([0.4, 0.6]), np.array([[-1.0, 0.5], [0.8, 0.0]])
    law = g.GaussianMixture(weights, means, 0.1 * np.eye(2), g.VP())
    variance = 0.1 + weights @ means[:, 0] ** 2 - (weights @ means[:, 0]) ** 2
    draws, keys = jax.random.split(jax.random.key(0), (2, 200))
    x = jax.vmap(law.draw, (0, None))(draws, 0.0)
    exact = jax.vmap(law.log_density, (0, None))(x, 0.0)
    found = {}
    recipes = {"PSLD": g.phase_space(), "spatial": g.spatial(((2.0, 0.3), (0.3, 0.5)), ((0.0, 2.0), (-2.0, 0.0)))}
    for name, recipe in recipes.items():
        path, s = recipe.path(), jnp.asarray(recipe.stationary)
        residual = path.drift @ s + s @ path.drift.T + path.noise
        found[f"violation of the stationary law, {name}"] = float(jnp.abs(residual).max())
        rows = recipe.rows
        denoiser = g.LinearDenoiser(path, g.MixtureMean(law), 2 // rows)
        bound = jax.jit(jax.vmap(lambda key, x, d=denoiser, r=rows: d.bound(key, x.reshape(r, -1), 32)))(keys, x)
        found[f"bound minus exact, {name} [nats]"] = float(jnp.mean(bound - exact))
        times = path.times(150)
        draw = jax.jit(jax.vmap(lambda key, d=denoiser, t=times: d.sample(key, g.Ancestral(), t).reshape(-1)))
        draws = draw(jax.random.split(jax.random.key(1), 1000))
        found[f"variance of draws over exact, {name}"] = float(draws[:, 0].var() / variance)
    found["bound gained by learning the matrices of a short path [nats]"] = learned(law, x[:16])
    return found


def learned(law: g.GaussianMixture, x: jax.Array) -> float:
    """Learn D and Q by ascent of the bound, on a path that ends before the data are forgotten."""
    usual = g.phase_space()
    recipe = g.CompleteRecipe(usual.root, usual.skew, usual.stationary, usual.initial, end=0.3)

    def bound(matrices: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
        denoiser = g.LinearDenoiser(recipe.path(*matrices), g.MixtureMean(law), 2)
        keys = jax.random.split(key, len(x))
        return jnp.mean(jax.vmap(lambda key, x: denoiser.bound(key, x[None], 8))(keys, x))

    def step(matrices: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        slope = jax.grad(bound)(matrices, key)
        # Steps of one length: the bound is noisy.
        size = jnp.sqrt(sum(jnp.sum(part**2) for part in slope))
        return jax.tree.map(lambda m, s: m + 0.05 * s / size, matrices, slope), None

    begin = jnp.asarray(recipe.root), jnp.asarray(recipe.skew)
    run = jax.jit(lambda m, keys: jax.lax.scan(step, m, keys)[0])
    end = run(begin, jax.random.split(jax.random.key(2), 30))
    judge = jax.jit(lambda m: jnp.mean(jax.lax.map(lambda key: bound(m, key), jax.random.split(jax.random.key(3), 20))))
    return float(judge(end) - judge(begin))


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
