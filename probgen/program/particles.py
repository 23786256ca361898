r"""Particles from a program with a ``scan``: its bootstrap, guided or auxiliary Feynman-Kac model.

Time 0 is the program up to the scan, and time :math:`t = 1, \dots, T` is step :math:`t` of the scan. With the latent
values :math:`z_t` of a step, the carry :math:`c_t` (a function of :math:`c_{t-1}` and :math:`z_t`) and the data
:math:`y_t`, a particle is the carry with those latent values that the carry does not hold already, and

.. math::

    M_t(x_{t-1}, dx_t) = q(dz_t \mid c_{t-1}, y_t), \qquad
    G_t(x_{t-1}, x_t) = \frac{p(z_t \mid c_{t-1}) \, p(y_t \mid z_t, c_{t-1})}{q(z_t \mid c_{t-1}, y_t)},

where the bootstrap proposal :math:`q = p(z_t \mid c_{t-1})` leaves the likelihood. Observed sites and factors before
the scan weigh at time 0, those behind it at time :math:`T`.

Latent sites outside the scan are either *parameters*, whose values are given (the evidence is then
:math:`p(y \mid \theta)`), or drawn with the particle: the initial state, or, where the steps use them, a part of the
particle that never moves again.

References: Gordon, Salmond and Smith (1993), "Novel approach to nonlinear/non-Gaussian Bayesian state estimation";
Chopin and Papaspiliopoulos (2020), chapters 5 and 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from probgen.base.errors import MethodError, ModelError
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.program.cut import Cut, cut_of
from probgen.program.handlers import InitialKeys
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.proposals import Bootstrap, Proposal
from probgen.program.scanned import OneStep, Scan, Step, after_scan, before_scan, draw_keys, log_potential, observed

__all__ = ["Outside", "Particle", "ParticleSystem", "sites_outside"]


class Outside(NamedTuple):
    """Latent sites that stand outside the scan.

    Attributes:
        initial: Those that matter to the steps through the first carry only: the initial state.
        parameters: Those that the steps, or observations behind the scan, use.
    """

    initial: tuple[str, ...]
    parameters: tuple[str, ...]


def sites_outside(model: Model) -> Outside:
    """The latent sites outside the scan of a program, told apart by what they enter.

    Raises:
        ModelError: If the program has no scan, or cannot be run step by step.
    """
    cut = cut_of(model, {})
    return Outside(tuple(name for name, _ in cut.drawn if name not in cut.fixed), (*cut.fixed, *cut.needed))


class Particle(NamedTuple):
    """One particle.

    Attributes:
        carry: The carry of the scan.
        sites: Latent values of the last step that the carry does not hold; zeros at time 0.
        before: Latent values from before the scan that the first carry does not hold, or that the steps use.
    """

    carry: Any
    sites: Values
    before: Values


class ParticleSystem(FeynmanKac):
    """A program with a ``scan`` as a Feynman-Kac model; see the head of this module.

    A particle is a ``Particle``; ``values`` reads the sites of a path. The data of the model and the parameters are
    leaves: the same compiled filter serves other data and other parameters (``at``).

    A latent site under ``handlers.mask`` is drawn from its distribution as if there were no mask; observed sites under
    a mask weigh nothing where it is false. Missing observations are marked by ``obs_mask`` or ``handlers.mask``. Latent
    sites of several series (a plate in the body) make up one joint particle.

    Args:
        model: The model.
        parameters: Values of latent sites outside the scan, constrained space, by name. Those without a value are drawn
            with each particle.
        proposal: How particles move.

    Raises:
        ModelError: If the program has no scan or two, a scan in the body of the scan, a latent site in a branch of
            ``cond``, an observed site behind the scan that depends on the series that the scan returns, or no latent
            site called as a parameter is.
        MethodError: If a ``numpyro.param``, a subsampled plate or an improper prior is in the way, or if the proposal
            does not fit the program.
    """

    model: Model
    parameters: Values
    """Values of latent sites outside the scan."""
    proposal: Proposal
    cut: Cut = eqx.field(static=True)
    """How the parts of the program hang together."""

    def __init__(
        self, model: Model, parameters: Mapping[str, Any] | None = None, proposal: Proposal | None = None
    ) -> None:
        self.model = model.unlabelled()
        self.parameters = {name: _value(model, name, value) for name, value in (parameters or {}).items()}
        self.proposal = Bootstrap() if proposal is None else proposal
        self.cut = cut_of(self.model, self.parameters)
        inside = [name for name in self.parameters if name in dict(self.cut.sites)]
        if inside:
            raise ModelError(
                f"site {inside[0]!r} stands in the scan, and parameters stand outside. Use model.condition for it."
            )
        if self.cut.needed:
            raise ModelError(
                f"latent site {self.cut.needed[0]!r} stands behind the scan, and an observation depends on it. Give it "
                f"a value, or draw it before the scan."
            )
        eqx.filter_eval_shape(_one_step, self, jax.random.key(0))  # a proposal that does not fit says so here

    def at(self, parameters: Mapping[str, Any]) -> ParticleSystem:
        """The same system with other values of its parameters (all of them); nothing is analysed again."""
        new = {name: _value(self.model, name, value) for name, value in parameters.items()}
        if new.keys() != self.parameters.keys():
            raise ModelError(
                f"the system has the parameters {sorted(self.parameters)}, got {sorted(new)}. Give a value for each."
            )
        return eqx.tree_at(lambda system: list(system.parameters.values()), self, [new[n] for n in self.parameters])

    # -- the Feynman-Kac model ---------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps of the scan."""
        return self.cut.size

    @property
    def looks_ahead(self) -> bool:
        """See ``FeynmanKac.looks_ahead``."""
        return self.proposal.looks_ahead

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar]:
        """See ``FeynmanKac.init``: the program up to its scan."""
        trace, scan = before_scan(self.model, self.parameters, draw_keys(key, len(self.cut.drawn)))
        return self._first(trace, scan), log_potential(self._unknown(trace))

    def step(self, key: PRNGKey, t: Array, x: Particle, context: Any) -> tuple[Particle, Scalar]:
        """See ``FeynmanKac.step``: one step of the scan."""
        taken, log_g = self.proposal.propose(key, self.body(t, x))
        return self._particle(taken, x), log_g + self._behind(t, taken.carry, x.before)

    def look_ahead(self, t: Array, x: Particle, context: Any) -> Scalar:
        """See ``FeynmanKac.look_ahead``: the guess of an auxiliary proposal."""
        return self.proposal.guess(self.body(t, x))

    def log_transition(self, t: Array, x_prev: Particle, x: Particle) -> Scalar:
        """See ``FeynmanKac.log_transition``: :math:`\\log p(z_t, y_t \\mid c_{t-1})`, whatever the proposal.

        Raises:
            MethodError: If the carry remembers more than the latent values of its step: a particle could then have come
                from its own parent only.
        """
        if self.cut.keeps:
            raise MethodError(
                f"no transition density: {self.cut.keeps}, so that only one parent is possible for it. Carry the "
                f"latent values of the last step only, or use what needs no transition density (pg.Genealogy(), "
                f"particle Gibbs without ancestor sampling)."
            )
        values = self.latent(x)
        taken = self.body(t, x_prev)(values)
        laws = taken.log_laws
        for name in laws:
            if self.model.sites[name].auxiliary:
                # The half of an obs_mask site that was observed is nowhere used: whoever its parent, it is as likely.
                laws[name] = jnp.sum(taken.fns[name].log_prob(values[name]))
        return sum(laws.values(), taken.log_potential) + self._behind(t, taken.carry, x_prev.before)

    def log_potential(self, t: Array, x_prev: Particle | None, x: Particle, context: Any) -> Scalar:
        """See ``FeynmanKac.log_potential``.

        Raises:
            MethodError: If the proposal cannot tell.
        """
        if x_prev is None:
            first, _ = before_scan(self.model, {**self.parameters, **self._initial(x)})
            return log_potential(self._unknown(first))
        log_g = self.proposal.weigh(self.body(t, x_prev), self.latent(x))
        return log_g + self._behind(t, x.carry, x_prev.before)

    @property
    def markovian(self) -> bool:
        """Whether ``log_transition`` exists."""
        return not self.cut.keeps

    # -- reading -----------------------------------------------------------------------------------------------------

    def body(self, t: Array | int, x: Particle) -> OneStep:
        """Step ``t`` of the scan, from a particle at time ``t - 1``."""
        unused = _zeros(self.cut.drawn)
        before = {**unused, **self.parameters, **x.before}
        trace, scan = before_scan(self.model, before)
        named = {name: site["value"] for name, site in trace.items() if site["type"] in ("sample", "deterministic")}
        known = {name: value for name, value in named.items() if name not in unused or name in x.before}
        return OneStep(scan, t, x.carry, tuple(name for name, _ in self.cut.sites), known)

    def latent(self, x: Particle) -> Values:
        """Latent values of the step that a particle has taken last."""
        leaves = jax.tree.leaves(x.carry)
        return {name: leaves[i] for name, i in self.cut.in_carry} | x.sites

    def values(self, path: Particle) -> Values:
        """Latent sites of a path: those of the scan as series in the order of its rows, and those drawn before it.

        Args:
            path: Particles over time, leading axis ``steps + 1``.
        """
        leaves = jax.tree.leaves(path.carry)
        held = {name: leaves[i] for name, i in self.cut.in_carry} | path.sites
        order = slice(None, None, -1) if self.cut.reverse else slice(None)
        series = {name: held[name][1:][order] for name, _ in self.cut.sites}
        return self._initial(jax.tree.map(lambda leaf: leaf[0], path)) | series

    def path(self, values: Values) -> Particle:
        """The particles along given latent values, at the present parameters: the inverse of ``values``.

        Returns:
            Particles over time, leading axis ``steps + 1``.
        """
        trace, scan = before_scan(self.model, {**self.parameters, **{name: values[name] for name, _ in self.cut.drawn}})
        first = self._first(trace, scan)
        order = slice(None, None, -1) if self.cut.reverse else slice(None)
        series = {name: jnp.asarray(values[name])[order] for name, _ in self.cut.sites}

        def step(x: Particle, now: tuple[Array, Values]) -> tuple[Particle, Particle]:
            t, held = now
            x = self._particle(self.body(t, x)(held), x)
            return x, x

        _, later = jax.lax.scan(step, first, (jnp.arange(1, self.steps + 1), series))
        return jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), first, later)

    def reported(self, key: PRNGKey, values: Values) -> Values:
        """What a result reports at the latent values of one path: these, the parameters, and deterministic sites.

        Latent sites behind the scan are drawn with ``key``.
        """
        held = {**self.parameters, **values}
        program = handlers.seed(handlers.substitute(InitialKeys(self.model.bind()), data=held), key)
        with handlers.block():
            trace = handlers.trace(program).get_trace()
        return {site.name: trace[site.name]["value"] for site in self.model.sites if site.reported}

    def breakdown(self, key: PRNGKey, t: int, x: Particle) -> dict[str, Scalar]:
        """Log probability per observed site and factor of a move to step ``t``, for messages that name the guilty one.

        Args:
            key: Randomness of the move.
            t: The step; 0 for what stands before the scan.
            x: The particle at time ``t - 1``; at ``t = 0``, the first particle itself.
        """
        if t:
            return self.proposal.propose(key, self.body(t, x))[0].terms
        trace, _ = before_scan(self.model, {**self.parameters, **self._initial(x)})
        return {name: jnp.sum(site_log_prob(site)) for name, site in observed(trace).items()}

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _extra(self) -> list[tuple[str, jax.ShapeDtypeStruct]]:
        """Sites of the body that a particle holds beside its carry."""
        return [(name, shape) for name, shape in self.cut.sites if name not in dict(self.cut.in_carry)]

    @property
    def _beside(self) -> list[str]:
        """Sites before the scan that a particle holds beside its carry."""
        cut = self.cut
        return [name for name, _ in cut.drawn if name in cut.fixed or name not in dict(cut.in_start)]

    def _unknown(self, trace: dict[str, Any]) -> dict[str, Any]:
        """A trace without the parameters: their prior, scaled or not, is no part of the evidence given them."""
        return {name: site for name, site in trace.items() if name not in self.parameters}

    def _carry(self, carry: Any) -> Any:
        """A carry with the types that it has after a step."""
        leaves = zip(jax.tree.leaves(carry), self.cut.carry, strict=True)
        return self.cut.tree.unflatten([jnp.asarray(leaf, shape.dtype) for leaf, shape in leaves])

    def _first(self, trace: dict[str, Any], scan: Scan) -> Particle:
        before = {name: trace[name]["value"] for name in self._beside}
        return Particle(self._carry(scan.init), _zeros(self._extra), before)

    def _particle(self, taken: Step, parent: Particle) -> Particle:
        return Particle(self._carry(taken.carry), {n: taken.values[n] for n, _ in self._extra}, parent.before)

    def _initial(self, x: Particle) -> Values:
        """Latent sites drawn before the scan, of a particle at time 0."""
        leaves = jax.tree.leaves(x.carry)
        held = {name: leaves[i] for name, i in self.cut.in_start} | x.before
        return {name: held[name] for name, _ in self.cut.drawn}

    def _behind(self, t: Array, carry: Any, before: Values) -> Scalar:
        """Potential of what stands behind the scan, at its last step."""
        zero = jnp.zeros((), jnp.result_type(float))
        if not self.cut.weighs_after:
            return zero

        def weigh() -> Scalar:
            unused = _zeros((*self.cut.drawn, *self.cut.later))
            held = {**unused, **self.parameters, **before}
            first = before_scan(self.model, held)[0]
            shapes, tree = self.cut.series
            series = tree.unflatten([jnp.zeros(shape.shape, shape.dtype) for shape in shapes])
            trace = after_scan(self.model, held, carry, series)
            return log_potential({name: site for name, site in observed(trace).items() if name not in first})

        return jax.lax.cond(t == self.steps, weigh, lambda: zero)


def _value(model: Model, name: str, value: Any) -> Array:
    site = model.sites[name]
    if not site.latent:
        raise ModelError(f"site {name!r} is {site.kind.value}, and a parameter is a latent site. Leave it out.")
    array = jnp.asarray(value, site.dtype)
    if array.shape not in ((), site.shape):
        raise ModelError(
            f"parameter {name!r} has shape {array.shape}, but the site has shape {site.shape}. Give it that shape."
        )
    return jnp.broadcast_to(array, site.shape)


def _zeros(shapes: Iterable[tuple[str, jax.ShapeDtypeStruct]]) -> Values:
    return {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes}


def _one_step(system: ParticleSystem, key: PRNGKey) -> Any:
    x, _ = system.init(key)
    t = jnp.asarray(1)
    return system.look_ahead(t, x, None), system.step(key, t, x, None)
