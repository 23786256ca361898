r"""Continuous flows: data carried to noise by a neural ordinary equation (Chen et al. 2018; Grathwohl et al. 2019).

.. math:: \frac{dx}{dt} = v(x, t), \qquad \log p(x_0) = \log N(x_1; 0, I) + \int_0^1 \nabla \cdot v(x_t, t)\,dt,

from data at time 0 to noise at time 1, in standard units; fitted by maximum likelihood through the solver. The divergence
is a trace of ``dim`` derivatives, or Hutchinson's estimate :math:`\epsilon^\top \nabla v\,\epsilon` from one or a few
derivatives, with the same :math:`\epsilon` along a path. It is linear in the trace, so that the estimate of the *log*
density is unbiased; that of the density itself is not (it is too large on average). Training may use the estimate, since the
loss is linear in log densities; ``log_prob`` always takes the exact trace.

Fitted by likelihood alone an equation becomes hard to solve. ``energy`` adds a price for
:math:`\int \|v\|^2 dt / \mathrm{dim}` along the paths (Finlay et al. 2020), which makes them straight; the density stays
exact for the flow that is fitted.
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
from probgen.feynman_kac.transport import Divergence, ExactDivergence, Hutchinson
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.flow import standard_normal
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import AdaptiveSteps, HeunSteps, OdeSolver
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["ContinuousFlow", "LearnedContinuousFlow"]

_FEATURES = TimeFeatures(size=8, most=2.0)


class _Net(eqx.Module):
    """The velocity, between units."""

    units: Standardisation
    given: Standardisation | None
    net: Conditioned

    def velocity(self, x: Array, t: Array, condition: Array | None) -> Array:
        """In standard units; the condition flat, in standard units."""
        features = _FEATURES(t).astype(x.dtype)
        return self.net(x, features if condition is None else jnp.concatenate([features, condition]))

    def context(self, condition: Array | None, dtype: jnp.dtype) -> Array | None:
        """A condition as ``velocity`` takes it."""
        if self.given is None or condition is None:
            return None
        return self.given.inward(condition).reshape(-1).astype(dtype)

    def inward(
        self, key: PRNGKey, solver: OdeSolver, divergence: Divergence, x: Array, condition: Array | None
    ) -> tuple[Array, Scalar, Scalar]:
        """From data to noise: the noise, the log density of the data, and the energy of the path."""
        dtype = jnp.result_type(x, jnp.float32) if condition is None else jnp.result_type(x, condition, jnp.float32)
        condition = self.context(condition, dtype)

        def slope(t: Array, y: tuple[Array, Scalar, Scalar]) -> tuple[Array, Scalar, Scalar]:
            velocity, push = jax.linearize(lambda x: self.velocity(x, t, condition), y[0])
            trace = divergence(key, lambda probe: push(probe)[None], y[0])[0]
            return velocity, trace, jnp.mean(velocity**2)

        zero = jnp.zeros((), dtype)
        z, gained, energy = solver.solve(slope, (self.units.inward(x).astype(dtype), zero, zero), 0.0, 1.0)
        return z, standard_normal(z) + gained + self.units.log_det(), energy

    def outward(self, solver: OdeSolver, z: Array, condition: Array | None) -> Array:
        """From noise to data."""
        dtype = jnp.result_type(z, jnp.float32) if condition is None else jnp.result_type(z, condition, jnp.float32)
        condition = self.context(condition, dtype)
        x = solver.solve(lambda t, x: self.velocity(x, t, condition), z.astype(dtype), 1.0, 0.0)
        return self.units.outward(x)


class ContinuousFlow(Family):
    """A continuous flow of real data; with ``Hutchinson`` as ``divergence``, FFJORD.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        divergence: How training takes the divergence.
        energy: Price of the energy of the paths in training, in nats.
        training_solver: How training solves the equation; steps of a fixed number are fast, ``ContinuousAdjoint`` takes the
            least memory.
        solver: How the fitted flow solves it.
    """

    training: ClassVar[Training] = Training(steps=2000, learning_rate=3e-3)

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    divergence: Divergence = eqx.field(static=True, default=ExactDivergence())
    energy: float = eqx.field(static=True, default=0.01)
    training_solver: OdeSolver = eqx.field(static=True, default=HeunSteps(8))
    solver: OdeSolver = eqx.field(static=True, default=AdaptiveSteps(1e-5))

    def check(self, spec: Spec) -> None:
        for name in ("width", "depth"):
            if not getattr(self, name) >= 1:
                raise MethodError(
                    f"ContinuousFlow got {name}={getattr(self, name)!r}, expected at least 1. Change {name}."
                )
        if not (math.isfinite(self.energy) and self.energy >= 0):
            raise MethodError(f"energy is a price, got {self.energy}, expected >= 0. Use energy=0.01.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        given = 0 if spec.condition is None else math.prod(spec.condition)
        units = None if spec.condition is None else Standardisation(spec.condition)
        net = Conditioned(key, spec.shape, _FEATURES.size + given, self.width, self.depth)
        return _Net(Standardisation(spec.shape), units, net)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        given = net.given if net.given is None or condition is None else net.given.adapted(condition)
        return _Net(net.units.adapted(x), given, net.net)

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        def one(key: PRNGKey, x: Array, condition: Array | None) -> Scalar:
            _, log_density, energy = net.inward(key, self.training_solver, self.divergence, x, condition)
            return self.energy * energy - log_density

        return jnp.mean(jax.vmap(one)(jax.random.split(key, x.shape[0]), x, condition))

    def distribution(self, net: _Net, spec: Spec) -> LearnedContinuousFlow:
        return LearnedContinuousFlow(self, spec, net)


class LearnedContinuousFlow(Learned):
    """The law of a continuous flow. Draws, density (by the exact trace) and noise map are those of the equation up to
    the tolerance of ``solver``. ``bound`` is Hutchinson's estimate of the log density with one probe: unbiased for
    ``log_prob``, so a bound that is tight on average, at a cost that does not grow with the dimension."""

    offers: ClassVar = {
        "log_prob": Exactness.ode,
        "bound": Exactness.bound,
        "noise_map": Exactness.ode,
        "velocity": Exactness.exact,
        "sample": Exactness.ode,
    }

    family: ContinuousFlow
    net: _Net

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.spec.shape, jnp.result_type(float)))

    def push(self, z: Array) -> Array:
        return self.net.outward(self.family.solver, z, self.condition)

    def density(self, x: Array) -> Scalar:
        return self.net.inward(jax.random.key(0), self.family.solver, ExactDivergence(), x, self.condition)[1]

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        return self.net.inward(key, self.family.solver, Hutchinson(), x, self.condition)[1]

    def velocity_at(self, x: Array, t: Array | float) -> Array:
        dtype = jnp.result_type(x, jnp.float32)
        return self.net.velocity(x, jnp.asarray(t, dtype), self.net.context(self.condition, dtype))
