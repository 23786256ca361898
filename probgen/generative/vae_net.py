r"""The network of a variational autoencoder: model :math:`p(z_1) \prod_l p(z_{l+1} \mid z_l, c)\, p(x \mid z_L, c)` and
guide :math:`q(z_1 \mid x, c) \prod_l q(z_{l+1} \mid z_l, x, c)`, level by level from the top; all but the likelihood
are normal with independent entries.

The latent variable is one flat vector of all levels, the top one first.

The encoder *by gradient origin* (Bond-Taylor and Willcocks 2021) has no network of its own: the gradient of the log
likelihood at the prior's mean says where to go,

.. math:: q(z \mid x) = N(m \odot g(x),\ \operatorname{diag}(s^2)), \qquad g(x) = \nabla_z \log p(x \mid z) |_{z = 0},

with learned steps :math:`m` and scales :math:`s`, both vectors. It is the one-step empirical-Bayes estimate: the
origin, seen as a noisy draw, is moved to its posterior mean by Tweedie's formula. Where the decoder is linear with
orthogonal columns and the noise is normal, :math:`m = s^2 =` the posterior variances makes it the exact posterior: a Newton step.

The prior's variances may be learned, with *automatic relevance determination* (ARD-VAE: Saha, Joshi and Whitaker 2025):
:math:`z_j \sim N(0, 1 / a_j)` with :math:`a_j \sim \mathrm{Gamma}(\mathrm{shape}, \mathrm{rate})`. The maximum over the
precisions of the bound of all :math:`n` data plus their log prior (in :math:`\log a`) is that of the conjugate update,

.. math:: \frac{1}{a_j} = \frac{\mathrm{rate} + \frac12 \sum_i E_q z_{ij}^2}{\mathrm{shape} + n / 2},

the variance of the encoded data.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Spec
from probgen.generative.likelihood import Likelihood
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP, Constant

__all__ = ["Amortised", "Encoder", "GradientOrigin", "LatentPrior", "Relevance", "StandardNormal", "VAENet"]


class Encoder(Part):
    """How a guide is computed from a datum."""

    def check(self, levels: int) -> None:
        """Raise ``MethodError`` for settings that make no sense, or not for so many levels."""

    @abc.abstractmethod
    def build(self, key: PRNGKey, latent: tuple[int, ...], features: int, given: int) -> Any:
        """Its network: called with the model's own, level, datum, condition as a vector and level above, it gives mean
        and log standard deviation."""


class Amortised(Encoder):
    """One network per level, from the datum (and the level above).

    Attributes:
        width: Length of the hidden layers.
        depth: Number of hidden layers; 0 for linear maps.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    def check(self, levels: int) -> None:
        if self.width < 1 or self.depth < 0:
            raise MethodError(f"Amortised got width={self.width} and depth={self.depth}, expected >= 1 and >= 0.")

    def build(self, key: PRNGKey, latent: tuple[int, ...], features: int, given: int) -> _AmortisedNet:
        inputs = [features + given + above for above in (0, *latent[:-1])]
        keys = jax.random.split(key, len(latent))
        return _AmortisedNet(
            tuple(MLP(k, i, 2 * o, self.width, self.depth) for k, i, o in zip(keys, inputs, latent, strict=True))
        )


class _AmortisedNet(eqx.Module):
    nets: tuple[MLP, ...]

    def __call__(self, model: VAENet, level: int, x: Array, given: Array, above: Array) -> tuple[Array, Array]:
        loc, log_scale = jnp.split(self.nets[level](jnp.concatenate([model.features(x), given, above])), 2)
        return loc, log_scale


class GradientOrigin(Encoder):
    """No network: the gradient of the log likelihood at the origin, in learned steps; for one level."""

    def check(self, levels: int) -> None:
        if levels != 1:
            raise MethodError(f"GradientOrigin is for one level, got {levels}. Give latent=8, say, or Amortised().")

    def build(self, key: PRNGKey, latent: tuple[int, ...], features: int, given: int) -> _OriginNet:
        # The information of the data at the origin is of the order of their number, and so is the gradient.
        start = jnp.full(latent, -0.5 * math.log1p(features), jnp.float32)
        return _OriginNet(2 * start, start)


