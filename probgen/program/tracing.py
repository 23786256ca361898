"""Reading a program: what goes wrong while it is traced, said in words, and effects that tracing would freeze."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import random
import re
import sysconfig
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from probgen.base.errors import ModelError, ProbgenError, ProbgenWarning
from probgen.program.handlers import Watch

__all__ = ["check_repeatable", "explained", "makes_generators", "pure", "surroundings"]

_LIBRARIES = (str(Path(__file__).parents[1]), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"])
_DEPTH = 8
"""Containers nested deeper than this compare by identity."""
_FROZEN = "which JAX would run once and freeze. Use numpyro.sample, or pass the numbers as data."


@contextlib.contextmanager
def explained(watch: Watch, arguments: Sequence[str]) -> Iterator[None]:
    """Turn what a program raises while it is traced into a ``ModelError`` that says where.

    Args:
        watch: The handler that has seen the sites so far.
        arguments: Names of the array arguments, for the message.
    """
    try:
        yield
    except ProbgenError:
        raise
    except jax.errors.NonConcreteBooleanIndexError as error:
        raise ModelError(
            f"the program selects with a boolean array that is only known while it runs ({_where(watch, error)}). "
            f"Use jnp.where, or numpyro.handlers.mask."
        ) from error
    except jax.errors.TracerArrayConversionError as error:
        raise ModelError(
            f"the program hands to NumPy a value that is only known while it runs ({_cause(error)}; "
            f"{_where(watch, error)}). "
            f"Use jax.numpy in place of numpy."
        ) from error
    except TypeError as error:
        if not isinstance(error, jax.errors.JAXTypeError) and "concrete" not in str(error):
            raise _raised(watch, error, arguments) from error
        raise ModelError(
            f"the program branches on, or counts with, a value that is only known while it runs ({_cause(error)}; "
            f"{_where(watch, error)}). Use jnp.where or numpyro.contrib.control_flow.cond for values of sites and "
            f"arrays; sizes and switches must be Python ints, bools or strings in data."
        ) from error
    except AssertionError as error:
        if "unique names" in str(error):
            raise ModelError(
                f"a site occurs twice in one execution of the program ({error}). Give every site its own name."
            ) from error
        raise ModelError(
            f"the program failed an assertion {_where(watch, error)}: {error}. Correct the program or its arguments."
        ) from error
    except Exception as error:
        raise _raised(watch, error, arguments) from error


def _raised(watch: Watch, error: Exception, arguments: Sequence[str]) -> ModelError:
    return ModelError(
        f"the program raised {type(error).__name__} {_where(watch, error)}: {str(error).rstrip('.')}. Correct the "
        f"program or its arguments ({', '.join(arguments) or 'it has no array arguments'})."
    )


def _where(watch: Watch, error: BaseException) -> str:
    """After which site, and on which line of the user's code."""
    place = f"after site {watch.seen[-1]!r}" if watch.seen else "before its first site"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARIES):
            return f"{place}, line {frame.lineno} of {Path(frame.filename).name}"
    return place


def _cause(error: BaseException) -> str:
    """What the offending value depends on, as far as JAX tells."""
    arguments = re.findall(r"\[\('(\w+)', '([^']+)'\)\]", str(error))
    if not arguments:
        return "a sampled value"
    return "the argument " + ", ".join(repr(name) for _, name in dict.fromkeys(arguments))


@contextlib.contextmanager
def pure(program: Callable[..., Any]) -> Iterator[None]:
    """Refuse randomness that is not JAX's, and warn of printing: both would happen while tracing, not once per draw."""
    sources = {"numpy.random": np.random.get_state, "random": random.getstate}
    for name, value in _mentioned(program)[1].items():
        if isinstance(value, np.random.Generator):
            sources[name] = functools.partial(getattr, value.bit_generator, "state")
        elif isinstance(value, np.random.RandomState):
            sources[name] = value.get_state
    before = {name: state() for name, state in sources.items()}
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        yield
    for name, state in sources.items():
        if not _same(before[name], state()):
            raise ModelError(f"the program draws from {name}, {_FROZEN}")
    if stream.getvalue():
        warnings.warn(
            f"the program prints ({stream.getvalue().strip()[:60]!r}); this happens while tracing only. "
            f"Use jax.debug.print to print values of a run.",
            ProbgenWarning,
            stacklevel=2,
        )


def surroundings(program: Callable[..., Any]) -> tuple[Any, ...]:
    """What a program finds outside of its arguments (globals, enclosed variables, attributes of its object), to compare.

    These values are built into what is compiled, so programs whose surroundings differ must not share it. Numbers,
    strings, NumPy arrays and containers of them compare by content, all else by identity.
    """
    found = _mentioned(program)[1]
    return tuple((n, _content(found[n])) for n in sorted(found) if not isinstance(found[n], types.ModuleType))


class _Same:
    """Equal to itself only; what it holds stays alive, so that its identity is not given to another."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), value
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return str(value.dtype), value.shape, hashlib.blake2b(value.tobytes()).digest()
    if depth < _DEPTH and isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(_content(item, depth + 1) for item in value)
    if depth < _DEPTH and isinstance(value, dict):
        return type(value), tuple((_content(k, depth + 1), _content(v, depth + 1)) for k, v in value.items())
    return _Same(value)


def makes_generators(program: Callable[..., Any]) -> bool:
    """Whether the code of a program makes random generators of its own, whose state nobody else can watch."""
    return not _mentioned(program)[0].isdisjoint({"default_rng", "RandomState", "Generator", "Random"})


def check_repeatable(log_probs: Callable[..., Any], *args: Any) -> None:
    """Raise unless tracing a program twice meets the same numbers."""

    def numbers() -> tuple[str, list[Any]]:
        closed = jax.make_jaxpr(lambda *args: log_probs(*args))(*args)
        return re.sub("0x[0-9a-f]+", "", str(closed.jaxpr)), list(closed.consts)

    if not _same(numbers(), numbers()):
        raise ModelError(f"two executions of the program meet different numbers: it draws random numbers, {_FROZEN}")


def _same(a: Any, b: Any) -> bool:
    first, second = jax.tree.flatten(a), jax.tree.flatten(b)
    return first[1] == second[1] and all(np.array_equal(x, y) for x, y in zip(first[0], second[0], strict=True))


def _mentioned(program: Callable[..., Any]) -> tuple[set[str], dict[str, Any]]:
    """Names in the code of a program and of the functions beside it, and the global and enclosed values among them."""
    while isinstance(program, functools.partial):
        program = program.func
    program = inspect.unwrap(program)
    names: set[str] = set()
    values: dict[str, Any] = {}
    if not isinstance(program, types.FunctionType):
        values |= getattr(getattr(program, "__self__", program), "__dict__", {})
        program = getattr(program, "__func__", type(program).__call__)
    waiting, known = [program], set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, types.FunctionType) or function in known:
            continue
        known.add(function)
        codes = [function.__code__]
        for code in codes:
            names.update(code.co_names)
            codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        found = {
            name: function.__globals__[name] for code in codes for name in code.co_names if name in function.__globals__
        }
        with contextlib.suppress(ValueError):  # an enclosed variable without a value yet
            found |= inspect.getclosurevars(function).nonlocals
        values |= found
        waiting += [value for value in found.values() if getattr(value, "__module__", None) == function.__module__]
    return names, values
