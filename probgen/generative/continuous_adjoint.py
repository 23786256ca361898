"""Ordinary equations whose gradients come from the adjoint equation."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from probgen.base.errors import MethodError
from probgen.generative.ode_solver import Field, OdeSolver

__all__ = ["ContinuousAdjoint"]


class ContinuousAdjoint(OdeSolver):
    r"""Steps of adapted length forward, and gradients by the adjoint equation (Chen et al. 2018)

    .. math:: \frac{da}{dt} = -a^\top \frac{\partial f}{\partial y}, \qquad
              \frac{dL}{d\theta} = \int a^\top \frac{\partial f}{\partial\theta}\,dt,

    solved backwards together with the path: memory does not grow with the number of steps, but gradients are those of the
    equation rather than of the numerical solution, off by the tolerance. The other solvers are differentiated step by
    step.

    Attributes:
        tolerance: Absolute and relative, per step.
    """

    tolerance: float = eqx.field(static=True, default=1e-5)

    def __check_init__(self) -> None:
        if not 0.0 < self.tolerance < 1.0:
            raise MethodError(
                f"ContinuousAdjoint got tolerance={self.tolerance!r}, expected 0 < tolerance < 1. Use 1e-5."
            )

    def solve(self, field: Field, y: Any, start: float, end: float) -> Any:
        import diffrax  # takes long, and fixed steps do without

        # In the precision of the point, or that of Python's floats would be the precision of all.
        time, last = jnp.asarray([start, end], jax.tree.leaves(y)[0].dtype)
        # The adjoint sees what the field depends on only if it is an argument.
        field = eqx.filter_closure_convert(field, time, y)
        controller = diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, field: field(t, y)),  # pyright: ignore[reportArgumentType]
            diffrax.Dopri5(),
            time,
            last,
            None,
            y,
            args=field,
            stepsize_controller=controller,
            adjoint=diffrax.BacksolveAdjoint(solver=diffrax.Dopri5(), stepsize_controller=controller),
            max_steps=4096,
        )
        return jax.tree.map(lambda y: y[0], solution.ys)
