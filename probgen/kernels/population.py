"""Kernels that tune themselves on many chains at once.

Such methods estimate scales and trajectories from the spread of the chains, which tells nothing while the chains are
still travelling: from dispersed starts on a badly scaled posterior they freeze, each chain where it is. So the first
half of the warm-up is an *approach*: every chain by itself runs an adapted kernel, and the draws of all chains in the
later part give one shared metric (the optimum of ``metric.py``). The engine tunes and runs in the coordinates that
this metric whitens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.kernels.adaptation import AdaptedKernel
from probgen.kernels.kernel import Draw, Kernel, Stats
from probgen.kernels.metric import DenseEstimate, DenseMetric
from probgen.program.density import Density

__all__ = ["LEAST_WARMUP", "PopulationEngine", "PopulationKernel"]

LEAST_WARMUP = 100
"""Fewest warm-up steps with which such a kernel can be tuned."""
STATS = ("lp", "acceptance_rate", "step_size", "energy", "diverging", "n_steps")

type LogDensity = Callable[[Array], Scalar]


class PopulationEngine(Protocol):
    """An engine that moves all chains at once, in whitened coordinates.

    Hashable: equal settings share compiled programs.
    """

    def check(self, chains: int, dim: int) -> None:
        """Raise ``MethodError`` if it cannot run so many chains."""
        ...

    def start(self, key: PRNGKey, log_density: LogDensity, z: Array) -> Any:
        """State at the points ``z``, shape ``(chains, dim)``."""
        ...

    def move(self, key: PRNGKey, log_density: LogDensity, state: Any, tuning: Array) -> tuple[Any, Array, Stats]:
        """One transition of every chain: the new state, the points, and the statistics ``STATS``, one per chain.

        ``tuning`` tells whether parameters may still change.
        """
        ...


class PopulationState(eqx.Module):
    """State of all chains. ``approach`` and ``pooled`` rest after the approach, ``tuned`` before its end."""

    index: Array
    approach: Any
    pooled: DenseEstimate
    center: Array
    metric: DenseMetric
    tuned: Any


class PopulationKernel(Kernel):
    """All chains of an engine that adapts across chains.

    Attributes:
        approach: The kernel that brings each chain to the posterior; its ``warmup`` is the length of the approach.
        engine: The engine.
        warmup: Warm-up steps, those of the approach included.
    """

    approach: AdaptedKernel
    engine: PopulationEngine = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    ensemble: ClassVar[bool] = True

    def init(self, key: PRNGKey, density: Density, u: Array) -> PopulationState:
        """See ``Kernel.init``. Raises ``MethodError`` if the engine cannot run so many chains."""
        chains, dim = u.shape
        self.engine.check(chains, dim)
        begun = jax.vmap(self.approach.init, (0, None, 0))(jax.random.split(key, chains), density, u)
        shapes = jax.eval_shape(lambda key, z: self.engine.start(key, density.log_density, z), key, u)
        tuned = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        eye = jnp.eye(dim)
        return PopulationState(
            jnp.zeros((), int), begun, DenseEstimate.empty(dim), jnp.zeros(dim), DenseMetric(eye, eye), tuned
        )

    def at(self, state: PopulationState, index: Array) -> PopulationState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, index=index)

    def step(self, key: PRNGKey, density: Density, state: PopulationState) -> tuple[PopulationState, Draw]:
        """See ``Kernel.step``."""
        approaching = state.index < self.approach.warmup
        state, draw = jax.lax.cond(
            approaching,
            lambda: self._approach(key, density, state),
            lambda: self._move(key, density, state),
        )
        return dataclasses.replace(state, index=state.index + 1), draw

    def _approach(self, key: PRNGKey, density: Density, state: PopulationState) -> tuple[PopulationState, Draw]:
        lead = self.approach.warmup
        key_chains, key_start = jax.random.split(key)
        chains = jax.tree.leaves(state.approach)[0].shape[0]

        def step(key: PRNGKey, one: Any) -> tuple[Any, Draw]:
            return self.approach.step(key, density, self.approach.at(one, state.index))

        begun, draw = jax.vmap(step)(jax.random.split(key_chains, chains), state.approach)
        grads = jax.vmap(lambda one: one.metric.pull_back(one.grad))(begun)

        def pool(pooled: DenseEstimate) -> DenseEstimate:
            return jax.lax.scan(lambda so_far, one: (so_far.add(*one), None), pooled, (draw.u, grads))[0]

        pooled = jax.lax.cond(state.index >= lead // 2, pool, lambda pooled: pooled, state.pooled)

        def arrive() -> tuple[Array, DenseMetric, Any]:
            metric, center = pooled.metric(), pooled.means[0]
            z = jax.vmap(lambda u: metric.inverse @ (u - center))(draw.u)
            return center, metric, self.engine.start(key_start, _whitened(density, center, metric), z)

        center, metric, tuned = jax.lax.cond(
            state.index == lead - 1, arrive, lambda: (state.center, state.metric, state.tuned)
        )
        state = dataclasses.replace(state, approach=begun, pooled=pooled, center=center, metric=metric, tuned=tuned)
        return state, Draw(draw.u, {name: draw.stats[name] for name in STATS})

    def _move(self, key: PRNGKey, density: Density, state: PopulationState) -> tuple[PopulationState, Draw]:
        log_density = _whitened(density, state.center, state.metric)
        tuned, z, stats = self.engine.move(key, log_density, state.tuned, state.index < self.warmup)
        u = state.center + jax.vmap(state.metric.push)(z)
        return dataclasses.replace(state, tuned=tuned), Draw(u, {name: stats[name] for name in STATS})


def _whitened(density: Density, center: Array, metric: DenseMetric) -> LogDensity:
    return lambda z: density.log_density(center + metric.push(z))
