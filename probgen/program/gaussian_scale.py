r"""Gaussian sites with one unknown common scale: normal-gamma and normal-inverse-gamma models, regression among them.

With a scale site :math:`v` and Gaussian sites :math:`x \in R^d` whose covariances are all proportional to
:math:`1/s(v)`, where :math:`s(v) = v` for a gamma (a precision) and :math:`1/v` for an inverse gamma (a variance),

.. math:: L(x, v) = \eta^\top T(v) - \tfrac{s(v)}2 (x - m)^\top \Lambda (x - m) + \text{const}.

Integrating :math:`x` out leaves :math:`s(v)^{-d/2} e^{\eta^\top T(v)}`: :math:`v` stays in its family, and
:math:`x \mid v \sim N(m, (s\Lambda)^{-1})`. The form is checked at points of both, as for conjugate sites.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.program.conjugate import (
    SCALES,
    Family,
    InverseGamma,
    centre_of,
    family_of,
    natural_parameters,
    probes_around,
)
from probgen.program.joint import Block, Joint, Posterior, Variables, by_site, site_shape
from probgen.program.linear_gaussian import Quadratic, gaussian_variables, quadratic
from probgen.program.model import Model

__all__ = ["GaussianScale"]


@dataclasses.dataclass(frozen=True)
class GaussianScale(Block):
    """A normal-gamma or normal-inverse-gamma posterior.

    Attributes:
        scale: The scale site.
        prior: Name of its prior distribution.
    """

    sites: tuple[str, ...]
    terms: tuple[str, ...]
    scale: str
    prior: str
    rule: ClassVar = "normal-gamma: Gaussian given one scale, the scale in the family of its prior"

    @property
    def gaussians(self) -> tuple[str, ...]:
        """The Gaussian sites."""
        return tuple(name for name in self.sites if name != self.scale)

    @property
    def family(self) -> type[Family]:
        """Family of the scale."""
        family = family_of(self.prior)
        assert family is not None
        return family

    def _precision(self, v: Array) -> Array:
        return 1 / v if self.family is InverseGamma else v

    def solve(self, joint: Joint) -> Posterior:
        """See ``Block.solve``. ``parameters``: ``mean``, ``factor`` at unit scale, and those of the scale's family."""
        model, family = joint.model, self.family
        dim = sum(math.prod(site_shape(model, name)) for name in self.gaussians)
        shape = site_shape(model, self.scale)

        def terms(x: Array, v: Array) -> tuple[Scalar, Scalar]:
            return joint({**by_site(model, self.gaussians, x), self.scale: v.reshape(shape)}, self.terms)

        one = jnp.ones(())
        peak = quadratic(lambda x: terms(x, one)[0], dim)
        eta = natural_parameters(lambda v: terms(peak.mean, v["v"])[0], {"v": family}, {"v": ()})["v"]
        eta = eta.at[0].add(0.5 * dim if family is InverseGamma else -0.5 * dim)
        scale = family.posterior(eta)
        proper = jnp.all(jnp.isfinite(peak.mean)) & jnp.all(jnp.asarray([value > 0 for value in scale.values()]))
        posterior = family.distribution(scale)

        def constant(z: Array, v: Array) -> tuple[Scalar, Scalar]:
            s = self._precision(v)
            total, size = terms(peak.mean + peak.scaled(z[None])[0] / jnp.sqrt(s), v)
            log_x = 0.5 * (peak.log_det + dim * jnp.log(s / (2 * math.pi)) - jnp.sum(z**2))
            log_v = posterior.log_prob(v)
            return total - log_x - log_v, size + jnp.abs(log_x) + jnp.abs(log_v)

        centre = {"log_v": jnp.log(centre_of(family, eta)), "z": jnp.zeros(dim)}
        probes = probes_around(jax.random.key(1), centre, SCALES)
        # Deviations of x are in posterior standard deviations already: one scale will do.
        pairs = (2 * probes["z"] / SCALES[:, None], jnp.exp(probes["log_v"]))
        constants, sizes = jax.lax.map(lambda pair: constant(*pair), pairs)
        log_z = constants[jnp.argmin(sizes)]
        residual = jnp.max(jnp.abs(constants - log_z) / (1 + sizes + jnp.min(sizes)))
        return Posterior({**peak._asdict(), **scale}, log_z, residual, proper)

    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Array], count: int) -> Values:
        """See ``Block.draw``."""
        key_scale, key_normal = jax.random.split(key)
        peak = Quadratic(parameters["mean"], parameters["factor"])
        v = self.family.distribution(parameters).sample(key_scale, (count,))
        z = jax.random.normal(key_normal, (count, peak.mean.shape[0]), peak.mean.dtype)
        x = peak.mean + peak.scaled(z) / jnp.sqrt(self._precision(v))[:, None]
        return {**by_site(model, self.gaussians, x), self.scale: v.reshape(count, *site_shape(model, self.scale))}

    def summary(self, model: Model, parameters: dict[str, Array]) -> Variables:
        """See ``Block.summary``: the scale's parameters; means, and covariance blocks at unit scale."""
        peak = Quadratic(parameters["mean"], parameters["factor"])
        variables: Variables = {f"{self.scale}_{p}": ((), parameters[p]) for p in self.family.names}
        return variables | gaussian_variables(model, self.gaussians, peak.mean, peak.covariance, "unit_covariance")
