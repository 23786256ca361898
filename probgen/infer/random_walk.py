"""Random-walk Metropolis: no gradient, no structure, the yardstick for everything else."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.infer.method import KernelMethod, Need
from probgen.infer.settings import check_fraction

__all__ = ["RandomWalk"]


class RandomWalk(KernelMethod):
    """Random-walk Metropolis; step size and covariance of the steps are learned during the warm-up.

    Haario, Saksman and Tamminen (2001) for the covariance, which is frozen after the warm-up; Gelman, Roberts and
    Gilks (1996) for the acceptance rate 0.234. Draws are strongly correlated: expect to need ``thin``.

    Attributes:
        backend: ``"blackjax"``.
        target_accept: Acceptance rate that the step size aims at, in (0, 1).
    """

    backend: str = eqx.field(static=True, default="")
    target_accept: float = eqx.field(static=True, default=0.234)

    name: ClassVar = "random_walk"
    summary: ClassVar = "Random-walk Metropolis with adapted covariance, no gradient"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.continuous})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_fraction("target_accept", self.target_accept, 0.234)
