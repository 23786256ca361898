"""Compiled programs, kept by what they are made from.

``jax.jit`` compiles at the first call, inside that call. Here tracing and compiling are steps of their own: several programs compile side by
side, the time is measured, and chains that run in threads never trace (NumPyro's handler stack belongs to one thread).
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

__all__ = ["Executable", "compile_all", "compile_count", "use_compilation_cache"]

_KEPT = 256
_cache: OrderedDict[Any, Executable] = OrderedDict()
_lock = threading.RLock()
_count = 0


class Executable:
    """A compiled function. Call it with arguments of the structure and shapes that it was compiled for."""

    def __init__(self, compiled: Callable[[Any], Any], static: Any) -> None:
        self._compiled, self._static = compiled, static

    def __call__(self, *args: Any) -> Any:
        dynamic, _ = eqx.partition(args, eqx.is_array)
        out_dynamic = self._compiled(dynamic)
        return eqx.combine(out_dynamic, self._static.value) if self._static.value is not None else out_dynamic


class _Static:
    value: Any = None


def compile_all(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> tuple[list[Executable], float]:
    """Compile several functions for given arguments; arrays are traced, all else is static.

    Args:
        calls: Pairs of a function and its arguments (arrays may be ``jax.ShapeDtypeStruct``). Functions must be module-level or hashable.

    Returns:
        The executables, and the seconds that compilation took (0 when all were at hand).
    """
    global _count
    start = time.perf_counter()
    found: dict[int, Executable] = {}
    missing = []
    with _lock:
        for index, (function, args) in enumerate(calls):
            dynamic, static = eqx.partition(args, _is_traced)
            key = _key(function, dynamic, static)
            if key in _cache:
                _cache.move_to_end(key)
                found[index] = _cache[key]
            else:
                missing.append((index, key, *_lower(function, dynamic, static)))
        if missing:
            with ThreadPoolExecutor(len(missing)) as pool:
                compiled = list(pool.map(lambda job: job[2].compile(), missing))
            for (index, key, _, out_static), program in zip(missing, compiled, strict=True):
                found[index] = _cache[key] = Executable(program, out_static)
                _count += 1
            while len(_cache) > _KEPT:
                _cache.popitem(last=False)
    return [found[i] for i in range(len(calls))], (time.perf_counter() - start if missing else 0.0)


def compile_count() -> int:
    """How many programs this process has compiled for probgen: a second fit of the same shapes adds none."""
    return _count


def use_compilation_cache(folder: str | os.PathLike[str] | None = None) -> None:
    """Keep compiled programs on disk, so that a new process need not compile them again.

    On by default, in the user's cache folder. The folder holds code that will be run: let nobody else write to it.

    Args:
        folder: Where to keep them. ``None`` is the per-user default.
    """
    if folder is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "probgen" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _is_traced(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _key(function: Callable[..., Any], dynamic: Any, static: Any) -> Any:
    leaves, treedef = jax.tree.flatten(dynamic)
    static_leaves, static_def = jax.tree.flatten(static)
    shapes = tuple((leaf.shape, leaf.dtype, bool(getattr(leaf, "weak_type", False))) for leaf in leaves)
    return function, treedef, shapes, static_def, tuple(static_leaves), jax.config.jax_enable_x64, jax.default_backend()


def _lower(function: Callable[..., Any], dynamic: Any, static: Any) -> tuple[Any, _Static]:
    out_static = _Static()

    def run(dynamic: Any) -> Any:
        out = function(*eqx.combine(dynamic, static))
        arrays, rest = eqx.partition(out, eqx.is_array)
        if any(leaf is not None for leaf in jax.tree.leaves(rest)):
            out_static.value = rest
        return arrays

    return jax.jit(run).lower(dynamic), out_static
