r"""Discrete diffusion: entries are corrupted one by one by Markov chains, and a network says what they were.

With transition matrices :math:`Q_t` and their products :math:`\bar Q_t = Q_1 \cdots Q_t`,

.. math::

    q(x_{t-1} = a \mid x_t = b, x_0 = v) = \frac{Q_t[a, b]\, \bar Q_{t-1}[v, a]}{\bar Q_t[v, b]}, \qquad
    p_\theta(x_{t-1} \mid x_t) = \prod_i \sum_v q(x_{t-1,i} \mid x_{t,i}, v)\, p_\theta(x_{0,i} = v \mid x_t),

and a lower bound of the log probability of drawing so is minus

.. math:: \mathrm{KL}(q(x_T \mid x_0) \| p_T) + \sum_{t=1}^T E_q\, \mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \| p_\theta(x_{t-1} \mid x_t)),

where the term of :math:`t = 1` is :math:`-\log p_\theta(x_0 \mid x_1)`. The mean over :math:`v` divides by
:math:`\bar Q_t[v, b]`, so with the exact posteriors of the entries each reverse step has the exact law *of each entry*;
entries of one step are drawn independently, an error of order :math:`1/T` in the law of the row. For one entry there is
none.

Reference: Austin et al. (2021), "Structured denoising diffusion models in discrete state-spaces".
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.corruption import Corruption
from probgen.generative.discrete_family import draw_symbols

__all__ = ["DiscreteProcess"]

IMPOSSIBLE = -1e9
"""Log of a probability of 0: finite, so that sums of such terms have gradients."""

type PredictAt = Callable[[Array, Array], Array]
"""From a corrupted row, shape ``(size,)``, and its step to log probabilities of the clean entries, ``(size, values)``."""


class DiscreteProcess(eqx.Module):
    """A corruption in a number of steps, and its reverse.

    Attributes:
        moves: Log of the transition matrices, shape ``(steps, states, states)``; -1e9 for 0, here and below.
        since_start: Log of their products from the start, shape ``(steps + 1, states, states)``.
        log_end: Log of the law that sampling starts from, shape ``(states,)``.
        values: Number of symbols of clean rows.
    """

    moves: Array
    since_start: Array
    log_end: Array
    values: int = eqx.field(static=True)

    @classmethod
    def of(cls, corruption: Corruption, values: int, steps: int) -> DiscreteProcess:
        """That of a corruption."""
        matrices = corruption.matrices(values, steps)
        one = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
        products = jax.lax.scan(lambda total, q: (total @ q, total @ q), one, matrices)[1]
        products = jnp.concatenate([one[None], products])
        return cls(_log(matrices), _log(products), _log(corruption.end(values)), values)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.moves.shape[0]

    def corrupted(self, key: PRNGKey, x: Array, t: Array | int) -> Array:
        """A clean row after ``t`` steps."""
        return draw_symbols(key, self.since_start[t][x])

    def evidence(self, x_t: Array, t: Array | int) -> Array:
        """Log likelihood of every clean value given the corrupted entries, shape ``(size, values)``; see
        ``Table.posterior``."""
        return self.since_start[t][: self.values, x_t].T

    def reverse(self, log_clean: Array, x_t: Array, t: Array | int) -> Array:
        """Log probability of every state one step earlier, shape ``(size, states)``.

        Args:
            log_clean: Log probabilities of the clean entries, shape ``(size, values)``.
            x_t: The row after ``t`` steps.
            t: From 1 to ``steps``.
        """
        likelihood = self.evidence(x_t, t)
        possible = likelihood > IMPOSSIBLE
        weights = jnp.where(possible, log_clean - jnp.where(possible, likelihood, 0.0), IMPOSSIBLE)
        came_from = _log_matmul(weights, self.since_start[t - 1][: self.values])
        return _normalised(self.moves[t - 1][:, x_t].T + came_from)

    def divergence(self, log_clean: Array, x: Array, x_t: Array, t: Array | int) -> Scalar:
        """The term of step ``t`` of the negative bound, for a clean and a corrupted row."""
        log_q = _normalised(self.moves[t - 1][:, x_t].T + self.since_start[t - 1][x])
        return _divergence(log_q, self.reverse(log_clean, x_t, t))

    def end_divergence(self, x: Array) -> Scalar:
        """The divergence of the corrupted row at the last step from the law that sampling starts from."""
        return _divergence(self.since_start[-1][x], jnp.broadcast_to(self.log_end, (x.shape[0], self.log_end.shape[0])))

    def bound(self, key: PRNGKey, predict: PredictAt, x: Array) -> Scalar:
        """An unbiased estimate of the bound: one corrupted row for every step."""

        def term(key: PRNGKey, t: Array) -> Scalar:
            x_t = self.corrupted(key, x, t)
            return self.divergence(predict(x_t, t), x, x_t, t)

        terms = jax.vmap(term)(jax.random.split(key, self.steps), jnp.arange(1, self.steps + 1))
        return -jnp.sum(terms) - self.end_divergence(x)

    def sample(self, key: PRNGKey, predict: PredictAt, size: int) -> Array:
        """A row, shape ``(size,)``: one call per step."""
        key_end, key_steps = jax.random.split(key)
        x = draw_symbols(key_end, jnp.broadcast_to(self.log_end, (size, self.log_end.shape[0])))

        def one(x: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
            key, t = at
            return draw_symbols(key, self.reverse(predict(x, t), x, t)), None

        keys = jax.random.split(key_steps, self.steps)
        return jax.lax.scan(one, x, (keys, jnp.arange(self.steps, 0, -1)))[0]


def _log(p: Array) -> Array:
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), IMPOSSIBLE)


def _log_matmul(a: Array, b: Array) -> Array:
    return logsumexp(a[:, :, None] + b, axis=1)


def _normalised(log_p: Array) -> Array:
    return log_p - logsumexp(log_p, axis=-1, keepdims=True)


def _divergence(log_q: Array, log_p: Array) -> Scalar:
    """Sum over entries of the divergence of ``q`` from ``p``, shape ``(size, states)`` each."""
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p))
