r"""Objectives of latent-variable models: lower bounds of :math:`\log p(x)` and what is put in their place.

With :math:`z_k = T(\epsilon_k; \phi)` independent draws of the guide :math:`q(z \mid x)` and weights
:math:`w_k = p(x, z_k) / q(z_k \mid x)`,

.. math:: L_K = E \log \tfrac1K \textstyle\sum_k w_k, \qquad L_1 \le L_2 \le \dots \le \log p(x),

is the evidence lower bound for :math:`K = 1` (Kingma and Welling 2014) and the importance-weighted bound beyond (Burda,
Grosse and Salakhutdinov 2016). The plain gradient of :math:`L_K` for the guide gets noisier, relative to its size, as
:math:`K` grows (Rainforth et al. 2018). The doubly reparameterised one (Tucker et al. 2019) does not, and has the same
expectation: with :math:`\tilde w_k = w_k / \sum_j w_j`,

.. math:: \nabla_\phi L_K = E \sum_k \tilde w_k^2\, \frac{\partial \log w_k}{\partial z_k}
          \frac{\partial z_k}{\partial \phi}, \qquad
          \nabla_\theta L_K = E \sum_k \tilde w_k\, \nabla_\theta \log p(x, z_k).

InfoVAE (Zhao, Song and Ermon 2019) weighs the two things that the bound trades against each other anew:

.. math:: E_q \log p(x \mid z) - (1 - \alpha)\, KL(q(z \mid x), p(z)) - (\alpha + \lambda - 1)\, D(q(z), p(z)),

with :math:`q(z) = E_x q(z \mid x)` and :math:`D` the squared maximum mean discrepancy of a Gaussian kernel
:math:`k(z, z') = \exp(-|z - z'|^2 / 2 h^2)`, :math:`h^2` the dimension. The prior's side has a closed form: with
:math:`z, z' \sim N(0, I_d)`, :math:`E k(y, z) = (1 + h^{-2})^{-d/2} \exp(-|y|^2 / 2 (1 + h^2))` and
:math:`E k(z, z') = (1 + 2 h^{-2})^{-d/2}`, so its estimate from a batch is unbiased and needs no draw of the prior.
:math:`\alpha = 0, \lambda = 1` is the evidence lower bound; :math:`\alpha = 1` leaves the mutual information of data
and latent variable unpenalised. It is a training objective and no bound.

The forward :math:`\chi^2` objective (Li, Wang and Wu 2024, "Forward chi^2 divergence based variational importance
sampling") fits the guide so that importance weights have the least variance, and the model by the importance-weighted
likelihood. Written for its logarithm, which no weight can overflow,

.. math:: \nabla_\phi \log E_q w^2 = - E_q \sum_k \frac{w_k^2}{\sum_j w_j^2}\, \nabla_\phi \log q(z_k \mid x)
          \ (K \to \infty).
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["ELBO", "IWAE", "ForwardChi2", "InfoVAE", "LatentNet", "LatentObjective", "log_weights", "mmd"]


class LatentNet(Protocol):
    """A latent-variable model and its guide, for one datum ``x`` given ``c``; ``z`` is one flat vector."""

    def infer(self, key: PRNGKey, x: Array, c: Array | None) -> Array:
        """A draw of the guide."""
        ...

    def log_q(self, z: Array, x: Array, c: Array | None) -> Scalar:
        """Log density of the guide."""
        ...

    def log_prior(self, z: Array, c: Array | None) -> Scalar:
        """Log density of the prior."""
        ...

    def log_likelihood(self, z: Array, x: Array, c: Array | None) -> Scalar:
        """Log probability of the datum."""
        ...

    def divergences(self, z: Array, x: Array, c: Array | None) -> Array:
        """Kullback-Leibler divergences of guide and prior in closed form, entry by entry, each given the levels above
        as they stand in ``z``: the shape of ``z``."""
        ...

    def regulariser(self) -> Scalar:
        """What is added to the loss of a datum: the negative log density of the model's own parameters, if they have a
        prior."""
        ...


class Drawn(NamedTuple):
    """Draws of the guide and their log weights, shapes ``(K, dim)`` and ``(K,)``."""

    z: Array
    log_w: Array


def log_weights(key: PRNGKey, net: LatentNet, x: Array, c: Array | None, draws: int) -> Drawn:
    """Draws of the guide for one datum, with their log weights."""
    z = jax.vmap(lambda key: net.infer(key, x, c))(jax.random.split(key, draws))
    return Drawn(z, jax.vmap(lambda z: _log_joint(net, z, x, c) - net.log_q(z, x, c))(z))


def _log_joint(net: LatentNet, z: Array, x: Array, c: Array | None) -> Scalar:
    return net.log_prior(z, c) + net.log_likelihood(z, x, c)


def mean_log_weight(log_w: Array) -> Scalar:
    """Log of the mean weight."""
    return logsumexp(log_w) - jnp.log(log_w.shape[0])


class LatentObjective(Part):
    """What training maximises."""

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""

    @abc.abstractmethod
    def loss(self, key: PRNGKey, net: LatentNet, x: Array, c: Array | None) -> Scalar:
        """The negative objective of a batch, per datum: its gradient is what training follows.

        Args:
            key: Randomness.
            net: Model and guide.
            x: Data, shape ``(batch, ...)``.
            c: Their conditions, or ``None``.
        """


def _check_draws(draws: int, least: int) -> None:
    if not is_count(draws, least):
        raise MethodError(
            f"draws must be an int of at least {least}, got {draws!r}. Give the number of draws per datum."
        )


class ELBO(LatentObjective):
    """The evidence lower bound, with the divergence of guide and prior in closed form.

    Attributes:
        draws: Draws per datum.
    """

    draws: int = eqx.field(static=True, default=1)

    def check(self) -> None:
        _check_draws(self.draws, 1)

    def loss(self, key: PRNGKey, net: LatentNet, x: Array, c: Array | None) -> Scalar:
        likelihood, divergence, _ = _parts(key, net, x, c, self.draws)
        return divergence - likelihood + net.regulariser()


def _parts(key: PRNGKey, net: LatentNet, x: Array, c: Array | None, draws: int) -> tuple[Scalar, Scalar, Array]:
    """Mean log likelihood, mean divergence, and draws of shape (draws, batch, dim)."""

    def of(key: PRNGKey, x: Array, c: Array | None) -> tuple[Scalar, Scalar, Array]:
        z = net.infer(key, x, c)
        return net.log_likelihood(z, x, c), jnp.sum(net.divergences(z, x, c)), z

    keys = jax.random.split(key, (draws, x.shape[0]))
    likelihood, divergence, z = jax.vmap(jax.vmap(of), (0, None, None))(keys, x, c)
    return jnp.mean(likelihood), jnp.mean(divergence), z


class IWAE(LatentObjective):
    """The importance-weighted bound, with doubly reparameterised gradients for the guide.

    Attributes:
        draws: Draws per datum.
        doubly: Whether to use doubly reparameterised gradients (the default) or plain ones.
    """

    draws: int = eqx.field(static=True, default=5)
    doubly: bool = eqx.field(static=True, default=True)

    def check(self) -> None:
        _check_draws(self.draws, 1)

    def loss(self, key: PRNGKey, net: LatentNet, x: Array, c: Array | None) -> Scalar:
        keys = jax.random.split(key, x.shape[0])
        bound = jax.vmap(lambda key, x, c: self._bound(key, net, x, c))(keys, x, c)
        return net.regulariser() - jnp.mean(bound)

    def _bound(self, key: PRNGKey, net: LatentNet, x: Array, c: Array | None) -> Scalar:
        if not self.doubly:
            return mean_log_weight(log_weights(key, net, x, c, self.draws).log_w)
        # Twice the same numbers, computed once: first for the weights, then for the gradients that they scale.
        still = jax.lax.stop_gradient(net)
        log_w = log_weights(key, still, x, c, self.draws).log_w
        shares = jax.nn.softmax(log_w)

        def path(key: PRNGKey, share: Scalar) -> Scalar:
            # The gradient comes with one share from the sum below, and is given another on its way to the guide.
            z = _scaled_gradient(net.infer(key, x, c), share)
            return _log_joint(net, z, x, c) - still.log_q(z, x, c)

        total = jnp.sum(shares * jax.vmap(path)(jax.random.split(key, self.draws), shares))
        return mean_log_weight(log_w) + total - jax.lax.stop_gradient(total)


@jax.custom_vjp
def _scaled_gradient(z: Array, scale: Scalar) -> Array:
    return z


_scaled_gradient.defvjp(lambda z, scale: (z, scale), lambda scale, g: (scale * g, jnp.zeros_like(scale)))


class InfoVAE(LatentObjective):
    """The evidence lower bound with its parts weighed anew; ``alpha=0, scale=1`` is the bound itself.

    Attributes:
        alpha: Share of the mutual information of data and latent variable that goes unpenalised, at most 1.
        scale: The weight lambda of the distance between aggregate posterior and prior.
    """

    alpha: float = eqx.field(static=True, default=1.0)
    scale: float = eqx.field(static=True, default=100.0)

    def check(self) -> None:
        if not self.alpha <= 1 or not self.alpha + self.scale >= 1:
            raise MethodError(
                f"InfoVAE got alpha={self.alpha} and scale={self.scale}, expected alpha <= 1 and alpha + scale >= 1: "
                f"both divergences need a weight that is not negative."
            )

    def loss(self, key: PRNGKey, net: LatentNet, x: Array, c: Array | None) -> Scalar:
        likelihood, divergence, z = _parts(key, net, x, c, 1)
        return (
            (1 - self.alpha) * divergence + (self.alpha + self.scale - 1) * mmd(z[0]) - likelihood + net.regulariser()
        )


def mmd(z: Array) -> Scalar:
    """Unbiased estimate of the squared maximum mean discrepancy between the law of ``z``, shape ``(n, dim)``, and the
    standard normal one; the kernel is that of the module."""
    count, dim = z.shape
    h2 = float(dim)
    squares = jnp.sum((z[:, None] - z[None]) ** 2, -1)
    own = (jnp.sum(jnp.exp(-squares / (2 * h2))) - count) / (count * (count - 1))
    cross = (1 + 1 / h2) ** (-dim / 2) * jnp.mean(jnp.exp(-jnp.sum(z**2, -1) / (2 * (1 + h2))))
    return own - 2 * cross + (1 + 2 / h2) ** (-dim / 2)


class ForwardChi2(LatentObjective):
    """The importance-weighted likelihood for the model, the variance of the weights for the guide.

    The gradient for the guide is self-normalised, so its bias is of order one over ``draws``.

    Attributes:
        draws: Draws per datum, at least 2.
    """

    draws: int = eqx.field(static=True, default=32)

    def check(self) -> None:
        _check_draws(self.draws, 2)

    def loss(self, key: PRNGKey, net: LatentNet, x: Array, c: Array | None) -> Scalar:
        def bound(key: PRNGKey, x: Array, c: Array | None) -> Scalar:
            still: Any = jax.lax.stop_gradient(net)
            z, log_w = log_weights(key, still, x, c, self.draws)
            model = jnp.sum(jax.nn.softmax(log_w) * jax.vmap(lambda z: _log_joint(net, z, x, c))(z))
            guide = jnp.sum(jax.nn.softmax(2 * log_w) * jax.vmap(lambda z: net.log_q(z, x, c))(z))
            total = model + guide
            return mean_log_weight(log_w) + total - jax.lax.stop_gradient(total)

        values = jax.vmap(bound)(jax.random.split(key, x.shape[0]), x, c)
        return net.regulariser() - jnp.mean(values)
