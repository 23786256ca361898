"""Elliptical slice sampling, for Gaussian priors."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from probgen.base.typing import PRNGKey
from probgen.infer.method import KernelMethod, Need, Plan, Run
from probgen.program.density import Density
from probgen.program.gaussian import gaussian_prior_mean

__all__ = ["EllipticalSlice"]


class EllipticalSlice(KernelMethod):
    """Elliptical slice sampling.

    Murray, Adams and MacKay (2010). For models whose latent sites are all ``Normal`` or ``MultivariateNormal`` with
    parameters that no other latent site moves (Gaussian processes with fixed hyperparameters, probit regression). No
    gradient, nothing to tune, every draw moves. ``n_steps`` counts likelihood evaluations.

    Attributes:
        backend: ``"blackjax"``.
    """

    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "elliptical_slice"
    summary: ClassVar = "Elliptical slice sampling for Gaussian priors, no gradient"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.continuous, Need.prior_draws})

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``. Raises ``MethodError`` that names a site whose prior is not Gaussian."""
        gaussian_prior_mean(density)
        return super().run(key, density, plan)
