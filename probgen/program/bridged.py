r"""A density seen from a proposal: the proposal :math:`q` takes the place of the prior, the ratio that of the likelihood.

.. math:: \pi_\beta(u) \propto q(u) \left( \frac{p(u, y)}{q(u)} \right)^{\beta}

runs from :math:`q` to the posterior, and the evidence found along it is that of the posterior, :math:`\int p(u, y)\, du`,
whatever :math:`q` is. Where :math:`q` is near the posterior the path is short.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.density import Block, Density
from probgen.program.model import Model

__all__ = ["BridgedDensity"]


class BridgedDensity(Density):
    """The density of a program with a proposal as prior.

    Args:
        density: The density of the coordinates.
        proposal: A distribution over vectors of their length, with ``sample`` and ``log_prob``; its support must have
            that of the posterior.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    noise: bool = eqx.field(static=True)
    density: Density
    proposal: Any

    def __init__(self, density: Density, proposal: Any) -> None:
        self.model, self.discrete, self.noise = density.model, density.discrete, density.noise
        self.blocks, self.density, self.proposal = density.blocks, density, proposal

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """``(log q, log p - log q)``."""
        log_q = self.proposal.log_prob(u)
        return log_q, self.density.log_density(u) - log_q

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """See ``Density.breakdown``."""
        return self.density.breakdown(u)

    def pointwise_log_likelihood(self, u: Position) -> Values:
        """See ``Density.pointwise_log_likelihood``."""
        return self.density.pointwise_log_likelihood(u)

    @property
    def recovers(self) -> bool:
        """See ``Density.recovers``."""
        return self.density.recovers

    def recover(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.recover``."""
        return self.density.recover(key, u)

    def draw_prior(self, key: PRNGKey) -> Position:
        """A draw of the proposal."""
        drawn: Array = self.proposal.sample(key)
        return drawn.astype(float)
