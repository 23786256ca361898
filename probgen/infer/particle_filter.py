"""Particle filter and smoother for programs with a ``scan``."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey, Values
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import History, Result, Settings
from probgen.feynman_kac.smoothing import fixed_lag
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.particle_runs import particle_runs
from probgen.infer.smoothing import FFBS, Genealogy, Smoothing
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.particles import ParticleSystem
from probgen.program.proposals import Bootstrap, Proposal
from probgen.program.rao_blackwellised import RaoBlackwellised, RaoBlackwellisedSystem
from probgen.run.compiled import compile_all

__all__ = ["ParticleFilter"]

type System = ParticleSystem | RaoBlackwellisedSystem

_AT_ONCE = 64
"""Paths for which the program is replayed side by side."""


class ParticleFilter(Method):
    r"""Latent states of a program with a ``scan``, its parameters known, by a particle filter and smoother.

    The program is the one that NUTS runs. Each chain is an independent run; ``posterior`` has whole paths given all
    data, equally weighted, under the same names and dims. Sites before the scan that the steps use are parameters:
    condition on them, or let ``pg.PMMH`` or ``pg.ParticleGibbs`` find them. The warm-up and the thinning of the call do
    nothing.

    Further groups: ``filtered`` has for each row of the scan the mean and standard deviation of its latent sites given
    the data *up to* that row (``SITE_mean``, ``SITE_sd``), the log density of the row's data given those before it
    (``log_predictive``), the effective sample size and the number of different ancestors; ``smoothed``, with
    ``lag``, means and standard deviations given the data up to ``lag`` rows later; ``particles`` has the run as the
    engine saw it, step 0 being what stands before the scan. ``attrs`` has ``log_evidence``, whose exponential is
    unbiased, and ``log_evidence_se``.

    Means and paths are consistent as the number of particles grows, with an error of the order of one over their
    number.

    Attributes:
        backend: ``"probgen"``.
        particles: Number of particles.
        proposal: How particles move: ``Bootstrap()``, ``Guided(...)``, ``LocallyLinear()``, ``Auxiliary(...)``, or
            ``RaoBlackwellised()``, which moves only the part of the state that is not linear and Gaussian given the rest.
        resampling: How they are resampled.
        ess_threshold: Resample when the effective sample size falls below this share of the particles.
        smoothing: How paths are drawn. ``None``: ``FFBS(moves=5)`` where the program has a transition density, else
            ``Genealogy()``; ``attrs["smoothing"]`` tells which.
        lag: Also report means and standard deviations by fixed-lag smoothing, an approximation without paths.
    """

    backend: str = eqx.field(static=True, default="")
    particles: int = eqx.field(static=True, default=1000)
    proposal: Proposal | RaoBlackwellised = Bootstrap()
    resampling: Resampling = Systematic()
    ess_threshold: float = eqx.field(static=True, default=0.5)
    smoothing: Smoothing | None = None
    lag: int | None = eqx.field(static=True, default=None)

    name: ClassVar = "particle_filter"
    summary: ClassVar = "particle filter and smoother of a program with a scan, parameters known"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.prior_draws})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        self.settings.check()
        if not isinstance(self.proposal, Proposal | RaoBlackwellised):
            raise MethodError(f"proposal must be a proposal, got {self.proposal!r}. Write for example pg.Bootstrap().")
        if self.smoothing is not None:
            if not isinstance(self.smoothing, Smoothing):
                raise MethodError(f"smoothing must be a smoother, got {self.smoothing!r}. Write for example pg.FFBS().")
            self.smoothing.check()
        if self.lag is not None and (isinstance(self.lag, bool) or not isinstance(self.lag, int) or self.lag < 0):
            raise MethodError(f"lag must be None or an int of at least 0, got {self.lag!r}. Write lag=10.")

    @property
    def settings(self) -> Settings:
        """How the filter is run."""
        return Settings(self.particles, self.resampling, self.ess_threshold, history=True)

    def density(self, model: Model) -> Density:
        """See ``Method.density``; discrete sites stay as they are."""
        self.system(model)
        return Density(model)

    def system(self, model: Model) -> System:
        """The Feynman-Kac model of a program whose parameters are known.

        Raises:
            ModelError: If the program has no scan, or cannot be run step by step.
            MethodError: If it has a parameter, or no latent site in the scan, or if the smoother does not fit.
        """
        if isinstance(self.proposal, RaoBlackwellised):
            system = self.proposal.system(model)
        else:
            system = ParticleSystem(model, {}, self.proposal)
        cut = system.cut
        if cut.in_rows:
            raise MethodError(
                f"latent site {cut.in_rows[0]!r} is drawn before the scan and passed to it as xs, so that particles "
                f"would know their whole future at the start. Draw it in the body of the scan, one row a step."
            )
        if cut.fixed:
            raise MethodError(
                f"latent site {cut.fixed[0]!r} is a parameter: it stands before the scan, and every step uses it, while "
                f"a particle filter needs known parameters. Condition on it, "
                f"model.condition({cut.fixed[0]}=...), or infer it with pg.PMMH() or pg.ParticleGibbs()."
            )
        if not cut.sites:
            raise MethodError(
                "the scan of the program has no latent site, so its particles could not move. Use pg.NUTS() for what "
                "stands before the scan."
            )
        if self.lag is not None and isinstance(system, RaoBlackwellisedSystem):
            raise MethodError(
                "fixed-lag smoothing needs the states themselves, and RaoBlackwellised particles hold what a filter knows "
                "of them. Leave lag out: the paths are smoothed."
            )
        if self.smoothing is not None and self.smoothing.backward and not system.markovian:
            raise MethodError(
                f"FFBS needs the density of a transition, and {cut.keeps}, so that only one parent is possible for a "
                f"particle. Use smoothing=pg.Genealogy(), or let the carry hold the latent values of its step only."
            )
        return system

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``: the particles of each run."""
        return self.particles, "particles"

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""
        system = self.system(density.model)
        smoothing = self.smoothing or (FFBS(moves=5) if system.markovian else Genealogy())
        # A request to keep the warm-up gets as many further draws: they come from the posterior too.
        count = plan.draws + (plan.warmup // plan.thin if plan.keep_warmup else 0)
        key_runs, key_paths = jax.random.split(key)
        runs = particle_runs(key_runs, system, self.settings, plan)
        histories = [result.history() for result in runs.results]
        keys = [jax.random.fold_in(key_paths, chain) for chain in range(plan.chains)]
        began = time.perf_counter()
        (paths, moments), compiling = compile_all(
            [
                (_paths, (key, system, smoothing, histories[0], count)),
                (_moments, (system, histories[0], self.lag)),
            ]
        )
        drawn = [paths(k, system, smoothing, h, count) for k, h in zip(keys, histories, strict=True)]
        marginal = [moments(system, h, self.lag) for h in histories]
        values = _stacked(drawn)
        filtered, smoothed = (_stacked(part) for part in zip(*marginal, strict=True))
        attrs = runs.attributes() | {"smoothing": repr(smoothing)}
        groups = {"filtered": _filtered_group(system, runs.results, filtered), "particles": runs.group()}
        if self.lag is not None:
            groups["smoothed"] = _moment_variables(system, smoothed)
        ended, dead = Ended.completed, np.flatnonzero(~np.isfinite(runs.log_z))
        if dead.size:
            ended, attrs["chains_report"] = _trouble(system, runs.results[dead[0]], int(dead[0]))
            values = {name: _lost(value, dead) for name, value in values.items()}
        seconds = {
            "compile": runs.seconds["compile"] + compiling,
            "sampling": runs.seconds["sampling"] + time.perf_counter() - began - compiling,
        }
        return Run(values, {}, ended=ended, attrs=attrs, groups=groups, seconds=seconds)


def _paths(key: PRNGKey, system: System, smoothing: Smoothing, history: History, count: int) -> Values:
    """Reported sites along paths, leading axis ``count``."""
    key_paths, key_order, key_values = jax.random.split(key, 3)
    paths = smoothing.paths(key_paths, system, history, count)
    # They come ordered by their ends, which would look like the slow walk of a chain.
    order = jax.random.permutation(key_order, count)
    paths = jax.tree.map(lambda leaf: leaf[order], paths)
    keys = jax.random.split(key_values, count)
    return jax.lax.map(lambda one: system.reported(one[0], system.values(one[1])), (keys, paths), batch_size=_AT_ONCE)


def _moments(system: System, history: History, lag: int | None) -> tuple[Values, Values]:
    """Means and standard deviations of the latent sites of the scan, by row: filtered, and with a lag smoothed."""

    def moments(x: Any, log_w: Array) -> Values:
        sites, w = jax.vmap(jax.vmap(system.latent))(x), jnp.exp(log_w)
        within = jax.vmap(jax.vmap(system.variances))(x) if isinstance(system, RaoBlackwellisedSystem) else {}
        found = {}
        for name, _ in system.cut.sites:
            values = sites[name][1:].astype(w.dtype)
            weights = w[1:].reshape(w[1:].shape + (1,) * (values.ndim - 2))
            mean = jnp.sum(weights * values, 1)
            spread = (values - mean[:, None]) ** 2 + (within[name][1:] if name in within else 0.0)
            sd = jnp.sqrt(jnp.sum(weights * spread, 1))
            found |= {f"{name}_mean": mean, f"{name}_sd": sd}
        return {name: value[::-1] if system.cut.reverse else value for name, value in found.items()}

    smoothed = {} if lag is None else moments(*fixed_lag(history, lag))
    return moments(history.x, history.log_w), smoothed


def _stacked(chains: Any) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(chain[name]) for chain in chains]) for name in chains[0]}


