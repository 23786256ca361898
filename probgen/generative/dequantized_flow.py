r"""Flows of discrete data: noise within each bin, learned together with the flow (Ho et al. 2019, Flow++).

A density :math:`p` on :math:`(0, K)^d`, a flow behind a logit, gives every :math:`x \in \{0, .., K-1\}^d` the
probability of its cell, :math:`P(x) = \int_{(0, 1)^d} p(x + u)\,du`, which has no closed form; but

.. math:: \log P(x) \ge E_{q(u|x)}[\log p(x + u) - \log q(u|x)],

with equality for :math:`q(u|x) = p(x + u) / P(x)`. Uniform noise is the :math:`q` of old; a conditional flow of one's own
for :math:`q` makes the bound tighter, and the density need not be flat within cells. Draws have the law :math:`P` exactly.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import constraints

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.flow import Flow, FlowNet, standard_normal
from probgen.generative.learned import Exactness, Learned
from probgen.generative.scalar_transform import LogisticMixture

__all__ = ["DequantizedFlow", "LearnedDequantizedFlow"]


class _Net(eqx.Module):
    """The flow of the logits of :math:`(x + u) / K`, and that of the noise.

    Attributes:
        flow: Of the continuous data.
        dequantizer: From normal noise, in its inward direction, to logits of :math:`u`; ``None`` for uniform noise.
        values: :math:`K`.
    """

    flow: FlowNet
    dequantizer: FlowNet | None
    values: int = eqx.field(static=True)

    def noise(self, key: PRNGKey, x: Array, condition: Array | None, dtype: jnp.dtype) -> tuple[Array, Scalar]:
        """Logits of the noise within the cell, and the log density of the noise."""
        if self.dequantizer is None:
            return jax.random.logistic(key, x.shape, dtype), jnp.zeros((), dtype)
        z = jax.random.normal(key, x.shape, dtype)
        v, gained = self.dequantizer.inward(z, _context(x, condition, dtype))
        return v, standard_normal(z) - gained - jnp.sum(_log_sigmoid_slope(v))

    def bound(self, key: PRNGKey, x: Array, condition: Array | None, dtype: jnp.dtype) -> Scalar:
        """One draw of the bound."""
        v, log_q = self.noise(key, x, condition, dtype)
        logits, gained = _logits(x.astype(dtype), v, self.values)
        return self.flow.log_density(logits, condition) + gained - log_q


def _log_sigmoid_slope(v: Array) -> Array:
    return jax.nn.log_sigmoid(v) + jax.nn.log_sigmoid(-v)


def _logits(x: Array, v: Array, values: int) -> tuple[Array, Scalar]:
    """The logits of :math:`(x + u) / K` for :math:`u = sigmoid(v)`, and the log determinant of the map from :math:`u`;
    finite at the ends of the cells."""
    below, above = jnp.log(x + jax.nn.sigmoid(v)), jnp.log(values - 1 - x + jax.nn.sigmoid(-v))
    return below - above, jnp.sum(math.log(values) - below - above)


def _context(x: Array, condition: Array | None, dtype: jnp.dtype) -> Array:
    """What the noise depends on."""
    flat = x.reshape(-1).astype(dtype)
    return flat if condition is None else jnp.concatenate([flat, condition.reshape(-1).astype(dtype)])


class DequantizedFlow(Family):
    """A flow of integers ``0 .. values - 1`` with an order: grey levels, counts, grades.

    Attributes:
        flow: The flow of the continuous data; its couplings are those of Flow++ by default.
        dequantizer: The flow of the noise within cells, given the datum; ``None`` for uniform noise.
    """

    discrete: ClassVar[bool] = True
    training: ClassVar[Training] = Training(steps=5000, learning_rate=2e-3)

    flow: Flow = eqx.field(static=True, default=Flow(scalar=LogisticMixture()))
    dequantizer: Flow | None = eqx.field(
        static=True, default=Flow(scalar=LogisticMixture(components=4), count=4, width=32)
    )

    def check(self, spec: Spec) -> None:
        for name, flow in (("flow", self.flow), ("dequantizer", self.dequantizer)):
            if flow is None:
                continue
            flow.check(Spec(spec.shape))
            if flow.noise:
                raise MethodError(
                    f"the {name} of a DequantizedFlow has noise={flow.noise}, but dequantisation is its noise. Set noise=0."
                )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_flow, key_noise = jax.random.split(key)
        flow = self.flow.build(key_flow, Spec(spec.shape, spec.condition))
        noise = None
        if self.dequantizer is not None:
            context = math.prod(spec.shape) + (0 if spec.condition is None else math.prod(spec.condition))
            noise = self.dequantizer.build(key_noise, Spec(spec.shape, (context,)))
        return _Net(flow, noise, spec.values)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        v = jax.random.logistic(key, x.shape, jnp.float32)
        logits, _ = _logits(x.astype(jnp.float32), v, net.values)
        flow, noise = self.flow.adapt(key, net.flow, logits, condition), net.dequantizer
        if noise is not None and noise.given is not None:
            context = jax.vmap(lambda x, c: _context(x, c, jnp.dtype(jnp.float32)))(x, condition)
            noise = FlowNet(noise.units, noise.given.adapted(context), noise.bijection)
        return _Net(flow, noise, net.values)

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        keys = jax.random.split(key, x.shape[0])
        dtype = jnp.dtype(jnp.float32)
        return -jnp.mean(jax.vmap(lambda key, x, c: net.bound(key, x, c, dtype))(keys, x, condition))

    def distribution(self, net: _Net, spec: Spec) -> LearnedDequantizedFlow:
        return LearnedDequantizedFlow(self, spec, net)


class LearnedDequantizedFlow(Learned):
    """The law of a flow of integers. Draws are exact. ``bound`` is the evidence lower bound with one draw of the noise;
    the exponential of it is an unbiased estimate of the probability."""

    offers: ClassVar = {"bound": Exactness.bound, "sample": Exactness.exact}

    family: DequantizedFlow
    net: _Net

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.spec.values - 1), self.event_dim)

    def draw(self, key: PRNGKey) -> Array:
        z = jax.random.normal(key, self.spec.shape, jnp.result_type(float))
        y = jax.nn.sigmoid(self.net.flow.outward(z, self.condition)[0])
        # A sigmoid rounds to 1, which belongs to the last cell.
        return jnp.minimum(jnp.floor(self.spec.values * y), self.spec.values - 1).astype(jnp.int32)

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        return self.net.bound(key, x, self.condition, jnp.dtype(jnp.result_type(float)))
