"""BlackJAX's transitions of fixed cost, HMC, MALA and Barker, under our adaptation."""

# BlackJAX annotates traced numbers as float, and arrays as any pytree.
# pyright: reportArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.mcmc import barker, hmc, mala
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.kernels.adaptation import AdaptedKernel, Moved, Whitened
from probgen.kernels.kernel import Kernel

__all__ = ["KERNELS", "approach_kernel"]

APPROACH_STEPS = 6
"""Leapfrog steps of the kernel that brings chains to the posterior."""


@dataclasses.dataclass(frozen=True)
class _Hmc:
    """BlackJAX's HMC with the identity metric; the step size varies by a fifth, so that no trajectory is periodic."""

    steps: int

    def __call__(
        self, key: PRNGKey, log_density: Callable[[Array], Scalar], point: Whitened, step_size: Scalar
    ) -> Moved:
        key_jitter, key_move = jax.random.split(key)
        state = hmc.HMCState(point.z, point.log_density, point.grad)
        jittered = step_size * jax.random.uniform(key_jitter, (), float, 0.8, 1.2)
        state, info = hmc.build_kernel()(key_move, state, log_density, jittered, jnp.ones_like(point.z), self.steps)
        stats = {
            "energy": info.energy,
            "diverging": info.is_divergent,
            "n_steps": jnp.asarray(info.num_integration_steps, int),
        }
        return Moved(Whitened(state.position, state.logdensity, state.logdensity_grad), info.acceptance_rate, stats)


@dataclasses.dataclass(frozen=True)
class _Mala:
    """The Langevin proposal, accepted or rejected. ``step_size`` is the standard deviation of its noise."""

    def __call__(
        self, key: PRNGKey, log_density: Callable[[Array], Scalar], point: Whitened, step_size: Scalar
    ) -> Moved:
        state = mala.MALAState(point.z, point.log_density, point.grad)
        state, info = mala.build_kernel()(key, state, log_density, step_size**2 / 2)
        new = Whitened(state.position, state.logdensity, state.logdensity_grad)
        return Moved(new, info.acceptance_rate, {"n_steps": jnp.ones((), int)})


@dataclasses.dataclass(frozen=True)
class _Barker:
    """Barker's proposal: the gradient decides the sign of each coordinate's step, not its size."""

    def __call__(
        self, key: PRNGKey, log_density: Callable[[Array], Scalar], point: Whitened, step_size: Scalar
    ) -> Moved:
        state = barker.BarkerState(point.z, point.log_density, point.grad)
        state, info = barker.build_kernel()(key, state, log_density, step_size)
        new = Whitened(state.position, state.logdensity, state.logdensity_grad)
        return Moved(new, info.acceptance_rate, {"n_steps": jnp.ones((), int)})


def approach_kernel(warmup: int) -> AdaptedKernel:
    """The kernel that brings a chain to the posterior, for samplers that are tuned once it is there."""
    return AdaptedKernel(move=_Hmc(APPROACH_STEPS), warmup=warmup)


def hmc_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``HMC``."""
    return AdaptedKernel(move=_Hmc(method.steps), warmup=warmup, target=method.target_accept, metric=method.metric)


def mala_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``MALA``."""
    return AdaptedKernel(move=_Mala(), warmup=warmup, target=method.target_accept, metric=method.metric)


def barker_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``Barker``."""
    return AdaptedKernel(move=_Barker(), warmup=warmup, target=method.target_accept, metric=method.metric)


KERNELS = {"hmc": hmc_kernel, "mala": mala_kernel, "barker": barker_kernel}