class _OriginNet(eqx.Module):
    log_step: Array
    log_scale: Array

    def __call__(self, model: VAENet, level: int, x: Array, given: Array, above: Array) -> tuple[Array, Array]:
        origin = jnp.zeros(self.log_step.shape, jnp.result_type(model.features(x), self.log_step))
        gradient = jax.grad(lambda z: model.law_given(z, given).log_prob(x))(origin)
        return jnp.exp(self.log_step) * gradient, self.log_scale


class LatentPrior(Part):
    """The prior of the top level."""

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""

    @abc.abstractmethod
    def build(self, dim: int) -> Any:
        """Its parameters: the log standard deviations, or ``None`` where they are zero."""

    def log_density(self, log_scale: Any) -> Scalar | float:
        """Log density of the parameters under their own prior."""
        return 0.0


class StandardNormal(LatentPrior):
    """Independent standard normal entries."""

    def build(self, dim: int) -> None:
        return None


class Relevance(LatentPrior):
    """Normal entries whose precisions are learned: automatic relevance determination.

    Attributes:
        shape: Of the gamma prior of a precision, > 0.
        rate: Of the same, > 0.
    """

    shape: float = eqx.field(static=True, default=1e-3)
    rate: float = eqx.field(static=True, default=1e-3)

    def check(self) -> None:
        if not (self.shape > 0 and self.rate > 0):
            raise MethodError(f"Relevance got shape={self.shape} and rate={self.rate}, expected positive numbers.")

    def build(self, dim: int) -> Array:
        return jnp.zeros(dim, jnp.float32)

    def log_density(self, log_scale: Any) -> Scalar | float:
        return jnp.sum(-2 * self.shape * log_scale - self.rate * jnp.exp(-2 * log_scale))


