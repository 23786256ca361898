"""Posteriors of programs with a diffusion model as prior."""

from __future__ import annotations

import math
import time
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import Result, Settings
from probgen.feynman_kac.twisted import SecondOrder, Twist, Twisted
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.diffusion import LearnedDiffusion
from probgen.generative.path import even_log_snr
from probgen.generative.standardisation import Standardisation
from probgen.infer.approximate import check_plan
from probgen.infer.method import Method, Plan, Run
from probgen.infer.particle_runs import particle_runs
from probgen.infer.settings import check_count
from probgen.infer.smc import values_of
from probgen.program.density import Density
from probgen.program.handlers import base_of
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all
from probgen.run.driver import to_host

__all__ = ["FeynmanKac"]


class _LogLikelihood(eqx.Module):
    """The log likelihood of a program as a function of its one latent site. The prior is not evaluated: its density
    would be an integration, which has no second derivatives."""

    density: Density
    units: Standardisation | None
    """From the units of the denoiser to those of the data."""

    def __call__(self, x: Array) -> Scalar:
        return sum(self.terms(x).values(), jnp.zeros(()))

    def outward(self, x: Array) -> Array:
        """The value of the site, in units of the data."""
        return x if self.units is None else self.units.outward(x)

    def terms(self, x: Array) -> dict[str, Scalar]:
        """The log likelihood by observed site or factor."""
        with handlers.block():
            sites = handlers.trace(self.density.substituted(self.outward(x).reshape(-1))).get_trace()
        observed = {n: site for n, site in sites.items() if site["type"] == "sample" and site["is_observed"]}
        return {name: jnp.sum(site_log_prob(site)) for name, site in observed.items()}


class FeynmanKac(Method):
    r"""Particles of a posterior whose prior is a diffusion model: the twisted diffusion sampler.

    For programs with one latent site, a ``DenoisedDistribution`` or a fitted ``pg.generative.Diffusion``, and observed
    sites (or factors) below it. Particles go from noise to data, guided by the likelihood that the denoiser foresees,
    and weighted for what it foresaw wrongly. ``attrs["log_evidence"]`` is the log of the mean of the chains' evidences,
    with its standard error; it is unbiased for the denoising chain of ``steps`` steps, and what that chain itself gets
    wrong falls with ``steps``.

    Chains are independent runs. Each gives ``draws`` equally weighted draws, taken from the final particles by their
    weights; draws that share an ancestor stand side by side. More draws than particles are repetitions. There is no
    warm-up: ``warmup`` and ``thin`` play no part.

    Wu, Trippe, Naesseth, Blei and Cunningham (2023).

    Attributes:
        particles: Number of particles of each chain.
        steps: Steps from noise to data, evenly spaced in the log signal-to-noise ratio.
        twist: How the likelihood is foreseen: ``SecondOrder()``, exact for linear Gaussian observations and a Gaussian
            prior, or ``AtMean()``, cheaper in many dimensions.
        resampling: The resampling scheme.
        ess_threshold: Resample when the effective sample size falls below this share of the particles.
        backend: ``"probgen"``.
    """

    particles: int = eqx.field(static=True, default=1024)
    steps: int = eqx.field(static=True, default=200)
    twist: Twist = eqx.field(static=True, default=SecondOrder())
    resampling: Resampling = eqx.field(static=True, default=Systematic())
    ess_threshold: float = eqx.field(static=True, default=0.5)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "feynman_kac"
    summary: ClassVar = "Diffusion model as prior: particles guided by the likelihood; evidence"
    backends: ClassVar = ("probgen",)

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("steps", self.steps, 1, 200)
        if not isinstance(self.twist, Twist):
            raise MethodError(f"twist must be SecondOrder() or AtMean(), got {self.twist!r}. Leave it out.")
        self.settings().check()

    def settings(self) -> Settings:
        """How the model is run."""
        return Settings(self.particles, self.resampling, self.ess_threshold)

    def feynman_kac(self, density: Density) -> Twisted:
        """The Feynman-Kac model of a posterior.

        Raises:
            MethodError: If the program has not one latent site, a diffusion model outside of plates and scans.
        """
        prior = _prior(density)
        times = even_log_snr(prior.denoiser.path, self.steps)
        return Twisted(prior.denoiser, _LogLikelihood(density, prior.units), times, self.twist)

    def density(self, model: Model) -> Density:
        """See ``Method.density``: of the value of the diffusion model, not of its noise."""
        return Density(model, noise=False)

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``: the particles of each run."""
        return self.particles, "particles"

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the program does not have the form that the method takes, or the likelihood is zero or not
                a number at all particles.
        """
        check_plan(self, plan)
        key_runs, key_read = jax.random.split(key)
        fk = self.feynman_kac(density)
        runs = particle_runs(key_runs, fk, self.settings(), plan)
        for chain, result in enumerate(runs.results):
            if not math.isfinite(float(result.log_z)):
                raise self._lost(chain, fk, jnp.asarray(result.cloud.x.x[-1]))
        began = time.perf_counter()
        assert isinstance(fk.log_likelihood, _LogLikelihood)
        chosen = jnp.asarray(np.stack([_chosen(result, plan.draws) for result in runs.results]))
        u = np.asarray(jax.vmap(jax.vmap(fk.log_likelihood.outward))(chosen)).reshape(*chosen.shape[:2], -1)
        call = (key_read, density, jnp.asarray(u))
        (program,), compiling = compile_all([(values_of, call)])
        values = to_host(program(*call))
        reading = time.perf_counter() - began - compiling
        seconds = {"compile": runs.seconds["compile"] + compiling, "sampling": runs.seconds["sampling"] + reading}
        run = Run(values, {}, u, seconds=seconds)
        run.attrs = {**runs.attributes(), "log_evidence_by": "twisted diffusion", "warmup": 0, "thin": 1}
        run.groups["particles"] = runs.group()
        return run

    def _lost(self, chain: int, fk: Twisted, x: Array) -> MethodError:
        assert isinstance(fk.log_likelihood, _LogLikelihood)
        terms = {name: float(term) for name, term in fk.log_likelihood.terms(x).items()}
        guilty = [f"{name!r} ({term:g})" for name, term in terms.items() if not math.isfinite(term)]
        where = f"at the last of them, that of {', '.join(guilty)}" if guilty else "it was so on the way from noise"
        return MethodError(
            f"the log likelihood is not finite at any of the {self.particles} particles of chain {chain}; {where}. Look "
            f"at the data and the distribution of that site, or use more particles."
        )


