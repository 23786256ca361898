"""Kernels that take one gradient per draw: the Metropolis-adjusted Langevin algorithm, and Barker's proposal."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.infer.method import KernelMethod, Need
from probgen.infer.settings import check_fraction, check_metric

__all__ = ["MALA", "Barker"]


class _OneGradient(KernelMethod):
    """What the two share: they differ in the proposal alone."""

    target_accept: eqx.AbstractVar[float]
    metric: eqx.AbstractVar[str]

    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_fraction("target_accept", self.target_accept, type(self).target_accept)
        check_metric(self.metric)


class MALA(_OneGradient):
    """Metropolis-adjusted Langevin algorithm.

    Roberts and Tweedie (1996); the optimal acceptance rate 0.574 is from Roberts and Rosenthal (1998). One gradient
    per draw: cheap draws, strongly correlated.

    Attributes:
        backend: ``"blackjax"``.
        target_accept: Acceptance rate that the step size aims at, in (0, 1).
        metric: As for ``NUTS``.
    """

    backend: str = eqx.field(static=True, default="")
    target_accept: float = eqx.field(static=True, default=0.574)
    metric: str = eqx.field(static=True, default="auto")

    name: ClassVar = "mala"
    summary: ClassVar = "Metropolis-adjusted Langevin, one gradient per draw"


class Barker(_OneGradient):
    """Metropolis with Barker's proposal.

    Livingstone and Zanella (2022). One gradient per draw, as ``MALA``, which it matches in speed where that works; it
    forgives a step size that is too large, so it is the safer of the two on rough or badly scaled posteriors.

    Attributes:
        backend: ``"blackjax"``.
        target_accept: Acceptance rate that the step size aims at, in (0, 1).
        metric: As for ``NUTS``.
    """

    backend: str = eqx.field(static=True, default="")
    target_accept: float = eqx.field(static=True, default=0.4)
    metric: str = eqx.field(static=True, default="auto")

    name: ClassVar = "barker"
    summary: ClassVar = "Metropolis with Barker's proposal, robust to the step size"
