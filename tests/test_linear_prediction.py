"""What is linear and Gaussian is solved before training begins: the prediction of parameters from entries."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import probgen as pg
from probgen.amortized.encoded import Prediction
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.simulations import simulate_pairs
from probgen.amortized.task import exchangeable, observing, question_of, read
from probgen.program.enumerated import density_of

COUNT = 8000


def normal(x=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)


def test_a_gaussian_posterior_is_predicted_without_bias():
    """Means at observations of new parameters, in posterior deviations. Regression on k = 6 numbers leaves an error with a
    mean square of (1 + k) / n, and at most three times that at these observations; the part that the same observations
    share with a bent scale (0.13 in ten dimensions, were entries only bent) is far above."""
    model, names = observing(pg.Model(normal), ["x"], jax.random.key(0))
    density = density_of(model)
    made = simulate_pairs(jax.random.key(1), density, COUNT, names)
    reading, packed = read(density, made, names, exchangeable(density, names, made))
    encoder = ObservationEncoder(question_of(density, reading, made, 0.0, {}))
    reader = encoder.build(jax.random.key(2)).adapted(jnp.asarray(packed))
    numbers = jax.jit(jax.vmap(reader.numbers))(packed)
    prediction = Prediction(3, encoder.numbers).adapted(jnp.asarray(made.u), numbers)
    x = np.random.default_rng(0).normal(size=(500, 3)) * np.sqrt(2.0)
    at = jax.vmap(lambda x: prediction.whitening(reader.numbers(reading.pack({"x": x}, {}))).inward(x / 2))(x)
    errors = np.asarray(at)
    assert np.sqrt((errors**2).mean()) < np.sqrt(3 * 7 / COUNT)
    np.testing.assert_allclose(
        np.abs(np.diag(np.asarray(prediction.root.value))), np.sqrt(0.5), rtol=5 / np.sqrt(2 * COUNT)
    )
