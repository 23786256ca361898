"""The No-U-Turn sampler, and Hamiltonian Monte Carlo with a fixed path length."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.base.errors import MethodError, suggestion
from probgen.infer.method import KernelMethod, Need

__all__ = ["HMC", "NUTS"]

METRICS = ("auto", "dense", "diagonal", "low_rank")


def _check_hamiltonian(target_accept: float | None, metric: str) -> None:
    if target_accept is not None and not 0 < target_accept < 1:
        raise MethodError(
            f"target_accept must lie between 0 and 1, got {target_accept}. 0.8 is usual; nearer 1 for hard posteriors."
        )
    if metric not in METRICS:
        raise MethodError(f"metric is {metric!r}. {suggestion(metric, METRICS)}")


class NUTS(KernelMethod):
    """No-U-Turn sampler with multinomial trajectories.

    Hoffman and Gelman (2014); Betancourt (2017), appendix A. The default of ``pg.infer`` for continuous models.

    Attributes:
        backend: ``"blackjax"`` (default: our adaptation around BlackJAX's transition) or ``"numpyro"`` (NumPyro's
            sampler with its own adaptation).
        target_accept: Acceptance rate that the step size aims at, in (0, 1). ``None``: 0.8, and 0.95 in chains whose
            warm-up keeps diverging.
        max_tree_depth: Trajectories have at most ``2 ** max_tree_depth - 1`` leapfrog steps.
        metric: ``"auto"``, ``"dense"``, ``"low_rank"`` or ``"diagonal"``. All minimise the Fisher divergence over the
            warm-up; ``"auto"`` is dense up to 64 coordinates, and low rank plus diagonal above.
    """

    backend: str = eqx.field(static=True, default="")
    target_accept: float | None = eqx.field(static=True, default=None)
    max_tree_depth: int = eqx.field(static=True, default=10)
    metric: str = eqx.field(static=True, default="auto")

    name: ClassVar = "nuts"
    summary: ClassVar = "No-U-Turn sampler, adapts step size and metric"
    backends: ClassVar = ("blackjax", "numpyro")
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        _check_hamiltonian(self.target_accept, self.metric)
        if not 1 <= self.max_tree_depth <= 20:
            raise MethodError(f"max_tree_depth must be from 1 to 20, got {self.max_tree_depth}. 10 is usual.")


class HMC(KernelMethod):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    Duane et al. (1987); Neal (2011).

    Attributes:
        backend: ``"blackjax"`` or ``"numpyro"``.
        steps: Leapfrog steps per draw.
        target_accept: Acceptance rate that the step size aims at, in (0, 1).
        metric: As for ``NUTS``.
    """

    backend: str = eqx.field(static=True, default="")
    steps: int = eqx.field(static=True, default=8)
    target_accept: float = eqx.field(static=True, default=0.8)
    metric: str = eqx.field(static=True, default="auto")

    name: ClassVar = "hmc"
    summary: ClassVar = "Hamiltonian Monte Carlo with a fixed number of leapfrog steps"
    backends: ClassVar = ("blackjax", "numpyro")
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        _check_hamiltonian(self.target_accept, self.metric)
        if self.steps < 1:
            raise MethodError(f"steps must be at least 1, got {self.steps}. 8 is a fair start.")
