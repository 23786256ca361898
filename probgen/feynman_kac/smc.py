r"""Sequential Monte Carlo: the one runner of all Feynman-Kac models.

At step :math:`t`, with weights :math:`w` of particles :math:`x`:

1. ``prepare`` makes the context from the cloud, and :math:`w_i` is multiplied by ``look_ahead``;
2. if the effective sample size :math:`(\sum w)^2 / \sum w^2` is below the threshold, :math:`\log \hat Z` takes up the
   mean weight and the particles are resampled to equal weights;
3. every particle moves (``step``), and its weight is multiplied by the potential of the move.

:math:`\hat Z` is unbiased, whatever the threshold, for models whose context does not depend on the cloud. Everything is
pure: it runs under ``jit`` and ``vmap``, and keys are folded from (key, step), so a run in pieces is the same run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.keys import spread
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.protocol import Cloud, FeynmanKac
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.variance import Lineage, lag_of

__all__ = ["History", "Result", "Settings", "State", "Steps", "advance", "begin", "normalised", "smc"]


class Settings(eqx.Module):
    """How a Feynman-Kac model is run.

    Attributes:
        particles: Number of particles.
        resampling: The scheme.
        ess_threshold: Resample when the effective sample size falls below this share of the particles; 1 for every
            step, 0 for never.
        history: Keep the particles of every step.
        gradient: Let derivatives pass through the resampling: ancestors are held, and a particle's weight after
            resampling is :math:`w / \\bot w`, so that the derivative of :math:`\\hat Z` is unbiased (Ścibior and Wood
            2021, arXiv 2106.10314). The particles must be differentiable functions of their noise, and the model must
            take a known number of steps.
        variance: Estimate the variance of the evidence (``variance.py``).
        sharding: How the particles are shared out over devices; ``None`` for one device.
    """

    particles: int = eqx.field(static=True)
    resampling: Resampling = eqx.field(static=True, default=Systematic())
    ess_threshold: float = eqx.field(static=True, default=0.5)
    history: bool = eqx.field(static=True, default=False)
    gradient: bool = eqx.field(static=True, default=False)
    variance: bool = eqx.field(static=True, default=True)
    sharding: jax.sharding.Sharding | None = eqx.field(static=True, default=None)

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""
        if isinstance(self.particles, bool) or not isinstance(self.particles, int) or self.particles < 2:
            raise MethodError(f"particles must be an int of at least 2, got {self.particles!r}. Give particles=1000.")
        if not isinstance(self.resampling, Resampling):
            raise MethodError(
                f"resampling must be a resampling scheme, got {self.resampling!r}. Write for example pg.Systematic()."
            )
        if not (isinstance(self.ess_threshold, int | float) and 0 <= self.ess_threshold <= 1):
            raise MethodError(
                f"ess_threshold is a share of the particles, between 0 (never resample) and 1 (at every step), got "
                f"{self.ess_threshold!r}. Write ess_threshold=0.5."
            )


class State(eqx.Module):
    """A run between two steps.

    Attributes:
        cloud: The particles, with normalised weights.
        log_z: Log evidence up to now.
        ess: Effective sample size of the cloud.
        context: What ``prepare`` has made for the last step.
        lineage: For the variance of the evidence; ``None`` without.
    """

    cloud: Cloud
    log_z: Scalar
    ess: Scalar
    context: Any
    lineage: Lineage | None


class History(NamedTuple):
    """The particles of several times; leading axes ``(times, particles)``.

    Attributes:
        x: Particles.
        log_w: Their normalised log weights.
        ancestors: Index of each particle's parent at the time before; at time 0, of itself.
    """

    x: Any
    log_w: Array
    ancestors: Array


class Steps(NamedTuple):
    """What is kept of each step; arrays with the leading axis ``steps``.

    Attributes:
        ess: Effective sample size after the step.
        log_z: Log evidence up to it.
        resampled: Whether particles were resampled before the move.
        unique: Number of different ancestors.
        numbers: What the model reports.
        history: The particles; ``None`` where they are not kept.
    """

    ess: Array
    log_z: Array
    resampled: Array
    unique: Array
    numbers: dict[str, Array]
    history: History | None


class Result(eqx.Module):
    """A finished run.

    Attributes:
        cloud: The last particles, with normalised weights.
        log_z: Log evidence.
        log_z_variance: Its estimated variance (``variance.py``); NaN without.
        taken: Number of steps taken.
        first: The record of time 0, without leading axis.
        steps: The records of the steps after it.
    """

    cloud: Cloud
    log_z: Scalar
    log_z_variance: Scalar
    taken: Scalar
    first: Steps
    steps: Steps

    def history(self) -> History:
        """The particles of all times, of a run with ``history=True``."""
        return jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]), self.first.history, self.steps.history
        )


def normalised(log_w: Array) -> tuple[Array, Scalar, Scalar]:
    """Normalised log weights, the log of their sum, and the effective sample size.

    Where all weights are zero: equal ones, ``-inf`` and 0. NaN stays NaN.
    """
    top = jax.lax.stop_gradient(jnp.max(log_w))
    dead = top == -jnp.inf
    w = jnp.exp(log_w - jnp.where(dead, 0.0, top))
    mass = jnp.sum(w)
    total = jnp.where(dead, -jnp.inf, top + jnp.log(jnp.where(dead, 1.0, mass)))
    relative = jnp.where(dead, -math.log(log_w.shape[0]), log_w - jnp.where(dead, 0.0, total))
    return relative, total, jnp.where(dead, 0.0, mass**2 / jnp.sum(jnp.where(dead, 1.0, w) ** 2))


def begin(key: PRNGKey, fk: FeynmanKac, settings: Settings) -> tuple[State, Steps]:
    """The particles at time 0, and the record of it."""
    count = settings.particles
    x, log_g = jax.vmap(fk.init)(spread(jax.random.fold_in(key, 0), count))
    x, log_g = _shared_out((x, jnp.broadcast_to(log_g, (count,))), settings)
    log_w, total, ess = normalised(log_g.astype(float))
    log_z = total - math.log(count)
    lineage = Lineage.begin(count, log_z.dtype) if settings.variance else None
    state = State(Cloud(x, log_w), log_z, ess, fk.start(), lineage)
    own = jnp.arange(count, dtype=jnp.int32)
    return state, _record(fk, settings, state, jnp.array(False), own, jnp.asarray(count))


def advance(
    key: PRNGKey, fk: FeynmanKac, settings: Settings, state: State, first: Array | int, count: int
) -> tuple[State, Steps, Array]:
    """Take ``count`` steps after step ``first``, or fewer where the model has finished before.

    Args:
        key: The key of the run.
        fk: The model.
        settings: How to run it.
        state: The run after step ``first``.
        first: May be traced.
        count: Static.

    Returns:
        The state, the records with the leading axis ``count`` (zero where no step was taken), and how many steps were
        taken.
    """
    first = jnp.asarray(first, jnp.int32)

    def one(state: State, t: Array) -> tuple[State, Steps]:
        return _step(key, fk, settings, state, t)

    if settings.gradient:  # reverse-mode derivatives need a loop of known length
        state, steps = jax.lax.scan(one, state, first + 1 + jnp.arange(count, dtype=jnp.int32))
        return state, steps, jnp.asarray(count, jnp.int32)

    shapes = jax.eval_shape(one, state, first)[1]
    blank = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), shapes)

    def more(carry: tuple[State, Steps, Array]) -> Array:
        state, _, taken = carry
        return (taken < count) & ~fk.finished(first + taken, state.context)

    def step(carry: tuple[State, Steps, Array]) -> tuple[State, Steps, Array]:
        state, steps, taken = carry
        state, record = one(state, first + taken + 1)
        return state, jax.tree.map(lambda kept, new: kept.at[taken].set(new), steps, record), taken + 1

    return jax.lax.while_loop(more, step, (state, blank, jnp.zeros((), jnp.int32)))


def smc(key: PRNGKey, fk: FeynmanKac, settings: Settings) -> Result:
    """The whole run, as one pure function."""
    state, first = begin(key, fk, settings)
    state, steps, taken = advance(key, fk, settings, state, 0, fk.steps)
    return Result(state.cloud, state.log_z, log_z_variance(state), taken, first, steps)


def log_z_variance(state: State) -> Scalar:
    """Estimated variance of the log evidence; NaN where it was not asked for."""
    if state.lineage is None:
        return jnp.asarray(jnp.nan, state.log_z.dtype)
    return state.lineage.variance(state.cloud.log_w)


def _step(key: PRNGKey, fk: FeynmanKac, settings: Settings, state: State, t: Array) -> tuple[State, Steps]:
    key_prepare, key_resample, key_move = jax.random.split(jax.random.fold_in(key, t), 3)
    context = fk.prepare(key_prepare, t, state.cloud, state.context)
    log_h = None
    if fk.looks_ahead:
        log_h = jax.vmap(lambda x: fk.look_ahead(t, x, context))(state.cloud.x)
    parents, log_w, log_z, lineage, (resampled, ancestors, unique) = _resampled(
        key_resample, fk, settings, state, log_h
    )

    keys = spread(key_move, settings.particles // fk.offspring)
    x, log_g = jax.vmap(lambda key, x: fk.step(key, t, x, context))(keys, parents)
    if fk.offspring > 1:
        x, log_g = jax.tree.map(lambda leaf: leaf.reshape(settings.particles, *leaf.shape[2:]), (x, log_g))
    x, log_g = _shared_out((x, log_g), settings)
    log_w, total, ess = normalised(log_w + log_g)
    if lineage is not None:
        due = t % lag_of(settings.particles) == 0
        lineage = jax.lax.cond(due, lambda kept: kept.rotated(log_w), lambda kept: kept, lineage)
    after = State(Cloud(x, log_w), log_z + total, ess, context, lineage)
    return after, _record(fk, settings, after, resampled, ancestors, unique)


def _resampled(
    key: PRNGKey, fk: FeynmanKac, settings: Settings, state: State, log_h: Array | None
) -> tuple[Any, Array, Scalar, Lineage | None, tuple[Array, Array, Array]]:
    """Parents of the next particles, their log weights, the log evidence and lineage so far, and what happened."""
    count, offspring = settings.particles, fk.offspring
    draws = count // offspring
    if log_h is None:
        ess, total, relative = state.ess, 0.0, state.cloud.log_w
    else:
        relative, total, ess = normalised(state.cloud.log_w + log_h)

    def resample() -> tuple[Any, Array, Scalar, Lineage | None, tuple[Array, Array, Array]]:
        ancestors = settings.resampling(key, jax.lax.stop_gradient(relative), draws)
        equal = jnp.full(count, -math.log(count), relative.dtype)
        if settings.gradient:
            kept = relative[ancestors]
            equal = equal + jnp.repeat(kept - jax.lax.stop_gradient(kept), offspring)
        lineage = state.lineage
        if lineage is not None:
            spread_out = settings.resampling.count_variance(jax.lax.stop_gradient(relative), draws)
            lineage = lineage.resampled(ancestors, spread_out, offspring)
        parents = jax.tree.map(lambda leaf: leaf[ancestors], state.cloud.x)
        unique = _distinct(ancestors, count, settings.resampling.ordered)
        own = jnp.repeat(ancestors, offspring) if offspring > 1 else ancestors
        return parents, equal, state.log_z + total, lineage, (jnp.array(True), own, unique)

    def keep() -> tuple[Any, Array, Scalar, Lineage | None, tuple[Array, Array, Array]]:
        own = jnp.arange(count, dtype=jnp.int32)
        told = jnp.array(False), own, jnp.asarray(count, jnp.int32)
        return state.cloud.x, relative, state.log_z + total, state.lineage, told

    if offspring > 1 or settings.ess_threshold >= 1:
        return resample()
    if settings.ess_threshold <= 0:
        return keep()
    return jax.lax.cond(ess < settings.ess_threshold * count, resample, keep)


def _shared_out(tree: Any, settings: Settings) -> Any:
    if settings.sharding is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, settings.sharding)


def _distinct(ancestors: Array, count: int, ordered: bool) -> Array:
    if ordered:
        return 1 + jnp.sum(ancestors[1:] != ancestors[:-1], dtype=jnp.int32)
    return jnp.sum(jnp.zeros(count, bool).at[ancestors].set(True), dtype=jnp.int32)


def _record(
    fk: FeynmanKac, settings: Settings, state: State, resampled: Array, ancestors: Array, unique: Array
) -> Steps:
    history = History(state.cloud.x, state.cloud.log_w, ancestors) if settings.history else None
    unique = jnp.asarray(unique, jnp.int32)
    return Steps(state.ess, state.log_z, resampled, unique, fk.report(state.cloud, state.context), history)
