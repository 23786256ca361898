"""Which engine serves which method.

An engine is a module (or any object) with a mapping ``KERNELS`` from a method's name to a function ``(method, warmup)
-> Kernel``. Ours are imported when first used, so that ``import probgen`` loads no engine. A third party calls
``register``, or declares the entry point group ``probgen.backends``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from probgen.base.errors import MethodError, suggestion
from probgen.kernels.kernel import Kernel

__all__ = ["Backend", "backends_of", "kernel_factory", "register"]

_OURS = {"blackjax": "probgen.backends.blackjax", "numpyro": "probgen.backends.numpyro"}
_registered: dict[str, Backend] = {}


class Backend(Protocol):
    """An engine."""

    KERNELS: Mapping[str, Callable[[Any, int], Kernel]]
    """By method name, a function from the method's settings and the number of warm-up steps to a kernel."""


def register(name: str, backend: Backend) -> None:
    """Add an engine: ``pg.NUTS(backend=name)`` then uses its ``KERNELS["nuts"]``.

    Args:
        name: Name of the engine.
        backend: A module or object with the mapping ``KERNELS``.

    Raises:
        MethodError: If the name is taken by an engine of probgen, or ``KERNELS`` is missing.
    """
    if name in _OURS:
        raise MethodError(f"the backend name {name!r} is taken by probgen. Choose another name.")
    if not isinstance(getattr(backend, "KERNELS", None), Mapping):
        raise MethodError(
            f"backend {name!r} has no mapping KERNELS. Give it one: method name -> function(method, warmup) -> Kernel."
        )
    _registered[name] = backend


def kernel_factory(backend: str, method: str, offered: tuple[str, ...]) -> Callable[[Any, int], Kernel]:
    """The function of an engine that makes the kernel of a method.

    Args:
        backend: Name of the engine.
        method: Name of the method.
        offered: Engines of probgen that serve the method.

    Raises:
        MethodError: If there is no such engine, or it does not serve the method.
    """
    served = backends_of(method, offered)
    if backend not in served:
        raise MethodError(f"backend {backend!r} does not serve the method {method!r}. {suggestion(backend, served)}")
    if backend not in _OURS and backend not in _third_party():
        raise MethodError(f"backend {backend!r} is not registered. Call pg.register_backend({backend!r}, ...) first.")
    module = importlib.import_module(_OURS[backend]) if backend in _OURS else _third_party()[backend]
    return module.KERNELS[method]


def backends_of(method: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all engines that serve a method: ours first, then registered ones."""
    return (*offered, *(name for name, backend in _third_party().items() if method in backend.KERNELS))


def _third_party() -> dict[str, Backend]:
    for point in _entry_points(tuple(sys.path)):
        if point.name not in _registered:
            register(point.name, point.load())
    return _registered


@functools.cache
def _entry_points(path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Engines that installed packages declare; reading them takes longer than a small refit, so once per ``sys.path``."""
    return tuple(importlib.metadata.entry_points(group="probgen.backends"))
