"""What became of truncated rounds: which observation they were about, and what each of them kept of the prior."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part

__all__ = ["Truncation"]


class Truncation(Part):
    """How far a prior was cut off around one observation.

    Attributes:
        observation: The packed observation, shape ``(reading.size,)``.
        simulated: How many simulations each round made.
        acceptance: By round, the share of the candidates for its parameters that were kept.
        prior_mass: By round, the share of the prior that it drew from.
        leaked: Share of the last estimate outside of the region that it was trained in.
    """

    observation: Array
    simulated: tuple[int, ...] = eqx.field(static=True)
    acceptance: tuple[float, ...] = eqx.field(static=True)
    prior_mass: tuple[float, ...] = eqx.field(static=True)
    leaked: float = eqx.field(static=True)

    def check(self, packed: Array) -> None:
        """Raise ``MethodError`` for another observation, shape ``(reading.size,)``."""
        if not np.array_equal(np.asarray(packed), np.asarray(self.observation)):
            raise MethodError(
                "the observation is another than the one that the rounds of simulations closed in on, and the posterior was "
                "learned near that one only. Ask about that one, or amortize with simulations=10_000, for any observation."
            )

    def described(self) -> dict[str, Any]:
        """For the attributes of a result."""
        return {
            "rounds": len(self.simulated),
            "simulated": sum(self.simulated),
            "round_acceptance": list(self.acceptance),
            "round_prior_mass": list(self.prior_mass),
            "outside_truncated_prior": self.leaked,
        }
