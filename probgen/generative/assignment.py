r"""The assignment problem: the permutation :math:`\pi` with the least :math:`\sum_i c_{i\pi(i)}`, inside programs.

Prices :math:`v_j` of the columns are kept such that every assigned row has its cheapest column, :math:`c_{i\pi(i)} -
v_{\pi(i)} = \min_j (c_{ij} - v_j)`: an assignment of all rows with such prices is optimal. Rows first outbid one
another by the difference to their second choice, which assigns nearly all of them; each of the others then takes the
shortest augmenting path (Jonker and Volgenant 1987). The result is exact up to rounding, :math:`O(n^3)` at worst.

Any prices may be begun with. Those of every fourth row and column, solved first in the same way, extend to all columns
by :math:`u_i = \min_j (c_{ij} - v_j)` over these and :math:`v_j = \min_i (c_{ij} - u_i)`: where rows and columns are
samples, as in a batch, these are nearly right, and the paths short.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["assign"]

_FREE = -1
_THINNED = 4
_COARSEST = 64
"""Rows that are solved without others first."""


class _State(NamedTuple):
    column: Array
    """The column of each row, or ``_FREE``."""
    row: Array
    """The row of each column, or ``_FREE``."""
    price: Array


def assign(cost: Array) -> Array:
    """The cheapest assignment.

    Args:
        cost: Finite costs, shape ``(n, n)``.

    Returns:
        The column of each row, a permutation, shape ``(n,)``.
    """
    return _solved(jax.lax.stop_gradient(cost)).column


@jax.jit  # So that calls outside of programs compile once.
def _solved(cost: Array) -> _State:
    n = cost.shape[0]
    free = jnp.full(n, _FREE, jnp.int32)
    state = _State(free, free, _first_prices(cost))
    if n > 1:
        state = _auction(cost, state)
    return jax.lax.fori_loop(0, n, lambda i, s: jax.lax.cond(s.column[i] == _FREE, _augment, _keep, cost, s, i), state)


def _first_prices(cost: Array) -> Array:
    if cost.shape[0] <= _COARSEST:
        return jnp.min(cost, 0)
    some = slice(None, None, _THINNED)
    worth = jnp.min(cost[:, some] - _solved(cost[some, some]).price, 1)
    return jnp.min(cost - worth[:, None], 0)


def _keep(cost: Array, state: _State, row: Array) -> _State:
    return state


def _auction(cost: Array, state: _State) -> _State:
    """Let every row bid twice; who was outbid stays free."""

    def bid(k: Array, state: _State) -> _State:
        row = k % cost.shape[0]

        def move(state: _State) -> _State:
            worth = cost[row] - state.price
            best = jnp.argmin(worth).astype(jnp.int32)
            margin = jnp.min(worth.at[best].set(jnp.inf)) - worth[best]
            evicted = state.row[best]
            column = state.column.at[jnp.where(evicted == _FREE, row, evicted)].set(_FREE).at[row].set(best)
            return _State(column, state.row.at[best].set(row), state.price.at[best].add(-margin))

        return jax.lax.cond(state.column[row] == _FREE, move, lambda s: s, state)

    return jax.lax.fori_loop(0, 4 * cost.shape[0], lambda k, s: bid(k.astype(jnp.int32), s), state)


def _augment(cost: Array, state: _State, start: Array) -> _State:
    """Assign one more row along the shortest path to a free column."""

    def search(at: tuple[Array, ...]) -> tuple[Array, ...]:
        distance, before, done, last, _ = at
        row = state.row[last]
        reach = distance[last] + (cost[row] - state.price) - (cost[row, last] - state.price[last])
        nearer = (reach < distance) & ~done
        distance, before = jnp.where(nearer, reach, distance), jnp.where(nearer, row, before)
        nearest = jnp.argmin(jnp.where(done, jnp.inf, distance)).astype(jnp.int32)
        return distance, before, done.at[nearest].set(True), nearest, state.row[nearest] == _FREE

    distance = cost[start] - state.price
    first = jnp.argmin(distance).astype(jnp.int32)
    before = jnp.full(cost.shape[0], start, jnp.int32)
    done = jnp.zeros(cost.shape[0], bool).at[first].set(True)
    begin = (distance, before, done, first, state.row[first] == _FREE)
    distance, before, done, last, _ = jax.lax.while_loop(lambda at: ~at[-1], search, begin)
    price = state.price + jnp.where(done, distance - distance[last], 0)

    def swap(at: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        column, row, j, _ = at
        i = before[j]
        return column.at[i].set(j), row.at[j].set(i), column[i], i

    begin = (state.column, state.row, last, jnp.asarray(_FREE, jnp.int32))
    column, row, _, _ = jax.lax.while_loop(lambda at: at[3] != start, swap, begin)
    return _State(column, row, price)
