"""Hamiltonian moves as a proposal of a particle filter."""

from __future__ import annotations

import equinox as eqx
import jax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.hamiltonian import HamiltonianMoves
from probgen.program.proposals import Proposal, _Local
from probgen.program.scanned import OneStep, Step

__all__ = ["Hamiltonian"]


class Hamiltonian(Proposal):
    """Move as the program does, then by annealed Hamiltonian Monte Carlo towards what the observation says.

    Each particle goes from the transition to the local posterior of its step, in unconstrained coordinates of the
    continuous latent sites and in a local metric, and is weighed along the way; ``feynman_kac/hamiltonian.py`` has the
    mathematics. The evidence stays unbiased for all settings. It asks for more work per particle than
    ``LocallyLinear`` (about ``temperatures * (leapfrog + 1)`` gradients), and makes no Gaussian approximation: it is
    for local posteriors that are skewed, heavy-tailed or have several modes. Discrete sites are drawn as the program
    does. Particle Gibbs cannot use it, as the weight of a given move is random.

    Attributes:
        temperatures: Number of temperatures above zero, at least 1; more bring the weights nearer to those of the optimal
            proposal.
        leapfrog: Leapfrog steps of a move, at least 1.
        step_size: Length of a leapfrog step in the whitened coordinates.
        metric: Whether coordinates are whitened by the local Hessian.
    """

    temperatures: int = eqx.field(static=True, default=4)
    leapfrog: int = eqx.field(static=True, default=3)
    step_size: float = eqx.field(static=True, default=0.5)
    metric: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        self._moves()

    def propose(self, key: PRNGKey, step: OneStep) -> tuple[Step, Scalar]:
        """See ``Proposal.propose``.

        Raises:
            MethodError: If the step has no continuous latent site.
        """
        key_draw, key_rest, key_moves = jax.random.split(key, 3)
        local = _Local(step, key_rest)

        def log_density(u: Array) -> tuple[Scalar, Scalar]:
            taken, log_prior, _ = local.at(u)
            return log_prior, taken.log_potential

        u, log_w = self._moves()(key_moves, local.plain(key_draw), log_density, local.start)
        return local.at(u)[0], log_w

    def weigh(self, step: OneStep, values: Values) -> Scalar:
        """See ``Proposal.weigh``.

        Raises:
            MethodError: Always: the weight depends on the points on the way.
        """
        raise MethodError(
            "the weight of a Hamiltonian move depends on the points on its way, so a given move has none. Use "
            "pg.Bootstrap() or pg.LocallyLinear()."
        )

    def _moves(self) -> HamiltonianMoves:
        return HamiltonianMoves(self.temperatures, self.leapfrog, self.step_size, self.metric)
