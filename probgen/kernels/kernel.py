"""What a kernel is: the contract between the engines and the loops that run them."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jax import Array

from probgen.base.typing import Position, PRNGKey, Values
from probgen.program.density import Density

__all__ = ["Draw", "Kernel", "Stats"]

type Stats = dict[str, Array]


class Draw(NamedTuple):
    """One draw.

    Attributes:
        u: Unconstrained coordinates, shape ``(dim,)``; an ensemble kernel has ``(chains, dim)``.
        stats: Statistics of the step, same leading axes. MCMC names: ``lp``, ``energy``, ``diverging``,
            ``acceptance_rate``, ``n_steps``, ``tree_depth``, ``step_size``; each kernel gives those that it has.
        discrete: Values of discrete latent sites, where the kernel samples them.
    """

    u: Array
    stats: Stats
    discrete: Values = {}  # noqa: RUF012


class Kernel(eqx.Module):
    """A Markov kernel with its adaptation: how one state becomes the next.

    Kernels are pure; all their fields are static, so that equal settings share one compiled program. ``step`` is
    called ``warmup`` times and then once per draw, always with a fresh key; a kernel that adapts counts its steps in
    its state and freezes when the warm-up is over.
    """

    warmup: eqx.AbstractVar[int]
    ensemble: ClassVar[bool] = False
    """Whether the state holds all chains at once (``u`` of shape ``(chains, dim)``)."""
    gradient: ClassVar[bool] = True
    """Whether it asks for gradients; if not, the program need not have any."""

    @abc.abstractmethod
    def init(self, key: PRNGKey, density: Density, u: Position) -> Any:
        """The state at a starting point.

        Args:
            key: Randomness for the start.
            density: The target.
            u: A point with finite log density, shape ``(dim,)`` or ``(chains, dim)``.
        """

    def at(self, state: Any, index: Array) -> Any:
        """The state, told that ``index`` steps have been taken.

        The loop counts once for all chains of a batch: a kernel that asks its own copy, one per chain, whether a window
        has ended would do the work of window ends at every step.
        """
        return state

    @abc.abstractmethod
    def step(self, key: PRNGKey, density: Density, state: Any) -> tuple[Any, Draw]:
        """Advance by one step of the chain."""
