"""NumPyro as an engine: its Hamiltonian samplers with their own adaptation, and those that sample discrete sites too.

A NumPyro kernel is an object whose ``init`` builds closures and whose ``sample`` uses them. Here both are called
wherever a step is traced, so that a step stays a pure function of density and state; the state that the second
``init`` makes is not used, and the compiler drops it.
"""

from __future__ import annotations

import abc
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer import HMC, NUTS, DiscreteHMCGibbs, MixedHMC
from numpyro.infer.mcmc import MCMCKernel

from probgen.backends.numpyro_ensemble import KERNELS as ensembles
from probgen.backends.numpyro_state import FLAT, dense, like, rekeyed
from probgen.backends.numpyro_subsampling import KERNELS as subsampling
from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.kernels.kernel import Draw, Kernel, Stats
from probgen.program.density import Density
from probgen.program.handlers import base_of
from probgen.program.sites import Kind

__all__ = ["KERNELS"]


class HamiltonianKernel(Kernel):
    """NumPyro's ``NUTS`` or ``HMC`` on the flat density, with its own adaptation of step size and metric.

    Attributes:
        warmup: Adaptation steps.
        target: Acceptance rate that the step size aims at.
        metric: ``"auto"``, ``"dense"`` or ``"diagonal"``.
        max_tree_depth: Depth limit of NUTS; 0 for HMC.
        steps: Leapfrog steps of HMC.
    """

    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    max_tree_depth: int = eqx.field(static=True, default=0)
    steps: int = eqx.field(static=True, default=0)

    def _engine(self, key: PRNGKey, density: Density, u: Position) -> tuple[MCMCKernel, Any]:
        def potential(u: Position) -> Scalar:
            return -density.log_density(u)

        dense_mass = dense(self.metric, density.dim)
        if self.max_tree_depth:
            engine = NUTS(
                potential_fn=potential,
                dense_mass=dense_mass,
                target_accept_prob=self.target,
                max_tree_depth=self.max_tree_depth,
            )
        else:
            engine = HMC(
                potential_fn=potential,
                dense_mass=dense_mass,
                target_accept_prob=self.target,
                num_steps=self.steps,
                trajectory_length=cast(Any, None),
            )
        return engine, engine.init(key, self.warmup, u, (), {})

    def init(self, key: PRNGKey, density: Density, u: Position) -> Any:
        """See ``Kernel.init``."""
        return self._engine(key, density, u)[1]

    def step(self, key: PRNGKey, density: Density, state: Any) -> tuple[Any, Draw]:
        """See ``Kernel.step``."""
        engine, _ = self._engine(key, density, state.z)
        new = like(state, engine.sample(rekeyed(state, key), (), {}))
        stats = {
            "lp": -new.potential_energy,
            "energy": new.energy,
            "diverging": new.diverging,
            "acceptance_rate": new.accept_prob,
            "n_steps": new.num_steps,
            "step_size": state.adapt_state.step_size,
        }
        if self.max_tree_depth:
            # NumPyro counts leapfrog steps only: a tree of depth d has at least 2^(d-1) of them and at most 2^d - 1.
            stats["tree_depth"] = jnp.floor(jnp.log2(new.num_steps)).astype(new.num_steps.dtype) + 1
        return new, Draw(new.z, stats)


class _DiscreteKernel(Kernel):
    """A NumPyro kernel that samples discrete sites, on a flat form of the program.

    NumPyro sees one vector ``u`` and, for each discrete site, indices into its support with a uniform law; the
    density of the program enters as one factor. Its moves over discrete sites take values to count from 0, and its
    transforms would be those of one execution; both are right here for any support.
    """

    metric: eqx.AbstractVar[str]

    @abc.abstractmethod
    def _build(self, program: Any, dense: bool) -> MCMCKernel:
        """NumPyro's kernel for a program."""

    @abc.abstractmethod
    def _stats(self, state: Any, new: Any, lp: Scalar) -> Stats:
        """Statistics of the step from ``state`` to ``new``, whose log density is ``lp``."""

    def _engine(self, key: PRNGKey, density: Density, u: Position, values: Values) -> tuple[MCMCKernel, Any, Values]:
        supports = _supports(density, u)

        def program() -> None:
            u = numpyro.sample(FLAT, dist.ImproperUniform(dist.constraints.real_vector, (), (density.dim,)))
            indices = {}
            for site in density.model.of_kind(Kind.discrete):
                uniform: Any = dist.Categorical(logits=jnp.zeros((*site.shape, len(supports[site.name]))))
                indices[site.name] = jnp.asarray(numpyro.sample(site.name, uniform))
            with handlers.block():
                value = _held(density, supports, indices).log_density(jnp.asarray(u))
            numpyro.factor("_density", value)

        engine = self._build(program, dense(self.metric, density.dim))
        start = {name: jnp.argmin(jnp.abs(supports[name] - value[..., None]), -1) for name, value in values.items()}
        return engine, engine.init(key, self.warmup, {FLAT: u, **start}, (), {}), supports

    def init(self, key: PRNGKey, density: Density, u: Position) -> Any:
        """See ``Kernel.init``. Each chain starts from its own draw of the discrete sites where that is possible."""
        key_values, key_engine = jax.random.split(key)
        drawn = density.draw_discrete(key_values, u)
        possible = jnp.isfinite(Density(density.model, drawn).log_density(u))
        values = {name: jnp.where(possible, drawn[name], density.discrete[name]) for name in drawn}
        return self._engine(key_engine, density, u, values)[1]

    def step(self, key: PRNGKey, density: Density, state: Any) -> tuple[Any, Draw]:
        """See ``Kernel.step``."""
        key_engine, key_step = jax.random.split(key)
        engine, _, supports = self._engine(key_engine, density, state.z[FLAT], density.discrete)
        new = like(state, engine.sample(rekeyed(state, key_step), (), {}))
        u = new.z[FLAT]
        discrete = {name: supports[name][new.z[name]] for name in supports}
        lp = _held(density, supports, {name: new.z[name] for name in supports}).log_density(u)
        return new, Draw(u, {"lp": lp, **self._stats(state, new, lp)}, discrete)


