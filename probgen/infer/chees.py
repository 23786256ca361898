"""ChEES: Hamiltonian Monte Carlo for many chains, which find the trajectory length together."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.infer.method import KernelMethod, Need
from probgen.infer.settings import check_count, check_fraction, check_positive

__all__ = ["ChEES"]


class ChEES(KernelMethod):
    """Jittered Hamiltonian Monte Carlo with trajectory length and step size tuned across chains.

    Hoffman, Radul and Sountsov (2021). Made for many chains (16 to thousands) side by side: all take the same number
    of leapfrog steps, so none waits for another. The published method starts to tune where the chains start; here
    each chain first comes to the posterior by itself during the first half of the warm-up, and a metric from the
    draws of all of them whitens the posterior. At least 100 warm-up steps.

    Attributes:
        backend: ``"blackjax"``.
        target_accept: Harmonic mean, over chains, of the acceptance rate that the step size aims at, in (0, 1).
        max_steps: Most leapfrog steps per draw.
        learning_rate: Of the optimiser (Adam) of the log trajectory length.
    """

    backend: str = eqx.field(static=True, default="")
    target_accept: float = eqx.field(static=True, default=0.651)
    max_steps: int = eqx.field(static=True, default=256)
    learning_rate: float = eqx.field(static=True, default=0.05)

    name: ClassVar = "chees"
    summary: ClassVar = "Hamiltonian Monte Carlo for many chains, trajectory length tuned across them"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_fraction("target_accept", self.target_accept, 0.651)
        check_count("max_steps", self.max_steps, 1, 256)
        check_positive("learning_rate", self.learning_rate, 0.05)
