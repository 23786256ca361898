"""The joint density of a program in constrained space, term by term; what a block solved in closed form offers."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.program.handlers import InitialKeys
from probgen.program.model import Model
from probgen.program.observations import mask_of, site_log_prob
from probgen.program.sites import Kind

__all__ = ["Block", "Joint", "Posterior", "Variables", "by_site", "flattened", "site_shape"]

type Variables = dict[str, tuple[tuple[str, ...], Array]]
"""Arrays with the names of their axes."""


class Joint(eqx.Module):
    """The log joint density of latent values and data, without Jacobians.

    Args:
        model: The model.
    """

    model: Model

    def run(self, values: Values) -> dict[str, Any]:
        """The trace of the program with latent sites at ``values``; sites without a value stand at zero."""
        zeros = {s.name: jnp.zeros(s.shape, s.dtype) for s in self.model.of_kind(Kind.continuous, Kind.discrete)}
        return handlers.trace(handlers.substitute(InitialKeys(self.model.bind()), data={**zeros, **values})).get_trace()

    def __call__(self, values: Values, names: tuple[str, ...]) -> tuple[Scalar, Scalar]:
        """Sum of the log probabilities of the sites ``names``, and of their absolute values (the scale of rounding)."""
        total = size = jnp.zeros((), jnp.result_type(float))
        traced = self.run(values)
        for name in names:
            site = traced[name]
            log_prob = site_log_prob(site)
            if self.model.sites[name].auxiliary and not site["is_observed"]:
                # Entries that were observed take no part; a standard normal keeps them proper, as in Density.
                spare = jax.scipy.stats.norm.logpdf(site["value"]).reshape(*jnp.shape(log_prob), -1).sum(-1)
                log_prob = jnp.where(jnp.broadcast_to(mask_of(site["fn"]), jnp.shape(log_prob)), log_prob, spare)
            total, size = total + jnp.sum(log_prob), size + jnp.sum(jnp.abs(log_prob))
        return total, size


class Posterior(NamedTuple):
    """The exact posterior of one block.

    Attributes:
        parameters: What describes it; the block knows how to read it.
        log_evidence: Log of the integral of the block's terms over its latent sites.
        residual: Largest relative difference between the closed form and the program's density at test points, up to a
            constant.
        proper: Whether the parameters are those of a distribution.
    """

    parameters: dict[str, Any]
    log_evidence: Scalar
    residual: Scalar
    proper: Scalar


class Block(abc.ABC):
    """Latent sites that are independent of all others given the data, with the terms of the joint that they enter.

    Blocks hold names only (they are hashable: compiled programs are kept by them).
    """

    sites: tuple[str, ...]
    """The latent sites."""
    terms: tuple[str, ...]
    """The sample sites whose log probability depends on them."""
    rule: ClassVar[str]
    """What makes it exact, in words."""

    @property
    def lane(self) -> str | None:
        """The plate whose rows are solved one by one, as if they knew nothing of one another; None where there is none."""
        return None

    @abc.abstractmethod
    def solve(self, joint: Joint) -> Posterior:
        """The posterior of the block."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Any], count: int) -> Values:
        """Independent draws from the posterior: values by site, with a leading axis ``count``."""

    @abc.abstractmethod
    def summary(self, model: Model, parameters: dict[str, Any]) -> Variables:
        """The posterior in labelled arrays."""


def site_shape(model: Model, name: str) -> tuple[int, ...]:
    """Shape of the value of a site."""
    return model.sites[name].shape


def flattened(model: Model, names: tuple[str, ...], values: Values) -> Array:
    """Values of several sites as one vector."""
    return jnp.concatenate([jnp.reshape(values[name], -1) for name in names])


def by_site(model: Model, names: tuple[str, ...], flat: Array) -> Values:
    """Inverse of ``flattened``; leading axes of ``flat`` are kept."""
    values, start = {}, 0
    for name in names:
        shape = site_shape(model, name)
        size = math.prod(shape)
        values[name] = flat[..., start : start + size].reshape(*flat.shape[:-1], *shape)
        start += size
    return values
