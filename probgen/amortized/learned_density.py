r"""A posterior density whose prior is that of a program, and whose likelihood was learned.

.. math:: \log \hat p(u, y) = \log p(u) + \hat\ell_y(u)

The prior is computed by the program itself; its own likelihood plays no part, and need not exist.
"""

from __future__ import annotations

from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.density import Block, Density
from probgen.program.implicit_density import ImplicitDensity
from probgen.program.model import Model
from probgen.program.sites import Kind

__all__ = ["LearnedDensity", "LogLikelihood"]


class LogLikelihood(Protocol):
    """The log likelihood of one observation, up to a constant: a pytree."""

    def __call__(self, u: Array) -> Scalar:
        """At unconstrained coordinates, shape ``(dim,)``, in the precision of ``u``."""
        ...


class LearnedDensity(Density):
    """The density of a program with a learned likelihood in the place of its own.

    Args:
        density: The density of the coordinates, for its prior.
        likelihood: The learned log likelihood. It is asked in 32 bits.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    noise: bool = eqx.field(static=True)
    program: Density
    likelihood: LogLikelihood

    def __init__(self, density: Density, likelihood: LogLikelihood) -> None:
        self.model, self.discrete, self.noise = density.model, density.discrete, density.noise
        self.blocks, self.program, self.likelihood = density.blocks, density, likelihood

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """See ``Density.parts``."""
        return self._prior(u), self.likelihood(u.astype(jnp.float32)).astype(float)

    def _prior(self, u: Position) -> Scalar:
        if not isinstance(self.program, ImplicitDensity):
            return self.program.log_prior(u)
        # The sites have prior densities, though the program as a whole has none.
        blocks, total = self.split(u), jnp.zeros(())
        traced = handlers.trace(handlers.seed(self.program.substituted(u), jax.random.key(0))).get_trace()
        for name, block in blocks.items():
            total = total + sum(jnp.sum(term) for term in self.program.latent_terms(traced[name], name, block))
        return total

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """See ``Density.breakdown``."""
        prior, likelihood = self.parts(u)
        return {"the prior": prior, "the learned likelihood": likelihood}

    def pointwise_log_likelihood(self, u: Position) -> Values:
        """The learned log likelihood of the whole observation, under the name of its first site."""
        return {self.model.of_kind(Kind.observed)[0].name: self.parts(u)[1]}

    @property
    def recovers(self) -> bool:
        """See ``Density.recovers``."""
        return self.program.recovers

    def recover(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.recover``: by the program's own likelihood."""
        return self.program.recover(key, u)

    def values(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.values``."""
        return self.program.values(key, u)

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``."""
        return self.program.constrain(u, discrete)

    def unconstrain(self, values: Values) -> Position:
        """See ``Density.unconstrain``."""
        return self.program.unconstrain(values)

    def draw_prior(self, key: PRNGKey) -> Position:
        """See ``Density.draw_prior``."""
        return self.program.draw_prior(key)
