r"""The density of a program whose discrete latent sites have finite support: they are summed out exactly.

With discrete sites ``z`` and coordinates ``u`` of the continuous ones,

.. math:: \log p(u) = \log \sum_z p(z, x) \, |\det dT_z/du| \, p(y \mid x, z), \qquad x = T_z(u).

The program runs once with all values of ``z`` side by side (NumPyro's enumeration, ``numpyro.contrib.funsor``), which
gives one table per site; ``elimination`` sums them, along the time of a ``scan`` too. Draws get the discrete sites
back from their distribution given ``u`` and the data. Tracing uses NumPyro's global state and belongs to one thread,
as all tracing here does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import partial_eval

from probgen.base.errors import MethodError, ModelError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.density import Density
from probgen.program.elimination import Factor, lag_of, marginals
from probgen.program.model import Model
from probgen.program.sites import Kind

if TYPE_CHECKING:
    from probgen.program.enumeration import Tables, Term

__all__ = ["EnumeratedDensity", "density_of"]


def density_of(model: Model) -> Density:
    """The density of a model: discrete latent sites are summed out where there are any.

    Raises:
        MethodError: If a discrete site has no finite support, or cannot be summed out.
    """
    return EnumeratedDensity(model) if model.of_kind(Kind.discrete) else Density(model)


class EnumeratedDensity(Density):
    """As ``Density``, with the discrete latent sites summed out.

    ``log_prior`` and ``log_likelihood`` are :math:`\\log p(u)` and :math:`\\log p(y \\mid u)`, both marginal over the
    discrete sites; where the prior of a continuous site depends on a discrete one, each is a sum of its own.

    Args:
        model: A model with discrete latent sites.

    Raises:
        MethodError: If a discrete site has infinite support, or cannot be summed out (``scale``, event dimensions,
            coupled plates ...).
        ModelError: If the program does not run with all values side by side.
    """

    batches: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    """Batch shape of each sample site, without the time axis of a scan."""
    unaffected: frozenset[str] = eqx.field(static=True)
    """Reported sites whose values do not depend on discrete ones."""
    moving: bool = eqx.field(static=True)
    """Whether the support of a continuous site depends on a discrete one."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        for site in model.of_kind(Kind.discrete):
            if not site.finite:
                raise MethodError(
                    f"site {site.name!r} ({site.distribution}) is discrete with infinite support, so it cannot be "
                    "summed out. "
                    f"Truncate it (a Categorical over 0 ... K), or sum it out by hand with numpyro.factor."
                )
        self.batches, self.unaffected = self._look()
        self.moving = False
        moving: list[bool] = []

        def attempt(u: Position) -> Scalar:
            tables = self._tables(u)
            moving.append(tables.moving)
            return tables.total(tables.terms)

        jax.eval_shape(attempt, jnp.zeros(self.dim))
        self.moving = moving[0]

    # -- evaluating --------------------------------------------------------------------------------------------------

    def log_density(self, u: Position, beta: float | Scalar = 1.0) -> Scalar:
        """See ``Density.log_density``."""
        if isinstance(beta, float) and beta == 1.0:
            tables = self._tables(u)
            return tables.total(tables.terms)
        prior, likelihood = self.parts(u)
        return prior + beta * likelihood

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """See ``Density.parts``."""
        tables = self._tables(u)
        free = [t for t in tables.terms if t.kind is Kind.continuous and not tables.depends(t)]
        rest = [t for t in tables.terms if t not in free]
        prior = [t for t in rest if t.kind is not Kind.observed]
        apart = tables.total(free)
        joint = tables.total(rest)
        if all(term.kind is Kind.discrete for term in prior):
            return apart, joint  # the discrete sites alone sum to one
        mixed = tables.total(prior)
        return apart + mixed, joint - jnp.where(mixed == -jnp.inf, 0.0, mixed)

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """Log probability per site, at the best value of each discrete site by itself."""
        tables = self._tables(u)
        totals: dict[str, Scalar] = {}
        for term in tables.terms:
            axes = tuple(i for i, name in enumerate(term.factor.names) if name in tables.variables)
            best = jnp.sum(jnp.max(term.factor.data, axes))
            totals[term.site] = totals.get(term.site, jnp.zeros(())) + best
        return totals

    def pointwise_log_likelihood(self, u: Position) -> Values:
        r"""Log likelihood of each observation, :math:`\log p(y_i \mid u)`, with its own discrete sites summed out.

        Raises:
            MethodError: If observations share a discrete site (a hidden Markov chain, a site outside the plate), so
                that they are not independent given ``u``.
        """
        tables = self._tables(u)
        values = {}
        for name in self._observed_names:
            own = [term for term in tables.terms if term.site == name]
            if any(tables.depends(term) for term in own):
                values[name] = self._pointwise(tables, name, own)
            else:
                pieces = [(term.name, term.log_prob) for term in own]
                values[name] = _joined(pieces, dict(self.batches)[name], self.model.sites[name].scanned)
        return values

    def _pointwise(self, tables: Tables, name: str, own: list[Term]) -> Array:
        factor, shape = own[0].factor, dict(self.batches)[name]
        plates = tables.plates & set(factor.names)
        members, reached = [own[0]], set(factor.names) & tables.variables.keys()
        while new := [t for t in tables.terms if t not in members and not reached.isdisjoint(t.factor.names)]:
            members += new
            reached |= {n for t in new for n in t.factor.names} & tables.variables.keys()
        separate = (
            not self.model.sites[name].scanned
            and all(tables.plates & set(t.factor.names) == plates for t in members)
            and all(t.kind is not Kind.observed for t in members[1:])
            and math.prod(s for n, s in zip(factor.names, factor.data.shape, strict=True) if n in plates)
            == math.prod(shape)
        )
        if not separate:
            raise MethodError(
                f"the observations of site {name!r} share a discrete latent site, so they have no separate log "
                "likelihoods. "
                "Compare models by their joint log likelihood, or give every observation its own discrete site in "
                "its plate."
            )
        variables = frozenset(reached)
        order = [n for n in factor.names if n in plates]
        value = marginals([t.factor for t in members], variables, plates).aligned(order)
        if any(t.kind is Kind.continuous for t in members):
            value = value - marginals([t.factor for t in members[1:]], variables, plates).aligned(order)
        return value.reshape(shape)

    # -- discrete values ---------------------------------------------------------------------------------------------

    @property
    def recovers(self) -> bool:
        """See ``Density.recovers``."""
        return True

    def recover(self, key: PRNGKey, u: Position) -> Values:
        """One joint draw of all discrete sites from their distribution given ``u`` and the data."""
        tables = self._tables(u)
        own = {t.name: t for t in tables.terms if t.kind is Kind.discrete}
        sizes = {n: s for t in own.values() for n, s in zip(t.factor.names, t.factor.data.shape, strict=True)}
        names = {v: (*where, v) for v, where in tables.variables.items()}
        probes = {v: jnp.zeros([sizes[n] for n in names[v]]) for v in names}

        def log_total(data: dict[str, Array]) -> Scalar:
            return tables.total(tables.terms, key, tuple(Factor(names[v], data[v]) for v in names))

        # With a key, the gradient is one for the cells that were drawn and zero elsewhere.
        drawn = jax.grad(log_total)(probes)
        values = {}
        for site in self.model.of_kind(Kind.discrete):
            pieces = []
            for name, term in own.items():
                if term.site == site.name:
                    assert term.support is not None
                    size = term.factor.data.size
                    index = jnp.argmax(drawn[name], -1) if name in drawn else jnp.zeros(size, int)  # one value only
                    pieces.append((name, term.support[index]))
            shape = site.shape[1:] if site.scanned else site.shape
            values[site.name] = _joined(pieces, shape, site.scanned).astype(site.dtype)
        return values

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``. Without ``discrete``, only the sites that do not depend on discrete ones."""
        if discrete is not None:
            return super().constrain(u, discrete)
        values = super().constrain(u, self._anything())
        return {name: value for name, value in values.items() if name in self.unaffected}

    def unconstrain(self, values: Values) -> Position:
        """See ``Density.unconstrain``; values of discrete sites are needed where a support depends on one."""
        given = {site.name for site in self.model.of_kind(Kind.discrete)} & set(values)
        if self.moving and len(given) < len(self.model.of_kind(Kind.discrete)):
            raise ModelError(
                "the support of a continuous site depends on a discrete site, whose value was not given. "
                "Give values of the discrete sites too."
            )
        held = {**self._anything(), **{name: jnp.asarray(values[name]) for name in given}}
        return Density(self.model, held).unconstrain(values)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], frozenset[str]]:
        """Batch shapes of the sites, and which reported values do not depend on discrete sites."""
        batches: dict[str, tuple[int, ...]] = {}

        def run(u: Position, discrete: Values) -> Values:
            for name, site in self._run(u, discrete).items():
                if site["type"] == "sample":
                    batches[name] = tuple(site["fn"].batch_shape)[1 if self.model.sites[name].scanned else 0 :]
            return Density.constrain(self, u, discrete)

        traced, out = jax.make_jaxpr(run, return_shape=True)(jnp.zeros(self.dim), self._anything())
        names = sorted(out)  # as JAX flattens a dict
        discrete = range(len(traced.in_avals) - len(self.model.of_kind(Kind.discrete)), len(traced.in_avals))
        unaffected = set()
        for i, name in enumerate(names):
            _, used = partial_eval.dce_jaxpr(traced.jaxpr, [j == i for j in range(len(names))])
            if not any(used[d] for d in discrete):
                unaffected.add(name)
        return tuple(batches.items()), frozenset(unaffected)

    def _tables(self, u: Position) -> Tables:
        from probgen.program.enumeration import tables_of

        return tables_of(self, u, max((len(shape) for _, shape in self.batches), default=0))


def _joined(pieces: list[tuple[str, Array]], shape: tuple[int, ...], scanned: bool) -> Array:
    """One array from the pieces of a site, ``shape`` at each step: the first steps of a scan are sites of their own."""
    if not scanned:
        return pieces[0][1].reshape(shape)
    ordered = [value for _, value in sorted(pieces, key=lambda piece: -lag_of(piece[0]))]
    return jnp.concatenate([value.reshape(-1, *shape) for value in ordered])