class VAENet(eqx.Module):
    """Model and guide for one datum; see ``LatentNet`` for what each method is.

    Attributes:
        units: Units of the data.
        given_units: Units of the conditions, ``None`` without.
        encoder: Network of the encoder.
        priors: Networks of the levels below the top.
        log_scale: Of the prior of the top level, shape ``(latent[0],)``; ``None`` for one.
        decoder: Network of the decoder.
        noise: What the likelihood learned.
        count: Number of data.
    """

    units: Standardisation
    given_units: Standardisation | None
    encoder: Any
    priors: tuple[MLP, ...]
    log_scale: Array | None
    decoder: MLP
    noise: Any
    count: Constant
    latent: tuple[int, ...] = eqx.field(static=True)
    likelihood: Likelihood = eqx.field(static=True)
    prior: LatentPrior = eqx.field(static=True)
    spec: Spec = eqx.field(static=True)

    @property
    def levels(self) -> tuple[slice, ...]:
        """Where each level stands in the latent vector."""
        ends = [sum(self.latent[: i + 1]) for i in range(len(self.latent))]
        return tuple(slice(end - size, end) for end, size in zip(ends, self.latent, strict=True))

    def features(self, x: Array) -> Array:
        """A datum as a vector."""
        return self.likelihood.features(x, self.units, self.spec)

    def given(self, c: Array | None) -> Array:
        """A condition as a vector in standard units; empty without."""
        if self.given_units is None or c is None:
            return jnp.zeros(0, jnp.float32)
        return self.given_units.inward(c).reshape(-1)

    # -- level by level ------------------------------------------------------------------------------------------------

    def prior_at(self, level: int, above: Array, c: Array | None) -> tuple[Array, Array]:
        """Mean and log standard deviation of a level given the one above."""
        if level == 0:
            zero = jnp.zeros(self.latent[0], jnp.float32)
            return zero, zero if self.log_scale is None else self.log_scale
        loc, log_scale = jnp.split(self.priors[level - 1](jnp.concatenate([above, self.given(c)])), 2)
        return loc, log_scale

    def guide_at(self, level: int, above: Array, x: Array, c: Array | None) -> tuple[Array, Array]:
        """The same for the guide."""
        return self.encoder(self, level, x, self.given(c), above)

    def law(self, z: Array, c: Array | None) -> dist.Distribution:
        """The law of a datum given the whole latent vector."""
        return self.law_given(z[self.levels[-1]], self.given(c))

    def law_given(self, bottom: Array, given: Array) -> dist.Distribution:
        """The law of a datum given the bottom level, and the condition as a vector."""
        outputs = self.decoder(jnp.concatenate([bottom, given]))
        return self.likelihood.law(outputs, self.noise, self.units, self.spec)

    # -- as a whole ----------------------------------------------------------------------------------------------------

    def infer(self, key: PRNGKey, x: Array, c: Array | None) -> Array:
        """See ``LatentNet``."""
        return self.infer_from(jax.random.normal(key, (sum(self.latent),), self.features(x).dtype), x, c)

    def infer_from(self, noise: Array, x: Array, c: Array | None) -> Array:
        """The draw of the guide that standard normal noise drives; zero noise gives the means."""
        return self._driven(noise, lambda level, above: self.guide_at(level, above, x, c))

    def push(self, noise: Array, c: Array | None) -> Array:
        """The draw of the prior that standard normal noise drives."""
        return self._driven(noise, lambda level, above: self.prior_at(level, above, c))

    def _driven(self, noise: Array, at: Any) -> Array:
        drawn: list[Array] = []
        for level, where in enumerate(self.levels):
            loc, log_scale = at(level, drawn[-1] if drawn else jnp.zeros(0, noise.dtype))
            drawn.append(loc + jnp.exp(log_scale) * noise[where])
        return jnp.concatenate(drawn)

    def _split(self, z: Array) -> list[tuple[Array, Array]]:
        """Each level with the one above."""
        parts = [z[where] for where in self.levels]
        return list(zip(parts, [z[:0], *parts[:-1]], strict=True))

    def log_q(self, z: Array, x: Array, c: Array | None) -> Scalar:
        """See ``LatentNet``."""
        return sum(
            (_log_normal(part, *self.guide_at(i, above, x, c)) for i, (part, above) in enumerate(self._split(z))),
            jnp.zeros((), z.dtype),
        )

    def log_prior(self, z: Array, c: Array | None) -> Scalar:
        """See ``LatentNet``."""
        return sum(
            (_log_normal(part, *self.prior_at(i, above, c)) for i, (part, above) in enumerate(self._split(z))),
            jnp.zeros((), z.dtype),
        )

    def log_likelihood(self, z: Array, x: Array, c: Array | None) -> Scalar:
        """See ``LatentNet``."""
        return jnp.asarray(self.law(z, c).log_prob(x))

    def divergences(self, z: Array, x: Array, c: Array | None) -> Array:
        """See ``LatentNet``."""
        found = []
        for level, (_, above) in enumerate(self._split(z)):
            (m, s), (m0, s0) = self.guide_at(level, above, x, c), self.prior_at(level, above, c)
            found.append(s0 - s + 0.5 * (jnp.exp(2 * (s - s0)) + ((m - m0) * jnp.exp(-s0)) ** 2 - 1))
        return jnp.concatenate(found)

    def regulariser(self) -> Scalar:
        """See ``LatentNet``."""
        return -jnp.asarray(self.prior.log_density(self.log_scale)) / self.count.value


def _log_normal(z: Array, loc: Array, log_scale: Array) -> Scalar:
    white = (z - loc) * jnp.exp(-log_scale)
    return jnp.sum(-0.5 * white**2 - log_scale) - 0.5 * z.shape[0] * math.log(2 * math.pi)
