r"""A conditional family that reads its conditions through a network of its own, trained with it.

With :math:`e(x)` what an encoder makes of an observation, the inner family learns the law of the residual

.. math:: r = L^{-1} (u - A\, e_0(x) - b)

of the best linear prediction from the numbers of the observation (ridge regression on the simulations; :math:`L` is the
Cholesky factor of the residual covariance), given :math:`e(x)`. What is linear and Gaussian is thus solved before training
begins, the network is left with the rest, and the result does not change when parameters are rescaled or mixed linearly.
The map is affine with constant determinant, so a density stays a density.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.amortized.encoder import EncoderNet, ObservationEncoder
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets.constant import Constant

__all__ = ["Encoded", "LearnedEncoded"]

_RIDGE = 1e-3


class Prediction(eqx.Module):
    """The linear prediction of parameters, and the scales of what it leaves.

    Attributes:
        slope: ``A``, shape ``(dim, numbers)``.
        offset: ``b``, shape ``(dim,)``.
        root: ``L``, shape ``(dim, dim)``, lower triangular.
    """

    slope: Constant
    offset: Constant
    root: Constant

    def __init__(self, dim: int, numbers: int) -> None:
        self.slope = Constant(jnp.zeros((dim, numbers), jnp.float32))
        self.offset = Constant(jnp.zeros(dim, jnp.float32))
        self.root = Constant(jnp.eye(dim, dtype=jnp.float32))

    def adapted(self, u: Array, numbers: Array) -> Prediction:
        """Fitted to parameters, shape ``(n, dim)``, and numbers, shape ``(n, numbers)``."""
        # In 64 bits where there are any: the normal equations square the condition number.
        u, numbers = u.astype(float), numbers.astype(float)
        scale = jnp.where(u.std(0) > 0, u.std(0), 1.0)
        loc, centre = u.mean(0), numbers.mean(0)
        target, given = (u - loc) / scale, numbers - centre
        gram = given.T @ given / len(u) + _RIDGE * jnp.eye(given.shape[1])
        slope = jnp.linalg.solve(gram, given.T @ target / len(u)).T
        rest = target - given @ slope.T
        covariance = rest.T @ rest / len(u) + 1e-9 * jnp.eye(u.shape[1])
        slope, root = scale[:, None] * slope, scale[:, None] * jnp.linalg.cholesky(covariance)
        new = (slope, loc - slope @ centre, root)
        return eqx.tree_at(
            lambda p: (p.slope.value, p.offset.value, p.root.value), self, tuple(a.astype(jnp.float32) for a in new)
        )

    def inward(self, u: Array, numbers: Array) -> Array:
        """From parameters to residuals, shape ``(dim,)``."""
        rest = u - self.slope.value @ numbers - self.offset.value
        return jax.scipy.linalg.solve_triangular(self.root.value.astype(rest.dtype), rest, lower=True)

    def outward(self, rest: Array, numbers: Array) -> Array:
        """From residuals to parameters."""
        return self.root.value @ rest + self.slope.value @ numbers + self.offset.value

    def log_det(self) -> Scalar:
        """Log determinant of ``inward``."""
        return -jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.root.value))))


class EncodedNet(eqx.Module):
    """Encoder, linear prediction, and the network of the inner family."""

    encoder: EncoderNet
    prediction: Prediction
    inner: Any


@eqx.filter_jit
def _adapted(
    key: PRNGKey, encoder: ObservationEncoder, net: EncodedNet, x: Array, condition: Array
) -> tuple[EncoderNet, Prediction, Array, Array]:
    """Encoder and prediction in the units of the simulations; the residuals and embeddings of these."""
    reader = encoder.referenced(key, net.encoder.adapted(condition), condition)
    numbers = jax.vmap(reader.numbers)(condition)
    prediction = net.prediction.adapted(x, numbers)
    return reader, prediction, jax.vmap(prediction.inward)(x, numbers), jax.vmap(reader)(condition)


class Encoded(Family):
    """A family of parameters given observations.

    Attributes:
        family: The conditional family of the residuals.
        encoder: What reads the observations, packed vectors of its reading.
    """

    family: Family
    encoder: ObservationEncoder

    def _inner(self, spec: Spec) -> Spec:
        return dataclasses.replace(spec, condition=(self.encoder.size,))

    def check(self, spec: Spec) -> None:
        self.encoder.check()
        self.encoder.question.check()
        self.family.check(self._inner(spec))

    def build(self, key: PRNGKey, spec: Spec) -> EncodedNet:
        key_encoder, key_inner = jax.random.split(key)
        encoder = self.encoder.build(key_encoder)
        prediction = Prediction(spec.shape[0], self.encoder.numbers)
        return EncodedNet(encoder, prediction, self.family.build(key_inner, self._inner(spec)))

    def adapt(self, key: PRNGKey, net: EncodedNet, x: Array, condition: Array | None) -> EncodedNet:
        assert condition is not None
        key_reference, key_inner = jax.random.split(key)
        encoder, prediction, rest, embedded = _adapted(key_reference, self.encoder, net, x, condition)
        return EncodedNet(encoder, prediction, self.family.adapt(key_inner, net.inner, rest, embedded))

    def loss(self, key: PRNGKey, net: EncodedNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None
        key_hide, key_loss = jax.random.split(key)
        condition = jax.vmap(self.encoder.hide)(jax.random.split(key_hide, len(condition)), condition)
        rest = jax.vmap(net.prediction.inward)(x, jax.vmap(net.encoder.numbers)(condition))
        return self.family.loss(
            key_loss, net.inner, rest, jax.vmap(net.encoder)(condition), now._replace(average=now.average.inner)
        )

    def distribution(self, net: EncodedNet, spec: Spec) -> LearnedEncoded:
        return LearnedEncoded(self, spec, net)


class LearnedEncoded(Learned):
    """The law of parameters given an observation (a packed vector of the reading)."""

    family: Encoded
    net: EncodedNet

    @property
    def offers(self) -> dict[str, Exactness]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the inner family offers of a law in other units."""
        inner = self._inner().offers
        return {name: inner[name] for name in ("sample", "log_prob", "noise_map") if name in inner}

    def _inner(self) -> Learned:
        return self.family.family.distribution(self.net.inner, self.family._inner(self.spec))

    @property
    def residual(self) -> Learned:
        """The law of the residual given the observation, which is read once for all its points."""
        return self._inner().given(self.net.encoder(self._observation))

    @property
    def _observation(self) -> Array:
        assert self.condition is not None
        return self.condition

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self._inner().noise_shape

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """See ``Learned.sample``."""
        self._ready("sample")
        if self.batch_shape:
            return super().sample(key, sample_shape)
        # The observation is read once, not once per draw.
        rest = self.residual.sample(key, sample_shape)
        return jax.vmap(self._outward)(rest.reshape(-1, *self.event_shape)).reshape(rest.shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """See ``Learned.log_prob``."""
        self._ready("log_prob")
        if self.batch_shape:
            return super().log_prob(value)
        numbers, residual = self.net.encoder.numbers(self._observation), self.residual
        flat = jnp.asarray(value).reshape(-1, *self.event_shape)
        rest = jax.vmap(lambda u: self.net.prediction.inward(u, numbers))(flat)
        found = residual.log_prob(rest) + self.net.prediction.log_det()
        return found.reshape(jnp.shape(value)[:-1])

    def draw(self, key: PRNGKey) -> Array:
        return self._outward(self.residual.draw(key))

    def push(self, z: Array) -> Array:
        return self._outward(self.residual.push(z))

    def density(self, x: Array) -> Scalar:
        numbers = self.net.encoder.numbers(self._observation)
        return self.residual.density(self.net.prediction.inward(x, numbers)) + self.net.prediction.log_det()

    def _outward(self, rest: Array) -> Array:
        return self.net.prediction.outward(rest, self.net.encoder.numbers(self._observation))
