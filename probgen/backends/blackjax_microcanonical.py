r"""BlackJAX's microcanonical samplers, in coordinates whitened by our adaptation.

In whitened coordinates the posterior has about unit scale in every direction, so the two lengths of the dynamics are
known beforehand: the velocity has norm one, a typical point lies :math:`\sqrt d` from the centre, and trajectories
(adjusted) or the decoherence length (unadjusted) are a multiple of :math:`\sqrt d`. What remains is the step size.
"""

# BlackJAX annotates traced numbers as float, and arrays as any pytree.
# pyright: reportArgumentType=false, reportReturnType=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc import adjusted_mclmc_dynamic, mclmc
from blackjax.mcmc.integrators import IntegratorState
from blackjax.util import generate_unit_vector
from jax import Array

from probgen.backends.blackjax_moves import approach_kernel
from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.kernels.adaptation import AdaptedKernel, Moved, Whitened
from probgen.kernels.kernel import Draw, Kernel
from probgen.kernels.metric import Metric
from probgen.kernels.population import LEAST_WARMUP
from probgen.program.density import Density

__all__ = ["KERNELS"]

MEMORY = 500.0
"""Transitions over which the energy error is averaged while the step size of the unadjusted sampler is tuned."""


def _refuse_one_dimension(density: Density, name: str) -> None:
    if density.dim < 2:
        raise MethodError(
            f"{name} moves with a velocity of fixed length and needs at least 2 unconstrained coordinates, but the "
            f"model has {density.dim} ({', '.join(density.names)}). Use pg.NUTS()."
        )


# -- adjusted --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Adjusted:
    """A trajectory of isokinetic steps from a fresh velocity, accepted or rejected; its length is random."""

    length: float
    max_steps: int

    def __call__(
        self, key: PRNGKey, log_density: Callable[[Array], Scalar], point: Whitened, step_size: Scalar
    ) -> Moved:
        key_length, key_move = jax.random.split(key)
        mean_steps = self.length * np.sqrt(point.z.shape[0]) / step_size
        steps = jnp.clip(jnp.ceil(jax.random.uniform(key_length) * 2 * mean_steps), 1, self.max_steps).astype(int)
        kernel = adjusted_mclmc_dynamic.build_kernel(
            integration_steps_fn=lambda number: number, next_random_arg_fn=lambda number: number
        )
        state = adjusted_mclmc_dynamic.DynamicHMCState(point.z, point.log_density, point.grad, steps)
        state, info = kernel(key_move, state, log_density, step_size)
        stats = {"diverging": info.is_divergent, "n_steps": steps}
        return Moved(Whitened(state.position, state.logdensity, state.logdensity_grad), info.acceptance_rate, stats)


class AdjustedKernel(AdaptedKernel):
    """``AdaptedKernel`` that refuses models of one dimension."""

    def init(self, key: PRNGKey, density: Density, u: Position) -> Any:
        """See ``Kernel.init``. Raises ``MethodError`` for a model with one coordinate."""
        _refuse_one_dimension(density, "AdjustedMCLMC")
        return super().init(key, density, u)