def _moment_variables(system: System, moments: dict[str, np.ndarray]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    dims = {name: system.model.sites[name].dims for name, _ in system.cut.sites}
    return {name: (("chain", *dims[name.rpartition("_")[0]]), np.asarray(value)) for name, value in moments.items()}


def _filtered_group(system: System, results: list[Result], moments: dict[str, np.ndarray]) -> dict[str, Any]:
    order = slice(None, None, -1) if system.cut.reverse else slice(None)
    row = system.model.sites[system.cut.sites[0][0]].dims[0]
    with np.errstate(invalid="ignore"):
        gained = [np.diff(np.concatenate([[float(r.first.log_z)], np.asarray(r.steps.log_z)])) for r in results]
    series = {
        "log_predictive": gained,
        "ess": [np.asarray(r.steps.ess) for r in results],
        "unique_ancestors": [np.asarray(r.steps.unique) for r in results],
    }
    return _moment_variables(system, moments) | {
        name: (("chain", row), np.stack([value[order] for value in values])) for name, values in series.items()
    }


def _lost(values: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """The draws of chains that have none."""
    values = values.astype(np.result_type(values, np.float32))
    values[chains] = np.nan
    return values


def _trouble(system: System, result: Result, chain: int) -> tuple[Ended, str]:
    """How a run without finite evidence ended, and where and why."""
    log_z = np.concatenate([[float(result.first.log_z)], np.asarray(result.steps.log_z)])
    t = int(np.flatnonzero(~np.isfinite(log_z))[0])
    before = jax.tree.map(lambda leaf: jnp.asarray(leaf[max(t - 1, 0)]), result.history().x)
    call = (system, t, before, jax.random.key(0))
    (terms,), _ = compile_all([(_terms, call)])
    found = {name: np.asarray(value) for name, value in terms(*call).items()}
    nan = math.isnan(log_z[t])
    guilty = [name for name, value in found.items() if (np.isnan(value).any() if nan else (value == -np.inf).all())]
    if not guilty:
        guilty = [name for name, value in found.items() if not np.isfinite(value).all()]
    where = "before the scan" if t == 0 else f"at step {t} ({_label(system, t)})"
    of = f", at {', '.join(repr(name) for name in guilty)}" if guilty else ""
    if nan:
        return Ended.diverged, (
            f"In chain {chain}, the log potential of a particle is NaN {where}{of}. Look there for a log of a negative "
            f"number or a division by zero."
        )
    return Ended.impossible, (
        f"In chain {chain}, every particle has weight zero {where}{of}. Check that observation, let the program expect "
        f"it, or give more particles or a better proposal."
    )


def _terms(system: System, t: int, x: Any, key: PRNGKey) -> Values:
    """Log probability per observed site, of particles on their way to step ``t``."""
    keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])
    return jax.vmap(lambda key, x: system.breakdown(key, t, x))(keys, x)


def _label(system: System, t: int) -> str:
    """The row of a step."""
    row = system.cut.size - t if system.cut.reverse else t - 1
    return f"{system.model.sites[system.cut.sites[0][0]].dims[0]} {row}"
