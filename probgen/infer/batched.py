"""A function of single draws, run for many of them in batches of one compiled size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen.base.typing import Values
from probgen.run.compiled import compile_all
from probgen.run.progress import Progress, show_by_default

__all__ = ["in_batches"]

_BYTES = 1 << 26
"""About how much the values of one batch of draws may take."""


def in_batches(
    function: Callable[..., Any],
    leading: tuple[Any, ...],
    count: int,
    values: Mapping[str, np.ndarray],
    trailing: tuple[Any, ...],
    size: int,
    progress: bool | None,
) -> Any:
    """Call ``function(*leading, indices, values, *trailing)`` for all draws; arrays come back on the host.

    Args:
        function: Hashable (best defined at module level); the arrays that it returns have a leading axis of draws, all
            else comes back as it is.
        leading: Its first arguments.
        count: Number of draws.
        values: Arrays by site, with a leading axis of draws.
        trailing: Its last arguments.
        size: About how many bytes one draw takes.
        progress: Show a progress bar. ``None``: at a terminal only.
    """
    batch = max(1, min(count, _BYTES // size))
    batches = -(-count // batch)
    batch = -(-count // batches)

    def arguments(first: int) -> tuple[Any, ...]:
        # The last batch is filled up with copies of the last draw, which are dropped.
        indices = np.minimum(np.arange(first, first + batch), count - 1)
        held: Values = {name: jnp.asarray(value[indices]) for name, value in values.items()}
        return (*leading, jnp.asarray(indices), held, *trailing)

    (program,), _ = compile_all([(function, arguments(0))])
    parts, rest = [], None
    with Progress(["draws"], count, show_by_default() if progress is None else progress) as bar:
        for first in range(0, count, batch):
            arrays, rest = eqx.partition(program(*arguments(first)), eqx.is_array)
            parts.append(jax.device_get(arrays))
            bar.update(0, min(first + batch, count), {})
    return eqx.combine(jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts), rest)
