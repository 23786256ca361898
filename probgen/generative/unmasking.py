r"""Any-order autoregression: blanks are filled in from conditionals :math:`p(x_i \mid x_S)` of the known entries.

For one order :math:`\sigma` of the entries the chain rule gives a log density; its mean over orders is a lower bound of
the log density of drawing the order at random (Uria, Murray and Larochelle 2014). With :math:`M` the blank entries,

.. math::

    L(x) = E_\sigma \sum_k \log p(x_{\sigma_k} \mid x_{\sigma_{<k}})
         = E_{n \sim U\{1..D\}} E_{|M| = n} \frac{D}{n} \sum_{i \in M} \log p(x_i \mid x_{\bar M})
         = \int_0^1 \frac{d\lambda}{\lambda}\, E_{M \sim \lambda} \sum_{i \in M} \log p(x_i \mid x_{\bar M}),

where in the last form every entry is blank with probability :math:`\lambda`, independently: all three weigh the same
:math:`M` by :math:`(|M|-1)!\,(D-|M|)!/D!`. That is the bound of *absorbing diffusion*, whose denoiser therefore needs no
time, and whose time is a random order (Ou et al. 2025; Hoogeboom et al. 2022). The bound is tight where the conditionals
are those of one joint distribution.

The time at which an entry is filled in is uniform and independent of its value. So a sampler may draw all times first;
with ``steps`` equal steps the network is called once for every step in which some entry is due: never more often than
there are entries, and :math:`T (1 - (1 - 1/T)^D)` times on average. Entries of one step are drawn independently of one
another, which is an approximation; with one entry per step the draw is exact.

References: Ou et al. (2025), "Your absorbing discrete diffusion secretly models the conditional distributions of clean
data"; Hoogeboom et al. (2022), "Autoregressive diffusion models"; Uria, Murray and Larochelle (2014).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import draw_symbols, picked

__all__ = ["Unmasked", "any_order_bound", "ordered_log_prob", "random_ranks", "unmask"]

type Predict = Callable[[Array], Array]
"""From symbols with blanks, shape ``(size,)``, to log probabilities of every value of every entry, ``(size, values)``."""


class Unmasked(NamedTuple):
    """A row without blanks.

    Attributes:
        x: The row, shape ``(size,)``.
        calls: How often the conditionals were asked for.
    """

    x: Array
    calls: Array


def random_ranks(key: PRNGKey, size: int, steps: int | None = None) -> Array:
    """When each entry is filled in, shape ``(size,)``: a random order, or the step in which its uniform time falls."""
    times = jax.random.uniform(key, (size,))
    return jnp.argsort(jnp.argsort(times)) if steps is None else jnp.floor(times * steps).astype(int)


def unmask(key: PRNGKey, predict: Predict, symbols: Array, ranks: Array, values: int) -> Unmasked:
    """Fill in blanks.

    Args:
        key: Randomness.
        predict: Conditionals of all entries given those that are not blank.
        symbols: A row, shape ``(size,)``; blank where it is ``values``.
        ranks: When each entry is filled in, shape ``(size,)``; those of equal rank are drawn together.
        values: Number of symbols.
    """
    last = jnp.iinfo(ranks.dtype).max

    def more(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] == values)

    def fill(state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, calls = state
        waiting = jnp.where(x == values, ranks, last)
        drawn = draw_symbols(jax.random.fold_in(key, calls), predict(x))
        return jnp.where(waiting == jnp.min(waiting), jnp.where(x == values, drawn, x), x), calls + 1

    return Unmasked(*jax.lax.while_loop(more, fill, (symbols.astype(jnp.int32), jnp.zeros((), jnp.int32))))


def _prefixes(x: Array, ranks: Array, values: int) -> tuple[Array, Array]:
    """For each ``k``, the row with the entries of rank ``k`` and later blank, and where these are; shape ``(size, size)``."""
    blank = ranks >= jnp.arange(x.shape[0])[:, None]
    return jnp.where(blank, values, x), blank


def ordered_log_prob(predict: Predict, x: Array, ranks: Array, values: int) -> Scalar:
    """Log probability of a row that is drawn entry by entry in the order of ``ranks``, a permutation: exact, one call
    per entry."""
    symbols, _ = _prefixes(x, ranks, values)
    log_p = jax.vmap(lambda s: picked(predict(s), x))(symbols)
    return jnp.sum(log_p[ranks, jnp.arange(x.shape[0])])


def any_order_bound(key: PRNGKey, predict: Predict, x: Array, values: int) -> Scalar:
    """An unbiased estimate of the bound, from one random order: at every step the mean over all entries that could come
    next."""
    symbols, blank = _prefixes(x, random_ranks(key, x.shape[0]), values)
    log_p = jax.vmap(lambda s: picked(predict(s), x))(symbols)
    return jnp.sum(jnp.where(blank, log_p, 0.0) / blank.sum(1, keepdims=True))


def any_order_loss(
    key: PRNGKey, logits: Callable[[Array, Array | None], Array], x: Array, given: Array | None
) -> Scalar:
    """The negative bound of a batch, shape ``(batch, size)``, with one random set of blanks per row.

    Args:
        key: Randomness.
        logits: Unnormalised conditionals, from symbols with blanks and a condition.
        x: Rows.
        given: Their conditions, or ``None``.
    """
    count, size = x.shape
    key_number, key_order = jax.random.split(key)
    share = (jnp.arange(count) + jax.random.uniform(key_number, (count,), jnp.float32)) / count
    number = 1 + jnp.floor(share * size)
    ranks = jax.vmap(lambda k: random_ranks(k, size))(jax.random.split(key_order, count))
    blank = ranks < number[:, None]

    def one(x: Array, blank: Array, number: Array, given: Array | None) -> Scalar:
        scores = logits(jnp.where(blank, jnp.iinfo(jnp.int32).max, x), given)
        log_p = picked(jax.nn.log_softmax(scores, axis=-1), x)
        return -jnp.sum(jnp.where(blank, log_p, 0.0)) * size / number

    return jnp.mean(jax.vmap(one)(x, blank, number, given))
