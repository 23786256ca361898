"""Sequential Monte Carlo samplers: particles that are carried from the prior to the posterior, with the evidence."""

from __future__ import annotations

import itertools
import math
import numbers
import time
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError, ProbgenWarning
from probgen.base.typing import PRNGKey, Values
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import Result, Settings
from probgen.infer.approximate import check_plan
from probgen.infer.langevin import MALA
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.nuts import HMC
from probgen.infer.particle_runs import Runs, particle_runs
from probgen.infer.random_walk import RandomWalk
from probgen.infer.settings import check_count, check_fraction
from probgen.kernels.data_tempering import DataTempering
from probgen.kernels.moves import DifferentialEvolution, Hamiltonian, Langevin, Move, RandomStep
from probgen.kernels.tempering import AdaptiveTempering, FixedTempering, threshold_of, usual_moves
from probgen.program.density import Density
from probgen.run.compiled import compile_all
from probgen.run.driver import to_host

__all__ = ["SMC", "DataTempering", "values_of"]

_BATCH = 256


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


class SMC(Method):
    r"""Sequential Monte Carlo from the prior to the posterior, with the log evidence.

    Particles are drawn from the prior, and the likelihood is raised to powers :math:`0 < \beta_1 < \dots < 1`; at each
    they are weighted, resampled, and moved by Markov kernels that are tuned on them (Del Moral, Doucet and Jasra 2006).
    Modes keep the weight that they have, as long as the prior's draws find them. ``attrs["log_evidence"]`` is the log
    of the mean of the chains' evidences, with its standard error.

    Chains are independent runs. Each gives ``draws`` equally weighted draws: every so manieth of the final particles,
    in their order. Particles that have an ancestor, or a chain, in common stand side by side, so that effective sample
    sizes see what they share. More draws than particles are repetitions. There is no warm-up: ``warmup`` and ``thin``
    play no part.

    The evidence is consistent; with powers and tuning found on the way it has a bias of order ``1 / particles``, which
    the standard error covers where it is small itself. It counts a likelihood that is NaN as zero, and says so.

    Attributes:
        backend: ``"probgen"``.
        particles: Number of particles of each chain.
        kernel: ``pg.RandomWalk()``, ``pg.MALA()`` or ``pg.HMC()``, for its acceptance rate and, of HMC, the most
            leapfrog steps; or ``pg.DifferentialEvolution()``, for several modes in few coordinates. Scales and
            covariance come from the particles.
        moves: Moves of each particle at each power; in waste-free SMC, between states that are kept. ``None``: as many
            as make it forget where (in its mode) it began: a correlation of 0.1 in the worst coordinate.
        ess: Effective sample size after each increase of the power, as a share of the particles: it decides how far
            the power increases.
        waste_free: States to keep of each chain of moves: ``particles / waste_free`` particles are resampled, and each
            becomes so many (Dau and Chopin 2022). The evidence then has the standard error that the spread between
            chains tells, which is too small where chains are too short for the posterior. ``None``: the last state.
        schedule: The powers, increasing, the last one 1. ``None``: found by ``ess``.
        path: ``pg.DataTempering(batch=...)`` brings in the observations one batch after the other. ``None``: all by
            powers.
        resampling: The resampling scheme.
    """

    backend: str = eqx.field(static=True, default="")
    particles: int = eqx.field(static=True, default=1024)
    kernel: RandomWalk | MALA | HMC | DifferentialEvolution = eqx.field(static=True, default=HMC())
    moves: int | None = eqx.field(static=True, default=None)
    ess: float = eqx.field(static=True, default=0.5)
    waste_free: int | None = eqx.field(static=True, default=None)
    schedule: Sequence[float] | None = eqx.field(static=True, default=None, converter=_floats)
    path: DataTempering | None = eqx.field(static=True, default=None)
    resampling: Resampling = eqx.field(static=True, default=Systematic())

    name: ClassVar = "smc"
    summary: ClassVar = "Particles tempered from prior to posterior; evidence; separated modes"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.continuous, Need.prior_draws, Need.likelihood})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("particles", self.particles, 2, 1024)
        check_fraction("ess", self.ess, 0.5)
        if self.moves is not None:
            check_count("moves", self.moves, 1, 10)
        if not isinstance(self.kernel, RandomWalk | MALA | HMC | DifferentialEvolution):
            raise MethodError(
                f"kernel must be pg.RandomWalk(), pg.MALA(), pg.HMC() or pg.DifferentialEvolution(), got "
                f"{self.kernel!r}. Write for example kernel=pg.HMC()."
            )
        self.kernel.check()
        usual = type(self.kernel)()
        ours = {"target_accept", "steps"}
        for name in ("backend", "metric"):
            if name not in ours and getattr(self.kernel, name, None) != getattr(usual, name, None):
                raise MethodError(
                    f"{name}={getattr(self.kernel, name)!r} of the kernel plays no part: the moves are probgen's own, "
                    f"with the covariance of the particles. Leave {name} out."
                )
        if self.waste_free is not None:
            check_count("waste_free", self.waste_free, 3, 16)
            if self.particles % self.waste_free or self.particles < 2 * self.waste_free:
                fewest = max(2, round(self.particles / self.waste_free)) * self.waste_free
                raise MethodError(
                    f"particles must be a multiple of waste_free={self.waste_free}, at least twice that, got "
                    f"{self.particles}. Use particles={fewest}."
                )
        if self.path is not None and not isinstance(self.path, DataTempering):
            raise MethodError(f"path must be a pg.DataTempering(), got {self.path!r}. Write path=pg.DataTempering(10).")
        if not isinstance(self.resampling, Resampling):
            raise MethodError(
                f"resampling must be a resampling scheme, got {self.resampling!r}. Write for example pg.Systematic()."
            )
        if self.schedule is not None:
            self._check_schedule(tuple(self.schedule))

    def _check_schedule(self, powers: tuple[float, ...]) -> None:
        if self.path is not None:
            raise MethodError(
                "schedule gives powers of the whole likelihood, and path does not. Leave one of them out."
            )
        rising = all(isinstance(power, numbers.Real) and a < power for a, power in itertools.pairwise((0.0, *powers)))
        if not powers or not rising or powers[-1] != 1.0:
            raise MethodError(
                f"schedule must increase from above 0 to 1, got {powers}. Write for example "
                f"schedule=np.linspace(0, 1, 21)[1:] ** 3."
            )

    @property
    def chain(self) -> int:
        """Particles that each resampled one becomes."""
        return self.waste_free or 1

    def feynman_kac(self, density: Density) -> AdaptiveTempering | FixedTempering:
        """The Feynman-Kac model of a posterior, for ``probgen.feynman_kac.smc.smc``: one pure function."""
        if self.path is not None:
            self.path.observations(density)
        if self.schedule is None:
            return AdaptiveTempering(density, self._move(), self.chain, self.path, self.moves, self.ess)
        moves = self.moves or usual_moves(self._move(), density.dim, self.chain)
        return FixedTempering(density, self._move(), self.chain, self.path, moves, jnp.asarray(self.schedule, float))

    def settings(self) -> Settings:
        """How the model is run. Particles are resampled at every power, except where a batch of data changed little."""
        lazy = self.path is not None and self.chain == 1
        threshold = threshold_of(self.ess) if lazy else 1.0
        return Settings(self.particles, self.resampling, threshold, variance=self.chain == 1)

    def _move(self) -> Move:
        if isinstance(self.kernel, DifferentialEvolution):
            return self.kernel
        if isinstance(self.kernel, RandomWalk):
            return RandomStep(self.kernel.target_accept)
        if isinstance(self.kernel, MALA):
            return Langevin(self.kernel.target_accept)
        return Hamiltonian(steps=self.kernel.steps, target_accept=self.kernel.target_accept)

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``: the particles of each run."""
        return self.particles, "particles"

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the likelihood is zero at all particles; the message names the site.
        """
        check_plan(self, plan)
        key_runs, key_read = jax.random.split(key)
        fk = self.feynman_kac(density)
        runs = particle_runs(key_runs, fk, self.settings(), plan, unit="powers")
        if self.chain > 1:
            runs = Runs([_with_own_variance(result) for result in runs.results], runs.seconds)
        if not np.isfinite(runs.log_z).all():
            raise self._lost(density, key_read, runs)
        began = time.perf_counter()
        u, lp = (np.stack(each) for each in zip(*(self._chosen(r, plan.draws) for r in runs.results), strict=True))
        call = (key_read, density, jnp.asarray(u))
        (program,), compiling = compile_all([(values_of, call)])
        values = to_host(program(*call))
        reading = time.perf_counter() - began - compiling
        seconds = {"compile": runs.seconds["compile"] + compiling, "sampling": runs.seconds["sampling"] + reading}
        run = Run(values, {"lp": lp}, u, seconds=seconds)
        run.attrs = {**runs.attributes(), "log_evidence_by": "sequential Monte Carlo", "warmup": 0, "thin": 1}
        run.attrs["temperatures"] = [int(result.taken) for result in runs.results]
        run.groups["particles"] = runs.group()
        self._look(run, runs, fk)
        return run

    def _chosen(self, result: Result, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Equally weighted draws in unconstrained coordinates, and their log densities: systematic resampling without
        chance (the weights are equal, or nearly)."""
        point, log_w = result.cloud.x.point, np.asarray(result.cloud.log_w)
        edges = np.cumsum(np.exp(log_w - log_w.max()))
        rows = np.searchsorted(edges / edges[-1], (np.arange(draws) + 0.5) / draws)
        rows = np.minimum(rows, len(edges) - 1)
        return np.asarray(point.u)[rows], np.asarray(point.log_prior)[rows] + np.asarray(point.terms)[rows].sum(-1)

    def _lost(self, density: Density, key: PRNGKey, runs: Runs) -> MethodError:
        which = [i for i, log_z in enumerate(runs.log_z) if not math.isfinite(log_z)]
        u = density.draw_prior(key)
        return MethodError(
            f"the likelihood is zero or not a number at all {self.particles} particles of chain {which[0]}; at a draw "
            f"from the prior, {density.trouble(u)}. Look at the data and the distribution of that site, use more "
            f"particles, or a prior that is nearer to the data."
        )

    def _look(self, run: Run, runs: Runs, fk: AdaptiveTempering | FixedTempering) -> None:
        """Say what is wrong with a run."""
        undefined = max(float(result.first.numbers["undefined"]) for result in runs.results)
        outside = max(1 - math.exp(float(result.first.log_z)) for result in runs.results)
        if undefined > 0:
            run.attrs["undefined_likelihood"] = undefined
            warnings.warn(
                f"the log likelihood was NaN at {undefined:.2%} of the draws from the prior, which counts as a "
                f"likelihood of zero. Look at the numerics of the program where a prior draw is extreme.",
                ProbgenWarning,
                stacklevel=4,
            )
        if outside > 1e-12:
            run.attrs["outside_support"] = outside
            warnings.warn(
                f"{outside:.2%} of the draws from the prior lie on the boundary of the support, for rounding; they "
                f"have no weight. Use 64-bit numbers, or a prior with less mass at the boundary.",
                ProbgenWarning,
                stacklevel=4,
            )
        if isinstance(fk, AdaptiveTempering) and any(int(result.taken) >= fk.steps for result in runs.results):
            run.ended = Ended.not_converged
        if not np.isfinite(np.asarray(run.u)).all():
            run.ended = Ended.diverged


def values_of(key: PRNGKey, density: Density, u: Array) -> Values:
    """What a result reports at draws of shape ``(chains, draws, dim)``."""
    chains, draws, dim = u.shape
    keys = jax.random.split(key, chains * draws)
    rows = jax.lax.map(lambda one: density.values(*one), (keys, u.reshape(-1, dim)), batch_size=_BATCH)
    return jax.tree.map(lambda x: x.reshape(chains, draws, *x.shape[1:]), rows)


def _with_own_variance(result: Result) -> Result:
    """With the variance of the log evidence that a waste-free run has added up."""
    numbers: dict[str, Any] = dict(result.steps.numbers)
    variance = numbers.pop("variance")[-1]
    first: dict[str, Any] = {name: value for name, value in result.first.numbers.items() if name != "variance"}
    return Result(
        result.cloud,
        result.log_z,
        variance,
        result.taken,
        result.first._replace(numbers=first),
        result.steps._replace(numbers=numbers),
    )
