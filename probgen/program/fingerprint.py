"""Fingerprints: is this the same program with the same data as then?

A program is what JAX traces of its density and of the values that it reports: a comment or another name for a variable
changes nothing, another prior or another constant does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from probgen.program.density import Density
from probgen.program.model import Model

__all__ = ["fingerprint", "stable"]


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
    for constant in _constants(traced):
        digest.update(_bytes(constant))
    found = {"program": f"sha256:{digest.hexdigest()}"}
    parts = {"data": model.leaves, "condition": model.given, "intervention": model.world}
    for part, leaf in ((f"{part} {name!r}", leaf) for part, leaves in parts.items() for name, leaf in leaves.items()):
        whole = hashlib.sha256()
        for array in jax.tree.leaves(leaf):
            whole.update(_bytes(array))
        found[part] = f"sha256:{whole.hexdigest()}"
    found |= {f"setting {name!r}": stable(value) for name, value in model.settings}
    return found | {f"labels of {dim!r}": repr(list(labels)) for dim, labels in model.labels.items()}


def stable(value: Any) -> str:
    """What a setting is, in words that are the same in every process: arrays by their bytes, functions by their code
    and by what they find outside of their arguments."""
    return value if isinstance(value, str) else _stable(value, set())


def _stable(value: Any, seen: set[int], home: str | None = None) -> str:
    def inner(part: Any) -> str:
        return _stable(part, seen, home)

    if isinstance(value, jax.Array | np.ndarray):
        return f"sha256:{hashlib.sha256(_bytes(value)).hexdigest()}"
    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, type | types.ModuleType):
        return f"{getattr(value, '__module__', '')}.{value.__name__}"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__func__)} of {inner(value.__self__)}"
    if isinstance(value, types.FunctionType):
        return _of_function(value, seen, home)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inner(k)}: {inner(v)}" for k, v in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(inner, value))) + "}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__ * hasattr(value, '_fields')}({', '.join(map(inner, value))})"
    if dataclasses.is_dataclass(value):
        fields = ", ".join(f"{f.name}={inner(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _of_function(function: types.FunctionType, seen: set[int], home: str | None) -> str:
    """A digest of a function, and of those that it uses from its own module; nothing of names of variables, comments
    or lines."""
    if id(function) in seen:
        return function.__qualname__
    seen.add(id(function))
    home = home or function.__module__
    parts: list[Any] = [function.__defaults__, function.__kwdefaults__]
    for code in _codes(function.__code__):
        constants = [const for const in code.co_consts if not isinstance(const, types.CodeType)]
        parts += [code.co_code.hex(), code.co_names, constants]
        if function.__module__ == home:
            parts += [function.__globals__.get(name) for name in code.co_names]
    for cell in function.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # without a value yet
            continue
    text = "; ".join(_stable(part, seen, home) for part in parts)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _constants(closed: core.ClosedJaxpr) -> Iterator[Any]:
    """Arrays that are built into a program: its own, and those of the programs within, which print as names only. And
    functions that it calls back, in words."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, core.Literal) and np.ndim(var.val))
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if isinstance(part, core.ClosedJaxpr):
                yield from _constants(part)
            elif isinstance(part, core.Jaxpr):
                yield from _constants(core.ClosedJaxpr(part, ()))
        if "callback" in equation.params:  # Python, of which the program has only the address
            yield stable(equation.params["callback"])


def _is_program(part: Any) -> bool:
    return isinstance(part, core.ClosedJaxpr | core.Jaxpr)


def _bytes(array: Any) -> bytes:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    return f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
