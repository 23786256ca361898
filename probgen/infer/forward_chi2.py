r"""Guides by the forward chi-square divergence: the proposal whose importance weights vary least.

With :math:`w = p(u, y) / q(u)` for :math:`u \sim q`, the variance of the weights is :math:`Z^2 \chi^2(p(u \mid y) \,\|\,
q)`. It is large where the guide lacks mass that the posterior has, so the guide covers all of it, where the evidence
lower bound prefers one mode. Li, Wang and Wu (2024), "Forward chi^2 divergence based variational importance sampling",
minimise it in log space, and fit parameters of the model by the importance-weighted likelihood. With :math:`u_k` drawn
from the guide as it is,

.. math:: \nabla_\phi \log E_q w^2 \approx - \sum_k \frac{w_k^2}{\sum_j w_j^2} \nabla_\phi \log q(u_k), \qquad
          \nabla_\theta \log Z \approx \sum_k \frac{w_k}{\sum_j w_j} \nabla_\theta \log p(u_k, y).

Both are self-normalised: their bias is of order :math:`1/K`. The reported objective is the importance-weighted bound of
:math:`K` draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.infer.elbo import ELBO as NumpyroELBO
from numpyro.infer.util import log_density

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.infer.guides import Objective

__all__ = ["ForwardChi2"]


class ForwardChi2(Objective):
    """The forward chi-square divergence of the guide from the posterior: the guide covers every mode, and its weights
    estimate the evidence best.

    For guides with a density at any point (all of probgen's). Give it many draws, and a guide that begins wide: a mode
    that no draw has seen has no weight, and is not found (``pg.MeanField()`` begins at one mode).

    Attributes:
        samples: Draws per step, at least 2.
    """

    samples: int = eqx.field(static=True, default=64)

    def check(self) -> None:
        """See ``Objective.check``."""
        if not is_count(self.samples, 2):
            raise MethodError(f"samples must be an int of at least 2, got {self.samples!r}. 64 is usual.")

    def build(self) -> NumpyroELBO:
        """See ``Objective.build``."""
        return _Estimator(num_particles=self.samples)


class _Estimator(NumpyroELBO):
    """The objective over programs; its gradient is that of the module."""

    def loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        rng_key: PRNGKey,
        param_map: dict[str, Array],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Scalar:
        """The negative of the importance-weighted bound."""
        still = jax.lax.stop_gradient(param_map)

        def one(key: PRNGKey) -> tuple[Scalar, Scalar]:
            key_guide, key_model = jax.random.split(key)
            _, drawn = log_density(handlers.seed(guide, key_guide), args, kwargs, still)
            values = {name: site["value"] for name, site in drawn.items() if site["type"] == "sample"}
            # The guide's density at these draws as a function of its parameters: the draws stay where they are.
            log_q, _ = log_density(handlers.seed(guide, key_guide), args, kwargs, {**param_map, **values})
            log_p, _ = log_density(handlers.seed(model, key_model), args, kwargs, {**param_map, **values})
            return jnp.asarray(log_p), jnp.asarray(log_q)

        log_p, log_q = jax.vmap(one)(jax.random.split(rng_key, self.num_particles))
        log_w = jax.lax.stop_gradient(log_p - log_q)
        total = jnp.sum(jax.nn.softmax(log_w) * log_p) + jnp.sum(jax.nn.softmax(2 * log_w) * log_q)
        bound = logsumexp(log_w) - jnp.log(self.num_particles)
        return -(bound + total - jax.lax.stop_gradient(total))
