"""MEADS: generalised Hamiltonian Monte Carlo for many chains, tuned across them without a target."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.infer.method import KernelMethod, Need
from probgen.infer.settings import check_count, check_fraction

__all__ = ["MEADS"]


class MEADS(KernelMethod):
    """Generalised HMC with step size, scales and damping from the spread of the other chains.

    Hoffman and Sountsov (2022), algorithm 3. One gradient per draw and chain, with momentum that persists; made for
    many chains (64 to thousands). The published method starts to tune where the chains start; here each chain first
    comes to the posterior by itself during the first half of the warm-up, and a metric from the draws of all of them
    whitens the posterior. Parameters are frozen after the warm-up. At least 100 warm-up steps, and chains in equal
    folds of at least 4.

    Attributes:
        backend: ``"blackjax"``.
        folds: Groups into which the chains are divided; each is tuned by another.
        step_size_factor: Step size in units of the largest stable one, in (0, 1).
    """

    backend: str = eqx.field(static=True, default="")
    folds: int = eqx.field(static=True, default=4)
    step_size_factor: float = eqx.field(static=True, default=0.5)

    name: ClassVar = "meads"
    summary: ClassVar = "Generalised HMC for many chains, tuned across them, one gradient per draw"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("folds", self.folds, 2, 4)
        check_fraction("step_size_factor", self.step_size_factor, 0.5)
