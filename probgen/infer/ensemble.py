"""Ensemble samplers: walkers that propose from one another's positions.

No gradient; invariant to affine maps of the posterior.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.base.errors import MethodError
from probgen.infer.method import KernelMethod, Need

__all__ = ["AIES", "ESS"]


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise MethodError(f"{name} is a probability and must lie in [0, 1], got {value}. 0.5 is a fair start.")


class AIES(KernelMethod):
    """Affine-invariant ensemble sampler.

    Goodman and Weare (2010) for the stretch move, Nelson, Ford and Payne (2014) for the differential-evolution move.
    The chains of ``pg.infer`` are the walkers: an even number, at least twice the number of unconstrained
    coordinates. They depend on one another, so R-hat is optimistic: look at the effective sample size too. Suits a
    few dozen coordinates at most.

    Attributes:
        backend: ``"numpyro"``.
        stretch: Probability of a stretch move; else a differential-evolution move, which is the better one in more
            than a few dimensions.
    """

    backend: str = eqx.field(static=True, default="")
    stretch: float = eqx.field(static=True, default=0.3)

    name: ClassVar = "aies"
    summary: ClassVar = "Affine-invariant ensemble (stretch and differential evolution), no gradient"
    backends: ClassVar = ("numpyro",)
    needs: ClassVar = frozenset({Need.continuous})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        _check_probability("stretch", self.stretch)


class ESS(KernelMethod):
    """Ensemble slice sampler.

    Karamanis and Beutler (2021). As ``AIES``, with slices along directions between other walkers: every step moves
    every walker, at the price of several evaluations of the density (``n_steps`` is their number beyond the first
    two, averaged over walkers). The walkers are the chains of ``pg.infer``: an even number, at least twice the number
    of unconstrained coordinates.

    Attributes:
        backend: ``"numpyro"``.
        differential: Probability that the directions are differences of other walkers; else they are drawn from a
            Gaussian with their covariance.
    """

    backend: str = eqx.field(static=True, default="")
    differential: float = eqx.field(static=True, default=1.0)

    name: ClassVar = "ess"
    summary: ClassVar = "Ensemble slice sampler, no gradient"
    backends: ClassVar = ("numpyro",)
    needs: ClassVar = frozenset({Need.continuous})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        _check_probability("differential", self.differential)
