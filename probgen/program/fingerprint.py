"""Fingerprints: is this the same program with the same data as then?

A program is what JAX traces of its density and of the values that it reports: a comment or another name for a variable
changes nothing, another prior or another constant does.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen.program.density import Density
from probgen.program.model import Model

__all__ = ["fingerprint"]


def fingerprint(model: Model, density: Density) -> dict[str, str]:
    """Digests of the program and of each argument, by subject (``program``, ``data 'y'`` ...).

    They hold for one version of the libraries: another one may trace the same program in another way.
    """
    arrays, static = eqx.partition(density, eqx.is_array)

    def answer(arrays: Any, key: Any, u: Any) -> Any:
        here = eqx.combine(arrays, static)
        return here.log_density(u), here.values(key, u)

    traced, shapes = jax.make_jaxpr(answer, return_shape=True)(arrays, jax.random.key(0), jnp.zeros(density.dim))
    digest = hashlib.sha256()
    # Functions show themselves with their address, which is another in every process.
    digest.update(re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr)).encode())
    digest.update(str(jax.tree.structure(shapes)).encode())
    for constant in traced.consts:
        digest.update(_bytes(constant))
    found = {"program": f"sha256:{digest.hexdigest()}"}
    for name, leaf in {**model.leaves, **model.given}.items():
        whole = hashlib.sha256()
        for part in jax.tree.leaves(leaf):
            whole.update(_bytes(part))
        found[f"data {name!r}"] = f"sha256:{whole.hexdigest()}"
    found |= {f"setting {name!r}": repr(value) for name, value in model.settings}
    return found | {f"labels of {dim!r}": repr(list(labels)) for dim, labels in model.labels.items()}


def _bytes(array: Any) -> bytes:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    return f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
