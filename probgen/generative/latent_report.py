"""How a latent-variable model uses its latent variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.typing import PRNGKey
from probgen.generative.likelihood import mean_of

if TYPE_CHECKING:
    from probgen.generative.vae import LearnedVAE

__all__ = ["LatentReport", "report_of"]

_ACTIVE = 0.01
"""Variance of its posterior mean, in units of the prior's, from which on a unit counts as active."""
_RELEVANT = 0.99
"""Share of what the decoder's mean varies by that relevant entries make up."""


class LatentReport(NamedTuple):
    """How a latent-variable model uses its latent variable.

    Attributes:
        bound: Mean evidence lower bound per datum, in nats.
        divergence: Mean divergence of guide and prior by entry of the latent variable, in nats, shape ``(dim,)``.
        active: Whether the posterior mean of an entry varies with the datum, shape ``(dim,)``: its variance exceeds 1 %
            of that of the draws of the prior.
        mutual_information: Of datum and latent variable under the guide, in nats; at most the log of the number of
            data that were given.
        marginal_divergence: Divergence of the aggregate posterior from the prior, in nats: mean divergence less mutual
            information. Draws of the model are off by that much.
        relevance: Share of each entry in what the decoder's mean (in standard units) varies by, shape ``(dim,)``,
            summing to 1: prior variance times mean squared derivative (of the bottom level; 0 for those above).
        relevant: Number of entries that make up 99 % of it.
    """

    bound: Array
    divergence: Array
    active: Array
    mutual_information: Array
    marginal_divergence: Array
    relevance: Array
    relevant: Array


@eqx.filter_jit
def report_of(key: PRNGKey, model: LearnedVAE, x: Array) -> LatentReport:
    """See ``LearnedVAE.report``, which also looks at the data and says what is wrong."""
    key_guide, key_prior = jax.random.split(key)
    net, count = model.net, x.shape[0]
    c = model.condition
    over = 0 if c is not None and model.batch_shape else None

    def rows(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function, (0, 0, over))

    z = rows(net.infer)(jax.random.split(key_guide, count), x, c)
    log_q, log_prior = rows(net.log_q)(z, x, c), jax.vmap(net.log_prior, (0, over))(z, c)
    likelihood = rows(net.log_likelihood)(z, x, c)
    divergences = rows(net.divergences)(z, x, c)
    # Row by row, so that memory grows with the number of data and not with its square.
    aggregate = jax.lax.map(lambda z: logsumexp(jax.vmap(lambda x, c: net.log_q(z, x, c), (0, over))(x, c)), z)
    information = jnp.mean(log_q - (aggregate - jnp.log(count)))
    means = jax.vmap(lambda x, c: net.infer_from(jnp.zeros(z.shape[1], z.dtype), x, c), (0, over))(x, c)
    prior = jax.vmap(lambda key, c: net.push(jax.random.normal(key, z.shape[1:], z.dtype), c), (0, over))(
        jax.random.split(key_prior, count), c
    )
    active = means.var(0) > _ACTIVE * prior.var(0)

    def mean(z: Array, c: Array | None) -> Array:
        found = mean_of(net.law(z, c))
        return (found if model.family.discrete else net.units.inward(found)).reshape(-1)

    jacobians = jax.vmap(jax.jacfwd(mean), (0, over))(z, c)
    power = jnp.sum(jnp.mean(jacobians**2, 0), 0) * prior.var(0)
    relevance = power / jnp.where(power.sum() > 0, power.sum(), 1.0)
    relevant = 1 + jnp.sum(jnp.cumsum(jnp.sort(relevance)[::-1]) < _RELEVANT)
    divergence = jnp.mean(divergences, 0)
    return LatentReport(
        jnp.mean(likelihood) - divergence.sum(),
        divergence,
        active,
        information,
        jnp.mean(log_q - log_prior) - information,
        relevance,
        relevant,
    )
