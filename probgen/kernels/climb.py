"""Climbing to a mode of the unconstrained density."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Position, Scalar
from probgen.program.density import Density
from probgen.program.rows import RowDensity

__all__ = ["lbfgs", "reference_point"]

_MOST_STEPS = 1000


def lbfgs(density: Density, start: Position, max_steps: int) -> tuple[Position, Array]:
    """Climb the log density by L-BFGS until two steps in a row gain nothing beyond rounding.

    Args:
        density: The target.
        start: A point with finite log density, unconstrained, shape ``(dim,)``.
        max_steps: Most steps to take.

    Returns:
        The point reached, unconstrained, and the number of steps.
    """

    def loss(u: Any) -> Scalar:
        value = -density.log_density(u)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    import optax  # not before it is needed: it takes long to import

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Array, Position, Any, Scalar, Array]) -> tuple[Array, Position, Any, Scalar, Array]:
        count, u, state, before, quiet = carry
        value, grad = value_and_grad(u, state=state)
        value, grad = jnp.asarray(value), jnp.asarray(grad)
        updates, state = optimizer.update(grad, state, u, value=value, grad=grad, value_fn=loss)
        still = before - value <= 10 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))
        new = u + jnp.asarray(updates)
        new = jnp.where(jnp.all(jnp.isfinite(new)), new, u)
        return count + 1, new, state, value, jnp.where(still, quiet + 1, 0)

    zero = jnp.zeros((), int)
    carry = (zero, start, optimizer.init(start), jnp.asarray(jnp.inf, start.dtype), zero)
    count, u, *_ = jax.lax.while_loop(lambda c: (c[0] < max_steps) & (c[4] < 2), step, carry)
    return u, count


def reference_point(density: RowDensity, start: Position) -> Position:
    """Where rows are expanded: the reference of the density, or the mode that a climb from ``start`` reaches."""
    return lbfgs(density, start, _MOST_STEPS)[0] if density.reference is None else density.reference
