r"""Idempotent generative networks: a map that leaves data where they are and takes everything else to them.

In standard units and with :math:`z \sim N(0, I)`, one network :math:`f` is trained on

.. math:: \lambda_r\, \lVert f(x) - x \rVert^2 + \lambda_i\, \lVert \bar f(f(z)) - f(z) \rVert^2
          - \lambda_t\, \psi\bigl(\lVert f(\bar f(z)) - \bar f(z) \rVert^2\bigr),

where :math:`\bar f` has the same weights but passes no gradient to them. The first makes data fixed points, the second
takes noise to fixed points, and the third (tightness) makes other points than data no fixed points: it moves the outer map
alone, and is capped at a multiple of the error on the data, :math:`\psi(d) = a e \tanh(d / a e)` with
:math:`e = \lVert f(x) - x \rVert^2`. So :math:`f` draws in one step, and also *projects*: what is near the data is taken
to them. It has no density, and nothing forces the law of its draws to be that of the data beyond their support.

Reference: Shocher et al. (2024), "Idempotent generative network".
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["IdempotentNetwork", "LearnedIdempotent"]


class Net(eqx.Module):
    """Units, and the map in them."""

    units: Standardisation
    net: MLP

    def __call__(self, x: Array) -> Array:
        """One point in standard units."""
        return self.net(x.reshape(-1)).reshape(x.shape)


class IdempotentNetwork(Family):
    r"""An idempotent generative network for real data.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        reconstruction: :math:`\lambda_r`.
        idempotence: :math:`\lambda_i`.
        tightness: :math:`\lambda_t`.
        cap: :math:`a`.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    reconstruction: float = eqx.field(static=True, default=20.0)
    idempotence: float = eqx.field(static=True, default=20.0)
    tightness: float = eqx.field(static=True, default=2.5)
    cap: float = eqx.field(static=True, default=1.5)

    training: ClassVar[Training] = Training(steps=10_000, validation=0.0)
    validated: ClassVar[bool] = False

    def check(self, spec: Spec) -> None:
        for name in ("reconstruction", "idempotence", "cap"):
            if not getattr(self, name) > 0:
                raise MethodError(f"IdempotentNetwork got {name}={getattr(self, name)!r}, expected a positive number.")
        if not self.tightness >= 0:
            raise MethodError(f"IdempotentNetwork got tightness={self.tightness!r}, expected >= 0.")
        check_without_condition(self, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        dim = math.prod(spec.shape)
        return Net(Standardisation(spec.shape), MLP(key, dim, dim, self.width, self.depth))

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        x = jax.vmap(net.units.inward)(x)
        noise = jax.random.normal(key, x.shape, x.dtype)
        terms = jax.vmap(self.terms, (None, 0, 0))(net, x, noise)
        return jnp.mean(self.reconstruction * terms[0] + self.idempotence * terms[1] - self.tightness * terms[2])

    def terms(self, net: Net, x: Array, z: Array) -> tuple[Scalar, Scalar, Scalar]:
        """Reconstruction, idempotence and capped tightness of one datum and one noise, per entry."""
        frozen = jax.lax.stop_gradient(net)
        made = net(z)
        there = jax.lax.stop_gradient(made)
        error = jnp.mean((net(x) - x) ** 2)
        idempotence = jnp.mean((frozen(made) - made) ** 2)
        moved = jnp.mean((net(there) - there) ** 2)
        most = self.cap * jax.lax.stop_gradient(error) + 1e-12
        return error, idempotence, most * jnp.tanh(moved / most)

    def distribution(self, net: Net, spec: Spec) -> LearnedIdempotent:
        return LearnedIdempotent(self, spec, net)


class LearnedIdempotent(Learned):
    """The law of a learned idempotent network: the map of noise, and ``project`` for any other point."""

    offers: ClassVar = {"noise_map": Exactness.exact, "sample": Exactness.exact}

    family: IdempotentNetwork
    net: Net

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.event_shape))

    def push(self, z: Array) -> Array:
        return self.net.units.outward(self.net(z))

    def project(self, x: Array) -> Array:
        """Where the map takes points in units of the data, the shape of ``x``: data stay, other points come closer."""
        return self.pointwise(lambda here, x: here.push(here.net.units.inward(x)), (jnp.asarray(x), self.event_dim))
