"""Particle Gibbs."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.feynman_kac.conditional import Ancestry
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import Settings
from probgen.infer.method import KernelMethod, Plan, Run
from probgen.infer.nuts import NUTS
from probgen.infer.settings import check_count
from probgen.kernels.adaptation import AdaptedKernel
from probgen.kernels.gradient_free import GradientFreeKernel
from probgen.kernels.kernel import Kernel
from probgen.kernels.particle_gibbs import ParticleGibbsKernel
from probgen.program.density import Density
from probgen.program.filtered import FilteredDensity
from probgen.program.model import Model
from probgen.program.proposals import Bootstrap, Proposal

__all__ = ["ParticleGibbs"]


class ParticleGibbs(KernelMethod):
    """Particle Gibbs with ancestor sampling: paths of the states by conditional SMC, parameters given the path by NUTS.

    Andrieu, Doucet and Holenstein (2010); Lindsten, Jordan and Schön (2014). The draws follow the exact posterior with
    any number of particles, and a few dozen move long paths. Ancestor sampling needs a carry that is made of the latent
    values of the last step only (``x`` itself, not a running sum or a non-centred state): where the program's is not,
    paths are traced, which takes far more particles, and ``attrs["ancestry"]`` says so. Parameters and path are moved
    in turn: where they are strongly tied (a small noise of the states), ``pg.PMMH`` may mix better.

    Attributes:
        particles: Particles of a sweep, the reference path included.
        parameters: How parameters move given the path: ``pg.NUTS()``, ``pg.HMC()``, ``pg.MALA()``, ``pg.RandomWalk()``
            ... with the backend ``"blackjax"``.
        moves: Steps of the parameters per sweep.
        proposal: How particles move.
        resampling: How they are resampled.
        ancestry: How the path gets its past; ``None``: ancestors are sampled where the program allows it.
        backend: ``"probgen"``.
    """

    particles: int = eqx.field(static=True, default=50)
    parameters: KernelMethod = eqx.field(static=True, default=NUTS())
    moves: int = eqx.field(static=True, default=1)
    proposal: Proposal = eqx.field(static=True, default=Bootstrap())
    resampling: Resampling = eqx.field(static=True, default=Systematic())
    ancestry: Ancestry | None = eqx.field(static=True, default=None)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "particle_gibbs"
    summary: ClassVar = "Parameters and states of a program with scan in turn: conditional SMC, then NUTS"
    backends: ClassVar = ("probgen",)

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        self._settings.check()
        check_count("moves", self.moves, 1, 1)
        if self.ancestry is not None and not isinstance(self.ancestry, Ancestry):
            raise MethodError(
                f"ancestry must be one of pg.Ancestry, got {self.ancestry!r}. Write for example pg.Ancestry.traced."
            )
        if not isinstance(self.parameters, KernelMethod):
            raise MethodError(
                f"parameters must be a method of a Markov chain, got {self.parameters!r}. Write for example pg.NUTS()."
            )
        self.parameters.check()
        if not isinstance(self.parameters.kernel(0), AdaptedKernel | GradientFreeKernel):
            raise MethodError(
                f"{type(self.parameters).__name__}(backend={self.parameters.engine!r}) cannot be told of a new path. "
                f"Use pg.NUTS(), pg.HMC(), pg.MALA() or pg.RandomWalk() with the backend 'blackjax'."
            )

    @property
    def _settings(self) -> Settings:
        return Settings(self.particles, self.resampling, variance=False)

    def density(self, model: Model) -> FilteredDensity:
        """See ``Method.density``.

        Raises:
            ModelError: If the program has no scan, or cannot be run step by step.
            MethodError: If it has no parameter, or a discrete one; or if ancestors are to be sampled where they cannot.
        """
        density = FilteredDensity(model, self._settings, self.proposal)
        if density.cut.keeps and self.ancestry not in (None, Ancestry.traced):
            raise MethodError(
                f"ancestry is {self.ancestry}, which needs a transition density, and {density.cut.keeps}. Carry the "
                f"latent values of the last step only, or use pg.Ancestry.traced."
            )
        return density

    def kernel(self, warmup: int) -> Kernel:
        """See ``KernelMethod.kernel``."""
        inner = self.parameters.kernel(warmup * self.moves)
        assert isinstance(inner, AdaptedKernel | GradientFreeKernel)
        return ParticleGibbsKernel(warmup, inner, self.ancestry, self.moves)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""
        assert isinstance(density, FilteredDensity)
        run = super().run(key, density, plan)
        ancestry = self.ancestry or density.ancestry
        why = f" ({density.cut.keeps})" if density.cut.keeps else ""
        run.attrs["ancestry"] = f"{ancestry.name}{why}"
        run.attrs["path_moved"] = float(run.stats["path_moved"].mean())
        return run
