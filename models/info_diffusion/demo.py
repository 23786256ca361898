"""InfoDiffusion

Data of two factors in four dimensions: what codes say of the factors, and how well codes follow their prior.
"""

import jax
import numpy as np

import probgen.generative as pg

EXPECTED = {
    "factors explained by the codes": (0.85, 1.0),
    "factors explained, codes held by divergence alone": (-0.1, 0.6),
    "discrepancy of codes and prior": (-0.01, 0.03),
    "discrepancy without a penalty": (0.03, 2.0),
    "standard deviation of draws over that of data": (0.8, 1.2),
}


def explained(codes: np.ndarray, factors: np.ndarray) -> float:
    """Share of the variance of the factors that a linear map of the codes explains."""
    design = np.concatenate([codes, np.ones((len(codes), 1))], 1)
    rest = factors - design @ np.linalg.lstsq(design, factors, rcond=None)[0]
    return float(1 - rest.var() / factors.var())


def discrepancy(codes: np.ndarray) -> float:
    """Squared maximum mean discrepancy of codes and N(0, I), unbiased, of the kernel exp(-|z|^2 / 4)."""
    other = np.random.default_rng(9).normal(size=codes.shape)
    gram = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 4)  # noqa: E731
    within = sum((gram(a, a).sum() - len(a)) / len(a) / (len(a) - 1) for a in (codes, other))
    return float(within - 2 * gram(codes, other).mean())


def main() -> dict[str, float]:
    """The numbers of the page."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(4096, 2))
    mixed = factors @ np.array([[1.0, 0.5, -0.5, 1.0], [0.5, -1.0, 1.0, 0.5]])
    x = mixed + 0.3 * np.tanh(mixed[:, ::-1]) + 0.1 * rng.normal(size=(4096, 4))
    training = pg.Training(steps=750, batch=128, learning_rate=3e-3, validation=0.0, ema=0.99, block=250)
    laws = {
        "held": pg.GaussianCode(2, divergence=0.001, discrepancy=3.0),
        "free": pg.GaussianCode(2, divergence=0.0, discrepancy=0.0),
        "closed": pg.GaussianCode(2, divergence=1.0, discrepancy=0.0),
    }
    models = {
        name: pg.fit(pg.CodedDiffusion(law, pg.Diffusion(width=48, depth=2), width=48), x, training=training)
        for name, law in laws.items()
    }
    codes = {name: np.asarray(model.encode(x)) for name, model in models.items()}
    found = {
        "factors explained by the codes": explained(codes["held"], factors),
        "factors explained, codes held by divergence alone": explained(codes["closed"], factors),
        "discrepancy of codes and prior": discrepancy(codes["held"][:1500]),
        "discrepancy without a penalty": discrepancy(codes["free"][:1500]),
    }
    draws = np.asarray(jax.jit(lambda m, k: m.sample(k, (1000,)))(models["held"], jax.random.key(0)))
    found["standard deviation of draws over that of data"] = float(np.mean(draws.std(0) / x.std(0)))
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