def _held(density: Density, supports: Values, indices: Values) -> Density:
    values = {name: supports[name][indices[name]] for name in supports}
    return Density(density.model, values)


def _supports(density: Density, u: Position) -> dict[str, Array]:
    """The values of each discrete site, shape ``(K,)``."""
    with handlers.block():
        sites = handlers.trace(density.substituted(u)).get_trace()
    supports = {}
    for site in density.model.of_kind(Kind.discrete):
        try:
            values = base_of(sites[site.name]["fn"]).enumerate_support(expand=False)
        except NotImplementedError as error:
            raise MethodError(
                f"site {site.name!r} ({site.distribution}) has no support that is known before the run: {error} "
                f"Give it bounds that are Python ints, or write it as a Categorical."
            ) from error
        supports[site.name] = jnp.asarray(jnp.reshape(values, -1), site.dtype)
    return supports


class DiscreteGibbsKernel(_DiscreteKernel):
    """NumPyro's ``DiscreteHMCGibbs`` around NUTS.

    Attributes:
        warmup: Adaptation steps.
        target: Acceptance rate that the step size aims at.
        metric: ``"auto"``, ``"dense"`` or ``"diagonal"``.
        max_tree_depth: Depth limit of NUTS.
        modified: Whether proposals leave the current value out (Liu 1996).
        random_walk: Whether proposals are uniform rather than from the conditional.
    """

    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    max_tree_depth: int = eqx.field(static=True)
    modified: bool = eqx.field(static=True)
    random_walk: bool = eqx.field(static=True)

    def _build(self, program: Any, dense: bool) -> MCMCKernel:
        inner = NUTS(program, dense_mass=dense, target_accept_prob=self.target, max_tree_depth=self.max_tree_depth)
        return DiscreteHMCGibbs(inner, random_walk=self.random_walk, modified=self.modified)

    def _stats(self, state: Any, new: Any, lp: Scalar) -> Stats:
        moved = new.hmc_state
        return {
            "energy": moved.energy - moved.potential_energy - lp,
            "diverging": moved.diverging,
            "acceptance_rate": moved.accept_prob,
            "n_steps": moved.num_steps,
            "tree_depth": jnp.floor(jnp.log2(moved.num_steps)).astype(moved.num_steps.dtype) + 1,
            "step_size": state.hmc_state.adapt_state.step_size,
        }


class MixedKernel(_DiscreteKernel):
    """NumPyro's ``MixedHMC`` around HMC.

    Attributes:
        warmup: Adaptation steps.
        target: Acceptance rate that the step size aims at.
        metric: ``"auto"``, ``"dense"`` or ``"diagonal"``.
        length: Length of a trajectory, in units of the metric.
        updates: Discrete updates per trajectory; 0 for one per discrete variable.
        modified: Whether proposals leave the current value out (Liu 1996).
        random_walk: Whether proposals are uniform rather than from the conditional.
    """

    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    length: float = eqx.field(static=True)
    updates: int = eqx.field(static=True)
    modified: bool = eqx.field(static=True)
    random_walk: bool = eqx.field(static=True)

    def _build(self, program: Any, dense: bool) -> MCMCKernel:
        inner = HMC(program, dense_mass=dense, target_accept_prob=self.target, trajectory_length=self.length)
        return MixedHMC(
            inner,
            num_discrete_updates=self.updates or None,
            random_walk=self.random_walk,
            modified=self.modified,
        )

    def _stats(self, state: Any, new: Any, lp: Scalar) -> Stats:
        return {
            "acceptance_rate": new.accept_prob,
            "n_steps": new.hmc_state.num_steps,
            "step_size": state.hmc_state.adapt_state.step_size,
        }


def _check_metric(metric: str) -> None:
    if metric == "low_rank":
        raise MethodError(
            "metric is 'low_rank', which NumPyro's sampler does not have. "
            "Choose 'dense' or 'diagonal', or use backend='blackjax'."
        )


def nuts_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``NUTS``."""
    _check_metric(method.metric)
    return HamiltonianKernel(warmup, method.target_accept or 0.8, method.metric, max_tree_depth=method.max_tree_depth)


def hmc_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``HMC``."""
    _check_metric(method.metric)
    return HamiltonianKernel(warmup, method.target_accept or 0.8, method.metric, steps=method.steps)


def discrete_gibbs_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``DiscreteHMCGibbs``."""
    return DiscreteGibbsKernel(
        warmup=warmup,
        target=method.target_accept,
        metric=method.metric,
        max_tree_depth=method.max_tree_depth,
        modified=method.modified,
        random_walk=method.random_walk,
    )


def mixed_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``MixedHMC``."""
    return MixedKernel(
        warmup=warmup,
        target=method.target_accept,
        metric=method.metric,
        length=method.trajectory_length,
        updates=method.updates or 0,
        modified=method.modified,
        random_walk=method.random_walk,
    )


KERNELS = {
    **ensembles,
    **subsampling,
    "nuts": nuts_kernel,
    "hmc": hmc_kernel,
    "discrete_hmc_gibbs": discrete_gibbs_kernel,
    "mixed_hmc": mixed_kernel,
}
