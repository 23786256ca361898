"""How paths are drawn from the particles of a filter: what ``smoothing=`` of a particle method chooses."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.feynman_kac.smc import History
from probgen.feynman_kac.smoothing import backward_mcmc, backward_sample, genealogy

__all__ = ["FFBS", "Genealogy", "Smoothing"]


class Smoothing(eqx.Module):
    """How paths are drawn. All fields are static."""

    backward: ClassVar[bool]
    """Whether it needs the density of a transition."""

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""

    @abc.abstractmethod
    def paths(self, key: PRNGKey, fk: FeynmanKac, history: History, draws: int) -> Any:
        """Paths, equally weighted: a pytree like a particle, with the leading axes ``(draws, times)``."""


class Genealogy(Smoothing):
    """The ancestors of the last particles: right for any program, and free.

    Every resampling loses lines, so that after some hundred steps all paths share their beginning: early states are
    then known from few different values, whatever the number of draws.
    """

    backward: ClassVar = False

    def paths(self, key: PRNGKey, fk: FeynmanKac, history: History, draws: int) -> Any:
        """See ``Smoothing.paths``."""
        return genealogy(key, history, draws)


class FFBS(Smoothing):
    """Paths drawn backwards, from all particles of each time (forward filtering, backward sampling).

    The carry of the scan must be a function of the latent values of its last step; ``Genealogy`` needs no such thing.

    References: Godsill, Doucet and West (2004), "Monte Carlo smoothing for nonlinear time series"; for ``moves`` Dau and
    Chopin (2023), "On backward smoothing algorithms", arXiv 2207.00976.

    Attributes:
        moves: Metropolis-Hastings moves per step, which start at the particle's own ancestor and cost one transition
            density each. ``None``: an exact draw, which costs as many as there are particles.
    """

    moves: int | None = eqx.field(static=True, default=None)

    backward: ClassVar = True

    def check(self) -> None:
        """See ``Smoothing.check``."""
        if self.moves is not None and (
            isinstance(self.moves, bool) or not isinstance(self.moves, int) or self.moves < 1
        ):
            raise MethodError(f"moves must be None or an int of at least 1, got {self.moves!r}. Write FFBS(moves=5).")

    def paths(self, key: PRNGKey, fk: FeynmanKac, history: History, draws: int) -> Any:
        """See ``Smoothing.paths``."""
        if self.moves is None:
            return backward_sample(key, fk, history, draws)
        return backward_mcmc(key, fk, history, draws, self.moves)
