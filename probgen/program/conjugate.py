r"""Conjugate sites: the posterior of each entry stays in an exponential family.

An entry :math:`\theta` with sufficient statistics :math:`T` has a posterior in the family of :math:`T` exactly when the
log joint density is :math:`\eta^\top T(\theta) + \text{const}`. Instead of a table of pairs, :math:`\eta` is found from
gradients of the program's own density, a linear least-squares problem per entry, and the claim is then checked:
:math:`L(\theta) - \log q(\theta)` must be one number at many points, near the posterior and far from it. That number is
the log evidence. A likelihood that is not conjugate does not pass.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.transforms import biject_to

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.program.joint import Block, Joint, Posterior, Variables
from probgen.program.model import Model

__all__ = ["Conjugate", "Family", "centre_of", "family_of", "natural_parameters", "probes_around"]

_PROBES = 6
_PASSES = 3
SCALES = 2.0 ** np.linspace(1.5, -8.0, 16)
"""Distances, in unconstrained coordinates, at which a form is compared with the program."""


class Family(abc.ABC):
    """An exponential family of priors, closed under multiplication.

    Attributes:
        names: Parameters of the posterior, in the order of ``posterior``'s arguments.
        event_dim: Number of event axes.
        support: Support of one entry.
    """

    names: ClassVar[tuple[str, ...]]
    event_dim: ClassVar[int] = 0
    support: ClassVar[Any] = dist.constraints.positive

    @staticmethod
    @abc.abstractmethod
    def statistics(x: Array) -> Array:
        """Sufficient statistics of one entry, shape ``(k,)``."""

    @staticmethod
    @abc.abstractmethod
    def posterior(eta: Array) -> dict[str, Array]:
        """Parameters by name of the natural parameters, shape ``(..., k)``."""

    @staticmethod
    @abc.abstractmethod
    def distribution(parameters: Mapping[str, Array]) -> Any:
        """The NumPyro distribution."""


class Beta(Family):
    """Beta; the uniform distribution on (0, 1) belongs to it."""

    names = ("concentration1", "concentration0")
    support = dist.constraints.unit_interval

    @staticmethod
    def statistics(x: Array) -> Array:
        return jnp.stack([jnp.log(x), jnp.log1p(-x)])

    @staticmethod
    def posterior(eta: Array) -> dict[str, Array]:
        return {"concentration1": eta[..., 0] + 1, "concentration0": eta[..., 1] + 1}

    @staticmethod
    def distribution(parameters: Mapping[str, Array]) -> Any:
        return dist.Beta(parameters["concentration1"], parameters["concentration0"])


class Gamma(Family):
    """Gamma; exponential and chi-squared belong to it."""

    names = ("concentration", "rate")

    @staticmethod
    def statistics(x: Array) -> Array:
        return jnp.stack([jnp.log(x), x])

    @staticmethod
    def posterior(eta: Array) -> dict[str, Array]:
        return {"concentration": eta[..., 0] + 1, "rate": -eta[..., 1]}

    @staticmethod
    def distribution(parameters: Mapping[str, Array]) -> Any:
        return dist.Gamma(parameters["concentration"], parameters["rate"])


class InverseGamma(Family):
    """Inverse gamma."""

    names = ("concentration", "rate")

    @staticmethod
    def statistics(x: Array) -> Array:
        return jnp.stack([jnp.log(x), 1 / x])

    @staticmethod
    def posterior(eta: Array) -> dict[str, Array]:
        return {"concentration": -eta[..., 0] - 1, "rate": -eta[..., 1]}

    @staticmethod
    def distribution(parameters: Mapping[str, Array]) -> Any:
        return dist.InverseGamma(parameters["concentration"], parameters["rate"])


class Dirichlet(Family):
    """Dirichlet."""

    names = ("concentration",)
    event_dim = 1
    support = dist.constraints.simplex

    @staticmethod
    def statistics(x: Array) -> Array:
        return jnp.log(x)

    @staticmethod
    def posterior(eta: Array) -> dict[str, Array]:
        return {"concentration": eta + 1}

    @staticmethod
    def distribution(parameters: Mapping[str, Array]) -> Any:
        return dist.Dirichlet(parameters["concentration"])


_FAMILIES: dict[str, type[Family]] = {
    "Beta": Beta,
    "Uniform": Beta,
    "Gamma": Gamma,
    "Exponential": Gamma,
    "Chi2": Gamma,
    "InverseGamma": InverseGamma,
    "Dirichlet": Dirichlet,
}


def family_of(distribution: str) -> type[Family] | None:
    """The family of a prior, by the name of its NumPyro class; a ``Uniform`` must still be shown to live on (0, 1)."""
    return _FAMILIES.get(distribution)


def natural_parameters(
    log_joint: Callable[[Values], Scalar], families: Mapping[str, type[Family]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Natural parameters of each entry, assuming that the log joint density is affine in the statistics of all entries.

    Args:
        log_joint: Log density of values by site, up to a constant.
        families: The family of each site.
        shapes: The shape of each site.

    Returns:
        By site, an array ``(*batch, k)``.
    """
    charts = {name: biject_to(family.support) for name, family in families.items()}
    flat = {name: charts[name].inverse_shape(shapes[name]) for name in families}
    gradient = jax.grad(lambda u: log_joint({name: charts[name](u[name]) for name in u}))

    # Probes near the posterior weigh all statistics alike, however large the data; a first pass tells where it lies.
    def improved(centre: Values, key: PRNGKey) -> tuple[Values, dict[str, Array]]:
        probes = probes_around(key, centre, np.ones(_PROBES))
        slopes = jax.lax.map(gradient, probes)
        eta = {name: _least_squares(families[name], charts[name], probes[name], slopes[name]) for name in families}
        return {name: charts[name].inv(centre_of(families[name], eta[name])) for name in families}, eta

    start = {name: jnp.zeros(flat[name]) for name in families}
    passes = jax.lax.scan(improved, start, jax.random.split(jax.random.key(0), _PASSES))[1]
    return {name: eta[-1] for name, eta in passes.items()}


