"""BlackJAX's samplers that adapt across chains: ChEES and MEADS, one step at a time, so that any loop can run them."""

# BlackJAX annotates traced numbers as float, and arrays as any pytree.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from blackjax.adaptation import chees_adaptation, meads_adaptation
from blackjax.mcmc import dynamic_hmc, ghmc, hmc
from jax import Array

from probgen.backends.blackjax_moves import approach_kernel
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.kernels.kernel import Kernel, Stats
from probgen.kernels.population import LEAST_WARMUP, PopulationKernel

__all__ = ["KERNELS"]

type LogDensity = Callable[[Array], Scalar]


# -- ChEES -----------------------------------------------------------------------------------------------------------


class _CheesState(NamedTuple):
    chains: hmc.HMCState
    tuning: chees_adaptation.ChEESAdaptationState
    index: Array


@dataclasses.dataclass(frozen=True)
class _Chees:
    """Jittered HMC; trajectory length by the ChEES criterion, step size by the harmonic mean of the acceptance."""

    target: float
    max_steps: int
    learning_rate: float

    @property
    def _adaptation(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return chees_adaptation.base(
            _jitter, lambda i: i + 1, optax.adam(self.learning_rate), self.target, 0.5, self.max_steps
        )

    def check(self, chains: int, dim: int) -> None:
        if chains < 4:
            raise MethodError(
                f"ChEES tunes across chains and needs at least 4 of them, got chains={chains}. "
                f"Pass chains=16 or more to pg.infer."
            )

    def start(self, key: PRNGKey, log_density: LogDensity, z: Array) -> _CheesState:
        chains = jax.vmap(lambda one: hmc.init(one, log_density))(z)
        begin, _ = self._adaptation
        zero = jnp.zeros((), int)
        # Every leaf an array of its own dtype, so that the state keeps its types from step to step.
        tuning = begin(zero, jnp.asarray(0.5 * z.shape[1] ** -0.25, float))._replace(
            log_step_size_moving_average=jnp.zeros(()),
            log_trajectory_length_moving_average=jnp.zeros(()),
            step=zero + 1,
        )
        return _CheesState(chains, jax.tree.map(jnp.asarray, tuning), zero)

    def move(
        self, key: PRNGKey, log_density: LogDensity, state: _CheesState, tuning: Array
    ) -> tuple[_CheesState, Array, Stats]:
        adapted = state.tuning
        step_size = jnp.where(tuning, adapted.step_size, jnp.exp(adapted.log_step_size_moving_average))
        length = jnp.where(tuning, adapted.trajectory_length, jnp.exp(adapted.log_trajectory_length_moving_average))
        steps = jnp.clip(jnp.ceil(_jitter(state.index) * length / step_size), 1, self.max_steps).astype(int)
        count, dim = state.chains.position.shape
        kernel = hmc.build_kernel()
        chains, info = jax.vmap(lambda key, one: kernel(key, one, log_density, step_size, jnp.ones(dim), steps))(
            jax.random.split(key, count), state.chains
        )
        _, update = self._adaptation

        def tune() -> Any:
            new = update(
                adapted,
                info.proposal.position,
                info.proposal.momentum,
                state.chains.position,
                info.acceptance_rate,
                info.is_divergent,
                jnp.ones(dim),
            )
            return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, adapted)

        new = _CheesState(chains, jax.lax.cond(tuning, tune, lambda: adapted), state.index + 1)
        stats = {
            "lp": chains.logdensity,
            "acceptance_rate": info.acceptance_rate,
            "step_size": jnp.full(count, step_size),
            "energy": info.energy,
            "diverging": info.is_divergent,
            "n_steps": jnp.full(count, steps),
        }
        return new, chains.position, stats


def _jitter(index: Array) -> Array:
    """Part of the trajectory length to use: a quasi-random number in (0, 1)."""
    return dynamic_hmc.halton_sequence(index)


# -- MEADS -----------------------------------------------------------------------------------------------------------


class _Fold(NamedTuple):
    """Parameters of generalised HMC, each with a leading axis for the folds."""

    step_size: Array
    alpha: Array
    delta: Array


class _MeadsState(NamedTuple):
    chains: ghmc.GHMCState
    folds: _Fold
    index: Array


