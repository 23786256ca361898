"""What every generative family promises: its distribution does what it says that it has, refuses the rest, is a NumPyro
distribution in programs, and is the same after saving and loading. Whether the numbers are right, each family's own
tests say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen import generative as gm
from probgen.generative import Exactness, Family, Learned, Training

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(120, 2))
WHOLE = RNG.integers(0, 3, (120, 4))
BINARY = RNG.integers(0, 2, (120, 4))
BRIEF = Training(steps=2, batch=30, block=1)
ABILITIES = {"sample", "log_prob", "bound", "noise_map", "score", "velocity", "conditional", "marginal", "energy"}

SMALL = gm.VAE(gm.BernoulliLikelihood(), latent=1, encoder=gm.Amortised(depth=0), depth=0)

CASES: dict[str, tuple[Family, Any]] = {
    "Flow": (gm.Flow(count=2, width=8), REAL),
    "Diffusion": (gm.Diffusion(width=8, depth=1, sampling_steps=4), REAL),
    "FlowMatching": (gm.FlowMatching(width=8, depth=1), REAL),
    "StochasticInterpolant": (gm.StochasticInterpolant(width=8, depth=1), REAL),
    "Consistency": (gm.Consistency(width=8, depth=1), REAL),
    "ConsistencyTrajectory": (gm.ConsistencyTrajectory(width=8, depth=1), REAL),
    "ContinuousFlow": (gm.ContinuousFlow(width=8, depth=1), REAL),
    "MixtureDensity": (gm.MixtureDensity(components=2, width=8, depth=1), REAL),
    "PoissonFlow": (gm.PoissonFlow(width=8, depth=1, sampling_steps=4), REAL),
    "VAE": (gm.VAE(latent=2), REAL),
    "CoupledMixture": (gm.CoupledMixture(categories=3, state=1, width=8), REAL),
    "GraphVAE": (gm.GraphVAE(latent=2, width=4), np.asarray([[[0, 1, 0], [1, 0, 2], [0, 2, 0]]])),
    "SelfSupervisedVAE": (gm.SelfSupervisedVAE((SMALL, SMALL)), BINARY.reshape(-1, 2, 2)),
    "StructuredVAE": (gm.StructuredVAE(gm.LinearDynamics(2), depth=0), REAL.reshape(-1, 3, 2)),
    "GAN": (gm.GAN(width=8), REAL),
    "IdempotentNetwork": (gm.IdempotentNetwork(width=8, depth=1), REAL),
    "ConditionalTransport": (gm.ConditionalTransport(width=8, depth=1), REAL),
    "EntropicTransport": (gm.EntropicTransport(width=8, depth=1, moves=3), REAL),
    "PhaseBridge": (gm.PhaseBridge(width=8, depth=1, steps=4), REAL),
    "MultivariateDiffusion": (gm.MultivariateDiffusion(width=8, depth=1, sampling_steps=4), REAL),
    "AbsorbingDiffusion": (gm.AbsorbingDiffusion(width=8, depth=1), WHOLE),
    "AnySubset": (gm.AnySubset(width=8, depth=1, heads=2), WHOLE),
    "BayesianFlow": (gm.BayesianFlow(width=8, depth=1, steps=4), WHOLE),
    "Blackout": (gm.Blackout(width=8, depth=1, steps=4), WHOLE),
    "BornMachine": (gm.BornMachine(bond=3), WHOLE),
    "ChowLiu": (gm.ChowLiu(), WHOLE),
    "Circuit": (gm.Circuit(states=3, epochs=1), WHOLE),
    "D3PM": (gm.D3PM(steps=4, width=8, depth=1), WHOLE),
    "DequantizedFlow": (gm.DequantizedFlow(), WHOLE),
    "Glauber": (gm.Glauber(sweeps=2, width=8, depth=1), WHOLE),
    "IntegralCircuit": (gm.IntegralCircuit(points=4), WHOLE),
    "MarginalModel": (gm.MarginalModel(width=8, depth=1), BINARY),
    "StepUnrolled": (gm.StepUnrolled(width=8, depth=1, steps=4), WHOLE),
}
FAST = {"Diffusion", "Circuit"}
"""The others take minutes to compile, all together."""


@pytest.fixture(scope="module", params=[n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def model(request):
    family, data = CASES[request.param]
    return gm.fit(family, data, training=BRIEF, seed=1, values=int(data.max()) + 1 if family.discrete else None)


def point(model):
    data = CASES[type(model.family).__name__][1]
    return jnp.asarray(data[0])


def test_it_says_what_it_has(model):
    assert isinstance(model, Learned)
    assert "sample" in model.offers
    assert set(model.offers) <= ABILITIES
    assert all(isinstance(how, Exactness) for how in model.offers.values())
    if "log_prob" in model.offers:
        assert model.offers["log_prob"] in (Exactness.exact, Exactness.ode)


def test_draws_lie_in_the_support_whatever_the_key(model):
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        draws = model.sample(key, (3,))
        assert draws.shape == (3, *model.event_shape)
        assert np.all(model.support(draws))
        np.testing.assert_array_equal(draws, model.sample(key, (3,)))
    assert model.sample(jax.random.key(1)).shape == model.event_shape
    drawn = jax.jit(lambda model, key: model.sample(key))(model, jax.random.key(1))
    np.testing.assert_allclose(drawn, model.sample(jax.random.key(1)), rtol=1e-4, atol=1e-5)


def test_it_has_what_it_says_and_refuses_the_rest(model):
    x, key, z = point(model), jax.random.key(0), jnp.zeros(model.noise_shape)
    calls = {
        "log_prob": lambda: model.log_prob(x),
        "bound": lambda: model.bound(key, x),
        "noise_map": lambda: model.noise_map(z),
        "score": lambda: model.score(x, 0.5),
        "velocity": lambda: model.velocity(x, 0.5),
        "conditional": lambda: model.conditional(x, np.arange(x.size).reshape(x.shape) == 0),
    }
    for name, call in calls.items():
        if name not in model.offers:
            with pytest.raises(pg.MethodError, match=f"has no {name}. It has"):
                call()
            continue
        found = jax.tree.leaves(call())
        assert found
        assert not any(np.isnan(leaf).any() for leaf in found), name
    for name in ("log_prob", "bound"):
        if name in model.offers:
            assert jnp.shape(calls[name]()) == ()


def test_it_stands_in_a_program(model):
    def program():
        with numpyro.plate("row", 3):
            x = numpyro.sample("x", model)
            numpyro.sample("y", dist.Normal(x.reshape(3, -1).sum(-1), 1.0))

    if np.issubdtype(point(model).dtype, np.integer) and "log_prob" not in model.offers:
        pytest.skip("a discrete model without a probability can only be sampled")
    drawn = pg.simulate(pg.Model(program), draws=5, seed=0)
    assert drawn["prior"]["x"].shape == (1, 5, 3, *model.event_shape)


def test_it_is_the_same_after_saving(model, tmp_path):
    gm.save(model, tmp_path / "model")
    again = gm.load(tmp_path / "model")
    key = jax.random.key(2)
    np.testing.assert_array_equal(again.sample(key, (2,)), model.sample(key, (2,)))
    assert again.offers == model.offers
