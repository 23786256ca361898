r"""Probabilistic contrastive learning: encoders that know how ambiguous an input is.

Pairs :math:`(x, x^+)` show the same thing: :math:`z \sim p(z \mid x)` and :math:`z^+` near it, :math:`p(z^+ \mid z) =
\mathrm{vMF}(z, \kappa_+)`. The encoder gives a law of :math:`z` rather than a point, :math:`q(z \mid x) =
\mathrm{vMF}(\mu(x), \kappa(x))`, and is trained by Monte Carlo InfoNCE (Kirchhof, Kasneci and Oh 2023),

.. math:: -\log \mathbb{E}_{z \sim q(x),\, z_j^+ \sim q(x_j^+)}
          \frac{e^{\kappa_+ z \cdot z_i^+}}{\frac1n\sum_j e^{\kappa_+ z \cdot z_j^+}},

the other pairs of a batch being negatives. At its minimum :math:`q(z \mid x)` is the true posterior up to a rotation of
the sphere, if that is a von Mises-Fisher law, :math:`\kappa_+` the true one, and latents are uniform on the sphere. With
finitely many draws inside the logarithm the loss is biased towards high concentrations: in the example of the gallery they
came out right with 64 draws and four times too large with 8.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.standardisation import Standardisation
from probgen.generative.von_mises_fisher import VonMisesFisher
from probgen.nets import MLP

__all__ = ["ContrastiveEncoder", "LearnedContrastiveEncoder"]


class _Encoder(eqx.Module):
    units: Standardisation
    linear: eqx.nn.Linear
    net: MLP
    size: int = eqx.field(static=True)

    def __call__(self, x: Array) -> VonMisesFisher:
        """The law of the latent of one input."""
        x = self.units.inward(x).reshape(-1)
        found = self.net(x)
        direction = self.linear(x) + found[: self.size]
        direction = direction / jnp.linalg.norm(direction)
        return VonMisesFisher(direction, jnp.exp(found[self.size]), validate_args=False)


class ContrastiveEncoder(Family):
    r"""An encoder of inputs, fitted to pairs of them: data of shape ``(n, 2, *shape of an input)``.

    What ``fit`` returns is the law of the latent *given an input*: ``model.given(x)``.

    Attributes:
        size: Dimensions of the space of the sphere, >= 3.
        positive: :math:`\kappa_+`.
        draws: Draws of latents per pair, inside the logarithm.
        width: Of the hidden layers.
        depth: Their number.
        start: The concentration with which training starts.
        held: Share of the steps in which it is held there.
    """

    training: ClassVar[Training] = Training(steps=2000, batch=128, learning_rate=3e-3, ema=0.99, weight_decay=0.0)

    size: int = eqx.field(static=True, default=3)
    positive: float = eqx.field(static=True, default=20.0)
    draws: int = eqx.field(static=True, default=64)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    start: float = eqx.field(static=True, default=20.0)
    held: float = eqx.field(static=True, default=0.3)

    def check(self, spec: Spec) -> None:
        fitted = spec.condition is not None and spec.shape == (self.size,)
        if not fitted and (spec.condition is not None or len(spec.shape) < 2 or spec.shape[0] != 2):
            raise self._pairs(spec.shape)
        if self.size < 3 or self.draws < 1 or not (self.positive > 0 and self.start > 0):
            raise MethodError(
                f"ContrastiveEncoder got size={self.size}, draws={self.draws}, positive={self.positive}, "
                f"start={self.start}, expected size >= 3, draws >= 1 and positive concentrations."
            )

    def _pairs(self, shape: tuple[int, ...]) -> DataError:
        return DataError(
            f"ContrastiveEncoder takes pairs of inputs, shape (n, 2, ...), and no conditions; one datum has shape {shape}. "
            f"Stack them: jnp.stack([x, other], 1)."
        )

    def build(self, key: PRNGKey, spec: Spec) -> _Encoder:
        shape = spec.shape[1:] if spec.condition is None else spec.condition
        key_linear, key_net = jax.random.split(key)
        # Directions begin as a linear map, which does not fold the sphere: no step of descent would unfold it.
        linear = eqx.nn.Linear(math.prod(shape), self.size, use_bias=False, key=key_linear, dtype=jnp.float32)
        net = MLP(key_net, math.prod(shape), self.size + 1, self.width, self.depth, zero=True)
        bias = jnp.zeros(self.size + 1, jnp.float32).at[-1].set(math.log(self.start))
        net = eqx.tree_at(lambda n: n.layers[-1].bias, net, bias)
        return _Encoder(Standardisation(shape), linear, net, self.size)

    def adapt(self, key: PRNGKey, net: _Encoder, x: Array, condition: Array | None) -> _Encoder:
        if condition is not None:
            raise self._pairs(x.shape[1:])
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x.reshape(-1, *x.shape[2:])))

    def loss(self, key: PRNGKey, net: _Encoder, x: Array, condition: Array | None, now: Now) -> Scalar:
        keys = jax.random.split(key, (2, len(x)))

        def one(key: PRNGKey, x: Array) -> Array:
            law = net(x)
            # A concentration that is free while directions are still wrong explodes or vanishes, and stays there.
            kappa = jnp.where(now.progress < self.held, self.start, law.concentration)
            return VonMisesFisher(law.direction, kappa, validate_args=False).sample(key, (self.draws,))

        def drawn(keys: Array, x: Array) -> Array:
            return jax.vmap(one, out_axes=1)(keys, x)

        ours, theirs = drawn(keys[0], x[:, 0]), drawn(keys[1], x[:, 1])
        logits = self.positive * jnp.einsum("sid,sjd->sij", ours, theirs)
        right = jnp.diagonal(logits, axis1=1, axis2=2) - logsumexp(logits, axis=2) + math.log(len(x))
        return -jnp.mean(logsumexp(right, axis=0) - math.log(self.draws))

    def distribution(self, net: _Encoder, spec: Spec) -> LearnedContrastiveEncoder:
        if spec.condition is None:
            spec = Spec((self.size,), spec.shape[1:])
        return LearnedContrastiveEncoder(self, spec, net)


class LearnedContrastiveEncoder(Learned):
    """The law of a latent given an input, on the sphere."""

    offers: ClassVar = {"log_prob": Exactness.exact, "sample": Exactness.exact}

    family: ContrastiveEncoder
    net: _Encoder

    @property
    def support(self) -> constraints.Constraint:
        return constraints.sphere

    def concentration(self, x: Array) -> Array:
        """How sure the encoder is of inputs, shape ``(..., *shape of an input)``: :math:`\\kappa`, shape ``(...)``."""
        return self._of(x).concentration

    def direction(self, x: Array) -> Array:
        """Mean directions, shape ``(..., size)``, of inputs, shape ``(..., *shape of an input)``."""
        return self._of(x).direction

    def _of(self, x: Array) -> VonMisesFisher:
        x = jnp.asarray(x)
        shape = self.spec.condition or ()
        batch = x.shape[: x.ndim - len(shape)]
        law = jax.vmap(self.net)(x.reshape(-1, *shape))
        return VonMisesFisher(law.direction.reshape(*batch, -1), law.concentration.reshape(batch), validate_args=False)

    def _law(self) -> VonMisesFisher:
        assert self.condition is not None
        return self.net(self.condition)

    def draw(self, key: PRNGKey) -> Array:
        return self._law().sample(key)

    def density(self, x: Array) -> Scalar:
        return self._law().log_prob(x)
