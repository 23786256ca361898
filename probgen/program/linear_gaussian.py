r"""Gaussian sites whose locations are affine in the latent sites and whose covariances are constant.

The log joint density is then exactly quadratic in the stacked latent values :math:`x \in R^d`,

.. math:: L(x) = L(m) - \tfrac12 (x - m)^\top \Lambda (x - m),

so the posterior is :math:`N(m, \Lambda^{-1})` and the log evidence :math:`L(m) + \tfrac d2 \log 2\pi - \tfrac12
\log\det\Lambda`. Gradient and Hessian come from differentiating the program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.program.joint import Block, Joint, Posterior, Variables, by_site, site_shape
from probgen.program.model import Model

__all__ = ["LinearGaussian", "Quadratic", "gaussian_variables", "quadratic"]

_AT_ONCE = 32
"""Columns of the Hessian computed side by side."""
_PROBES = 6


class Quadratic(NamedTuple):
    """A quadratic function: its peak, and the lower Cholesky factor of its negative Hessian."""

    mean: Array
    factor: Array

    @property
    def log_det(self) -> Scalar:
        """Log determinant of the negative Hessian."""
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self.factor)))

    def scaled(self, z: Array) -> Array:
        """Deviations from the mean of standard normal ``z``, shape ``(..., d)``."""
        return jax.scipy.linalg.solve_triangular(self.factor, z.T, lower=True, trans=1).T

    @property
    def covariance(self) -> Array:
        """Inverse of the negative Hessian."""
        return jax.scipy.linalg.cho_solve((self.factor, True), jnp.eye(self.mean.shape[0], dtype=self.mean.dtype))


def quadratic(function: Callable[[Array], Scalar], dim: int) -> Quadratic:
    """Peak and curvature of a function that is known to be quadratic; NaN where it has no peak."""
    gradient, zero = jax.grad(function), jnp.zeros(dim)

    def column(direction: Array) -> Array:
        return jax.jvp(gradient, (zero,), (direction,))[1]

    precision = -jax.lax.map(column, jnp.eye(dim), batch_size=min(_AT_ONCE, dim))
    factor = jnp.linalg.cholesky((precision + precision.T) / 2)

    def newton(x: Array) -> Array:
        return x + jax.scipy.linalg.cho_solve((factor, True), gradient(x))

    # The second step removes the rounding of the first where the mean is far from zero.
    return Quadratic(newton(newton(zero)), factor)


def gaussian_variables(model: Model, sites: tuple[str, ...], mean: Array, covariance: Array, label: str) -> Variables:
    """Mean per site, and the covariance block of each pair of sites, as labelled arrays."""
    variables: Variables = {}
    means, spans, start = by_site(model, sites, mean), {}, 0
    for name in sites:
        spans[name] = slice(start, start + math.prod(site_shape(model, name)))
        start = spans[name].stop
        variables[f"{name}_mean"] = (model.sites[name].dims, means[name])
    for i, one in enumerate(sites):
        for two in sites[i:]:
            block = covariance[spans[one], spans[two]].reshape(*site_shape(model, one), *site_shape(model, two))
            dims = (*model.sites[one].dims, *(f"{dim}_other" for dim in model.sites[two].dims))
            name = f"{one}_{label}" if one == two else f"{one}_{two}_{label}"
            variables[name] = (dims, block)
    return variables


@dataclasses.dataclass(frozen=True)
class LinearGaussian(Block):
    """A multivariate normal posterior."""

    sites: tuple[str, ...]
    terms: tuple[str, ...]
    rule: ClassVar = "linear-Gaussian: multivariate normal posterior"

    def solve(self, joint: Joint) -> Posterior:
        """See ``Block.solve``. ``parameters``: ``mean`` and ``factor``, a Cholesky factor of the precision."""
        model = joint.model
        dim = sum(math.prod(site_shape(model, name)) for name in self.sites)

        def terms(x: Array) -> tuple[Scalar, Scalar]:
            return joint(by_site(model, self.sites, x), self.terms)

        peak = quadratic(lambda x: terms(x)[0], dim)
        top = terms(peak.mean)[0]
        log_z = top + 0.5 * dim * math.log(2 * math.pi) - 0.5 * peak.log_det
        # Recognition proved the form; these points guard against derivatives that are not the program's own.
        z = jax.random.normal(jax.random.key(0), (_PROBES, dim)) * 2.0 ** jnp.arange(-2, _PROBES - 2)[:, None]
        values, sizes = jax.lax.map(terms, peak.mean + peak.scaled(z))
        residual = jnp.max(jnp.abs(values - (top - 0.5 * jnp.sum(z**2, -1))) / (1 + sizes))
        proper = jnp.isfinite(log_z) & jnp.all(jnp.isfinite(peak.mean))
        return Posterior(peak._asdict(), log_z, residual, proper)

    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Array], count: int) -> Values:
        """See ``Block.draw``."""
        peak = Quadratic(**parameters)
        z = jax.random.normal(key, (count, peak.mean.shape[0]), peak.mean.dtype)
        return by_site(model, self.sites, peak.mean + peak.scaled(z))

    def summary(self, model: Model, parameters: dict[str, Array]) -> Variables:
        """See ``Block.summary``: mean and covariance blocks."""
        peak = Quadratic(**parameters)
        return gaussian_variables(model, self.sites, peak.mean, peak.covariance, "covariance")
