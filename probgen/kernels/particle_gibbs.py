r"""Particle Gibbs: paths given parameters by conditional SMC, parameters given the path by any kernel.

One step draws :math:`x \sim K_\theta(x, \cdot)`, a sweep of conditional SMC which leaves :math:`p(x \mid \theta, y)`
invariant, and then takes steps of a kernel on :math:`p(\theta \mid x, y)`. Each leaves the joint posterior invariant,
with any number of particles from two. A path is given by the values of its latent sites: its particles are made anew
from them, since the carry of the scan may depend on the parameters.

References: Andrieu, Doucet and Holenstein (2010), JRSS B 72(3), section 2.4.3; Lindsten, Jordan and Schön (2014), JMLR
15.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Position, PRNGKey, Values
from probgen.feynman_kac.conditional import Ancestry, conditional_smc
from probgen.kernels.adaptation import AdaptedState
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density
from probgen.program.filtered import FilteredDensity

__all__ = ["ParticleGibbsKernel"]


class ParticleGibbsState(eqx.Module):
    """State of a chain: the path, and the state of the kernel of the parameters, told of that path."""

    inner: Any
    path: Values


class ParticleGibbsKernel(Kernel):
    """A sweep over the path, then steps of the parameters.

    Attributes:
        warmup: Number of adaptation steps.
        parameters: The kernel of the parameters, an ``AdaptedKernel`` or a ``GradientFreeKernel``; it adapts during
            ``moves`` times the warm-up.
        ancestry: How the path gets its past; ``None``: as the program allows.
        moves: Steps of the parameters per sweep.
    """

    warmup: int = eqx.field(static=True)
    parameters: Kernel = eqx.field(static=True)
    ancestry: Ancestry | None = eqx.field(static=True)
    moves: int = eqx.field(static=True)
    gradient: ClassVar[bool] = False

    def init(self, key: PRNGKey, density: Density, u: Position) -> ParticleGibbsState:
        """See ``Kernel.init``."""
        assert isinstance(density, FilteredDensity)
        key_path, key_parameters = jax.random.split(key)
        _, path = density.filtered(key_path, u)
        return ParticleGibbsState(self.parameters.init(key_parameters, density.given(path), u), path)

    def at(self, state: ParticleGibbsState, index: Array) -> ParticleGibbsState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, inner=self.parameters.at(state.inner, index * self.moves))

    def step(self, key: PRNGKey, density: Density, state: ParticleGibbsState) -> tuple[ParticleGibbsState, Draw]:
        """See ``Kernel.step``."""
        assert isinstance(density, FilteredDensity)
        key_path, key_rest, key_parameters = jax.random.split(key, 3)
        u = state.inner.u
        system = density.system(u)
        ancestry = self.ancestry or density.ancestry
        path, _, told = conditional_smc(key_path, system, density.settings, system.path(state.path), ancestry)
        values = density.completed(key_rest, u, system.values(path))
        given = density.given(values)

        def move(inner: Any, key: PRNGKey) -> tuple[Any, Draw]:
            return self.parameters.step(key, given, inner)

        inner, drawn = jax.lax.scan(move, _told(state.inner, given), jax.random.split(key_parameters, self.moves))
        drawn = jax.tree.map(lambda leaf: leaf[-1], drawn)
        stats = {**drawn.stats, "path_moved": jnp.mean(told.moved.astype(float)), "ess": jnp.mean(told.ess)}
        return ParticleGibbsState(inner, values), Draw(drawn.u, stats, values)


def _told(state: Any, density: Density) -> Any:
    """The state of a kernel at the same point of another density."""
    if isinstance(state, AdaptedState):
        log_density, grad = jax.value_and_grad(density.log_density)(state.u)
        return dataclasses.replace(state, log_density=log_density, grad=state.metric.pull(grad))
    return dataclasses.replace(state, log_density=density.log_density(state.u))
