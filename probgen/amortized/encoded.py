r"""A conditional family that reads its conditions through a network of its own, trained with it.

With :math:`e(x)` what an encoder makes of an observation, the inner family learns the law of the residual

.. math:: r = L^{-1} (u - A\, e_0(x) - b)

of the best linear prediction from the numbers of the observation (ridge regression on the simulations; :math:`L` is the
Cholesky factor of the residual covariance), given :math:`e(x)`. What is linear and Gaussian is thus solved before training
begins, the network is left with the rest, and the result does not change when parameters are rescaled or mixed linearly.
The map is affine, so a density stays a density.

Where rows are read as a set, their number and design say how much is known of what, and one linear prediction cannot follow
that: a Gaussian that depends on the observation takes its place, the product of learned factors of the rows (see
``factor_posterior``), if it predicts the parameters of simulations better.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.amortized.amortized_family import AmortizedFamily
from probgen.amortized.encoder import EncoderNet, ObservationEncoder
from probgen.amortized.factor_posterior import LearnedFactors
from probgen.amortized.whitening import Whitening
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets.constant import Constant

if TYPE_CHECKING:
    from probgen.amortized.amortized import AmortizedPosterior

__all__ = ["Encoded", "LearnedEncoded", "gains"]

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

    def whitening(self, numbers: Array) -> Whitening:
        """The Gaussian of the parameters given numbers."""
        return Whitening(self.slope.value @ numbers + self.offset.value, self.root.value)

    def inward(self, u: Array, numbers: Array) -> Array:
        """From parameters to residuals, shape ``(dim,)``."""
        return self.whitening(numbers).inward(u)

    def outward(self, rest: Array, numbers: Array) -> Array:
        """From residuals to parameters."""
        return self.whitening(numbers).outward(rest)


class EncodedNet(eqx.Module):
    """Encoder, linear prediction, and the network of the inner family."""

    encoder: EncoderNet
    prediction: Prediction
    inner: Any


@eqx.filter_jit
def _adapted(
    key: PRNGKey, family: Encoded, net: EncodedNet, x: Array, condition: Array
) -> tuple[EncoderNet, Prediction, Array, Array]:
    """Encoder and prediction in the units of the simulations; the residuals and embeddings of these."""
    key_reference, key_hide = jax.random.split(key)
    encoder = family.encoder
    reader = encoder.referenced(key_reference, net.encoder.adapted(condition), condition)
    hidden = jax.vmap(encoder.hide)(jax.random.split(key_hide, len(condition)), condition)
    prediction = net.prediction.adapted(x, jax.vmap(reader.numbers)(hidden))
    net = EncodedNet(reader, prediction, net.inner)
    return reader, prediction, *jax.vmap(lambda u, c: family.residual(net, u, c))(x, hidden)


@eqx.filter_jit
def gains(key: PRNGKey, encoder: ObservationEncoder, gaussian: LearnedFactors, u: Array, condition: Array) -> Scalar:
    """How much higher the log density of parameters is on average under the product of factors than under the linear
    prediction, over simulations hidden in part as observations may be."""
    hidden = jax.vmap(encoder.hide)(jax.random.split(key, len(condition)), condition)
    numbers = jax.vmap(gaussian.net.reader.numbers)(hidden)
    linear = Prediction(u.shape[1], encoder.numbers).adapted(u, numbers)
    by_factors = jax.vmap(lambda u, c: gaussian.whitening(c).log_density(u))(u, hidden)
    return jnp.mean(by_factors - jax.vmap(lambda u, n: linear.whitening(n).log_density(u))(u, numbers))


class Encoded(AmortizedFamily):
    """A family of parameters given observations.

    Attributes:
        family: The conditional family of the residuals.
        encoder: What reads the observations, packed vectors of its reading.
        gaussian: What stands for the linear prediction, if anything.
        estimator: What it was made by, if not by hand.
    """

    family: Family
    encoder: ObservationEncoder
    gaussian: LearnedFactors | None = eqx.field(kw_only=True, default=None)
    estimator: str = eqx.field(static=True, kw_only=True, default="")

    def _inner(self, spec: Spec) -> Spec:
        size = self.encoder.size + (0 if self.gaussian is None else 2 * spec.shape[0])
        return dataclasses.replace(spec, condition=(size,))

    def whitening(self, net: EncodedNet, condition: Array) -> Whitening:
        """The Gaussian whose residual is learned, given a packed observation."""
        if self.gaussian is not None:
            return self.gaussian.whitening(condition)
        return net.prediction.whitening(net.encoder.numbers(condition))

    def embedded(self, net: EncodedNet, condition: Array, whitening: Whitening) -> Array:
        """What the inner family is given."""
        found = net.encoder(condition)
        if self.gaussian is None:
            return found
        return jnp.concatenate([found, self.gaussian.features(whitening).astype(found.dtype)])

    def residual(self, net: EncodedNet, u: Array, condition: Array) -> tuple[Array, Array]:
        """The residual of parameters given a packed observation, and what the inner family is given."""
        whitening = self.whitening(net, condition)
        return whitening.inward(u), self.embedded(net, condition, whitening)

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
        encoder, prediction, rest, embedded = _adapted(key_reference, self, net, x, condition)
        return EncodedNet(encoder, prediction, self.family.adapt(key_inner, net.inner, rest, embedded))

    def loss(self, key: PRNGKey, net: EncodedNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None
        key_hide, key_loss = jax.random.split(key)
        condition = jax.vmap(self.encoder.hide)(jax.random.split(key_hide, len(condition)), condition)
        rest, embedded = jax.vmap(lambda u, c: self.residual(net, u, c))(x, condition)
        return self.family.loss(key_loss, net.inner, rest, embedded, now._replace(average=now.average.inner))

    def distribution(self, net: EncodedNet, spec: Spec) -> LearnedEncoded:
        return LearnedEncoded(self, spec, net)

    def method(self, law: Learned) -> AmortizedPosterior:
        from probgen.amortized.amortized import AmortizedPosterior

        assert isinstance(law, LearnedEncoded)
        return AmortizedPosterior(law=law)


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
    def whitening(self) -> Whitening:
        """The Gaussian whose residual was learned, given the observation."""
        return self.family.whitening(self.net, self._observation)

    def residual(self, whitening: Whitening) -> Learned:
        """The law of the residual given the observation, which is read once for all its points."""
        return self._inner().given(self.family.embedded(self.net, self._observation, whitening))

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
        whitening = self.whitening
        rest = self.residual(whitening).sample(key, sample_shape)
        return jax.vmap(whitening.outward)(rest.reshape(-1, *self.event_shape)).reshape(rest.shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """See ``Learned.log_prob``."""
        self._ready("log_prob")
        if self.batch_shape:
            return super().log_prob(value)
        whitening = self.whitening
        flat = jnp.asarray(value).reshape(-1, *self.event_shape)
        found = self.residual(whitening).log_prob(jax.vmap(whitening.inward)(flat)) + whitening.log_det()
        return found.reshape(jnp.shape(value)[:-1])

    def draw(self, key: PRNGKey) -> Array:
        whitening = self.whitening
        return whitening.outward(self.residual(whitening).draw(key))

    def push(self, z: Array) -> Array:
        whitening = self.whitening
        return whitening.outward(self.residual(whitening).push(z))

    def density(self, x: Array) -> Scalar:
        whitening = self.whitening
        return self.residual(whitening).density(whitening.inward(x)) + whitening.log_det()
