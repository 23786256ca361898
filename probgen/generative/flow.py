r"""Normalising flows: an invertible map between data and standard normal noise.

.. math:: \log p(x) = \log N(f(x); 0, I) + \log |\det \partial f / \partial x|,

fitted by maximum likelihood; both directions, and the density, are exact up to rounding. What is done to each entry is a
``ScalarTransform``, how entries act on one another a ``FlowLayers``:

========================================================================  ============================================
``Flow()``                                                                rational-quadratic coupling (Durkan et al.
                                                                          2019)
``Flow(scalar=Affine())``                                                 Real NVP (Dinh et al. 2017); with
                                                                          ``CouplingLayers(scales=2)`` at two scales
``Flow(scalar=Affine(), layers=AutoregressiveLayers())``                  MAF (Papamakarios et al. 2017)
``Flow(scalar=Affine(), layers=AutoregressiveLayers(inverse=True))``      IAF (Kingma et al. 2016)
``Flow(scalar=LogisticMixture())``                                        the couplings of Flow++ (Ho et al. 2019); its
                                                                          dequantisation is ``DequantizedFlow``
``Flow(scalar=Affine(), layers=TransformerLayers(), noise=0.1)``          TarFlow (Zhai et al. 2024)
========================================================================  ============================================

Data near a surface of lower dimension, or on a grid, have no density to be fitted. With ``noise`` the flow is fitted to
data plus normal noise of deviation :math:`\sigma`, which has one, and is the law of such noisy data: in ``sample`` and
``log_prob`` alike. The mean of the data given a noisy value is :math:`x + \sigma^2 \nabla \log p(x)` (Tweedie), which is
``denoised``.
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
from probgen.generative.coupling_layers import CouplingLayers
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.flow_layers import Bijection, FlowLayers
from probgen.generative.flow_transform import FlowTransform
from probgen.generative.learned import Exactness, Learned
from probgen.generative.scalar_transform import ScalarTransform, Spline
from probgen.generative.standardisation import Standardisation

__all__ = ["Flow", "LearnedFlow"]


class FlowNet(eqx.Module):
    """A flow between data in their units and noise.

    Attributes:
        units: Of the data.
        given: Units of the conditions; ``None`` without.
        bijection: Between data in standard units, flat, and noise.
    """

    units: Standardisation
    given: Standardisation | None
    bijection: Bijection

    def inward(self, x: Array, condition: Array | None) -> tuple[Array, Scalar]:
        """From a datum to noise of its shape, and the log determinant."""
        x, condition = self._ready(x, condition)
        z, gained = self.bijection.inward(self.units.inward(x).reshape(-1), condition)
        return z.reshape(x.shape), gained + self.units.log_det()

    def outward(self, z: Array, condition: Array | None) -> tuple[Array, Scalar]:
        """From noise to a datum, and the log determinant."""
        z, condition = self._ready(z, condition)
        x, gained = self.bijection.outward(z.reshape(-1), condition)
        return self.units.outward(x.reshape(z.shape)), gained - self.units.log_det()

    def log_density(self, x: Array, condition: Array | None) -> Scalar:
        """Of a datum."""
        z, gained = self.inward(x, condition)
        return standard_normal(z) + gained

    def _ready(self, x: Array, condition: Array | None) -> tuple[Array, Array | None]:
        """In one precision; the condition flat, in standard units."""
        if self.given is None or condition is None:
            return x.astype(jnp.result_type(x, jnp.float32)), None
        dtype = jnp.result_type(x, condition, jnp.float32)
        return x.astype(dtype), self.given.inward(condition.astype(dtype)).reshape(-1)


def standard_normal(z: Array) -> Scalar:
    """Log density of standard normal noise."""
    return -0.5 * jnp.sum(z**2) - 0.5 * z.size * math.log(2 * math.pi)


class Flow(Family):
    """A normalising flow of real data.

    Attributes:
        scalar: What is done to each entry.
        layers: How entries act on one another.
        count: Number of layers; with several scales, of each.
        width: Length of the hidden layers of the networks.
        depth: Number of their hidden layers; of transformers, of blocks.
        noise: Deviation of the noise that is added to data in training, in standard deviations of each entry.
    """

    training: ClassVar[Training] = Training(steps=5000, learning_rate=2e-3)

    scalar: ScalarTransform = eqx.field(static=True, default=Spline())
    layers: FlowLayers = eqx.field(static=True, default=CouplingLayers())
    count: int = eqx.field(static=True, default=8)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    noise: float = eqx.field(static=True, default=0.0)

    def check(self, spec: Spec) -> None:
        for name in ("count", "width", "depth"):
            if not getattr(self, name) >= 1:
                raise MethodError(f"Flow got {name}={getattr(self, name)!r}, expected at least 1. Change {name}.")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise MethodError(f"noise is a deviation, got {self.noise}, expected >= 0. Use noise=0 for none.")
        if math.prod(spec.shape) < 1:
            raise MethodError(f"Flow got data of shape {spec.shape}, which have no entries. Give data with entries.")
        self.layers.check(spec.shape)

    def build(self, key: PRNGKey, spec: Spec) -> FlowNet:
        given = math.prod(spec.condition) if spec.condition is not None else 0
        bijection = self.layers.build(key, spec.shape, given, self.scalar, self.count, self.width, self.depth)
        units = None if spec.condition is None else Standardisation(spec.condition)
        return FlowNet(Standardisation(spec.shape), units, bijection)

    def adapt(self, key: PRNGKey, net: FlowNet, x: Array, condition: Array | None) -> FlowNet:
        given = net.given if net.given is None or condition is None else net.given.adapted(condition)
        return FlowNet(net.units.adapted(x), given, net.bijection)

    def loss(self, key: PRNGKey, net: FlowNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        if self.noise:
            x = x + self.noise * net.units.scale.value * jax.random.normal(key, x.shape, x.dtype)
        return -jnp.mean(jax.vmap(net.log_density)(x, condition))

    def distribution(self, net: FlowNet, spec: Spec) -> LearnedFlow:
        return LearnedFlow(self, spec, net)


class LearnedFlow(Learned):
    """The law of a flow: draws, density and noise map are exact, and differentiable in the condition. With ``noise`` it
    is the law of noisy data."""

    offers: ClassVar = {
        "log_prob": Exactness.exact,
        "noise_map": Exactness.exact,
        "sample": Exactness.exact,
    }

    family: Flow
    net: FlowNet

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.spec.shape, jnp.result_type(float)))

    def push(self, z: Array) -> Array:
        return self.net.outward(z, self.condition)[0]

    def density(self, x: Array) -> Scalar:
        return self.net.log_density(x, self.condition)

    def noise_of(self, x: Array) -> Array:
        """The noise that ``noise_map`` takes to ``x``, the same shape."""
        self._ready("noise_map")
        return self.pointwise(lambda here, x: here.net.inward(x, here.condition)[0], (jnp.asarray(x), self.event_dim))

    def denoised(self, x: Array) -> Array:
        """The mean of the data given noisy values, by one step along the score; ``x`` itself without ``noise``. Exact
        for the fitted law if that is the law of some data plus such noise, which a fit is only nearly."""
        self._ready("sample")

        def one(here: LearnedFlow, x: Array) -> Array:
            return x + (here.family.noise * here.net.units.scale.value) ** 2 * jax.grad(here.density)(x)

        return self.pointwise(one, (jnp.asarray(x), self.event_dim))

    @property
    def transform(self) -> FlowTransform:
        """The map from noise to data as a NumPyro transform, given one condition if there are any."""
        self._ready("noise_map")
        if self.batch_shape:
            raise MethodError(
                f"transform needs one condition, and this {self._kind} was given a batch of shape {self.batch_shape}. "
                f"Take one: model.given(condition[0])."
            )
        return FlowTransform(self.net, self.condition, self.spec.shape)