@dataclasses.dataclass(frozen=True)
class _Meads:
    """Generalised HMC whose parameters come from the other folds of chains (Hoffman and Sountsov 2022, algorithm 3).

    The published scales of the coordinates are left out: the shared metric has whitened them. (Scales of small folds
    are noisy, and a persistent momentum that is not rescaled with them heats the chains while they are tuned.)
    """

    folds: int
    step_size_factor: float

    def check(self, chains: int, dim: int) -> None:
        if chains % self.folds or chains < 4 * self.folds:
            raise MethodError(
                f"MEADS divides the chains among {self.folds} folds of equal size, at least 4 in each, "
                f"got chains={chains}. Pass a multiple of {self.folds} from {4 * self.folds} on to pg.infer, "
                f"or change folds."
            )

    def start(self, key: PRNGKey, log_density: LogDensity, z: Array) -> _MeadsState:
        count = z.shape[0]
        chains = jax.vmap(lambda one, key: ghmc.init(one, log_density, key))(z, jax.random.split(key, count))
        empty = jnp.zeros(self.folds)
        return _MeadsState(chains, _Fold(empty, empty, empty), jnp.zeros((), int))

    def move(
        self, key: PRNGKey, log_density: LogDensity, state: _MeadsState, tuning: Array
    ) -> tuple[_MeadsState, Array, Stats]:
        key_chains, key_fold = jax.random.split(key)
        count, dim = state.chains.position.shape
        # The fold of each chain changes from step to step while tuning; the chains keep their places.
        place = jax.random.permutation(key_fold, count)
        fold_of = jnp.zeros(count, int).at[place].set(jnp.arange(count) // (count // self.folds))
        folds = jax.lax.cond(tuning, lambda: self._tune(state, place), lambda: state.folds)
        shared = jax.tree.map(lambda x: jnp.broadcast_to(x.mean(0), x.shape), folds)
        used = jax.tree.map(lambda own, mean: jnp.where(tuning, own, mean)[fold_of], folds, shared)
        kernel = ghmc.build_kernel()
        chains, info = jax.vmap(
            lambda key, one, p: kernel(key, one, log_density, p.step_size, jnp.ones(dim), p.alpha, p.delta)
        )(jax.random.split(key_chains, count), state.chains, used)
        # While tuning, the fold whose neighbour it informs rests.
        rests = tuning & (self.folds > 1) & (fold_of == state.index % self.folds)
        chains = jax.tree.map(
            lambda old, new: jnp.where(rests.reshape(-1, *[1] * (new.ndim - 1)), old, new), state.chains, chains
        )
        stats = {
            "lp": chains.logdensity,
            "acceptance_rate": info.acceptance_rate,
            "step_size": used.step_size,
            "energy": info.energy,
            "diverging": info.is_divergent,
            "n_steps": jnp.broadcast_to(jnp.asarray(info.num_integration_steps, int), (count,)),
        }
        return _MeadsState(chains, folds, state.index + 1), chains.position, stats

    def _tune(self, state: _MeadsState, place: Array) -> _Fold:
        """Step size from the fold before, damping from the fold's own spread."""

        def folded(x: Array) -> Array:
            return x[place].reshape(self.folds, -1, x.shape[-1])

        position, grad = folded(state.chains.position), folded(state.chains.logdensity_grad)
        largest = jax.vmap(meads_adaptation.maximum_eigenvalue)
        own = jnp.minimum(self.step_size_factor / jnp.sqrt(largest(grad)), 1.0)
        step_size = jnp.roll(own, 1)
        centered = position - position.mean(1, keepdims=True)
        damping = jnp.maximum(1 / jnp.sqrt(largest(centered)), 1 / ((state.index + 1) * step_size))
        alpha = 1 - jnp.exp(-2 * step_size * damping)
        return _Fold(step_size, alpha, alpha / 2)


# -- factories -------------------------------------------------------------------------------------------------------


def _population(engine: Any, name: str, warmup: int) -> Kernel:
    if warmup < LEAST_WARMUP:
        raise MethodError(
            f"{name} is tuned during the warm-up and needs at least {LEAST_WARMUP} steps of it, got warmup={warmup}. "
            f"Pass warmup={LEAST_WARMUP} or more to pg.infer."
        )
    approach = approach_kernel(warmup // 2)
    return PopulationKernel(approach=approach, engine=engine, warmup=warmup)


def chees_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``ChEES``."""
    return _population(_Chees(method.target_accept, method.max_steps, method.learning_rate), "ChEES", warmup)


def meads_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``MEADS``."""
    return _population(_Meads(method.folds, method.step_size_factor), "MEADS", warmup)


KERNELS = {"chees": chees_kernel, "meads": meads_kernel}
