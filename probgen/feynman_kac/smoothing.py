r"""Smoothing: whole paths given all observations, from the particles that a filter has kept.

- ``genealogy`` follows ancestors. Free, and right for any model; but after a few hundred resamplings all paths share
  their beginning.
- ``backward_sample`` draws a path backwards, :math:`P(i) \propto w_t^i\, f(x_{t+1} \mid x_t^i)` (forward filtering,
  backward sampling; Godsill, Doucet and West 2004): every particle of every time is considered, at the cost of
  ``particles`` transition densities per path and step.
- ``backward_mcmc`` replaces that draw by Metropolis-Hastings moves which start at the true ancestor (Dau and Chopin
  2023, arXiv 2207.00976): a few transition densities instead of all.
- ``fixed_lag`` and ``two_filter`` give weighted particles of each time on its own, no paths.

The backward ones need ``FeynmanKac.log_transition``, and particles that hold all that the future depends on.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.keys import spread
from probgen.base.typing import PRNGKey
from probgen.feynman_kac.protocol import Cloud, FeynmanKac
from probgen.feynman_kac.resampling import Systematic
from probgen.feynman_kac.smc import History, normalised

__all__ = ["backward_mcmc", "backward_sample", "fixed_lag", "genealogy", "two_filter"]

_PAIRS = 2**20
"""Transition densities evaluated side by side."""


def genealogy(key: PRNGKey, history: History, draws: int) -> Any:
    """Paths of the ancestors of the last particles, equally weighted.

    Args:
        key: Randomness.
        history: The particles of all times.
        draws: Number of paths. Those that share ancestors stand side by side.

    Returns:
        A pytree like a particle, with the leading axes ``(draws, times)``.
    """
    return _paths(history, _lines(history, _last(key, history, draws)))


def backward_sample(key: PRNGKey, fk: FeynmanKac, history: History, draws: int) -> Any:
    """Paths drawn backwards, independent given the particles; see ``genealogy``."""
    count = history.log_w.shape[1]
    at_once = max(1, _PAIRS // count)

    def chosen(key: PRNGKey, t: Array, x: Any, log_w: Array, after: Any, _: Array) -> Array:
        log_p = log_w + jax.vmap(lambda x: fk.log_transition(t + 1, x, after))(x)
        p = jnp.cumsum(jnp.exp(log_p - jnp.max(log_p)))
        u = jax.random.uniform(key, (), p.dtype) * p[-1]
        return jnp.minimum(jnp.searchsorted(p, u, side="right"), jnp.searchsorted(p, p[-1])).astype(jnp.int32)

    return _backwards(key, history, draws, chosen, at_once)


def backward_mcmc(key: PRNGKey, fk: FeynmanKac, history: History, draws: int, moves: int = 1) -> Any:
    """Paths drawn backwards by ``moves`` Metropolis-Hastings moves per time; see ``genealogy``."""

    def chosen(key: PRNGKey, t: Array, x: Any, log_w: Array, after: Any, parent: Array) -> Array:
        def log_f(i: Array) -> Array:
            return fk.log_transition(t + 1, jax.tree.map(lambda leaf: leaf[i], x), after)

        def move(state: tuple[Array, Array], key: PRNGKey) -> tuple[tuple[Array, Array], None]:
            key_propose, key_accept = jax.random.split(key)
            cumulative = jnp.cumsum(jnp.exp(log_w))
            u = jax.random.uniform(key_propose, (), cumulative.dtype) * cumulative[-1]
            other = jnp.searchsorted(cumulative, u, side="right").astype(jnp.int32)
            there = log_f(other)
            accepted = jnp.log(jax.random.uniform(key_accept, (), there.dtype)) < there - state[1]
            return (jnp.where(accepted, other, state[0]), jnp.where(accepted, there, state[1])), None

        return jax.lax.scan(move, (parent, log_f(parent)), jax.random.split(key, moves))[0][0]

    return _backwards(key, history, draws, chosen, draws)


def fixed_lag(history: History, lag: int) -> Cloud:
    """Particles of each time, weighted by the observations up to ``lag`` steps later.

    Returns:
        Particles and normalised log weights with the leading axes ``(times, particles)``: the ancestors of the
        particles ``lag`` steps later, with the weights of these. Approximate: what is observed after the lag is left
        out, which biases (Kitagawa and Sato 2001).
    """
    times, count = history.log_w.shape

    def look(t: Array) -> tuple[Array, Array]:
        end = jnp.minimum(t + lag, times - 1)

        def back(step: Array, line: Array) -> Array:
            now = end - step
            return jnp.where(now > t, history.ancestors[now][line], line)

        line = jax.lax.fori_loop(0, lag, back, jnp.arange(count, dtype=jnp.int32))
        return line, history.log_w[end]

    lines, log_w = jax.lax.map(look, jnp.arange(times))
    return Cloud(_at(history.x, lines), log_w)


def two_filter(fk: FeynmanKac, forward: History, backward: History, log_prior: Any) -> Cloud:
    r"""Particles of each time given all observations, from a filter that runs forwards and one that runs backwards.

    The backward filter approximates :math:`\gamma_t(x_t)\, p(y_{t+1:T} \mid x_t)` for some densities :math:`\gamma_t`
    (Briers, Doucet and Maskell 2010, Annals of the Institute of Statistical Mathematics 62).

    Args:
        fk: The forward model, with ``log_transition``.
        forward: Its particles.
        backward: Those of the backward filter, in order of time, weighted *without* the observation of their own time.
        log_prior: ``log_prior(t, x)``, log of :math:`\gamma_t`.

    Returns:
        The backward particles with normalised log weights, leading axes ``(times - 1, particles)``: all times but the
        first, which has no forward filter before it. ``particles`` squared transition densities per time.
    """
    count = forward.log_w.shape[1]

    def one(t: Array) -> Array:
        before, log_v = _at(forward.x, t - 1), forward.log_w[t - 1]
        now, log_w = _at(backward.x, t), backward.log_w[t]

        def reached(x: Any) -> Array:
            arriving = log_v + jax.vmap(lambda x_prev: fk.log_transition(t, x_prev, x))(before)
            return jax.scipy.special.logsumexp(arriving) - log_prior(t, x)

        return normalised(log_w + jax.lax.map(reached, now, batch_size=min(count, max(1, _PAIRS // count))))[0]

    times = jnp.arange(1, forward.log_w.shape[0])
    return Cloud(jax.tree.map(lambda leaf: leaf[1:], backward.x), jax.lax.map(one, times))


def _last(key: PRNGKey, history: History, draws: int) -> Array:
    return Systematic()(key, history.log_w[-1], draws)


def _lines(history: History, last: Array) -> Array:
    """Index of the ancestor at each time, shape ``(times, draws)``."""

    def back(line: Array, ancestors: Array) -> tuple[Array, Array]:
        before = ancestors[line]
        return before, before

    _, earlier = jax.lax.scan(back, last, history.ancestors[1:], reverse=True)
    return jnp.concatenate([earlier, last[None]])


def _paths(history: History, lines: Array) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), _at(history.x, lines))


def _at(x: Any, index: Array) -> Any:
    """Particles of one time (a number), or by index within each time (shape ``(times, ...)``)."""
    if jnp.ndim(index) == 0:
        return jax.tree.map(lambda leaf: leaf[index], x)
    return jax.tree.map(lambda leaf: jax.vmap(lambda row, i: row[i])(leaf, index), x)


def _backwards(key: PRNGKey, history: History, draws: int, chosen: Any, at_once: int) -> Any:
    """Draw paths backwards: ``chosen(key, t, particles, log_w, next particle, its own ancestor)`` gives an index."""
    key_last, key_back = jax.random.split(key)
    last = _last(key_last, history, draws)

    def back(line: Array, t: Array) -> tuple[Array, Array]:
        x, log_w = _at(history.x, t), history.log_w[t]
        after = jax.tree.map(lambda leaf: leaf[t + 1][line], history.x)
        parents = history.ancestors[t + 1][line]
        keys = spread(jax.random.fold_in(key_back, t), draws)
        before = jax.lax.map(
            lambda args: chosen(args[0], t, x, log_w, args[1], args[2]),
            (keys, after, parents),
            batch_size=min(draws, at_once),
        )
        return before, before

    times = history.log_w.shape[0]
    _, earlier = jax.lax.scan(back, last, jnp.arange(times - 1), reverse=True)
    return _paths(history, jnp.concatenate([earlier, last[None]]))
