"""Data tempering: the log likelihood in terms, one per batch of observations."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from probgen.base.errors import MethodError
from probgen.base.typing import Position
from probgen.kernels.moves import Point
from probgen.program.density import Density
from probgen.program.sites import Kind

__all__ = ["DataTempering"]


@dataclasses.dataclass(frozen=True)
class DataTempering:
    """Bring the observations in one batch after another, instead of all by degrees.

    The observed sites must have the observations along their leading axis, all the same number of them; they are taken
    in that order. After each batch the particles are those of a posterior of part of the data, and the log evidence is
    that of that part. The program runs on all data at each evaluation, so a posterior of few observations costs as much
    as that of all.

    Args:
        batch: Observations per batch.
    """

    batch: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise MethodError(f"batch must be an int of at least 1, got {self.batch!r}. Give batch=1.")

    def observations(self, density: Density) -> int:
        """How many observations there are.

        Raises:
            MethodError: If they are not along the leading axis of each observed site.
        """
        factors = density.model.of_kind(Kind.factor)
        if factors:
            raise MethodError(
                f"site {factors[0].name!r} is a numpyro.factor, which belongs to no single observation. Write it as an "
                f"observed site, or temper the whole likelihood: leave path out."
            )
        shapes = jax.eval_shape(density.pointwise_log_likelihood, jnp.zeros(density.dim))
        for name, value in shapes.items():
            if not value.shape:
                raise MethodError(
                    f"site {name!r} is one observation, and DataTempering takes them one after another. Put it into a "
                    f"plate, or leave path out."
                )
        counts = {value.shape[0] for value in shapes.values()}
        if len(counts) != 1:
            told = ", ".join(f"{name} {value.shape[0]}" for name, value in shapes.items()) or "none"
            raise MethodError(
                f"DataTempering needs the same number of observations along the leading axis of each observed site, "
                f"got {told}. Leave path out."
            )
        return counts.pop()

    def terms(self, density: Density) -> int:
        """Number of batches."""
        return -(-self.observations(density) // self.batch)

    def evaluate(self, density: Density, u: Position) -> Point:
        """The density at ``u``, one term per batch."""
        pointwise = density.pointwise_log_likelihood(u).values()
        each = sum((jnp.sum(value.reshape(value.shape[0], -1), 1) for value in pointwise), jnp.zeros(()))
        short = -each.shape[0] % self.batch
        terms = jnp.sum(jnp.concatenate([each, jnp.zeros(short, each.dtype)]).reshape(-1, self.batch), 1)
        return Point(u, density.log_prior(u), terms)
