r"""Particles that carry a Kalman filter: part of the state is drawn, the rest is integrated out.

The latent sites of a step are split into :math:`z_t`, which are drawn as the program draws them, and :math:`s_t`, which
are linear and Gaussian given all :math:`z`. A particle is :math:`z_t`, and mean and covariance of the linear state given
:math:`z_{0:t}, y_{1:t}`; it weighs by the predictive density

.. math:: G_t = p(y_t \mid z_{0:t}, y_{1:t-1}),

which the filter gives. By the Rao-Blackwell theorem the evidence varies less than with particles for both parts. Given
a path of :math:`z`, the linear part is drawn from its exact posterior.

References: Chen and Liu (2000), "Mixture Kalman filters"; Doucet, de Freitas, Murphy and Russell (2000),
"Rao-Blackwellised particle filtering for dynamic Bayesian networks".
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.kalman import Law, View, predictive, updated
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.program.cut import Cut, cut_of
from probgen.program.gaussian_step import coloured, location, packed, residual
from probgen.program.handlers import InitialKeys
from probgen.program.linear_part import draw_linear, linear_layout
from probgen.program.linear_step import Sizes, step_maps
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.scanned import OneStep, before_scan, draw_keys, log_potential, observed
from probgen.program.steps import Layout, leaves_of

__all__ = ["MarginalParticle", "RaoBlackwellised", "RaoBlackwellisedSystem"]


class MarginalParticle(NamedTuple):
    """One particle.

    Attributes:
        carry: The carry of the scan; where it depends on the linear state, at the mean of that.
        sites: Drawn sites of the last step; zeros at time 0.
        before: Drawn sites before the scan.
        statics: Means of the linear sites before the scan, shape (size,).
        covariance: Of the linear state, shape (d, d).
        mean: Of the linear sites of the step given the data so far, shape (k,).
        variance: Likewise.
    """

    carry: Any
    sites: Values
    before: Values
    statics: Array
    covariance: Array
    mean: Array
    variance: Array


class RaoBlackwellised(eqx.Module):
    """Integrate out the part of the state that is linear and Gaussian given the rest, by a Kalman filter in each particle;
    draw the rest as the program does.

    Reference: Doucet, de Freitas, Murphy and Russell (2000), "Rao-Blackwellised particle filtering for dynamic Bayesian
    networks".

    Attributes:
        linear: Names of the sites to integrate out, of the scan and before it; ``None`` finds as many as it can.
    """

    linear: tuple[str, ...] | None = eqx.field(static=True, default=None)

    def system(self, model: Model) -> RaoBlackwellisedSystem:
        """The Feynman-Kac model."""
        return RaoBlackwellisedSystem(model, self.linear)


class RaoBlackwellisedSystem(FeynmanKac):
    """A program with a ``scan``, part of whose state is linear and Gaussian given the rest.

    The linear sites are found by following the operations of the program: their locations, and those of all that depends
    on them, must be affine in them for every value of the other sites, their covariances free of them. Observations that
    depend on them are Gaussian; others may have any distribution.

    Args:
        model: The model.
        linear: Names of the sites to integrate out, of the scan and before it; ``None`` finds as many as it can.

    Raises:
        ModelError: If the program has no scan or two, or cannot be run step by step.
        MethodError: If no site of the scan is linear and Gaussian given the others, or a named one is not; if something is
            observed behind the scan.
    """

    model: Model
    cut: Cut = eqx.field(static=True)
    """How the parts of the program hang together; ``sites`` and ``drawn`` hold all latent sites."""
    layout: Layout = eqx.field(static=True)
    """How the linear sites are a chain given the others."""

    def __init__(self, model: Model, linear: tuple[str, ...] | None = None) -> None:
        self.model = model.unlabelled()
        cut = cut_of(self.model, {})
        if cut.weighs_after:
            raise MethodError(
                "a site is observed behind the scan, where the linear state is no longer known. Observe it in the last "
                "step, under a mask, or use pg.Bootstrap()."
            )
        self.layout = linear_layout(self.model, linear)
        statics = self.layout.statics
        self.cut = dataclasses.replace(
            cut,
            fixed=tuple(name for name in cut.fixed if name not in statics),
            in_rows=tuple(name for name in cut.in_rows if name not in statics),
            keeps="a particle carries a Kalman filter of its whole past",
        )

    @property
    def steps(self) -> int:
        """Steps of the scan."""
        return self.cut.size

    @property
    def markovian(self) -> bool:
        """Whether ``log_transition`` exists: it does not, for the filter remembers the whole path."""
        return False

    # -- the Feynman-Kac model ---------------------------------------------------------------------------------------

    def init(self, key: PRNGKey) -> tuple[MarginalParticle, Scalar]:
        """See ``FeynmanKac.init``: the program up to its scan."""
        layout, sizes = self.layout, Sizes(self.model, self.layout)
        size = sizes.of(layout.statics)
        zeros = sizes.values(layout.statics, jnp.zeros((1, size)))
        count = len(self.cut.drawn) - len(layout.statics)
        trace, scan = before_scan(self.model, zeros, draw_keys(key, count))
        before = {name: trace[name]["value"] for name, _ in self.cut.drawn if name not in layout.statics}
        seen = [name for name in layout.outside if name not in layout.statics]

        def local(flat: Array) -> tuple[Array, Array, Array]:
            own, noise = jnp.split(flat, 2, axis=1)
            values = sizes.values(layout.statics, own)
            trace, scan = before_scan(self.model, before | values)
            gaps = []
            for name, z in sizes.values(layout.statics, noise).items():
                auxiliary = self.model.sites[name].auxiliary
                made = location(trace[name], auxiliary=auxiliary) + coloured(trace[name], z, auxiliary=auxiliary)
                gaps.append(made - values[name])
            leaves = leaves_of(scan)
            misses = [residual(trace[name]) for name in seen]
            return (
                packed(gaps, [None] * len(gaps))[0],
                sizes.state([leaves[i] for i in layout.state])[0],
                packed(misses, [None] * len(misses))[0],
            )

        (gap, _, miss), push = jax.linearize(local, jnp.zeros((1, 2 * size)))
        slopes = jax.vmap(push)(jnp.eye(2 * size)[:, None])
        d_gap, d_carry, d_miss = (slope.T for slope in slopes)
        right = jnp.concatenate([d_gap[:, size:], gap[:, None]], 1)
        solved = jax.scipy.linalg.solve_triangular(-d_gap[:, :size], right, lower=True, unit_diagonal=True)
        root, mean = solved[:, :-1], solved[:, -1]
        # The noise of the sites before the scan is the noise of a step from nothing.
        nothing = Law(jnp.zeros(0), jnp.zeros((0, 0)))
        h, k, r = jnp.zeros((len(miss), 0)), -d_miss[:, :size] @ root, miss + d_miss[:, :size] @ mean

        def now(slope: Array, offset: Array) -> Law:
            return updated(nothing, jnp.zeros((len(offset), 0)), slope @ root, slope @ mean + offset, h, k, r)

        statics = now(jnp.eye(size), jnp.zeros(size)).mean
        to_state = jnp.concatenate([sizes.chosen, d_carry[:, :size]])
        state = now(to_state, jnp.zeros(len(to_state)))
        read = sizes.of(layout.direct)
        carry = self._moved(leaves_of(scan), state.mean[read:])
        log_g = log_potential(trace) + 0.5 * jnp.sum(miss**2) + predictive(nothing, h, k, r)
        width = sizes.of(layout.latent)
        blank = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in self._drawn_inside}
        empty = jnp.zeros(width)
        x = MarginalParticle(carry, blank, before, statics, state.covariance, empty, empty)
        return x, log_g

    def step(self, key: PRNGKey, t: Array, x: MarginalParticle, context: Any) -> tuple[MarginalParticle, Scalar]:
        """See ``FeynmanKac.step``: draw what is not linear, move and update the filter of the rest."""
        model, layout, sizes = self.model, self.layout, Sizes(self.model, self.layout)
        statics = sizes.values(layout.statics, x.statics[None])
        _, scan = before_scan(model, x.before | statics)
        linear = sizes.values(layout.latent, jnp.zeros((1, sizes.of(layout.latent))))
        names = tuple(name for name, _ in self.cut.sites)
        taken = OneStep(scan, t, x.carry, names, {})(linear, key)
        drawn = {name: taken.values[name] for name, _ in self._drawn_inside}
        zero = jnp.zeros((1, sizes.of(layout.latent)))
        leaves = jax.tree.leaves(x.carry)
        made = step_maps(model, layout, x.before, t, leaves, x.statics[None], zero, drawn)
        maps = jax.tree.map(lambda a: a[0], made.rows)
        law = Law(jnp.zeros(len(x.covariance)), x.covariance)

        def now(view: View) -> Law:
            return updated(law, view.of_state, view.of_noise, view.offset, *maps.seen)

        log_g = taken.log_potential + 0.5 * maps.square + predictive(law, *maps.seen)
        state, own = now(maps.moves), now(maps.sites)
        read = sizes.of(layout.direct)
        moved = x.statics + state.mean[:read] @ sizes.chosen if layout.direct else x.statics
        carry = self._moved(made.carry, state.mean[read:])
        variance = jnp.diagonal(own.covariance)
        return MarginalParticle(carry, drawn, x.before, moved, state.covariance, own.mean, variance), log_g

    # -- reading -----------------------------------------------------------------------------------------------------

    def latent(self, x: MarginalParticle) -> Values:
        """Latent sites of the last step: drawn ones, and the means of linear ones."""
        return x.sites | _flat_values(self.model, self.layout, x.mean)

    def variances(self, x: MarginalParticle) -> Values:
        """Variances of the linear sites of the last step within the particle."""
        return _flat_values(self.model, self.layout, x.variance)

    def values(self, path: MarginalParticle) -> Values:
        """Drawn sites of a path (leading axis ``steps + 1``): those of the scan as series, in the order of its rows."""
        order = slice(None, None, -1) if self.cut.reverse else slice(None)
        series = {name: path.sites[name][1:][order] for name, _ in self._drawn_inside}
        return series | {name: value[0] for name, value in path.before.items()}

    def reported(self, key: PRNGKey, values: Values) -> Values:
        """What a result reports at given drawn sites: the linear sites are drawn from their exact posterior."""
        key_linear, key_rest = jax.random.split(key)
        held = values | draw_linear(key_linear, self.model, self.layout, values)
        with handlers.block():
            program = handlers.seed(handlers.substitute(InitialKeys(self.model.bind()), data=held), key_rest)
            trace = handlers.trace(program).get_trace()
        return {site.name: trace[site.name]["value"] for site in self.model.sites if site.reported}

    def breakdown(self, key: PRNGKey, t: int, x: MarginalParticle) -> dict[str, Scalar]:
        """Log probability per observed site and factor of a move to step ``t``, the linear sites of the step at zero.

        Args:
            key: Randomness of the move.
            t: The step; 0 for what stands before the scan.
            x: The particle at time ``t - 1``; at ``t = 0``, the first particle itself.
        """
        sizes = Sizes(self.model, self.layout)
        trace, scan = before_scan(self.model, x.before | sizes.values(self.layout.statics, x.statics[None]))
        if t == 0:
            return {name: jnp.sum(site_log_prob(site)) for name, site in observed(trace).items()}
        linear = sizes.values(self.layout.latent, jnp.zeros((1, sizes.of(self.layout.latent))))
        return OneStep(scan, t, x.carry, tuple(name for name, _ in self.cut.sites), {})(linear, key).terms

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _drawn_inside(self) -> list[tuple[str, jax.ShapeDtypeStruct]]:
        return [(name, shape) for name, shape in self.cut.sites if name not in self.layout.latent]

    def _moved(self, leaves: list[Array], change: Array) -> Any:
        """The carry with its linear part moved."""
        start, moved = 0, [jnp.asarray(a, shape.dtype) for a, shape in zip(leaves, self.cut.carry, strict=True)]
        for i in self.layout.state:
            part = change[start : start + moved[i].size].reshape(moved[i].shape)
            moved[i], start = moved[i] + part, start + moved[i].size
        return self.cut.tree.unflatten(moved)


def _flat_values(model: Model, layout: Layout, flat: Array) -> Values:
    return Sizes(model, layout).values(layout.latent, flat[None])
