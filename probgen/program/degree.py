"""How the numbers that a program computes depend on its latent sites: not at all, affinely, smoothly, or otherwise.

The program is traced to a jaxpr and every intermediate gets a degree. The degrees are upper bounds: what is called
affine is affine for every value of the latent sites, not only near some points, because each primitive on the way is
known to keep it so. A primitive that is not known makes its result ``OTHER``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

__all__ = ["Degree", "Dependence", "dependences"]


class Degree(enum.IntEnum):
    """How a number depends on the latent sites; each degree includes those below."""

    CONSTANT = 0
    AFFINE = 1
    SMOOTH = 2
    """Analytic where it is defined: no branch, kink or rounding depends on a latent site."""
    OTHER = 3


@dataclasses.dataclass(frozen=True)
class Dependence:
    """What one array depends on.

    Attributes:
        degree: How, at most.
        sites: Names of the latent sites that it may depend on.
        why: The primitive that first made it more than affine; empty when none did.
    """

    degree: Degree = Degree.CONSTANT
    sites: frozenset[str] = frozenset()
    why: str = ""

    def __or__(self, other: Dependence) -> Dependence:
        """The dependence of a sum of the two."""
        top = self if self.degree >= other.degree else other
        return Dependence(top.degree, self.sites | other.sites, self.why or other.why)

    def to(self, degree: Degree, why: str) -> Dependence:
        """The same dependence, of at least the given degree."""
        if not self.sites or self.degree >= degree:
            return self
        return Dependence(degree, self.sites, self.why or why)


_CONSTANT = Dependence()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Linear in all operands together.
_LINEAR = _words("""
    add sub neg add_any reduce_sum cumsum reshape broadcast_in_dim transpose squeeze expand_dims slice rev concatenate
    pad copy copy_p split stack unstack tile real imag complex reduce_window_sum
""")
# Linear in each operand alone.
_PRODUCT = _words("mul dot_general conv_general_dilated")
# Linear in the first operand (and in updates); the operands at these places select entries.
_INDEXED = {
    "gather": (1,),
    "dynamic_slice": None,
    "dynamic_update_slice": None,
    "scatter": (1,),
    "scatter_add": (1,),
    "scatter-add": (1,),
}
_SMOOTH = _words("""
    exp exp2 log log1p expm1 sqrt rsqrt cbrt sin cos tan sinh cosh tanh asinh acosh atanh asin acos atan logistic erf
    erfc erf_inv lgamma digamma polygamma integer_pow pow square reduce_prod cumprod cumlogsumexp cholesky
    triangular_solve div
""")


def dependences(function: Callable[..., Any], values: dict[str, Any], *rest: Any) -> Any:
    """How each array that a function returns depends on the sites in ``values``.

    Args:
        function: Called as ``function(values, *rest)``; returns a pytree of arrays.
        values: Arrays by name of a latent site (``jax.ShapeDtypeStruct`` will do).
        rest: Further arguments, which count as constants.

    Returns:
        The pytree, with a ``Dependence`` in the place of each array.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(values, *rest)
    named = {
        name: jax.tree.map(lambda _, n=name: Dependence(Degree.AFFINE, frozenset({n})), v) for name, v in values.items()
    }
    start = jax.tree.leaves(named, is_leaf=_is_dependence)
    start += [_CONSTANT] * (len(closed.jaxpr.invars) - len(start))
    return jax.tree.unflatten(jax.tree.structure(shape), _through(closed.jaxpr, start))


def _is_dependence(leaf: Any) -> bool:
    return isinstance(leaf, Dependence)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _through(jaxpr: Any, inputs: Sequence[Dependence]) -> list[Dependence]:
    """Degrees of the outputs of a jaxpr, given those of its inputs."""
    known: dict[Any, Dependence] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Dependence:
        return _CONSTANT if isinstance(atom, core.Literal) else known.get(atom, _CONSTANT)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if any(operand.sites for operand in operands):
            known.update(zip(equation.outvars, _applied(equation, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _joined(operands: Sequence[Dependence]) -> Dependence:
    total = _CONSTANT
    for operand in operands:
        total = total | operand
    return total


def _applied(equation: Any, operands: list[Dependence]) -> list[Dependence]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, operands)
    if name == "while":
        return _while(params, operands)
    if name == "cond":
        branches = [_through(_open(branch), operands[1:]) for branch in params["branches"]]
        joined = [_joined(results) for results in zip(*branches, strict=True)]
        return joined if not operands[0].sites else [(one | operands[0]).to(Degree.OTHER, name) for one in joined]
    if name == "custom_linear_solve":
        matrices = sum(len_ for len_ in params["const_lengths"])
        solved = _joined(operands[matrices:])
        matrix = _joined(operands[:matrices])
        return [solved if not matrix.sites else (solved | matrix).to(Degree.OTHER, name)] * len(equation.outvars)
    body = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    if body is not None:
        inner = _open(body)
        if len(inner.invars) == len(operands):
            return _through(inner, operands)
        return [_joined(operands).to(Degree.OTHER, name)] * len(equation.outvars)
    return [_primitive(equation, name, operands)] * len(equation.outvars)


def _primitive(equation: Any, name: str, operands: list[Dependence]) -> Dependence:
    total = _joined(operands)
    floating = all(jax.numpy.issubdtype(out.aval.dtype, jax.numpy.inexact) for out in equation.outvars)
    if name in _LINEAR or (name == "convert_element_type" and floating):
        return total
    if name in _PRODUCT:
        return total if sum(bool(operand.sites) for operand in operands) == 1 else total.to(Degree.SMOOTH, name)
    if name == "div" and not operands[1].sites:
        return total
    if name == "triangular_solve" and not operands[0].sites:
        return total
    if name == "select_n":
        return total if not operands[0].sites else total.to(Degree.OTHER, name)
    if name in _INDEXED:
        count = 2 if name == "dynamic_update_slice" else 1
        places = _INDEXED[name] or tuple(range(count, len(operands)))
        return total.to(Degree.OTHER, name) if any(operands[i].sites for i in places) else total
    return total.to(Degree.SMOOTH if name in _SMOOTH else Degree.OTHER, name)


def _scan(params: dict[str, Any], operands: list[Dependence]) -> list[Dependence]:
    if "ft_in" in params:  # since JAX 0.12
        fixed, carry, xs = (list(part) for part in params["ft_in"].update(operands).unpack())
    else:
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, carry, xs = operands[:consts], operands[consts : consts + carries], operands[consts + carries :]
    body = _open(params["jaxpr"])
    while True:
        results = _through(body, [*fixed, *carry, *xs])
        grown = [old | new for old, new in zip(carry, results, strict=False)]
        if grown == carry:
            return [*grown, *results[len(carry) :]]
        carry = grown


def _while(params: dict[str, Any], operands: list[Dependence]) -> list[Dependence]:
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    test, fixed, carry = operands[:of_test], operands[of_test : of_test + of_body], operands[of_test + of_body :]
    while True:
        results = _through(_open(params["body_jaxpr"]), [*fixed, *carry])
        grown = [old | new for old, new in zip(carry, results, strict=True)]
        if grown == carry:
            break
        carry = grown
    stop = _through(_open(params["cond_jaxpr"]), [*test, *carry])[0]
    return carry if not stop.sites else [(one | stop).to(Degree.OTHER, "while") for one in carry]
