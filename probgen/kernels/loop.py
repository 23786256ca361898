"""The loops that run a kernel: a start, and any number of steps into a buffer of draws."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Position, PRNGKey, Values
from probgen.kernels.kernel import Kernel, Stats
from probgen.program.density import Density

__all__ = ["Drawn", "advance", "begin", "find_start"]

TRIES = 100
CANDIDATES = 5
_START, _RECOVERY = 2**32 - 2, 2**32 - 1
"""Stand for the start, and for the recovery of discrete sites, among the step numbers that make keys. The key of a
chain is never split: ``split`` makes the same keys as ``fold_in`` with 0, 1, ..., which belong to the first steps."""


class Drawn(eqx.Module):
    """Draws of one chain (an ensemble: one more axis for chains, after the first)."""

    u: Array
    values: Values
    stats: Stats


def find_start(key: PRNGKey, density: Density, radius: float = 2.0, *, gradient: bool = True) -> tuple[Position, Array]:
    """A starting point: the best of a few uniform draws whose density and gradient are finite.

    Args:
        key: Randomness.
        density: The target.
        radius: Coordinates are uniform on ``(-radius, radius)`` (unconstrained).
        gradient: Whether the gradient must be finite too.

    Returns:
        The point, and whether a finite one was found in ``TRIES`` tries.
    """
    evaluate = jax.value_and_grad(density.log_density) if gradient else lambda u: (density.log_density(u), u)

    def attempt(carry: tuple[Array, Array, Position, Array]) -> tuple[Array, Array, Position, Array]:
        tries, found, best_u, best = carry
        u = jax.random.uniform(jax.random.fold_in(key, tries), (density.dim,), float, -radius, radius)
        value, grad = evaluate(u)
        ok = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        better = ok & (value > best)
        return tries + 1, found + ok, jnp.where(better, u, best_u), jnp.where(better, value, best)

    zero = jnp.zeros((), int)
    carry = (zero, zero, jnp.zeros(density.dim), jnp.asarray(-jnp.inf, float))
    _, found, u, _ = jax.lax.while_loop(lambda c: (c[0] < TRIES) & (c[1] < CANDIDATES), attempt, carry)
    return u, found > 0


def begin(key: PRNGKey, kernel: Kernel, density: Density, chains: int, given: Array | None = None) -> tuple[Any, Array]:
    """State of a chain (of all chains, for an ensemble kernel) at a starting point, and whether there is one.

    Args:
        key: Randomness.
        kernel: The kernel.
        density: The target.
        chains: Number of chains of an ensemble.
        given: Where to start, in unconstrained coordinates; a start is searched where an entry is NaN, or if ``None``.
    """
    key_start, key_init = jax.random.split(jax.random.fold_in(key, _START))

    def start(key: PRNGKey) -> tuple[Position, Array]:
        return find_start(key, density, gradient=kernel.gradient)

    u, ok = jax.vmap(start)(jax.random.split(key_start, chains)) if kernel.ensemble else start(key_start)
    if given is not None:
        known = jnp.all(jnp.isfinite(given), -1, keepdims=True)
        u, ok = jnp.where(known, given, u), ok | known[..., 0]
    return kernel.init(key_init, density, u), jnp.all(ok)


def advance(
    key: PRNGKey,
    kernel: Kernel,
    density: Density,
    state: Any,
    first: Array,
    last: Array,
    record: Array,
    size: int,
    thin: int | Array,
) -> tuple[Any, Drawn]:
    """Take the steps ``first`` to ``last`` (exclusive) and keep what they draw.

    The key of step ``i`` is ``fold_in(key, i)``: where a run is cut into pieces does not change it.

    Args:
        key: Key of the chain.
        kernel: The kernel.
        density: The target.
        state: State before step ``first``.
        first: Number of steps already taken.
        last: Number of steps after this call.
        record: First step whose draw is kept; at most ``size * thin`` steps may follow it.
        size: Length of the buffer.
        thin: Keep every ``thin``-th draw.

    Returns:
        The state, and the draws; entries beyond those made are unspecified.
    """
    draw = eqx.filter_eval_shape(lambda: kernel.step(key, density, state)[1])
    buffer = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), draw)
    origin = jnp.maximum(first, record)

    def body(carry: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        index, state, buffer = carry
        state, draw = kernel.step(jax.random.fold_in(key, index), density, kernel.at(state, index))
        slot = jnp.clip(
            (index - origin) // thin, 0, size - 1
        )  # warm-up writes to slot 0, which the first draw overwrites
        return index + 1, state, jax.tree.map(lambda kept, new: kept.at[slot].set(new), buffer, draw)

    _, state, buffer = jax.lax.while_loop(lambda carry: carry[0] < last, body, (first, state, buffer))
    discrete = buffer.discrete
    if density.recovers:
        made = jnp.clip(-((origin - last) // thin), 0, size)
        discrete = _recovered(jax.random.fold_in(key, _RECOVERY), density, buffer.u, (origin - record) // thin, made)
    constrain = jax.vmap(jax.vmap(density.constrain)) if kernel.ensemble else jax.vmap(density.constrain)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(constrain, buffer.u, discrete))
    # A piece of warm-up keeps nothing, so there is nothing to constrain.
    values = jax.lax.cond(last > record, constrain, lambda *_: blank, buffer.u, discrete)
    return state, Drawn(buffer.u, values, buffer.stats)


def _recovered(key: PRNGKey, density: Density, u: Array, first: Array, made: Array) -> Values:
    """Discrete sites that the density has summed out, drawn for the first ``made`` draws; draw ``i`` of the run has a
    key of its own.

    Args:
        key: Randomness for the whole run.
        density: The target.
        u: Draws of one chain, shape ``(draws, dim)``, or of an ensemble, ``(draws, chains, dim)``.
        first: Index in the run of the first of them.
        made: How many there are; the rest of the buffer is unspecified.
    """

    def recover(index: Array) -> Values:
        key_draw, here = jax.random.fold_in(key, first + index), u[index]
        if here.ndim == 1:
            return density.recover(key_draw, here)
        return jax.vmap(density.recover)(jax.random.split(key_draw, here.shape[0]), here)

    blank = jax.eval_shape(recover, first)
    values = jax.tree.map(lambda leaf: jnp.zeros((u.shape[0], *leaf.shape), leaf.dtype), blank)
    return jax.lax.fori_loop(
        0, made, lambda i, kept: jax.tree.map(lambda k, new: k.at[i].set(new), kept, recover(i)), values
    )
