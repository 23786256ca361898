r"""Continuous flows: data carried to noise by a neural ordinary equation (Chen et al. 2018; Grathwohl et al. 2019).

.. math:: \frac{dx}{dt} = v(x, t), \qquad \log p(x_0) = \log N(x_1; 0, I) + \int_0^1 \nabla \cdot v(x_t, t)\,dt,

from data at time 0 to noise at time 1, in standard units; fitted by maximum likelihood through the solver. The divergence
is a trace of ``dim`` derivatives, or Hutchinson's estimate :math:`\epsilon^\top \nabla v\,\epsilon` from one or a few
derivatives, with the same :math:`\epsilon` along a path. It is linear in the trace, so that the estimate of the *log*
density is unbiased; that of the density itself is not (it is too large on average). Training may use the estimate, since the
loss is linear in log densities; ``log_prob`` always takes the exact trace.

Likelihood by a solver of few steps can be had by cheating: a field that is rough between the steps has any log density by
that solver, and quite another one in truth. Three things are against it. The network is smooth (``Modulated``): with
layers that are normalised, eight steps were off by hundreds of nats. Training adds a price for
:math:`\int \|v\|^2 dt / \mathrm{dim}` and for :math:`\int \|\nabla v\|_F^2 dt / \mathrm{dim}` along the paths (Finlay et
al. 2020), which makes them straight and the field even; the density stays exact for the flow that is fitted. And its rule is
of order 4. After training the log density by its solver is compared with that by four times the steps; if they differ, a
warning says by how much.
"""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError, ProbgenWarning
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.transport import Divergence, ExactDivergence, Hutchinson
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.flow import standard_normal
from probgen.generative.learned import Exactness, Learned, as_points
from probgen.generative.ode_solver import AdaptiveSteps, OdeSolver, RungeKuttaSteps
from probgen.generative.standardisation import Standardisation
from probgen.nets import Modulated, TimeFeatures

__all__ = ["ContinuousFlow", "LearnedContinuousFlow"]

_FEATURES = TimeFeatures(size=8, most=2.0)
_LOOKS = 256
"""Data at which the solver of training is looked at."""
_OFF = 0.05
"""Nats by which it may be off on average."""


