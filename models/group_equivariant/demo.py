"""Group-equivariant posteriors

A damped oscillation with an unknown onset: brought to its onset, all of them look alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import probgen as pg
from probgen import generative as gm
from probgen.program.density import Density

jax.config.update("jax_enable_x64", True)

EXPECTED = {
    "error of the onset, plain": (0.1, 1.0),
    "error of the onset, equivariant": (0.005, 0.1),
    "error of the log frequency, plain": (0.02, 0.3),
    "error of the log frequency, equivariant": (0.005, 0.1),
    "plain over equivariant, onset": (2.0, 50.0),
}

TIMES = np.linspace(0.0, 12.0, 49)
NOISE = 0.05
TRAINING = gm.Training(steps=600, batch=128)
SMALL = {"width": 64, "depth": 2, "training": TRAINING}
SIMULATIONS = 2000


def oscillator(x=None):
    onset = numpyro.sample("onset", dist.Normal(5.0, 1.5))
    frequency = jnp.exp(numpyro.sample("log_frequency", dist.Normal(1.0, 0.3)))
    since = TIMES - onset
    signal = jnp.where(since > 0, jnp.exp(-0.4 * since) * jnp.sin(frequency * since), 0.0)
    numpyro.sample("x", dist.Normal(signal, NOISE).to_event(1), obs=x)


class InTime(pg.amortized.Group):
    """Series that begin later, by linear interpolation; what comes in at an end is what was there."""

    def act(self, observed, shift):
        return {"x": jnp.interp(TIMES - shift[0], TIMES, observed["x"])}


def errors(amortized, simulated):
    """Root mean square errors of posterior means of the onset and of the log frequency, over data sets."""
    draw = jax.jit(lambda key, law: law.sample(key, (64,)).mean(0))
    found = []
    for i, x in enumerate(simulated["x"]):
        law = amortized.given(Density(pg.Model(oscillator, {"x": x})))
        found.append(draw(jax.random.key(i), law))
    names = amortized.question.blocks
    truth = np.stack([simulated[name] for name, _ in names], 1)
    rms = np.sqrt(np.mean((np.asarray(found) - truth) ** 2, 0))
    return {name: float(e) for (name, _), e in zip(names, rms, strict=True)}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    onset, log_frequency = 5.0 + 1.5 * rng.normal(size=24), 1.0 + 0.3 * rng.normal(size=24)
    since = TIMES - onset[:, None]
    signal = np.where(since > 0, np.exp(-0.4 * since) * np.sin(np.exp(log_frequency)[:, None] * since), 0.0)
    simulated = {"onset": onset, "log_frequency": log_frequency, "x": signal + NOISE * rng.normal(size=signal.shape)}
    plain = pg.amortize(pg.Model(oscillator), ["x"], pg.FlowMatching(**SMALL), SIMULATIONS)
    posed = pg.amortize(
        pg.Model(oscillator), ["x"], pg.GNPE(group=InTime(("onset",), 0.3), steps=8, **SMALL), SIMULATIONS
    )
    before, after = errors(plain, simulated), errors(posed, simulated)
    return {
        "error of the onset, plain": before["onset"],
        "error of the onset, equivariant": after["onset"],
        "error of the log frequency, plain": before["log_frequency"],
        "error of the log frequency, equivariant": after["log_frequency"],
        "plain over equivariant, onset": before["onset"] / after["onset"],
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
