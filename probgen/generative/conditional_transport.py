r"""Conditional transport: a generator fitted by the cost of going to the data and back.

Between data :math:`x_i` and draws :math:`y_j`, with a cost :math:`c` and a navigator :math:`d`, Bayes' rule gives laws
of the one given the other, and the cost is that of both ways:

.. math:: \pi(y_j \mid x_i) = \frac{e^{-d(x_i, y_j)}}{\sum_l e^{-d(x_i, y_l)}}, \qquad
          C = \tfrac12 \operatorname{mean}_i \sum_j \pi(y_j \mid x_i)\, c(x_i, y_j)
            + \tfrac12 \operatorname{mean}_j \sum_i \pi(x_i \mid y_j)\, c(x_i, y_j)

(Zheng and Zhou 2021, who call it ACT). The way to the data makes the draws cover them, the way back keeps the draws
where data are; nothing is adversarial: generator and navigator both lower :math:`C`.

For large samples :math:`C` tends to the cost of the two conditional laws :math:`p(y) e^{-d}` and :math:`p(x) e^{-d}`
normalised. That is a cost of couplings, and so at least the Wasserstein distance, where they have the right marginals:
for :math:`d = 0`, or for draws with the law of the data. For a sharp navigator they do not, and :math:`C` falls to the
distance to nearest neighbours, *below* the Wasserstein distance; so it is a loss, and not a bound.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.flow_matching import check_size
from probgen.generative.learned import Exactness, Learned
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["ConditionalTransport", "LearnedGenerator", "conditional_transport_cost"]


def conditional_transport_cost(cost: Array, navigator: Array, share: float | Array = 0.5) -> Scalar:
    """The cost of going from rows to columns and back, by Bayes weights.

    Args:
        cost: Of each pair, shape ``(n, m)``.
        navigator: :math:`d` of each pair, shape ``(n, m)``.
        share: Weight of the way from rows to columns; 1 minus it is that of the way back.
    """
    there = jnp.mean(jnp.sum(jax.nn.softmax(-navigator, 1) * cost, 1))
    back = jnp.mean(jnp.sum(jax.nn.softmax(-navigator, 0) * cost, 0))
    return share * there + (1 - share) * back


class _Net(eqx.Module):
    units: Standardisation
    generator: MLP
    navigator: MLP


class ConditionalTransport(Family):
    """A generator, a map of noise to data, fitted by conditional transport in squared distance.

    Attributes:
        share: Weight of the way from data to draws (which covers all data); the rest is that of the way back (which
            avoids draws where no data are).
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        features: Length of the navigator's output: :math:`d` is a squared distance there.
    """

    training: ClassVar[Training] = Training(steps=3000, batch=256, learning_rate=1e-3)

    share: float = eqx.field(static=True, default=0.5)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    features: int = eqx.field(static=True, default=16)

    def check(self, spec: Spec) -> None:
        check_size(self, self.width, self.depth)
        if not 0.0 <= self.share <= 1.0:
            raise MethodError(f"ConditionalTransport got share={self.share!r}, expected 0 <= share <= 1. Use 0.5.")
        if spec.condition is not None:
            raise DataError(
                "ConditionalTransport compares samples, and takes no condition. Fit a FlowMatching instead."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_generator, key_navigator = jax.random.split(key)
        size = math.prod(spec.shape)
        return _Net(
            Standardisation(spec.shape),
            MLP(key_generator, size, size, self.width, self.depth),
            MLP(key_navigator, size, self.features, self.width, 2),
        )

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        x = jax.vmap(net.units.inward)(x).reshape(len(x), -1)
        y = jax.vmap(net.generator)(jax.random.normal(key, x.shape, x.dtype))
        here, there = jax.vmap(net.navigator)(x), jax.vmap(net.navigator)(y)
        return conditional_transport_cost(_squared(x, y), _squared(here, there), self.share)

    def distribution(self, net: _Net, spec: Spec) -> LearnedGenerator:
        return LearnedGenerator(self, spec, net)


def _squared(a: Array, b: Array) -> Array:
    return jnp.sum((a[:, None] - b) ** 2, -1)


class LearnedGenerator(Learned):
    """The law of a learned map of standard normal noise. It has draws and no density."""

    offers: ClassVar = {"sample": Exactness.exact, "noise_map": Exactness.exact}

    family: ConditionalTransport
    net: _Net

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.event_shape))

    def push(self, z: Array) -> Array:
        return self.net.units.outward(self.net.generator(z.reshape(-1)).reshape(z.shape))
