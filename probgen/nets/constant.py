"""Arrays of a network that are no weights: statistics of the data, masks, bases."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
from jax import Array

__all__ = ["Constant", "trainable"]


class Constant(eqx.Module):
    """An array that training leaves alone.

    Attributes:
        value: The array.
    """

    value: Array


def trainable(net: Any) -> Any:
    """For each leaf of a network, whether it is trained: a real array outside of every ``Constant``."""

    def of(part: Any) -> Any:
        if isinstance(part, Constant):
            return jax.tree.map(lambda _: False, part)
        return eqx.is_inexact_array(part)

    return jax.tree.map(of, net, is_leaf=lambda part: isinstance(part, Constant))
