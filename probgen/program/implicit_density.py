"""Programs that draw random numbers outside of their sites: they can be run, and have no density that could be evaluated.

A program that calls ``numpyro.prng_key()`` (a stochastic simulator, say, of which only the outcome is a site) defines a
joint law of its sites, whose density is an integral over all those random numbers. Methods that only simulate need the
layout of the coordinates, draws from the prior, and the values at given coordinates: these are here, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
from jax import Array
from numpyro import handlers

from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Values
from probgen.program.density import Density
from probgen.program.enumerated import density_of
from probgen.program.model import Model
from probgen.program.sites import Kind

__all__ = ["ImplicitDensity", "simulable"]


def simulable(model: Model) -> Density:
    """What a method that only simulates works on: the density of a model, or an ``ImplicitDensity`` if it has none."""
    return ImplicitDensity(model) if model.own_keys else density_of(model)


class ImplicitDensity(Density):
    """As ``Density``, of a program that draws random keys of its own; what asks for a number of the density is refused.

    Args:
        model: The model.

    Raises:
        MethodError: If it has discrete latent sites, which cannot be summed out without a density.
    """

    takes_own_keys: ClassVar[bool] = True

    def __init__(self, model: Model) -> None:
        for site in model.of_kind(Kind.discrete):
            raise MethodError(
                f"site {site.name!r} is discrete and latent, and the program calls numpyro.prng_key(), so the site cannot "
                f"be summed out. Draw it with that key, if it need not be inferred."
            )
        super().__init__(model)

    def bound(self) -> Callable[[], Any]:
        """See ``Density.bound``; the keys that the program asks for are those of the caller."""
        return self.model.bind()

    def unconstrain(self, values: Values) -> Position:
        """See ``Density.unconstrain``."""
        with handlers.block():
            program = handlers.substitute(self.bound(), data={block.name: values[block.name] for block in self.blocks})
            return self._flat(handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace())

    def values(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.values``; what follows from random numbers of the program is drawn by ``key``, and the data play
        no part in it."""
        keep = {site.name for site in self.model.sites if site.reported}
        sites = handlers.trace(handlers.seed(self.substituted(u), key)).get_trace()
        return {name: site["value"] for name, site in sites.items() if name in keep}

    def _run(self, u: Position, discrete: Values | None = None) -> dict[str, Any]:
        # Without a key of the caller's, the program has the same random numbers every time.
        return handlers.trace(handlers.seed(self.substituted(u, discrete), jax.random.key(0))).get_trace()

    def _terms(self, u: Position) -> list[tuple[str, Kind, Array]]:
        raise MethodError(
            "the program calls numpyro.prng_key(), so it has no density that could be evaluated. Use a method that only "
            "simulates, such as what pg.amortize returns, or write what it draws as numpyro.sample sites."
        )
