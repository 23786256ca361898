r"""Hidden Markov chains with finitely many states, exactly: filter, smoother, most probable path, posterior draws,
evidence; in sequence or in parallel over time.

A chain is given by the log weights of its start, :math:`\pi_i`, and of its steps,

.. math:: w_t(i, j) = \log p(z_t = j \mid z_{t-1} = i) + \log p(y_t \mid z_t = j, z_{t-1} = i), \qquad t = 1 \dots T,

so that :math:`Z = \sum_{z_{0:T}} \exp\{\pi_{z_0} + \sum_t w_t(z_{t-1}, z_t)\}`. Impossible moves have :math:`-\infty`.

Forward and backward messages are log sums over one state; a step is a matrix over the (log-sum-exp, +) semiring, and
products of such matrices are associative: in parallel, the messages are products from the left and from the right
(Särkkä and García-Fernández 2021; Hassan, Särkkä and García-Fernández 2021). The posterior is a Markov chain again,
:math:`p(z_t = j \mid z_{t-1} = i, y) \propto \exp\{w_t(i, j) + \beta_t(j)\}`, from which draws run forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar

__all__ = ["FiniteChain", "Messages", "best_path", "draw", "messages", "smoothed"]


class FiniteChain(eqx.Module):
    """A hidden Markov chain. The number of states may differ at the start.

    Attributes:
        start: Log weights of the first state, shape (K_0,).
        first: Log weights of the first step, shape (K_0, K).
        steps: Log weights of the other steps, shape (T - 1, K, K).
    """

    start: Array
    first: Array
    steps: Array

    @property
    def length(self) -> int:
        """Number of steps, ``T``."""
        return self.steps.shape[0] + 1


class Messages(NamedTuple):
    """Log sums over paths, shifted so that nothing grows with the length of the chain.

    Attributes:
        forward: Log probabilities of the states after each step, given the observations up to it, shape (T, K).
        log_z: Log evidence of the observations up to each step, shape (T,).
        backward: Log likelihood of what comes later, by state after each step, up to a number per step: shape (T, K).
        start: The same, by first state: shape (K_0,).
    """

    forward: Array
    log_z: Array
    backward: Array
    start: Array


type _Sum = Callable[[Array, int], Array]


def messages(chain: FiniteChain, *, parallel: bool = False) -> Messages:
    """Forward and backward messages.

    Args:
        chain: The chain.
        parallel: Whether to use an associative scan over time.
    """
    forward, log_z = _forward(chain, parallel)
    backward = _backward(chain, _log_sum, parallel)
    return Messages(forward, log_z, backward, _log_sum(chain.first + backward[0], 1))


def _log_sum(a: Array, axis: int) -> Array:
    """Log of a sum of exponentials; minus infinity, with derivative zero, where all terms are zero."""
    top = jax.lax.stop_gradient(_finite(jnp.max(a, axis=axis, keepdims=True)))
    total = jnp.sum(jnp.exp(a - top), axis=axis)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + jnp.squeeze(top, axis), -jnp.inf)


def _finite(top: Array) -> Array:
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _forward(chain: FiniteChain, parallel: bool) -> tuple[Array, Array]:
    begin = _log_sum(chain.start[:, None] + chain.first, 0)
    z = _log_sum(begin, 0)
    if parallel:
        # Every product has the start at its left, so that all of its rows are the same.
        rows = jnp.broadcast_to(begin, (1, *chain.first.shape[1:], *begin.shape))
        product, shift = jax.lax.associative_scan(_product, _shifted(jnp.concatenate([rows, chain.steps])))
        ends = _log_sum(product[:, 0], 1)
        return product[:, 0] - _finite(ends)[:, None], ends + shift

    def step(state: tuple[Array, Scalar], w: Array) -> tuple[tuple[Array, Scalar], tuple[Array, Scalar]]:
        alpha, log_z = state
        new = _log_sum(alpha[:, None] + w, 0)
        more = _log_sum(new, 0)
        kept = new - _finite(more), log_z + more
        return kept, kept

    one = (begin - _finite(z), z)
    _, rest = jax.lax.scan(step, one, chain.steps)
    forward, log_z = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), one, rest)
    return forward, log_z


def _backward(chain: FiniteChain, total: _Sum, parallel: bool) -> Array:
    end = jnp.zeros(chain.first.shape[1], chain.first.dtype)
    if parallel:
        product, _ = jax.lax.associative_scan(lambda a, b: _product(b, a), _shifted(chain.steps), reverse=True)
        rest = _log_sum(product, 2)
    else:

        def step(beta: Array, w: Array) -> tuple[Array, Array]:
            new = total(w + beta, 1)
            new = new - _finite(jnp.max(new))
            return new, new

        _, rest = jax.lax.scan(step, end, chain.steps, reverse=True)
    return jnp.concatenate([rest, end[None]])


def _shifted(w: Array) -> tuple[Array, Array]:
    top = _finite(jnp.max(w, axis=(-2, -1)))
    return w - top[..., None, None], top


def _product(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    w, shift = _shifted(_log_sum(one[0][..., :, :, None] + two[0][..., None, :, :], -2))
    return w, shift + one[1] + two[1]


def smoothed(chain: FiniteChain, found: Messages) -> tuple[Array, Array]:
    """Log probabilities given all observations: of the first state (K_0,), and of the states after each step (T, K)."""
    return _normalised(chain.start + found.start), _normalised(found.forward + found.backward)


def _normalised(log_w: Array) -> Array:
    return log_w - _finite(_log_sum(log_w, -1))[..., None]


def best_path(chain: FiniteChain) -> tuple[Array, Array]:
    """The most probable path (Viterbi): first state, and states after each step, shape (T,)."""
    ahead = _backward(chain, jnp.max, False)
    begin = jnp.argmax(chain.start + jnp.max(chain.first + ahead[0], axis=1))
    one = jnp.argmax(chain.first[begin] + ahead[0])

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        w, beta = now
        new = jnp.argmax(w[state] + beta)
        return new, new

    _, rest = jax.lax.scan(step, one, (chain.steps, ahead[1:]))
    return begin, jnp.concatenate([one[None], rest])


def draw(key: PRNGKey, chain: FiniteChain, found: Messages, count: int) -> tuple[Array, Array]:
    """Independent paths from the posterior.

    Returns:
        First states (count,), and states after each step (count, T).
    """
    key_start, key_first, key_steps = jax.random.split(key, 3)
    begin = jax.random.categorical(key_start, chain.start + found.start, shape=(count,))
    one = jax.random.categorical(key_first, chain.first[begin] + found.backward[0])

    def step(state: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        key, w, beta = now
        new = jax.random.categorical(key, (w + beta)[state])
        return new, new

    keys = jax.random.split(key_steps, chain.length - 1)
    _, rest = jax.lax.scan(step, one, (keys, chain.steps, found.backward[1:]))
    return begin, jnp.concatenate([one[None], rest]).T
