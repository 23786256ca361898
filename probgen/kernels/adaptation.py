"""Warm-up of gradient-based kernels: windows for the metric, dual averaging for the step size.

The schedule: windows of doubling length, each of which ends by replacing the metric with the optimum over its own
draws, then a last stretch that only tunes the step size. Draws start from the last state of the warm-up, never from a
point computed by the adaptation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.kernels.kernel import Draw, Kernel, Stats
from probgen.kernels.metric import Estimate, Metric, estimate_of
from probgen.program.density import Density

__all__ = ["AdaptedKernel", "Moved", "Whitened", "windows"]

CAUTIOUS_TARGET = 0.95
DIVERGING = 0.005
LONG_WINDOW = 150


class Whitened(eqx.Module):
    """A point as an engine sees it: coordinates relative to the start of the transition, in units of the metric."""

    z: Array
    log_density: Scalar
    grad: Array


class Moved(eqx.Module):
    """What an engine's transition gives back."""

    point: Whitened
    acceptance: Scalar
    stats: Stats


type Move = Callable[[PRNGKey, Callable[[Array], Scalar], Whitened, Scalar], Moved]
"""``move(key, log_density_of_z, point, step_size)``: one transition with the identity metric."""


class StepSize(eqx.Module):
    """Dual averaging of the log step size (Hoffman and Gelman 2014, section 3.2)."""

    log_step: Scalar
    log_average: Scalar
    error: Scalar
    count: Scalar
    shrink_to: Scalar

    @classmethod
    def start(cls, log_step: Scalar | float) -> StepSize:
        """Begin, or begin again after the metric has changed."""
        log_step = jnp.asarray(log_step, float)
        zero = jnp.zeros_like(log_step)
        return cls(log_step, log_step, zero, zero, log_step + np.log(2.0))

    def update(self, acceptance: Scalar, target: Scalar) -> StepSize:
        """Move towards the step size whose mean acceptance is ``target``."""
        count = self.count + 1
        weight = 1 / (count + 10)
        error = (1 - weight) * self.error + weight * (target - acceptance)
        log_step = self.shrink_to - jnp.sqrt(count) / 0.05 * error
        forget = count**-0.75
        return StepSize(log_step, forget * log_step + (1 - forget) * self.log_average, error, count, self.shrink_to)


class AdaptedState(eqx.Module):
    """State of a chain.

    Attributes:
        index: Steps taken.
        u: Unconstrained coordinates.
        log_density: Log density at ``u``.
        grad: Its gradient, in the whitened coordinates of ``metric``.
        metric: The current metric.
        estimate: What the current window has seen.
        step: The step size, adapting.
        target: Acceptance rate aimed at.
        diverged: Divergent transitions in the current window.
    """

    index: Array
    u: Position
    log_density: Scalar
    grad: Array
    metric: Metric
    estimate: Estimate
    step: StepSize
    target: Scalar
    diverged: Scalar


def windows(warmup: int, settle: float = 0.15, first: int = 20) -> np.ndarray:
    """Steps (counted from 0) at whose end the metric is replaced."""
    last = warmup - max(int(settle * warmup), min(50, warmup // 2))
    ends, end, length = [], first // 2, first
    while end + length <= last:
        end, length = end + length, 2 * length
        ends.append(end)
    if ends:
        ends[-1] = last
    elif last > first // 2:
        ends = [last]
    return np.asarray(ends, int) - 1


class AdaptedKernel(Kernel):
    """An engine's transition with metric and step-size adaptation.

    Attributes:
        move: The engine's transition, with the identity metric.
        warmup: Number of adaptation steps.
        target: Acceptance rate that the step size aims at.
        cautious: Aim at ``CAUTIOUS_TARGET`` after a long window in which more than ``DIVERGING`` of the transitions
            diverged.
        metric: ``auto``, ``dense``, ``diagonal`` or ``low_rank``.
        step_size: Step size at the start, in units of the metric.
    """

    move: Move = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True, default=0.8)
    cautious: bool = eqx.field(static=True, default=False)
    metric: str = eqx.field(static=True, default="auto")
    step_size: float = eqx.field(static=True, default=0.5)

    def init(self, key: PRNGKey, density: Density, u: Position) -> AdaptedState:
        """See ``Kernel.init``."""
        log_density, grad = jax.value_and_grad(density.log_density)(u)
        estimate = estimate_of(self.metric, u.shape[0])
        metric = estimate.start(grad)
        return AdaptedState(
            index=jnp.zeros((), int),
            u=u,
            log_density=log_density,
            grad=metric.pull(grad),
            metric=metric,
            estimate=estimate.empty(u.shape[0]),
            step=StepSize.start(np.log(self.step_size)),
            target=jnp.asarray(self.target, float),
            diverged=jnp.zeros(()),
        )

    def at(self, state: AdaptedState, index: Array) -> AdaptedState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, index=index)

    def step(self, key: PRNGKey, density: Density, state: AdaptedState) -> tuple[AdaptedState, Draw]:
        """See ``Kernel.step``."""
        metric, origin = state.metric, state.u
        adapting = state.index < self.warmup
        step_size = jnp.exp(jnp.where(adapting, state.step.log_step, state.step.log_average))
        start = Whitened(jnp.zeros_like(origin), state.log_density, state.grad)
        moved = self.move(key, lambda z: density.log_density(origin + metric.push(z)), start, step_size)
        point = moved.point
        new = dataclasses.replace(
            state,
            index=state.index + 1,
            u=origin + metric.push(point.z),
            log_density=point.log_density,
            grad=point.grad,
        )
        diverging = moved.stats.get("diverging", jnp.zeros((), bool))
        new = jax.lax.cond(adapting, self._adapt, lambda s, *_: s, new, moved.acceptance, diverging)
        stats = {"lp": point.log_density, "acceptance_rate": moved.acceptance, "step_size": step_size, **moved.stats}
        return new, Draw(new.u, stats)

    def _adapt(self, state: AdaptedState, acceptance: Scalar, diverging: Array) -> AdaptedState:
        grad = state.metric.pull_back(state.grad)
        seen = dataclasses.replace(
            state,
            estimate=state.estimate.add(state.u, grad),
            step=state.step.update(jnp.where(jnp.isfinite(acceptance), acceptance, 0.0), state.target),
            diverged=state.diverged + diverging,
        )
        ends = windows(self.warmup)
        if not len(ends):
            return seen
        ends, lengths = jnp.asarray(ends), np.diff(ends, prepend=-1)
        which = state.index - 1 == ends
        length = jnp.sum(jnp.where(which, lengths, 0))
        return jax.lax.cond(jnp.any(which), lambda: self._renew(seen, grad, length), lambda: seen)

    def _renew(self, state: AdaptedState, grad: Array, length: Array) -> AdaptedState:
        """End a window: replace the metric, and begin the step size and the next window afresh."""
        metric = state.estimate.metric()
        target = state.target
        if self.cautious:
            often = (length >= LONG_WINDOW) & (state.diverged > jnp.maximum(2, DIVERGING * length))
            target = jnp.where(often, jnp.maximum(target, CAUTIOUS_TARGET), target)
        return dataclasses.replace(
            state,
            metric=metric,
            grad=metric.pull(grad),
            estimate=type(state.estimate).empty(state.u.shape[0]),
            step=StepSize.start(state.step.log_average),
            target=target,
            diverged=jnp.zeros(()),
        )
