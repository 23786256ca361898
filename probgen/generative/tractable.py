"""Learned distributions whose marginals and conditionals are exact."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import constraints

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import LearnedDiscrete
from probgen.generative.family import Family, Spec
from probgen.generative.learned import Exactness

__all__ = ["Tractable"]


def check_rows(family: Family, spec: Spec) -> None:
    """Raise ``MethodError`` unless data are rows of numbers, without conditions."""
    kind = type(family).__name__
    if spec.condition is not None:
        raise MethodError(
            f"{kind} is fitted without conditions. Put their entries into the data, and use model.conditional(x, mask) or "
            f"model.impute(key, x, mask): they are exact."
        )
    if len(spec.shape) != 1 or spec.shape[0] < 1:
        raise MethodError(
            f"{kind} models rows of entries, and one datum has shape {spec.shape}, expected (length,). Flatten images: "
            f"data.reshape(len(data), -1)."
        )


class Tractable(LearnedDiscrete):
    """A learned distribution with exact marginals of any set of entries, and exact draws of the others given them: of
    symbols, or, with ``spec.values`` 0, of real numbers.

    Subclasses give ``marginal_at``, ``impute_at`` and ``complete``; density and draws are special cases.
    """

    offers: ClassVar = {
        "log_prob": Exactness.exact,
        "sample": Exactness.exact,
        "marginal": Exactness.exact,
        "conditional": Exactness.exact,
    }

    @property
    def support(self) -> constraints.Constraint:
        return super().support if self.spec.values else constraints.independent(constraints.real, self.event_dim)

    @property
    def has_enumerate_support(self) -> bool:
        """Whether the rows can be listed."""
        return bool(self.spec.values) and super().has_enumerate_support

    def impute(self, key: PRNGKey, value: Array, mask: Array) -> Array:
        """Exact draws of the entries where ``mask`` is false, jointly given the others; the shape of ``value``."""
        value, mask = jnp.asarray(value), jnp.asarray(mask, bool)
        shape = jnp.broadcast_shapes(value.shape, mask.shape)
        keys = jax.random.split(key, shape[: len(shape) - self.event_dim])
        parts = (keys, 0), (value, self.event_dim), (mask, self.event_dim)
        return self.pointwise(lambda here, key, x, m: here.impute_at(key, x, m), *parts)

    def draw(self, key: PRNGKey) -> Array:
        blank = jnp.zeros(self.event_shape, int if self.spec.values else float)
        return self.impute_at(key, blank, jnp.zeros(self.event_shape, bool))

    def density(self, x: Array) -> Scalar:
        return self.marginal_at(x, jnp.ones(self.event_shape, bool))

    # -- for one point -------------------------------------------------------------------------------------------------

    def impute_at(self, key: PRNGKey, x: Array, mask: Array) -> Array:
        """See ``impute``."""
        raise NotImplementedError
