r"""A density in other coordinates: the standard normal noise :math:`z` of a map :math:`u = m + s \odot T(z)` onto the
coordinates of a program.

.. math:: \log p(z) = \log p(u) + \log |\det du/dz|, \qquad
    \log |\det du/dz| = \sum_i \log s_i + \log N(z; 0, I) - \log q(T(z))

with :math:`q` the law of :math:`T(z)` for standard normal :math:`z`. Where :math:`q` is near the posterior, :math:`z` is
nearly standard normal, whatever the shape of the posterior (Hoffman et al. 2019, "NeuTra-lizing bad geometry").
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.density import Block, Density
from probgen.program.model import Model

__all__ = ["WarpedDensity"]


class WarpedDensity(Density):
    """A density of the noise that a learned distribution makes coordinates of.

    Args:
        density: The density of the coordinates.
        loc: Their centre, shape ``(dim,)``.
        scale: Their scales, shape ``(dim,)``.
        learned: A distribution over vectors of that length with ``noise_map`` and ``log_prob``.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    noise: bool = eqx.field(static=True)
    density: Density
    loc: Array
    scale: Array
    learned: Any

    def __init__(self, density: Density, loc: Array, scale: Array, learned: Any) -> None:
        self.model, self.discrete, self.noise = density.model, density.discrete, density.noise
        self.blocks = (Block("noise", 0, (density.dim,)),)
        self.density, self.loc, self.scale, self.learned = density, loc, scale, learned

    def coordinates(self, z: Position) -> Position:
        """The coordinates of the program at ``z``."""
        return self.loc + self.scale * self.learned.noise_map(z)

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """See ``Density.parts``; the Jacobian counts as prior."""
        warped = self.learned.noise_map(u)
        stretch = jnp.sum(jnp.log(self.scale)) + jnp.sum(norm.logpdf(u)) - self.learned.log_prob(warped)
        prior, likelihood = self.density.parts(self.loc + self.scale * warped)
        return prior + stretch, likelihood

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """See ``Density.breakdown``; without the Jacobian."""
        return self.density.breakdown(self.coordinates(u))

    def pointwise_log_likelihood(self, u: Position) -> Values:
        """See ``Density.pointwise_log_likelihood``."""
        return self.density.pointwise_log_likelihood(self.coordinates(u))

    @property
    def recovers(self) -> bool:
        """See ``Density.recovers``."""
        return self.density.recovers

    def recover(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.recover``."""
        return self.density.recover(key, self.coordinates(u))

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``."""
        return self.density.constrain(self.coordinates(u), discrete)

    def observed(self, u: Position) -> Values:
        """See ``Density.observed``."""
        return self.density.observed(self.coordinates(u))

    def draw_discrete(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.draw_discrete``."""
        return self.density.draw_discrete(key, self.coordinates(u))

    def unconstrain(self, values: Values) -> Position:
        """See ``Density.unconstrain``."""
        return self._inward(self.density.unconstrain(values))

    def draw_prior(self, key: PRNGKey) -> Position:
        """See ``Density.draw_prior``."""
        return self._inward(self.density.draw_prior(key))

    def _inward(self, u: Position) -> Position:
        inverse = getattr(self.learned, "noise_of", None)
        if inverse is None:
            raise MethodError(
                f"the map from noise of a {type(self.learned).__name__} has no inverse, so a given point has no "
                f"coordinates. Use a flow."
            )
        return inverse((u - self.loc) / self.scale)
