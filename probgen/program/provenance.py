"""Which inputs each number of a traced function depends on.

The function is traced to a jaxpr and every intermediate carries the set of inputs that reach it. A loop is followed to
its fixed point, so that a body that uses some inputs for one output and others for another is told apart, and what
arrives through the carry of a ``scan`` is marked as lagged: it comes from an earlier step. Dependence is that of the
program as written: ``0 * x`` depends on ``x``, the shape of ``x`` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

__all__ = ["Source", "provenance"]


class Source(NamedTuple):
    """An input that reaches a number; ``lagged`` where it came through the carry of a ``scan``."""

    name: str
    lagged: bool = False


type Sources = frozenset[Source]
_NONE: Sources = frozenset()


def provenance(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    inputs: Mapping[str, Any],
    constants: Callable[[Any], str | None] = lambda array: None,
) -> dict[str, Sources]:
    """The inputs that each output depends on.

    Args:
        function: From a dict of pytrees of arrays to a dict of pytrees of arrays.
        inputs: Its argument; ``jax.ShapeDtypeStruct`` will do, nothing is computed.
        constants: A name for an array that the function finds outside of its argument, under which it counts as an
            input; ``None`` for one that does not.

    Returns:
        By output, the sources that reach any of its arrays.
    """
    inputs = dict(inputs)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(inputs)
    # A dict is flattened in the order of its sorted keys, on both sides.
    reach = [frozenset({Source(name)}) for name in sorted(inputs) for _ in jax.tree.leaves(inputs[name])]
    names = [constants(array) for array in closed.consts]
    fixed = [_NONE if name is None else frozenset({Source(name)}) for name in names]
    found = iter(_through(closed.jaxpr, reach, fixed))
    return {name: _NONE.union(*(next(found) for _ in jax.tree.leaves(shapes[name]))) for name in sorted(shapes)}


def _through(jaxpr: Any, inputs: Sequence[Sources], constants: Sequence[Sources] = ()) -> list[Sources]:
    """Sources of the outputs of a jaxpr, from those of its inputs and of its constants."""
    known: dict[Any, Sources] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= dict(zip(jaxpr.constvars, constants, strict=False))

    def read(atom: Any) -> Sources:
        return _NONE if isinstance(atom, core.Literal) else known.get(atom, _NONE)

    for equation in jaxpr.eqns:
        rule = _RULES.get(equation.primitive.name, _call)
        outputs = rule(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _call(equation: Any, inputs: list[Sources]) -> list[Sources]:
    """A function call is looked into; any other primitive uses all that it gets."""
    inner = [jaxpr for value in equation.params.values() for jaxpr in _jaxprs(value)]
    if len(inner) == 1 and (len(inner[0].invars), len(inner[0].outvars)) == (len(inputs), len(equation.outvars)):
        return _through(inner[0], inputs)
    return [_NONE.union(*inputs)] * len(equation.outvars)


def _jaxprs(value: Any) -> Iterator[Any]:
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value


def _scan(equation: Any, inputs: list[Sources]) -> list[Sources]:
    params = equation.params
    if "ft_in" in params:  # since JAX 0.12
        fixed, start, rows = (list(part) for part in params["ft_in"].update(inputs).unpack())
    else:
        constants, ends = params["num_consts"], params["num_consts"] + params["num_carry"]
        fixed, start, rows = inputs[:constants], inputs[constants:ends], inputs[ends:]
    body, carried, carry = params["jaxpr"].jaxpr, len(start), list(start)
    while True:
        outputs = _through(body, [*fixed, *carry, *rows])
        grown = [old | _earlier(new) for old, new in zip(carry, outputs[:carried], strict=True)]
        if grown == carry:
            return outputs if params["length"] else start + outputs[carried:]
        carry = grown


def _earlier(sources: Sources) -> Sources:
    return frozenset(source._replace(lagged=True) for source in sources)


def _while(equation: Any, inputs: list[Sources]) -> list[Sources]:
    tested, constants = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    test, body = equation.params["cond_jaxpr"].jaxpr, equation.params["body_jaxpr"].jaxpr
    of_test, fixed, carry = inputs[:tested], inputs[tested : tested + constants], inputs[tested + constants :]
    while True:
        # How often the loop ran matters to everything that it made.
        (count,) = _through(test, [*of_test, *carry])
        grown = [old | new | count for old, new in zip(carry, _through(body, [*fixed, *carry]), strict=True)]
        if grown == carry:
            return carry
        carry = grown


def _cond(equation: Any, inputs: list[Sources]) -> list[Sources]:
    choice, operands = inputs[0], inputs[1:]
    branches = [_through(branch.jaxpr, operands) for branch in equation.params["branches"]]
    return [choice.union(*outputs) for outputs in zip(*branches, strict=True)]


_RULES = {"scan": _scan, "while": _while, "cond": _cond}
