"""BlackJAX's transitions that see no gradient: the random walk, under our adaptation, and elliptical slice sampling."""

# BlackJAX annotates traced numbers as float, and arrays as any pytree.
# pyright: reportArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc import elliptical_slice, random_walk
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.kernels.gradient_free import GradientFreeKernel, Proposed
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density
from probgen.program.gaussian import gaussian_prior_mean

__all__ = ["KERNELS"]


@dataclasses.dataclass(frozen=True)
class _RandomWalk:
    """Metropolis with a Gaussian step."""

    def __call__(
        self,
        key: PRNGKey,
        log_density: Callable[[Array], Scalar],
        z: Array,
        value: Scalar,
        step_size: Scalar,
    ) -> Proposed:
        def gaussian(key: PRNGKey, position: Array) -> Array:
            return step_size * jax.random.normal(key, position.shape, position.dtype)

        state, info = random_walk.build_additive_step()(key, random_walk.RWState(z, value), log_density, gaussian)
        return Proposed(state.position, state.logdensity, info.acceptance_rate)


class _EllipseState(eqx.Module):
    u: Position
    log_likelihood: Scalar


def _finite_likelihood(density: Density) -> Callable[[Array], Scalar]:
    """The log likelihood, with NaN (which the engine would accept) turned into zero likelihood."""

    def log_likelihood(u: Array) -> Scalar:
        value = density.log_likelihood(u)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    return log_likelihood


class EllipticalSliceKernel(Kernel):
    """Elliptical slice sampling: ellipses through the state and a draw from the Gaussian prior. Nothing is adapted."""

    warmup: int = eqx.field(static=True)
    gradient: ClassVar[bool] = False

    def init(self, key: PRNGKey, density: Density, u: Position) -> _EllipseState:
        """See ``Kernel.init``. Raises ``MethodError`` if the prior is not Gaussian."""
        gaussian_prior_mean(density)
        return _EllipseState(u, _finite_likelihood(density)(u))

    def step(self, key: PRNGKey, density: Density, state: _EllipseState) -> tuple[_EllipseState, Draw]:
        """See ``Kernel.step``."""
        move = elliptical_slice.elliptical_proposal(
            _finite_likelihood(density), lambda key, _: density.draw_prior(key), gaussian_prior_mean(density)
        )
        new, info = move(key, elliptical_slice.EllipSliceState(state.u, state.log_likelihood))
        stats = {
            "lp": density.log_prior(new.position) + new.logdensity,
            "n_steps": jnp.asarray(info.subiter, int),
        }
        return _EllipseState(new.position, new.logdensity), Draw(new.position, stats)


def random_walk_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``RandomWalk``."""
    return GradientFreeKernel(move=_RandomWalk(), warmup=warmup, target=method.target_accept)


def elliptical_slice_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``EllipticalSlice``."""
    return EllipticalSliceKernel(warmup=warmup)


KERNELS = {"random_walk": random_walk_kernel, "elliptical_slice": elliptical_slice_kernel}