def probes_around(key: PRNGKey, centre: Values, scales: Array | np.ndarray) -> Values:
    """Random points at the given distances from a centre, by site; leading axis as ``scales``."""
    keys = jax.random.split(key, len(centre))
    points = {}
    for key_site, (name, middle) in zip(keys, centre.items(), strict=True):
        z = jax.random.normal(key_site, (scales.shape[0], *middle.shape))
        points[name] = middle + z * scales.reshape(-1, *(1,) * middle.ndim)
    return points


def _least_squares(family: type[Family], chart: Any, probes: Array, slopes: Array) -> Array:
    """Solve ``d/du eta . T(x(u)) = slope`` over the probes, entry by entry."""
    event = family.event_dim
    batch = probes.shape[1 : probes.ndim - event]

    def entries(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(_PROBES, -1, *x.shape[x.ndim - event :]), 1, 0)

    def one(u: Array, slope: Array) -> Array:
        jacobian = jax.vmap(jax.jacfwd(lambda v: family.statistics(chart(v))))(u)
        q, r = jnp.linalg.qr(jnp.moveaxis(jacobian, 1, -1).reshape(-1, jacobian.shape[1]))
        return jax.scipy.linalg.solve_triangular(r, q.T @ slope.reshape(-1))

    return jax.vmap(one)(entries(probes), entries(slopes)).reshape(*batch, -1)


def centre_of(family: type[Family], eta: Array) -> Array:
    """A point near the bulk of the posterior; rough parameters may still be out of range."""
    parameters = {name: jnp.maximum(jnp.abs(value), 1e-3) for name, value in family.posterior(eta).items()}
    if family is Beta:
        return parameters["concentration1"] / (parameters["concentration1"] + parameters["concentration0"])
    if family is Dirichlet:
        return parameters["concentration"] / parameters["concentration"].sum(-1, keepdims=True)
    ratio = parameters["concentration"] / parameters["rate"]
    return 1 / ratio if family is InverseGamma else ratio


