r"""SMC squared: particles of the parameters, each with a particle filter of its own.

At time :math:`t` a particle is :math:`(\theta, \text{filter of } y_{1:t})`, and its potential is the filter's estimate
of :math:`p(y_t \mid y_{1:t-1}, \theta)`. Since the estimates of :math:`p(y_{1:t} \mid \theta)` are unbiased, the
particles have the exact posterior of :math:`\theta` given :math:`y_{1:t}` as their target at each :math:`t`, with any
number of particles per filter. After they have been resampled, steps of particle marginal Metropolis-Hastings (a random
walk with the covariance of the particles, and a new filter for each proposal) move them apart.

References: Chopin, Jacob and Papaspiliopoulos (2013), JRSS B 75(3).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.feynman_kac.protocol import Cloud, FeynmanKac
from probgen.feynman_kac.smc import History, Settings, State, advance, begin, normalised
from probgen.feynman_kac.smoothing import genealogy
from probgen.program.filtered import FilteredDensity

__all__ = ["Filtered", "SMCSquared"]


class Filtered(NamedTuple):
    """A particle: parameters with their filter.

    Attributes:
        u: Unconstrained coordinates of the parameters.
        log_prior: Log prior density there.
        filter: The filter up to now; its ``log_z`` is the estimated log likelihood.
        keys: Data of the keys with which the filter was run, one per time: to run it again, and see its path, when all
            is done. Shape ``(steps + 1, ...)``.
        accepted: Share of the moves after the last resampling that were accepted.
    """

    u: Position
    log_prior: Scalar
    filter: State
    keys: Array
    accepted: Scalar


class Mobility(NamedTuple):
    """The context: how particles are moved apart.

    Attributes:
        due: Whether particles were resampled at this step.
        root: Factor of the covariance of the random walk.
    """

    due: Array
    root: Array


class SMCSquared(FeynmanKac):
    """The Feynman-Kac model of the parameters of a program with a ``scan``; one step is one observation.

    Args:
        density: The density; its settings are those of each filter.
        moves: Metropolis-Hastings steps after each resampling.
        ess_threshold: That of the runner: particles move when it resamples.
    """

    density: FilteredDensity
    moves: int = eqx.field(static=True)
    ess_threshold: float = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """See ``FeynmanKac.steps``."""
        return self.density.cut.size

    @property
    def _settings(self) -> Settings:
        return dataclasses.replace(self.density.settings, variance=False, history=False)

    def init(self, key: PRNGKey) -> tuple[Filtered, Scalar]:
        """See ``FeynmanKac.init``: a draw from the prior, and the start of its filter."""
        key_u, key_filter = jax.random.split(key)
        u = self.density.draw_prior(key_u)
        state, _ = begin(key_filter, self.density.system(u), self._settings)
        data = jax.random.key_data(key_filter)
        keys = jnp.broadcast_to(data, (self.steps + 1, *data.shape))
        return Filtered(u, self.density.log_prior(u), state, keys, jnp.zeros(())), state.log_z

    def start(self) -> Mobility:
        """See ``FeynmanKac.start``."""
        return Mobility(jnp.zeros((), bool), jnp.eye(self.density.dim))

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Mobility) -> Mobility:
        """See ``FeynmanKac.prepare``."""
        _, _, ess = normalised(cloud.log_w)
        due = ess < self.ess_threshold * cloud.log_w.shape[0]
        return Mobility(due, _root(cloud.x.u, cloud.log_w, context.root))

    def step(self, key: PRNGKey, t: Array, x: Filtered, context: Mobility) -> tuple[Filtered, Scalar]:
        """See ``FeynmanKac.step``: move, where due, then take in the next observation."""
        key_moves, key_filter = jax.random.split(key)
        x = jax.lax.cond(context.due, lambda x: self._moved(key_moves, t - 1, x, context.root), lambda x: x, x)
        state, _, _ = advance(key_filter, self.density.system(x.u), self._settings, x.filter, t - 1, 1)
        keys = x.keys.at[t].set(jax.random.key_data(key_filter))
        return x._replace(filter=state, keys=keys), state.log_z - x.filter.log_z

    def again(self, u: Position, keys: Array, like: PRNGKey) -> tuple[Scalar, History]:
        """The filter of a particle at the end, run once more: its log evidence, and all of its particles.

        Args:
            u: Parameters of the particle.
            keys: Keys of its filter.
            like: A key of the same kind.
        """
        system, settings = self.density.system(u), dataclasses.replace(self._settings, history=True)

        def key(t: Array) -> PRNGKey:
            return jax.random.wrap_key_data(keys[t], impl=jax.random.key_impl(like))

        def step(state: State, t: Array) -> tuple[State, Any]:
            state, taken, _ = advance(key(t), system, settings, state, t - 1, 1)
            return state, jax.tree.map(lambda leaf: leaf[0], taken.history)

        state, first = begin(key(jnp.zeros((), int)), system, settings)
        state, later = jax.lax.scan(step, state, jnp.arange(1, self.steps + 1))
        history = jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first.history, later)
        return state.log_z, history

    def path(self, key: PRNGKey, u: Position, keys: Array) -> Values:
        """A path of the states of a particle at the end, from the genealogy of its filter."""
        key_path, key_rest = jax.random.split(key)
        _, history = self.again(u, keys, key)
        path = jax.tree.map(lambda leaf: leaf[0], genealogy(key_path, history, 1))
        return self.density.completed(key_rest, u, self.density.system(u).values(path))

    def report(self, cloud: Cloud, context: Mobility) -> dict[str, Scalar]:
        """See ``FeynmanKac.report``."""
        rate = jnp.sum(jnp.exp(cloud.log_w) * cloud.x.accepted)
        return {"acceptance_rate": jnp.where(context.due, rate, jnp.nan)}

    def _moved(self, key: PRNGKey, t: Array, x: Filtered, root: Array) -> Filtered:
        """Steps that leave the posterior given the observations up to ``t`` invariant."""
        density = self.density

        def move(x: Filtered, key: PRNGKey) -> tuple[Filtered, Scalar]:
            key_u, key_filter, key_accept = jax.random.split(key, 3)
            u = x.u + 2.38 / np.sqrt(density.dim) * (root @ jax.random.normal(key_u, x.u.shape, x.u.dtype))
            system, log_prior = density.system(u), density.log_prior(u)
            keys = jax.vmap(lambda s: jax.random.fold_in(key_filter, s))(jnp.arange(self.steps + 1))
            state, _ = begin(keys[0], system, self._settings)

            def onward(s: Array, state: State) -> State:
                return advance(keys[s], system, self._settings, state, s - 1, 1)[0]

            state = jax.lax.fori_loop(1, t + 1, onward, state)
            log_ratio = log_prior + state.log_z - x.log_prior - x.filter.log_z
            accepted = jnp.log(jax.random.uniform(key_accept)) < log_ratio  # never where it is NaN
            new = Filtered(u, log_prior, state, jax.random.key_data(keys), x.accepted)
            return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, x), accepted.astype(float)

        x, accepted = jax.lax.scan(move, x, jax.random.split(key, self.moves))
        return x._replace(accepted=jnp.mean(accepted))


def _root(u: Array, log_w: Array, otherwise: Array) -> Array:
    """Cholesky factor of the covariance of weighted particles; ``otherwise`` where it has none."""
    w = jnp.exp(log_w)[:, None]
    centred = u - jnp.sum(w * u, 0)
    root = jnp.linalg.cholesky((w * centred).T @ centred)
    return jnp.where(jnp.all(jnp.isfinite(root)), root, otherwise)
