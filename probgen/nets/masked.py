r"""Masked multilayer perceptrons: output :math:`i` is a function of the inputs before :math:`i` (Germain et al. 2015).

A hidden unit of degree :math:`m` sees inputs :math:`1..m`; output :math:`i` sees units of degree below :math:`i`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import PRNGKey

__all__ = ["MaskedMLP"]


class MaskedMLP(eqx.Module):
    """Dense layers whose weights are masked.

    Args:
        key: For the initial weights.
        size: Length of the input.
        outputs: Numbers per entry of the input.
        width: Length of the hidden layers; best no smaller than ``size``.
        depth: Number of hidden layers, at least 1.
        given: Length of a vector that every output may see; 0 for none.
        activation: Between layers.
        zero: Whether the last layer begins at zero.
    """

    layers: tuple[eqx.nn.Linear, ...]
    given: int = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKey,
        size: int,
        outputs: int,
        width: int = 64,
        depth: int = 2,
        given: int = 0,
        activation: Callable[[Array], Array] = jax.nn.silu,
        *,
        zero: bool = True,
    ) -> None:
        sizes = [size + given, *[width] * depth, size * outputs]
        keys = jax.random.split(key, depth + 1)
        layers = [
            eqx.nn.Linear(a, b, key=k, dtype=jnp.float32) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        if zero:
            layers[-1] = jax.tree.map(jnp.zeros_like, layers[-1])
        self.layers, self.given, self.activation = tuple(layers), given, activation

    def masks(self) -> list[np.ndarray]:
        """Which weights are used, by layer."""
        sizes = [layer.out_features for layer in self.layers]
        size = int(self.layers[0].in_features) - self.given
        least = 0 if self.given or size == 1 else 1
        degrees = [np.concatenate([np.arange(1, size + 1), np.zeros(self.given, int)])]
        degrees += [least + np.arange(int(width)) % max(size - least, 1) for width in sizes[:-1]]
        outputs = np.repeat(np.arange(1, size + 1), int(sizes[-1]) // size)
        hidden = [after[:, None] >= before for before, after in itertools.pairwise(degrees)]
        return [*hidden, outputs[:, None] > degrees[-1]]

    def __call__(self, x: Array, given: Array | None = None) -> Array:
        """Shape ``(size, outputs)`` from ``(size,)``."""
        h = x if given is None else jnp.concatenate([x, given])
        masks = self.masks()
        for i, (layer, mask) in enumerate(zip(self.layers, masks, strict=True)):
            h = jnp.where(mask, layer.weight, 0) @ h + layer.bias  # pyright: ignore[reportOperatorIssue]
            h = h if i == len(masks) - 1 else self.activation(h)
        return h.reshape(x.shape[0], -1)
