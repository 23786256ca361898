"""Compiled programs, kept by what they are made from.

``jax.jit`` compiles at the first call, inside that call. Here tracing and compiling are steps of their own: several
programs compile side by side, the time is measured, and chains that run in threads never trace (NumPyro's handler
stack belongs to one thread).
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax.experimental.compilation_cache import compilation_cache

__all__ = ["TRACING", "Executable", "compile_all", "compile_count", "use_compilation_cache"]

_KEPT = 256
_cache: OrderedDict[Any, Executable] = OrderedDict()
TRACING = threading.RLock()
"""Held while a program is traced: NumPyro's stack of handlers belongs to the process, and so does standard output."""
_count = 0
_disk_cache_chosen = False


class Executable:
    """A compiled function. Call it with arguments of the structure and shapes that it was compiled for.

    Attributes:
        shape: What it returns, arrays as ``jax.ShapeDtypeStruct``.
    """

    def __init__(self, compiled: Callable[[Any], Any], out_static: Any, shape: Any) -> None:
        self._compiled, self._out_static, self.shape = compiled, out_static, shape

    def __call__(self, *args: Any) -> Any:
        """Run it; whatever is not an array is ignored, since it is compiled in."""
        dynamic, _ = eqx.partition(args, eqx.is_array)
        return eqx.combine(self._compiled(dynamic), self._out_static)


type Args = tuple[Any, ...] | Callable[[list[Any]], tuple[Any, ...]]


def compile_all(calls: Sequence[tuple[Callable[..., Any], Args]]) -> tuple[list[Executable], float]:
    """Compile several functions for given arguments, side by side; arrays are traced, all else is static.

    Args:
        calls: Pairs of a function and its arguments. The function must be hashable (best defined at module level);
            arrays may be ``jax.ShapeDtypeStruct``. Arguments that depend on what an earlier function of the list
            returns are given as a function of the shapes returned so far.

    Returns:
        The executables, and the seconds that compilation took (0 when all were at hand).
    """
    global _count
    start = time.perf_counter()
    done: list[Executable | None] = []
    shapes: list[Any] = []
    missing: list[tuple[int, Any, _Lowered]] = []
    with TRACING:
        for index, (function, args) in enumerate(calls):
            dynamic, static = eqx.partition(args(shapes) if callable(args) else args, _is_traced)
            key = _key(function, dynamic, static)
            kept = _cache.get(key)
            if kept is not None:
                _cache.move_to_end(key)
                shapes.append(kept.shape)
            else:
                missing.append((index, key, _lower(function, dynamic, static)))
                shapes.append(missing[-1][2].shape)
            done.append(kept)
        if missing:
            _use_disk_cache_by_default()
            with ThreadPoolExecutor(len(missing)) as pool:
                compiled = list(pool.map(lambda job: job[2].lowered.compile(), missing))
            for (index, key, lowered), program in zip(missing, compiled, strict=True):
                done[index] = _cache[key] = Executable(program, lowered.out_static, lowered.shape)
                _count += 1
            while len(_cache) > _KEPT:
                _cache.popitem(last=False)
    executables = [executable for executable in done if executable is not None]
    return executables, time.perf_counter() - start if missing else 0.0


def compile_count() -> int:
    """How many programs this process has compiled for probgen: a second fit of the same shapes adds none."""
    return _count


def use_compilation_cache(folder: str | os.PathLike[str] | bool = True) -> None:
    """Say where compiled programs are kept on disk, so that a new process need not compile them again.

    They are by default, in the cache folder of the user (``$XDG_CACHE_HOME`` or ``~/.cache``, below it
    ``probgen/xla``); a folder that JAX has been given already is left alone. The folder holds code that will be run:
    let nobody else write to it.

    Args:
        folder: Where to keep them. ``True`` is the default folder; ``False`` keeps nothing.
    """
    global _disk_cache_chosen
    _disk_cache_chosen = True
    compilation_cache.reset_cache()  # JAX looks for the folder once only
    if folder is False:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if folder is True:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "probgen" / "xla"
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _use_disk_cache_by_default() -> None:
    if not _disk_cache_chosen and jax.config.jax_compilation_cache_dir is None:
        use_compilation_cache()


def _is_traced(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _key(function: Callable[..., Any], dynamic: Any, static: Any) -> Any:
    leaves, treedef = jax.tree.flatten(dynamic)
    static_leaves, static_def = jax.tree.flatten(static)
    shapes = tuple((leaf.shape, leaf.dtype, bool(getattr(leaf, "weak_type", False)), _split(leaf)) for leaf in leaves)
    # What else decides on numbers while tracing and compiling.
    config = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, jax.config.jax_threefry_partitionable
    return function, treedef, shapes, static_def, tuple(static_leaves), config, jax.default_backend()


def _split(leaf: Any) -> Any:
    """How an array is shared out over devices, where it is."""
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


class _Lowered(NamedTuple):
    lowered: Any
    out_static: Any
    shape: Any


def _lower(function: Callable[..., Any], dynamic: Any, static: Any) -> _Lowered:
    out_static: list[Any] = []

    def run(dynamic: Any) -> Any:
        arrays, rest = eqx.partition(function(*eqx.combine(dynamic, static)), eqx.is_array)
        out_static.append(rest)
        return arrays

    lowered = jax.jit(run).lower(dynamic)
    arrays = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lowered.out_info)
    return _Lowered(lowered, out_static[-1], eqx.combine(arrays, out_static[-1]))
