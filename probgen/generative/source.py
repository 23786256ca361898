"""Sources: the laws in which flows and bridges begin, in the standard units of the data."""

from __future__ import annotations

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Spec
from probgen.generative.standardisation import Standardisation

__all__ = ["NearCondition", "NormalSource", "Samples", "Source"]


class Source(Part):
    """A law to begin in."""

    has_density: ClassVar[bool] = True
    """Whether it has a density, and is a map of standard normal noise."""
    follows_condition: ClassVar[bool] = False
    """Whether it depends on the condition: then a start belongs to its datum, and no coupling may exchange starts."""

    def check(self, spec: Spec) -> None:
        """Raise ``MethodError`` or ``DataError`` if it does not fit the data."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, units: Standardisation, condition: Array | None) -> Array:
        """One start, in standard units.

        Args:
            key: Randomness.
            units: Those of the data.
            condition: One condition, or ``None``.
        """

    def push(self, z: Array, units: Standardisation, condition: Array | None) -> Array:
        """The start that standard normal noise ``z`` is mapped to."""
        raise NotImplementedError

    def log_density(self, x: Array, units: Standardisation, condition: Array | None) -> Scalar:
        """Log density of a start, in standard units."""
        raise NotImplementedError


class NormalSource(Source):
    """Standard normal noise."""

    def draw(self, key: PRNGKey, units: Standardisation, condition: Array | None) -> Array:
        loc = units.loc.value
        return jax.random.normal(key, loc.shape, loc.dtype)

    def push(self, z: Array, units: Standardisation, condition: Array | None) -> Array:
        return z

    def log_density(self, x: Array, units: Standardisation, condition: Array | None) -> Scalar:
        return jnp.sum(jax.scipy.stats.norm.logpdf(x))


class Samples(Source):
    """The rows of a data set, drawn with replacement: what is transported need not be noise.

    Attributes:
        values: The rows, in the units of the data, shape ``(n, *shape)``.
    """

    has_density: ClassVar[bool] = False

    values: Array = eqx.field(converter=lambda v: jnp.asarray(v, jnp.float32))

    def check(self, spec: Spec) -> None:
        if self.values.ndim < 1 or self.values.shape[1:] != spec.shape or not len(self.values):
            raise DataError(
                f"the source has values of shape {self.values.shape}, but a datum has shape {spec.shape}. Give an array of "
                f"shape (n, {', '.join(map(str, spec.shape))})."
            )
        if not np.isfinite(np.asarray(self.values)).all():
            raise DataError("the source has values that are not finite. Drop those rows.")

    def draw(self, key: PRNGKey, units: Standardisation, condition: Array | None) -> Array:
        return units.inward(self.values[jax.random.randint(key, (), 0, self.values.shape[0])])


class NearCondition(Source):
    r"""The condition itself plus noise: a base correlated with its datum (Albergo et al. 2024), for conditions that are
    degraded data (blurred, masked, of low resolution) of the same shape and units.

    In standard units :math:`x_b = u(c) + s \odot z`, where :math:`u` takes data to standard units.

    Attributes:
        scale: Noise added, in standard units: a number, or one per entry as nested tuples; 0 for entries that the
            condition fixes, and then the law has no density.
    """

    follows_condition: ClassVar[bool] = True

    scale: float | tuple = eqx.field(static=True, default=0.5)

    @property
    def has_density(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return bool(np.all(np.asarray(self.scale) > 0))

    def check(self, spec: Spec) -> None:
        scale = np.asarray(self.scale, float)
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise MethodError(f"NearCondition got scale={self.scale!r}, expected numbers >= 0. Use scale=0.5.")
        if spec.condition != spec.shape:
            raise DataError(
                f"NearCondition starts from the condition, which has shape {spec.condition}, but a datum has shape "
                f"{spec.shape}. Give as condition the degraded datum, upsampled or filled to the shape of a datum."
            )
        if scale.shape not in ((), spec.shape):
            raise MethodError(f"NearCondition has scales of shape {scale.shape}, expected () or {spec.shape}.")

    def draw(self, key: PRNGKey, units: Standardisation, condition: Array | None) -> Array:
        loc = units.loc.value
        return self.push(jax.random.normal(key, loc.shape, loc.dtype), units, condition)

    def push(self, z: Array, units: Standardisation, condition: Array | None) -> Array:
        assert condition is not None
        return units.inward(condition) + jnp.asarray(self.scale, z.dtype) * z

    def log_density(self, x: Array, units: Standardisation, condition: Array | None) -> Scalar:
        assert condition is not None
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, units.inward(condition), jnp.asarray(self.scale, x.dtype)))
