"""Graph convolutions."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey

__all__ = ["GraphConvolution", "normalised_adjacency"]


def normalised_adjacency(adjacency: Array) -> Array:
    r""":math:`D^{-1/2} (A + I) D^{-1/2}`, with :math:`D` the row sums of :math:`A + I`; shape ``(n, n)``."""
    linked = adjacency + jnp.eye(adjacency.shape[0], dtype=adjacency.dtype)
    root = 1 / jnp.sqrt(linked.sum(1))
    return root[:, None] * linked * root


class GraphConvolution(eqx.Module):
    r"""The layer :math:`\hat A H W + b` (Kipf and Welling 2017).

    Args:
        key: For the initial weights.
        inputs: Features of a node.
        outputs: Features of a node after it.
    """

    linear: eqx.nn.Linear

    def __init__(self, key: PRNGKey, inputs: int, outputs: int) -> None:
        self.linear = eqx.nn.Linear(inputs, outputs, key=key, dtype=jnp.float32)

    def __call__(self, links: Array, features: Array) -> Array:
        """Shape ``(n, outputs)``.

        Args:
            links: The normalised adjacency matrix, shape ``(n, n)``.
            features: Of the nodes, shape ``(n, inputs)``.
        """
        return links @ (features @ self.linear.weight.T) + jnp.asarray(self.linear.bias)
