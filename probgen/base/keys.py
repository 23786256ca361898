"""Random keys: one way in for the seed, one rule for what is derived from it."""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp

from probgen.base.errors import ProbgenError

__all__ = ["SeedError", "as_key", "spread"]


class SeedError(ProbgenError, TypeError):
    """``seed`` is neither an int nor a typed JAX key."""


def as_key(seed: int | jax.Array) -> jax.Array:
    """Turn a seed into a typed JAX key.

    Args:
        seed: A non-negative int (below 2**63; in 32-bit mode, below 2**32), or one typed key as ``jax.random.key``
            makes it (shape ``()``).

    Raises:
        SeedError: For anything else, a raw ``uint32`` key of ``jax.random.PRNGKey`` included.
    """
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        if seed < 0:
            raise SeedError(f"seed must not be negative, got {seed}. Give a non-negative int.")
        # JAX drops what does not fit, and different seeds would give one key.
        bits = 63 if jax.config.jax_enable_x64 else 32  # pyright: ignore[reportAttributeAccessIssue]
        if seed >= 2**bits:
            raise SeedError(f"seed must be less than 2**{bits}, got {seed}. Give a smaller int, or a typed key.")
        return jax.random.key(int(seed))
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        if seed.shape != ():
            raise SeedError(f"seed must be one key, got an array of keys with shape {seed.shape}. Take one of them.")
        return seed
    raise SeedError(
        f"seed must be an int or a typed key, got {type(seed).__name__}. Give seed=0 or seed=jax.random.key(0)."
    )


def spread(key: jax.Array, count: int) -> jax.Array:
    """Keys for ``count`` particles: the key itself, its number counted up, at the cost of an addition.

    Threefry is made for keys that count (Salmon, Moraes, Dror and Shaw 2011, section 2): each gives a stream of its
    own. Hashing each key first (``split``) would cost a third of a particle filter's time. Keys of other generators
    are split.
    """
    if jax.random.key_impl(key) != jax.random.key_impl(jax.random.key(0, impl="threefry2x32")):
        return jax.random.split(key, count)
    high, low = jax.random.key_data(key)
    counted = low + jnp.arange(count, dtype=low.dtype)
    return jax.random.wrap_key_data(jnp.stack([jnp.broadcast_to(high, (count,)), counted], -1), impl="threefry2x32")
