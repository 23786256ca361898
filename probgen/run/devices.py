"""Many devices: a mesh with an axis for chains and, where the likelihood is to be split too, one for data.

Everything here is JAX's own: ``jax.sharding`` places arrays, ``jax.distributed`` connects hosts. Chains need nothing of
one another, so each device runs its own loop over its chains (``shard_map``); rows of data are split by the compiler,
which adds up the parts of the likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from probgen.base.errors import MethodError

__all__ = ["CHAIN", "DATA", "Devices", "gathered", "mesh_of", "placed", "spread_rows"]

CHAIN, DATA = "chain", "data"

type Devices = int | Sequence[Any] | Mesh
"""How many devices, which (JAX's), or a mesh of them."""


def mesh_of(devices: Devices, count: int, what: str = "chains") -> Mesh:
    """The mesh that was asked for.

    Args:
        devices: How many devices, or which, for the chains; or a mesh with the axes ``chain`` and ``data`` (or one of
            them).
        count: How many chains, or what else is shared out.
        what: What is.

    Raises:
        MethodError: If there are not so many, the axes have other names, or they cannot be shared out evenly.
    """
    if isinstance(devices, Mesh):
        given: Any = devices
        names = [str(name) for name in given.axis_names]
        if names not in ([CHAIN], [DATA], [CHAIN, DATA]):
            raise MethodError(f"the mesh has the axes {names}, expected {[CHAIN, DATA]} in this order, or one of them.")
        grid = given.devices.reshape([given.shape.get(name, 1) for name in (CHAIN, DATA)])
    else:
        grid = np.asarray(_listed(devices)).reshape(-1, 1)
    parts = grid.shape[0] if what == "chains" else grid.size
    if count % parts:
        raise MethodError(
            f"{count} {what} cannot be shared out evenly over {parts} devices. Take a multiple of {parts} {what}, or "
            f"fewer devices."
        )
    return Mesh(grid, (CHAIN, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def _listed(devices: int | Sequence[Any]) -> list[Any]:
    if isinstance(devices, int) and not isinstance(devices, bool):
        there = jax.devices()
        if not 1 <= devices <= len(there):
            raise MethodError(
                f"devices={devices}, but JAX sees {len(there)} ({there[0].platform}). Ask for 1 to {len(there)}; on a "
                f"CPU, jax.config.update('jax_num_cpu_devices', n) before anything else makes n."
            )
        return there[:devices]
    found = list(devices) if isinstance(devices, Sequence) else []
    if not found or not all(isinstance(device, jax.Device) for device in found):
        raise MethodError(
            f"devices must be an int, JAX devices or a mesh, got {devices!r}. Write devices=jax.devices()."
        )
    return found


def placed(tree: Any, mesh: Mesh, *axes: str) -> Any:
    """Arrays of a pytree on the devices of the mesh, their leading axes split over those of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return _put(leaf, sharding) if eqx.is_array(leaf) else leaf

    return jax.tree.map(put, tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # Devices of other processes: each puts its own part there, of the value that all of them have.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def spread_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays of a pytree: those whose first axis can be shared out evenly over the devices for data are, others are on
    every device."""
    parts = mesh.shape[DATA]

    def put(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        rows = parts > 1 and leaf.ndim and leaf.shape[0] and not leaf.shape[0] % parts
        return placed(leaf, mesh, *([DATA] if rows else []))

    return jax.tree.map(put, tree)


def gathered(tree: Any) -> Any:
    """Arrays of a pytree as NumPy arrays, whole in every process."""

    def get(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(get, tree)
