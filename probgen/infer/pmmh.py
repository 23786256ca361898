"""Particle marginal Metropolis-Hastings."""

from __future__ import annotations

import dataclasses
import warnings
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import ProbgenWarning
from probgen.base.typing import Position, PRNGKey
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import Settings, smc
from probgen.infer.method import KernelMethod, Plan, Run
from probgen.kernels.kernel import Kernel
from probgen.kernels.pseudo_marginal import PseudoMarginalKernel
from probgen.program.density import Density
from probgen.program.filtered import FilteredDensity
from probgen.program.model import Model
from probgen.program.proposals import Bootstrap, Proposal
from probgen.run.compiled import compile_all

__all__ = ["PMMH"]

_FILTERS = 64
"""Filters that measure the noise of the log likelihood."""
_NOISY = 2.0
"""Standard deviation above which the run warns."""
_GOOD = 1.2
"""Standard deviation that is aimed at (Doucet, Pitt, Deligiannidis and Kohn 2015: 1 to 1.7)."""


class PMMH(KernelMethod):
    """Particle marginal Metropolis-Hastings: a random walk on the parameters of a program with a ``scan``.

    Andrieu, Doucet and Holenstein (2010). Parameters are the latent sites outside the scan that its steps use; a
    particle filter estimates their likelihood and integrates the states out. The draws follow the *exact* posterior
    with any number of particles; with too few the chain sticks. ``attrs["log_likelihood_sd"]`` is the standard
    deviation of the log likelihood estimate at the draw in the middle of the posterior: 1 to 1.7 is best, above 2 the
    run warns and says how many particles it takes. Every draw comes with a path of the states. For a few parameters: it
    sees no gradient.

    Attributes:
        particles: Particles of the filter.
        proposal: How they move: ``pg.Bootstrap()``, or what a particle filter takes besides.
        resampling: How they are resampled.
        ess_threshold: They are resampled when the effective sample size is below this share of the particles.
        backend: ``"probgen"``.
    """

    particles: int = eqx.field(static=True, default=200)
    proposal: Proposal = eqx.field(static=True, default=Bootstrap())
    resampling: Resampling = eqx.field(static=True, default=Systematic())
    ess_threshold: float = eqx.field(static=True, default=0.5)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "pmmh"
    summary: ClassVar = "Parameters of a program with scan: a random walk whose likelihood a particle filter estimates"
    backends: ClassVar = ("probgen",)

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        self._settings.check()

    @property
    def _settings(self) -> Settings:
        return Settings(self.particles, self.resampling, self.ess_threshold, variance=False)

    def density(self, model: Model) -> FilteredDensity:
        """See ``Method.density``.

        Raises:
            ModelError: If the program has no scan, or cannot be run step by step.
            MethodError: If it has no parameter, or a discrete one.
        """
        return FilteredDensity(model, self._settings, self.proposal)

    def kernel(self, warmup: int) -> Kernel:
        """See ``KernelMethod.kernel``."""
        return PseudoMarginalKernel(warmup)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""
        assert isinstance(density, FilteredDensity)
        key_run, key_look = jax.random.split(key)
        run = super().run(key_run, density, plan)
        assert run.u is not None
        call = key_look, density, jnp.asarray(_middle(run.u))
        (program,), seconds = compile_all([(log_likelihoods, call)])
        run.seconds["compile"] += seconds
        sd = float(np.asarray(program(*call)).std(ddof=1))
        run.attrs["log_likelihood_sd"] = sd
        if not sd <= _NOISY:
            wanted = self.particles * (sd / _GOOD) ** 2
            advice = f"Use particles={_rounded(wanted)}" if np.isfinite(wanted) else "Use many more particles"
            warnings.warn(
                f"the particle filter's log likelihood has standard deviation {sd:.2g} with "
                f"particles={self.particles}, so that chains stick to lucky estimates. {advice}, or a better proposal.",
                ProbgenWarning,
                stacklevel=2,
            )
        return run


def log_likelihoods(key: PRNGKey, density: FilteredDensity, u: Position) -> Array:
    """Independent estimates of the log likelihood at one point."""
    settings = dataclasses.replace(density.settings, variance=False)
    system = density.system(u)
    return jax.lax.map(lambda key: smc(key, system, settings).log_z, jax.random.split(key, _FILTERS))


def _middle(u: np.ndarray) -> np.ndarray:
    """The draw nearest to the mean, in units of the standard deviations."""
    flat = u.reshape(-1, u.shape[-1])
    spread = flat.std(0)
    return flat[np.argmin(np.sum(((flat - flat.mean(0)) / np.where(spread > 0, spread, 1.0)) ** 2, 1))]


def _rounded(count: float) -> int:
    """Two digits are enough."""
    scale = 10 ** max(0, int(np.log10(count)) - 1)
    return int(np.ceil(count / scale) * scale)
