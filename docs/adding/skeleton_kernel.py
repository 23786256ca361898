"""A new sampler, and a new engine for an old one, without touching probgen. Copy this file and change it.

A random walk becomes a method of its own, ``Walk``; and ``pg.HMC`` gets an engine, ``toy``, whose leapfrog steps are
written out. Run it: ``python skeleton_kernel.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

import probgen as pg
from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.infer.method import KernelMethod, Need
from probgen.kernels.adaptation import AdaptedKernel, Moved, Whitened
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density

# -- 1. A method: what to run. Every field is static, so equal settings share one compiled program. --------------------


class Walk(KernelMethod):
    """Random-walk Metropolis with one step size for all coordinates.

    Attributes:
        backend: ``"toy"``.
        target_accept: Acceptance rate that the step size aims at, in (0, 1).
    """

    backend: str = eqx.field(static=True, default="")
    target_accept: float = eqx.field(static=True, default=0.35)

    name: ClassVar = "walk"
    summary: ClassVar = "Random walk with one step size, no gradient"
    backends: ClassVar = ("toy",)
    needs: ClassVar = frozenset({Need.continuous})

    def check(self) -> None:
        """Raise before anything is computed: one sentence what is wrong, one what to do."""
        super().check()
        if not 0 < self.target_accept < 1:
            raise pg.MethodError(
                f"target_accept must lie between 0 and 1, got {self.target_accept}. 0.35 suits few coordinates."
            )

    def kernel(self, warmup: int) -> Kernel:
        """The kernel. Leave this out where an engine makes it (part 4)."""
        return WalkKernel(warmup, self.target_accept)


# -- 2. Its kernel: init and step, pure functions of a key, the density and the state. ---------------------------------


class WalkState(eqx.Module):
    """What the next step needs, and nothing else."""

    index: Array
    u: Position
    log_density: Scalar
    log_step: Scalar


class WalkKernel(Kernel):
    """Metropolis; Robbins and Monro's rule tunes the step size during the warm-up, then it is frozen."""

    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True)
    gradient: ClassVar[bool] = False

    def init(self, key: PRNGKey, density: Density, u: Position) -> WalkState:
        """The state at a starting point ``u``, unconstrained, shape ``(dim,)``."""
        return WalkState(jnp.zeros((), int), u, density.log_density(u), jnp.zeros(()))

    def step(self, key: PRNGKey, density: Density, state: WalkState) -> tuple[WalkState, Draw]:
        """One step. ``key`` is fresh at every call; split it once, by name."""
        key_propose, key_accept = jax.random.split(key)
        step_size = jnp.exp(state.log_step)
        proposal = state.u + step_size * jax.random.normal(key_propose, state.u.shape, state.u.dtype)
        log_density = density.log_density(proposal)
        rate = jnp.exp(jnp.minimum(log_density - state.log_density, 0.0))
        rate = jnp.where(jnp.isnan(rate), 0.0, rate)
        accepted = jax.random.uniform(key_accept, (), rate.dtype) < rate
        gain = jnp.where(state.index < self.warmup, (state.index + 1.0) ** -0.6, 0.0)
        new = WalkState(
            state.index + 1,
            jnp.where(accepted, proposal, state.u),
            jnp.where(accepted, log_density, state.log_density),
            state.log_step + gain * (rate - self.target),
        )
        # Names of statistics are shared by all samplers: lp, acceptance_rate, step_size, diverging, n_steps ...
        stats = {"lp": new.log_density, "acceptance_rate": rate, "step_size": step_size}
        return new, Draw(new.u, stats)


# -- 3. A second way: only the transition is yours, the adaptation of metric and step size is probgen's. ---------------


@dataclasses.dataclass(frozen=True)
class Leapfrog:
    """One transition of Hamiltonian Monte Carlo. Hashable by its settings, since it is part of what is compiled."""

    steps: int

    def __call__(
        self, key: PRNGKey, log_density: Callable[[Array], Scalar], point: Whitened, step_size: Scalar
    ) -> Moved:
        """From ``point`` to the next; coordinates are whitened already, so the metric is the identity."""
        key_momentum, key_jitter, key_accept = jax.random.split(key, 3)
        momentum = jax.random.normal(key_momentum, point.z.shape, point.z.dtype)
        h = step_size * jax.random.uniform(key_jitter, (), point.z.dtype, 0.8, 1.2)
        value_and_grad = jax.value_and_grad(log_density)

        def leap(_: Array, carry: tuple[Array, Array, Scalar, Array]) -> tuple[Array, Array, Scalar, Array]:
            z, p, _, grad = carry
            p = p + h / 2 * grad
            z = z + h * p
            value, grad = value_and_grad(z)
            return z, p + h / 2 * grad, value, grad

        z, p, value, grad = jax.lax.fori_loop(0, self.steps, leap, (point.z, momentum, point.log_density, point.grad))
        gain = value - point.log_density - (p @ p - momentum @ momentum) / 2
        rate = jnp.where(jnp.isnan(gain), 0.0, jnp.exp(jnp.minimum(gain, 0.0)))
        accepted = jax.random.uniform(key_accept, (), rate.dtype) < rate
        new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), Whitened(z, value, grad), point)
        stats = {"n_steps": jnp.asarray(self.steps, int), "diverging": ~(gain > -1000.0)}
        return Moved(new, rate, stats)


# -- 4. An engine: by name of the method, a function of its settings and the number of warm-up steps. ------------------


def hmc_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``pg.HMC(backend="toy")``."""
    return AdaptedKernel(move=Leapfrog(method.steps), warmup=warmup, target=method.target_accept, metric=method.metric)


KERNELS = {"hmc": hmc_kernel}


# -- 5. Use. -----------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    import sys

    import numpyro
    import numpyro.distributions as dist

    def program(y: Array) -> None:
        """A mean with a known noise."""
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    this_file: Any = sys.modules[__name__]
    pg.register_backend("toy", this_file)
    model = pg.Model(program, {"y": [0.3, 1.2, 0.8]})
    for method in (Walk(), pg.HMC(backend="toy")):
        tree = pg.infer(model, method, seed=0)
        print(method.name, tree["posterior/mu"].mean().item(), tree["posterior/mu"].std().item())
        print(pg.check(tree))
