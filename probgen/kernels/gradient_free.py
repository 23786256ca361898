"""Warm-up of kernels that see no gradient: metric from the covariance of the draws, step size by dual averaging.

The schedule is that of ``adaptation.py``: windows of doubling length, then a stretch that only tunes the step size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.kernels.adaptation import StepSize, windows
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density

__all__ = ["GradientFreeKernel", "Moments", "Proposed"]


class Moments(eqx.Module):
    """Running mean and sum of squares of the draws of one window (Welford)."""

    count: Scalar
    mean: Array
    squares: Array

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """No draws yet."""
        return cls(jnp.zeros(()), jnp.zeros(dim), jnp.zeros((dim, dim)))

    def add(self, u: Position) -> Moments:
        """Add one draw."""
        count = self.count + 1
        mean = self.mean + (u - self.mean) / count
        return Moments(count, mean, self.squares + jnp.outer(u - self.mean, u - mean))

    def root(self, otherwise: Array) -> Array:
        """Cholesky factor of the covariance, shrunk to its diagonal by ``5 dim`` pseudo-draws.

        Args:
            otherwise: Factor to keep where the draws give none (a coordinate that never moved).
        """
        cov = self.squares / jnp.maximum(self.count, 1)
        dim = cov.shape[0]
        weight = self.count / (self.count + 5 * dim)
        root = jnp.linalg.cholesky(weight * cov + (1 - weight) * jnp.diag(jnp.diag(cov)))
        return jnp.where(jnp.all(jnp.isfinite(root)) & jnp.all(jnp.diag(root) > 0), root, otherwise)


class Proposed(NamedTuple):
    """What an engine's transition gives back: a point in whitened coordinates, its log density, the acceptance."""

    z: Array
    log_density: Scalar
    acceptance: Scalar


type Move = Callable[[PRNGKey, Callable[[Array], Scalar], Array, Scalar, Scalar], Proposed]
"""``move(key, log_density_of_z, z, log_density, step_size)``: one transition with the identity metric."""


class GradientFreeState(eqx.Module):
    """State of a chain."""

    index: Array
    u: Position
    log_density: Scalar
    root: Array
    moments: Moments
    step: StepSize


class GradientFreeKernel(Kernel):
    """An engine's transition without gradients, in coordinates whitened by the covariance of earlier draws.

    Attributes:
        move: The engine's transition, with the identity metric.
        warmup: Number of adaptation steps.
        target: Acceptance rate that the step size aims at.
    """

    move: Move = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True, default=0.234)
    gradient: ClassVar[bool] = False

    def init(self, key: PRNGKey, density: Density, u: Position) -> GradientFreeState:
        """See ``Kernel.init``."""
        dim = u.shape[0]
        # 2.38 / sqrt(dim) is optimal on a Gaussian in high dimension (Gelman, Roberts and Gilks 1996).
        step = StepSize.start(np.log(2.38 / np.sqrt(dim)))
        log_density = density.log_density(u)
        return GradientFreeState(jnp.zeros((), int), u, log_density, jnp.eye(dim), Moments.empty(dim), step)

    def at(self, state: GradientFreeState, index: Array) -> GradientFreeState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, index=index)

    def step(self, key: PRNGKey, density: Density, state: GradientFreeState) -> tuple[GradientFreeState, Draw]:
        """See ``Kernel.step``."""
        origin, root = state.u, state.root
        adapting = state.index < self.warmup
        step_size = jnp.exp(jnp.where(adapting, state.step.log_step, state.step.log_average))
        z, log_density, acceptance = self.move(
            key, lambda z: density.log_density(origin + root @ z), jnp.zeros_like(origin), state.log_density, step_size
        )
        acceptance = jnp.where(jnp.isfinite(acceptance), acceptance, 0.0)
        new = dataclasses.replace(state, index=state.index + 1, u=origin + root @ z, log_density=log_density)
        new = jax.lax.cond(adapting, self._adapt, lambda s, _: s, new, acceptance)
        stats = {"lp": log_density, "acceptance_rate": acceptance, "step_size": step_size}
        return new, Draw(new.u, stats)

    def _adapt(self, state: GradientFreeState, acceptance: Scalar) -> GradientFreeState:
        moments, step = state.moments.add(state.u), state.step.update(acceptance, jnp.asarray(self.target))
        dim = state.u.shape[0]
        ends = windows(self.warmup)
        is_end = jnp.any(state.index - 1 == jnp.asarray(ends)) if len(ends) else jnp.zeros((), bool)
        root, moments, step = jax.lax.cond(
            is_end,
            lambda: (moments.root(state.root), Moments.empty(dim), StepSize.start(jnp.log(2.38 / np.sqrt(dim)))),
            lambda: (state.root, moments, step),
        )
        return dataclasses.replace(state, root=root, moments=moments, step=step)
