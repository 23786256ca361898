"""BlackJAX as an engine: its transitions, under our adaptation."""

# BlackJAX annotates traced numbers as float, and arrays as any pytree.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from blackjax.mcmc import hmc, nuts
from jax import Array

from probgen.backends.blackjax_gradient_free import KERNELS as gradient_free
from probgen.backends.blackjax_microcanonical import KERNELS as microcanonical
from probgen.backends.blackjax_moves import KERNELS as moves
from probgen.backends.blackjax_population import KERNELS as population
from probgen.backends.blackjax_stochastic import KERNELS as stochastic
from probgen.base.typing import PRNGKey, Scalar
from probgen.kernels.adaptation import AdaptedKernel, Moved, Whitened
from probgen.kernels.kernel import Kernel

__all__ = ["KERNELS"]


class _Nuts:
    """BlackJAX's iterative NUTS, multinomial, with the identity metric."""

    def __init__(self, max_tree_depth: int) -> None:
        self.max_tree_depth = max_tree_depth
        self._kernel = nuts.build_kernel()

    def __call__(
        self, key: PRNGKey, log_density: Callable[[Array], Scalar], point: Whitened, step_size: Scalar
    ) -> Moved:
        state = hmc.HMCState(point.z, point.log_density, point.grad)
        state, info = self._kernel(key, state, log_density, step_size, jnp.ones_like(point.z), self.max_tree_depth)
        stats = {
            "energy": info.energy,
            "diverging": info.is_divergent,
            "n_steps": info.num_integration_steps,
            "tree_depth": info.num_trajectory_expansions,
        }
        return Moved(Whitened(state.position, state.logdensity, state.logdensity_grad), info.acceptance_rate, stats)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Nuts) and other.max_tree_depth == self.max_tree_depth

    def __hash__(self) -> int:
        return hash((_Nuts, self.max_tree_depth))


def nuts_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``NUTS``."""
    return AdaptedKernel(
        move=_Nuts(method.max_tree_depth),
        warmup=warmup,
        target=method.target_accept or 0.8,
        cautious=method.target_accept is None,
        metric=method.metric,
    )


KERNELS = {"nuts": nuts_kernel, **moves, **gradient_free, **microcanonical, **population, **stochastic}
