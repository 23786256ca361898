r"""Sliced-Wasserstein flows: draws without a network, by moving particles along random directions.

Every step turns to random orthonormal directions :math:`\theta_h` and moves each particle, along every one of them,
from its quantile among the particles to that among the data,

.. math:: z \leftarrow z + \eta \sum_h \theta_h \bigl(F_{data,h}^{-1}(F_h(\theta_h \cdot z)) - \theta_h \cdot z\bigr) ,

the transport of optimal cost in one dimension. With conditions, :math:`z = (x, c)`: particles begin with noise
:math:`x` and the conditions of the data, and *only* :math:`x` moves (Du et al. 2023, "Nonparametric generative modeling
with conditional sliced-Wasserstein flows"); the quantiles of all steps are kept, so that a new point with any condition
is carried by the same maps.

The fitted map is what it is, exactly; how close its law is to that of the data depends on the data: a random direction
of many dimensions tells little of them, and moving :math:`x` alone is an approximation: on a linear Gaussian model,
with 300 steps, conditional means were within 0.06 and conditional deviations 5 to 9 % too small.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.family import Solved, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.generative.standardisation import Standardisation
from probgen.nets import Constant

__all__ = ["LearnedSlicedFlow", "SlicedFlow"]


class _Maps(eqx.Module):
    """The maps of all steps.

    Attributes:
        units: Standard units of the data.
        conditions: Those of the conditions; ``None`` without.
        directions: Shape ``(steps, dim, dim)``, one per row.
        before: Quantiles of the particles, shape ``(steps, dim, levels)``.
        after: Quantiles of the data.
    """

    units: Standardisation
    conditions: Standardisation | None
    directions: Constant
    before: Constant
    after: Constant


class SlicedFlow(Solved):
    """A sliced-Wasserstein flow to real data, with or without conditions.

    Attributes:
        steps: How many.
        rate: How far particles move towards their new quantiles, in (0, 1].
        levels: Quantiles that are kept per direction.
    """

    steps: int = eqx.field(static=True, default=200)
    rate: float = eqx.field(static=True, default=0.5)
    levels: int = eqx.field(static=True, default=100)

    def check(self, spec: Spec) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise MethodError(f"SlicedFlow got rate={self.rate!r}, expected 0 < rate <= 1. Use 0.5.")
        for name, least in (("steps", 1), ("levels", 2)):
            value = getattr(self, name)
            if not is_count(value, least):
                raise MethodError(f"SlicedFlow got {name}={value!r}, expected an int of at least {least}.")

    def build(self, key: PRNGKey, spec: Spec) -> _Maps:
        dim = math.prod(spec.shape) + math.prod(spec.condition or (0,))
        quantiles = jnp.zeros((self.steps, dim, self.levels), jnp.float32)
        conditions = None if spec.condition is None else Standardisation(spec.condition)
        directions = jnp.zeros((self.steps, dim, dim), jnp.float32)
        return _Maps(Standardisation(spec.shape), conditions, *map(Constant, (directions, quantiles, quantiles)))

    def adapt(self, key: PRNGKey, net: _Maps, x: Array, condition: Array | None) -> _Maps:
        net = eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))
        if net.conditions is None or condition is None:
            return net
        return eqx.tree_at(lambda n: n.conditions, net, net.conditions.adapted(condition))

    def solve(self, key: PRNGKey, net: _Maps, x: Array, condition: Array | None) -> _Maps:
        maps = eqx.filter_jit(_solve)(key, self, net, x, condition)
        return eqx.tree_at(lambda n: (n.directions, n.before, n.after), net, tuple(map(Constant, maps)))

    def distribution(self, net: _Maps, spec: Spec) -> LearnedSlicedFlow:
        return LearnedSlicedFlow(self, spec, net)


def _solve(
    key: PRNGKey, family: SlicedFlow, net: _Maps, x: Array, condition: Array | None
) -> tuple[Array, Array, Array]:
    """Move as many particles as there are data; directions and quantiles of all steps."""
    key_noise, key_steps = jax.random.split(key)
    count = x.shape[0]
    x = jax.vmap(net.units.inward)(x).reshape(count, -1)
    size = x.shape[1]
    particles = jax.random.normal(key_noise, x.shape, x.dtype)
    if condition is not None and net.conditions is not None:
        given = jax.vmap(net.conditions.inward)(condition).reshape(count, -1)
        x, particles = (jnp.concatenate([a, given], 1) for a in (x, particles))
    levels = jnp.linspace(0.0, 1.0, family.levels, dtype=x.dtype)

    def step(particles: Array, key: PRNGKey) -> tuple[Array, tuple[Array, Array, Array]]:
        directions = jax.random.orthogonal(key, x.shape[1], dtype=x.dtype)
        before = jnp.quantile(particles @ directions.T, levels, 0).T
        after = jnp.quantile(x @ directions.T, levels, 0).T
        moved = jax.vmap(lambda z: _moved(family.rate, size, z, directions, before, after))(particles)
        return moved, (directions, before, after)

    return jax.lax.scan(step, particles, jax.random.split(key_steps, family.steps))[1]


def _moved(rate: float, size: int, z: Array, directions: Array, before: Array, after: Array) -> Array:
    """One step of one particle, of which the first ``size`` entries move."""
    at = directions @ z
    # Beyond the outermost particles the map is a shift: it stays increasing.
    inside = jnp.clip(at, before[:, 0], before[:, -1])
    reached = jax.vmap(jnp.interp)(inside, before, after) + at - inside
    return z.at[:size].add(rate * (directions.T @ (reached - at))[:size])


class LearnedSlicedFlow(Learned):
    """The law to which a sliced-Wasserstein flow carries noise. It has draws and no density."""

    offers: ClassVar = {"sample": Exactness.exact, "noise_map": Exactness.exact}

    family: SlicedFlow
    net: _Maps

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.event_shape))

    def push(self, z: Array) -> Array:
        point = z.reshape(-1)
        if self.condition is not None and self.net.conditions is not None:
            point = jnp.concatenate([point, self.net.conditions.inward(self.condition).reshape(-1)])

        def step(at: Array, maps: tuple[Array, Array, Array]) -> tuple[Array, None]:
            return _moved(self.family.rate, z.size, at, *maps), None

        maps = (self.net.directions.value, self.net.before.value, self.net.after.value)
        point, _ = jax.lax.scan(step, point, maps)
        return self.net.units.outward(point[: z.size].reshape(z.shape))
