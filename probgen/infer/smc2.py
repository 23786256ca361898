"""SMC squared."""

from __future__ import annotations

import warnings
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError, ProbgenWarning
from probgen.base.typing import PRNGKey, Values
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import Result, Settings
from probgen.infer.approximate import check_plan
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.particle_runs import particle_runs
from probgen.infer.settings import check_count
from probgen.kernels.smc2 import SMCSquared
from probgen.program.density import Density
from probgen.program.filtered import FilteredDensity
from probgen.program.model import Model
from probgen.program.proposals import Bootstrap, Proposal
from probgen.run.compiled import compile_all
from probgen.run.driver import to_host

__all__ = ["SMC2"]

_BATCH = 64
_STUCK = 0.05
"""Acceptance rate below which the run warns."""


class SMC2(Method):
    """SMC squared: the posterior of the parameters of a program with a ``scan``, observation by observation.

    Chopin, Jacob and Papaspiliopoulos (2013). Parameters (the latent sites outside the scan that its steps use) are
    particles, each with a particle filter of its own; they are moved by particle marginal Metropolis-Hastings whenever
    their weights have become too unequal. Gives the log evidence, and finds separated modes, where ``pg.PMMH`` gives
    neither. Every draw comes with a path of the states, from its own filter.

    Chains are independent runs. Each gives ``draws`` equally weighted draws: every so manieth of its particles, in
    their order. There is no warm-up: ``warmup`` and ``thin`` play no part. The group ``particles`` tells the effective
    sample size, the log evidence of the observations so far, and the acceptance rate, step by step. Moves are tuned on
    the particles, so that the evidence has a bias of order ``1 / particles``.

    Attributes:
        particles: Particles of the parameters.
        filter_particles: Particles of each filter. Of the order of those that ``pg.PMMH`` wants for all observations;
            where moves are hardly ever accepted, the run warns that there are too few.
        moves: Metropolis-Hastings steps after each resampling.
        proposal: How the particles of the filters move.
        resampling: How all particles are resampled.
        ess_threshold: Parameters are resampled and moved when their effective sample size is below this share.
        backend: ``"probgen"``.
    """

    particles: int = eqx.field(static=True, default=500)
    filter_particles: int = eqx.field(static=True, default=100)
    moves: int = eqx.field(static=True, default=5)
    proposal: Proposal = eqx.field(static=True, default=Bootstrap())
    resampling: Resampling = eqx.field(static=True, default=Systematic())
    ess_threshold: float = eqx.field(static=True, default=0.5)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "smc2"
    summary: ClassVar = (
        "Parameters of a program with scan, one observation after another: particles with filters; evidence"
    )
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.prior_draws})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("filter_particles", self.filter_particles, 2, 100)
        check_count("moves", self.moves, 1, 5)
        self.settings().check()

    def settings(self) -> Settings:
        """How the particles of the parameters are run."""
        return Settings(self.particles, self.resampling, self.ess_threshold)

    def density(self, model: Model) -> FilteredDensity:
        """See ``Method.density``.

        Raises:
            ModelError: If the program has no scan, or cannot be run step by step.
            MethodError: If it has no parameter, or a discrete one, or one whose prior is scaled or masked.
        """
        settings = Settings(self.filter_particles, self.resampling, variance=False)
        density = FilteredDensity(model, settings, self.proposal)
        for block in density.blocks:
            if model.sites[block.name].weighed:
                raise MethodError(
                    f"the prior of site {block.name!r} is changed by handlers.scale or a mask, and draws from its "
                    f"distribution, which SMC2 starts from, do not follow that. Put the site outside of the handler, or "
                    f"use pg.PMMH()."
                )
        return density

    def feynman_kac(self, density: FilteredDensity) -> SMCSquared:
        """The Feynman-Kac model, for ``probgen.feynman_kac.smc.smc``: one pure function."""
        return SMCSquared(density, self.moves, self.ess_threshold)

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``: the particles of each run."""
        return self.particles, "particles"

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the likelihood is zero at all particles.
        """
        assert isinstance(density, FilteredDensity)
        check_plan(self, plan)
        key_runs, key_paths = jax.random.split(key)
        fk = self.feynman_kac(density)
        runs = particle_runs(key_runs, fk, self.settings(), plan, unit="observations")
        for chain, log_z in enumerate(runs.log_z):
            if not np.isfinite(log_z):
                raise self._lost(chain, runs.results[chain])
        chosen = [_chosen(result, plan.draws) for result in runs.results]
        u, lp, keys = (np.stack(part) for part in zip(*chosen, strict=True))
        call = key_paths, fk, jnp.asarray(u), jnp.asarray(keys)
        (program,), compiling = compile_all([(_values, call)])
        values = to_host(program(*call))
        seconds = {**runs.seconds, "compile": runs.seconds["compile"] + compiling}
        run = Run(values, {"lp": lp}, u, seconds=seconds)
        run.attrs = {**runs.attributes(), "log_evidence_by": "SMC squared", "warmup": 0, "thin": 1}
        run.groups["particles"] = runs.group()
        rates = np.concatenate([result.steps.numbers["acceptance_rate"] for result in runs.results])
        rates = rates[np.isfinite(rates)]
        if rates.size:
            run.attrs["acceptance_rate"] = float(rates.mean())
            if rates.mean() < _STUCK:
                warnings.warn(
                    f"only {rates.mean():.1%} of the moves were accepted with "
                    f"filter_particles={self.filter_particles}: the filters' likelihoods are too noisy. "
                    f"Use filter_particles={4 * self.filter_particles}.",
                    ProbgenWarning,
                    stacklevel=3,
                )
        return run

    def _lost(self, chain: int, result: Result) -> MethodError:
        log_z = np.append(result.first.log_z, result.steps.log_z)
        step = int(np.argmin(np.isfinite(log_z)))
        return MethodError(
            f"the likelihood is zero or not a number at all {self.particles} particles of chain {chain} at step {step} "
            f"of the scan. Look at that observation, use more particles, or a prior that is nearer to the data."
        )


def _chosen(result: Result, draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equally weighted draws in unconstrained coordinates, their estimated log densities and the keys of their filters:
    systematic resampling without chance."""
    x, w = result.cloud.x, np.exp(np.asarray(result.cloud.log_w))
    rows = np.searchsorted(np.cumsum(w) / w.sum(), (np.arange(draws) + 0.5) / draws)
    rows = np.minimum(rows, len(w) - 1)
    lp = np.asarray(x.log_prior)[rows] + np.asarray(x.filter.log_z)[rows]
    return np.asarray(x.u)[rows], lp, np.asarray(x.keys)[rows]


def _values(key: PRNGKey, fk: SMCSquared, u: Array, keys: Array) -> Values:
    """What a result reports at draws of shape ``(chains, draws, dim)``."""
    chains, draws, dim = u.shape

    def one(row: tuple[PRNGKey, Array, Array]) -> Values:
        key_path, u, keys = row
        return fk.density.constrain(u, fk.path(key_path, u, keys))

    rows = jax.random.split(key, chains * draws), u.reshape(-1, dim), keys.reshape(-1, *keys.shape[2:])
    values = jax.lax.map(one, rows, batch_size=_BATCH)
    return jax.tree.map(lambda x: x.reshape(chains, draws, *x.shape[1:]), values)