def _prior(density: Density) -> DenoisedDistribution:
    """The diffusion model of a program, its only latent site."""
    model = density.model
    latent = model.of_kind(Kind.continuous, Kind.discrete)
    with handlers.block():
        traced = handlers.trace(handlers.seed(density.bound(), jax.random.key(0))).get_trace()
    priors = {site.name: base_of(traced[site.name]["fn"]) for site in latent}
    diffusions = [site for site in latent if isinstance(priors[site.name], DenoisedDistribution | LearnedDiffusion)]
    if not diffusions:
        names = ", ".join(f"{site.name!r} ({site.distribution})" for site in latent)
        raise MethodError(
            f"no latent site has a diffusion model as prior, got {names}; FeynmanKac needs a DenoisedDistribution or a "
            f"fitted Diffusion. Use pg.SMC() or pg.NUTS() for other priors."
        )
    site = diffusions[0]
    others = [other.name for other in latent if other.name != site.name]
    if others:
        raise MethodError(
            f"FeynmanKac infers one diffusion model, {site.name!r}, and the program has other latent sites: "
            f"{', '.join(map(repr, others))}. Condition on them (model.condition), sum them out by hand, or use "
            f"pg.NUTS()."
        )
    if site.plates or site.scanned:
        raise MethodError(
            f"site {site.name!r} stands in a plate or scan, and FeynmanKac takes one value of a diffusion model. Fit the "
            f"rows one by one."
        )
    prior = priors[site.name]
    if isinstance(prior, LearnedDiffusion):
        return prior.denoised
    assert isinstance(prior, DenoisedDistribution)
    return prior


def _chosen(result: Result, draws: int) -> np.ndarray:
    """Equally weighted draws, one per row: systematic resampling without chance."""
    x, log_w = np.asarray(result.cloud.x.x), np.asarray(result.cloud.log_w)
    edges = np.cumsum(np.exp(log_w - log_w.max()))
    rows = np.searchsorted(edges / edges[-1], (np.arange(draws) + 0.5) / draws)
    return x[np.minimum(rows, len(edges) - 1)]
