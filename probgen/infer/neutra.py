"""Neural transport: a flow is fitted to the posterior, then a sampler moves in its noise."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.autoregressive_layers import AutoregressiveLayers
from probgen.generative.family import Family
from probgen.generative.flow import Flow
from probgen.generative.scalar_transform import Affine
from probgen.infer.guides import LearnedGuide
from probgen.infer.method import KernelMethod, Method, Need, Plan, Run
from probgen.infer.nuts import NUTS
from probgen.infer.svi import SVI
from probgen.infer.svi_engine import Fit, Frame, Problem, guide_weights
from probgen.program.density import Density
from probgen.program.warped import WarpedDensity

__all__ = ["NeuTra"]

_ARROW = Flow(scalar=Affine(), layers=AutoregressiveLayers(inverse=True), count=3, width=32)


class NeuTra(Method):
    """Sample a posterior of difficult shape in the noise of a flow that was fitted to it.

    The flow is fitted by ``pg.SVI``; where it is good, the posterior of its noise is nearly standard normal, and where
    it is not, the sampler corrects it: the draws follow the posterior either way, however the fit ended. What the flow
    misses wholly (a mode, say) the sampler finds no more easily than it would without.

    Hoffman et al. (2019), "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural transport".

    Attributes:
        backend: ``"probgen"``.
        flow: The family that is fitted: with a density, and a map from noise that has an inverse.
        fit: How it is fitted; its ``guide`` plays no part.
        sampler: What samples the noise, for example ``pg.NUTS()``.
    """

    backend: str = eqx.field(static=True, default="")
    flow: Family = eqx.field(static=True, default=_ARROW)
    fit: SVI = eqx.field(static=True, default=SVI(learning_rate=0.005, steps=10_000))
    sampler: KernelMethod = eqx.field(static=True, default=NUTS())

    name: ClassVar = "neutra"
    summary: ClassVar = "A sampler in the noise of a flow fitted to the posterior: bad geometry"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.gradient, Need.continuous})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        for name, kind in (("flow", Family), ("fit", SVI), ("sampler", KernelMethod)):
            if not isinstance(getattr(self, name), kind):
                raise MethodError(
                    f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}. Leave it out for the default."
                )
        self.fit.check()
        self.sampler.check()

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``."""
        return self.sampler.shared_out(chains)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If no start is finite, or the flow does not fit the dimension.
        """
        key_sample, *keys = jax.random.split(key, 4)
        guide = LearnedGuide(self.flow)
        how = dataclasses.replace(self.fit, guide=self.flow)
        fitted = how.fitted(tuple(keys), density, plan, _warped, lambda problem, fit: (problem, fit))
        frame, weights = fitted.read()
        warped = WarpedDensity(density, frame.loc, frame.scale, guide.distribution(weights, density.dim))
        run = self.sampler.run(key_sample, warped, plan)
        run.attrs |= {"fit_ended": fitted.ended.name, "fit_steps": int(fitted.trace.size), "sampler": self.sampler.name}
        run.groups["optimization"] = fitted.optimization
        run.seconds = {
            "compile": run.seconds.get("compile", 0.0) + fitted.compiling,
            "warmup": fitted.seconds,
            "sampling": run.seconds.get("sampling", 0.0),
        }
        return run


def _warped(problem: Problem, fit: Fit) -> tuple[Frame, dict[str, Any]]:
    """The frame and the weights of a fitted guide."""
    return problem.frame, guide_weights(problem, fit)
