"""Methods that sample discrete sites instead of summing them out."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from probgen.base.errors import MethodError, suggestion
from probgen.base.typing import PRNGKey, Values
from probgen.infer.method import KernelMethod
from probgen.infer.settings import check_count, check_fraction, check_positive
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all

__all__ = ["DiscreteHMCGibbs", "MixedHMC"]

_TRIES = 100
_METRICS = ("auto", "dense", "diagonal")


class _SamplesDiscrete(KernelMethod):
    def density(self, model: Model) -> Density:
        """See ``Method.density``: discrete sites are held, at first at the most probable of a few draws.

        Raises:
            MethodError: If there is no discrete site, or one has infinite support.
        """
        sites = model.of_kind(Kind.discrete)
        if not sites:
            raise MethodError(
                f"the model has no discrete latent site, and {type(self).__name__} is made for those. Use pg.NUTS()."
            )
        for site in sites:
            if not site.finite:
                raise MethodError(
                    f"site {site.name!r} ({site.distribution}) is discrete with infinite support, and NumPyro's "
                    "samplers propose from a finite "
                    f"list of values only. Truncate it to a Categorical over 0 ... K, or sum it out by hand."
                )
        if not model.of_kind(Kind.continuous):
            raise MethodError(
                f"every latent site is discrete ({sites[0].name!r}), and {type(self).__name__} needs a continuous "
                "one to move. "
                f"Use pg.Exact(), which sums over all values."
            )
        bare = Density(model)
        call = (jax.random.key(0), bare)
        (program,), _ = compile_all([(_first_values, call)])
        return Density(model, program(*call))


def _first_values(key: PRNGKey, density: Density) -> Values:
    """Discrete values to begin with: the most probable of a few draws, with the continuous coordinates at zero."""
    u = jnp.zeros(density.dim)
    drawn = jax.vmap(lambda k: density.draw_discrete(k, u))(jax.random.split(key, _TRIES))
    log_density = jax.vmap(lambda values: Density(density.model, values).log_density(u))(drawn)
    best = jnp.argmax(jnp.where(jnp.isnan(log_density), -jnp.inf, log_density))
    return jax.tree.map(lambda values: values[best], drawn)


class DiscreteHMCGibbs(_SamplesDiscrete):
    """Gibbs sampling: a sweep over the discrete variables, one at a time, then a NUTS move of the continuous sites.

    Liu (1996) for the proposals. Needs finite supports, as summing out does, but not that the sum is feasible: for
    discrete sites that are coupled across plates, or have no plate. Where ``pg.NUTS`` runs, it mixes better: it sums
    discrete sites out. A sweep evaluates the density once per value of each variable.

    Attributes:
        backend: ``"numpyro"``.
        modified: Whether a proposal leaves the current value out.
        random_walk: Whether proposals are uniform over the support, which is cheaper per variable, instead of from
            the conditional.
        target_accept: Acceptance rate that the step size of NUTS aims at, in (0, 1).
        max_tree_depth: Depth limit of NUTS.
        metric: ``"auto"`` (dense up to 64 coordinates), ``"dense"`` or ``"diagonal"``.
    """

    backend: str = eqx.field(static=True, default="")
    modified: bool = eqx.field(static=True, default=False)
    random_walk: bool = eqx.field(static=True, default=False)
    target_accept: float = eqx.field(static=True, default=0.8)
    max_tree_depth: int = eqx.field(static=True, default=10)
    metric: str = eqx.field(static=True, default="auto")

    name: ClassVar = "discrete_hmc_gibbs"
    summary: ClassVar = "Samples discrete sites: Gibbs sweeps over them, NUTS for the continuous sites"
    backends: ClassVar = ("numpyro",)

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_fraction("target_accept", self.target_accept, 0.8)
        check_count("max_tree_depth", self.max_tree_depth, 1, 10)
        _check_metric(self.metric)


class MixedHMC(_SamplesDiscrete):
    """Mixed Hamiltonian Monte Carlo: updates of discrete variables within each Hamiltonian trajectory.

    Zhou (2020). A discrete variable can change where the energy that its change needs is at hand, so that moves over
    discrete and continuous sites help one another. Needs finite supports.

    Attributes:
        backend: ``"numpyro"``.
        trajectory_length: Time of a trajectory, in units of the metric.
        updates: Discrete updates per trajectory; ``None`` for one per discrete variable.
        modified: Whether a proposal leaves the current value out.
        random_walk: Whether proposals are uniform over the support instead of from the conditional.
        target_accept: Acceptance rate that the step size aims at, in (0, 1).
        metric: ``"auto"`` (dense up to 64 coordinates), ``"dense"`` or ``"diagonal"``.
    """

    backend: str = eqx.field(static=True, default="")
    trajectory_length: float = eqx.field(static=True, default=2.0)
    updates: int | None = eqx.field(static=True, default=None)
    modified: bool = eqx.field(static=True, default=False)
    random_walk: bool = eqx.field(static=True, default=False)
    target_accept: float = eqx.field(static=True, default=0.8)
    metric: str = eqx.field(static=True, default="auto")

    name: ClassVar = "mixed_hmc"
    summary: ClassVar = "Samples discrete sites within Hamiltonian trajectories of the continuous ones"
    backends: ClassVar = ("numpyro",)

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_positive("trajectory_length", self.trajectory_length, 2.0)
        if self.updates is not None:
            check_count("updates", self.updates, 1, 1)
        check_fraction("target_accept", self.target_accept, 0.8)
        _check_metric(self.metric)


def _check_metric(metric: str) -> None:
    if metric not in _METRICS:
        raise MethodError(f"metric is {metric!r}. {suggestion(str(metric), _METRICS)}")
