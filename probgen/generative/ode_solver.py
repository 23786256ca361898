"""Solvers for the ordinary equations of learned flows: few fixed steps for sampling, or steps of adapted length."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part

__all__ = ["AdaptiveSteps", "EulerSteps", "HeunSteps", "OdeSolver", "RungeKuttaSteps", "with_divergence"]

type Field = Callable[[Array, Any], Any]
"""``field(t, y)``, the slope of ``y``, an array or a tuple of arrays."""


class OdeSolver(Part):
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

    def finer(self) -> OdeSolver | None:
        """A solver whose error is small beside that of this one, to see how large that is; ``None`` for one that keeps to
        a tolerance by itself."""
        return None


class _EqualSteps(OdeSolver):
    """An explicit Runge-Kutta rule with equal steps.

    Attributes:
        rows: Of its tableau below the first: what a stage takes of the slopes before it.
        weights: What the step takes of the slopes.
    """

    rows: ClassVar[tuple[tuple[float, ...], ...]]
    weights: ClassVar[tuple[float, ...]]
    steps: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if not is_count(self.steps):
            raise MethodError(f"steps must be an int of at least 1, got {self.steps!r}. Use 32.")

    def finer(self) -> OdeSolver:
        return dataclasses.replace(self, steps=4 * self.steps)

    def solve(self, field: Field, y: Any, start: float, end: float) -> Any:
        length = (end - start) / self.steps

        def ahead(y: Any, shares: tuple[float, ...], slopes: list[Any]) -> Any:
            return jax.tree.map(
                lambda a, *b: a + length * sum(c * d for c, d in zip(shares, b, strict=True) if c), y, *slopes
            )

        def step(y: Any, t: Array) -> tuple[Any, None]:
            slopes = [field(t, y)]
            for row in self.rows:
                slopes.append(field(t + length * sum(row), ahead(y, row, slopes)))
            return ahead(y, self.weights, slopes), None

        dtype = jax.tree.leaves(y)[0].dtype
        return jax.lax.scan(step, y, start + length * jnp.arange(self.steps, dtype=dtype))[0]


class EulerSteps(_EqualSteps):
    """Equal steps by Euler's rule, order 1; one step is a one-step generator, as good as the paths are straight.

    Attributes:
        steps: How many.
    """

    rows, weights = (), (1.0,)
    steps: int = eqx.field(static=True, default=64)


class HeunSteps(_EqualSteps):
    """Equal steps by the trapezoidal rule, order 2, two evaluations a step.

    Attributes:
        steps: How many.
    """

    rows, weights = ((1.0,),), (0.5, 0.5)
    steps: int = eqx.field(static=True, default=32)


class RungeKuttaSteps(_EqualSteps):
    """Equal steps by the classical rule of Runge and Kutta, order 4, four evaluations a step; for smooth fields far nearer
    than the trapezoidal rule at the same number of evaluations.

    Attributes:
        steps: How many.
    """

    rows, weights = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    steps: int = eqx.field(static=True, default=8)


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

        # In the precision of the point, or that of Python's floats would be the precision of all.
        first, last = jnp.asarray([start, end], jax.tree.leaves(y)[0].dtype)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: field(t, y)),  # pyright: ignore[reportArgumentType]
            diffrax.Dopri5(),
            first,
            last,
            None,
            y,
            stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance),
            max_steps=4096,
        )
        return jax.tree.map(lambda y: y[0], solution.ys)


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
