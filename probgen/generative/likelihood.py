"""Likelihoods: how a datum scatters about what a decoder says of it."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.generative.family import Spec
from probgen.generative.standardisation import Standardisation
from probgen.nets import Constant

__all__ = ["BernoulliLikelihood", "CategoricalLikelihood", "GaussianLikelihood", "Likelihood", "mean_of"]


class Likelihood(Part):
    """The law of a datum given the outputs of a decoder."""

    discrete: ClassVar[bool]
    """Whether the data are integers."""

    def check(self, spec: Spec) -> None:
        """Raise ``MethodError`` or ``DataError`` for settings that make no sense, or not for these data."""

    def outputs(self, spec: Spec) -> int:
        """How many numbers a decoder gives."""
        return math.prod(spec.shape)

    def noise(self, spec: Spec) -> Any:
        """What the likelihood itself learns, at its start."""
        return None

    def adapted(self, noise: Any, x: Array) -> Any:
        """The same after a look at the data, shape ``(n, *spec.shape)``."""
        return noise

    @abc.abstractmethod
    def features(self, x: Array, units: Standardisation, spec: Spec) -> Array:
        """A datum as a vector, for an encoder."""

    def features_size(self, spec: Spec) -> int:
        """Length of that vector."""
        return math.prod(spec.shape)

    @abc.abstractmethod
    def law(self, outputs: Array, noise: Any, units: Standardisation, spec: Spec) -> dist.Distribution:
        """The law of a datum, a distribution with the event shape of the data.

        Args:
            outputs: Of a decoder, shape ``(..., outputs(spec))``.
            noise: What the likelihood learned.
            units: Units of the data.
            spec: Shapes of the data.
        """


def _shaped(outputs: Array, spec: Spec) -> Array:
    return outputs.reshape(*outputs.shape[:-1], *spec.shape)


class GaussianLikelihood(Likelihood):
    """Real data with normal noise around the decoder's mean.

    Attributes:
        scale: Standard deviation of the noise, in units of the data; ``None`` to learn it.
        shared: Whether all entries have the same noise.
    """

    scale: float | None = eqx.field(static=True, default=None)
    shared: bool = eqx.field(static=True, default=True)

    discrete: ClassVar = False

    def check(self, spec: Spec) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise MethodError(
                f"GaussianLikelihood got scale={self.scale!r}, expected a positive number, or None to learn it."
            )

    def noise(self, spec: Spec) -> Any:
        """The logarithm of the standard deviation."""
        if self.scale is not None:
            return Constant(jnp.full((), math.log(self.scale), jnp.float32))
        return jnp.zeros(() if self.shared else spec.shape, jnp.float32)

    def adapted(self, noise: Any, x: Array) -> Any:
        if self.scale is not None:
            return noise
        variance = x.var(0) if not self.shared else jnp.mean(x.var(0))
        return jnp.where(variance > 0, 0.5 * jnp.log(jnp.where(variance > 0, variance, 1.0)), 0.0)

    def features(self, x: Array, units: Standardisation, spec: Spec) -> Array:
        return units.inward(x).reshape(-1)

    def law(self, outputs: Array, noise: Any, units: Standardisation, spec: Spec) -> dist.Distribution:
        log_scale = noise.value if isinstance(noise, Constant) else noise
        loc = units.outward(_shaped(outputs, spec))
        return dist.Normal(loc, jnp.broadcast_to(jnp.exp(log_scale), loc.shape)).to_event(len(spec.shape))


class BernoulliLikelihood(Likelihood):
    """Entries 0 or 1, independent given the latent variable; the decoder gives log odds."""

    discrete: ClassVar = True

    def check(self, spec: Spec) -> None:
        if spec.values > 2:
            raise DataError(
                f"the data have {spec.values} values, and BernoulliLikelihood is for 0 and 1. Use "
                f"CategoricalLikelihood()."
            )

    def features(self, x: Array, units: Standardisation, spec: Spec) -> Array:
        return 2 * x.reshape(-1).astype(jnp.float32) - 1

    def law(self, outputs: Array, noise: Any, units: Standardisation, spec: Spec) -> dist.Distribution:
        return dist.BernoulliLogits(_shaped(outputs, spec)).to_event(len(spec.shape))


class CategoricalLikelihood(Likelihood):
    """Entries ``0 .. values - 1``, independent given the latent variable; the decoder gives log weights."""

    discrete: ClassVar = True

    def outputs(self, spec: Spec) -> int:
        return math.prod(spec.shape) * spec.values

    def features(self, x: Array, units: Standardisation, spec: Spec) -> Array:
        return jax.nn.one_hot(x.reshape(-1), spec.values, dtype=jnp.float32).reshape(-1)

    def features_size(self, spec: Spec) -> int:
        return math.prod(spec.shape) * spec.values

    def law(self, outputs: Array, noise: Any, units: Standardisation, spec: Spec) -> dist.Distribution:
        logits = outputs.reshape(*outputs.shape[:-1], *spec.shape, spec.values)
        return dist.CategoricalLogits(logits).to_event(len(spec.shape))


def mean_of(law: dist.Distribution) -> Array:
    """The mean of a law that a likelihood gave; for categories their probabilities, along a last axis."""
    base = law.base_dist if isinstance(law, dist.Independent) else law
    return jnp.asarray(base.probs if isinstance(base, dist.CategoricalLogits) else base.mean)
