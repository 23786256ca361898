r"""A joint distribution from the conditionals of its entries, as a masked language model gives them.

A masked model says :math:`q_i(x_i \mid x_{-i})` for every entry and every rest of the row. Nothing makes these the
conditionals of one distribution. The joint :math:`\mu` that is closest to them in the sense of Arnold and Gokhale,

.. math:: \mu^* = \arg\min_\mu \sum_i \sum_{x_{-i}} \mathrm{KL}\bigl(q_i(\cdot \mid x_{-i}) \,\|\, \mu(\cdot \mid x_{-i})\bigr),

is the fixed point of

.. math:: \mu(x) \;\propto\; \frac{\sum_i q_i(x_i \mid x_{-i})}{\sum_i 1 / \mu(x_{-i})}, \qquad
          \mu(x_{-i}) = \sum_{x_i} \mu(x),

and where the conditionals are compatible it is the distribution that they belong to.

References: Torroba Hennigen and Kim (2023), "Deriving language models from masked language models"; Arnold and Gokhale
(1998), "Distributions most nearly compatible with given families of conditional distributions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import Scalar
from probgen.generative.table import Table

__all__ = ["ClosestJoint", "closest_joint", "unary_conditionals"]


class ClosestJoint(NamedTuple):
    """The joint closest to conditionals.

    Attributes:
        table: The joint.
        divergence: Its sum of divergences, in nats; 0 where the conditionals are compatible.
        change: Largest change of a log probability in the last step.
    """

    table: Table
    divergence: Scalar
    change: Scalar


def unary_conditionals(predict: Callable[[Array], Array], size: int, values: int) -> Array:
    """The conditionals of every entry given all others, shape ``(size, values**size)``: entry ``i`` of a row has log
    probability ``[i, row]`` given the rest of that row.

    Args:
        predict: From a row with blanks (``values``), shape ``(size,)``, to log probabilities of every value of every
            entry, shape ``(size, values)``.
        size: Number of entries.
        values: Number of symbols.
    """
    rows = Table(jnp.zeros(values**size), size, values).states
    one = jax.vmap(lambda i: jax.vmap(lambda x: predict(x.at[i].set(values))[i, x[i]])(rows))
    return one(jnp.arange(size))


def closest_joint(
    conditionals: Array, size: int, values: int, *, steps: int = 2000, tolerance: float = 1e-10
) -> ClosestJoint:
    """The joint distribution that is closest to conditionals, in the sense of Arnold and Gokhale.

    Args:
        conditionals: Log probability of entry ``i`` of each row given the rest of the row, shape
            ``(size, values**size)``, as from ``unary_conditionals``; finite.
        size: Number of entries.
        values: Number of symbols.
        steps: Steps of the fixed point at most.
        tolerance: Stop where no log probability changes by more.
    """
    if conditionals.shape != (size, values**size):
        raise DataError(
            f"conditionals has shape {conditionals.shape}, expected {(size, values**size)}: one number per entry and row."
        )
    if steps < 1 or not tolerance > 0:
        raise MethodError(f"closest_joint got steps={steps} and tolerance={tolerance}, expected positive numbers.")
    sums = logsumexp(conditionals, axis=0)

    def rest(log_p: Array, i: int) -> Array:
        """Log probability of each row without entry ``i``."""
        cube = log_p.reshape(values**i, values, -1)
        return jnp.broadcast_to(logsumexp(cube, axis=1, keepdims=True), cube.shape).reshape(-1)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        log_p, _, i = state
        inverse = logsumexp(jnp.stack([-rest(log_p, i) for i in range(size)]), axis=0)
        # Half-way in the log: the bare iteration may swing.
        new = 0.5 * (log_p + sums - inverse)
        new = new - logsumexp(new)
        return new, jnp.max(jnp.abs(new - log_p)), i + 1

    def moving(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > tolerance) & (state[2] < steps)

    start = jnp.full(values**size, -size * jnp.log(values))
    log_p, change, _ = jax.lax.while_loop(moving, step, (start, jnp.asarray(jnp.inf), jnp.zeros((), int)))
    each = [jnp.exp(conditionals[i]) * (conditionals[i] - log_p + rest(log_p, i)) for i in range(size)]
    return ClosestJoint(Table(log_p, size, values), jnp.sum(jnp.stack(each)), change)
