"""Solvers for the ordinary equations of learned flows: few fixed steps for sampling, or steps of adapted length."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError

__all__ = ["AdaptiveSteps", "EulerSteps", "HeunSteps", "OdeSolver", "with_divergence"]

type Field = Callable[[Array, Any], Any]
"""``field(t, y)``, the slope of ``y``, an array or a tuple of arrays."""


class OdeSolver(eqx.Module):
    """How an ordinary equation is integrated."""

    @abc.abstractmethod
    def solve(self, field: Field, y: Any, start: float, end: float) -> Any:
        """The value at ``end``.

        Args:
            field: ``field(t, y)``, the slope.
            y: The value at ``start``.
            start: Time to begin at; later or earlier than ``end``.
            end: Time to reach.
        """


class EulerSteps(OdeSolver):
    """Equal steps by Euler's rule, order 1; one step is a one-step generator, as good as the paths are straight.

    Attributes:
        steps: How many.
    """

    steps: int = eqx.field(static=True, default=64)

    def __check_init__(self) -> None:
        _check(self.steps)

    def solve(self, field: Field, y: Any, start: float, end: float) -> Any:
        return _fixed(field, y, start, end, self.steps, heun=False)


class HeunSteps(OdeSolver):
    """Equal steps by the trapezoidal rule, order 2, two evaluations a step.

    Attributes:
        steps: How many.
    """

    steps: int = eqx.field(static=True, default=32)

    def __check_init__(self) -> None:
        _check(self.steps)

    def solve(self, field: Field, y: Any, start: float, end: float) -> Any:
        return _fixed(field, y, start, end, self.steps, heun=True)


class AdaptiveSteps(OdeSolver):
    """Dormand and Prince's rule of order 5 with steps of adapted length.

    Attributes:
        tolerance: Absolute and relative, per step.
    """

    tolerance: float = eqx.field(static=True, default=1e-4)

    def __check_init__(self) -> None:
        if not 0.0 < self.tolerance < 1.0:
            raise MethodError(f"AdaptiveSteps got tolerance={self.tolerance!r}, expected 0 < tolerance < 1. Use 1e-4.")

    def solve(self, field: Field, y: Any, start: float, end: float) -> Any:
        import diffrax  # takes long, and fixed steps do without

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: field(t, y)),  # pyright: ignore[reportArgumentType]
            diffrax.Dopri5(),
            start,
            end,
            None,
            y,
            stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance),
            max_steps=4096,
        )
        return jax.tree.map(lambda y: y[0], solution.ys)


def _check(steps: int) -> None:
    if not is_count(steps):
        raise MethodError(f"steps must be an int of at least 1, got {steps!r}. Use 32.")


def _fixed(field: Field, y: Any, start: float, end: float, steps: int, *, heun: bool) -> Any:
    length = (end - start) / steps

    def step(y: Any, t: Array) -> tuple[Any, None]:
        slope = field(t, y)
        ahead = jax.tree.map(lambda a, b: a + length * b, y, slope)
        if heun:
            after = field(t + length, ahead)
            ahead = jax.tree.map(lambda a, b, c: a + length * (b + c) / 2, y, slope, after)
        return ahead, None

    dtype = jax.tree.leaves(y)[0].dtype
    return jax.lax.scan(step, y, start + length * jnp.arange(steps, dtype=dtype))[0]


def with_divergence(velocity: Callable[[Array, Array], Array]) -> Field:
    """The field of a point and of the integral of the divergence along its path, with the exact divergence.

    Args:
        velocity: ``velocity(t, x)`` for one point.
    """

    def field(t: Array, y: tuple[Array, Array]) -> tuple[Array, Array]:
        x, _ = y
        slope, push = jax.linearize(lambda flat: velocity(t, flat.reshape(x.shape)).reshape(-1), x.reshape(-1))
        basis = jnp.eye(x.size, dtype=x.dtype)
        return slope.reshape(x.shape), jnp.trace(jax.vmap(push)(basis))

    return field