@dataclasses.dataclass(frozen=True)
class Conjugate(Block):
    """Sites whose entries have independent posteriors, each in the family of its prior.

    Attributes:
        priors: Names of the prior distributions, by site.
    """

    sites: tuple[str, ...]
    terms: tuple[str, ...]
    priors: tuple[str, ...]
    rule: ClassVar = "conjugate: posterior in the family of the prior"

    @property
    def families(self) -> dict[str, type[Family]]:
        """The family of each site."""
        return {name: _FAMILIES[prior] for name, prior in zip(self.sites, self.priors, strict=True)}

    def distributions(self, parameters: dict[str, Array]) -> dict[str, Any]:
        """The posterior of each site."""
        return {
            name: family.distribution({p: parameters[f"{name}_{p}"] for p in family.names})
            for name, family in self.families.items()
        }

    def solve(self, joint: Joint) -> Posterior:
        """See ``Block.solve``. ``parameters``: ``SITE_PARAMETER`` by site, shape of the site's batch."""
        families = self.families
        shapes = {name: joint.model.sites[name].shape for name in families}
        eta = natural_parameters(lambda values: joint(values, self.terms)[0], families, shapes)
        parameters = {
            f"{name}_{p}": value
            for name, family in families.items()
            for p, value in family.posterior(eta[name]).items()
        }
        proper = jnp.all(
            jnp.asarray([jnp.all(value > 0) & jnp.all(jnp.isfinite(value)) for value in parameters.values()])
        )
        posteriors = self.distributions(parameters)
        charts = {name: biject_to(family.support) for name, family in families.items()}

        def constant(values: Values) -> tuple[Scalar, Scalar]:
            total, size = joint(values, self.terms)
            logs = [posteriors[name].log_prob(values[name]) for name in families]
            return total - sum(jnp.sum(x) for x in logs), size + sum(jnp.sum(jnp.abs(x)) for x in logs)

        # Points at all distances from the centre: some lie inside the posterior and some far outside, however narrow it
        # is.
        centre = {name: charts[name].inv(centre_of(families[name], eta[name])) for name in families}
        probes = probes_around(jax.random.key(1), centre, SCALES)
        constants, sizes = jax.lax.map(lambda u: constant({name: charts[name](u[name]) for name in u}), probes)
        # Rounding is least where the terms are least.
        log_z = constants[jnp.argmin(sizes)]
        residual = jnp.max(jnp.abs(constants - log_z) / (1 + sizes + jnp.min(sizes)))
        return Posterior(parameters, log_z, self._outside(joint, residual), proper)

    def _outside(self, joint: Joint, residual: Scalar) -> Scalar:
        """The residual, infinite where a uniform prior does not cover (0, 1)."""
        traced = joint.run({})
        for name, prior in zip(self.sites, self.priors, strict=True):
            if prior == "Uniform":
                support: Any = traced[name]["fn"].support
                while isinstance(support, dist.constraints.independent):
                    support = support.base_constraint
                covers = jnp.all(jnp.asarray(support.lower_bound) == 0) & jnp.all(jnp.asarray(support.upper_bound) == 1)
                residual = jnp.where(covers, residual, jnp.inf)
        return residual

    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Array], count: int) -> Values:
        """See ``Block.draw``."""
        posteriors = self.distributions(parameters)
        return {
            name: posteriors[name].sample(jax.random.fold_in(key, i), (count,)) for i, name in enumerate(self.sites)
        }

    def summary(self, model: Model, parameters: dict[str, Array]) -> Variables:
        """See ``Block.summary``: the parameters of each posterior."""
        variables: Variables = {}
        for name, family in self.families.items():
            for p in family.names:
                value = parameters[f"{name}_{p}"]
                variables[f"{name}_{p}"] = (model.sites[name].dims[: value.ndim], value)
        return variables
