"""BlackJAX's integrators for stochastic gradients, with a new mini-batch and a new key at every gradient.

The integrators alone are BlackJAX's: its SGHMC kernel keeps one mini-batch for a whole trajectory, and splits the key
of the momentum again for the noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.sgmcmc import diffusions
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.batch import BatchDensity
from probgen.program.density import Density

__all__ = ["KERNELS"]


class Phase(NamedTuple):
    """Position, momentum, and the friction of the thermostat; ``steps`` counts the draws so far."""

    u: Array
    momentum: Array
    friction: Scalar
    steps: Array


class Move(Protocol):
    """One draw of a stochastic-gradient method."""

    def __call__(self, key: PRNGKey, density: BatchDensity, phase: Phase, step_size: Scalar) -> Phase: ...


def _gradient(key: PRNGKey, density: BatchDensity, u: Position) -> Array:
    return jax.grad(density.of(key).log_density)(u)


def _next(u: Array, momentum: Array, step_size: Scalar) -> Array:
    """Where the integrator goes, and where the gradient belongs (Chen, Fox and Guestrin 2014, algorithm 2): taken where
    it comes from, each step adds energy, and variances come out too large by about ``step_size`` over the friction."""
    return u + step_size * momentum


@dataclasses.dataclass(frozen=True)
class _Langevin:
    def __call__(self, key: PRNGKey, density: BatchDensity, phase: Phase, step_size: Scalar) -> Phase:
        key_batch, key_noise = jax.random.split(key)
        gradient = _gradient(key_batch, density, phase.u)
        integrate: Any = diffusions.overdamped_langevin()
        return phase._replace(u=integrate(key_noise, phase.u, gradient, step_size))


@dataclasses.dataclass(frozen=True)
class _Hamiltonian:
    friction: float
    noise: float
    steps: int

    def __call__(self, key: PRNGKey, density: BatchDensity, phase: Phase, step_size: Scalar) -> Phase:
        key_momentum, key_steps = jax.random.split(key)
        integrate: Any = diffusions.sghmc(self.friction, self.noise)

        def step(state: tuple[Array, Array], key: PRNGKey) -> tuple[tuple[Array, Array], None]:
            key_batch, key_noise = jax.random.split(key)
            gradient = _gradient(key_batch, density, _next(*state, step_size))
            return integrate(key_noise, *state, gradient, step_size), None

        momentum = jax.random.normal(key_momentum, phase.u.shape, phase.u.dtype)
        (u, momentum), _ = jax.lax.scan(step, (phase.u, momentum), jax.random.split(key_steps, self.steps))
        return phase._replace(u=u, momentum=momentum)


@dataclasses.dataclass(frozen=True)
class _Thermostat:
    friction: float
    scale: float
    wait: int

    def __call__(self, key: PRNGKey, density: BatchDensity, phase: Phase, step_size: Scalar) -> Phase:
        key_batch, key_noise = jax.random.split(key)
        gradient = _gradient(key_batch, density, _next(phase.u, phase.momentum, step_size))
        integrate: Any = diffusions.sgnht(self.friction)
        # In units of the scale: the thermostat has unit mass, and is far too slow where the posterior is narrow.
        z, z_gradient, z_step = phase.u / self.scale, gradient * self.scale, step_size / self.scale
        z, momentum, friction = integrate(key_noise, z, phase.momentum, phase.friction, z_gradient, z_step)
        # A start far out would heat the thermostat for long: it waits until the chain has fallen into the bulk.
        friction = jnp.where(phase.steps < self.wait, phase.friction, friction)
        return Phase(z * self.scale, momentum, friction, phase.steps)


class StochasticGradient(Kernel):
    """A chain without acceptance test; draw ``t`` has step size ``step_size * (1 + t / delay) ** -decay``."""

    warmup: int = eqx.field(static=True)
    move: Move = eqx.field(static=True)
    step_size: float = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    delay: float = eqx.field(static=True)
    friction: float = eqx.field(static=True)

    def init(self, key: PRNGKey, density: Density, u: Position) -> Phase:
        """See ``Kernel.init``."""
        momentum = jax.random.normal(key, u.shape, u.dtype)
        return Phase(u, momentum, jnp.asarray(self.friction, u.dtype), jnp.zeros((), int))

    def step(self, key: PRNGKey, density: Density, state: Phase) -> tuple[Phase, Draw]:
        """See ``Kernel.step``."""
        assert isinstance(density, BatchDensity)
        time = jnp.maximum(state.steps - self.warmup, 0)
        step_size = self.step_size * (1 + time / self.delay) ** -self.decay
        state = self.move(key, density, state, step_size)
        state = state._replace(steps=state.steps + 1)
        return state, Draw(state.u, {"step_size": jnp.asarray(step_size, state.u.dtype)})


def _kernel(method: Any, warmup: int, move: Move, friction: float = 0.0) -> Kernel:
    return StochasticGradient(warmup, move, method.step_size, method.decay, method.delay, friction)


KERNELS = {
    "sgld": lambda method, warmup: _kernel(method, warmup, _Langevin()),
    "sghmc": lambda method, warmup: _kernel(
        method, warmup, _Hamiltonian(method.friction, method.gradient_noise, method.steps)
    ),
    "sgnht": lambda method, warmup: _kernel(
        method, warmup, _Thermostat(method.friction, method.scale, warmup // 2), method.friction
    ),
}
