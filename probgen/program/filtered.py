r"""The posterior of the parameters of a program with a ``scan``, its states integrated out by a particle filter.

With parameters :math:`\theta = T(u)` (latent sites outside the scan that its steps use) and states :math:`x` (all other
latent sites),

.. math:: \log p(u \mid y) = \underbrace{\log p(\theta) + \log |\det dT/du|}_{\text{log\_prior}}
    + \underbrace{\log p(y \mid \theta)}_{\text{estimated}} + \text{const},

where a particle filter gives an unbiased estimate of :math:`p(y \mid \theta)`, and with it a path of the states.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.feynman_kac.conditional import Ancestry
from probgen.feynman_kac.smc import Settings, smc
from probgen.feynman_kac.smoothing import genealogy
from probgen.program.cut import Cut, cut_of
from probgen.program.density import Block, Density
from probgen.program.model import Model
from probgen.program.particles import ParticleSystem
from probgen.program.proposals import Bootstrap, Proposal
from probgen.program.scanned import unmasked
from probgen.program.sites import Kind, Site

__all__ = ["FilteredDensity"]

_FINITE = "the log density is finite at the last point tried"


class FilteredDensity(Density):
    """The density of the parameters; its likelihood is an estimate.

    ``log_likelihood`` and what is made of it (``log_density``, ``parts``) use one fixed key: good enough to look for a
    start, and no exact posterior. Methods call ``filtered``, with a fresh key each time.

    Args:
        model: A model whose program has a ``scan``.
        settings: How the filter is run.
        proposal: How its particles move.

    Raises:
        ModelError: If the program has no scan, or cannot be run step by step.
        MethodError: If it has no parameter, or a discrete one.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    settings: Settings
    proposal: Proposal
    cut: Cut = eqx.field(static=True)
    """How the parts of the program hang together."""
    states: tuple[Site, ...] = eqx.field(static=True)
    """The latent sites that are no parameters."""

    def __init__(self, model: Model, settings: Settings, proposal: Proposal | None = None) -> None:
        parameters = _parameters(model)
        states = tuple(site for site in model.sites if site.latent and site.name not in parameters)
        super().__init__(model, {site.name: jnp.zeros(site.shape, site.dtype) for site in states})
        self.discrete = {}
        self.settings = settings
        self.proposal = Bootstrap() if proposal is None else proposal
        self.states = states
        given = {name: jnp.zeros(model.sites[name].shape) for name in parameters}
        self.cut = ParticleSystem(model, given, self.proposal).cut

    @property
    def ancestry(self) -> Ancestry:
        """How paths can get their past: ancestors are sampled where there is a transition density."""
        return Ancestry.traced if self.cut.keeps else Ancestry.sampled

    # -- the filter --------------------------------------------------------------------------------------------------

    def parameters(self, u: Position) -> Values:
        """Values of the parameters, in constrained space."""
        return {name: site["value"] for name, site in self._outside(u).items() if name in self._names}

    def system(self, u: Position) -> ParticleSystem:
        """The Feynman-Kac model of the states, given the parameters."""
        system = object.__new__(ParticleSystem)  # what the constructor finds out is known
        fields = {"model": self.model, "parameters": self.parameters(u), "proposal": self.proposal, "cut": self.cut}
        for name, value in fields.items():
            object.__setattr__(system, name, value)
        return system

    def filtered(self, key: PRNGKey, u: Position) -> tuple[Scalar, Values]:
        """An estimate of the log likelihood, unbiased for the likelihood, and a path of the states that goes with it.

        Args:
            key: Randomness.
            u: Unconstrained coordinates of the parameters, shape ``(dim,)``.

        Returns:
            The log estimate; and the values of the latent sites that are no parameters, from the genealogy of one of
            the last particles, as a trace shows them.
        """
        key_filter, key_path, key_rest = jax.random.split(key, 3)
        system = self.system(u)
        result = smc(key_filter, system, dataclasses.replace(self.settings, history=True, variance=False))
        path = genealogy(key_path, result.history(), 1)
        values = system.values(jax.tree.map(lambda leaf: leaf[0], path))
        return result.log_z, self.completed(key_rest, u, values)

    def completed(self, key: PRNGKey, u: Position, values: Values) -> Values:
        """A path with the latent sites behind the scan, on which no observation depends: drawn given all others."""
        missing = [site.name for site in self.states if site.name not in values]
        if not missing:
            return values
        with handlers.block():
            sites = handlers.trace(handlers.seed(self.substituted(u, values), key)).get_trace()
        return values | {name: sites[name]["value"] for name in missing}

    def given(self, path: Values) -> Density:
        """The joint density of parameters, states and data, with the states held at a path."""
        return _GivenPath(self.model, path)

    # -- as a Density ------------------------------------------------------------------------------------------------

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """See ``Density.parts``; the likelihood is an estimate with a fixed key."""
        return self.log_prior(u), self.log_likelihood(u)

    def log_prior(self, u: Position) -> Scalar:
        """Log prior density of the parameters, Jacobian included: exact."""
        return sum(self._prior(u).values(), jnp.zeros((), jnp.result_type(float)))

    def log_likelihood(self, u: Position) -> Scalar:
        """An estimate of the log likelihood, always with the same key."""
        settings = dataclasses.replace(self.settings, history=False, variance=False)
        return smc(jax.random.key(0), self.system(u), settings).log_z

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """Log probability per parameter, and the estimate for all that is observed."""
        return {**self._prior(u), self._of_filter: self.log_likelihood(u)}

    def trouble(self, u: Position) -> str:
        """See ``Density.trouble``; tells at which step the particle filter lost all of its particles."""

        def look(density: FilteredDensity, u: Position) -> tuple[dict[str, Scalar], Array]:
            settings = dataclasses.replace(density.settings, history=False, variance=False)
            result = smc(jax.random.key(0), density.system(u), settings)
            return density._prior(u), jnp.append(result.first.log_z, result.steps.log_z)

        prior, log_z = jax.jit(look)(self, u)
        named = [f"{name} ({value:g})" for name, value in prior.items() if not np.isfinite(value)]
        lost = np.flatnonzero(~np.isfinite(log_z))
        if lost.size:
            where = f"from step {lost[0]} of the scan" if lost[0] else "before the scan"
            named.append(f"{self._of_filter} ({log_z[lost[0]]:g} {where})")
        return f"the log density is not finite at: {', '.join(named)}" if named else _FINITE

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``. Without values of the states, only the parameters."""
        return super().constrain(u, discrete) if discrete else self.parameters(u)

    def unconstrain(self, values: Values) -> Position:
        """See ``Density.unconstrain``; values of states are not needed."""
        return self.given(
            {**self._anything(), **{n: v for n, v in values.items() if n not in self._names}}
        ).unconstrain(values)

    def _anything(self) -> Values:
        return {site.name: jnp.zeros(site.shape, site.dtype) for site in self.states}

    @property
    def _of_filter(self) -> str:
        return f"the particle filter of {', '.join(site.name for site in self.model.of_kind(Kind.observed))}"

    @property
    def _names(self) -> set[str]:
        return {block.name for block in self.blocks}

    def _prior(self, u: Position) -> dict[str, Scalar]:
        blocks, sites = self.split(u), self._outside(u)
        terms = {b.name: self.latent_terms(sites[b.name], b.name, blocks[b.name]) for b in self.blocks}
        zero = jnp.zeros((), jnp.result_type(float))
        return {name: sum(map(jnp.sum, parts), zero) for name, parts in terms.items()}

    def _outside(self, u: Position) -> dict[str, Any]:
        """The sites of the program at these parameters. The states are drawn with some key and play no part: what
        depends on them alone is not computed under ``jit``."""
        with handlers.block():
            return handlers.trace(handlers.seed(self.substituted(u), jax.random.key(0))).get_trace()


class _GivenPath(Density):
    """A density whose masked states count: as particles, they are drawn from their distribution."""

    def __init__(self, model: Model, path: Values) -> None:
        super().__init__(model, path)

    def _run(self, u: Position, discrete: Values | None = None) -> dict[str, Any]:
        sites = super()._run(u, discrete)
        held = [name for name in self.discrete if not self.model.sites[name].auxiliary]
        return sites | {name: sites[name] | {"fn": unmasked(sites[name]["fn"])} for name in held}


def _parameters(model: Model) -> tuple[str, ...]:
    """Names of the parameters: sites outside the scan that its steps use or that cannot be drawn, and all sites on
    which these depend."""
    import networkx

    latent = {site.name: site for site in model.sites if site.latent}
    improper = {name: jnp.zeros(site.shape) for name, site in latent.items() if not (site.proper or site.scanned)}
    cut = cut_of(model, improper)
    used = {*improper, *cut.fixed, *cut.needed}
    graph = model.graph()
    names = used.union(*(networkx.ancestors(graph, name) for name in used)) & latent.keys()
    for site in (latent[name] for name in latent if name in names):
        if site.scanned:
            raise MethodError(
                f"site {site.name!r} stands in the scan, and a parameter depends on it. Methods for parameters need "
                f"parameters that stand before the scan."
            )
        if site.kind is Kind.discrete:
            raise MethodError(
                f"site {site.name!r} ({site.distribution}) is a discrete parameter of the steps, which methods for "
                f"parameters cannot move. Draw it in the scan, or fit once per value and compare log evidences."
            )
    if not names:
        raise MethodError(
            "the program has no parameter: no latent site outside its scan is used by the steps. Use "
            "pg.ParticleFilter() for its states."
        )
    return tuple(name for name in latent if name in names)