class _Net(eqx.Module):
    """The velocity, between units."""

    units: Standardisation
    given: Standardisation | None
    net: Modulated

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
        self,
        key: PRNGKey,
        solver: OdeSolver,
        divergence: Divergence,
        x: Array,
        condition: Array | None,
        prices: tuple[float, float] | None = None,
    ) -> tuple[Array, Scalar, Scalar]:
        """From data to noise: the noise, the log density of the data, and the price of the path, by prices of energy and
        roughness; 0 without, and then nothing of it enters the steps of a solver."""
        dtype = jnp.result_type(x, jnp.float32) if condition is None else jnp.result_type(x, condition, jnp.float32)
        condition = self.context(condition, dtype)

        def slope(t: Array, y: tuple[Array, ...]) -> tuple[Array, ...]:
            velocity, push = jax.linearize(lambda x: self.velocity(x, t, condition), y[0])
            directions = divergence.directions(key, y[0])
            pushed = jax.vmap(push)(directions)
            trace = jnp.sum(directions * pushed) / len(directions)
            if prices is None:
                return velocity, trace
            roughness = jnp.sum(pushed**2) / (len(directions) * velocity.size)
            return velocity, trace, prices[0] * jnp.mean(velocity**2) + prices[1] * roughness

        zero = jnp.zeros((), dtype)
        start = (self.units.inward(x).astype(dtype), zero, zero)
        z, gained, *price = solver.solve(slope, start if prices is not None else start[:2], 0.0, 1.0)
        return z, standard_normal(z) + gained + self.units.log_det(), price[0] if price else zero

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
        roughness: Price of the squared norm of the derivative along them, in nats.
        training_solver: How training solves the equation; steps of a fixed number are fast, ``ContinuousAdjoint`` takes the
            least memory.
        solver: How the fitted flow solves it.
    """

    training: ClassVar[Training] = Training(steps=1000, learning_rate=5e-3, ema=0.995)

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    divergence: Divergence = eqx.field(static=True, default=ExactDivergence())
    energy: float = eqx.field(static=True, default=0.01)
    roughness: float = eqx.field(static=True, default=0.02)
    training_solver: OdeSolver = eqx.field(static=True, default=RungeKuttaSteps(8))
    solver: OdeSolver = eqx.field(static=True, default=AdaptiveSteps(1e-5))

    def check(self, spec: Spec) -> None:
        for name in ("width", "depth"):
            if not getattr(self, name) >= 1:
                raise MethodError(
                    f"ContinuousFlow got {name}={getattr(self, name)!r}, expected at least 1. Change {name}."
                )
        for name, fallback in (("energy", 0.01), ("roughness", 0.02)):
            price = getattr(self, name)
            if not (math.isfinite(price) and price >= 0):
                raise MethodError(f"{name} is a price, got {price}, expected >= 0. Use {name}={fallback}.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        given = 0 if spec.condition is None else math.prod(spec.condition)
        units = None if spec.condition is None else Standardisation(spec.condition)
        net = Modulated(key, spec.shape, _FEATURES.size + given, self.width, self.depth)
        return _Net(Standardisation(spec.shape), units, net)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        given = net.given if net.given is None or condition is None else net.given.adapted(condition)
        return _Net(net.units.adapted(x), given, net.net)

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        def one(key: PRNGKey, x: Array, condition: Array | None) -> Scalar:
            prices = (self.energy, self.roughness)
            _, log_density, price = net.inward(key, self.training_solver, self.divergence, x, condition, prices)
            return price - log_density

        return jnp.mean(jax.vmap(one)(jax.random.split(key, x.shape[0]), x, condition))

    def distribution(self, net: _Net, spec: Spec) -> LearnedContinuousFlow:
        return LearnedContinuousFlow(self, spec, net)

    def inspect(self, model: Learned, x: Array, condition: Array | None) -> None:
        here = LearnedContinuousFlow(self, model.spec, model.net, None if condition is None else condition[:_LOOKS])
        off = here.solver_error(x[:_LOOKS])
        if off is None or np.mean(np.abs(off)) <= _OFF:
            return
        warnings.warn(
            f"the log density by the solver of training, {self.training_solver}, is off by {np.mean(np.abs(off)):.2g} nats on "
            f"average ({np.mean(off):+.2g} with its sign), so what was fitted is not quite the likelihood; log_prob, by "
            f"{self.solver}, does not have this error, but the fit suffers. Let training take more steps, "
            f"training_solver=RungeKuttaSteps(16), or raise energy or roughness (now {self.energy:g} and {self.roughness:g}).",
            ProbgenWarning,
            stacklevel=3,
        )


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

    def solver_error(self, x: Array) -> np.ndarray | None:
        """What the log density by the solver of training has too much: its difference from that by four times the steps,
        shape that of ``x`` without the event; ``None`` for a solver that keeps to a tolerance."""
        self._ready("log_prob")
        coarse = self.family.training_solver
        fine = coarse.finer()
        if fine is None:
            return None
        x = as_points(x, self.event_shape, "value")

        def off(here: LearnedContinuousFlow, x: Array) -> Scalar:
            key = jax.random.key(0)  # of no use to the exact divergence
            by = [here.net.inward(key, s, ExactDivergence(), x, here.condition)[1] for s in (coarse, fine)]
            return by[0] - by[1]

        return np.asarray(jax.jit(lambda model, x: model.pointwise(off, (x, model.event_dim)))(self, x))

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        return self.net.inward(key, self.family.solver, Hutchinson(), x, self.condition)[1]

    def velocity_at(self, x: Array, t: Array | float) -> Array:
        dtype = jnp.result_type(x, jnp.float32)
        return self.net.velocity(x, jnp.asarray(t, dtype), self.net.context(self.condition, dtype))
