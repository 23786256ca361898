r"""Entropic optimal transport by energy: the plan from a source to the data through one potential.

The plan that minimises :math:`E\,\tfrac12\|x - y\|^2 + \varepsilon\, KL(\pi \,\|\, \mu \otimes \text{Lebesgue})` among
those with marginals :math:`\mu` (source) and :math:`\nu` (data) is

.. math:: \pi(y \mid x) \propto \exp\bigl((f(y) - \tfrac12 \|x - y\|^2) / \varepsilon\bigr)

for the potential :math:`f` that makes its second marginal :math:`\nu`: the maximum of the dual

.. math:: E_\nu f(y) - \varepsilon\, E_\mu \log \int e^{(f(y) - \frac12 \|x - y\|^2)/\varepsilon} dy, \qquad
          \nabla_\theta = E_\nu \nabla_\theta f(y) - E_\mu E_{\pi(y \mid x)} \nabla_\theta f(y)

(Mokrov et al. 2024), an energy-based model whose negative phase are Langevin moves from each start. Moves take the
quadratic part of the potential as it is, :math:`y' = x + \rho (y - x) + (1 - \rho) \nabla f(y) + \sqrt{\varepsilon (1 -
\rho^2)}\, \xi`: exact for :math:`f =
0`, and biased by the curvature of :math:`f` otherwise, as every unadjusted move is.
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
from probgen.generative.source import NormalSource, Source
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["EntropicTransport", "LearnedPlan"]


class _Net(eqx.Module):
    units: Standardisation
    potential: MLP


class EntropicTransport(Family):
    """The entropic plan from a source to real data.

    Attributes:
        source: Where it begins, for example ``Samples(x)``.
        epsilon: Regularisation, in squared standard units of the data.
        moves: Langevin moves per draw.
        rho: What a move keeps, in (0, 1): closer to 1 is less biased and takes more moves.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    training: ClassVar[Training] = Training(steps=2000, batch=256, learning_rate=2e-3, ema=0.995)
    validated: ClassVar[bool] = False

    source: Source = NormalSource()
    epsilon: float = eqx.field(static=True, default=0.5)
    moves: int = eqx.field(static=True, default=30)
    rho: float = eqx.field(static=True, default=0.8)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    def check(self, spec: Spec) -> None:
        check_size(self, self.width, self.depth)
        if spec.condition is not None:
            raise DataError("EntropicTransport takes no condition. Fit one plan per condition, or a FlowMatching.")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise MethodError(f"EntropicTransport got epsilon={self.epsilon!r}, expected a positive number. Use 0.5.")
        if not 0.0 < self.rho < 1.0 or self.moves < 1:
            raise MethodError(f"EntropicTransport got rho={self.rho!r}, moves={self.moves!r}. Use rho=0.8, moves=30.")
        self.source.check(spec)

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        potential = MLP(key, math.prod(spec.shape), 1, self.width, self.depth, zero=True)
        return _Net(Standardisation(spec.shape), potential)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def moved(self, key: PRNGKey, net: _Net, x: Array) -> Array:
        """A draw of the plan given a start, both in standard units."""
        key_start, key_moves = jax.random.split(key)
        slope = jax.grad(lambda y: net.potential(y.reshape(-1))[0])
        kick = jnp.sqrt(self.epsilon * (1 - self.rho**2)).astype(x.dtype)

        def move(y: Array, key: PRNGKey) -> tuple[Array, None]:
            noise = kick * jax.random.normal(key, y.shape, y.dtype)
            return x + self.rho * (y - x) + (1 - self.rho) * slope(y) + noise, None

        begin = x + jnp.sqrt(self.epsilon).astype(x.dtype) * jax.random.normal(key_start, x.shape, x.dtype)
        return jax.lax.scan(move, begin, jax.random.split(key_moves, self.moves))[0]

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_start, key_move = jax.random.split(key)
        x = jax.vmap(net.units.inward)(x)
        starts = jax.vmap(lambda k: self.source.draw(k, net.units, None))(jax.random.split(key_start, len(x)))
        ends = jax.vmap(lambda k, s: self.moved(k, net, s))(jax.random.split(key_move, len(x)), starts.astype(x.dtype))
        ends = jax.lax.stop_gradient(ends)
        potential = jax.vmap(lambda y: net.potential(y.reshape(-1))[0])
        return jnp.mean(potential(ends)) - jnp.mean(potential(x))

    def distribution(self, net: _Net, spec: Spec) -> LearnedPlan:
        return LearnedPlan(self, spec, net)


class LearnedPlan(Learned):
    """The second marginal of a learned plan, which is the law of the data as far as it was learned; ``transport`` draws
    the end that belongs to a start."""

    offers: ClassVar = {"sample": Exactness.estimate}

    family: EntropicTransport
    net: _Net

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units of the plan."""
        return self.net.units

    def draw(self, key: PRNGKey) -> Array:
        key_start, key_move = jax.random.split(key)
        return self._moved(key_move, self.family.source.draw(key_start, self.units, None))

    def _moved(self, key: PRNGKey, start: Array) -> Array:
        return self.units.outward(self.family.moved(key, self.net, start))

    def transport(self, key: PRNGKey, start: Array) -> Array:
        """Draws of the plan given starts in the units of the data, shape ``(..., *event_shape)``."""
        start = jnp.asarray(start)
        keys = jax.random.split(key, start.shape[: start.ndim - self.event_dim])
        return self.pointwise(
            lambda here, key, x: here._moved(key, here.units.inward(x)), (keys, 0), (start, self.event_dim)
        )

    def potential(self, x: Array) -> Array:
        """The potential at points in the units of the data, up to a constant."""

        def one(here: LearnedPlan, x: Array) -> Array:
            return here.net.potential(here.units.inward(x).reshape(-1))[0]

        return self.pointwise(one, (jnp.asarray(x), self.event_dim))
