"""NumPyro's ensemble samplers: walkers that propose from one another's positions, without gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro.infer.ensemble import AIES, ESS, EnsembleSamplerState, ESSState

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density

__all__ = ["KERNELS"]


class _WalkersState(eqx.Module):
    """``u`` and ``log_density`` of all walkers; ``scale`` multiplies the directions of the slice sampler."""

    index: Array
    u: Array
    log_density: Array
    scale: Scalar


class _Walkers(Kernel):
    ensemble: ClassVar[bool] = True
    gradient: ClassVar[bool] = False

    def init(self, key: PRNGKey, density: Density, u: Array) -> _WalkersState:
        """See ``Kernel.init``. Raises ``MethodError`` for an odd number of chains, or too few."""
        chains, dim = u.shape
        least = max(2 * dim, 4)
        if chains % 2 or chains < least:
            raise MethodError(
                f"an ensemble sampler moves one half of the chains by the other and needs an even number of at least "
                f"{least} (twice the dimension), got chains={chains}. Pass chains={least} or more to pg.infer."
            )
        return _WalkersState(jnp.zeros((), int), u, jax.vmap(_finite(density))(u), jnp.ones(()))

    def at(self, state: _WalkersState, index: Array) -> _WalkersState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, index=index)


def _finite(density: Density) -> Callable[[Array], Scalar]:
    """The log density, with NaN (which the engine would accept) turned into zero density."""

    def log_density(u: Array) -> Scalar:
        value = density.log_density(u)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    return log_density


class AffineInvariantKernel(_Walkers):
    """Stretch and differential-evolution moves of NumPyro's ``AIES``; each half of the walkers in turn.

    Attributes:
        warmup: Steps before the draws; nothing is adapted.
        stretch: Probability of a stretch move.
    """

    warmup: int = eqx.field(static=True)
    stretch: float = eqx.field(static=True)

    def step(self, key: PRNGKey, density: Density, state: _WalkersState) -> tuple[_WalkersState, Draw]:
        """See ``Kernel.step``."""
        key_split, *key_halves = jax.random.split(key, 3)
        chains = state.u.shape[0]
        halves = jnp.split(jax.random.permutation(key_split, chains), 2)
        stretch, evolve = AIES.StretchMove(), AIES.DEMove()(chains)
        log_density = jax.vmap(_finite(density))
        u, values, accepted = state.u, state.log_density, jnp.zeros(chains)
        for key_half, active, others in zip(key_halves, halves, reversed(halves), strict=True):
            key_kind, key_move, key_accept = jax.random.split(key_half, 3)
            proposal, log_factor = jax.lax.cond(
                jax.random.bernoulli(key_kind, self.stretch), stretch, evolve, key_move, u[active], u[others]
            )
            proposed = log_density(proposal)
            log_ratio = log_factor + proposed - values[active]
            accept = jnp.log(jax.random.uniform(key_accept, active.shape)) < log_ratio
            u = u.at[active].set(jnp.where(accept[:, None], proposal, u[active]))
            values = values.at[active].set(jnp.where(accept, proposed, values[active]))
            accepted = accepted.at[active].set(jnp.minimum(1.0, jnp.exp(log_ratio)))
        state = dataclasses.replace(state, index=state.index + 1, u=u, log_density=values)
        return state, Draw(u, {"lp": values, "acceptance_rate": accepted})


class EnsembleSliceKernel(_Walkers):
    """NumPyro's ``ESS``; the length scale is tuned by us during the warm-up, and fixed after.

    Attributes:
        warmup: Steps in which the length scale is tuned.
        differential: Probability of a differential move; else a move along a Gaussian direction.
    """

    warmup: int = eqx.field(static=True)
    differential: float = eqx.field(static=True)

    def step(self, key: PRNGKey, density: Density, state: _WalkersState) -> tuple[_WalkersState, Draw]:
        """See ``Kernel.step``."""
        key_split, key_move, key_engine = jax.random.split(key, 3)
        chains = state.u.shape[0]
        log_density = _finite(density)
        moves = {ESS.DifferentialMove(): self.differential, ESS.GaussianMove(): 1 - self.differential}
        with jax.ensure_compile_time_eval():  # the engine looks at the values of its weights
            engine = ESS(
                potential_fn=lambda z: -log_density(z),
                randomize_split=False,
                moves={move: weight for move, weight in moves.items() if weight > 0},
                tune_mu=False,
            )
        order = jax.random.permutation(key_split, chains)
        walkers = state.u[order]
        engine.init(jax.random.split(key_engine, chains), self.warmup, walkers)
        count = jnp.zeros((), int)
        inner = ESSState(jnp.zeros(()), count, count, state.scale, key_move)
        moved = engine.sample(EnsembleSamplerState(walkers, inner, key_engine), (), {})
        expanded, contracted = moved.inner_state.n_expansions, moved.inner_state.n_contractions
        # Expansions and contractions should balance (Karamanis and Beutler 2021, algorithm 2).
        balance = 2 * jnp.maximum(expanded, 1) / jnp.maximum(expanded + contracted, 1)
        scale = jnp.where(state.index < self.warmup, state.scale * balance, state.scale)
        u = jnp.zeros_like(state.u).at[order].set(moved.z)
        values = jax.vmap(log_density)(u)
        stats = {
            "lp": values,
            "step_size": jnp.full(chains, state.scale),
            "n_steps": jnp.full(chains, (expanded + contracted) / chains),
        }
        return _WalkersState(state.index + 1, u, values, scale), Draw(u, stats)


def aies_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``AIES``."""
    return AffineInvariantKernel(warmup=warmup, stretch=method.stretch)


def ess_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``ESS``."""
    return EnsembleSliceKernel(warmup=warmup, differential=method.differential)


KERNELS = {"aies": aies_kernel, "ess": ess_kernel}
