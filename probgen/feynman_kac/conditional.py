r"""Conditional sequential Monte Carlo: a Markov kernel on whole paths.

Slot 0 of the particles keeps a reference path :math:`x'_{0:T}`; the others are run and resampled given that it
survives, and at the end a new path is drawn. Whatever the number of particles, this leaves the law

.. math:: \mathbb{Q}_T(dx_{0:T}) \propto M_0(dx_0)\, G_0(x_0) \prod_{t=1}^T M_t(x_{t-1}, dx_t)\, G_t(x_{t-1}, x_t)

invariant: in a state-space model, the smoothing law. Many particles only make it mix better, and so does giving the
reference a new past: with weights :math:`w_{t-1}^i` and transition densities :math:`m_t` of :math:`M_t`,

.. math:: P(A_t^0 = i) \propto w_{t-1}^i \, m_t(x_{t-1}^i, x'_t)\, G_t(x_{t-1}^i, x'_t).

References: Andrieu, Doucet and Holenstein (2010), JRSS B 72(3); Whiteley (2010), its discussion (backward sampling);
Lindsten, Jordan and Schön (2014), JMLR 15 (ancestor sampling).
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.keys import spread
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.protocol import Cloud, FeynmanKac
from probgen.feynman_kac.smc import Settings, normalised

__all__ = ["Ancestry", "PathStats", "conditional_smc"]


class Ancestry(enum.Enum):
    """How the path gets its past. All leave the same law invariant."""

    traced = "the ancestors of a particle, as they came: needs no transition density; early times hardly move"
    sampled = "as traced, with new ancestors of the reference: needs a transition density; moves with few particles"
    backward = "drawn backwards when all particles are there: needs a transition density; as good as sampled"


class PathStats(NamedTuple):
    """What a sweep tells about itself.

    Attributes:
        ess: Effective sample size by time, shape ``(steps + 1,)``.
        moved: Where the new path is not the reference, shape ``(steps + 1,)``.
    """

    ess: Array
    moved: Array


class _Kept(NamedTuple):
    x: Any
    log_w: Array
    ess: Scalar


def conditional_smc(
    key: PRNGKey, fk: FeynmanKac, settings: Settings, reference: Any, ancestry: Ancestry = Ancestry.sampled
) -> tuple[Any, Scalar, PathStats]:
    """Draw a new path, given one.

    Args:
        key: Randomness.
        fk: The model. It must know ``log_potential``; and ``log_transition``, unless the path is ``traced``. What it
            prepares must not depend on the particles.
        settings: ``particles`` (at least 2), ``resampling`` and, for a traced path, ``ess_threshold`` are used; where
            ancestors are drawn anew, every step resamples.
        reference: The path, a particle whose leaves have the leading axis ``steps + 1``.
        ancestry: How the path gets its past.

    Returns:
        The new path; the log evidence of the conditional run, which is no unbiased estimate; statistics.

    Raises:
        MethodError: If there are fewer than two particles, or the model is adaptive or has several offspring.
    """
    if settings.particles < 2:
        raise MethodError(
            f"conditional SMC needs at least 2 particles, got particles={settings.particles}: one is the reference."
        )
    if fk.adaptive or fk.offspring != 1:
        raise MethodError(
            f"{type(fk).__name__} adapts its steps to the particles, or makes several offspring of one. Conditional "
            f"SMC needs a model that does neither."
        )
    key_start, key_run, key_path = jax.random.split(key, 3)
    count = settings.particles
    # Where nothing is resampled an ancestor is no random choice, and cannot be drawn anew.
    share = settings.ess_threshold if ancestry is Ancestry.traced else 1.0

    def put(x: Any, t: Array) -> Any:
        return jax.tree.map(lambda leaf, path: leaf.at[0].set(path[t]), x, reference)

    def step(carry: tuple[Cloud, Scalar, Any], t: Array) -> tuple[tuple[Cloud, Scalar, Any], tuple[_Kept, Array]]:
        cloud, log_z, context = carry
        key_context, key_pivot, key_ancestors, key_move = jax.random.split(jax.random.fold_in(key_run, t), 4)
        context = fk.prepare(key_context, t, cloud, context)
        now = jax.tree.map(lambda path: path[t], reference)
        log_w = cloud.log_w
        if fk.looks_ahead:
            log_w = log_w + jax.vmap(lambda x: fk.look_ahead(t, x, context))(cloud.x)
        log_w, total, ess = normalised(log_w)
        pivot = jnp.zeros((), jnp.int32)
        if ancestry is Ancestry.sampled:
            # The weights without the look-ahead: the transition density counts the potential whole.
            onward = jax.vmap(lambda x: fk.log_transition(t, x, now))(cloud.x)
            pivot = jax.random.categorical(key_pivot, cloud.log_w + onward).astype(jnp.int32)
        resample = ess < share * count if share < 1 else jnp.ones((), bool)
        ancestors = settings.resampling.conditional(key_ancestors, log_w, pivot, 0)
        ancestors = jnp.where(resample, ancestors, jnp.arange(count, dtype=ancestors.dtype))
        log_w = jnp.where(resample, -jnp.log(count), log_w)
        parents = jax.tree.map(lambda leaf: leaf[ancestors], cloud.x)
        x, log_g = jax.vmap(lambda key, x: fk.step(key, t, x, context))(spread(key_move, count), parents)
        parent = jax.tree.map(lambda leaf: leaf[0], parents)
        log_g = log_g.at[0].set(fk.log_potential(t, parent, now, context))
        log_w, gained, ess = normalised(log_w + log_g)
        x = put(x, t)
        return (Cloud(x, log_w), log_z + total + gained, context), (_Kept(x, log_w, ess), ancestors)

    x, log_g = jax.vmap(fk.init)(spread(key_start, count))
    start = jax.tree.map(lambda path: path[0], reference)
    log_g = log_g.at[0].set(fk.log_potential(jnp.zeros((), int), None, start, None))
    log_w, total, ess = normalised(log_g - jnp.log(count))
    first = _Kept(put(x, jnp.zeros((), int)), log_w, ess)
    times = jnp.arange(1, fk.steps + 1)
    (_, log_z, _), (later, ancestors) = jax.lax.scan(step, (Cloud(first.x, log_w), total, fk.start()), times)
    kept = jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, later)
    slots = _drawn_back(key_path, fk, kept, ancestors, ancestry)
    path = jax.tree.map(lambda leaf: jax.vmap(lambda x, i: x[i])(leaf, slots), kept.x)
    return path, log_z, PathStats(kept.ess, slots != 0)


def _drawn_back(key: PRNGKey, fk: FeynmanKac, kept: _Kept, ancestors: Array, ancestry: Ancestry) -> Array:
    """Which particle the path goes through, by time."""
    key_last, key_back = jax.random.split(key)
    last = jax.random.categorical(key_last, kept.log_w[-1])

    def back(later: Array, t: Array) -> tuple[Array, Array]:
        if ancestry is not Ancestry.backward:
            here = ancestors[t, later]
        else:
            x, x_later = (jax.tree.map(lambda leaf, at=at: leaf[at], kept.x) for at in (t, (t + 1, later)))
            onward = jax.vmap(lambda x: fk.log_transition(t + 1, x, x_later))(x)
            here = jax.random.categorical(jax.random.fold_in(key_back, t), kept.log_w[t] + onward)
        return here.astype(last.dtype), here.astype(last.dtype)

    _, slots = jax.lax.scan(back, last, jnp.arange(fk.steps), reverse=True)
    return jnp.append(slots, last)
