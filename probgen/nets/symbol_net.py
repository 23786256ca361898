"""Networks of sequences of symbols."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey
from probgen.nets.residual import Residual

__all__ = ["SymbolNet"]


class SymbolNet(eqx.Module):
    """A residual network that reads symbols ``0 .. values - 1`` and gives scores of values for every entry.

    Args:
        key: For the initial weights.
        size: Number of entries.
        values: Number of symbols; an entry that is ``values`` (or more) is blank, and read as such.
        given: Length of the vector that it is given; may be 0.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        outputs: Scores per entry; ``None`` for ``values``.
    """

    net: Residual
    values: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __init__(
        self, key: PRNGKey, size: int, values: int, given: int, width: int, depth: int, outputs: int | None = None
    ) -> None:
        self.values, self.outputs = values, values if outputs is None else outputs
        self.net = Residual(key, size * values, size * self.outputs, given, width, depth)

    def __call__(self, symbols: Array, given: Array | None = None) -> Array:
        """Shape ``(size, outputs)`` from ``(size,)`` symbols, or from ``(size, values)`` shares of them."""
        if symbols.ndim == 1:
            symbols = jax.nn.one_hot(symbols, self.values, dtype=jnp.float32)
        given = None if given is None else given.reshape(-1).astype(symbols.dtype)
        return self.net(symbols.reshape(-1), given).reshape(-1, self.outputs)
