r"""The density of a program whose ``numpyro.param`` sites have given values.

A ``param`` has no prior: it is a number that some method chooses. With its value :math:`\psi = T(\phi)`, and
:math:`\phi` free of constraints, the density of the other sites is

.. math:: \log p(u; \psi) = \log p(x; \psi) + \log |\det dx/du| + \log p(y \mid x; \psi),

and it can be differentiated in :math:`\phi`.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.density import Block, Density
from probgen.program.model import Model
from probgen.program.sites import start_value

__all__ = ["ParametrisedDensity", "initial_params"]


def _transform(site: dict[str, Any]) -> Any:
    return biject_to(site["kwargs"].get("constraint", constraints.real))


def _params(program: Any) -> dict[str, Any]:
    return {n: site for n, site in handlers.trace(program).get_trace().items() if site["type"] == "param"}


def initial_params(key: PRNGKey, model: Model) -> Values:
    """First values of the ``param`` sites, without constraints, by name.

    Args:
        key: For initial values that are drawn.
        model: The model.

    Raises:
        MethodError: If a ``param`` is no array (the pytree of a network, say).
    """
    program = handlers.substitute(handlers.seed(model.bind(), key), substitute_fn=start_value)
    free = {}
    for name, site in _params(program).items():
        if not isinstance(site["value"], Array | np.ndarray | numbers.Real):
            raise MethodError(
                f"site {name!r} is a numpyro.param of {type(site['value']).__name__}, and here each is an array. Write "
                f"one numpyro.param per array."
            )
        free[name] = jnp.asarray(_transform(site).inv(jnp.asarray(site["value"], float)))
    return free


class ParametrisedDensity(Density):
    """A density that answers with its ``param`` sites at given values.

    Args:
        density: A density of a model with ``param`` sites.
        free: Their values without constraints, by name.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    noise: bool = eqx.field(static=True)
    density: Density
    """The density, whose ``param`` sites are at their first values."""
    free: Values
    """Values of the ``param`` sites, without constraints."""

    def __init__(self, density: Density, free: Values) -> None:
        self.model, self.discrete = density.model, density.discrete
        self.blocks, self.noise = density.blocks, density.noise
        self.density, self.free = density, free

    def at(self, free: Values) -> ParametrisedDensity:
        """The density at other values."""
        return ParametrisedDensity(self.density, free)

    @property
    def params(self) -> Values:
        """Values of the ``param`` sites, as the program sees them."""
        with self._held():
            program = handlers.substitute(
                handlers.seed(self.model.bind(), jax.random.key(0)), substitute_fn=start_value
            )
            return {name: site["value"] for name, site in _params(program).items()}

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        def value(site: dict[str, Any]) -> Array | None:
            held = site["type"] == "param" and site["name"] in self.free
            return _transform(site)(self.free[site["name"]]) if held else None

        with handlers.substitute(substitute_fn=value):
            yield

    # -- as Density, at these values ---------------------------------------------------------------------------------

    def log_density(self, u: Position, beta: float | Scalar = 1.0) -> Scalar:
        """See ``Density.log_density``."""
        with self._held():
            return self.density.log_density(u, beta)

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """See ``Density.parts``."""
        with self._held():
            return self.density.parts(u)

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """See ``Density.breakdown``."""
        with self._held():
            return self.density.breakdown(u)

    def pointwise_log_likelihood(self, u: Position) -> Values:
        """See ``Density.pointwise_log_likelihood``."""
        with self._held():
            return self.density.pointwise_log_likelihood(u)

    @property
    def recovers(self) -> bool:
        """See ``Density.recovers``."""
        return self.density.recovers

    def recover(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.recover``."""
        with self._held():
            return self.density.recover(key, u)

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``."""
        with self._held():
            return self.density.constrain(u, discrete)

    def observed(self, u: Position) -> Values:
        """See ``Density.observed``."""
        with self._held():
            return self.density.observed(u)

    def unconstrain(self, values: Values) -> Position:
        """See ``Density.unconstrain``."""
        with self._held():
            return self.density.unconstrain(values)

    def draw_discrete(self, key: PRNGKey, u: Position) -> Values:
        """See ``Density.draw_discrete``."""
        with self._held():
            return self.density.draw_discrete(key, u)

    def draw_prior(self, key: PRNGKey) -> Position:
        """See ``Density.draw_prior``."""
        with self._held():
            return self.density.draw_prior(key)
