"""What the adapters of NumPyro's Hamiltonian kernels share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from probgen.base.typing import PRNGKey
from probgen.kernels.metric import DENSE_LIMIT

__all__ = ["FLAT", "dense", "like", "rekeyed"]

FLAT = "_u"
"""Name under which NumPyro sees the coordinates."""


def dense(metric: str, dim: int) -> bool:
    """Whether the metric is dense, ``"auto"`` being so in small dimension."""
    return metric == "dense" or (metric == "auto" and dim <= DENSE_LIMIT)


def rekeyed(state: Any, key: PRNGKey) -> Any:
    """The state with every random key in it replaced by one of this step."""
    leaves, treedef = jax.tree.flatten(state)
    return treedef.unflatten(
        [
            jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            for i, leaf in enumerate(leaves)
        ]
    )


def like(old: Any, new: Any) -> Any:
    """The new state with the dtypes of the old one, as a loop needs it."""
    return jax.tree.map(
        lambda o, n: n if n.dtype == o.dtype else n.astype(o.dtype), old, jax.tree.map(jnp.asarray, new)
    )