def adjusted_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``AdjustedMCLMC``."""
    return AdjustedKernel(
        move=_Adjusted(method.length, method.max_steps),
        warmup=warmup,
        target=method.target_accept,
        metric=method.metric,
    )


# -- unadjusted ------------------------------------------------------------------------------------------------------


class _StepSize(eqx.Module):
    r"""Step size :math:`\epsilon` for which :math:`E[\Delta E^2] / d` is the given number.

    The energy error of a second-order integrator is :math:`O(\epsilon^3)`, so :math:`\Delta E^2 / \epsilon^6` is
    averaged, with exponential forgetting.
    """

    error: Scalar
    weight: Scalar
    limit: Scalar
    value: Scalar

    @classmethod
    def start(cls, value: float) -> _StepSize:
        zero = jnp.zeros(())
        return cls(zero, zero, jnp.asarray(jnp.inf, float), jnp.asarray(value, float))

    def update(self, energy_change: Scalar, fine: Array, dim: int, wanted: float) -> _StepSize:
        used = self.value
        keep = 1 - 1 / MEMORY
        error = keep * self.error + jnp.where(fine, energy_change**2 / dim / used**6, 0.0)
        weight = keep * self.weight + fine
        limit = jnp.where(fine, self.limit, 0.8 * used)
        best = (wanted * weight / jnp.clip(error, 1e-300)) ** (1 / 6)
        # The first errors say little: the step size moves by at most a tenth at a time.
        value = jnp.clip(jnp.where(error > 0, best, used), used / 1.1, 1.1 * used)
        return _StepSize(error, weight, limit, jnp.minimum(value, limit))


class _UnadjustedState(eqx.Module):
    index: Array
    approach: Any
    center: Array
    metric: Metric
    point: IntegratorState
    step: _StepSize


class UnadjustedKernel(Kernel):
    """Microcanonical Langevin dynamics; each draw is ``steps`` transitions after the one before.

    For the first part of the warm-up HMC finds the posterior and the metric, then the step size is tuned.

    Attributes:
        approach: The kernel of the first part; its ``warmup`` is the length of the first part.
        warmup: Warm-up steps, those of the approach included.
        steps: Transitions per draw.
        length: Decoherence length, in units of ``sqrt(dim)``.
        energy_variance: Mean squared energy error per dimension that the step size aims at.
    """

    approach: AdaptedKernel
    warmup: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    length: float = eqx.field(static=True)
    energy_variance: float = eqx.field(static=True)

    def init(self, key: PRNGKey, density: Density, u: Position) -> _UnadjustedState:
        """See ``Kernel.init``. Raises ``MethodError`` for a model with one coordinate."""
        _refuse_one_dimension(density, "MCLMC")
        begun = self.approach.init(key, density, u)
        rest = jnp.zeros_like(u)
        point = IntegratorState(rest, rest, begun.log_density, begun.grad)
        start = _StepSize.start(0.1 * np.sqrt(u.shape[0]))
        return _UnadjustedState(jnp.zeros((), int), begun, u, begun.metric, point, start)

    def at(self, state: _UnadjustedState, index: Array) -> _UnadjustedState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, index=index, approach=self.approach.at(state.approach, index))

    def step(self, key: PRNGKey, density: Density, state: _UnadjustedState) -> tuple[_UnadjustedState, Draw]:
        """See ``Kernel.step``."""
        state, draw = jax.lax.cond(
            state.index < self.approach.warmup,
            lambda: self._approach(key, density, state),
            lambda: self._move(key, density, state),
        )
        return dataclasses.replace(state, index=state.index + 1), draw

    def _approach(self, key: PRNGKey, density: Density, state: _UnadjustedState) -> tuple[_UnadjustedState, Draw]:
        key_step, key_velocity = jax.random.split(key)
        begun, draw = self.approach.step(key_step, density, state.approach)
        rest = jnp.zeros_like(begun.u)
        point = IntegratorState(rest, generate_unit_vector(key_velocity, rest), begun.log_density, begun.grad)
        state = dataclasses.replace(state, approach=begun, center=begun.u, metric=begun.metric, point=point)
        stats = {
            "lp": draw.stats["lp"],
            "step_size": draw.stats["step_size"],
            "diverging": draw.stats["diverging"],
            "n_steps": draw.stats["n_steps"],
            "energy_error": jnp.full((), jnp.nan),
        }
        return state, Draw(draw.u, stats)

    def _move(self, key: PRNGKey, density: Density, state: _UnadjustedState) -> tuple[_UnadjustedState, Draw]:
        kernel, dim, tuning = mclmc.build_kernel(), density.dim, state.index < self.warmup
        decoherence = self.length * np.sqrt(dim)

        def log_density(z: Array) -> Scalar:
            return density.log_density(state.center + state.metric.push(z))

        def transition(carry: tuple[IntegratorState, _StepSize], key: PRNGKey) -> tuple[Any, tuple[Array, Array]]:
            point, step = carry
            point, info = kernel(key, point, log_density, 1.0, decoherence, step.value)
            fine = jnp.asarray(info.nonans)
            new = step.update(info.energy_change, fine, dim, self.energy_variance)
            step = jax.tree.map(lambda tuned, kept: jnp.where(tuning, tuned, kept), new, step)
            return (point, step), (info.energy_change**2 / dim, ~fine)

        (point, step), (errors, failed) = jax.lax.scan(
            transition, (state.point, state.step), jax.random.split(key, self.steps)
        )
        u = state.center + state.metric.push(point.position)
        stats = {
            "lp": point.logdensity,
            "step_size": step.value,
            "diverging": jnp.any(failed),
            "n_steps": jnp.asarray(self.steps),
            "energy_error": jnp.mean(errors),
        }
        return dataclasses.replace(state, point=point, step=step), Draw(u, stats)


def unadjusted_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``MCLMC``."""
    if warmup < LEAST_WARMUP:
        raise MethodError(
            f"MCLMC is tuned during the warm-up and needs at least {LEAST_WARMUP} steps of it, got warmup={warmup}. "
            f"Pass warmup={LEAST_WARMUP} or more to pg.infer."
        )
    return UnadjustedKernel(
        approach=approach_kernel((2 * warmup) // 3),
        warmup=warmup,
        steps=method.steps,
        length=method.length,
        energy_variance=method.energy_variance,
    )


KERNELS = {"mclmc": unadjusted_kernel, "adjusted_mclmc": adjusted_kernel}
