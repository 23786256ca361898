"""BlackJAX's nested slice sampling: live points, and the step that replaces the worst of them."""

# BlackJAX annotates traced numbers as float, and arrays as any pytree.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.program.density import Density

__all__ = ["Nested", "begin_nested", "remaining", "step_nested"]


class Nested(NamedTuple):
    """A nested sampling run.

    Attributes:
        state: BlackJAX's state: live points, integrator, covariance.
        dead: Points that were replaced, in that order; leading axis ``capacity``.
        steps: Steps taken.
    """

    state: Any
    dead: Any
    steps: Array


def _sampler(density: Density, moves: int, delete: int) -> Any:
    return blackjax.nss(density.log_prior, density.log_likelihood, num_inner_steps=moves, num_delete=delete)


def begin_nested(key: PRNGKey, density: Density, live: int, moves: int, delete: int, steps: int) -> Nested:
    """Live points from the prior, and room for the dead ones of ``steps`` steps."""
    key_prior, key_state = jax.random.split(key)
    u = jax.vmap(density.draw_prior)(jax.random.split(key_prior, live))
    state = _sampler(density, moves, delete).init(u, rng_key=key_state)
    room = jax.tree.map(lambda leaf: jnp.zeros((steps * delete, *leaf.shape[1:]), leaf.dtype), state.particles)
    return Nested(state, room, jnp.zeros((), int))


def step_nested(key: PRNGKey, density: Density, nested: Nested, moves: int, delete: int) -> Nested:
    """Replace the ``delete`` worst live points by others with a higher likelihood."""
    state, info = _sampler(density, moves, delete).step(key, nested.state)
    state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), state, nested.state)
    first = nested.steps * delete
    dead = jax.tree.map(
        lambda room, new: jax.lax.dynamic_update_slice_in_dim(room, new.astype(room.dtype), first, 0),
        nested.dead,
        info.particles,
    )
    return Nested(state, dead, nested.steps + 1)


def remaining(nested: Nested) -> Scalar:
    """Log of the evidence that the live points still hold over what the dead ones have."""
    integrator = nested.state.integrator
    return integrator.logZ_live - integrator.logZ
