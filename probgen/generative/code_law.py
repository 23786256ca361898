r"""What the codes of a ``CodedDiffusion`` are: real vectors or a few symbols, and what keeps them in order."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Spec
from probgen.generative.latent_objective import mmd
from probgen.generative.learned import Exactness

__all__ = ["CodeLaw", "GaussianCode", "SymbolCode"]


class CodeLaw(Part):
    """How a code is made of what an encoder says."""

    offers: eqx.AbstractClassVar[Mapping[str, Exactness]]
    """What a model with such codes has without a model of them."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """Shape of a code."""

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Length of what the encoder says of one datum."""

    @property
    @abc.abstractmethod
    def features_size(self) -> int:
        """Length of what the denoiser is given of one code."""

    @abc.abstractmethod
    def relaxed(self, key: PRNGKey, said: Array) -> tuple[Array, Scalar]:
        """Features of random codes of a batch, differentiable, and the penalty of their law.

        Args:
            key: Randomness.
            said: By the encoder, shape ``(batch, outputs)``.
        """

    @abc.abstractmethod
    def decided(self, said: Array) -> Array:
        """The code of one datum."""

    @abc.abstractmethod
    def features(self, code: Array) -> Array:
        """What the denoiser is given of one code."""


class GaussianCode(CodeLaw):
    r"""Codes :math:`z \mid x \sim N(\mu(x), e^{\omega(x)})` with prior :math:`N(0, I)`, held to it by

    .. math:: \kappa\, E\, KL(q(z \mid x), p(z)) + \lambda\, D\bigl(E\, q(z \mid x), p(z)\bigr),

    where :math:`D` is the squared maximum mean discrepancy: it asks that codes follow the prior taken together, and so
    leaves them their information on the datum, which the divergence takes away.

    Attributes:
        size: Length of a code.
        divergence: The weight :math:`\kappa`.
        discrepancy: The weight :math:`\lambda`.
    """

    offers: ClassVar[Mapping[str, Exactness]] = {"noise_map": Exactness.ode, "sample": Exactness.ode}

    size: int = eqx.field(static=True, default=2)
    divergence: float = eqx.field(static=True, default=0.001)
    discrepancy: float = eqx.field(static=True, default=1.0)

    def check(self) -> None:
        if not is_count(self.size):
            raise MethodError(f"GaussianCode got size={self.size!r}, expected an int of at least 1.")
        if not (self.divergence >= 0 and self.discrepancy >= 0):
            raise MethodError(
                f"GaussianCode got divergence={self.divergence} and discrepancy={self.discrepancy}, expected >= 0."
            )

    @property
    def spec(self) -> Spec:
        return Spec((self.size,))

    @property
    def outputs(self) -> int:
        return 2 * self.size

    @property
    def features_size(self) -> int:
        return self.size

    def relaxed(self, key: PRNGKey, said: Array) -> tuple[Array, Scalar]:
        mean, log_variance = jnp.split(said, 2, -1)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, -1)
        return z, self.divergence * jnp.mean(divergence) + self.discrepancy * mmd(z)

    def decided(self, said: Array) -> Array:
        return said[: self.size]

    def features(self, code: Array) -> Array:
        return code


class SymbolCode(CodeLaw):
    """Codes of a few symbols, drawn in training with Gumbel noise: the denoiser is given the symbol, and the encoder the
    gradient of the softmax at a temperature (Jang, Gu and Poole 2017).

    They have no prior of their own: fit ``LatentModel(model, CodePrior())``.

    Attributes:
        number: Symbols of a code.
        values: Values of a symbol.
        temperature: Of the softmax.
    """

    offers: ClassVar[Mapping[str, Exactness]] = {}

    number: int = eqx.field(static=True, default=1)
    values: int = eqx.field(static=True, default=8)
    temperature: float = eqx.field(static=True, default=1.0)

    def check(self) -> None:
        for name, least in (("number", 1), ("values", 2)):
            value = getattr(self, name)
            if not is_count(value, least):
                raise MethodError(f"SymbolCode got {name}={value!r}, expected an int of at least {least}.")
        if not self.temperature > 0:
            raise MethodError(f"SymbolCode got temperature={self.temperature!r}, expected a positive number. Use 1.0.")

    @property
    def spec(self) -> Spec:
        return Spec((self.number,), values=self.values)

    @property
    def outputs(self) -> int:
        return self.number * self.values

    @property
    def features_size(self) -> int:
        return self.outputs

    def relaxed(self, key: PRNGKey, said: Array) -> tuple[Array, Scalar]:
        scores = said.reshape(-1, self.number, self.values)
        scores = scores + jax.random.gumbel(key, scores.shape, scores.dtype)
        soft = jax.nn.softmax(scores / self.temperature)
        hard = jax.nn.one_hot(jnp.argmax(scores, -1), self.values, dtype=scores.dtype)
        straight = soft + jax.lax.stop_gradient(hard - soft)
        return straight.reshape(len(said), -1), jnp.zeros((), said.dtype)

    def decided(self, said: Array) -> Array:
        return jnp.argmax(said.reshape(self.number, self.values), -1).astype(jnp.int32)

    def features(self, code: Array) -> Array:
        return jax.nn.one_hot(code, self.values, dtype=jnp.result_type(float)).reshape(-1)
