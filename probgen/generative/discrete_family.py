"""What all models of discrete data have in common: rows of symbols ``0 .. values - 1``."""

from __future__ import annotations

import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.family import Family, Spec
from probgen.generative.learned import Learned

__all__ = ["DiscreteFamily", "LearnedDiscrete"]

_LARGEST = 2**12


class DiscreteFamily(Family):
    """A family for rows of symbols; an entry that is not known is *blank*, written ``values``."""

    discrete: ClassVar[bool] = True

    def check(self, spec: Spec) -> None:
        """See ``Family.check``."""
        if len(spec.shape) != 1 or spec.shape[0] < 1:
            raise MethodError(
                f"{type(self).__name__} models rows of symbols, and one datum has shape {spec.shape}, expected (length,). "
                f"Flatten images: data.reshape(len(data), -1)."
            )
        for name in ("width", "depth", "steps"):
            value = getattr(self, name, 1)
            if value is not None and not is_count(value):
                raise MethodError(
                    f"{type(self).__name__} got {name}={value!r}, expected an int of at least 1. Change {name}."
                )


def given_size(spec: Spec) -> int:
    """Length of one condition, flat."""
    return int(np.prod(spec.condition)) if spec.condition is not None else 0


def log_shares(logits: Array) -> Array:
    """Scores as normalised log probabilities, in the precision of the program."""
    return jax.nn.log_softmax(logits.astype(jnp.result_type(float)), axis=-1)


class LearnedDiscrete(Learned):
    """A learned distribution of rows of symbols."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.spec.values - 1), self.event_dim)

    @property
    def has_enumerate_support(self) -> bool:
        """Whether the rows can be listed: there is a ``log_prob``, and there are at most 4096."""
        return "log_prob" in self.offers and self.spec.values ** self.spec.shape[0] <= _LARGEST

    def enumerate_support(self, expand: bool = True) -> Array:
        """All rows, shape ``(values**length, *batch_shape, length)``; without ``expand`` the batch axes are 1.

        Raises:
            MethodError: If there are more than 4096.
        """
        values, size = self.spec.values, self.spec.shape[0]
        if values**size > _LARGEST:
            raise MethodError(
                f"{values}^{size} rows are too many to be listed, at most {_LARGEST} are. Sample the site instead."
            )
        rows = np.array(list(itertools.product(range(values), repeat=size)), np.int32)
        rows = jnp.asarray(rows.reshape(len(rows), *[1] * len(self.batch_shape), size))
        return jnp.broadcast_to(rows, (len(rows), *self.batch_shape, size)) if expand else rows


def draw_symbols(key: PRNGKey, log_p: Array) -> Array:
    """One symbol per entry, shape ``(size,)``, from log probabilities, shape ``(size, values)``."""
    return jax.random.categorical(key, log_p, axis=-1).astype(jnp.int32)


def picked(log_p: Array, x: Array) -> Array:
    """The log probability of each entry of ``x``, shape ``(size,)``."""
    return jnp.take_along_axis(log_p, x[:, None], axis=-1)[:, 0]
